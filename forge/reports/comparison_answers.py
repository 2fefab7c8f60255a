"""Runs held against the first of them by their answers to the same held-out questions: verdicts on F1, and a table with exact match.

The statistics are those of losses (forge.reports.verdict), of 1 less a score and with every question of one size: a paired bootstrap of
the questions, within their sources. Exact match is in the table alone, so that there is one verdict a pair.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forge.reports import questions, verdict
from forge.reports.comparison import Compared, Groups, Table, Verdict, same_seeds
from forge.reports.curves import signed
from forge.reports.documents import Shared
from forge.reports.questions import MEASURES, Measure, Questions
from forge.reports.verdict import FEWEST, Difference


@dataclass(frozen=True)
class Answered:
    """A verdict on F1, and the differences by measure and source ("": all): of scores, so that above 0 the second is better."""

    verdict: Verdict
    differences: Mapping[tuple[Measure, str], Difference]


@dataclass(frozen=True)
class _Pair:
    shared: Mapping[Measure, Shared]
    first_runs: int
    matched: bool

    def difference(self, measure: Measure, which_N: np.ndarray, confidence: float) -> Difference:
        losses_RN, sizes_N, source_N = self.shared[measure].only(which_N)
        if len(sizes_N) < FEWEST:
            one, other = losses_RN[: self.first_runs], losses_RN[self.first_runs :]
            value = float(one.mean() - other.mean()) if len(sizes_N) else math.nan
            return Difference(value, unsure=f"{len(sizes_N)} questions are too few, {FEWEST} are needed; raise evaluation.answers")
        found = verdict.between(losses_RN[: self.first_runs], losses_RN[self.first_runs :], sizes_N, source_N, confidence, self.matched)
        return replace(found, value=-found.value, low=-found.high, high=-found.low)


def answered(groups: Groups, confidence: float) -> list[Answered]:
    """Each group after the first against it; empty where no run was asked anything."""
    (first_label, first), *others = groups.items()
    if all(run.questions is None for group in groups.values() for run in group):
        return []
    paired = [(label, _paired(first_label, first, label, group)) for label, group in others]
    differences = [found if isinstance(found, str) else _differences(found, confidence) for _, found in paired]
    ps = verdict.adjusted([math.nan if isinstance(each, str) else each["f1", ""].p for each in differences])
    made = []
    for (label, found), each, p in zip(paired, differences, ps, strict=True):
        if isinstance(found, str) or isinstance(each, str):
            sentence = f"can't tell the answers of {label} from those of {first_label}: {found}"
            made.append(Answered(Verdict(label, "can't tell", sentence), {}))
            continue
        overall = each["f1", ""]
        word = verdict.word(replace(overall, value=-overall.value), p, confidence)
        sentence = _sentence(first_label, label, found, overall, word, p, confidence)
        made.append(Answered(Verdict(label, word, sentence, found.shared["f1"], found.first_runs, overall, p=p), each))
    return made


def _differences(pair: _Pair, confidence: float) -> dict[tuple[Measure, str], Difference]:
    found: dict[tuple[Measure, str], Difference] = {}
    for measure, shared in pair.shared.items():
        found[measure, ""] = pair.difference(measure, shared.counted_N, confidence)
        for number, source in enumerate(shared.sources):
            found[measure, source] = pair.difference(measure, shared.source_N == number, confidence)
    return found


def _paired(first_label: str, first: Sequence[Compared], label: str, group: Sequence[Compared]) -> _Pair | str:
    """What they were both asked, or why that is nothing."""
    for name, runs in ((first_label, first), (label, group)):
        if all(run.questions is None for run in runs):
            return f"{name} has no {questions.FILE}: it was asked nothing (evaluation.answers), or did not come to its end"
    sides = [sorted((run for run in side if run.questions), key=lambda run: run.settings.get("seed", "")) for side in (first, group)]
    asked: list[Questions] = [run.questions for side in sides for run in side if run.questions]
    shared = {measure: found for measure in MEASURES if (found := questions.shared(asked, measure))}
    if not shared:
        return "they were not asked the same; give them the same data, split, evaluation.answers and evaluation.max_new_tokens"
    return _Pair(shared, len(sides[0]), same_seeds(*sides))


def _sentence(first: str, label: str, pair: _Pair, overall: Difference, word: str, p: float, confidence: float) -> str:
    losses_RN, _, _ = pair.shared["f1"].only(pair.shared["f1"].counted_N)
    if overall.unsure:
        return f"can't tell the answers of {label} from those of {first}: {overall.unsure}"
    if overall.low == overall.high == 0 and overall.p == 1:
        return f"can't tell the answers of {label} from those of {first}: their F1 is the same on each of {losses_RN.shape[1]:,} questions"
    one, other = (1 - float(side.mean()) for side in (losses_RN[: pair.first_runs], losses_RN[pair.first_runs :]))
    told = f"over {losses_RN.shape[1]:,} questions, {'p < 0.001' if p < 0.001 else f'p {p:.2g}'}"
    interval = f"{confidence * 100:g} % interval of the difference {signed(overall.low, 3)} to {signed(overall.high, 3)}"
    what = f"F1 {other:.3f} against {one:.3f}, {interval} {told}"
    if word == "can't tell":
        return f"can't tell the answers of {label} from those of {first}: {what}"
    return f"{label} answers {word} than {first}: {what}"


def table(groups: Groups, found: Sequence[Answered], confidence: float) -> Table | None:
    """Means of each group, in the order of measures and sources; None where nothing was asked."""
    held = [run.questions for group in groups.values() for run in group if run.questions]
    if not held:
        return None
    sources = list(dict.fromkeys(source for each in held for source in each.asked))
    paired = [each for each in found if each.differences]
    many = len(groups) > 2
    header = ["score", "source", *groups, *(f"{each.verdict.label} less {next(iter(groups))}" if many else "difference" for each in paired)]
    rows = []
    for measure, name in MEASURES.items():
        for source in ["", *sources]:
            values = [_mean([run.questions for run in group if run.questions], measure, source) for group in groups.values()]
            rows.append([name, source or "all", *values, *(_interval(each.differences.get((measure, source))) for each in paired)])
    note = f"Differences above 0: higher than the first's; {confidence * 100:g} % intervals, over questions." if paired else ""
    return Table("Answers to held-out questions (0 to 1)", header, rows, note)


def _mean(runs: Sequence[Questions], measure: Measure, source: str) -> str:
    names = lambda run: [source] if source else [name for name in run.asked if name not in run.unweighted]  # noqa: E731
    held = [run.scores[measure][name] for run in runs for name in names(run) if name in run.scores[measure]]
    return f"{float(np.concatenate(held).mean()):.3f}" if held else "–"


def _interval(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.value):
        return "–"
    limits = "no interval" if difference.unsure else f"{signed(difference.low, 3)} to {signed(difference.high, 3)}"
    return f"{signed(difference.value, 3)} ({limits})"

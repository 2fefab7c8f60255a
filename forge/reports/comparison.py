"""Runs held against the first of them: verdicts in sentences, and tables for terminal and page. Reads and writes nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forge.reports import documents, verdict
from forge.reports.curves import compact, duration, finite, signed
from forge.reports.documents import Documents, Shared
from forge.reports.questions import Questions
from forge.reports.verdict import Difference
from forge.spec import History, Metrics

DIGESTS = {
    "full_digest": "tokens measured at the end",
    "valid_digest": "validation tokens",
    "data_digest": "data",
    "tokenizer_digest": "tokenizer",
    "template_digest": "chat template",
}
_NONE = "–"


@dataclass(frozen=True)
class Compared:
    """One run, as the store has it. `settings` by dotted name; `seconds` on the clock; `documents`, `questions`: None where it has none.
    `not_held_out`: what is wrong with the rows that it was measured on."""

    name: str
    id: str
    status: str
    history: History
    metrics: Metrics
    settings: Mapping[str, str]
    digests: Mapping[str, str]
    seconds: float
    documents: Documents | None
    questions: Questions | None = None
    not_held_out: str = ""


Groups = Mapping[str, Sequence[Compared]]  # by label, in the order asked for; a run alone, or runs that differ in their seeds


@dataclass(frozen=True)
class Verdict:
    """Of the group `label` against the first one. `p` is corrected for the number of comparisons. Without `shared` nothing was paired."""

    label: str
    word: str
    sentence: str
    shared: Shared | None = None
    first_runs: int = 0
    overall: Difference = field(default_factory=lambda: Difference(math.nan))
    by_source: Mapping[str, Difference] = field(default_factory=dict)
    p: float = math.nan


@dataclass(frozen=True)
class Table:
    """`note` stands below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


# ---- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(groups: Groups, confidence: float) -> list[Verdict]:
    """Each group after the first against it."""
    (first_label, first), *others = groups.items()
    paired = [(label, _paired(first_label, first, label, group)) for label, group in others]
    differences = [_difference(found, confidence) if isinstance(found, _Pair) else None for _, found in paired]
    ps = verdict.adjusted([math.nan if each is None else each.p for each in differences])
    made = []
    for (label, found), overall, p in zip(paired, differences, ps, strict=True):
        if isinstance(found, str) or overall is None:
            made.append(Verdict(label, "can't tell", f"can't tell {label} from {first_label}: {found}"))
            continue
        shared = found.shared
        by_source = {
            source: _difference(found, confidence, shared.source_N == number)  # by itself
            for number, source in enumerate(shared.sources)
        }
        word = verdict.word(overall, p, confidence)
        sentence = _sentence(first_label, label, found, overall, word, p, confidence)
        made.append(Verdict(label, word, sentence, shared, found.first_runs, overall, by_source, p))
    return made


def caveat(found: Sequence[Verdict]) -> str:
    """What the verdicts don't say."""
    paired = [each.shared for each in found if each.shared]
    if not paired:
        return ""
    single = any(len(each.losses_RN) == 2 for each in paired)
    seeds = "One run against one is told of these two runs; with other seeds it may be otherwise." if single else ""
    many = f"Each p is corrected for {len(paired)} comparisons (Holm); intervals are each for itself." if len(paired) > 1 else ""
    return " ".join(filter(None, [seeds, many]))


def warnings(groups: Groups) -> list[str]:
    """What makes the runs differ in more than is asked about."""
    runs = [run for group in groups.values() for run in group]
    found = [f"{run.name}: {run.not_held_out}" for run in runs if run.not_held_out]
    for tag in ("full_digest", "valid_digest"):
        if len({run.digests[tag] for run in runs if run.digests.get(tag)}) > 1:
            what = "curves of validation loss" if tag == "valid_digest" else "final losses"
            found.append(f"DIFFERENT DATA: {DIGESTS[tag]} are not the same, so {what} can't be compared on these runs")
    for label, group in groups.items():
        beyond = [key for key, values in differences({run.id: [run] for run in group}) if key != "seed"]
        if beyond:
            found.append(f"the runs of {label} differ in more than their seed: {', '.join(beyond[:5])}{', …' if len(beyond) > 5 else ''}")
        if (left := [run.name for run in group if run.documents is None]) and len(left) < len(group):
            found.append(f"{label}: {', '.join(left)} left out of the verdict, without {documents.FILE}")
    return found


@dataclass(frozen=True)
class _Pair:
    """Of the runs in `shared` the first `first_runs` are the first group's. `matched`: both groups' are of the same seeds, in order."""

    shared: Shared
    first_runs: int
    matched: bool


def _paired(first_label: str, first: Sequence[Compared], label: str, group: Sequence[Compared]) -> _Pair | str:
    """What they were both measured on, or why that is nothing."""
    for name, runs in ((first_label, first), (label, group)):
        if all(run.documents is None for run in runs):
            return f"{name} has no {documents.FILE}, {_why_none(runs)}; curves and configuration are all there is to compare"
    sides = [
        sorted(((run, run.documents) for run in side if run.documents is not None), key=lambda pair: pair[0].settings.get("seed", ""))
        for side in (first, group)
    ]
    measured = [pair for side in sides for pair in side]
    shared = documents.tokens([held for _, held in measured])
    cut_otherwise = len({run.digests.get("tokenizer_digest") for run, _ in measured}) > 1
    if shared is None and cut_otherwise and len({run.digests.get("data_digest") for run, _ in measured}) == 1:
        shared = documents.text_bytes([held for _, held in measured], [_bytes(run, held) for run, held in measured])
    if shared is not None:
        return _Pair(shared, len(sides[0]), same_seeds(*([run for run, _ in side] for side in sides)))
    if cut_otherwise:
        return "can't be compared on different tokens, and their tokenizers were not measured on the same text either"
    return "can't be compared on different tokens: give them the same data, sequence_length, split and evaluation.full_tokens"


def same_seeds(first: Sequence[Compared], second: Sequence[Compared]) -> bool:
    """Whether both are several runs of the same seeds, in the same order."""
    seeds, others = ([run.settings.get("seed") for run in side] for side in (first, second))
    return seeds == others and len(set(seeds)) == len(seeds) > 1


def _why_none(runs: Sequence[Compared]) -> str:
    if any(run.status == "RUNNING" for run in runs):
        return "which a run writes at its end, and it is still running"
    if any(run.status == "FINISHED" for run in runs):
        return "since it was trained by an older forge"
    return f"as it did not come to its end ({runs[0].status})"


def _bytes(run: Compared, held: Documents) -> float:
    """What its targets spell, from its loss in two units; NaN where it says no bits a byte."""
    nats = sum(float(losses.sum()) for source, losses in held.losses.items() if source not in held.unweighted)
    return nats / math.log(2) / run.metrics.get("final/bits_per_byte", math.nan)


def _difference(pair: _Pair, confidence: float, which_N: np.ndarray | None = None) -> Difference:
    losses_RN, sizes_N, source_N = pair.shared.only(pair.shared.counted_N if which_N is None else which_N)
    if not len(sizes_N):
        return Difference(math.nan, unsure="no source counts: each has weight 0")
    return verdict.between(losses_RN[: pair.first_runs], losses_RN[pair.first_runs :], sizes_N, source_N, confidence, pair.matched)


def _sentence(first: str, label: str, pair: _Pair, overall: Difference, word: str, p: float, confidence: float) -> str:
    losses_RN, sizes_N, _ = pair.shared.only(pair.shared.counted_N)
    size, unit = overall.value, pair.shared.unit
    if overall.unsure:
        return f"can't tell {label} from {first}: {overall.unsure}"
    if overall.low == overall.high == 0 and overall.p == 1:
        return f"can't tell {label} from {first}: they are the same on each of {len(sizes_N):,} documents"
    share = abs(size) / abs(float(losses_RN[: pair.first_runs].mean(axis=0).sum() / sizes_N.sum()))
    alone = ", though by itself it would be told" if word == "can't tell" and overall.p <= 1 - confidence else ""
    told = f"over {len(sizes_N):,} documents{_runs(pair)}, {'p < 0.001' if p < 0.001 else f'p {p:.2g}'}{alone}"
    interval = f"{confidence * 100:g} % interval"
    if word == "can't tell":
        limits = f"{signed(overall.low, 4)} to {signed(overall.high, 4)}"
        return f"can't tell {label} from {first}: {signed(size, 4)} {unit} ({share:.2%}), {interval} {limits} {told}"
    low, high = (limit if word == "worse" else -limit for limit in sorted((overall.low, overall.high), key=abs))
    return f"{label} is {word} than {first} by {abs(size):.4f} {unit} ({share:.2%}): {interval} {low:.4f} to {high:.4f} {told}"


def _runs(pair: _Pair) -> str:
    others = len(pair.shared.losses_RN) - pair.first_runs
    if pair.matched:
        return f", {others} runs against {others} of the same seeds"
    return "" if pair.first_runs == others == 1 else f", {others} against {pair.first_runs} runs"


# ---- tables -----------------------------------------------------------------------------------------------------------


def tables(groups: Groups, found: Sequence[Verdict], confidence: float) -> list[Table]:
    made = [_runs_table(groups), _sources_table(groups, found, confidence)]
    settings = [[key, *values] for key, values in differences(groups)]
    made.append(Table("Configuration, where it differs", ["key", *groups], settings, "" if settings else "nothing differs"))
    return [*made, _digests_table(groups)]


def differences(groups: Groups) -> list[tuple[str, list[str]]]:
    """The settings that are not the same for all runs, with each group's values."""
    known = [run.settings for group in groups.values() for run in group if run.settings]
    keys = sorted({key for settings in known for key in settings if len({each.get(key) for each in known}) > 1})
    return [(key, [_values(run.settings.get(key, _NONE) for run in group) for group in groups.values()]) for key in keys]


def _values(values: object) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))  # type: ignore[call-overload]


def _runs_table(groups: Groups) -> Table:
    header = ["run", "id", "status", "best val loss", "at step", "final loss", "bits/byte", "tokens", "time"]
    rows = []
    for label, group in groups.items():
        for run in group:
            best, step = best_loss(run)
            known = [best, run.metrics.get("final/loss"), run.metrics.get("final/bits_per_byte", run.metrics.get("val/bits_per_byte"))]
            numbers = [_number(value) for value in known]
            tokens = run.metrics.get("train/tokens")
            name = run.name if run.name == label else f"{label}: {run.name}"
            at = [_NONE if step is None else f"{step:,}", *numbers[1:], _NONE if tokens is None else compact(tokens)]
            at.append(duration(run.seconds) if run.seconds else _NONE)  # a base took none
            rows.append([name, run.id[:8], run.status.lower(), numbers[0], *at])
    return Table("Runs", header, rows)


def best_loss(run: Compared) -> tuple[float | None, int | None]:
    """Of the checkpoint that was chosen, else the lowest so far; and its step."""
    if "best/val_loss" in run.metrics:
        return run.metrics["best/val_loss"], int(run.metrics.get("best/step", 0))
    steps, losses = finite(run.history, "val/loss")
    return (float(losses.min()), int(steps[losses.argmin()])) if len(losses) else (None, None)


def _sources_table(groups: Groups, found: Sequence[Verdict], confidence: float) -> Table:
    """Means of each group; where runs are paired, their differences."""
    runs = [run for group in groups.values() for run in group]
    names = sorted({key.removeprefix("final/loss/") for run in runs for key in run.metrics if key.startswith("final/loss/")})
    paired = [each for each in found if each.shared]
    many = len(groups) > 2
    header = ["source", *groups, *(f"{each.label} less {next(iter(groups))}" if many else "difference" for each in paired)]
    rows = []
    for name in ["", *names]:
        keys = [[run.metrics.get(f"final/loss/{name}" if name else "final/loss") for run in group] for group in groups.values()]
        values = [[value for value in group if value is not None] for group in keys]
        told = [_interval(each.by_source.get(name) if name else each.overall) for each in paired]
        rows.append([name or "all", *(_number(sum(each) / len(each) if each else None) for each in values), *told])
    unit = paired[0].shared.unit if paired and paired[0].shared else ""
    note = (
        f"Differences in {unit}, below 0: lower than the first's; {confidence * 100:g} % intervals; none from few documents."
        if paired
        else ""
    )
    return Table("Final loss (nats a token) by source", header, rows if any(run.metrics.get("final/loss") for run in runs) else [], note)


def _interval(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.value):
        return _NONE
    limits = "no interval" if difference.unsure else f"{signed(difference.low, 4)} to {signed(difference.high, 4)}"
    return f"{signed(difference.value, 4)} ({limits})"


def _digests_table(groups: Groups) -> Table:
    rows = []
    for tag, what in DIGESTS.items():
        values = [_values(run.digests.get(tag, "")[:12] or "none" for run in group) for group in groups.values()]
        rows.append([what, *values, "same" if len(set(values)) == 1 and "," not in values[0] else "DIFFERENT"])
    return Table("Data", ["digest", *groups, ""], rows)


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"

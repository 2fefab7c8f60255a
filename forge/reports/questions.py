"""Each held-out question's scores at the end of a run, as the run keeps them, and those of several runs side by side.

{"max_new_tokens": …, "unweighted": […], "sources": {source: [{"document": …, "exact_match": …, "f1": …, "ended": …, "text": …,
"reference": …}, …]}}: what runs are compared by without a model, and what was said for people to read.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge.errors import TrackingError
from forge.evaluation.scores import Scored
from forge.reports.documents import Shared

FILE, BASE_FILE = "evaluation/answers.json", "evaluation/answers_base.json"
Measure = Literal["f1", "exact_match"]
MEASURES: Mapping[Measure, str] = {"f1": "F1", "exact_match": "exact match"}


@dataclass(frozen=True)
class Questions:
    """Of one run. By source, in one order: what was asked (document and reference), and the scores, 0 to 1."""

    max_new_tokens: int
    unweighted: frozenset[str]
    asked: Mapping[str, Sequence[tuple[str, str]]]
    scores: Mapping[Measure, Mapping[str, np.ndarray]]


def text(answers: Mapping[str, Sequence[Scored]], unweighted: Collection[str], max_new_tokens: int) -> str:
    """The file of a run. answers: by source, in the order of the documents' names."""
    rows = {
        source: [
            {
                "document": each.document,
                "exact_match": each.exact_match,
                "f1": round(each.f1, 9),
                "ended": each.ended,
                "text": each.text,
                "reference": each.reference,
            }
            for each in some
        ]
        for source, some in answers.items()
    }
    return json.dumps({"max_new_tokens": max_new_tokens, "unweighted": sorted(unweighted), "sources": rows}, indent=1, ensure_ascii=False)


def read(text: str) -> Questions:
    """What text() gave. Raises TrackingError for anything else."""
    try:
        held = json.loads(text)
        sources = {source: rows for source, rows in held["sources"].items() if rows}
        return Questions(
            max_new_tokens=int(held["max_new_tokens"]),
            unweighted=frozenset(held["unweighted"]),
            asked={source: [(str(row["document"]), str(row["reference"])) for row in rows] for source, rows in sources.items()},
            scores={
                measure: {source: np.array([float(row[measure]) for row in rows]) for source, rows in sources.items()}
                for measure in MEASURES
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(f"{FILE} of a run isn't what forge writes ({error}); train the run again, or compare others") from error


def shared(runs: Sequence[Questions], measure: Measure) -> Shared | None:
    """Paired question by question, as losses of 1 less the score; None where they were not asked the same, for as long an answer."""
    first = runs[0]
    if not first.asked or any(dict(each.asked) != dict(first.asked) or each.max_new_tokens != first.max_new_tokens for each in runs):
        return None
    sources = list(first.asked)
    source_N = np.repeat(np.arange(len(sources)), [len(first.asked[source]) for source in sources])
    return Shared(
        sources=sources,
        names=[document for source in sources for document, _ in first.asked[source]],
        losses_RN=1 - np.stack([np.concatenate([run.scores[measure][source] for source in sources]) for run in runs]),
        sizes_N=np.ones(len(source_N)),
        source_N=source_N,
        counted_N=np.array([source not in first.unweighted for source in sources])[source_N],
        unit=MEASURES[measure],
    )

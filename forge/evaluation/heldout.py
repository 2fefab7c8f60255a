"""Whether what is measured was held out of a run's training: row by row, by the keys of their content.

Costs reading both sets of rows, which are known from before where their sources say so, and 8 bytes a row.
"""

import numpy as np

from forge.assemble import corpus_of
from forge.config import Config
from forge.data import Corpus
from forge.data.ledger import digest
from forge.errors import DataError

_SIDES = {"valid": "validation", "test": "test"}


def not_held_out(own: Config, asked: Config, data_digest: str) -> str | None:
    """What is wrong with the rows that `asked` measures, for a run of the configuration `own` whose data had that digest; None where it
    was trained on none of them. Raises DataError where `asked` can't be read.
    """
    if asked.data == own.data:
        return None
    measured = corpus_of(asked)
    try:
        trained = corpus_of(own)
    except DataError as error:
        return _unknown(f"the run's own data can't be read ({str(error).splitlines()[0]})")
    changed = digest(trained.digests) != data_digest
    if found := seen(trained, measured):
        named = "; ".join(f"{' and '.join(sides)} of source {source!r}" for source, sides in found.items())
        return f"not held out: the run was trained on {named}" + "; its data has changed since, so there may be more or fewer" * changed
    return _unknown("the run's own data has changed since") if changed else None


def seen(trained: Corpus, measured: Corpus) -> dict[str, list[str]]:
    """By source of `measured`, how many of each side's rows are on the training side of `trained`, in words; sources with none left out."""
    used = [name for name, weight in trained.weights.items() if weight > 0]
    keys = np.concatenate([trained.surveys[name].keys[trained.sides[name].train] for name in used])
    found: dict[str, list[str]] = {}
    for name, survey in measured.surveys.items():
        for side, words in _SIDES.items():
            rows = survey.keys[getattr(measured.sides[name], side)]
            if count := int(np.isin(rows, keys).sum()):
                found.setdefault(name, []).append(f"{count:,} of {len(rows):,} {words} rows")
    return found


def _unknown(why: str) -> str:
    return f"perhaps not held out: {why}, so it can't be told which of these rows it was trained on"

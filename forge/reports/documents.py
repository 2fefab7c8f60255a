"""Each document's loss at the end of a run, as the run keeps it, and those of several runs side by side.

{"digest": …, "unweighted": […], "sources": {source: [[name, loss, targets], …]}}: some 50 bytes a document, so that runs are compared
without a model. Losses are sums, in nats; null where one is not finite.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forge.errors import TrackingError

FILE, BASE_FILE = "evaluation/documents.json", "evaluation/documents_base.json"
_DIGITS = 9


@dataclass(frozen=True)
class Documents:
    """Of one run. `digest`: what it was measured on (Data.full_digest). `unweighted`: sources that count under their own names only.

    By source: names, summed losses (nats) and targets of its documents, in one order for all runs of a digest.
    """

    digest: str
    unweighted: frozenset[str]
    names: Mapping[str, Sequence[str]]
    losses: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shared:
    """What R runs have in common: N documents, and the loss of each in each run.

    `losses_RN` (sums) over `sizes_N` (targets, or bytes) are in `unit`. `source_N`: numbers of `sources`. `counted_N`: those that count in
    what sources have together.
    """

    sources: Sequence[str]
    names: Sequence[str]
    losses_RN: np.ndarray
    sizes_N: np.ndarray
    source_N: np.ndarray
    counted_N: np.ndarray
    unit: str

    def only(self, which_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """losses_RN, sizes_N and source_N of some documents."""
        return self.losses_RN[:, which_N], self.sizes_N[which_N], self.source_N[which_N]


def text(digest: str, documents: Mapping[str, Sequence[tuple[str, float, int]]], unweighted: Collection[str] = ()) -> str:
    """The file of a run. documents: by source, name, summed loss and targets of each."""
    rows = {
        source: [[name, float(f"{loss:.{_DIGITS}g}") if math.isfinite(loss) else None, targets] for name, loss, targets in each]
        for source, each in documents.items()
    }
    return json.dumps({"digest": digest, "unweighted": sorted(unweighted), "sources": rows}, separators=(",", ":"), ensure_ascii=False)


def read(text: str) -> Documents:
    """What text() gave. Raises TrackingError for anything else."""
    try:
        held = json.loads(text)
        columns = {source: list(zip(*rows, strict=True)) for source, rows in held["sources"].items() if rows}
        return Documents(
            digest=held["digest"],
            unweighted=frozenset(held["unweighted"]),
            names={source: list(names) for source, (names, _, _) in columns.items()},
            losses={source: np.array(losses, dtype=float) for source, (_, losses, _) in columns.items()},
            targets={source: np.array(targets, dtype=float) for source, (_, _, targets) in columns.items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TrackingError(f"{FILE} of a run isn't what forge writes ({error}); train the run again, or compare others") from error


def tokens(runs: Sequence[Documents]) -> Shared | None:
    """Paired over the same target tokens, in nats a token; None where these differ."""
    first = runs[0]
    if not first.names or any(
        not first.digest or other.digest != first.digest or not _same(first.targets, other.targets) for other in runs
    ):
        return None
    return _shared(runs, np.ones(len(runs)), "nats a token")


def text_bytes(runs: Sequence[Documents], sizes: Sequence[float]) -> Shared | None:
    """Paired over the same text, whatever it was cut into, in bits a byte; None where the texts differ.

    sizes: the bytes that each run's targets spell. They may differ by 2 %, as the first token of a document is no target of some
    tokenizers; each run's bits are over its own. A document's share of the bytes is taken for its share of the first run's targets.
    """
    first = runs[0]
    if not first.names or any(dict(other.names) != dict(first.names) for other in runs) or not min(sizes) > 0.98 * max(sizes):
        return None
    return _shared(runs, np.array(sizes) * math.log(2), "bits a byte", sizes[0])


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[source], other[source]) for source in one)


def _shared(runs: Sequence[Documents], divisors_R: np.ndarray, unit: str, size: float | None = None) -> Shared:
    """Losses and sizes such that their ratio over all documents that count is the loss in `unit`. `size`: what the sizes then sum to."""
    first = runs[0]
    sources = list(first.names)
    source_N = np.repeat(np.arange(len(sources)), [len(first.names[source]) for source in sources])
    counted_N = np.array([source not in first.unweighted for source in sources])[source_N]
    sizes_N = np.concatenate([first.targets[source] for source in sources])
    losses_RN = np.stack([np.concatenate([run.losses[source] for source in sources]) for run in runs])
    if size is not None:
        sizes_N = sizes_N * size / sizes_N[counted_N].sum()
        losses_RN = losses_RN * size / divisors_R[:, None]
    names = [name for source in sources for name in first.names[source]]
    return Shared(sources, names, losses_RN, sizes_N, source_N, counted_N, unit)

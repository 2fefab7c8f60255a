"""Removes duplicates, then splits by document. Nothing else in forge decides who is trained on and who is held out."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forge.errors import DataError
from forge.spec import Document


@dataclass(frozen=True)
class Split:
    """One source's documents on each side, and what was left out: rows_in = train + valid + duplicates + empty."""

    train: tuple[Document, ...]
    valid: tuple[Document, ...]
    rows_in: int
    duplicates: int
    empty: int
    digest: str


def split(sources: Mapping[str, Iterable[Document]], valid_fraction: float, seed: int) -> dict[str, Split]:
    """Each source's split. A document goes to validation by the hash of (seed, its key), whatever else there is.

    A key that an earlier document of any source had is a duplicate and is dropped, so no text is on two sides.
    Raises DataError for a source of fewer than two documents.
    """
    seen: set[bytes] = set()
    return {name: _split_one(name, documents, valid_fraction, seed, seen) for name, documents in sources.items()}


def _split_one(name: str, documents: Iterable[Document], valid_fraction: float, seed: int, seen: set[bytes]) -> Split:
    kept: list[tuple[float, Document]] = []
    rows_in = duplicates = empty = 0
    digest = hashlib.sha256()
    for document in documents:
        rows_in += 1
        if not document.text.strip():
            empty += 1
            continue
        key = hashlib.sha256(document.key.encode("utf-8", "surrogatepass")).digest()
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        for part in (document.id, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        kept.append((_share(seed, key), document))
    if len(kept) < 2:
        raise DataError(
            f"source {name!r}: {len(kept)} documents can't be split into training and validation "
            f"({rows_in} read, {duplicates} duplicates, {empty} empty); add documents"
        )
    # Where chance leaves a side of a small source empty, the document nearest to it goes there.
    shares = sorted(share for share, _ in kept)
    border = min(max(valid_fraction, math.nextafter(shares[0], 1)), shares[-1])
    train = tuple(document for share, document in kept if share >= border)
    valid = tuple(document for share, document in kept if share < border)
    return Split(train, valid, rows_in, duplicates, empty, digest.hexdigest())


def _share(seed: int, key: bytes) -> float:
    """A number in [0, 1) from (seed, key)."""
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big") + key).digest()[:8], "big") / 2**64

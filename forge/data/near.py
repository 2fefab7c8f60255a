"""Near duplicates by MinHash (Broder 1997): texts become sets of shingles, sets become signatures, signatures that agree are duplicates.

Signatures come from rensa (fast similarity sketching, Dahlgaard et al. 2017): measured unbiased, its error at or below MinHash's, and many
times faster than datasketch 2.0. Its index takes no stored signatures, and datasketch's needs 4 GB for 500,000 rows, so the banding
(locality-sensitive hashing) is done here, over the stored arrays.

Cost on one core: signatures of 18 MB of text a second and, with 128 permutations, 512 bytes a row; 500,000 rows compared in 1 to 9 s.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from forge.data.filters import UNSPACED

_SEED = 1
_BLOCK = 128  # texts at a time: rensa starts threads at 256, and a process that forks after that hangs in its child
_WINDOW = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing
_MISSED = 0.005
_MARKS = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u3004\u3008-\u3040"
_UNITS = re.compile(rf"[{UNSPACED}]|[^\s{_MARKS}{UNSPACED}]+")


class _Hashes(dict[str, int]):
    """Each unit's 64-bit hash, worked out once. Python's own hash() differs from process to process."""

    def __missing__(self, unit: str) -> int:
        digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return self.setdefault(unit, int.from_bytes(digest, "little"))


def scheme() -> str:
    """What decides a signature besides its knobs, for the key under which signatures are stored."""
    from rensa import RMinHash

    return f"rensa {RMinHash.ALGORITHM_VERSION}, shingles 1, seed {_SEED}, Unicode {unicodedata.unidata_version}"


def signatures(texts: Sequence[str], *, permutations: int, shingle: int) -> np.ndarray:
    """One row a text: (len(texts), permutations) uint32. The share of columns in which two rows agree estimates a Jaccard similarity.

    J = |A and B| / |A or B|, of the two texts' sets of shingles; the standard error is at most sqrt(J (1 - J) / permutations).
    A shingle is a run of `shingle` words, in lower case and without punctuation; each letter of a script without spaces is a word.
    Texts with fewer words have runs of as many characters, punctuation included, and still shorter ones are one shingle, near to
    their equals only. The same wherever `scheme` is, and whatever else is in `texts`.
    """
    from rensa import RMinHash

    hashes = _Hashes()
    found = np.empty((len(texts), permutations), dtype=np.uint32)
    for start in range(0, len(texts), _BLOCK):
        shingles, offsets = _shingles(texts[start : start + _BLOCK], shingle, hashes)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, permutations, _SEED)
        found[start : start + _BLOCK] = matrix.to_rows()
    return found


def duplicates(signatures: Sequence[np.ndarray], threshold: float) -> list[np.ndarray]:
    """For each source a boolean array: True where a row is a near duplicate of an earlier row that stays, of any source.

    `signatures` are the sources' arrays in order; they may be memory-mapped. Near: at least the share `threshold` of the columns agrees.
    The first of a group stays. Of a chain A~B~C where A and C are not near, B goes and C stays: what it is near to is gone.
    Only rows that agree in a whole band (see `banding`) are compared: a pair just at the threshold is missed with the probability
    that `missed` gives, at most 0.5 % (but for thresholds below 0.04, at 128 permutations), and nearer pairs more rarely.
    Memory: of the rows that share a band, a copy, and 12 bytes a row and a band. Texts that share much, but less than the threshold
    (a template, say), are compared pairwise: time grows with the square of their number.
    """
    if not signatures:
        return []
    permutations = signatures[0].shape[1]
    bands, rows = banding(threshold, permutations)
    dropped = np.zeros(sum(map(len, signatures)), dtype=bool)
    ends = np.cumsum([len(source) for source in signatures])
    shared = np.split(_shared(signatures, bands, rows), ends[:-1])
    suspects = np.concatenate([source[rows_] for source, rows_ in zip(signatures, shared, strict=True)])
    needed = int(np.ceil(threshold * permutations - 1e-9))
    dropped[np.flatnonzero(np.concatenate(shared))] = _repeats(suspects, bands, rows, needed)
    return np.split(dropped, ends[:-1])


def banding(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows): as many rows a band as leave at most 0.5 % of the pairs at the threshold missed; fewer candidates, less time."""
    fitting = [rows for rows in range(1, permutations + 1) if missed(threshold, permutations // rows, rows) <= _MISSED]
    rows = max(fitting, default=1)
    return permutations // rows, rows


def missed(similarity: float, bands: int, rows: int) -> float:
    """The probability that two texts of this Jaccard similarity agree in no whole band: (1 - similarity^rows)^bands."""
    return (1 - similarity**rows) ** bands


def _shingles(texts: Sequence[str], width: int, hashes: _Hashes) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all shingles, one text after the other (uint64), and where each text's begin, with the end (uint64)."""
    units = [_units(text, width) for text in texts]
    sizes = np.array([len(each) for each in units])
    flat = np.fromiter((hashes[unit] for each in units for unit in each), dtype=np.uint64, count=int(sizes.sum()))
    windows = np.zeros(len(flat) - width + 1, dtype=np.uint64)
    for place in range(width):
        windows = windows * _WINDOW + flat[place : place + len(windows)]
    text_of = np.repeat(np.arange(len(texts)), sizes)
    inside = text_of[: len(windows)] == text_of[width - 1 :]
    offsets = np.concatenate([[0], np.cumsum(sizes - width + 1)])
    return windows[inside], offsets.astype(np.uint64)


def _units(text: str, width: int) -> list[str]:
    """At least `width` of them."""
    text = unicodedata.normalize("NFKC", text.lower())
    words = _UNITS.findall(text)
    if len(words) >= width:
        return words
    characters = " ".join(text.split())
    return list(characters) if len(characters) >= width else [characters, *[""] * (width - 1)]


def _keys(source: np.ndarray, band: int, rows: int) -> np.ndarray:
    """One number a row for its part of the signature that the band holds. Rows that collide are compared, and told apart, later."""
    keys = np.zeros(len(source), dtype=np.uint64)
    for column in range(band * rows, (band + 1) * rows):
        keys = keys * _WINDOW + source[:, column]
    return keys


def _shared(signatures: Sequence[np.ndarray], bands: int, rows: int) -> np.ndarray:
    """Which rows share a band with any other."""
    shared = np.zeros(sum(map(len, signatures)), dtype=bool)
    for band in range(bands):
        keys = np.concatenate([_keys(source, band, rows) for source in signatures])
        order = np.argsort(keys)
        same = keys[order[1:]] == keys[order[:-1]]
        shared[order[1:][same]] = True
        shared[order[:-1][same]] = True
    return shared


def _repeats(signatures: np.ndarray, bands: int, rows: int, needed: int) -> np.ndarray:
    """Which rows agree in at least `needed` columns with an earlier one that stays and shares a band with it."""
    buckets = np.empty((len(signatures), bands), dtype=np.int32)
    for band in range(bands):
        buckets[:, band] = _buckets(_keys(signatures, band, rows))
    members = np.empty((bands, len(signatures)), dtype=np.int32)  # of each bucket, from its place on: the rows that stay
    sizes = np.zeros((bands, len(signatures)), dtype=np.int32)
    every = np.arange(bands)
    repeats = np.zeros(len(signatures), dtype=bool)
    for row, places in enumerate(buckets):
        held = sizes[every, places]
        if held.any():
            near = [members[band, places[band] : places[band] + held[band]] for band in np.flatnonzero(held)]
            agree = signatures[np.unique(np.concatenate(near))] == signatures[row]
            if agree.sum(axis=1).max() >= needed:
                repeats[row] = True
                continue
        members[every, places + held] = row
        sizes[every, places] += 1
    return repeats


def _buckets(keys: np.ndarray) -> np.ndarray:
    """For each row a place in [0, n): one for all rows of a key, with room behind it for as many as they are."""
    order = np.argsort(keys)
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[order[1:]] != keys[order[:-1]]
    places = np.empty(len(keys), dtype=np.int32)
    places[order] = np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
    return places

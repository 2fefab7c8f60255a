"""Decides which rows are trained on, validated on, kept for a test, or left out as duplicates. Nothing else in forge does.

Rows are known by their keys, so nothing is read: some 10 million rows a second, but for near duplicates.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forge.data import near
from forge.data.cache import Cache
from forge.data.keys import digest_of
from forge.data.survey import Survey
from forge.errors import DataError
from forge.settings import DataSpec


@dataclass(frozen=True)
class Sides:
    """Row numbers (into the survey) of each side, ascending; `dropped` counts the rows on none, by reason."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    dropped: Mapping[str, int]


def split(surveys: Mapping[str, Survey], spec: DataSpec, cache: Cache) -> dict[str, Sides]:
    """A row's side is decided by the hash of (seed, its key), whatever else there is.

    A key that an earlier row of any source had is a duplicate and is dropped, so no text is on two sides; sources of weight 0 come last,
    so that they take nothing from what is trained on. Near duplicates likewise,
    where data.near_duplicates asks for it. Raises DataError for a source with fewer rows than sides.
    """
    ranked = sorted(surveys, key=lambda name: spec.sources[name].weight == 0)
    twins = _duplicates([surveys[name].keys for name in ranked])
    near_twins = _near_duplicates([surveys[name] for name in ranked], twins, spec, cache)
    sides = {}
    for name, twin, near_twin in zip(ranked, twins, near_twins, strict=True):
        found = surveys[name]
        rows = np.flatnonzero(~(twin | near_twin))
        dropped = {"duplicate": int(twin.sum()), "near_duplicate": int(near_twin.sum())}
        dropped = {reason: count for reason, count in dropped.items() if count}
        train, valid, test = (rows[side] for side in _assign(found, rows, dropped, spec))
        sides[name] = Sides(train, valid, test, dropped)
    return {name: sides[name] for name in surveys}


def overlap(surveys: Mapping[str, Survey], sides: Mapping[str, Sides]) -> int:
    """Keys that stand on more than one side, counted anew from the sides: has to be 0."""
    keys = [
        np.unique(np.concatenate([surveys[name].keys[getattr(side, which)] for name, side in sides.items()]))
        for which in ("train", "valid", "test")
    ]
    return len(np.concatenate(keys)) - len(np.unique(np.concatenate(keys)))


def _duplicates(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each source: True where an earlier source, or an earlier row of this one, has the same key."""
    joined = np.concatenate(keys)
    twin = np.ones(len(joined), dtype=bool)
    twin[np.unique(joined, return_index=True)[1]] = False
    return np.split(twin, np.cumsum([len(k) for k in keys])[:-1])


def _near_duplicates(surveys: Sequence[Survey], twins: Sequence[np.ndarray], spec: DataSpec, cache: Cache) -> list[np.ndarray]:
    wanted = spec.near_duplicates
    if wanted is None:
        return [np.zeros(len(s.keys), dtype=bool) for s in surveys]
    rows = [np.flatnonzero(~twin) for twin in twins]

    def build(folder: Path) -> None:
        signatures = [s.signatures[kept] for s, kept in zip(surveys, rows, strict=True) if s.signatures is not None]
        np.save(folder / "near.npy", np.concatenate(near.duplicates(signatures, wanted.threshold)))

    compared = hashlib.sha256(np.concatenate(twins).tobytes()).hexdigest()
    key = digest_of(wanted, near.scheme(), compared, *(s.digest for s in surveys))
    found = cache.get(f"near-{key}", build, lambda folder: np.load(folder / "near.npy"))
    result = []
    for s, kept, part in zip(surveys, rows, np.split(found, np.cumsum([len(r) for r in rows])[:-1]), strict=True):
        flags = np.zeros(len(s.keys), dtype=bool)
        flags[kept] = part
        result.append(flags)
    return result


def _assign(found: Survey, rows: np.ndarray, dropped: Mapping[str, int], spec: DataSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boolean arrays over `rows`: train, valid, test. Where chance leaves a side of a small source empty, the nearest row goes there."""
    needed = 3 if spec.test_fraction else 2
    if len(rows) < needed:
        left = [f"{count} {reason}" for reason, count in sum(map(Counter, (found.bad, found.dropped, dropped)), Counter()).items()]
        raise DataError(
            f"source {found.name!r}: {len(rows)} rows can't be split into {needed} sides "
            f"({found.rows_in} read; left out: {', '.join(left) or 'none'}); add rows"
        )
    shares = _uniform(found.keys[rows], spec.split_seed)
    order = np.argsort(shares, kind="stable")
    valid = int(np.searchsorted(shares[order], spec.valid_fraction))
    test = int(np.searchsorted(shares[order], spec.valid_fraction + spec.test_fraction)) - valid
    valid = min(max(valid, 1), len(rows) - needed + 1)
    test = min(max(test, needed - 2), len(rows) - valid - 1)
    side = np.empty(len(rows), dtype=np.int8)
    side[order] = np.repeat([1, 2, 0], [valid, test, len(rows) - test - valid])  # a test side leaves the validation side as it is
    return side == 0, side == 1, side == 2


def _uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) from (seed, key), by the finaliser of splitmix64 (Steele et al. 2014)."""
    mixed = keys.astype(np.uint64) ^ _mix(np.array([seed + 1], dtype=np.uint64))
    return _mix(mixed).astype(np.float64) / 2.0**64


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

"""Splits a batch's rows into parts that the CPU computes side by side, each on a stream of its own.

Much of what a model does between its matrix products runs on one core. Two streams with one BLAS thread each make a third more
tokens a second on two cores than one stream with two. Metal and CUDA fill themselves: one part, the batch.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from forge import blas
from forge.arrays import flat
from forge.spec import Batch
from forge.training.formulation import on_cpu

_MOST = 8  # each part has gradients of its own

_LONG = 1024  # tokens of the longest row; below, BLAS threads do as well

_OF_THREAD = threading.local()  # MLX's streams belong to the thread that made them


def parts(batch: Batch, together: int = 1, spread: bool = False) -> list[tuple[Batch, np.ndarray, mx.Stream]]:
    """Each part, its rows in the batch, and the stream to compute it on. Sets the BLAS threads for what is then evaluated.

    Rows of like length come together, and what is padding in all rows of a part is cut off. `together`: so many rows, one after
    another, stay in one part and in their order. `spread`: where there are fewer parts of long rows than cores, each gets a crew() of
    further streams instead of BLAS threads.
    """
    if not on_cpu():
        return [(batch, np.arange(len(batch.tokens_BT)), mx.default_stream(mx.default_device()))]
    lengths_G = _lengths(batch).reshape(-1, together).max(axis=1)
    count = side_by_side(len(lengths_G))
    each = side_by_side(_MOST) // count if spread and lengths_G.max() >= _LONG else 1
    blas.use_threads(max(1, blas.cores() // (count * each)))
    groups = _alike(lengths_G, count)
    rows = [(group[:, None] * together + np.arange(together)).reshape(-1) for group in groups]
    streams = _streams(len(rows) * each)
    _OF_THREAD.crews = [streams[first : first + each] for first in range(0, len(streams), each)]
    return [(_only(batch, own), own, stream) for own, stream in zip(rows, streams[::each], strict=True)]


def crew() -> list[mx.Stream]:
    """The streams that share the work of the part that is computed on the present one: that one first, or that one alone."""
    own = mx.default_stream(mx.default_device())
    return next((streams for streams in getattr(_OF_THREAD, "crews", ()) if streams[0] == own), [own])


def side_by_side(rows: int) -> int:
    """How many parts at most a batch of so many rows is computed in."""
    return min(blas.cores(), _MOST, rows) if on_cpu() else 1


def over_lanes(function: Callable[..., mx.array], *trees: Any) -> Any:
    """tree_map(function, *trees), with the arrays dealt out to the CPU's streams: for passes over memory, which one core can't fill."""
    lane_of = {name: stream for stream, names in lanes(flat(trees[0])) for name in names}

    def on_lane(name: str, *arrays: mx.array) -> mx.array:
        with on(lane_of[name]):
            return function(*arrays)

    return tree_map_with_path(on_lane, *trees)


def on(stream: mx.Stream | None) -> AbstractContextManager[Any]:
    """Within, arrays are computed on that stream; None: on the one that they would be."""
    return mx.stream(stream) if stream else nullcontext()


def lanes(arrays: Mapping[str, mx.array]) -> list[tuple[mx.Stream | None, list[str]]]:
    """Streams, and for each the names of arrays that come to much the same size. Off the CPU one lane, with no stream of its own."""
    if not on_cpu():
        return [(None, list(arrays))]
    names = sorted(arrays)  # the same on all processes
    lane_of = dealt([arrays[name].size for name in names], min(blas.cores(), _MOST))
    streams = _streams(min(blas.cores(), _MOST))
    return [(stream, [name for name, its in zip(names, lane_of, strict=True) if its == lane]) for lane, stream in enumerate(streams)]


def dealt(sizes: Sequence[int], lanes: int) -> list[int]:
    """For each piece of work its lane, such that all have much the same: the largest first, to the lane that has least."""
    sums, lane_of = [0] * lanes, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        lane_of[number] = sums.index(min(sums))
        sums[lane_of[number]] += sizes[number]
    return lane_of


def _lengths(batch: Batch) -> np.ndarray:
    """By row, the tokens up to the last that is none of the padding; 2 at least, which is what a model's input and target take."""
    real_BT = batch.segments_BT > 0
    lengths_B: np.ndarray = np.where(real_BT.any(axis=1), real_BT.shape[1] - real_BT[:, ::-1].argmax(axis=1), 0)
    return np.maximum(lengths_B, 2)


def _only(batch: Batch, rows: np.ndarray) -> Batch:
    width = _lengths(batch)[rows].max()
    arrays = {name: getattr(batch, name)[rows, :width] for name in ("tokens_BT", "mask_BT", "segments_BT")}
    row_ids, sources = (tuple(of[row] for row in rows) if of else () for of in (batch.row_ids, batch.sources))
    return replace(batch, **arrays, row_ids=row_ids, sources=sources)


def _alike(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """At most `count` lots of like length, such that the largest area (members x the longest) is as small as can be: found by bisection.

    Lengths 9, 9, 3, 3, 3 in two lots: the nines, the threes; areas 18 and 9.
    """
    order = np.argsort(-lengths, kind="stable")

    def within(area: int) -> list[np.ndarray]:
        lots, start = [], 0
        while start < len(order):
            size = max(1, area // int(lengths[order[start]]))
            lots.append(order[start : start + size])
            start += size
        return lots

    low, high = int(lengths.max()), int(lengths.max()) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(within(middle)) <= count else (middle + 1, high)
    return [np.sort(lot) for lot in within(low)]


def _streams(count: int) -> list[mx.Stream]:
    made = _OF_THREAD.__dict__.setdefault("streams", [mx.default_stream(mx.cpu)])
    while len(made) < count:
        made.append(mx.new_stream(mx.cpu))
    return list(made[:count])

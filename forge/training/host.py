"""NumPy inside MLX's graphs, for what NumPy computes faster on a CPU.

NumPy needs numbers, and a graph has none while it is built. So within noted() a call leaves arrays yet to be filled in the graph, and a
note of how; settle() goes through the notes, has MLX compute what each needs, and fills its arrays in place: an array's NumPy view shares
its memory. Until then they hold NaN, so that a model or an objective that looks at numbers while its graph is built spoils the loss, where
all can see it. Without noted() a call is settled at once, which inside a gradient would keep all that was ever computed for it.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from threadpoolctl import ThreadpoolController

from forge import blas

_OF_THREAD = threading.local()
_SILENT: dict[str, Any] = {"all": "ignore"}  # about what is not finite: forge.training.guards names it. Each thread has its own setting
_Piece = TypeVar("_Piece")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Note:
    """`function(given, empty)` fills the arrays `empty`, in memory of `holes`, from those `given`, which are `needs`."""

    function: Callable[[list[np.ndarray], list[np.ndarray]], None]
    needs: Sequence[mx.array]
    holes: Sequence[mx.array]


def call(
    function: Callable[[list[np.ndarray], list[np.ndarray]], None], needs: Sequence[mx.array], shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """Arrays of these shapes, fp32, that `function` fills (see Note)."""
    note = Note(function, needs, [mx.full(shape, math.nan) for shape in shapes])
    notes: list[Note] | None = getattr(_OF_THREAD, "notes", None)
    if notes is None:
        settle([[note]])
    else:
        notes.append(note)
    return list(note.holes)


@contextmanager
def noted() -> Iterator[list[Note]]:
    """Within, calls of this thread are noted, in an order in which each needs only what those before it fill."""
    before = getattr(_OF_THREAD, "notes", None)
    notes: list[Note] = []
    _OF_THREAD.notes = notes
    try:
        yield notes
    finally:
        _OF_THREAD.notes = before


def settle(lists: Sequence[list[Note]]) -> None:
    """Go through the notes of graphs that do not need each other. MLX computes side by side what is next for each. Empties the lists."""
    for notes in lists:
        notes.reverse()
    for _ in range(max(map(len, lists), default=0)):
        present = [notes.pop() for notes in lists if notes]
        mx.eval([note.needs for note in present], [note.holes for note in present])
        with _one_thread_a_product(), np.errstate(**_SILENT):
            for note in present:
                note.function(_views(note.needs), _views(note.holes))


def side_by_side(function: Callable[[list[_Piece]], _Made], lanes: Sequence[list[_Piece]]) -> list[_Made]:
    """function(lane) of each lane's pieces of work, each in a thread. NumPy lets threads run while it computes."""
    return list(_threads().map(function, lanes)) if len(lanes) > 1 else [function(lane) for lane in lanes]


def _views(arrays: Sequence[mx.array]) -> list[np.ndarray]:
    return [np.array(array, copy=False) for array in arrays]


def _one_thread_a_product() -> AbstractContextManager[object]:
    limited: AbstractContextManager[object] = _products().limit(limits=1, user_api="blas")
    return limited


@cache
def _products() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(blas.cores(), thread_name_prefix="attention", initializer=lambda: np.seterr(**_SILENT))

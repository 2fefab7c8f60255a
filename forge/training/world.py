"""Data parallel training: the processes that `mlx.launch -n N -- python -m forge.train …` starts, each with its rows of every batch.

Sums over all rows make the same step on each process, so weights stay equal to the bit without being sent, and one process alone (rank
0) logs, saves and prints. Every collective has to be met by every process, in one order; all of them draw the same batches and differ
only in the rows that they compute.

Cost: the gradients in fp32 once round the ring each step, and once more in memory; between two processes of one machine 50 MB take some
0.06 s, 16-bit ones five times that on a CPU, and a few numbers 0.2 ms, or up to 10 where all cores are busy. ALONE costs nothing.
"""

import json
import os
import platform
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from forge.arrays import flat
from forge.errors import TrainingError
from forge.spec import Batch
from forge.training.watch import Watch

T = TypeVar("T")
_MESSAGE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class World:
    """The processes of a run: this is number `rank` of `size`, one of `on_machine` that share a machine's cores."""

    rank: int = 0
    size: int = 1
    on_machine: int = 1
    _watch: Watch | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, tree: Any) -> Any:
        """A tree of arrays, summed over the processes, each array in its own type; 16-bit floats are added in fp32 and rounded once.

        Lazy: wait() for the result before another collective is called. Everyone gets the same bits; from three processes on they
        depend on how many there are, as the order of a sum does.
        """
        if self.size == 1:
            return tree
        sums = dict(_summed(sorted(flat(tree).items())))
        return tree_map_with_path(lambda name, array: sums[name or ""] if array.size else array, tree)

    def wait(self, *trees: Any) -> None:
        """mx.eval for what total() gave and what was made of it. Raises TrainingError when another process has ended."""
        with self._watch.waiting() if self._watch else nullcontext():
            try:
                mx.eval(*trees)
            except RuntimeError as error:
                if self.size == 1 or not str(error).startswith("[ring]"):
                    raise
                raise TrainingError(_lost(self.rank, self.size)) from error

    def give(self, tree: Any) -> Any:
        """The first process's arrays for everyone; the others' have the same names, shapes and types."""
        return self.total(tree if self.first else tree_map_with_path(lambda _, array: mx.zeros_like(array), tree))

    def agree(self, text: str | None, rank: int = 0) -> str | None:
        """The text of the process `rank` for everyone."""
        if self.size == 1:
            return text
        own = np.frombuffer(text.encode(), np.uint8) if text is not None and self.rank == rank else None
        length = self.total(mx.array(0 if own is None else len(own) + 1))
        self.wait(length)
        if length.item() == 0:
            return None
        letters = np.zeros(int(length.item()) - 1, np.uint8) if own is None else own
        written = self.total(mx.array(letters))
        self.wait(written)
        return np.array(written).tobytes().decode()

    def any(self, reason: str | None) -> str | None:
        """The reason of the lowest process that has one."""
        if self.size == 1:
            return reason
        own = np.zeros(self.size, np.int32)
        own[self.rank] = reason is not None
        votes = self.total(mx.array(own))
        self.wait(votes)
        raised = np.flatnonzero(np.array(votes))
        return self.agree(reason, int(raised[0])) if len(raised) else None

    def require_same(self, what: str, mark: str) -> None:
        """Raises TrainingError on every process where one has another `mark`, such as a digest of the data."""
        differs = self.agree(mark) != mark
        if self.any("differs" if differs else None):
            raise TrainingError(f"the processes of this run don't have the same {what}: give all of them the same files and command line")

    def barrier(self) -> None:
        """Returns when every process has come here."""
        self.wait(self.total(mx.zeros(1)))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes through the block, then the others: what it downloads and prepares, they find."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """This process's part of the items, each asked for as it is needed."""
        return (items[number] for number in range(self.rank, len(items), self.size))

    def join(self, own: Sequence[Any]) -> list[Any]:
        """What came of share(), one for each item, in the items' order for everyone. Anything that JSON holds; floats stay exact."""
        if self.size == 1:
            return list(own)
        parts = [json.loads(self.agree(json.dumps(own), rank) or "") for rank in range(self.size)]
        joined = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            joined[rank :: self.size] = part
        return joined

    def share_step(self, batches: Sequence[Batch], together: int = 1) -> list[Batch]:
        """This process's part of a step's micro-batches: whole ones where they go round evenly, else its rows of each."""
        if len(batches) % self.size == 0:
            return list(self.share(batches))
        return [self.share_batch(batch, together) for batch in batches]

    def share_batch(self, batch: Batch, together: int = 1) -> Batch:
        """This process's rows, dealt out by length so that each computes much the same. At full width, in their order.

        `together`: so many rows, one after another, go to one process. With fewer of them than processes some get the first ones without
        a target: a loss and gradients of 0, for the sums that all take part in.
        """
        if self.size == 1:
            return batch
        lengths_G = (batch.segments_BT > 0).sum(axis=1).reshape(-1, together).max(axis=1)
        rounds, places = np.divmod(np.arange(len(lengths_G)), self.size)
        owners = np.where(rounds % 2, self.size - 1 - places, places)  # back and forth, so that none gets the longest of each round
        own = np.sort(np.argsort(-lengths_G, kind="stable")[owners == self.rank])
        if len(own):
            return batch.take((own[:, None] * together + np.arange(together)).reshape(-1))
        stand_in = batch.take(range(together))
        return replace(stand_in, mask_BT=np.zeros_like(stand_in.mask_BT))

    def quiet(self) -> AbstractContextManager[Any]:
        """In the block the first process alone prints; what goes to stderr is everyone's."""
        return nullcontext() if self.first else _without_stdout()

    @contextmanager
    def telling(self, farewell: Callable[[str], object]) -> Iterator[None]:
        """In the block `farewell` is called with the cause where this process has to be cut off, since its wait() would never end.

        An error that leaves the block makes the process deaf to SIGTERM, with which mlx.launch answers the first failure of any: what is
        left is to tell the tracker.
        """
        if self._watch is None:
            yield
            return
        self._watch.farewell = farewell
        try:
            yield
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
        finally:
            self._watch.farewell = None


ALONE = World()


def world() -> World:
    """The processes that mlx.launch started this one with; ALONE where it did not. Raises TrainingError where they don't meet.

    Call it before anything that may fail and before signal handlers are set: the others wait for this process, up to 31 s, and can't be
    interrupted. From then on a SIGTERM comes when mlx.launch is killed, and wait() is cut off when a process of this machine has ended.
    """
    rank, hosts = os.environ.get("MLX_RANK"), os.environ.get("MLX_HOSTFILE")
    if rank is None or (hosts and not Path(hosts).read_text().strip()):  # `mlx.launch -n 1` gives an empty file
        return ALONE
    machine, launcher = zlib.crc32(platform.node().encode()), os.getppid()
    try:
        group = mx.distributed.init(strict=True)
        found = np.array(mx.distributed.all_gather(mx.array([[machine, launcher, os.getpid()]], dtype=mx.int64)))
    except RuntimeError as error:
        raise TrainingError(
            f"process {int(rank) + 1} of mlx.launch could not meet the others ({error}): see what they said; where another run has their "
            "ports, give mlx.launch another --starting-port"
        ) from error
    _, launchers, processes = found[found[:, 0] == machine].T.tolist()
    if launchers.count(launcher) < len(launchers):
        raise TrainingError("processes of two mlx.launch met on the same ports: give one of them another --starting-port")
    watch = Watch(_lost(group.rank(), group.size()), launcher, processes)
    watch.start()
    return World(group.rank(), group.size(), len(processes), watch)


def _lost(rank: int, size: int) -> str:
    return f"process {rank + 1} of {size} lost the others: one has ended, see what it said; resume=auto goes on from the last checkpoint"


@contextmanager
def _without_stdout() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _summed(arrays: Sequence[tuple[str, mx.array]]) -> Iterator[tuple[str, mx.array]]:
    """The named arrays, summed. A message waits for the one before it, so that all processes send in one order and hold one at a time."""
    sent: mx.array | None = None
    for members, wide in _messages(arrays):
        pieces = [array.astype(wide).reshape(-1) for _, array in members]
        if sent is not None:
            pieces = mx.depends(pieces, [sent])
        sent = mx.distributed.all_sum(mx.concatenate(pieces) if len(pieces) > 1 else pieces[0])
        ends = np.cumsum([array.size for _, array in members]).tolist()
        for (name, array), part in zip(members, mx.split(sent, ends[:-1]), strict=True):
            yield name, part.reshape(array.shape).astype(array.dtype)


def _messages(arrays: Sequence[tuple[str, mx.array]]) -> Iterator[tuple[list[tuple[str, mx.array]], mx.Dtype]]:
    """The arrays in lots of about _MESSAGE_BYTES, and the type that each lot is summed in."""
    for kind, wide in ((mx.floating, mx.float32), (mx.integer, mx.int64)):
        lot: list[tuple[str, mx.array]] = []
        size = 0
        for name, array in arrays:
            if mx.issubdtype(array.dtype, kind) and array.size:
                lot.append((name, array))
                size += array.size * wide.size
                if size >= _MESSAGE_BYTES:
                    yield lot, wide
                    lot, size = [], 0
        if lot:
            yield lot, wide

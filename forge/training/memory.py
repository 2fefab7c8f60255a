"""Memory that is bounded and told: the limit, what takes too much of it, and the settings with which the same step fits.

A limit is a guideline to MLX: above it, work waits until some memory is free, and then goes on. On a CPU nothing else happens
(the peak of a toy step fell by 18 %, its time rose by a third), and where the system has none left, MLX dies of a null pointer or is
killed, which no handler sees. So a limit is checked after each step; that costs microseconds.

MLX keeps freed buffers for arrays of nearly the same size. Under changing lengths few ever are: 40 steps that peaked at 138 MiB left
2.1 GiB behind. After each step what is kept is therefore bounded by the peak less what was in use before, all that a step can need:
0.14 GiB there, at the same speed, with no clear_cache(). The CPU's own bound of 32 MiB is left alone.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import psutil

from forge.errors import ConfigError, TrainingError
from forge.training.formulation import on_cpu
from forge.training.streams import side_by_side

_GB, _GIB = 10**9, 2**30
ROOM = 0.95  # of a limit, for what is computed ahead and not measured
_ALLOCATION = re.compile(
    r"\[malloc\] Unable to allocate|\[metal::malloc\]|Insufficient Memory|ErrorOutOfMemory|out of memory|STATUS_ALLOC_FAILED", re.IGNORECASE
)

WayOut = Callable[[int, int, int], str]  # bytes: used at most, allowed, in use in any case -> what to do


@dataclass(frozen=True)
class Setup:
    """What a step's memory depends on. `whole`: every weight is trained, not an adapter; `quantised`: the base is; `gradients`: bytes of
    one set of them.
    """

    micro_batch: int
    accumulate: int
    sequence_length: int
    gradient_checkpointing: bool = False
    whole: bool = True
    quantised: bool = False
    gradients: int = 0


@dataclass(frozen=True)
class Bound:
    """What limited() gives. `limit` in bytes; None: none was set. `words`: the setting, as the user wrote it."""

    limit: int | None
    words: str
    setup: Setup

    def check(self, step: int) -> None:
        """After each step. Raises TrainingError when the peak passed the limit."""
        self._require(f"step {step}", self._smaller, mx.get_active_memory() - self.setup.gradients)  # the step still holds its own

    @contextmanager
    def told(self, step: int) -> Iterator[None]:
        """Around each step: a failed allocation becomes a TrainingError that says what to do. Bounds what MLX keeps afterwards."""
        with self._told(f"step {step}", self._smaller):
            yield

    @contextmanager
    def told_beside(self, step: int, doing: str, way_out: WayOut) -> Iterator[None]:
        """Around what is done after a step and is no part of it: as told(), and check() where this is what passed the limit."""
        before, within = mx.get_active_memory(), self.limit is None or mx.get_peak_memory() <= self.limit
        with self._told(f"step {step}, {doing}", way_out):
            yield
        if within:
            self._require(f"step {step}, {doing}", way_out, before)

    @contextmanager
    def _told(self, where: str, way_out: WayOut) -> Iterator[None]:
        before = mx.get_active_memory()  # later, what the step made is still held on to, by its caller or by the error
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            peak, why = mx.get_peak_memory(), str(error).strip() or type(error).__name__
            raise TrainingError(f"{where}: out of memory at {_gb(peak)} ({why}); {way_out(peak, self._most(), before)}") from error
        if not on_cpu():
            mx.set_cache_limit(max(0, mx.get_peak_memory() - before))

    def _require(self, where: str, way_out: WayOut, fixed: int) -> None:
        peak = mx.get_peak_memory()
        if self.limit is not None and peak > self.limit:
            raise TrainingError(f"{where}: memory peaked at {_gb(peak)}, above {self.words}; {way_out(peak, self._most(), fixed)}")

    def _smaller(self, used: int, limit: int, fixed: int) -> str:
        return fits(self.setup, used, limit, fixed)

    def _most(self) -> int:
        return min(self.limit or total(), total())


UNBOUND = Bound(None, "", Setup(micro_batch=1, accumulate=1, sequence_length=8))


@contextmanager
def limited(limit: str | None, setup: Setup) -> Iterator[Bound]:
    """MLX under trainer.memory_limit ("12 GB", "80%" of the machine's; None: as MLX has it), as it was before at the end.

    Where Metal trains, its recommended working set stays resident. Raises ConfigError for a limit that leaves nothing, or is above 100 %.
    """
    allowed = _bytes(limit)
    former: list[tuple[Callable[[int], int], int]] = []
    if allowed is not None:
        former.append((mx.set_memory_limit, mx.set_memory_limit(allowed)))
    if not on_cpu():
        former.append((mx.set_cache_limit, mx.set_cache_limit(allowed or total())))
        if mx.metal.is_available():
            former.append((mx.set_wired_limit, mx.set_wired_limit(min(allowed or total(), total()))))
    words = f"trainer.memory_limit={limit}" + (f" ({_gb(allowed)})" if allowed is not None and str(limit).endswith("%") else "")
    try:
        yield Bound(allowed, words, setup)
    finally:
        for put, before in former:
            put(before)


def metrics() -> dict[str, float]:
    """What MLX uses, keeps and used at most, and what the process holds in memory (on a GPU: the host's), in GiB."""
    return {
        "memory/active_gib": mx.get_active_memory() / _GIB,
        "memory/cache_gib": mx.get_cache_memory() / _GIB,
        "memory/peak_gib": mx.get_peak_memory() / _GIB,
        "memory/process_gib": psutil.Process().memory_info().rss / _GIB,
    }


def total() -> int:
    """Bytes that MLX can use: Metal's recommended working set, a CUDA device's memory, else the machine's or its control group's."""
    if not on_cpu():
        about = mx.device_info()
        return int(about.get("max_recommended_working_set_size") or about["total_memory"])
    return min([psutil.virtual_memory().total, *_allowed()])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of MLX, numpy or Python is a failed allocation. A CPU's MLX raises none: the process dies by SIGSEGV."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_ALLOCATION.search(str(error))))


def fits(setup: Setup, used_bytes: int, limit_bytes: int, fixed_bytes: int = 0) -> str:
    """What to change so that a step which peaked at `used_bytes` stays below the limit: in words, with overrides to type.

    `fixed_bytes`: what no row adds to (weights, the optimizer's state), besides gradients: a set for each part that the CPU computes on its
    own, one for the sum of several micro-batches, one while the update is made. The rest is taken to grow with the rows. 8 rows that peak
    at 10 GB, 2 of them fixed, need 6 GB as 4 rows: "trainer.micro_batch=4 trainer.accumulate=2" is the same step below 8 GB. With 1 GB of
    gradients (one part) a row takes 6/8 GB, and 4 rows 2 + 3 · 1 + 3 = 8 GB.
    """
    rows_a_step = setup.micro_batch * setup.accumulate

    def fixed(rows: int) -> int:
        return fixed_bytes + setup.gradients * (side_by_side(rows) + 1 + (rows < rows_a_step))

    a_row = max(0, max(used_bytes, limit_bytes) - fixed(setup.micro_batch)) / setup.micro_batch
    fewer = [rows for rows in range(setup.micro_batch - 1, 0, -1) if rows_a_step % rows == 0]
    fitting = [rows for rows in fewer if fixed(rows) + rows * a_row <= ROOM * limit_bytes]
    if fitting:
        return f"the same step in smaller parts fits: trainer.micro_batch={fitting[0]} trainer.accumulate={rows_a_step // fitting[0]}"
    ways = [] if setup.gradient_checkpointing else ["trainer.gradient_checkpointing=true"]
    ways += [f"data.sequence_length={setup.sequence_length // 2}"] if setup.sequence_length >= 16 else []
    ways += ["adapter=lora"] if setup.whole else []
    ways += [] if setup.quantised else ["a quantised base"]
    return f"one row at a time is too much as well: try {', '.join(ways) or 'a smaller model'}"


def largest_micro_batch(step: Callable[[int], int], limit_bytes: int, fixed_bytes: int, start: int = 1, most: int = 512) -> int:
    """The most rows, up to `most`, whose step stays within the limit. `step(rows)` takes a real one and returns its peak in bytes.

    `fixed_bytes`: what a step of no rows would take (weights, their gradients, the optimizer's state); too low a value finds too few rows.
    The peak is taken to grow with the rows. No number is tried that the straight line through the last two measured, at first through
    `fixed_bytes`, puts above the limit, since on a CPU a step too large ends the process. A try at most doubles the rows, and halves what
    is left once one was refused, so there are at most some 2 log2(most). Raises TrainingError where no row fits.
    """
    peaks: dict[int, int] = {}
    refused, rows = most + 1, min(start, most)
    while rows > max(peaks, default=0):
        peak = _peak(step, rows)
        if peak is not None and peak <= limit_bytes:
            peaks[rows] = peak
        else:
            refused = rows
        rows = _next(peaks, refused, limit_bytes, fixed_bytes, bisect=refused <= most)
    if not peaks:
        raise TrainingError(f"not one row fits into {_gb(limit_bytes)}: try trainer.gradient_checkpointing=true, or shorter rows")
    return max(peaks)


def _next(peaks: dict[int, int], refused: int, limit: int, fixed: int, bisect: bool) -> int:
    """The rows to try after these; no more than fitted before when the search is over."""
    if not peaks:
        return refused // 2
    (below, at_below), (rows, at_rows) = [(0, fixed), *sorted(peaks.items())][-2:]
    a_row = (at_rows - at_below) / (rows - below)
    expected = rows + int((limit - at_rows) / a_row) if a_row > 0 else 2 * rows
    return min(expected, (rows + refused) // 2 if bisect else 2 * rows, refused - 1)


def _peak(step: Callable[[int], int], rows: int) -> int | None:
    try:
        return step(rows)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def _bytes(limit: str | None) -> int | None:
    if limit is None:
        return None
    share = limit.endswith("%")
    number = float(limit.removesuffix("%").removesuffix("GB"))
    if number == 0 or (share and number > 100):
        raise ConfigError(f"trainer.memory_limit={limit}: write what MLX may use, such as '12 GB', or a share of up to '100%'")
    return int(total() * number / 100 if share else number * _GB)


def _allowed(listed: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The limits of the Linux control groups that this process is in, of those above them, and of the container's root."""
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        within = mount / group.lstrip("/")
        for folder in (within, *within.parents):
            if folder.is_relative_to(mount) and (folder / name).is_file():
                text = (folder / name).read_text().strip()
                yield from () if text == "max" else (int(text),)


def _gb(size: int) -> str:
    return f"{size / _GB:.2f} GB" if size >= _GB / 10 else f"{size / 10**6:.1f} MB"

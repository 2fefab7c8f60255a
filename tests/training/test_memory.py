"""Memory: limits that hold, failures that are told, and what the machine has. MLX here computes on a CPU."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
import pytest

from forge.errors import ConfigError, TrainingError
from forge.training import memory
from forge.training.memory import Setup, limited, out_of_memory

GB, MIB = 10**9, 2**20
SETUP = Setup(micro_batch=8, accumulate=1, sequence_length=512)


@pytest.fixture(autouse=True)
def limits_as_they_were() -> Iterator[None]:
    before = mx.get_memory_limit()
    mx.clear_cache()
    mx.reset_peak_memory()
    yield
    assert mx.get_memory_limit() == before


def use(mib: int) -> None:
    mx.eval(mx.ones((mib * MIB // 4,)))


# ---- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [("12 GB", 12 * GB), ("0.5GB", GB // 2), ("80%", psutil.virtual_memory().total * 4 // 5), ("100%", psutil.virtual_memory().total)],
)
def test_mlx_is_under_the_limit_inside_and_not_after(monkeypatch: pytest.MonkeyPatch, limit: str, allowed: int) -> None:
    monkeypatch.setattr(memory, "_allowed", lambda: [])
    before = mx.get_memory_limit()
    with pytest.raises(ZeroDivisionError), limited(limit, SETUP) as bound:
        assert mx.get_memory_limit() == bound.limit == allowed
        raise ZeroDivisionError
    assert mx.get_memory_limit() == before


@pytest.mark.parametrize("limit", ["0 GB", "0%", "101%"])
def test_a_limit_that_makes_no_sense_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.memory_limit={limit}"), limited(limit, SETUP):
        pass


def test_a_step_within_the_limit_passes_and_one_above_names_peak_limit_and_way_out() -> None:
    with limited("0.05 GB", SETUP) as bound:
        use(40)  # 0.0419 GB
        bound.check(1)
        use(60)  # 0.0629 GB
        with pytest.raises(TrainingError) as error:
            bound.check(2)
    assert re.fullmatch(  # other tests' arrays may add a little
        r"step 2: memory peaked at 6[2-7]\.\d MB, above trainer\.memory_limit=0\.05 GB; "
        r"the same step in smaller parts fits: trainer\.micro_batch=4 trainer\.accumulate=2",
        str(error.value),
    )


def test_a_share_is_told_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total", lambda: GB // 10)
    with limited("50%", SETUP) as bound:
        use(60)
        with pytest.raises(TrainingError, match=r"above trainer.memory_limit=50% \(50.0 MB\)"):
            bound.check(1)


def test_without_a_limit_nothing_is_changed_or_refused() -> None:
    before = mx.get_memory_limit()
    with limited(None, SETUP) as bound:
        assert mx.get_memory_limit() == before
        use(60)
        bound.check(1)


def test_metrics_tell_what_is_in_use_what_was_at_most_and_what_the_process_holds() -> None:
    before = memory.metrics()
    use(60)
    held = mx.ones((10 * MIB // 4,))
    mx.eval(held)
    after = memory.metrics()
    assert after["memory/active_gib"] - before["memory/active_gib"] == pytest.approx(10 / 1024, abs=1e-4)
    assert after["memory/peak_gib"] - before["memory/active_gib"] == pytest.approx(60 / 1024, abs=1e-4)
    assert after["memory/cache_gib"] == mx.get_cache_memory() / 2**30
    assert after["memory/process_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.05)


def test_what_mlx_keeps_is_bounded_by_what_a_step_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU. Arrays of 20, 24, … 56 MiB one after another, 10 MiB held: the peak is 66, so 56 may be kept; without a bound 380 are."""
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    monkeypatch.setattr(memory, "total", lambda: 10 * GB)
    before = mx.set_cache_limit(0)
    mx.set_cache_limit(before)

    def kept(told: bool) -> float:
        mx.clear_cache()
        with limited(None, SETUP) as bound:
            held = mx.ones((10 * MIB // 4,))
            mx.eval(held)
            mx.reset_peak_memory()
            for step, mib in enumerate(range(56, 16, -4)):
                with bound.told(step) if told else nullcontext():
                    use(mib)
            return mx.get_cache_memory() / MIB

    assert kept(told=False) == pytest.approx(380, abs=2)
    assert kept(told=True) == pytest.approx(56, abs=2)
    assert mx.set_cache_limit(before) == before


def test_where_metal_trains_its_working_set_stays_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never above what Metal recommends, which MLX would refuse."""
    resident = [0]

    def wire(limit: int) -> int:
        resident.append(limit)
        return resident[-2]

    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    monkeypatch.setattr(memory, "total", lambda: 20 * GB)
    monkeypatch.setattr(mx, "set_wired_limit", wire)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    for limit, expected in (("12 GB", 12 * GB), ("30 GB", 20 * GB), (None, 20 * GB)):
        with limited(limit, SETUP):
            assert resident[-1] == expected
        assert resident[-1] == 0


# ---- allocations that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[malloc] Unable to allocate 268435456 bytes.",
        "[metal::malloc] Attempting to allocate 418186140 bytes which is greater than the maximum allowed buffer size of 2261300019 bytes.",
        "[metal::malloc] Resource limit (499000) exceeded.",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "cublasCreate(&handle) failed with code: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_failed_allocations_are_known_by_their_texts(text: str) -> None:
    assert out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match second to last dimension"),
        RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error"),
        RuntimeError("cudaFreeAsync(buf.data, stream) failed: an illegal memory access was encountered"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)
    with pytest.raises(type(error)), limited(None, SETUP) as bound, bound.told(1):
        raise error


def test_a_failed_allocation_is_told_with_a_way_out() -> None:
    """numpy's own, of more than any machine has."""
    told = r"step 7: out of memory at .* \(Unable to allocate .*\); .*trainer.micro_batch=4"
    with pytest.raises(TrainingError, match=told), limited("12 GB", SETUP) as bound, bound.told(7):
        np.ones((2**50,))


def test_what_a_failed_step_leaves_behind_is_not_taken_for_what_every_step_needs() -> None:
    """A step of 8 rows failed with 47 MiB made; 4 rows fit below 50 MB."""
    made = []
    told = r"step 7: out of memory at (49|50|51)\.\d MB .*trainer.micro_batch=4 trainer.accumulate=2$"
    with pytest.raises(TrainingError, match=told), limited("0.05 GB", SETUP) as bound, bound.told(7):
        made.append(mx.ones((47 * MIB // 4,)))
        mx.eval(made)
        raise RuntimeError("[malloc] Unable to allocate 1024 bytes.")


GROWING = """
import sys
import forge
import mlx.core as mx
import psutil
import resource
from forge.entry import entry
from forge.training.memory import Setup, limited

def steps(argv):
    mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
    allowed = psutil.Process().memory_info().vms + 500 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    held = []
    with limited(argv[0] or None, Setup(2, 1, 64)) as bound:
        for step in range(1, 100):
            with bound.told(step):
                held.append(mx.ones((40 * 2**20 // 4,)))
                mx.eval(held)
            bound.check(step)
    return 0

sys.exit(entry(steps, sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space that is kept")
def test_a_limit_ends_a_run_in_order_where_the_system_would_end_it_by_a_signal() -> None:
    """40 MiB more at each step: with 250 MB allowed it is step 6, whose 240 MiB are 252 MB. Without a limit MLX reads a null pointer."""
    command = [sys.executable, "-c", GROWING]
    bounded = subprocess.run([*command, "0.25 GB"], capture_output=True, text=True, timeout=60)
    assert (bounded.returncode, bounded.stderr.splitlines()[-1][:50]) == (5, "error: step 6: memory peaked at 0.25 GB, above tra")
    free = subprocess.run([*command, ""], capture_output=True, text=True, timeout=60)
    assert free.returncode < 0 or "out of memory" in free.stderr


# ---- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "files", "limits"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "3000\n", "memory.max": "9000"}, [3000, 9000]),
        ("0::/\n", {"memory.max": "5000"}, [5000]),  # in a container
        ("12:cpu,cpuacct:/x\n4:memory:/a\n0::/a\n", {"memory/a/memory.limit_in_bytes": "700", "cpu/x/memory.max": "1"}, [700]),
        ("4:memory:/docker/f00\n", {"memory/memory.limit_in_bytes": "800"}, [800]),  # its own group is mounted as the root
        ("1:cpu:/\n", {}, []),
        (None, {}, []),  # no Linux
    ],
)
def test_the_limits_of_control_groups_count(tmp_path: Path, listed: str | None, files: dict[str, str], limits: list[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if listed is not None:
        (tmp_path / "self").write_text(listed)
    assert list(memory._allowed(tmp_path / "self", tmp_path)) == limits


@pytest.mark.parametrize(("groups", "expected"), [([], psutil.virtual_memory().total), ([5 * MIB, 9 * MIB], 5 * MIB)])
def test_a_cpu_s_memory_is_the_machine_s_or_what_a_group_leaves(monkeypatch: pytest.MonkeyPatch, groups: list[int], expected: int) -> None:
    monkeypatch.setattr(memory, "_allowed", lambda: groups)
    assert memory.total() == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [({"memory_size": 32, "max_recommended_working_set_size": 24, "device_name": "Apple"}, 24), ({"total_memory": 80}, 80)],
)
def test_a_gpu_s_memory_is_its_own(monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], expected: int) -> None:
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    monkeypatch.setattr(mx, "device_info", lambda: about)
    assert memory.total() == expected

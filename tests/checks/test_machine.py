"""The device, memory and BLAS, as they are told."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forge import blas
from forge.checks import machine, products
from tests.place import clean

ROOT = Path(__file__).parents[2]
GB = 10**9


def the_only(findings: Any) -> Any:
    (found,) = findings
    return found


def test_the_device_is_told_with_what_mlx_computes_on() -> None:
    found = the_only(machine.device())
    assert found.state in ("ok", "note") and "MLX computes" in found.said and "core" in found.said


def test_an_nvidia_gpu_that_is_not_used_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "version")
    monkeypatch.setattr("forge.models.device.describe", lambda: {"forge.device": "cpu", "forge.device_name": "x"})
    found = the_only(machine.device())
    assert found.state == "note" and "pip install 'forge-mlx[cuda13]'" in found.way_out


@pytest.mark.parametrize(("free", "limit", "state"), [(20, 30, "ok"), (1, 30, "note"), (20, 1, "note")])
def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch, free: int, limit: int, state: str) -> None:
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GB, available=free * GB))
    monkeypatch.setattr("forge.training.memory.total", lambda: limit * GB)
    found = the_only(machine.memory())
    assert (found.state, found.said) == (state, f"32.0 GB, {free:.1f} GB free; MLX may use {limit:.1f} GB")


@pytest.mark.parametrize(
    ("told", "off", "state", "way_out"),
    [
        ("mlx reference (FORGE_BLAS=off)", "off", "note", "unset FORGE_BLAS"),
        ("mlx reference", "", "note", "apt-get install libopenblas0-pthread"),
        ("system", "", "ok", ""),
        ("cuda", "", "ok", ""),
        ("libmkl_rt.so.2", "", "ok", ""),
    ],
)
def test_the_reference_blas_is_noted(monkeypatch: pytest.MonkeyPatch, told: str, off: str, state: str, way_out: str) -> None:
    monkeypatch.setattr(blas, "_state", told)
    monkeypatch.setattr(blas, "_library", None)
    monkeypatch.setenv("FORGE_BLAS", off)
    found = the_only(products.library())
    assert found.state == state and way_out in found.way_out


@pytest.mark.parametrize(
    ("own", "free", "state"), [("Haswell", 100.0, "ok"), ("Zen", 105.0, "ok"), ("Cooperlake", 200.0, "note"), ("Haswell", 200.0, "ok")]
)
def test_forced_kernels_are_noted_where_they_are_slower(monkeypatch: pytest.MonkeyPatch, own: str, free: float, state: str) -> None:
    """A faster second timing of the same kernels is another program's doing."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setattr(products, "_is_openblas", lambda: True)
    monkeypatch.setattr(products, "_timed", lambda env: ("Haswell", 100.0) if "OPENBLAS_CORETYPE" in env else (own, free))
    found = the_only(products.kernels())
    assert (found.state, found.way_out) == (state, "unset OPENBLAS_CORETYPE" if state == "note" else "")


def test_kernels_that_nobody_forces_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(products, "_timed", None)
    assert list(products.kernels()) == []


@pytest.mark.skipif(not products._is_openblas(), reason="needs OpenBLAS")
def test_a_core_that_is_forced_is_the_one_that_is_timed() -> None:
    """In processes, as OpenBLAS reads the variable when it is loaded. Prescott's kernels (SSE3) run on every x86-64."""
    used, speed = products._timed({**clean(), "OPENBLAS_CORETYPE": "Prescott"})
    assert used.lower() == "prescott" and speed > 0.1


@pytest.mark.parametrize(("value", "count"), [("1", 1), ("4", 0), ("9", 0), ("", 0), ("all", 1)])
def test_fewer_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    for name in products._THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(blas, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    found = list(products.threads())
    assert [(one.state, one.way_out) for one in found] == [("note", "unset OMP_NUM_THREADS")] * count


def test_what_forge_sets_itself_is_not_noted_and_another_value_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in products._SLOWING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLX_BFS_MAX_WIDTH", "4096")
    assert list(products.switches()) == []
    monkeypatch.setenv("MLX_BFS_MAX_WIDTH", "20")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert sorted(one.way_out for one in products.switches()) == ["unset MKL_CBWR", "unset MLX_BFS_MAX_WIDTH"]


def test_looking_at_blas_loads_no_mlx() -> None:
    """What MLX is slowed by has to be told also where MLX itself is broken."""
    code = "import sys\nfrom forge.checks import products, versions, store, disk, environment\nprint('mlx.core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=clean() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr

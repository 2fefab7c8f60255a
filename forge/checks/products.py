"""Matrix products on the CPU: which BLAS does them, and what in the environment slows it down.

Where OPENBLAS_CORETYPE forces kernels on the processor, four short processes time those and its own: a second or two.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

from forge import blas
from forge.checks import Finding

_INSTALL = "Debian, Ubuntu: apt-get install libopenblas0-pthread; without root: pip install mkl"
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
# What makes MKL, OpenMP or MLX compute in another way than by themselves.
_SLOWING = {
    "MKL_CBWR": "results that are the same on all processors, on slower kernels",
    "MKL_ENABLE_INSTRUCTIONS": "other instructions than the processor's newest",
    "MKL_DEBUG_CPU_TYPE": "kernels for another processor; MKL since 2020 does not read it",
    "MKL_VERBOSE": "a line for each product",
    "OPENBLAS_VERBOSE": "messages at the start",
    "OMP_WAIT_POLICY": "threads that wait for each other in another way",
    "MLX_DISABLE_COMPILE": "",
    "MLX_BFS_MAX_WIDTH": "",
}
_EXPECTED = {"MLX_DISABLE_COMPILE": "1", "MLX_BFS_MAX_WIDTH": "4096"}  # what forge.blas sets itself
_FASTER = 1.15
_TRIES = 2
_TIMING = """
import ctypes, sys, time
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.openblas_get_corename.restype = ctypes.c_char_p
n = 768
a, b, c = (np.ones((n, n), np.float32) for _ in range(3))
pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (a, b, c)]
one, zero = ctypes.c_float(1), ctypes.c_float(0)
times = []
for _ in range(8):
    began = time.perf_counter()
    library.cblas_sgemm(101, 111, 111, n, n, n, one, pointers[0], n, pointers[1], n, zero, pointers[2], n)
    times.append(time.perf_counter() - began)
print(library.openblas_get_corename().decode(), 2e-9 * n**3 / min(times))
"""


def library() -> Iterator[Finding]:
    """Which BLAS multiplies MLX's matrices."""
    state = blas.describe()
    if state in ("system", "cuda"):
        name = "Accelerate" if state == "system" else "cuBLAS"
        yield Finding("BLAS", "ok", f"{name}, the system's own")
    elif "reference" in state:
        off = os.environ.get("FORGE_BLAS") == "off"
        way_out = "unset FORGE_BLAS" if off else _INSTALL
        yield Finding("BLAS", "note", f"{state}: matrix products are about 30 times slower than they could be", way_out)
    else:
        kernels = f" ({blas.kernels()})" if blas.kernels() else ""
        yield Finding("BLAS", "ok", f"{state}{kernels}, {_threads_of()}")


def kernels() -> Iterator[Finding]:
    """Whether OPENBLAS_CORETYPE costs speed."""
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if not forced or not _is_openblas():
        return
    without = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    tries = [(_timed(dict(os.environ)), _timed(without)) for _ in range(_TRIES)]  # in turn: other programs' load comes and goes
    (used, speed), (own, free) = (max(each, key=lambda one: one[1]) for each in zip(*tries, strict=True))
    said = f"OPENBLAS_CORETYPE={forced} forces {used} kernels, {speed:.0f} GFLOP/s; by itself it takes {own}, {free:.0f}"
    if used != own and free > _FASTER * speed:
        yield Finding("kernels", "note", said, "unset OPENBLAS_CORETYPE")
    else:
        yield Finding("kernels", "ok", f"{said}: it costs nothing")


def threads() -> Iterator[Finding]:
    """Whether the environment gives BLAS fewer threads than there are cores."""
    cores = blas.cores()
    for name in _THREADS:
        value = os.environ.get(name, "")
        if value.isdecimal() and 0 < int(value) < cores:
            said = f"{name}={value}: products outside of training's own streams use {value} of {cores} cores"
            yield Finding("threads", "note", said, f"unset {name}")
        elif value and not value.isdecimal():
            yield Finding("threads", "note", f"{name}={value}: not a number of threads", f"unset {name}")


def switches() -> Iterator[Finding]:
    """Variables that make the libraries below forge compute in another way."""
    for name, effect in _SLOWING.items():
        value = os.environ.get(name)
        if value is None or value == _EXPECTED.get(name):
            continue
        what = effect or f"forge sets it to {_EXPECTED[name]} where it is not set"
        yield Finding("environment", "note", f"{name}={value}: {what}", f"unset {name}")


def _is_openblas() -> bool:
    return hasattr(blas._library, "openblas_get_corename")


def _threads_of() -> str:
    number = blas._library.openblas_get_num_threads() if blas._library and _is_openblas() else blas.cores()
    return f"{number} threads" if number != 1 else "1 thread"


def _timed(environment: dict[str, str]) -> tuple[str, float]:
    """The kernels' name, and GFLOP/s of a product of fp32 matrices of 768 x 768, in a process with that environment."""
    name = blas._library._name if blas._library else ""
    done = subprocess.run([sys.executable, "-c", _TIMING, name], env=environment, capture_output=True, text=True, timeout=30, check=True)
    core, speed = done.stdout.split()
    return core, float(speed)

"""Puts a fast BLAS under MLX on Linux CPUs.

The mlx-cpu wheel brings a reference BLAS, which multiplies fp32 matrices about 30 times slower than OpenBLAS. The dynamic
linker takes the first definition of a symbol, so a BLAS loaded globally before libmlx wins. macOS (Accelerate) and CUDA
have fast ones of their own and are left alone.

glibc's allocator gives large blocks back at once and pays for it in page faults; two mallopt settings keep them.

Two settings of MLX's own have to stand before it is imported: no mx.compile, which on a CPU calls a C++ compiler at run time; and
graphs walked in breadth, without which streams wait for each other.
"""

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NAMES = ("libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so")
_CUDA_BACKENDS = ("mlx-cuda-12", "mlx-cuda-13")
_THREADS = ("openblas_set_num_threads", "MKL_Set_Num_Threads")
_SUFFIXES = ("", "64_", "_64", "_64_")  # that builds of OpenBLAS put behind the names of its functions
_MLX = {"MLX_DISABLE_COMPILE": "1", "MLX_BFS_MAX_WIDTH": "4096"}

_state = "not prepared"
_processes = 1
_library: ctypes.CDLL | None = None


def describe() -> str:
    """What multiplies MLX's matrices on the CPU of this process, such as "libopenblas.so.0"; a tag on each run."""
    return _state


def kernels() -> str | None:
    """Which kernels an OpenBLAS took for this processor, or by OPENBLAS_CORETYPE, such as "OpenBLAS 0.3.21, Haswell kernels"; None where
    another BLAS multiplies. They decide the last digits of a product; on x86 OPENBLAS_L2_SIZE does not."""
    config, core = _told("openblas_get_config"), _told("openblas_get_corename")
    return f"{' '.join(config.split()[:2])}, {core} kernels" if config and core else None


def prepare() -> None:
    """Load a fast BLAS. Says nothing when it works; one line on stderr when it can't. Does its work once."""
    global _state
    if _state != "not prepared":
        return
    if not sys.platform.startswith("linux"):
        _state = "system"
    elif _has_cuda():
        _state = "cuda"
    elif os.environ.get("FORGE_BLAS") == "off":
        _state = "mlx reference (FORGE_BLAS=off)"
    elif "mlx.core" in sys.modules:
        _state = "mlx reference"
        _warn("mlx was imported before forge, so its slow reference BLAS stays: import forge first")
    else:
        _keep_freed_memory()
        for name, value in _MLX.items():
            os.environ.setdefault(name, value)
        _state = _load_first() or "mlx reference"
        if _state == "mlx reference":
            _warn(
                "no fast BLAS found, matrix products are about 30 times slower: install OpenBLAS "
                "(Debian: apt-get install libopenblas0-pthread) or `pip install mkl`, or name a library in FORGE_BLAS"
            )


def share_cores(processes: int) -> None:
    """So many processes of this machine, this one included, compute at once."""
    global _processes
    _processes = processes


def cores() -> int:
    """How many this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // _processes)


def use_threads(number: int) -> None:
    """How many threads each matrix product takes from now on; also those that MLX has yet to compute. Nothing where the BLAS has no say."""
    for name in _THREADS:
        if _library is not None and hasattr(_library, name):
            getattr(_library, name)(number)


def _told(name: str) -> str | None:
    """What a function of the library's that takes nothing says; None where it has none of that name."""
    for suffix in _SUFFIXES:
        function = getattr(_library, name + suffix, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            return str(function().decode())
    return None


def _has_cuda() -> bool:
    """By its distribution: the CUDA backend brings a libmlx.so of the same name as the CPU's."""
    for name in _CUDA_BACKENDS:
        try:
            importlib.metadata.distribution(name)
            return True
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


def _keep_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):  # musl has no mallopt
        libc.mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _load_first() -> str | None:
    """The name of the first candidate that loads and has CBLAS under its plain names (numpy's own copy does not)."""
    global _library
    named = os.environ.get("FORGE_BLAS")
    for candidate in _candidates():
        try:
            library = ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            if candidate == named:
                _warn(f"FORGE_BLAS={named} can't be loaded ({error}); looking for another")
            continue
        if hasattr(library, "cblas_sgemm"):
            _library = library
            return Path(candidate).name
    return None


def _candidates() -> list[str]:
    named = os.environ.get("FORGE_BLAS")
    own = [str(Path(sys.prefix, "lib", name)) for name in _NAMES]  # conda, and the mkl wheel
    return ([named] if named else []) + list(_NAMES) + [path for path in own if Path(path).exists()]


def _warn(text: str) -> None:
    print(f"forge: {text}", file=sys.stderr)

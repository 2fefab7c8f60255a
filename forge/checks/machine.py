"""The machine: processor, GPU, what MLX computes on, and memory."""

import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from forge import blas
from forge.checks import Finding

_GB = 10**9
_LITTLE_GB = 2.0  # below, not even a small model trains well
_NVIDIA = Path("/proc/driver/nvidia/version")


def device() -> Iterator[Finding]:
    import mlx.core as mx

    from forge.models.device import describe

    told = describe()
    cores = f"{blas.cores()} cores" if blas.cores() != 1 else "1 core"
    where = f"{told['forge.device_name']}, {cores}, {platform.system()} {platform.machine()}"
    if told["forge.device"] == "gpu":
        kind = "Metal" if mx.metal.is_available() else "CUDA"
        yield Finding("device", "ok", f"{where}; MLX computes with {kind}")
    elif _NVIDIA.exists():
        backend = "install its CUDA backend: pip install 'forge-mlx[cuda13]' (cuda12 for drivers below 580)"
        yield Finding("device", "note", f"{where}; MLX computes on the CPU, beside an NVIDIA GPU", backend)
    elif platform.system() == "Darwin" and platform.machine() != "arm64":
        native = "use a Python built for arm64, not one that Rosetta translates; an Intel Mac has no Metal for MLX"
        yield Finding("device", "note", f"{where}; MLX computes on the CPU", native)
    else:
        yield Finding("device", "ok", f"{where}; MLX computes on the CPU (no Metal, no CUDA)")


def memory() -> Iterator[Finding]:
    from forge.training.memory import total

    seen, limit = psutil.virtual_memory(), total()
    said = f"{seen.total / _GB:.1f} GB, {seen.available / _GB:.1f} GB free; MLX may use {limit / _GB:.1f} GB"
    if min(seen.available, limit) < _LITTLE_GB * _GB:
        way_out = "close other programs, take a smaller model or a quantised base, and set trainer.memory_limit"
        yield Finding("memory", "note", said, way_out)
    else:
        yield Finding("memory", "ok", said)

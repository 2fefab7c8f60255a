"""The device that MLX computes on, in words for a run's tags."""

import mlx.core as mx

from forge import blas


def describe() -> dict[str, str]:
    """forge.device ("cpu" or "gpu"), forge.device_name as MLX names it; on a CPU forge.cores that this process uses, by which batches and
    products fall into parts: sums depend on it in the last digits."""
    gpu = mx.default_device() == mx.Device(mx.gpu)
    found = {"forge.device": "gpu" if gpu else "cpu", "forge.device_name": str(mx.device_info().get("device_name", "unknown"))}
    return found if gpu else {**found, "forge.cores": str(blas.cores())}

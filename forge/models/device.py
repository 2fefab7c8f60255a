"""The device that MLX computes on, in words for a run's tags."""

import mlx.core as mx


def describe() -> dict[str, str]:
    """forge.device ("cpu" or "gpu") and forge.device_name as MLX names it."""
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    return {"forge.device": kind, "forge.device_name": str(mx.device_info().get("device_name", "unknown"))}

import mlx.core as mx
import pytest

from forge.training.optim import adamw


def test_the_first_adamw_step_by_hand() -> None:
    """Bias correction makes the first step lr · g/|g| whatever the betas; decay takes lr · wd · w from the weight first.

    w = 2, g = 0.5, lr = 0.1, wd = 0.1: 2 · (1 - 0.01) - 0.1 · 0.5 / (0.5 + 1e-8) = 1.98 - 0.1 = 1.88.
    Without the correction the step would be 0.1 · (0.1 · 0.5) / sqrt(0.05 · 0.25) = 0.0447.
    """
    optimizer = adamw(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    updated = optimizer.apply_gradients({"w": mx.array([0.5])}, {"w": mx.array([2.0])})
    assert updated["w"].item() == pytest.approx(1.88, abs=1e-6)

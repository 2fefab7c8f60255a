"""Cross-entropy in chunks is cross-entropy: against MLX's own, over all logits at once."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

import forge  # noqa: F401
from forge.arrays import flat
from forge.training.cross_entropy import Terms, each, summed
from forge.training.ends import Head

N, D, V = 150, 32, 41
ROOT = Path(__file__).parents[2]


def adapted(layer: Any) -> Any:
    """With a B that is not zero, as after some steps; the base is frozen."""
    layer.freeze()
    layer.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
    layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.1
    return layer


def frozen(layer: Any) -> Any:
    layer.freeze()
    return layer


HEADS: dict[str, Callable[[], Head]] = {
    "linear": lambda: Head(nn.Linear(D, V, bias=False), tied=False),
    "bias": lambda: Head(nn.Linear(D, V), tied=False),
    "tied": lambda: Head(nn.Embedding(V, D), tied=True),
    "frozen": lambda: Head(frozen(nn.Linear(D, V)), tied=False),
    "LoRA": lambda: Head(adapted(LoRALinear.from_base(nn.Linear(D, V), r=3)), tied=False),
    "DoRA": lambda: Head(adapted(DoRALinear.from_base(nn.Linear(D, V), r=3)), tied=False),
    "LoRA tied": lambda: Head(adapted(LoRAEmbedding.from_base(nn.Embedding(V, D), r=3)), tied=True),
    "quantised": lambda: Head(nn.QuantizedLinear.from_linear(nn.Linear(D, V), 32, 8), tied=False),
    "quantised tied": lambda: Head(nn.QuantizedEmbedding.from_embedding(nn.Embedding(V, D), 32, 8), tied=True),
}
TERMS = {"plain": Terms(), "smoothed, with z-loss": Terms(0.2, 1e-2)}


def plain(head: Head, hidden_ND: mx.array, targets_N: mx.array, terms: Terms) -> mx.array:
    logits_NV = head(hidden_ND)
    losses_N = nn.losses.cross_entropy(logits_NV, targets_N, label_smoothing=terms.label_smoothing)
    return (losses_N + terms.z_loss * mx.square(mx.logsumexp(logits_NV, -1))).sum()


def both(make: Callable[[], Head], loss: Callable[[Head, mx.array, mx.array], mx.array]) -> tuple[float, dict[str, np.ndarray]]:
    mx.random.seed(0)
    head = make()
    hidden_ND, targets_N = mx.random.normal((N, D)) * 2, mx.random.randint(0, V, (N,))

    def of(hidden_ND: mx.array, weights: Any) -> mx.array:
        head.module.update(weights)
        return 3 * loss(head, hidden_ND, targets_N)  # three, so that a gradient that is handed in counts

    value, (of_hidden, of_weights) = mx.value_and_grad(of, argnums=(0, 1))(hidden_ND, head.module.trainable_parameters())
    return value.item(), {name: np.array(g.astype(mx.float32)) for name, g in flat({"hidden": of_hidden, "head": of_weights}).items()}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_loss_and_gradients_are_those_of_all_logits_at_once(head: Callable[[], Head], chunk: int, terms: Terms) -> None:
    loss, gradients = both(head, lambda *args: summed(*args, chunk, terms)[0])
    expected_loss, expected = both(head, lambda *args: plain(*args, terms))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name)


def test_smoothing_and_z_loss_by_hand() -> None:
    """Logits ln 2, 0, 0, target the first: probabilities 1/2, 1/4, 1/4, the sum of exp(logits) 4.

    Cross-entropy ln 2; the mean of -log p is (ln 2 + ln 4 + ln 4) / 3 = 5/3 ln 2, so 0.3 of smoothing gives 0.7 ln 2 + 0.5 ln 2; z-loss
    of weight 0.01 is 0.01 (ln 4)².
    """
    logits = mx.array([[math.log(2), 0.0, 0.0]])
    total, cross_entropy, z_loss = summed(Head(nn.Identity(), tied=False), logits, mx.array([0]), 8, Terms(0.3, 0.01))
    assert cross_entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert z_loss.item() == pytest.approx(0.01 * math.log(4) ** 2, rel=1e-6)
    assert total.item() == pytest.approx(1.2 * math.log(2) + 0.01 * math.log(4) ** 2, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_without_gradients_each_loss_is_the_same(chunk: int) -> None:
    mx.random.seed(0)
    head, hidden_ND, targets_N = HEADS["bias"](), mx.random.normal((N, D)), mx.random.randint(0, V, (N,))
    expected = np.array(nn.losses.cross_entropy(head(hidden_ND), targets_N))
    np.testing.assert_allclose(np.array(each(head, hidden_ND, targets_N, chunk)), expected, atol=1e-5)


def test_of_a_16_bit_head_the_sum_over_chunks_is_kept_in_fp32() -> None:
    """Against fp32 from the same numbers: 150 chunks added in bf16 would be off by far more than the 1/256 that the last rounding is."""

    def rounded() -> Head:
        module = nn.Linear(D, V, bias=False)
        module.set_dtype(mx.bfloat16)
        return Head(module, tied=False)

    def exact() -> Head:
        module = rounded().module
        module.set_dtype(mx.float32)
        return Head(module, tied=False)

    found, expected = (both(make, lambda *args: summed(*args, 1, Terms())[0])[1]["head.weight"] for make in (rounded, exact))
    assert np.abs(found - expected).max() < np.abs(expected).max() / 100


def test_no_targets_are_no_loss_and_no_gradient() -> None:
    head = HEADS["bias"]()
    loss, gradients = mx.value_and_grad(lambda h: summed(head, h, mx.zeros((0,), mx.int32), 8, Terms())[0])(mx.ones((0, D)))
    assert (loss.item(), gradients.shape) == (0, (0, D))


@pytest.mark.parametrize("training", [True, False])
def test_memory_does_not_grow_with_positions_times_vocabulary(training: bool) -> None:
    """2,048 positions of 16,384 logits are 128 MiB; a chunk of 32 is 2 MiB. A few of those suffice."""
    code = f"""
import forge, mlx.core as mx, mlx.nn as nn
from forge.training.cross_entropy import Terms, each, summed
from forge.training.ends import Head
mx.set_default_device(mx.cpu)
head = Head(nn.Linear(16, 16384, bias=False), tied=False)
hidden, targets = mx.random.normal((2048, 16)), mx.zeros((2048,), mx.int32)
mx.eval(head.module.parameters(), hidden, targets)
mx.reset_peak_memory()
def loss(hidden, weights):
    head.module.update(weights)
    return summed(head, hidden, targets, 32, Terms())[0]
if {training}:
    mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, head.module.trainable_parameters()))
else:
    mx.eval(each(head, hidden, targets, 32))
print(mx.get_peak_memory() / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30


def test_weights_are_where_they_were_afterwards() -> None:
    head = HEADS["LoRA"]()
    before = tree_map(lambda w: w, head.module.parameters())
    mx.eval(mx.value_and_grad(lambda h: summed(head, h, mx.zeros((9,), mx.int32), 4, Terms())[0])(mx.ones((9, D))))
    after = flat(head.module.parameters())
    assert all(mx.array_equal(after[name], value).item() for name, value in flat(before).items())

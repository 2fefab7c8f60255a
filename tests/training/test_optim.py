from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
import pytest
from omegaconf import OmegaConf

from forge.binding import Problems, target
from forge.errors import ConfigError
from forge.training.optim import Muon, adafactor, adam, adamw, lion, muon, orthogonal, peak_of, sgd

CONF = sorted((Path(__file__).parents[2] / "conf/optimizer").glob("*.yaml"))
BETAS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-3}
FACTOR = {"beta1": None, "decay_rate": 0.8, "clip_threshold": 1.0, "weight_decay": 0.0}
MUON = {"momentum": 0.9, "newton_schulz_steps": 5, "adamw_factor": 1.0, **BETAS}


def read(path: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(path))


def from_yaml(path: Path, **changes: Any) -> optimizers.Optimizer:
    problems = Problems()
    build = target({**read(path), **changes}, "optimizer", problems)
    assert build is not None, problems
    return build()


def after(optimizer: optimizers.Optimizer, weight: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    w = mx.array(weight.astype(np.float32))
    for gradient in gradients:
        w = optimizer.apply_gradients({"w": mx.array(gradient.astype(np.float32))}, {"w": w})["w"]
    return np.array(w)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (adam(lr=0.1, **BETAS), [[0.3678829, -0.3049317, -0.2005248], [0.1448398, -0.3615002, 0.2514484]]),
        (adamw(lr=0.1, **BETAS, weight_decay=0.3), [[0.3301234, -0.281967, -0.1776838], [0.1269147, -0.3242296, 0.2338888]]),
        (
            sgd(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.3),
            [[0.2752983, -0.1995565, -0.1092087], [0.070092, -0.2857337, 0.1677223]],
        ),
        (
            sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
            [[0.1935959, -0.2102614, -0.0185967], [-0.0154223, -0.2117871, 0.1916914]],
        ),
        (adafactor(lr=0.1, **FACTOR, scale_parameter=True), [[0.468604, -0.2277826, -0.2783466], [0.2285797, -0.4486396, 0.162294]]),
        (muon(lr=0.1, weight_decay=0.3, **MUON), [[0.44608, -0.2060527, -0.2745836], [0.2307304, -0.4250509, 0.1230368]]),
    ],
    ids=["adam", "adamw", "sgd", "nesterov", "adafactor", "muon"],
)
def test_three_steps_are_torch_s(optimizer: optimizers.Optimizer, expected: Any) -> None:
    """Made with torch 2.15 in float64, from the same weight and gradients: Adam and AdamW (lr 0.1, betas 0.9 and 0.95, eps 1e-3, decay
    0.3), SGD (momentum 0.9, decay 0.3), Adafactor (lr 0.1, eps 1e-30 and 1e-3) and Muon (lr 0.1, momentum 0.9, decay 0.3, nesterov,
    adjust_lr_fn="match_rms_adamw"; with torch.bfloat16 = torch.float64, since it orthogonalises in bf16).
    """
    i, j = np.mgrid[:2, :3]
    found = after(optimizer, 0.5 * np.cos(i + 2 * j), [np.sin(1 + i + 2 * j + 3 * t) for t in range(3)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_first_adamw_step_by_hand() -> None:
    """Bias correction makes the first step lr · g/|g| whatever the betas; decay takes lr · wd · w from the weight first.

    w = 2, g = 0.5, lr = 0.1, wd = 0.1: 2 · (1 - 0.01) - 0.1 · 0.5 / (0.5 + 1e-8) = 1.98 - 0.1 = 1.88.
    Without the correction the step would be 0.1 · (0.1 · 0.5) / sqrt(0.05 · 0.25) = 0.0447.
    """
    found = after(adamw(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1), np.array([2.0]), [np.array([0.5])])
    assert found[0] == pytest.approx(1.88, abs=1e-6)


def test_a_beta_close_to_one_is_corrected_exactly() -> None:
    """The first step is lr · g/|g|. In fp32 1 - 0.99999 is 1.0014e-5, which would make it 0.07 % too large."""
    found = after(adam(lr=0.1, beta1=0.9, beta2=0.99999, eps=1e-12), np.array([0.0]), [np.array([0.5])])
    assert found[0] == pytest.approx(-0.1, rel=1e-5)


def test_two_lion_steps_by_hand() -> None:
    """lr 0.1, betas 0.9 and 0.99, decay 0.5; w = 2, g = 1 and then -0.02.

    Step 1: the sign of 0.1 is +; w = 2 · 0.95 - 0.1 = 1.8; m = 0.01.
    Step 2: 0.9 · 0.01 - 0.1 · 0.02 = 0.007 is +, though the gradient is not; w = 1.8 · 0.95 - 0.1 = 1.61.
    """
    found = after(lion(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5), np.array([2.0]), [np.array([1.0]), np.array([-0.02])])
    assert found[0] == pytest.approx(1.61, abs=1e-6)


def test_adafactor_follows_the_rate_that_is_set() -> None:
    """mlx's default takes a relative step instead. The first update has RMS 1, as g² is its own average: 0 - 0.3 · 1."""
    optimizer = adafactor(lr=0.1, **FACTOR, scale_parameter=False)
    optimizer.learning_rate = 0.3
    assert after(optimizer, np.zeros(2), [np.array([5.0, -5.0])]) == pytest.approx([-0.3, 0.3])


@pytest.mark.parametrize(
    ("optimizer", "decay"),
    [
        (adam(lr=0.1, **BETAS), 0.0),
        (adamw(lr=0.1, **BETAS, weight_decay=0.5), 0.5),
        (sgd(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.5), 0.5),
        (lion(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5), 0.5),
        (adafactor(lr=0.1, **{**FACTOR, "weight_decay": 0.5}, scale_parameter=False), 0.5),
        (muon(lr=0.1, weight_decay=0.5, **MUON), 0.5),
    ],
    ids=["adam", "adamw", "sgd", "lion", "adafactor", "muon"],
)
def test_without_a_gradient_a_weight_shrinks_by_lr_times_decay(optimizer: optimizers.Optimizer, decay: float) -> None:
    """mlx's Muon, whose decay goes through the orthogonalisation, takes the same from a weight of any size."""
    weight = np.array([[2.0, 0.0], [0.0, 200.0]])
    np.testing.assert_allclose(after(optimizer, weight, [np.zeros((2, 2))]), weight * (1 - 0.1 * decay), rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    within = u.T @ np.array(orthogonal(mx.array(matrix), 5)) @ v.T
    assert np.diag(within).min() > 0.65 and np.diag(within).max() < 1.25
    assert np.abs(within - np.diag(np.diag(within))).max() < 1e-4


def test_muon_takes_matrices_and_nothing_else() -> None:
    matrix, stack, vector = mx.zeros((3, 2)), mx.zeros((4, 3, 2)), mx.zeros(3)
    assert [role for role in ("matrix", "lora_a", "lora_b", "embedding", "head", "norm") if Muon.takes(role, matrix)] == [
        "matrix",
        "lora_a",
        "lora_b",
    ]
    assert not Muon.takes("matrix", stack) and not Muon.takes("matrix", vector)


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_each_option_says_what_it_is_and_starts_from_its_rate(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert peak_of(from_yaml(path)) == pytest.approx(read(path)["lr"])


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_each_option_learns(path: Path) -> None:
    """A linear map is found from its outputs, without decay, which keeps from it: the loss falls to a twentieth of what it was."""
    undecayed = {"weight_decay": 0.0} if "weight_decay" in read(path) else {}
    optimizer = from_yaml(path, lr=0.1 if path.stem == "muon" else 0.02, **undecayed)
    rng = np.random.default_rng(0)
    inputs, wanted = mx.array(rng.normal(size=(32, 4))), mx.array(rng.normal(size=(4, 3)))
    value_and_grad = mx.value_and_grad(lambda w: mx.mean(mx.square(inputs @ (w["w"] - wanted))))
    weights, losses = {"w": mx.zeros((4, 3))}, []
    for _ in range(150):
        loss, gradients = value_and_grad(weights)
        weights = optimizer.apply_gradients(gradients, weights)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optimizers.Adafactor(), "Adafactor has no learning rate to schedule: set optimizer.learning_rate"),
        (optimizers.Adafactor(1e-3), "Adafactor would not follow the schedule: set optimizer.relative_step=false"),
        (optimizers.MultiOptimizer([optimizers.SGD(1.0)]), "MultiOptimizer has no learning rate"),
    ],
)
def test_an_optimizer_that_no_schedule_reaches_is_refused(optimizer: optimizers.Optimizer, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        peak_of(optimizer)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match=r"set optimizer\.momentum above 0"):
        sgd(lr=0.1, momentum=0.0, nesterov=True, weight_decay=0.0)

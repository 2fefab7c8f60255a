"""Optimizers: optimizer(*, lr, knobs) -> mlx optimizer whose learning rate is the peak. mlx.optimizers' own also work as targets.

Adam and Muon are written here: mlx's Adam takes a quarter more passes over memory, and scalars anew for each weight; mlx's Muon adds decay
to the gradient, of which orthogonalising leaves next to nothing. Memory besides the weights: two floats each for Adam, one for SGD,
Lion and Muon, about none for Adafactor.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers

from forge.errors import ConfigError
from forge.values import Count, NotNegative, Part, Positive, Role


def adam(*, lr: Positive, beta1: Part, beta2: Part, eps: Positive) -> optimizers.Optimizer:
    """Adam (Kingma & Ba 2014, arXiv 1412.6980) without decay."""
    return Adam(lr, beta1, beta2, eps, weight_decay=0.0)


def adamw(*, lr: Positive, beta1: Part, beta2: Part, eps: Positive, weight_decay: NotNegative) -> optimizers.Optimizer:
    """AdamW as published (Loshchilov & Hutter 2017, arXiv 1711.05101): w shrinks by lr · weight_decay · w, apart from the gradient."""
    return Adam(lr, beta1, beta2, eps, weight_decay)


def sgd(*, lr: Positive, momentum: Part, nesterov: bool, weight_decay: NotNegative) -> optimizers.Optimizer:
    """v = momentum · v + g + weight_decay · w; w = w - lr · v. Decay is part of the gradient, so momentum multiplies it by
    1 / (1 - momentum). Raises ConfigError for nesterov without momentum.
    """
    if nesterov and momentum == 0:
        raise ConfigError("optimizer.nesterov looks ahead along the momentum: set optimizer.momentum above 0, or nesterov=false")
    return optimizers.SGD(lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def lion(*, lr: Positive, beta1: Part, beta2: Part, weight_decay: NotNegative) -> optimizers.Optimizer:
    """w = w - lr · (sign(beta1 · m + (1 - beta1) · g) + weight_decay · w); m = beta2 · m + (1 - beta2) · g (Chen et al. 2023)."""
    return optimizers.Lion(lr, betas=[beta1, beta2], weight_decay=weight_decay)


def adafactor(
    *, lr: Positive, beta1: Part | None, decay_rate: Positive, clip_threshold: Positive, weight_decay: NotNegative, scale_parameter: bool
) -> optimizers.Optimizer:
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) that follows the schedule, and not its own relative step sizes.

    Second moments are kept by row and column, and fade with 1 - t^-decay_rate. Updates whose RMS is above clip_threshold are scaled down
    to it. `scale_parameter`: lr is relative to a weight's RMS. `beta1` null: no momentum, and so next to no memory.
    """
    return optimizers.Adafactor(
        lr,
        beta_1=beta1,
        decay_rate=-decay_rate,
        clip_threshold=clip_threshold,
        weight_decay=weight_decay,
        scale_parameter=scale_parameter,
        relative_step=False,
    )


def muon(
    *,
    lr: Positive,
    momentum: Part,
    weight_decay: NotNegative,
    newton_schulz_steps: Count,
    adamw_factor: Positive,
    beta1: Part,
    beta2: Part,
    eps: Positive,
) -> optimizers.Optimizer:
    """Muon for matrices; the other weights get AdamW (beta1, beta2, eps, the same decay) at lr · adamw_factor."""
    return Muon(lr, momentum, weight_decay, newton_schulz_steps, Adam(lr, beta1, beta2, eps, weight_decay), adamw_factor)


def peak_of(optimizer: optimizers.Optimizer) -> float:
    """The learning rate that it was made with. Raises ConfigError where a schedule would have nothing to multiply."""
    kind = type(optimizer).__name__
    if "learning_rate" not in optimizer.state:
        raise ConfigError(f"{kind} has no learning rate to schedule: set optimizer.learning_rate")
    if getattr(optimizer, "relative_step", False):
        raise ConfigError(f"{kind} would not follow the schedule: set optimizer.relative_step=false")
    return float(optimizer.learning_rate)


class Adam(optimizers.Optimizer):
    """m = Σ beta1^i g, v = Σ beta2^i g², w = (1 - lr · weight_decay) · w - a · m / (√v + e): Adam with its constants moved into a and e.

    With bias correction, m̂ = m (1 - beta1) / (1 - beta1^t) and v̂ alike, lr · m̂ / (√v̂ + eps) is the same thing for s² = (1 - beta2) /
    (1 - beta2^t), e = eps / s and a = lr (1 - beta1) / (1 - beta1^t) / s. So a step takes eleven passes over memory, and ten without decay.
    """

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float):
        super().__init__()
        self.learning_rate = lr
        self.betas, self.eps, self.weight_decay = (beta1, beta2), eps, weight_decay

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        state["m"], state["v"] = mx.zeros_like(parameter), mx.zeros_like(parameter)

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """What all weights share is computed once."""
        first, second = (_normaliser(beta, self.step + 1) for beta in self.betas)
        s, lr = mx.sqrt(second), self.learning_rate
        self._a, self._e, self._kept = lr * first / s, self.eps / s, 1 - lr * self.weight_decay
        return super().apply_gradients(gradients, parameters)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        beta1, beta2 = self.betas
        state["m"] = m = beta1 * state["m"] + gradient
        state["v"] = v = beta2 * state["v"] + mx.square(gradient)
        kept = parameter * self._kept if self.weight_decay else parameter
        return kept - self._a * (m / (mx.sqrt(v) + self._e))


def _normaliser(beta: float, step: mx.array) -> mx.array:
    """(1 - beta) / (1 - beta^t), with the digits that 1 - beta^t loses in fp32 for a beta close to 1."""
    return (beta - 1) / mx.expm1(step.astype(mx.float32) * math.log(beta)) if beta else mx.array(1.0)


class Muon(optimizers.Optimizer):
    """w = (1 - lr · weight_decay) · w - lr · 0.2 √max(rows, columns) · orthogonal(g + momentum · v), with v = momentum · v + g.

    Jordan 2024 (kellerjordan.github.io/posts/muon), with the decay and the scale of Liu et al. 2025 (arXiv 2502.16982), whose updates are
    as large as AdamW's, so that its learning rates carry over. Each step costs `steps` times three products of the matrix with itself.
    `rest`, at `rest_factor` times the rate, is for the weights that takes() refuses.
    """

    def __init__(self, lr: float, momentum: float, weight_decay: float, steps: int, rest: optimizers.Optimizer, rest_factor: float):
        super().__init__()
        self.learning_rate = lr
        self.momentum, self.weight_decay, self.steps = momentum, weight_decay, steps
        self.rest, self.rest_factor = rest, rest_factor

    @staticmethod
    def takes(role: Role, weight: mx.array) -> bool:
        """Stacks of matrices (experts) and convolutions are not taken: they have no one set of rows and columns."""
        return weight.ndim == 2 and role in ("matrix", "lora_a", "lora_b")

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        state["v"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        state["v"] = v = self.momentum * state["v"] + gradient
        lr, kept = self.learning_rate, 1 - self.learning_rate * self.weight_decay
        return kept * parameter - lr * 0.2 * max(parameter.shape) ** 0.5 * orthogonal(gradient + self.momentum * v, self.steps)


def orthogonal(matrix: mx.array, steps: int) -> mx.array:
    """About U Vᵀ for the matrix U S Vᵀ: Newton-Schulz brings each singular value that isn't tiny to between 0.7 and 1.2 in five steps."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (mx.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x

"""The functions that a model is made of as the CPU computes them fast. Metal and CUDA keep MLX's own kernels.

MLX's exp takes 8 ns an element on a CPU, its sums and products 0.1: so here exp is a polynomial made of those, which takes 2, and what is
made of exp has a gradient that computes it anew instead of keeping it. fp32 only; other types go the usual way. Within cpu_formulation()
models find these functions where MLX's are: mlx-lm's modules import swiglu by name, and look the others up in mlx.nn.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

_LOG2_E = mx.array(math.log2(math.e))
_ROUND = mx.array(1.5 * 2**23)  # added to a number up to 2^22, it leaves no room for a fraction
_LOWEST = mx.array(-100.0)  # 2^-100 is nothing beside 1, and a product with it is no denormal, which would be slow
_HIGHEST = mx.array(100.0)
# 2^f for f in [-1/2, 1/2]: the polynomial of degree 5 with the least relative error, 8e-8.
_POWERS = tuple(mx.array(c) for c in (1.32764719e-3, 9.67554133e-3, 5.55071327e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007))

_MLX_SILU = nn.silu


def on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def exp2(x: mx.array) -> mx.array:
    """2 to the x, fp32 and x at most 100: the whole part of x goes into the exponent's bits. What is below -100 counts as that."""
    x = mx.maximum(x, _LOWEST)
    rounded = x + _ROUND
    fraction = x - (rounded - _ROUND)
    power = _POWERS[0] * fraction + _POWERS[1]
    for coefficient in _POWERS[2:]:
        power = power * fraction + coefficient
    return (power.view(mx.int32) + mx.left_shift(rounded.view(mx.int32), 23)).view(mx.float32)


def exp(x: mx.array) -> mx.array:
    """e to the x, for x of fp32 and at most 69."""
    return exp2(x * _LOG2_E) if on_cpu() else mx.exp(x)


def sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + exp2(mx.minimum(x * -_LOG2_E, _HIGHEST)))


def differentiable(function: Callable[..., Any], vjp: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with that gradient (arguments as of mx.custom_function's vjp), which is computed on the stream that it is called on."""
    stream = mx.default_stream(mx.default_device())
    own = mx.custom_function(function)

    @own.vjp
    def on_the_same(*given: Any) -> Any:
        with mx.stream(stream):
            return vjp(*given)

    return cast(Callable[..., Any], own)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """gate · sigmoid(gate) · x (arXiv 2002.05202)."""
    return cast(mx.array, differentiable(_swiglu, _swiglu_vjp)(gate, x)[0])


def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    share = sigmoid(gate)
    return gate * share * x, share


def _swiglu_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    (gate, x), share = primals, outputs[1]
    d_silu, silu = cotangents[0] * x, gate * share
    return d_silu * (share + silu * (1 - share)), cotangents[0] * silu


def silu(x: mx.array) -> mx.array:
    return cast(mx.array, differentiable(lambda x: x * sigmoid(x), _silu_vjp)(x))


def _silu_vjp(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
    share = sigmoid(x)
    return cotangent * (share + out * (1 - share))


_GELU = 2 * math.sqrt(2 / math.pi)


def gelu_approx(x: mx.array) -> mx.array:
    """x · (1 + tanh(u / 2)) / 2 = x · sigmoid(u), u = 2 √(2/π) (x + 0.044715 x³) (arXiv 1606.08415)."""
    return cast(mx.array, differentiable(lambda x: x * sigmoid(x * (_GELU + 0.044715 * _GELU * mx.square(x))), _gelu_approx_vjp)(x))


def _gelu_approx_vjp(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
    square = mx.square(x)
    share = sigmoid(x * (_GELU + 0.044715 * _GELU * square))
    return cotangent * (share + out * (1 - share) * (_GELU + 3 * 0.044715 * _GELU * square))


@contextmanager
def cpu_formulation() -> Iterator[None]:
    """Within, models compute with the functions above if they compute on the CPU. Once more within changes nothing."""
    if not on_cpu() or nn.silu is not _MLX_SILU:
        yield
        return
    places = activations()
    ours: dict[str, Callable[..., mx.array]] = {"silu": silu, "gelu_approx": gelu_approx, "swiglu": swiglu}
    before = [getattr(module, name) for module, name in places]
    for (module, name), usual in zip(places, before, strict=True):
        setattr(module, name, _for_fp32(ours[name], usual))
    try:
        yield
    finally:
        for (module, name), usual in zip(places, before, strict=True):
            setattr(module, name, usual)


def activations() -> list[tuple[Any, str]]:
    """Where models look for their activations: modules and names in them."""
    # A copy is made at once; a list is not, and other threads import meanwhile.
    swiglus = [(module, "swiglu") for name, module in sys.modules.copy().items() if _has_swiglu(name, module)]
    return [(nn, "silu"), (nn, "gelu_approx"), *swiglus]


def _has_swiglu(name: str, module: Any) -> bool:
    """mlx-lm's of two arguments; a model's own of that name is left alone."""
    found = getattr(module, "swiglu", None) if name.startswith("mlx_lm.models.") else None
    return getattr(found, "__module__", None) in ("mlx_lm.models.activations", __name__)


def _for_fp32(ours: Callable[..., mx.array], usual: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def chosen(*arrays: mx.array) -> mx.array:
        return (ours if all(array.dtype == mx.float32 for array in arrays) else usual)(*arrays)

    return chosen

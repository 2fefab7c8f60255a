"""Quantised bases: packing a model's weights, reading them back, and multiplying with them on a CPU.

A quantised layer holds packed integers of 2 to 8 bits, and for each group of weights in a row a scale and a bias: w = scale · q + bias.
They are never trained; an adapter beside them is (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, with MLX's affine groups in place of NF4).

On a CPU, MLX's product with packed weights runs at 3 GFLOP/s whatever the bits, and its gradient at 2 to 16: some 75 and 14 to 130 times
slower than fp32 with a fast BLAS. Unpacking the weights for each product and multiplying in fp32 costs 1.1 (2, 4, 8 bits) to 2.3 times
(6 bits) what fp32 weights cost, at 512 rows, and one layer's fp32 weights of memory at a time. Metal and CUDA have kernels of their own.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from forge.errors import ModelError
from forge.models.parts import is_quantised


@with_config(ConfigDict(extra="forbid"))
class Quantize(TypedDict):
    """Bits a weight, and how many weights share a scale and a bias: these add 32 / group_size bits a weight where they are 16-bit."""

    bits: Literal[2, 3, 4, 5, 6, 8]
    group_size: Literal[32, 64, 128]


def quantise(model: nn.Module, config: Mapping[str, Any], wanted: Quantize) -> dict[str, Any]:
    """Packs the weights in place, lazily, and returns the configuration with "quantization". Layers whose width is no multiple of
    the group size stay as they are, and so do those that the architecture keeps, such as routers. Raises ModelError."""
    from mlx_lm.utils import quantize_model

    bits, group_size = wanted["bits"], wanted["group_size"]
    if is_quantised(model):
        raise ModelError("model.quantize: the base is quantised already, and doing it again would lose more; set model.quantize to null")
    with redirect_stdout(io.StringIO()):  # it prints
        model, quantised = quantize_model(model, dict(config), group_size, bits)
    if not is_quantised(model):
        raise ModelError(f"model.quantize.group_size={group_size}: no layer's width is a multiple of it; take a smaller one")
    return quantised


def dense(layer: nn.Module) -> mx.array:
    """The layer's weights in fp32 (rows, columns), unpacked where they are packed."""
    return (_unpacked(layer, layer.weight) if hasattr(layer, "bits") else layer.weight).astype(mx.float32)


def multiply_unpacked(model: nn.Module) -> None:
    """From now on, the model's quantised layers unpack their weights to multiply. The arrays stay the same."""
    for module in model.modules():
        if type(module) in _UNPACKING:
            module.__class__ = _UNPACKING[type(module)]


def learn_packing(model: nn.Module) -> None:
    """The same, with gradients by scales and biases, which multiply_unpacked() has none of. They go through the unpacking, several times as
    fast on a CPU as MLX's own. All layers' fp32 weights are in memory until the gradient is there."""
    for module in model.modules():
        if type(module) in _LEARNING:
            module.__class__ = _LEARNING[type(module)]


def _unpacked(layer: nn.Module, packed: mx.array) -> mx.array:
    return mx.dequantize(packed, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)


def _product(layer: nn.Module, x: mx.array) -> mx.array:
    """x Wᵀ. Weights are unpacked when what they multiply is there, and again for the gradient: else all layers' would lie in memory."""

    def weights(needed_for: mx.array) -> mx.array:
        return _unpacked(layer, mx.depends(layer.weight, needed_for)).astype(x.dtype)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ weights(x).T

    @product.vjp
    def gradient(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return cotangent @ weights(cotangent)

    return cast(mx.array, product(x))


class _UnpackingLinear(nn.QuantizedLinear):
    """A subclass, so that mlx-lm takes it for what it is."""

    def __call__(self, x: mx.array) -> mx.array:
        y = _product(self, x)
        return y + self.bias if "bias" in self else y


class _UnpackingEmbedding(nn.QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        return _product(self, x)


class _LearningLinear(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        y = x @ _unpacked(self, self.weight).astype(x.dtype).T
        return y + self.bias if "bias" in self else y


class _LearningEmbedding(nn.QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        return x @ _unpacked(self, self.weight).astype(x.dtype).T


_LEARNING: dict[type, type] = {nn.QuantizedLinear: _LearningLinear, nn.QuantizedEmbedding: _LearningEmbedding}
_UNPACKING: dict[type, type] = {nn.QuantizedLinear: _UnpackingLinear, nn.QuantizedEmbedding: _UnpackingEmbedding}

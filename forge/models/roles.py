"""What each trainable weight is, told from its module's class and its shape, so that decay and learning rates can go by it."""

from collections.abc import Collection, Mapping

import mlx.core as mx
import mlx.nn as nn

from forge.arrays import flat
from forge.models import parts
from forge.values import Role


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of each trainable weight, by dotted name.

    norm       elementwise weights: of norms, all with one dimension that are no bias, DoRA's magnitudes, and arrays that a block holds
               beside its layers (Mamba's A_log, which Mamba's authors exempt from decay as well)
    bias       by MLX's names for it: bias, …_bias
    embedding  tables looked up by token or position, also where the head is tied to them
    head       the output projection
    lora_a, lora_b  of whatever layer they adapt
    matrix     the rest: linear layers, experts, convolutions
    """
    modules = dict(model.named_modules())
    heads = parts.head(model)
    return {name: _role(name, weight, modules, heads) for name, weight in flat(model.trainable_parameters()).items()}


def _role(name: str, weight: mx.array, modules: Mapping[str, nn.Module], heads: Collection[str]) -> Role:
    owner, leaf = _owner(name, modules)
    module = modules[owner]
    if leaf == "lora_a":
        return "lora_a"
    if leaf == "lora_b":
        return "lora_b"
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    if weight.ndim < 2 or parts.is_norm(module):
        return "norm"
    if parts.is_embedding(module):
        return "embedding"
    if owner in heads:
        return "head"
    return "norm" if _holds_layers(module) else "matrix"


def _owner(name: str, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The module that holds a weight, and the weight's name in it: a list of arrays is no module."""
    names = name.split(".")
    length = next(n for n in reversed(range(len(names))) if ".".join(names[:n]) in modules)
    return ".".join(names[:length]), ".".join(names[length:])


def _holds_layers(module: nn.Module) -> bool:
    return any(flat(inner.parameters()) for inner in module.modules() if inner is not module)

"""Finds the parts of a model by what they are and what they do, never by one architecture's names."""

from typing import Literal

import mlx.core as mx
import mlx.nn as nn

BlockRole = Literal["attention", "mlp", "linear"]


def linear_names(block: nn.Module, role: BlockRole) -> set[str]:
    """The names, inside a transformer block, of its linear layers: in an attention module, outside of one, or both."""
    inside = [name for name, module in block.named_modules() if name and _is_attention(name, module)]
    names = {name for name, module in block.named_modules() if _is_linear(module)}
    attention = {name for name in names if any(name.startswith(f"{parent}.") for parent in inside)}
    return {"attention": attention, "mlp": names - attention, "linear": names}[role]


def outside_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that belong to no block, by name: embeddings, the last norm, the head, and what holds them."""
    inside = {id(module) for block in model.layers for module in block.modules()}
    return {name: module for name, module in model.named_modules() if id(module) not in inside}


def embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """The tables outside the blocks with a row for each token that the model predicts. A table of positions is none."""
    return {name: module for name, module in _of_the_vocabulary(model).items() if is_embedding(module)}


def head(model: nn.Module) -> dict[str, nn.Module]:
    """The output projection by name; empty where the input embedding does its work (tied)."""
    return {name: module for name, module in _of_the_vocabulary(model).items() if not is_embedding(module)}


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.QuantizedEmbedding)


def is_experts(module: nn.Module) -> bool:
    """Whether it is one linear layer for all experts of a mixture."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    return isinstance(module, SwitchLinear | QuantizedSwitchLinear)


def is_quantised(model: nn.Module) -> bool:
    return any(hasattr(module, "bits") for module in model.modules())


def _of_the_vocabulary(model: nn.Module) -> dict[str, nn.Module]:
    rows = model(mx.array([[0]])).shape[-1]  # the shape alone: nothing is computed
    found = {name: module for name, module in outside_blocks(model).items() if is_embedding(module) or _is_linear(module)}
    return {name: module for name, module in found.items() if module.weight.shape[0] == rows}


def _is_attention(name: str, module: nn.Module) -> bool:
    return any(word in f"{name.rpartition('.')[2]} {type(module).__name__}".lower() for word in ("attention", "attn"))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.QuantizedLinear) or is_experts(module)

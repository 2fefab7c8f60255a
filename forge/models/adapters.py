"""What is trained of a model: adapter(model, *, knobs) changes the model in place."""

from typing import Annotated, Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field

from forge.errors import ModelError

Targets = Literal["attention", "mlp", "linear"]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[int, Field(ge=1)] | None


def full(model: nn.Module) -> None:
    """Every weight, in fp32: a bf16 weight would swallow most updates. Raises ModelError on a quantised model."""
    if any(hasattr(module, "bits") for _, module in model.named_modules()):
        raise ModelError("a quantised model can't be trained in full; use adapter=lora")
    model.set_dtype(mx.float32)
    model.unfreeze()


def lora(model: nn.Module, *, rank: Rank, alpha: Alpha, dropout: Dropout, targets: Targets, layers: Layers) -> None:
    """y = Wx + (alpha / rank) · B A x, with W frozen and B zero at the start (Hu et al. 2021, arXiv 2106.09685)."""
    _adapt(model, rank, alpha, dropout, targets, layers, use_dora=False)


def dora(model: nn.Module, *, rank: Rank, alpha: Alpha, dropout: Dropout, targets: Targets, layers: Layers) -> None:
    """LoRA on the direction of each output's weights, their magnitude trained apart (Liu et al. 2024, arXiv 2402.09353)."""
    _adapt(model, rank, alpha, dropout, targets, layers, use_dora=True)


def _adapt(model: nn.Module, rank: int, alpha: float, dropout: float, targets: Targets, layers: int | None, use_dora: bool) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    blocks = model.layers
    if layers is not None and layers > len(blocks):
        raise ModelError(f"adapter.layers={layers}: the model has {len(blocks)} blocks")
    keys = set().union(*(linear_names(block, targets) for block in blocks))
    if not keys:
        raise ModelError(f"adapter.targets={targets}: the model has no such linear layer; use targets=linear or adapter=full")
    model.freeze()
    knobs = {"rank": rank, "scale": alpha / rank, "dropout": dropout, "keys": keys}  # mlx-lm's scale is alpha / rank
    try:
        linear_to_lora_layers(model, layers or len(blocks), knobs, use_dora=use_dora)
    except ValueError as error:  # DoRA of a mixture of experts
        raise ModelError(f"adapter=dora: {error}; use adapter=lora, or targets=attention") from error


def linear_names(block: nn.Module, targets: Targets) -> set[str]:
    """The names, inside a transformer block, of its linear layers: in an attention module, outside of one, or both."""
    inside = [name for name, module in block.named_modules() if "attention" in type(module).__name__.lower() and name]
    names = {name for name, module in block.named_modules() if _is_linear(module)}
    attention = {name for name in names if any(name.startswith(f"{parent}.") for parent in inside)}
    return {"attention": attention, "mlp": names - attention, "linear": names}[targets]


def _is_linear(module: nn.Module) -> bool:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    return isinstance(module, nn.Linear | nn.QuantizedLinear | SwitchLinear | QuantizedSwitchLinear)

"""What is trained of a model: adapter(model, *, knobs) changes the model in place.

Low-rank adapters are fp32 whatever the base computes in, and start as the base exactly. They also go on a quantised base (QLoRA), which
is never changed; full and last_layers need weights that can be.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, get_args

import mlx.nn as nn
from mlx.utils import tree_unflatten
from pydantic import PlainValidator

from forge.errors import ModelError
from forge.models import parts
from forge.models.dora import DoRAEmbedding, DoRALinear
from forge.values import Count, Part, Positive

Target = Literal["attention", "mlp", "linear", "embeddings"]


def _listed(targets: Any) -> list[Target]:
    """`targets` as a list. Raises ValueError."""
    listed = targets if isinstance(targets, list) else [targets]
    if not listed or not all(target in get_args(Target) for target in listed):
        raise ValueError(f"{targets!r} should be one or a list of {', '.join(get_args(Target))}")
    return listed


Targets = Annotated[Target | list[Target], PlainValidator(_listed)]

_Wrap = Callable[[nn.Module], nn.Module]  # a layer -> the same with an adapter


def full(model: nn.Module) -> None:
    """Every weight. Raises ModelError on a quantised model."""
    _require_unpacked(model, "full")
    model.unfreeze()


def last_layers(model: nn.Module, *, layers: Count, final_norm: bool = True, head: bool = False, embeddings: bool = False) -> None:
    """Every weight of the last `layers` blocks, and of what is named: the norm behind them, the output projection, the input embedding.

    Where the two are tied, each of `head` and `embeddings` means the one table. Raises ModelError on a quantised model.
    """
    _require_unpacked(model, "last_layers")
    blocks = _last(model, layers)
    tables, projection = parts.embeddings(model), parts.head(model)
    model.freeze()
    trained = list(blocks)
    trained += (projection or tables).values() if head else ()
    trained += tables.values() if embeddings else ()
    for module in trained:
        module.unfreeze()
    if final_norm:
        _unfreeze_norms(parts.outside_blocks(model).values())


def lora(
    model: nn.Module, *, rank: Count, alpha: Positive, dropout: Part, targets: Targets, layers: Count | None, norms: bool = False
) -> None:
    """y = Wx + (alpha / rank) · B A x, with W frozen and B zero at the start (Hu et al. 2021, arXiv 2106.09685)."""
    _adapt(model, partial(_with_lora, rank=rank, scale=alpha / rank, dropout=dropout), targets, layers, norms)


def rslora(
    model: nn.Module, *, rank: Count, alpha: Positive, dropout: Part, targets: Targets, layers: Count | None, norms: bool = False
) -> None:
    """LoRA scaled by alpha / √rank, so that updates keep their size as the rank grows (Kalajdzievski 2023, arXiv 2312.03732)."""
    _adapt(model, partial(_with_lora, rank=rank, scale=alpha / math.sqrt(rank), dropout=dropout), targets, layers, norms)


def dora(
    model: nn.Module, *, rank: Count, alpha: Positive, dropout: Part, targets: Targets, layers: Count | None, norms: bool = False
) -> None:
    """LoRA on the direction of each output's weights, their magnitude trained apart (Liu et al. 2024, arXiv 2402.09353)."""
    _adapt(model, partial(_with_dora, rank=rank, scale=alpha / rank, dropout=dropout), targets, layers, norms)


def _adapt(model: nn.Module, wrap: _Wrap, targets: Targets, layers: int | None, norms: bool) -> None:
    """`layers` counts blocks from the last; embeddings and the last norm are adapted whatever it says. `norms` are trained in full."""
    blocks = _last(model, layers or len(model.layers))
    listed = _listed(targets)
    around = {**parts.embeddings(model), **parts.head(model)} if "embeddings" in listed else {}
    chosen: list[tuple[nn.Module, dict[str, nn.Module]]] = [(model, around)]
    for block in blocks:
        names = set().union(*(parts.linear_names(block, target) for target in listed if target != "embeddings"))
        chosen.append((block, {name: module for name, module in block.named_modules() if name in names}))
    if not any(found for _, found in chosen):
        raise ModelError(f"adapter.targets={'+'.join(listed)}: the model has no such linear layer; use targets=linear or adapter=full")
    model.freeze()
    for owner, found in chosen:
        owner.update_modules(tree_unflatten([(name, wrap(module)) for name, module in found.items()]))
    if norms:
        _unfreeze_norms([*parts.outside_blocks(model).values(), *(module for block in blocks for module in block.modules())])


def _with_lora(layer: Any, *, rank: int, scale: float, dropout: float) -> nn.Module:
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    if hasattr(layer, "to_lora"):  # an architecture's own linear layer
        return layer.to_lora(r=rank, scale=scale, dropout=dropout)
    kind = LoRAEmbedding if parts.is_embedding(layer) else LoRASwitchLinear if parts.is_experts(layer) else LoRALinear
    return kind.from_base(layer, r=rank, scale=scale, dropout=dropout)


def _with_dora(layer: nn.Module, *, rank: int, scale: float, dropout: float) -> nn.Module:
    if parts.is_experts(layer) or hasattr(layer, "to_lora"):
        raise ModelError(f"adapter=dora: a {type(layer).__name__} can't have it; use adapter=lora, or targets=attention")
    kind = DoRAEmbedding if parts.is_embedding(layer) else DoRALinear
    return kind(layer, rank=rank, scale=scale, dropout=dropout)


def _last(model: nn.Module, layers: int) -> list[nn.Module]:
    if layers > len(model.layers):
        raise ModelError(f"adapter.layers={layers}: the model has {len(model.layers)} blocks")
    return model.layers[-layers:]


def _unfreeze_norms(modules: Any) -> None:
    for module in modules:
        if parts.is_norm(module):
            module.unfreeze(recurse=False)


def _require_unpacked(model: nn.Module, adapter: str) -> None:
    if parts.is_quantised(model):
        raise ModelError(
            f"adapter={adapter}: a quantised model can't be trained in full; use adapter=lora or dora, or a base that is not quantised"
        )

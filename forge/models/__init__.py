"""Base models and what is trained of them. load() is the door; loaders and adapters are chosen by `_target_`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from forge.arrays import flat
from forge.errors import ModelError
from forge.models.quantise import multiply_unpacked
from forge.spec import Fetch, Lineage, Texts
from forge.training.formulation import on_cpu


@dataclass(frozen=True)
class Loaded:
    """`tokenizer` is mlx-lm's wrapper. `config` is the content of config.json."""

    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    lineage: Lineage


Loader = Callable[[Texts, int, Fetch], Loaded]
Adapter = Callable[[nn.Module], None]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load(loader: Loader, adapter: Adapter, texts: Texts, seed: int, fetch: Fetch, dtype: Dtype = "auto") -> Loaded:
    """The base model with its adapter in place, ready to train.

    texts: yields the training text, for a tokenizer made from it. fetch: a registered model's folder and version.
    dtype: what the base computes in; auto is fp32 on a CPU, where 16-bit products are some 30 times slower, else the base's own. Low-rank
    adapters are fp32 with any of them: they are small, and 16 bits would swallow most of their updates. Weights of the base that are
    trained (full, last_layers, norms) have this type; in 16 bits they need master weights. Packed weights keep their bits; their scales
    and biases get the type, which fp32 does without loss.
    Raises ModelError, also when nothing would be trained.
    """
    mx.random.seed(seed)
    loaded = loader(texts, seed, fetch)
    if dtype != "auto" or on_cpu():
        cast(loaded.model, getattr(mx, "float32" if dtype == "auto" else dtype))
    if on_cpu():
        multiply_unpacked(loaded.model)
    adapter(loaded.model)
    if trainable_parameters(loaded.model) == 0:
        raise ModelError("the adapter leaves 0 trainable parameters: choose other adapter.targets or adapter=full")
    mx.eval(loaded.model.parameters())
    return loaded


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Its floating-point weights as `dtype`. Some architectures name weights that have to stay as they are in 16 bits."""
    may_cast = getattr(model, "cast_predicate", lambda name: True)
    floats = {name: value for name, value in flat(model.parameters()).items() if mx.issubdtype(value.dtype, mx.floating)}
    chosen = [(name, value.astype(dtype)) for name, value in floats.items() if dtype == mx.float32 or may_cast(name)]
    model.update(tree_unflatten(chosen))


def parameters(model: nn.Module) -> int:
    """How many weights there are: packed ones as many as they unpack to, and their scales and biases not at all."""
    stored = sum(value.size for value in flat(model.parameters()).values())
    packed = [module for module in model.modules() if hasattr(module, "bits")]
    held = sum(module[name].size for module in packed for name in ("weight", "scales", "biases") if name in module)
    return stored - held + sum(module.weight.size * 32 // module.bits for module in packed)


def trainable_parameters(model: nn.Module) -> int:
    return sum(value.size for value in flat(model.trainable_parameters()).values())

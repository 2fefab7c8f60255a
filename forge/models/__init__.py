"""Base models and what is trained of them. load() is the door; loaders and adapters are chosen by `_target_`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge.arrays import flat
from forge.errors import ModelError
from forge.spec import Fetch, Lineage, Texts


@dataclass(frozen=True)
class Loaded:
    """`tokenizer` is mlx-lm's wrapper. `config` is the content of config.json."""

    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    lineage: Lineage


Loader = Callable[[Texts, int, Fetch], Loaded]
Adapter = Callable[[nn.Module], None]


def load(loader: Loader, adapter: Adapter, texts: Texts, seed: int, fetch: Fetch) -> Loaded:
    """The base model with its adapter in place, ready to train: fp32 on a CPU and wherever full weights are trained.

    texts: yields the training text, for a tokenizer made from it. fetch: a registered model's folder and version.
    Raises ModelError, also when nothing would be trained.
    """
    mx.random.seed(seed)
    loaded = loader(texts, seed, fetch)
    if mx.default_device() == mx.Device(mx.cpu):
        # bf16 and fp16 products are about 30 times slower than fp32 there.
        loaded.model.set_dtype(mx.float32)
    adapter(loaded.model)
    if trainable_parameters(loaded.model) == 0:
        raise ModelError("the adapter leaves 0 trainable parameters: choose other adapter.targets or adapter=full")
    mx.eval(loaded.model.parameters())
    return loaded


def trainable_parameters(model: nn.Module) -> int:
    return sum(value.size for value in flat(model.trainable_parameters()).values())

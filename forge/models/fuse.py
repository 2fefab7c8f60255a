"""Folds adapters into the weights and writes a model folder in the Hugging Face layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from forge.arrays import flat
from forge.models import Loaded
from forge.models.names import as_transformers
from forge.models.quantise import multiply_unpacked
from forge.training.formulation import on_cpu


def fuse(loaded: Loaded) -> Loaded:
    """The same model without adapters, changed in place, in the type that it computed in.

    Sums are taken in fp32 and rounded once. A quantised base is dequantised: quantising again would lose small deltas.
    """
    from mlx_lm.utils import dequantize_model

    model, config = loaded.model, dict(loaded.config)
    dtype = _dtype(model)
    quantised = [name for name, module in model.named_modules() if hasattr(module, "bits")]
    adapted = [name for name, module in model.named_modules() if hasattr(module, "fuse")]
    for module in model.modules():
        if hasattr(module, "bits") or hasattr(module, "fuse"):
            module.set_dtype(mx.float32)
    model = dequantize_model(model)
    model.update_modules(tree_unflatten([(name, module.fuse()) for name, module in model.named_modules() if name in adapted]))
    for name, module in model.named_modules():
        if name in adapted or name in quantised:
            module.set_dtype(dtype)
    if quantised:
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    return Loaded(model, loaded.tokenizer, config, loaded.lineage)


def save(loaded: Loaded, folder: Path) -> None:
    """Weights, configuration and tokenizer, as transformers and mlx-lm read them."""
    from mlx_lm.utils import save_config, save_model

    config = dict(loaded.config)
    written = as_transformers(flat(loaded.model.parameters()), config["model_type"])
    save_model(folder, cast(nn.Module, _Named(loaded.model, written)))
    for key in {"dtype", "torch_dtype"} & set(config):  # transformers computes in this type, whatever the file holds
        config[key] = str(_dtype(loaded.model)).removeprefix("mlx.core.")
    save_config(config, folder / "config.json")
    loaded.tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[nn.Module, Any]:
    """A saved model and its tokenizer, in fp32 where `save` wrote fp32."""
    from mlx_lm.utils import load as load_folder

    model, tokenizer = load_folder(str(folder))[:2]
    if on_cpu():
        multiply_unpacked(model)
    return model, tokenizer


@dataclass(frozen=True)
class _Named:
    """What mlx-lm's writer asks of a model: the tensors, here by other names, and the layers, to count parameters."""

    model: nn.Module
    weights: dict[str, mx.array]

    def parameters(self) -> dict[str, mx.array]:
        return self.weights

    def leaf_modules(self) -> Any:
        return self.model.leaf_modules()


def _dtype(model: nn.Module) -> mx.Dtype:
    """The type of the base's own weights; adapters are fp32 beside any."""
    own = {name: value for name, value in flat(model.parameters()).items() if name.rpartition(".")[2] not in ("lora_a", "lora_b", "m")}
    return next(value.dtype for value in own.values() if mx.issubdtype(value.dtype, mx.floating))

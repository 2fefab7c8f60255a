"""Folds adapters into the weights and writes a model folder in the Hugging Face layout."""

from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten

from forge.models import Loaded


def fuse(loaded: Loaded) -> Loaded:
    """The same model without adapters, changed in place. A quantised base is dequantised: quantising again would lose small deltas."""
    from mlx_lm.utils import dequantize_model

    model, config = loaded.model, dict(loaded.config)
    fused = [(name, module.fuse(dequantize=True)) for name, module in model.named_modules() if hasattr(module, "fuse")]
    if fused:
        model.update_modules(tree_unflatten(fused))
    if "quantization" in config:
        model = dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    return Loaded(model, loaded.tokenizer, config, loaded.lineage)


def save(loaded: Loaded, folder: Path) -> None:
    """Weights, configuration and tokenizer, as transformers and mlx-lm read them."""
    from mlx_lm.utils import save_config, save_model

    save_model(folder, loaded.model)
    save_config(dict(loaded.config), folder / "config.json")
    loaded.tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[nn.Module, Any]:
    """A saved model and its tokenizer, in fp32 where `save` wrote fp32."""
    from mlx_lm.utils import load as load_folder

    return load_folder(str(folder))[:2]

"""Names of tensors: what transformers and mlx-lm write and read, where they differ. Free but for a look at a head to be tied."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from forge.errors import ModelError

Weights = dict[str, mx.array]

_GPT2_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MIXTRAL_EXPERTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def classes(config: dict[str, Any]) -> tuple[type, type]:
    """mlx-lm's model and arguments for `config`, where the model also takes the names that transformers writes."""
    from mlx_lm.utils import _get_classes

    model, arguments = _get_classes(config)
    own: Callable[[Any, Weights], Weights] = getattr(model, "sanitize", lambda self, weights: weights)

    def sanitize(self: Any, weights: Weights) -> Weights:
        return own(self, as_mlx_lm(weights, config))

    return type(model.__name__, (model,), {"sanitize": sanitize, "__module__": model.__module__}), arguments


def as_mlx_lm(weights: Weights, config: dict[str, Any]) -> Weights:
    """A file's tensors by names that mlx-lm's own sanitize knows. Raises ModelError where a tied head is not the embeddings."""
    if config["model_type"] == "gpt2":
        kept = (entry for entry in weights.items() if not entry[0].endswith(".attn.masked_bias"))  # a constant of old files
        weights = {name.removeprefix("transformer."): value for name, value in kept}
    head = weights.get("lm_head.weight")
    if head is None or not config.get("tie_word_embeddings"):
        return weights
    table = next((value for name, value in weights.items() if name.endswith(("embed_tokens.weight", "wte.weight"))), head)
    if head.shape != table.shape or not mx.array_equal(head, table):
        raise ModelError(
            "config.json: tie_word_embeddings=true, but lm_head.weight is not the embeddings; write false there, or take lm_head.weight out"
        )
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def as_transformers(weights: Weights, model_type: str) -> Weights:
    """A model's own tensors by names that both read. Packed ones stay as they are: transformers reads none."""
    if any(name.endswith(".scales") for name in weights):
        return weights
    if model_type == "gpt2":
        turned = {name: value.T if name.endswith(_GPT2_TRANSPOSED) else value for name, value in weights.items()}
        return {name.removeprefix("model."): mx.contiguous(value) for name, value in turned.items()}
    if model_type == "mixtral":
        return {name: value for entry in weights.items() for name, value in _experts(*entry)}
    return weights


def _experts(name: str, value: mx.array) -> list[tuple[str, mx.array]]:
    block, is_expert, rest = name.partition(".switch_mlp.")
    if not is_expert:
        return [(name, value)]
    layer, _, kind = rest.partition(".")
    return [(f"{block}.experts.{number}.{_MIXTRAL_EXPERTS[layer]}.{kind}", each) for number, each in enumerate(value)]

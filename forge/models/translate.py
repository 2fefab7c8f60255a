"""config.json as mlx-lm reads it: transformers names and nests some keys otherwise, and has other defaults for those left out.

mlx-lm builds a model from the keys that it knows and says nothing of the rest, so that a folder may load as another model than the one it
holds. translate() gives the keys to lay over config.json; what mlx-lm can't compute is a ModelError. transformers decides what a key
means. Compared with it, logit by logit, are the types of _COMPUTED; of others only the rotary keys are translated. Costs milliseconds.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from forge.errors import ModelError

Json = dict[str, Any]

_SILU = {"hidden_act": ("silu", "swish")}
_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_GEMMA = {"hidden_activation": _GELU, "attention_bias": (False,), "use_bidirectional_attention": (None, False)}

# By type: the only values of a key that mlx-lm computes.
_COMPUTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _SILU,
    "mistral": _SILU,
    "mixtral": _SILU,
    "phi3": _SILU,
    "qwen2": _SILU,
    "qwen3": {**_SILU, "attention_bias": (False,)},
    "gemma2": {**_GEMMA, "tie_word_embeddings": (True,)},
    "gemma3_text": {**_GEMMA, "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    "gpt2": {
        "activation_function": _GELU,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
}


def translate(config: Json) -> Json:
    """Keys to lay over `config`, the content of config.json. Raises ModelError where mlx-lm would compute another model."""
    kind, known = config["model_type"], _fields(config)
    meaning = _meaning(config) if kind in _COMPUTED else config
    laid: Json = {}
    if kind in _COMPUTED:
        for key, value, wanted in _not_computed(kind, meaning):
            raise _refusal(kind, key, value, wanted)
        laid |= {key: meaning[key] for key in (*known, "tie_word_embeddings") if config.get(key) is None and meaning.get(key) is not None}
    if kind in _COMPUTED or "rope_parameters" not in known:
        laid |= _rotary(kind, meaning, known)
    if kind == "gemma3_text":
        laid["sliding_window_pattern"] = _pattern(meaning["layer_types"])
    if kind == "gpt2":
        laid["n_ctx"] = meaning["n_positions"]
    if isinstance(text := config.get("text_config"), dict) and text.get("model_type"):
        laid["text_config"] = {**text, **translate(text)}
    return {key: value for key, value in laid.items() if key not in config or config[key] != value}


def window(config: Json) -> int | None:
    """The positions that a token should see and that mlx-lm doesn't keep to; None where it does, or where all are seen.

    Rows up to the window are computed as they should be, longer ones are not.
    """
    if isinstance(text := config.get("text_config"), dict) and text.get("model_type"):
        return window(text)
    meaning, known = _meaning(config), _fields(config)
    size, layers = meaning.get("sliding_window"), meaning.get("layer_types")
    if not size or config.get("use_sliding_window") is False or (layers and "sliding_attention" not in layers):
        return None
    by_layer = config["model_type"] in ("llama", "mistral")  # mlx-lm's code for both asks layer_types, which transformers' Mistral has not
    kept = any("sliding_window" in key for key in known) and (not by_layer or bool(config.get("layer_types")))
    return None if kept else int(size)


def _not_computed(kind: str, meaning: Json) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, the value that mlx-lm computes) of what it would ignore."""
    for key, values in _COMPUTED[kind].items():
        if meaning.get(key, values[0]) not in values:
            yield key, meaning[key], values[0]
    if kind in ("qwen2", "mixtral", "phi3"):
        size = meaning["hidden_size"] // meaning["num_attention_heads"]
        if (meaning.get("head_dim") or size) != size:
            yield "head_dim", meaning["head_dim"], size
    if kind == "gpt2" and meaning.get("n_inner") not in (None, 4 * meaning["n_embd"]):
        yield "n_inner", meaning["n_inner"], 4 * meaning["n_embd"]
    if kind == "gemma2":
        yield from ((key, None, "a number") for key in ("attn_logit_softcapping", "final_logit_softcapping") if meaning[key] is None)


def _rotary(kind: str, meaning: Json, known: set[str]) -> Json:
    """The keys of rope_parameters where mlx-lm reads them. Gemma 3 has one set for each type of layer."""
    rope = meaning.get("rope_parameters")
    if not rope:
        return {}
    # transformers prefers rope_scaling where a file of another type has both.
    full = rope.get("full_attention") or (meaning.get("rope_scaling") if kind not in _COMPUTED else None) or rope
    laid: Json = {}
    for key, names in {
        "rope_theta": ("rope_theta", "rotary_emb_base"),
        "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    }.items():
        value = full.get(key, rope.get(key))
        laid |= {name: value for name in names if name in known and value is not None}
    scaling = full.get("rope_type", full.get("type", "default"))
    if scaling != "default":
        if "rope_scaling" not in known or kind == "mixtral":
            raise _refusal(kind, "rope_parameters.rope_type", scaling, "default")
        laid["rope_scaling"] = {**full, "type": scaling, **_checked(kind, scaling, full, meaning)}
    if local := rope.get("sliding_attention"):
        if local.get("rope_type", "default") != "default":
            raise _refusal(kind, "rope_parameters.sliding_attention.rope_type", local["rope_type"], "default")
        if "rope_local_base_freq" in known:
            laid["rope_local_base_freq"] = local["rope_theta"]
        elif local != full:
            raise _refusal(kind, "rope_parameters.sliding_attention", local, full)
    return laid


def _checked(kind: str, scaling: str, rope: Json, meaning: Json) -> Json:
    """What a kind of scaling needs besides its own keys."""
    if scaling == "yarn" and rope.get("truncate") is False:
        raise _refusal(kind, "rope_parameters.truncate", False, True)
    if scaling == "yarn" and rope.get("attention_factor") is not None:  # mlx-lm has mscale, of which this is 1 + mscale ln(factor) / 10
        return {"mscale": (rope["attention_factor"] - 1) / (0.1 * math.log(rope["factor"])), "mscale_all_dim": 0}
    if scaling == "longrope" and kind in _COMPUTED:
        original = rope["original_max_position_embeddings"]
        if rope["long_factor"] != rope["short_factor"]:
            raise ModelError(
                f"config.json: rope_parameters has other factors for rows up to {original} tokens, and mlx-lm takes long_factor for all; "
                "copy short_factor over long_factor there to train such rows, or take another model"
            )
        stretch = meaning["max_position_embeddings"] / original
        expected = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        factor = rope.get("factor") or stretch
        default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        if not math.isclose(rope.get("attention_factor") or default, expected, rel_tol=1e-4):
            raise _refusal(kind, "rope_parameters' attention factor", rope.get("attention_factor") or default, expected)
    return {}


def _pattern(layers: list[str]) -> int:
    """Gemma 3's layers in mlx-lm: each n-th sees everything."""
    every = layers.index("full_attention") + 1 if "full_attention" in layers else 0
    if not every or any((name == "full_attention") != ((n + 1) % every == 0) for n, name in enumerate(layers)):
        raise _refusal("gemma3_text", "layer_types", "/".join(layers), "full_attention at each n-th layer")
    return every


def _refusal(kind: str, key: str, value: Any, wanted: Any) -> ModelError:
    return ModelError(
        f"config.json: {key}={value}, but mlx-lm's {kind} computes {wanted} and nothing else; choose a model with that, or of another type"
    )


def _meaning(config: Json) -> Json:
    """The configuration as transformers reads it, with its defaults; as it is where transformers doesn't know the type."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    kind, without = config["model_type"], ("model_type", "dtype", "torch_dtype", "quantization", "quantization_config")
    try:
        return AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key not in without}).to_dict()
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        if kind not in _COMPUTED:
            return config
        raise ModelError(f"config.json: transformers can't read it ({' '.join(str(error).split())})") from error


def _fields(config: Json) -> set[str]:
    """The keys that mlx-lm's code for this type knows."""
    from mlx_lm.utils import _get_classes

    try:
        return {field.name for field in fields(_get_classes(config)[1])}
    except ValueError:  # part of another model, whose code takes what it knows of these
        return {"rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq"}

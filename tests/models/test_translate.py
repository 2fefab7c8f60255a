"""A folder is the model that transformers would make of it, whichever way its config.json is written.

Each shape of the parity test is loaded as the hub's own files spell it; there its losses are those of torch. The other spelling comes from
transformers' own configuration classes.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from transformers import AutoConfig

from forge.arrays import flat, load
from forge.errors import ModelError
from forge.models import Loaded, fuse, loaders, names, translate

FOLDER = Path(__file__).parent / "parity"
cases = SimpleNamespace(**runpy.run_path(str(FOLDER / "cases.py")))
TOKENS = mx.array([[(7 * n * n + 3 * n) % cases.VOCAB for n in range(24)]])
SHAPE = pytest.mark.parametrize("shape", cases.CONFIGS)
FACTORS = [1.0 + n / 4 for n in range(6)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": FACTORS, "long_factor": FACTORS}

Json = dict[str, Any]


def weights(shape: str) -> dict[str, np.ndarray]:
    return cases.weights(json.loads((FOLDER / f"{shape}.json").read_text())["shapes"])


def saved_by_transformers(shape: str) -> Json:
    known = {key: value for key, value in cases.CONFIGS[shape].items() if key != "n_ctx"}
    return {key: value for key, value in AutoConfig.for_model(**known).to_dict().items() if key != "_name_or_path"}


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(TOKENS))


@pytest.fixture
def open_folder(make_tiny_model: Callable[..., Loaded], tmp_path: Path) -> Callable[..., Loaded]:
    """open_folder(config, tensors): what comes of a folder with these."""
    tokenizer = make_tiny_model().tokenizer

    def make(config: Json, tensors: dict[str, np.ndarray]) -> Loaded:
        folder = tmp_path / "model"
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
        mx.save_safetensors(str(folder / "model.safetensors"), {name: mx.array(value) for name, value in tensors.items()})
        return loaders.local(lambda: iter(()), 0, lambda uri: (Path(uri), ""), path=str(folder))

    return make


@SHAPE
def test_both_spellings_are_the_same_model(shape: str, open_folder: Callable[..., Loaded]) -> None:
    newer = saved_by_transformers(shape)
    assert "rope_theta" not in newer and "n_ctx" not in newer
    expected = logits(open_folder(cases.CONFIGS[shape], weights(shape)).model)
    np.testing.assert_array_equal(logits(open_folder(newer, weights(shape)).model), expected)


@pytest.mark.parametrize(
    ("shape", "keys", "value"),
    [
        ("llama", ["rope_theta"], 10000.0),
        ("llama", ["factor"], 2.0),
        ("mistral", ["rope_theta"], 10000.0),
        ("qwen3", ["rope_theta"], 10000.0),
        ("phi3", ["rope_theta"], 500.0),
        ("phi3", ["partial_rotary_factor"], 0.5),
        ("gemma3", ["full_attention", "rope_theta"], 500.0),
        ("gemma3", ["sliding_attention", "rope_theta"], 500.0),
    ],
)
def test_a_changed_value_changes_the_model(shape: str, keys: list[str], value: float, open_folder: Callable[..., Loaded]) -> None:
    config = saved_by_transformers(shape)
    before = logits(open_folder(config, weights(shape)).model)
    inner = config["rope_parameters"]
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != value
    inner[keys[-1]] = value
    assert np.abs(logits(open_folder(config, weights(shape)).model) - before).max() > 1e-3


@SHAPE
def test_what_is_saved_is_the_same_to_transformers_and_to_mlx_lm_alone(
    shape: str, open_folder: Callable[..., Loaded], tmp_path: Path
) -> None:
    config = {**saved_by_transformers(shape), "dtype": "bfloat16"}
    loaded = open_folder(config, weights(shape))
    fuse.save(fuse.fuse(loaded), tmp_path / "saved")
    np.testing.assert_array_equal(logits(fuse.load(tmp_path / "saved")[0]), logits(loaded.model))
    again = AutoConfig.from_pretrained(tmp_path / "saved").to_dict()
    rope = again.get("rope_parameters") or {}
    for each in rope.values():
        if isinstance(each, dict):
            each.pop("type", None)
    rope.pop("type", None)
    assert {key: again[key] for key in config} == {**config, "dtype": "float32"}
    found = load(tmp_path / "saved" / "model.safetensors")
    assert set(found) == set(weights(shape))
    assert all(np.array_equal(np.array(found[name]), value) for name, value in weights(shape).items())


def test_what_a_file_leaves_out_is_what_transformers_takes(open_folder: Callable[..., Loaded]) -> None:
    """mlx-lm would tie a Llama's head, and turn a Qwen2's positions by a base of a million."""
    whole = {key: value for key, value in cases.CONFIGS["mistral"].items() if key not in ("sliding_window", "rope_theta", "head_dim")}
    tensors = weights("llama")
    llama = {**whole, "model_type": "llama", "rope_theta": 10000.0}
    expected = logits(open_folder(llama, tensors).model)
    del llama["tie_word_embeddings"]
    np.testing.assert_array_equal(logits(open_folder(llama, tensors).model), expected)
    tied = logits(
        open_folder({**llama, "tie_word_embeddings": True}, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}).model
    )
    assert np.abs(tied - expected).max() > 0.1
    assert translate.translate({**whole, "model_type": "qwen2"})["rope_theta"] == 10000.0


def test_gpt2_by_the_names_that_transformers_saves(open_folder: Callable[..., Loaded]) -> None:
    hub = weights("gpt2")
    expected = logits(open_folder(cases.CONFIGS["gpt2"], hub).model)
    named = {f"transformer.{name}": value for name, value in hub.items()}
    more = {"lm_head.weight": hub["wte.weight"], "transformer.h.0.attn.masked_bias": np.array(-1e4, np.float32)}
    np.testing.assert_array_equal(logits(open_folder(cases.CONFIGS["gpt2"], {**named, **more}).model), expected)


@pytest.mark.parametrize("shape", ["qwen3", "gemma3"])
def test_a_tied_head_in_the_file_is_no_second_table(shape: str, open_folder: Callable[..., Loaded]) -> None:
    tensors = weights(shape)
    table = tensors["model.embed_tokens.weight"]
    expected = open_folder(cases.CONFIGS[shape], tensors).model
    found = open_folder(cases.CONFIGS[shape], {**tensors, "lm_head.weight": table}).model
    assert set(flat(found.parameters())) == set(flat(expected.parameters()))
    np.testing.assert_array_equal(logits(found), logits(expected))
    with pytest.raises(ModelError, match=r"/config\.json: tie_word_embeddings=true, but lm_head\.weight is not the embeddings"):
        open_folder(cases.CONFIGS[shape], {**tensors, "lm_head.weight": 2 * table})


def test_experts_come_back_by_the_names_of_either(make_shape: Callable[..., Any]) -> None:
    model = make_shape("mixtral")
    own = flat(model.parameters())
    files = names.as_transformers(own, "mixtral")
    assert files["model.layers.1.block_sparse_moe.experts.3.w2.weight"].shape == (32, 32) and not any(
        "switch_mlp" in name for name in files
    )
    back = model.sanitize(dict(files))
    assert set(back) == set(own) and all(np.array_equal(np.array(back[name]), np.array(own[name])) for name in own)


REFUSED: list[tuple[str, Json, str]] = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu, but mlx-lm's llama computes silu and nothing else"),
    ("qwen3", {"attention_bias": True}, "attention_bias=True"),
    ("phi3", {"head_dim": 24}, "head_dim=24, but mlx-lm's phi3 computes 16 "),
    ("gpt2", {"n_inner": 80}, "n_inner=80, but mlx-lm's gpt2 computes 256 "),
    ("gpt2", {"activation_function": "relu"}, "activation_function=relu"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "layer_types=full_attention/sliding"),
    ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "rope_parameters.truncate=False"),
    ("mistral", {"model_type": "gemma2", "tie_word_embeddings": True, "attn_logit_softcapping": None}, "attn_logit_softcapping=None"),
    ("mistral", {"model_type": "mixtral", "head_dim": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type=linear"),
    (
        "phi3",
        {"rope_scaling": {**LONGROPE, "long_factor": FACTORS[::-1]}, "original_max_position_embeddings": 32},
        "copy short_factor",
    ),
    ("phi3", {"rope_scaling": {**LONGROPE, "attention_factor": 3.0}, "original_max_position_embeddings": 32}, "attention factor=3.0"),
]


@pytest.mark.parametrize(("shape", "changes", "says"), REFUSED, ids=[says.split(",")[0] for _, _, says in REFUSED])
def test_what_mlx_lm_would_compute_otherwise_is_refused(shape: str, changes: Json, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        translate.translate({**cases.CONFIGS[shape], **changes})
    assert str(caught.value).startswith("config.json: ") and says in str(caught.value) and "\n" not in str(caught.value)


def test_factors_of_short_and_long_rows_may_be_the_same() -> None:
    laid = translate.translate({**cases.CONFIGS["phi3"], "rope_scaling": LONGROPE, "original_max_position_embeddings": 32})
    assert laid["rope_scaling"]["type"] == "longrope" and laid["rope_scaling"]["long_factor"] == FACTORS


def test_a_factor_of_attention_is_yarns_scale() -> None:
    """1.5 = 1 + mscale * ln(4) / 10."""
    rope = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 16}
    laid = translate.translate({**cases.CONFIGS["mistral"], "rope_scaling": rope})["rope_scaling"]
    assert (laid["mscale"], laid["mscale_all_dim"]) == (pytest.approx(5 / np.log(4)), 0)


def test_a_part_of_another_model_is_translated_too() -> None:
    text = {**saved_by_transformers("gemma3"), "vocab_size": 61}
    laid = translate.translate({"model_type": "gemma3", "text_config": text})["text_config"]
    assert (laid["rope_theta"], laid["rope_local_base_freq"], laid["sliding_window_pattern"]) == (1000000.0, 10000.0, 3)


def test_a_type_that_transformers_does_not_know_keeps_its_keys() -> None:
    assert translate.translate({"model_type": "nanochat", "rope_theta": 500.0}) == {}
    both = {"model_type": "internlm3", "rope_parameters": {"rope_theta": 500.0}}
    assert translate.translate(both) == {"rope_theta": 500.0}
    assert translate.translate({**both, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})["rope_scaling"]["factor"] == 2.0
    assert translate.window({"model_type": "internlm3", "sliding_window": 5}) == 5
    assert translate.window({"model_type": "internlm3", "sliding_window": 5, "use_sliding_window": False}) is None


SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
WINDOWS: dict[str, tuple[str, Json, int | None]] = {
    "Mistral": ("mistral", {"sliding_window": 5}, 5),
    "Mistral by default": ("mistral", {"sliding_window": ...}, 4096),
    "Mistral without": ("mistral", {"sliding_window": None}, None),
    "Phi 3": ("phi3", {"sliding_window": 5}, 5),
    "Mixtral": ("mistral", {"model_type": "mixtral", "sliding_window": 5}, 5),
    "Gemma 2": ("mistral", {"model_type": "gemma2", "tie_word_embeddings": True, "sliding_window": 5}, 5),
    "Gemma 3 has it": ("gemma3", {"sliding_window": 5}, None),
    "Qwen 3": ("qwen3", SLIDING, 5),
    "Qwen 3 from a layer that is not there": ("qwen3", {**SLIDING, "max_window_layers": 2}, None),
    "Qwen 3 turned off": ("qwen3", {**SLIDING, "use_sliding_window": False}, None),
    "a part": ("mistral", {"model_type": "mistral3", "text_config": {**cases.CONFIGS["mistral"], "sliding_window": 5}}, 5),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_window_that_mlx_lm_does_not_keep_to(name: str) -> None:
    shape, changes, expected = WINDOWS[name]
    config = {key: value for key, value in {**cases.CONFIGS[shape], **changes}.items() if value is not ...}
    assert translate.window(config) == expected
    if config["model_type"] != "mixtral":  # which has no heads of such a size
        assert translate.window({**config, **translate.translate(config)}) == expected

"""Tiny models of the architectures that forge is tried on, with random weights, built from mlx-lm's own classes."""

from collections.abc import Callable
from typing import Any

import pytest

import forge  # noqa: F401  (before mlx)

VOCAB = 29
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
}
_WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_SPECIAL: dict[str, dict[str, Any]] = {
    "qwen3": {**_SIZES, "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True},
    "llama": _SIZES,
    "mistral": {**_SIZES, "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 1e6, "tie_word_embeddings": False},
    "gemma3_text": {**_SIZES, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "phi3": _SIZES,
    "ministral3": {
        **_SIZES,
        **_WINDOW,
        "rope_parameters": {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64},
    },
    "gpt2": {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB},
    "mamba": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "state_size": 4,
        "num_hidden_layers": 3,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
    },
    "mixtral": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    },
}


@pytest.fixture(scope="session")
def make_shape() -> Callable[..., Any]:
    """make_shape(name, seed=0): a new model of three blocks. Attention of Gemma 3 and Ministral sees 4 positions in some blocks."""
    import importlib

    import mlx.core as mx
    from mlx_lm.utils import MODEL_REMAPPING

    def make(name: str, seed: int = 0) -> Any:
        module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
        mx.random.seed(seed)
        return module.Model(module.ModelArgs(model_type=name, **_SPECIAL[name]))

    return make

"""The cases of the parity test: configurations, weights and batches, a function of their names alone. Needs numpy only.

Both sides run this: forge's test here, scripts/parity_reference.py where torch is. RandomState, since numpy keeps its streams for good.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np

STEPS = 20
VOCAB = 61
ROW = 25  # tokens; the models see 24
OPTIMIZER = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}  # decay is on every weight
RANK, ALPHA = 4, 12.0

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,  # the root of which is exact in bf16: mlx-lm rounds Gemma's factor on embeddings to it
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,  # else torch keeps back the gradient of that row of the embeddings
}

# By shape, a config.json in the keys of the hub's own models, which older and newer transformers and mlx-lm all read.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **_SIZES,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3": {
        **_SIZES,
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        **_SIZES,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 3,
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 7,  # shorter than a row: two blocks of three see so many positions
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "phi3": {**_SIZES, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75, "sliding_window": None},
    "mistral": {
        **_SIZES,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "head_dim": 24,
        "rope_theta": 1000000.0,
        "sliding_window": None,  # mlx-lm knows no window of Mistral
    },
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_ctx": 64,
        "n_positions": 64,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}


def noise(name: str, shape: list[int]) -> np.ndarray:
    """Standard normal, fp64; other numbers for each name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """fp32 by name in the file: norms about 1, biases about 0, tables small enough for a norm's eps to matter, products of unit gain."""
    gain = 0.0 if any("pre_feedforward" in name for name in shapes) else 1.0  # Gemma's norms add the 1
    return {name: _weight(name, shape, gain).astype(np.float32) for name, shape in sorted(shapes.items())}


def _weight(name: str, shape: list[int], gain: float) -> np.ndarray:
    if len(shape) == 1:
        return noise(name, shape) * 0.1 + (0.0 if name.endswith("bias") else gain)
    return noise(name, shape) * (0.05 if "embed" in name or "wte" in name or "wpe" in name else shape[-1] ** -0.5)


def lora(modules: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """By "<module>.lora_a" (rank, inputs) and "<module>.lora_b" (outputs, rank), from modules' [inputs, outputs]. B is not zero, so that
    the gradient of A isn't either."""
    shapes = {f"{name}.lora_a": [RANK, inputs] for name, (inputs, _) in modules.items()}
    shapes |= {f"{name}.lora_b": [outputs, RANK] for name, (_, outputs) in modules.items()}
    return {name: (noise(name, shape) * 0.1).astype(np.float32) for name, shape in sorted(shapes.items())}


class Rows(NamedTuple):
    """A batch: arrays of (3, ROW), as forge.spec.Batch has them."""

    tokens: np.ndarray
    mask: np.ndarray
    segments: np.ndarray


def batches() -> list[Rows]:
    """One a step, in turns: packed documents with padding and some tokens that are no targets, padded documents, whole rows."""
    rng = np.random.RandomState(0)
    return [_rows(rng, [[[9, 6, 7], [14, 11], [2, 20]], [[25], [12], [18]], [[25], [25], [25]]][step % 3], step) for step in range(STEPS)]


def _rows(rng: np.random.RandomState, lengths: list[list[int]], step: int) -> Rows:
    tokens, mask, segments = (np.zeros((len(lengths), ROW), dtype) for dtype in (np.int32, bool, np.int32))
    for row, documents in enumerate(lengths):
        begin = 0
        for number, length in enumerate(documents, start=1):
            end = begin + length
            # Counting upwards from anywhere, with slips: something to learn, so that losses move.
            steps = np.where(rng.random_sample(length) < 0.2, rng.randint(1, VOCAB, length), 1)
            tokens[row, begin:end] = (rng.randint(VOCAB) + np.cumsum(steps)) % VOCAB
            segments[row, begin:end] = number
            prompt = 1 + length // 4 if step % 3 == 0 else 1  # a document's first token has nothing before it
            mask[row, begin + prompt : end] = True
            begin = end
    return Rows(tokens, mask, segments)


def fingerprint(name: str, values: np.ndarray) -> list[float]:
    """Norm, and product with noise of its own: together they see a change of any entry. `values` in the file's orientation."""
    values = values.astype(np.float64)
    return [float(np.sqrt((values**2).sum())), float((values * noise(f"{name}/probe", list(values.shape))).sum())]

"""What every contender of scripts/benches/train.py is given: a model's folder, rows of tokens, and settings; and what it hands back."""

import json
import resource
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LORA = {"rank": 8, "alpha": 16.0}
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
OPTIMIZER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01}
END = 0  # the token that ends each row
_END_WORD = "<end>"


class Size(NamedTuple):
    """A Qwen 3 shape with tied embeddings, and the rows of 512 tokens that make its batch."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rows: int

    @property
    def block_weights(self) -> int:
        """Of the linear layers of all blocks."""
        return self.layers * self.hidden * (2 * self.head_dim * (self.heads + self.kv_heads) + 3 * self.mlp)

    @property
    def weights(self) -> int:
        return self.block_weights + self.vocab * self.hidden


SIZES = {
    "8M": Size(8192, 256, 8, 4, 2, 64, 768, 8),
    "50M": Size(16384, 512, 13, 8, 4, 64, 1536, 4),
    "600M": Size(151936, 1024, 28, 16, 8, 128, 3072, 8),  # Qwen3-0.6B's, for a GPU
}


def flops(size: Size, mode: str, context: int) -> float:
    """Floating-point operations a token: forward and backward, with the half of attention that a causal mask leaves.

    Backward is twice forward; LoRA needs no gradient of the weights, which is half of that, and its own factors are next to nothing.
    """
    passes = 3 if mode == "full" else 2
    attention = 2 * context * size.heads * size.head_dim * size.layers  # 2 products of 2 operations with T / 2 keys
    return passes * 2 * size.weights + 3 * attention


def make_folder(size: Size, place: Path) -> None:
    """A Hugging Face folder: random weights, and a tokenizer for which the text "w5 w17 w300" is the tokens 5, 17, 300."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.qwen3 import Model, ModelArgs
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config: dict[str, Any] = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.mlp,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "eos_token_id": END,
        "bos_token_id": END,
        "pad_token_id": None,
    }
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(place / "model.safetensors"), weights, {"format": "pt"})
    vocabulary = {f"w{token}": token for token in range(size.vocab) if token != END} | {_END_WORD: END}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=_END_WORD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=_END_WORD).save_pretrained(place)


def make_rows(size: Size, steps: int, rows: int, context: int) -> np.ndarray:
    """(steps, rows, context + 1) tokens: full rows of one document each, so that no contender has padding or documents to keep apart.

    Zipf's law, so that there is something to learn.
    """
    tokens = np.random.default_rng(0).zipf(1.2, (steps, rows, context + 1)) % (size.vocab - 1) + 1
    tokens[..., -1] = END
    return tokens.astype(np.int32)


def settings() -> tuple[dict[str, Any], np.ndarray]:
    """A contender's: what the bench asks of it, and the rows."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    return asked, np.load(asked["rows"])


def hand_back(asked: dict[str, Any], seconds: list[float], losses: list[float], device_peak: float, about: dict[str, str]) -> None:
    """Seconds and mean loss of each step, the framework's own count of its peak (bytes), versions and device."""
    result = {"seconds": seconds, "losses": losses, "device_peak": device_peak, "resident_peak": _resident_peak(), "about": about}
    Path(asked["result"]).write_text(json.dumps(result))


def _resident_peak() -> float:
    """Bytes. Linux's own count, since getrusage's goes on from the process that started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

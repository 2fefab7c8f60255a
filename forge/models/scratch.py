"""A small model from nothing: random weights, and a tokenizer trained on the training text."""

import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
from pydantic import Field

from forge.errors import ModelError
from forge.models import Loaded
from forge.spec import Fetch, Lineage, Texts

END_OF_TEXT = "<|endoftext|>"

Positive = Annotated[int, Field(ge=1)]


def build(
    texts: Texts,
    seed: int,
    fetch: Fetch,
    *,
    vocab_size: Annotated[int, Field(ge=257)],
    hidden_size: Positive,
    layers: Positive,
    heads: Positive,
    kv_heads: Positive,
    head_dim: Positive,
    mlp_size: Positive,
    max_positions: Positive,
) -> Loaded:
    """A Qwen3-architecture model. `vocab_size` is the limit; a small corpus may yield fewer tokens."""
    from mlx_lm.models.qwen3 import Model, ModelArgs

    if heads % kv_heads:
        raise ModelError(f"model.heads={heads} is no multiple of model.kv_heads={kv_heads}: each key-value head serves as many heads")
    tokenizer = _tokenizer(texts(), vocab_size)
    config: dict[str, Any] = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": len(tokenizer.get_vocab()),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": mlp_size,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    mx.random.seed(seed)
    revision = sha256(f"{sorted(config.items())} {seed}".encode()).hexdigest()[:16]
    return Loaded(Model(ModelArgs.from_dict(config)), tokenizer, config, Lineage("scratch", "qwen3", revision))


def _tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """Byte-level BPE, so that any text is encoded without loss. The end-of-text token also starts each text."""
    from mlx_lm.tokenizer_utils import load
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    start = bpe.token_to_id(END_OF_TEXT)
    bpe.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, start)])
    with tempfile.TemporaryDirectory() as folder:
        wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, split_special_tokens=True)
        wrapped.save_pretrained(folder)
        return load(Path(folder), eos_token_ids=start)

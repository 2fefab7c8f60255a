"""Small tokenizers with chat templates in the manner of the common model families."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)

TEMPLATES = Path(__file__).parent / "chat_templates"

_SENTENCES = (
    "The capital of France is Paris. What is the capital?",
    "Is it Rome, Bern or Paris? It is Rome, or Bern, or Paris.",
    '{"name": "weather"}',
)

# Special tokens, start token first, end of text second; then tokens that are added but not special.
_FAMILIES: dict[str, tuple[list[str], list[str]]] = {
    "chatml": (["", "<|endoftext|>", "<|im_start|>", "<|im_end|>"], []),
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], []),
    "qwen3": (["", "<|im_end|>", "<|im_start|>", "<|endoftext|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"]),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], ["\n\n"]),
    "mistral": (["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"], []),
    "phi": (["", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool_call|>", "<|/tool_call|>"], []),
    "base": (["", "<|endoftext|>"], []),
}


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[..., Any]:
    """chat_tokenizer(template): a tokenizer of its family with that chat template; "base" has none.

    Byte-level BPE; "gemma" and "mistral" write spaces as ▁ and fall back to bytes, as SentencePiece does, and "mistral" puts one more ▁
    in front of each piece of text. Phi's tokens swallow white space behind them. `wrapped`: by mlx-lm.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerFast

    @cache
    def make(template: str, wrapped: bool = True) -> Any:
        family = {"gemma_strict": "gemma", "generation": "chatml"}.get(template, template)
        special, added = _FAMILIES[family]
        own = {"chat_template": (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")} if family != "base" else {}
        start = {"bos_token": special[0]} if special[0] else {}
        backend = _backend(family, [token for token in special if token], added)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[1], **start, **own)
        return TokenizerWrapper(tokenizer) if wrapped else tokenizer

    return make


def _backend(family: str, special: list[str], added: list[str]) -> Any:
    from tokenizers import AddedToken, processors

    backend = _pieces(family == "mistral") if family in ("gemma", "mistral") else _byte_level()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False, rstrip=family == "phi") for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if family in ("gemma", "mistral", "llama3"):
        front = (special[0], backend.token_to_id(special[0]))
        backend.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[front])
    return backend


def _byte_level() -> Any:
    """Trims spaces off its offsets, as GPT-2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(_SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return backend


def _pieces(prepend: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    learner = Tokenizer(models.BPE())
    learner.train_from_iterator(
        [word for sentence in _SENTENCES for word in sentence.replace(" ", " ▁").split(" ")],
        trainers.BpeTrainer(vocab_size=80, show_progress=False),
    )
    learned = json.loads(learner.to_str())["model"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocab = {word: number for number, word in enumerate(dict.fromkeys([*words, "▁"]))}
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prepend else spaces)
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


@pytest.fixture(scope="session")
def target_runs() -> Callable[..., list[str]]:
    """target_runs(encoder, encoded): the text of each unbroken run of targets."""

    def runs(encoder: Any, encoded: Any) -> list[str]:
        borders = np.flatnonzero(np.diff(np.concatenate([[False], encoded.targets, [False]]).astype(int)))
        return [encoder.decode(encoded.ids[start:stop]) for start, stop in borders.reshape(-1, 2)]

    return runs

"""A model folder -> what the generation thread works with. Runs in that thread."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, maybe_set_recommended_wired_limit

from forge.errors import ServingError

# Tokens of a prompt between two looks at the other requests: some tenths of a second of a model that suits the device.
_PIECE, _PIECE_CPU = 512, 128

# Of the logits' length. 16-bit numbers stay well below it, wrong positions well above.
_ROUNDING = 0.05


@dataclass(frozen=True)
class Loaded:
    """`context`: tokens, prompt and completion together. `batches`: whether rows may be computed together."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    vocabulary: int
    context: int | None
    piece: int
    batches: bool


def load(folder: Path, adapter: Path | None) -> Loaded:
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    maybe_set_recommended_wired_limit()  # Metal alone has one
    try:
        model, tokenizer = mlx_lm.load(str(folder), adapter_path=None if adapter is None else str(adapter))[:2]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # as mlx_lm and MLX say that a file is missing or wrong
        what = f"the model {folder}" if adapter is None else f"the model {folder} with the adapter {adapter}"
        raise ServingError(f"{what} can't be loaded: {' '.join(str(error).split())}") from error
    if on_cpu:
        _widen(model)
    mx.eval(model.parameters())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**(config.get("text_config") or {}), **config}
    vocabulary = int(config.get("vocab_size") or len(tokenizer))
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        ends=frozenset(tokenizer.eos_token_ids),
        vocabulary=vocabulary,
        context=config.get("max_position_embeddings") or config.get("n_positions"),
        piece=_PIECE_CPU if on_cpu else _PIECE,
        batches=batches(model, vocabulary),
    )


def _widen(model: Any) -> None:
    """fp32 weights, where they take no more than half of the memory.

    On a CPU, MLX multiplies packed weights at 3 GFLOP/s and 16-bit ones at 7, whatever the cores; fp32 at the speed of the BLAS.
    """
    if 4 * sum(map(_weights, model.modules())) > _memory() / 2:
        return
    dequantize_model(model)
    model.set_dtype(mx.float32)


def _weights(module: Any) -> int:
    """Of this module alone, unpacked."""
    own = [array for array in module.values() if isinstance(array, mx.array)]
    bits = getattr(module, "bits", None)
    return sum(array.size * (32 // bits if bits and array.dtype == mx.uint32 else 1) for array in own)


def _memory() -> float:
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def batches(model: Any, vocabulary: int) -> bool:
    """Whether two prompts of different lengths give together what they give alone, by trying it.

    Architectures may have a cache that can't be merged, or compute positions as if all rows had the same.
    """
    prompts = [[(7 * i + 3) % vocabulary for i in range(length)] for length in (6, 3)]
    try:
        caches = [_read(model, prompt) for prompt in prompts]
        merged = [one.merge([one, other]) for one, other in zip(*[_read(model, prompt) for prompt in prompts], strict=True)]
        for token in (1 % vocabulary, 2 % vocabulary):
            together = model(mx.array([[token], [token]]), cache=merged)[:, -1].astype(mx.float32)
            alone = mx.concatenate([model(mx.array([[token]]), cache=cache)[:, -1] for cache in caches]).astype(mx.float32)
            near = mx.linalg.norm(together - alone, axis=-1) <= _ROUNDING * mx.linalg.norm(alone, axis=-1)
            if not bool(mx.all(near).item()):
                return False
    except Exception:  # whatever an architecture's code says to a cache that it doesn't expect
        return False
    return True


def _read(model: Any, prompt: list[int]) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    model(mx.array([prompt]), cache=cache)
    mx.eval([each.state for each in cache])
    return cache

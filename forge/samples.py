"""What a model writes: held-out rows from their beginnings on, token by token the likeliest. A sample costs 48 tokens."""

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from forge.models import Loaded
from forge.spec import Batch, Data

_PROMPT, _MOST = 32, 48  # tokens


def samples(loaded: Loaded, data: Data, a_source: int = 2) -> list[tuple[str, str]]:
    """Prompt and continuation. The prompt is what comes before a row's first target, of plain text its first 32 tokens."""
    loaded.model.eval()
    found = []
    for batches in data.valid.values():
        for prompt in _prompts(batches[0])[:a_source]:
            made = [token for token, _ in generate_step(mx.array(prompt), loaded.model, max_tokens=_MOST)]
            end = next((at for at, token in enumerate(made) if token in loaded.tokenizer.eos_token_ids), len(made))
            found.append((loaded.tokenizer.decode(prompt), loaded.tokenizer.decode(made[:end])))
    return found


def _prompts(batch: Batch) -> list[list[int]]:
    """Of each row's first document."""
    found = []
    for tokens_T, mask_T, segments_T in zip(batch.tokens_BT, batch.mask_BT, batch.segments_BT, strict=True):
        length = int((segments_T == 1).sum())
        first = int(np.argmax(mask_T[:length]))
        size = first if first > 1 else min(_PROMPT, length // 2)
        if size:
            found.append(tokens_T[:size].tolist())
    return found

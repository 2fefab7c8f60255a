"""Five AdamW steps of a toy model on this process's rows, as the engine does them. Writes losses and a digest of the weights to FOLDER."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import forge  # noqa: F401  (before mlx)
from forge.spec import Batch
from forge.training.world import World, world

VOCAB = 23
ROWS = ((4,), (3,), (1,), (2, 5), (5, 2, 1))  # of each step's micro-batches: even, uneven, fewer than processes


def make_model() -> Any:
    import mlx.core as mx
    from mlx_lm.models import qwen3

    mx.random.seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    rest = {"head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True}
    model = qwen3.Model(qwen3.ModelArgs(model_type="qwen3", vocab_size=VOCAB, **sizes, **rest))
    mx.eval(model.parameters())
    return model


def make_steps() -> list[list[Batch]]:
    """Rows of one or two documents and of any length; the share of targets is another in each."""
    rng = np.random.default_rng(0)

    def batch(rows: int) -> Batch:
        segments_BT = np.zeros((rows, 17), np.int32)
        for row in segments_BT:
            first, end = rng.integers(2, 9), rng.integers(9, 18)
            row[:first], row[first:end] = 1, 2
        targets_BT = rng.random(segments_BT.shape) < rng.random((rows, 1))
        targets_BT[:, 1] = True
        starts_BT = np.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        tokens_BT = rng.integers(VOCAB, size=segments_BT.shape, dtype=np.int32) * (segments_BT > 0)
        return Batch(tokens_BT, targets_BT & ~starts_BT & (segments_BT > 0), segments_BT, ("row",) * rows, ("made up",) * rows)

    return [[batch(rows) for rows in step] for step in ROWS]


def train(world: World) -> tuple[list[float], str]:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optimizers
    from mlx.utils import tree_flatten, tree_map

    from forge.training.objectives import causal_lm

    model, optimizer = make_model(), optimizers.AdamW(1e-2, bias_correction=True)
    value_and_grad = nn.value_and_grad(model, causal_lm)
    losses = []
    for batches in make_steps():
        sums: Any = None
        for batch in world.share_step(batches):
            (loss, (count, _)), gradients = value_and_grad(model, batch)
            own = {"loss": loss, "count": count, "gradients": gradients}
            sums = own if sums is None else tree_map(mx.add, sums, own)
        everyone = world.total(sums)
        optimizer.update(model, tree_map(lambda gradient, count=everyone["count"]: gradient / count, everyone["gradients"]))
        world.wait(everyone, model.parameters(), optimizer.state)
        losses.append(everyone["loss"].item() / everyone["count"].item())
    digest = hashlib.sha256(b"".join(np.array(array).tobytes() for _, array in tree_flatten(model.parameters())))
    return losses, digest.hexdigest()


if __name__ == "__main__":
    own = world()
    Path(sys.argv[1], f"{own.rank}.json").write_text(json.dumps(train(own)))

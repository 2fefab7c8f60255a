"""Trains on rows of the lengths of an instruction set, packed and padded to the longest of a batch, in turns, in one process.

Lengths are lognormal, median 130 tokens and 1.0 wide (95 % between 18 and 920), cut at 1,024: many short answers, few long ones, as
in public instruction sets. Padded batches hold 16 rows drawn at random, packed ones as many tokens on average as these have positions.
A step is what a run does: loss, gradients, AdamW. Tokens are real ones; padding is none.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import forge  # noqa: F401  (before mlx)
from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.data.tokens import Sequences
from forge.spec import Batch

_ROW, _PADDED_ROWS = 1025, 16


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=3, help="of each kind a round")
    asked = arguments.parse_args()
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(130), 1.0, 4000), 8, _ROW - 1).astype(np.int64)
    tokens = rng.integers(0, 2048, int(lengths.sum())).astype(np.int32)
    rows = Sequences(tokens, np.concatenate([[0], np.cumsum(lengths)]), None, [str(n) for n in range(len(lengths))])
    everything = np.arange(len(lengths))
    packed = PackedRows("set", rows, everything, _ROW)
    alone = PackedRows("set", rows, everything, _ROW, packed=False)
    wide = np.mean([lengths[rng.permutation(len(lengths))[:_PADDED_ROWS]].max() for _ in range(200)])
    packed_rows = max(1, round(_PADDED_ROWS * wide / _ROW))
    kinds = {
        "padded": lambda: _padded(alone, rng.permutation(len(alone))[:_PADDED_ROWS]),
        "packed": Mixture({"set": packed}, {"set": 1.0}, packed_rows, 0).next,
        "bucketed": Mixture({"set": alone}, {"set": 1.0}, _PADDED_ROWS, 0, bucketed=True).next,
    }
    step, speeds = _trainer(), {kind: [] for kind in kinds}
    for round_number in range(asked.rounds + 1):
        for kind, batch in kinds.items():
            speed = _speed(step, [batch() for _ in range(asked.steps)])
            if round_number:  # the first warms up
                speeds[kind].append(speed)
    medians = {kind: statistics.median(values) for kind, values in speeds.items()}
    filled = 1 - packed.padding_share
    print(f"padded: {_PADDED_ROWS} rows, {wide:.0f} wide on average; packed: {packed_rows} rows of {_ROW - 1}, {filled:.1%} filled")
    for kind, speed in medians.items():
        each = ", ".join(f"{s:,.0f}" for s in speeds[kind])
        print(f"{kind:9}{speed:8,.0f} real tokens/s  {speed / medians['padded']:.2f} x padded  ({each})")


def _padded(rows: PackedRows, numbers: np.ndarray) -> Batch:
    return rows.batch(numbers.tolist(), int(rows.filled[numbers].max()))


def _trainer() -> Callable[..., None]:
    """A training step of the quickstart's model."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optimizers
    from mlx_lm.models import qwen3

    from forge.training.objectives import causal_lm

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    rest = {"intermediate_size": 640, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True}
    model = qwen3.Model(qwen3.ModelArgs(model_type="qwen3", vocab_size=2048, max_position_embeddings=1024, **sizes, **rest))
    optimizer = optimizers.AdamW(1e-3)
    value_and_grad = nn.value_and_grad(model, causal_lm)

    def step(batch: Batch) -> None:
        (loss, (count, _)), gradients = value_and_grad(model, batch)
        optimizer.update(model, gradients)
        mx.eval(loss, count, model.parameters(), optimizer.state)

    return step


def _speed(step: Callable[..., None], batches: list[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        step(batch)
    return sum(int(np.count_nonzero(batch.segments_BT)) for batch in batches) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()

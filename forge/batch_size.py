"""The most rows that a micro-batch may have, found by taking real steps of more and more of them."""

import mlx.core as mx
import numpy as np

from forge.arrays import size
from forge.assemble import Parts, setup_of
from forge.config import Config
from forge.data.pack import join
from forge.spec import Batch, Batches
from forge.training.gradients import Gradients, normalise
from forge.training.memory import largest_micro_batch, limited
from forge.training.update import Update


def largest(config: Config, parts: Parts, update: Update) -> str:
    """The most rows that a micro-batch may have within trainer.memory_limit, else 80 % of what there is: in words, as overrides.

    Raises TrainingError where not one row fits.
    """
    model, trainer = parts.loaded.model, config.trainer
    gradients = Gradients(model, config.objective)
    with limited(trainer.memory_limit or "80%", setup_of(config, parts.loaded)) as bound:
        assert bound.limit is not None

        def step(rows: int) -> int:
            """The peak; in a step of several micro-batches the sum of the gradients before lies beside."""
            batch = _joined(parts.data.train, rows)
            mx.clear_cache()
            mx.reset_peak_memory()
            loss_sum, count, _, found = gradients(batch)
            update.apply(model, normalise(found, count, trainer.clip_norm)[0], 0.0)
            mx.eval(loss_sum, update.pending())
            return mx.get_peak_memory() + (gradients_bytes if rows < rows_a_step else 0)

        rows_a_step = trainer.micro_batch * trainer.accumulate
        gradients_bytes = size(model.trainable_parameters())
        mx.eval(update.pending())  # the optimizer's state is part of what no row adds to
        fixed = mx.get_active_memory() + gradients_bytes * (1 if rows_a_step == 1 else 2)
        most = largest_micro_batch(step, bound.limit, fixed_bytes=fixed)
    fitting = max(rows for rows in range(1, rows_a_step + 1) if rows <= most and rows_a_step % rows == 0)
    return (
        f"a micro-batch may have {most} rows of {config.data.sequence_length} tokens within {bound.limit / 1e9:.1f} GB; "
        f"the step of {rows_a_step} rows as it is: trainer.micro_batch={fitting} trainer.accumulate={rows_a_step // fitting}"
    )


def _joined(batches: Batches, rows: int) -> Batch:
    """The first `rows` rows of the run, all as wide as the widest: padding costs what tokens do."""
    found: list[Batch] = []
    batches.cursor = 0
    while sum(batch.tokens_BT.shape[0] for batch in found) < rows:
        found.append(batches.next())
    width = max(batch.tokens_BT.shape[1] for batch in found)
    return join([_widened(batch, width) for batch in found]).take(range(rows))


def _widened(batch: Batch, width: int) -> Batch:
    padding = ((0, 0), (0, width - batch.tokens_BT.shape[1]))
    tokens_BT, mask_BT, segments_BT = (np.pad(array, padding) for array in (batch.tokens_BT, batch.mask_BT, batch.segments_BT))
    return Batch(tokens_BT, mask_BT, segments_BT, batch.row_ids, batch.sources)

"""From a checked configuration to the parts of a run: model, data, plan. What train and release have in common."""

from dataclasses import dataclass

import mlx.core as mx

from forge import data, models, paths, units
from forge.config import Config
from forge.errors import ModelError
from forge.models import Loaded
from forge.spec import Data, Fetch, Plan
from forge.training.checkpoint import Store
from forge.training.isolation import keeps_apart
from forge.training.schedules import learning_rate


@dataclass(frozen=True)
class Parts:
    loaded: Loaded
    data: Data
    isolated: bool


def assemble(config: Config, fetch: Fetch) -> Parts:
    """Read the documents, load the model, build the batches. Raises DataError and ModelError."""
    corpus = data.read(config.data, config.sources)
    loaded = models.load(config.model, config.adapter, corpus.training_texts, config.seed, fetch)
    _check_fit(config, loaded)
    isolated = keeps_apart(loaded.model)
    if not isolated:
        print(
            f"forge: {loaded.config['model_type']} can't keep packed documents apart, so each has a row to itself: more padding, same loss"
        )
    built = data.build(corpus, config.data, config.evaluation, loaded.tokenizer, config.trainer.micro_batch, config.seed, isolated)
    return Parts(loaded, built, isolated)


def _check_fit(config: Config, loaded: Loaded) -> None:
    """Raises ModelError where the tokenizer has more tokens than the model, or a row more positions: MLX would compute on regardless."""
    rows = loaded.model(mx.array([[0]])).shape[-1]
    largest = max(loaded.tokenizer.get_vocab().values())
    if largest >= rows:
        raise ModelError(f"the tokenizer's largest id is {largest}, but the model knows {rows} tokens: they don't belong together")
    limit = {**loaded.config, **loaded.config.get("text_config", {})}.get("max_position_embeddings")
    if limit and config.data.sequence_length > limit:
        raise ModelError(f"data.sequence_length={config.data.sequence_length}: the model has {limit} positions; set it to {limit} or less")


def plan(config: Config, built: Data, peak: float) -> Plan:
    """The run in steps, now that the data says what an epoch is. `peak` is the optimizer's own learning rate. Raises ConfigError."""
    trainer = config.trainer
    per_step = built.tokens_per_row * trainer.micro_batch * trainer.accumulate
    total = max(1, units.to_steps(trainer.budget, units.Clock(per_step, built.epoch_tokens)))
    clock = units.Clock(per_step, built.epoch_tokens, total)
    warmup, cooldown = units.to_steps(config.schedule.warmup, clock), units.to_steps(config.schedule.cooldown, clock)
    return Plan(
        total_steps=total,
        eval_every=max(1, units.to_steps(trainer.eval_every, clock)),
        save_every=max(1, units.to_steps(trainer.save_every, clock)),
        log_every=trainer.log_every,
        accumulate=trainer.accumulate,
        clip_norm=trainer.clip_norm,
        seed=config.seed,
        lr=learning_rate(config.shape, peak, total, warmup, cooldown),
    )


def store_of(config: Config, parts: Parts, run_id: str) -> Store:
    """The run's checkpoints, stamped with all that has to be the same for one to be gone on from."""
    stamp = {"configuration": config.identity, "data": parts.data.ledger.digest, "base model": parts.loaded.lineage.revision}
    return Store(paths.checkpoints(run_id), run_id, stamp, config.trainer.keep)

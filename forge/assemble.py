"""From a checked configuration to the parts of a run: model, data, plan. What train and release have in common."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge import audit, data, models, paths, units
from forge.config import Config
from forge.data import Corpus
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.survey import Survey
from forge.data.templates import default, named
from forge.errors import DataError, ModelError
from forge.models import Loaded, parameters, trainable_parameters
from forge.models.translate import window
from forge.spec import Data, Document, Fetch, Ledger, Packing, Plan
from forge.training import guards
from forge.training.checkpoint import Store
from forge.training.formulation import on_cpu
from forge.training.isolation import keeps_apart
from forge.training.memory import Setup
from forge.training.schedules import learning_rate
from forge.training.update import Update

_WIDE = 4  # bytes of a gradient: it is computed in the model's type, and added and normalised in fp32
_LONGEST_MASK = 4096  # tokens: a mask given as an array costs Metal's backward pass memory by the square of it


@dataclass(frozen=True)
class Parts:
    loaded: Loaded
    data: Data


def assemble(config: Config, fetch: Fetch) -> Parts:
    """Read the rows, load the model, build the batches. Raises DataError and ModelError."""
    wanted = named(config.data.template)
    cache = _cache(config)
    corpus = data.read(config.data, config.sources, config.filters, cache)
    loaded = models.load(config.model, config.adapter, corpus.training_texts, config.seed, fetch, config.trainer.dtype)
    _check_fit(config, loaded)
    packing = _packing(config, loaded)
    if not packing.packed:
        print(f"forge: rows are {packing}")
    template = _chat(corpus, wanted, loaded.tokenizer)
    encoder = Encoder(loaded.tokenizer, template, config.data.mask)
    built = data.build(corpus, config.data, config.evaluation, encoder, cache, config.trainer.micro_batch, config.seed, packing)
    return Parts(loaded, built)


def corpus_of(config: Config) -> Corpus:
    """The rows and their sides alone. Raises DataError."""
    return data.read(config.data, config.sources, config.filters, _cache(config))


def _cache(config: Config) -> Cache:
    return Cache(paths.cache() / "data", config.data.cache_gb, partial(audit.note, "delete cache"))


def _chat(corpus: Corpus, wanted: str | None, tokenizer: Any) -> str | None:
    """The chat template (jinja) in place of the tokenizer's own: `wanted`, or the default where there is none; else None.

    The tokenizer gets it, so that what is trained with is saved and served. But not where conversations are only measured, or there are
    none: a template is what tells an instructed model from a base.
    """
    trained = [corpus.weights[name] > 0 for name, source in corpus.surveys.items() if _talks(source)]
    template = (wanted or default(tokenizer)) if trained else None
    if any(trained):
        tokenizer.split_special_tokens = False  # a template writes special tokens, to be taken for what they are
    if any(trained) and template:
        tokenizer.chat_template = template
        tokenizer.has_chat_template = True  # mlx-lm's wrapper looked when it was made
    return template


def _talks(source: Survey) -> bool:
    """Whether a row is more than a document."""
    return any(not isinstance(row, Document) for row in source.rows)


def _packing(config: Config, loaded: Loaded) -> Packing:
    """Raises ModelError where packing is asked for and the model would mix documents."""
    wanted, kind = config.data.packing, loaded.config["model_type"]
    if wanted == "bucket":
        return Packing(False, "data.packing is bucket")
    if not keeps_apart(loaded.model):
        if wanted == "pack":
            raise ModelError(f"data.packing=pack: {kind} can't keep packed documents apart; set data.packing to auto or bucket")
        return Packing(False, f"{kind} can't keep packed documents apart")
    if wanted == "auto" and config.data.sequence_length > _LONGEST_MASK and not on_cpu():
        return Packing(False, f"above {_LONGEST_MASK} tokens the mask of packed documents takes too much memory on a GPU")
    return Packing(True, f"{kind} keeps packed documents apart")


def _check_fit(config: Config, loaded: Loaded) -> None:
    """Raises ModelError where the weights aren't finite, the tokenizer has more tokens than the model, or a row more positions: MLX would
    compute on regardless."""
    logits = loaded.model(mx.array([[0]]))
    if not mx.isfinite(logits).all().item():
        what = guards.culprit({"weight": loaded.model.parameters()}, "what it gives")
        raise ModelError(f"{loaded.lineage.uri}: the base gives no finite numbers: {what}; take another copy of it")
    known = logits.shape[-1]
    largest = max(loaded.tokenizer.get_vocab().values())
    if largest >= known:
        raise ModelError(f"the tokenizer's largest id is {largest}, but the model knows {known} tokens: they don't belong together")
    limit = {**loaded.config, **loaded.config.get("text_config", {})}.get("max_position_embeddings")
    length = config.data.sequence_length
    if limit and length > limit:
        raise ModelError(f"data.sequence_length={length}: the model has {limit} positions; set it to {limit} or less")
    if (seen := window(loaded.config)) and length > seen:
        raise ModelError(
            f"data.sequence_length={length}: its layers see {seen} positions, which mlx-lm does not keep to; set it to {seen} or less"
        )


def update_of(config: Config, model: nn.Module) -> Update:
    """Raises ConfigError where the optimizer has no learning rate to schedule."""
    trainer = config.trainer
    return Update(
        model,
        config.optimizer,
        no_decay=trainer.no_decay,
        lr_factors=trainer.lr_factors,
        master_weights=trainer.master_weights,
        ema=trainer.ema,
    )


def plan(config: Config, built: Data, peak: float) -> Plan:
    """The run in steps, now that the data says what an epoch is. `peak` is the optimizer's own learning rate. Raises ConfigError."""
    trainer = config.trainer
    per_step = built.tokens_per_row * trainer.micro_batch * trainer.accumulate
    total = max(1, units.to_steps(trainer.budget, units.Clock(per_step, built.epoch_tokens)))
    if built.max_batches is not None and 0 <= total * trainer.accumulate - built.max_batches < trainer.accumulate:
        total = max(1, built.max_batches // trainer.accumulate)  # the budget was rounded up to whole steps
    if built.max_batches is not None and total * trainer.accumulate > built.max_batches:
        raise DataError(
            f"trainer.budget={trainer.budget}: {total} steps need {total * trainer.accumulate} batches, and max_epochs leaves "
            f"{built.max_batches}; raise a source's max_epochs or shorten the budget"
        )
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
        lr=learning_rate(config.shape, peak, total, warmup, cooldown, config.schedule.cooldown_shape),
        gradient_checkpointing=trainer.gradient_checkpointing,
    )


def planned(built: Data, steps: Plan) -> Ledger:
    """The ledger with how often the run will go through each source."""
    planned = built.train.epochs(steps.total_steps * steps.accumulate)
    epochs = {f"data/{name}/epochs_planned": value for name, value in planned.items()}
    return replace(built.ledger, counts={**built.ledger.counts, **epochs})


def setup_of(config: Config, loaded: Loaded) -> Setup:
    """What the memory of a step depends on."""
    return Setup(
        micro_batch=config.trainer.micro_batch,
        accumulate=config.trainer.accumulate,
        sequence_length=config.data.sequence_length,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        whole=trainable_parameters(loaded.model) == parameters(loaded.model),
        quantised="quantization" in loaded.config,
        gradients=_WIDE * trainable_parameters(loaded.model),
    )


def store_of(config: Config, parts: Parts, run_id: str) -> Store:
    """The run's checkpoints, stamped with all that has to be the same for one to be gone on from."""
    stamp = {"configuration": config.identity, "data": parts.data.ledger.digest, "base model": parts.loaded.lineage.revision}
    return Store(paths.checkpoints(run_id), run_id, stamp, config.trainer.keep, partial(audit.note, "delete checkpoint"))

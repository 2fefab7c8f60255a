"""The frozen dataclasses that cross a border between packages. Imports no mlx, mlflow or hydra.

Letters in array names: B rows in a batch, T positions in a row.

Specs (…Spec) are what the YAML of a group must hold. They are pydantic dataclasses, so that one look reports every wrong
type, range and unknown key; forge.config does the reporting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from forge import units
from forge.errors import ConfigError


def _duration(value: Any) -> Any:
    try:
        units.parse(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value


def _length(value: Any) -> Any:
    number, unit = units.parse(value)
    if number == 0 or unit == "%":
        raise ValueError(f"{value!r}: a run's length is steps, tokens or epochs, and above 0")
    return value


def _cadence(value: Any) -> Any:
    if units.parse(value)[0] == 0:
        raise ValueError(f"{value!r}: has to be above 0; for once at the end write 100%")
    return value


Duration = Annotated[str, BeforeValidator(_duration)]
Cadence = Annotated[Duration, AfterValidator(_cadence)]
Length = Annotated[Duration, AfterValidator(_length)]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Metrics = Mapping[str, float]
History = Sequence[tuple[int, Metrics]]  # (step, what was emitted at it), in order; a step may stand more than once
Emit = Callable[[Metrics, int], None]  # after a resume, steps that were emitted before come once more
Texts = Callable[[], Iterator[str]]
Fetch = Callable[[str], tuple[Path, str]]  # a registered model's uri -> its folder and its version

# ---- configuration ----------------------------------------------------------------------------------------------------


@checked(frozen=True, config=_STRICT)
class SourceSpec:
    """One named source of documents. `weight` is its share of the training tokens, relative to the other sources'."""

    source: dict[str, Any]
    weight: Annotated[float, Field(ge=0)] = 1.0


@checked(frozen=True, config=_STRICT)
class DataSpec:
    """`sequence_length`: positions (tokens) that the model sees at once. `valid_fraction`: share of the documents kept for validation.

    `split_seed` decides which; it is apart from the run's seed, so that runs with other seeds are compared on the same tokens.
    """

    sources: dict[str, SourceSpec]
    sequence_length: Annotated[int, Field(ge=8)]
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**32)]
    path: str | None = None


@checked(frozen=True, config=_STRICT)
class ScheduleSpec:
    """`shape` maps the run's progress to a multiplier of the peak learning rate; the engine adds warm-up and cool-down."""

    shape: dict[str, Any]
    warmup: Duration
    cooldown: Duration


@checked(frozen=True, config=_STRICT)
class TrainerSpec:
    """What the loop needs. Durations are text with a unit (forge.units)."""

    budget: Length
    micro_batch: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    eval_every: Cadence
    save_every: Cadence
    log_every: Annotated[int, Field(ge=1)]
    keep: Annotated[int, Field(ge=0)]


@checked(frozen=True, config=_STRICT)
class EvaluationSpec:
    """`max_tokens`: at most that many validation targets a source, always the same ones."""

    max_tokens: Annotated[int, Field(ge=1)]


@checked(frozen=True, config=_STRICT)
class ReleaseSpec:
    """`max_logit_difference`: how far the fused model's logits may lie from those of the evaluated one."""

    enabled: bool
    name: Annotated[str, Field(pattern=r"^[^/:]+$")]
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    max_logit_difference: Annotated[float, Field(gt=0)]


@checked(frozen=True, config=_STRICT)
class TrackingSpec:
    """`uri` null: MLFLOW_TRACKING_URI, else sqlite beside mlruns/. `parent_run` is set by a sweep for its children."""

    uri: str | None
    experiment: str
    run_name: str | None
    parent_run: str | None
    dashboard: bool
    tags: dict[str, str]


@checked(frozen=True, config=_STRICT)
class SweepSpec:
    """`release_winner`: register the best child when all are done."""

    release_winner: bool


# ---- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One row of text. `origin` is where it came from (path, module). Documents with equal `key` are duplicates."""

    id: str
    text: str
    origin: str
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", self.text)


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    tokens_BT   int32. Padding is 0.
    mask_BT     bool. True where the token is a target: a loss is taken for predicting it from what stands before it.
    segments_BT int32. 1, 2, … for the documents of a row in order, 0 for padding. No position sees another segment.
    row_ids     where each row came from, for error messages.
    """

    tokens_BT: np.ndarray
    mask_BT: np.ndarray
    segments_BT: np.ndarray
    row_ids: tuple[str, ...]

    @property
    def targets(self) -> int:
        return int(self.mask_BT.sum())


class Batches(Protocol):
    """An endless sequence in which a batch is a function of (seed, cursor), so that resuming is a seek."""

    cursor: int

    def next(self) -> Batch: ...

    def epochs(self) -> Mapping[str, float]:
        """How often each source has been gone through up to the cursor."""


@dataclass(frozen=True)
class Ledger:
    """Every count of the data path, by name.

    `digest` identifies all the text, `valid_digest` the validation tokens: losses are comparable where it is equal.
    """

    counts: Mapping[str, float]
    digest: str
    valid_digest: str
    source_digests: Mapping[str, str]


@dataclass(frozen=True)
class Data:
    """What data.build() returns. By source: fixed validation batches, the loss of a unigram model on them (nats a target), their bytes.

    `epoch_tokens` (targets in one pass over all sources in use) and `tokens_per_row` (mean targets) turn durations into steps.
    """

    train: Batches
    valid: Mapping[str, tuple[Batch, ...]]
    ledger: Ledger
    epoch_tokens: int
    tokens_per_row: float
    unigram: Mapping[str, float]
    valid_bytes: Mapping[str, int]


# ---- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """What a callback sees after a step. `metrics` holds all that this step emitted; `model` is live: look, don't touch."""

    step: int
    tokens: int
    metrics: Metrics
    history: History
    model: Any


Callback = Callable[[Snapshot], str | None]  # a dataclass; returns None or the reason to stop


@dataclass(frozen=True)
class Plan:
    """The run in steps. `lr(step)` is the learning rate of step 1, 2, … total_steps."""

    total_steps: int
    eval_every: int
    save_every: int
    log_every: int
    accumulate: int
    clip_norm: float
    seed: int
    lr: Callable[[int], float]


@dataclass(frozen=True)
class Result:
    """How training ended, and the saved checkpoint with the lowest validation loss (nats a token)."""

    step: int
    tokens: int
    best_step: int
    best_loss: float
    reason: str
    history: History


@dataclass(frozen=True)
class Lineage:
    """Where a model came from. `revision` is a commit, a model version or a digest of its content."""

    kind: str
    uri: str
    revision: str

    def __str__(self) -> str:
        return f"{self.kind} {self.uri} {self.revision}"


@dataclass(frozen=True)
class RunFacts:
    """What a dashboard says besides curves. `planned_lr` holds the learning rate of each step, from the formula."""

    title: str
    status: str
    total_steps: int
    config: Mapping[str, str] = field(default_factory=dict)
    planned_lr: Sequence[float] = ()
    best_step: int | None = None
    unigram_loss: float | None = None


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """The steps and values at which `key` was emitted."""
    points = [(step, metrics[key]) for step, metrics in history if key in metrics]
    return [step for step, _ in points], [value for _, value in points]

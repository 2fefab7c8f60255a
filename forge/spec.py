"""The frozen dataclasses that cross a border between packages. Imports no mlx, mlflow or hydra.

Letters in array names: B rows in a batch, T positions in a row.

Specs (…Spec) are what the YAML of a group must hold. They are pydantic dataclasses, so that one look reports every wrong
type, range and unknown key; forge.config does the reporting.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
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
Share = Annotated[float, Field(ge=0, le=1)]
OverLength = Literal["error", "drop", "split", "truncate_left", "truncate_right"]
Mask = Literal["all", "assistant", "last"]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Metrics = Mapping[str, float]
History = Sequence[tuple[int, Metrics]]  # (step, what was emitted at it), in order; a step may stand more than once
Emit = Callable[[Metrics, int], None]  # after a resume, steps that were emitted before come once more
Texts = Callable[[], Iterator[str]]
Fetch = Callable[[str], tuple[Path, str]]  # a registered model's uri -> its folder and its version

# ---- configuration ----------------------------------------------------------------------------------------------------


@checked(frozen=True, config=_STRICT)
class SourceSpec:
    """One named source of rows. `weight` is its share of the training tokens, relative to the other sources'.

    `max_epochs`: after so many passes the other sources go on without it. `over_length`: what becomes of a row with more tokens
    than fit; truncate_right keeps its beginning.
    """

    source: dict[str, Any]
    weight: Annotated[float, Field(ge=0)] = 1.0
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    over_length: OverLength = "split"


@checked(frozen=True, config=_STRICT)
class NearSpec:
    """Rows whose word shingles (`shingle` words) overlap by `threshold` (Jaccard) or more count as one; `permutations` of MinHash tell."""

    threshold: Annotated[float, Field(gt=0, le=1)]
    permutations: Annotated[int, Field(ge=16, le=1024)]
    shingle: Annotated[int, Field(ge=1, le=20)]


@checked(frozen=True, config=_STRICT)
class LimitsSpec:
    """What a source may come to before the run is stopped; null: no limit. Shares are of rows, but of tokens for `cut_share`,
    and of positions for `padding_share`. `epochs`: passes over the source in the whole run."""

    bad_share: Share | None = None
    dropped_share: Share | None = None
    duplicate_share: Share | None = None
    cut_share: Share | None = None
    padding_share: Share | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None


@checked(frozen=True, config=_STRICT)
class DataSpec:
    """`sequence_length`: positions (tokens) that the model sees at once. `valid_fraction`, `test_fraction`: shares of the rows kept aside.

    `split_seed` decides which; it is apart from the run's seed, so that runs with other seeds are compared on the same tokens.
    `mask`: the turns of a conversation that are learnt from. `template`: a chat template in place of the tokenizer's own.
    `packing` auto: several documents a row where the model can keep them apart, else rows of like length.
    `cache_gb`: how large tokenised data may grow on disk before what was used longest ago is removed.
    """

    sources: dict[str, SourceSpec]
    sequence_length: Annotated[int, Field(ge=8)]
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**32)]
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mask: Mask = "assistant"
    template: str | None = None
    bad_rows: Literal["error", "skip"] = "error"
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    near_duplicates: NearSpec | None = None
    packing: Literal["auto", "pack", "bucket"] = "auto"
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    cache_gb: Annotated[float, Field(gt=0)] = 20.0
    path: str | None = None

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "DataSpec":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction and test_fraction come to {self.valid_fraction + self.test_fraction:g}, which leaves no row to train on"
            )
        return self


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


Message = Mapping[str, Any]  # role (system, user, assistant, tool), content, and what templates know besides: tool_calls, name, …


@dataclass(frozen=True)
class Conversation:
    """One row of turns. `tools` are the functions that the assistant may call, as JSON schemas. Equal turns and tools are duplicates."""

    id: str
    messages: tuple[Message, ...]
    origin: str
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """What is said, without roles: what filters look at."""
        return "\n\n".join(m["content"] for m in self.messages if m.get("content"))

    @property
    def key(self) -> str:
        return json.dumps([self.messages, self.tools], sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Preference:
    """One row of a prompt with answers that were preferred or not; one of the two may be empty (a labelled answer, as KTO takes it)."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: str

    @property
    def text(self) -> str:
        return "\n\n".join(m["content"] for m in (*self.prompt, *self.chosen, *self.rejected) if m.get("content"))

    @property
    def key(self) -> str:
        return json.dumps([self.prompt, self.chosen, self.rejected], sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used. `origin` is file and line, `reason` a short code for counting, `detail` what is wrong and what to do."""

    origin: str
    reason: str
    detail: str


Row = Document | Conversation | Preference | BadRow  # what sources yield, each row in the order of the files


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    tokens_BT   int32. Padding is 0.
    mask_BT     bool. True where the token is a target: a loss is taken for predicting it from what stands before it.
    segments_BT int32. 1, 2, … for the documents of a row in order, 0 for padding. No position sees another segment.
    row_ids     where each row came from, for error messages.
    sources     each row's source.
    """

    tokens_BT: np.ndarray
    mask_BT: np.ndarray
    segments_BT: np.ndarray
    row_ids: tuple[str, ...]
    sources: tuple[str, ...] = ()

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
    `examples`: by source, some of the rows that were not used: (where, reason, detail). `packing` says how rows are made, and why.
    """

    counts: Mapping[str, float]
    digest: str
    valid_digest: str
    source_digests: Mapping[str, str]
    tokenizer_digest: str = ""
    template_digest: str = ""
    examples: Mapping[str, Sequence[tuple[str, str, str]]] = field(default_factory=dict)
    packing: str = ""


@dataclass(frozen=True)
class Data:
    """What data.build() returns. By source: fixed validation and test batches, the loss of a unigram model on validation (nats a
    target), its bytes, and the lengths in tokens of the rows in use.

    `epoch_tokens` (targets in one pass over all sources in use) and `tokens_per_row` (mean targets) turn durations into steps.
    `max_batches`: where every source has a cap on its epochs, the batches until all are used up.
    """

    train: Batches
    valid: Mapping[str, tuple[Batch, ...]]
    ledger: Ledger
    epoch_tokens: int
    tokens_per_row: float
    unigram: Mapping[str, float]
    valid_bytes: Mapping[str, int]
    test: Mapping[str, tuple[Batch, ...]] = field(default_factory=dict)
    lengths: Mapping[str, np.ndarray] = field(default_factory=dict)
    max_batches: int | None = None


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

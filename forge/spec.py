"""The frozen dataclasses that cross a border between packages while a run is made. Imports no mlx, mlflow or hydra.

Letters in array names: B rows in a batch, T positions in a row. What a configuration holds is in forge.settings.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Metrics = Mapping[str, float]
History = Sequence[tuple[int, Metrics]]  # (step, what was emitted at it), in order; a step may stand more than once
Emit = Callable[[Metrics, int], None]  # after a resume, steps that were emitted before come once more
Texts = Callable[[], Iterator[str]]
Fetch = Callable[[str], tuple[Path, str]]  # a registered model's uri -> its folder and its version

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

    def take(self, rows: Sequence[int] | np.ndarray, width: int | None = None) -> "Batch":
        """These rows, in this order, and of each the first `width` positions."""
        arrays = {name: getattr(self, name)[rows, :width] for name in ("tokens_BT", "mask_BT", "segments_BT")}
        row_ids, sources = (tuple(of[row] for row in rows) if of else () for of in (self.row_ids, self.sources))
        return replace(self, **arrays, row_ids=row_ids, sources=sources)


class Batches(Protocol):
    """An endless sequence in which a batch is a function of (seed, cursor), so that resuming is a seek.

    epochs() says the same whatever the cursor is, and may be asked while another thread is in next().
    """

    cursor: int

    def next(self) -> Batch: ...

    def epochs(self, cursor: int) -> Mapping[str, float]:
        """How often each source has been gone through before that batch."""


@dataclass(frozen=True)
class Packing:
    """Whether a row of a batch holds several documents, and why; if not, rows of like length come together."""

    packed: bool
    why: str

    def __str__(self) -> str:
        return f"{'packed' if self.packed else 'bucketed by length'}: {self.why}"


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
    """What data.build() returns.

    By source: `valid`, the batches of each evaluation, `valid_full` and `test`, those of the end, all fixed and each built when it is
    asked for; the UTF-8 bytes that their targets spell; the loss of a unigram model on `valid` (nats a target); the lengths in tokens of
    the training rows. `valid` is a part of `valid_full`.
    `unweighted`: sources of weight 0, which are measured each under its own name and count in nothing that sources have together.
    `full_digest` is to `valid_full` what the ledger's valid_digest is to `valid`.
    `epoch_tokens` (targets in one pass over all sources in use) and `tokens_per_row` (mean targets) turn durations into steps.
    `max_batches`: where every source has a cap on its epochs, the batches until all are used up.
    """

    train: Batches
    valid: Mapping[str, Sequence[Batch]]
    ledger: Ledger
    epoch_tokens: int
    tokens_per_row: float
    unigram: Mapping[str, float]
    valid_bytes: Mapping[str, int]
    valid_full: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    full_bytes: Mapping[str, int] = field(default_factory=dict)
    full_digest: str = ""
    test: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    test_bytes: Mapping[str, int] = field(default_factory=dict)
    unweighted: frozenset[str] = frozenset()
    lengths: Mapping[str, np.ndarray] = field(default_factory=dict)
    max_batches: int | None = None


# ---- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """What a callback sees after a step. `metrics` holds all that this step emitted; `model` is live: look, don't touch.

    `seconds`: how long the run has trained, all its lives together. `rows`: where the step's rows came from. `total_steps`: the plan's.
    """

    step: int
    tokens: int
    metrics: Metrics
    history: History
    model: Any
    seconds: float = 0.0
    rows: tuple[str, ...] = ()
    total_steps: int = 0


@dataclass(frozen=True)
class Scores:
    """One evaluation. `rows`: the summed loss (nats) and targets of each validation row that counts in val/loss, in a fixed order, so that
    two can be paired."""

    metrics: Metrics
    rows: Sequence[tuple[float, int]]


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
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Result:
    """How training ended, and the checkpoint that was chosen: its validation loss (nats a token), and why in words."""

    step: int
    tokens: int
    best_step: int
    best_loss: float
    best_why: str
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
    """What a dashboard, a report and recommendations know besides curves. `planned_lr`: the learning rate of each step, from the formula.

    `config`: the few settings to show; `settings`: all of them, by dotted name. `saved`: step and validation loss (nats a token) of each
    checkpoint that is kept; `best_why`: why the best is it. `memory_gib`: what the machine, or the run's limit, leaves MLX.
    """

    title: str
    status: str
    total_steps: int
    config: Mapping[str, str] = field(default_factory=dict)
    planned_lr: Sequence[float] = ()
    best_step: int | None = None
    unigram_loss: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    saved: Sequence[tuple[int, float]] = ()
    memory_gib: float | None = None
    best_why: str = ""


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """The steps and values at which `key` was emitted."""
    points = [(step, metrics[key]) for step, metrics in history if key in metrics]
    return [step for step, _ in points], [value for _, value in points]

"""What the YAML of each group must hold. Pydantic dataclasses, so that one look reports every wrong type, range and unknown key.

forge.config does the reporting. Imports no mlx, mlflow or hydra.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked

from forge.values import (
    Cadence,
    Count,
    Duration,
    Length,
    Mask,
    MemoryLimit,
    ModelName,
    NotNegative,
    OverLength,
    Part,
    Positive,
    Recipes,
    Role,
    Share,
)

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@checked(frozen=True, config=_STRICT)
class SourceSpec:
    """One named source of rows. `weight` is its share of the training tokens, relative to the other sources'.

    `max_epochs`: after so many passes the other sources go on without it. `over_length`: what becomes of a row with more tokens
    than fit; truncate_right keeps its beginning.
    """

    source: dict[str, Any]
    weight: NotNegative = 1.0
    max_epochs: Positive | None = None
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
    epochs: Positive | None = None


@checked(frozen=True, config=_STRICT)
class DataSpec:
    """`sequence_length`: positions (tokens) that the model sees at once. `valid_fraction`, `test_fraction`: shares of the rows kept aside.

    `split_seed` decides which; it is apart from the run's seed, so that runs with other seeds are compared on the same tokens.
    `mask`: the turns of a conversation that are learnt from. `template`: a chat template in place of the tokenizer's own.
    `packing` auto: several documents a row where the model can keep them apart, else rows of like length.
    `cache_gb`: how large tokenised data may grow on disk before what was used longest ago is removed.
    """

    sources: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], SourceSpec]
    sequence_length: Annotated[int, Field(ge=8)]
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**32)]
    test_fraction: Part = 0.0
    mask: Mask = "assistant"
    template: str | None = None
    bad_rows: Literal["error", "skip"] = "error"
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    near_duplicates: NearSpec | None = None
    packing: Literal["auto", "pack", "bucket"] = "auto"
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    cache_gb: Positive = 20.0
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
    """`shape` maps the run's progress to a multiplier of the peak learning rate; the engine adds warm-up and cool-down.

    `cooldown_shape`: how the rate falls to 0, in equal parts or as 1 - √x, quick at first.
    """

    shape: dict[str, Any]
    warmup: Duration
    cooldown: Duration
    cooldown_shape: Literal["linear", "1-sqrt"] = "linear"


@checked(frozen=True, config=_STRICT)
class TrainerSpec:
    """What the loop needs. Durations are text with a unit (forge.units).

    `dtype`: what the model computes in; auto is fp32 on a CPU, else the base's own. `master_weights`: where that is a 16-bit type, updates
    are added to an fp32 copy. `ema`: the decay of an average of the weights, which then is what gets evaluated and saved; null: none.
    `no_decay`, `lr_factors`: by what a weight is (Role), the ones that weight decay leaves alone, and multipliers of the learning rate.
    `memory_limit`: what MLX may use, such as "12 GB" or "80%" of the machine's; null: all.
    """

    budget: Length
    micro_batch: Count
    accumulate: Count
    clip_norm: Positive
    eval_every: Cadence
    save_every: Cadence
    log_every: Count
    keep: Annotated[int, Field(ge=0)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    master_weights: bool = True
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    no_decay: list[Role] = field(default_factory=lambda: ["norm", "bias", "embedding"])
    lr_factors: dict[Role, NotNegative] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    memory_limit: MemoryLimit | None = None


@checked(frozen=True, config=_STRICT)
class HarnessSpec:
    """Tasks of EleutherAI's lm-evaluation-harness, by name; none: it is not run. `include_path`: a folder of one's own tasks.

    `limit`: at most so many rows a task; `fewshot`: how many examples go before each, null: as the task says. `chat`: put what is asked
    into the model's chat template.
    """

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    limit: Count | None = None
    fewshot: Annotated[int, Field(ge=0)] | None = None
    chat: bool = False


@checked(frozen=True, config=_STRICT)
class EvaluationSpec:
    """`max_tokens`: at most that many targets a source for each validation during training, always the same ones.

    `full_tokens`: the same for the base before training, the best checkpoint after it, and the test; null: all there are.
    `answers`: how many held-out questions of a source the base and the best checkpoint answer, to be scored; `samples`: how many at each
    evaluation, to be read. 0: none. `max_new_tokens`: of an answer. `retention`: ask the instructions of forge.evaluation.instructions too.
    """

    max_tokens: Count
    full_tokens: Count | None = None
    answers: Annotated[int, Field(ge=0)] = 0
    samples: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: Count = 128
    retention: bool = False
    harness: HarnessSpec = field(default_factory=HarnessSpec)


@checked(frozen=True, config=_STRICT)
class ReleaseSpec:
    """Where a model is registered, how it is quantised, and what it has to show for an alias: else the gate refuses it.

    `alias` goes to what is better on the same tokens, `challenger` to the newest that passed the gate and is not.
    `max_logit_difference`: how far the fused model's logits may lie from those of the evaluated one.
    `quantise`: recipes; each one's model is registered as NAME-RECIPE. `calibration_tokens`: of the training text, for awq, dwq, gptq and
    dynamic. `compared_tokens`: held-out targets at which two models' logits are held against each other.
    `max_kl`, `min_agreement`, `max_loss_rise`: a quantised model's divergence from the fused one (nats a token), the share of tokens at
    which both find the same one likeliest, and how far its validation loss may lie above the fused one's (nats a token).
    `max_regression`: how far the tuned model's validation loss may lie above the base's (nats a token).
    `answers`, `answer_tokens`: how many held-out questions and beginnings of a source are gone on from, and how far.
    `max_degenerate`: the share of these that may be empty, or one token for ever. `min_ended`: the share of answers that have to end by
    themselves, among those whose reference takes at most half of `answer_tokens`.
    `max_size_gb`: what the model may take on disk; null: no limit. A quantised one has to be smaller than the fused one in any case.
    """

    enabled: bool
    name: ModelName
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    max_logit_difference: Positive
    challenger: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")] = "challenger"
    quantise: Recipes = field(default_factory=list)
    calibration_tokens: Annotated[int, Field(ge=1024)] = 65536
    compared_tokens: Count = 2048
    max_kl: Positive = 0.2
    min_agreement: Share = 0.8
    max_loss_rise: NotNegative = 0.1
    max_regression: NotNegative = 0.01
    answers: Count = 8
    answer_tokens: Annotated[int, Field(ge=16)] = 128
    max_degenerate: Share = 0.5
    min_ended: Share = 0.5
    max_size_gb: Positive | None = None

    @model_validator(mode="after")
    def _has_two_aliases(self) -> "ReleaseSpec":
        if self.alias == self.challenger:
            raise ValueError(f"alias and challenger are both {self.alias!r}: one is for the best version, the other for the newest")
        return self


@checked(frozen=True, config=_STRICT)
class TrackingSpec:
    """`uri` null: MLFLOW_TRACKING_URI, else sqlite beside mlruns/. `parent_run` is set by a sweep for its children.

    `system_metrics`: seconds between looks at processor, memory, disk, network and NVIDIA GPUs; null: none. `tensorboard`: write the
    metrics to mlruns/tensorboard too.
    """

    uri: str | None
    experiment: str
    run_name: str | None
    parent_run: str | None
    dashboard: bool
    tags: dict[str, str]
    system_metrics: Annotated[float, Field(ge=1)] | None = 10.0
    tensorboard: bool = False


@checked(frozen=True, config=_STRICT)
class PruningSpec:
    """Which jobs of a search end early. `startup`: so many come to their end before any is cut short. `warmup`: the share of its budget
    that each gets; halving compares there, at `factor` times it and so on, and lets the best 1/`factor` of all go on.
    """

    startup: Annotated[int, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0.01, lt=1)]
    factor: Annotated[int, Field(ge=2)]


@checked(frozen=True, config=_STRICT)
class SweepSpec:
    """`jobs`: how many children at once. `release_winner`: register the best child when all are done.

    `again`: a sweep that came to its end is run anew. `sampler`: what finds the jobs in the space that -m gives; null: -m lists them.
    `trials`: how many it finds; null: all of a grid. `startup`: so many are random before tpe learns from them. `seed` decides which.
    `pruner`: how jobs are compared while they train, so that bad ones end early.
    """

    jobs: Count
    release_winner: bool
    again: bool
    sampler: Literal["tpe", "random", "grid"] | None
    trials: Count | None = None
    startup: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    pruner: Literal["median", "halving", "none"] = "none"
    pruning: PruningSpec | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> "SweepSpec":
        if self.sampler in ("tpe", "random") and self.trials is None:
            raise ValueError(f"sampler {self.sampler} needs trials, the number of jobs; a grid alone ends by itself")
        if self.pruner != "none" and self.pruning is None:
            raise ValueError(f"pruner {self.pruner} needs pruning: startup, warmup and factor, as in conf/sweep/tpe.yaml")
        return self

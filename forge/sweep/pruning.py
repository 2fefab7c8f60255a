"""Ends a job of a search that does worse than others did with the same share of their budgets.

Shares, in whole percent, make jobs with other batch sizes and lengths comparable. An evaluation costs one look into the search's journal,
some milliseconds.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from forge.errors import ConfigError
from forge.spec import Snapshot
from forge.sweep.study import PRUNED, library, storage

if TYPE_CHECKING:
    import optuna


@dataclass
class Pruning:
    """Reports val/loss to trial number `trial` of the study in `journal`, and stops where the rule says so.

    median: its lowest loss so far is above the median of what finished trials had at that share. halving: its loss is not among the
    lowest 1/`factor` of all trials at the shares `warmup`, `factor` · `warmup`, … (asynchronous successive halving, arXiv:1810.05934).
    Not before `startup` trials have finished. `warmup` is a share of the budget.
    """

    # Not in vars(), which checkpoints save and give back: a job that goes on may be told of another journal or trial.
    __slots__ = ("__dict__", "factor", "journal", "rule", "startup", "study", "trial", "warmup")

    journal: str
    study: str
    trial: Annotated[int, Field(ge=0)]
    rule: Literal["median", "halving"]
    startup: Annotated[int, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0.01, lt=1)]
    factor: Annotated[int, Field(ge=2)]

    def __call__(self, snapshot: Snapshot) -> str | None:
        """Raises ConfigError where there is no such study."""
        loss = snapshot.metrics.get("val/loss")
        if loss is None:
            return None
        trials = _Trials(Path(self.journal), self.study, self.trial)
        before, percent = trials.own(), round(100 * snapshot.step / snapshot.total_steps)
        if PRUNED in before.user_attrs:  # the job was killed before it could save
            return str(before.user_attrs[PRUNED])
        if before.state.is_finished() or percent in before.intermediate_values:
            return None
        trials.report(percent, loss)
        reason = None if snapshot.step >= snapshot.total_steps else self._reason(trials, percent)
        if reason:
            trials.mark(reason)
        return reason

    def _reason(self, trials: "_Trials", percent: int) -> str | None:
        optuna = library()
        begin, own = max(1, round(100 * self.warmup)), trials.own()
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=begin)
            if self.rule == "median"
            else optuna.pruners.SuccessiveHalvingPruner(min_resource=begin, reduction_factor=self.factor)
        )
        worse = pruner.prune(trials.study, own)  # halving notes what it compared, so it is asked during startup too
        finished = trials.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not worse or len(finished) < self.startup:
            return None
        if self.rule == "median":
            there = [trial.intermediate_values[percent] for trial in finished if percent in trial.intermediate_values]
            lowest = min(own.intermediate_values.values())
            others = f"is above {median(there):.4f}, the median of {len(there)} that finished"
        else:
            there = rung(trials.study.get_trials(deepcopy=False), self.trial)
            lowest = own.intermediate_values[percent]
            others = f"is not among the lowest 1/{self.factor} of {len(there)}, of which the best had {min(there):.4f}"
        return f"pruned: at {percent} % of the budget val/loss {lowest:.4f} {others}"


class _Trials:
    """One study, seen from one of its trials."""

    def __init__(self, journal: Path, name: str, number: int):
        if not journal.is_file():
            raise ConfigError(f"callbacks.pruning.journal: there is no {journal}; the search that began this job kept its notes there")
        self._storage = storage(journal)
        try:
            self.study = library().load_study(study_name=name, storage=self._storage)
            self._id = self._storage.get_trial_id_from_study_id_trial_number(self._storage.get_study_id_from_name(name), number)
        except KeyError as error:
            raise ConfigError(f"callbacks.pruning: {journal} holds no trial {number} of {name!r}") from error

    def own(self) -> "optuna.trial.FrozenTrial":
        return self._storage.get_trial(self._id)

    def report(self, percent: int, loss: float) -> None:
        self._storage.set_trial_intermediate_value(self._id, percent, loss)

    def mark(self, reason: str) -> None:
        self._storage.set_trial_user_attr(self._id, PRUNED, reason)


def rung(trials: "list[optuna.trial.FrozenTrial]", number: int) -> list[float]:
    """The losses that halving compared the trial's last one with, its own among them."""
    keys = [f"completed_rung_{level}" for level in range(100)]
    last = [key for key in keys if key in trials[number].system_attrs][-1]
    return [trial.system_attrs[last] for trial in trials if last in trial.system_attrs]

"""A search that learns from the jobs that ended: optuna's TPE, its random sampling, or a grid in random order. A journal file keeps it.

What is proposed is a function of the seed and of what was told before, so that a sweep which was cut short proposes the same when it goes
on. Importing optuna takes 0.2 s, and happens when a search starts.
"""

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.errors import ConfigError
from forge.settings import SweepSpec
from forge.sweep.search import Proposal, quoted
from forge.sweep.space import Dimension, Interval, Parameter, Space, Values

if TYPE_CHECKING:
    import optuna

_TRIES = 10  # at a job that was not proposed before
_FEWEST = 4  # finished jobs that tell which keys matter
_JOB, _FAILED, PRUNED = "job", "failed", "pruned"  # attributes of trials: the job's number, and reasons


class Optimised:
    """A Search. Jobs that were proposed and never told of are proposed again first, under their numbers; so are those that had failed.

    A job that failed counts as a bad one, so that the search turns away from what diverges or does not fit. A journal bears one Optimised
    at a time; the jobs themselves write to it too.
    """

    def __init__(self, space: Space, asked: SweepSpec, journal: Path, name: str) -> None:
        """`name`: of the study in the journal; another space needs another. Raises ConfigError where a grid has no end."""
        optuna = library()
        self._space, self._asked, self._journal, self._name = space, asked, journal.resolve(), name
        if asked.sampler == "grid":
            space.require_finite()
        self._trials = asked.trials or space.size or 0
        self._distributions = {key: distribution(of) for key, of in zip(space.keys, space.dimensions, strict=True)}
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        _mend(self._journal)
        self._storage = storage(self._journal)
        self._study = optuna.create_study(study_name=name, storage=self._storage, direction="minimize", load_if_exists=True)
        self._left = self._left_over()
        self._dry = False

    def ask(self) -> Proposal | None:
        if self._left:
            return self._proposal(*self._left.pop(0))
        job = 1 + max(self._jobs(), default=-1)
        trial = None if self._dry or job >= self._trials else self._fresh()
        if trial is None:
            self._dry = True  # each look for more adds to the journal; what ends meanwhile may lead elsewhere
            return None
        trial.set_user_attr(_JOB, job)
        return self._proposal(job, trial.number)

    def tell(self, number: int, loss: float | None, why: str | None) -> None:
        """Not of a job that is to go on when the sweep does."""
        trial = self._jobs()[number]
        if trial.state.is_finished():
            return
        self._dry = False
        if loss is None:
            self._mark(trial, _FAILED, why or "unknown")
        if loss is None or PRUNED in trial.user_attrs:
            self._study.tell(trial.number, state=library().trial.TrialState.PRUNED)
        else:
            self._study.tell(trial.number, loss)

    def importances(self) -> dict[str, float]:
        """Each key's share in what made the best jobs good (PED-ANOVA, arXiv:2304.10255); empty before enough of them have ended."""
        optuna = library()
        finished = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        telling = len(finished) >= _FEWEST and len({trial.value for trial in finished}) > 1
        return optuna.importance.get_param_importances(self._study) if telling else {}

    def _jobs(self) -> dict[int, "optuna.trial.FrozenTrial"]:
        """The last trial of each."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs[_JOB]: trial for trial in trials if _JOB in trial.user_attrs}

    def _left_over(self) -> list[tuple[int, int]]:
        """Job and trial of those to propose again."""
        TrialState = library().trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _JOB not in trial.user_attrs:  # its parent died while it was made
                self._study.tell(trial.number, state=TrialState.FAIL)
        jobs = sorted(self._jobs().items())
        running = [(job, trial.number) for job, trial in jobs if not trial.state.is_finished()]
        return running + [(job, self._once_more(job, trial)) for job, trial in jobs if _FAILED in trial.user_attrs]

    def _once_more(self, job: int, trial: "optuna.trial.FrozenTrial") -> int:
        again = self._given(trial.params)
        again.set_user_attr(_JOB, job)
        return again.number

    def _fresh(self) -> "optuna.Trial | None":
        """A trial with parameters that none had before; None where there are no others."""
        known = {self._space.swept(trial.params) for trial in self._jobs().values()}
        if len(known) == self._space.size:
            return None
        if self._asked.sampler != "grid":
            for _ in range(_TRIES):
                self._study.sampler = self._sampler()
                trial = self._study.ask(self._distributions)
                if self._space.swept(trial.params) not in known:
                    return trial
                self._study.tell(trial.number, state=library().trial.TrialState.FAIL)  # what it would say is known
        size = self._space.size or 0
        for number in random.Random(self._seed()).sample(range(size), min(size, len(known) + 1)):  # one of so many is new
            if self._space.swept(point := self._space.point(number)) not in known:
                return self._given(point)
        return None

    def _given(self, parameters: Mapping[str, Parameter]) -> "optuna.Trial":
        self._study.enqueue_trial(dict(parameters))
        return self._study.ask(self._distributions)

    def _sampler(self) -> "optuna.samplers.BaseSampler":
        samplers = library().samplers
        if self._asked.sampler == "tpe":
            return samplers.TPESampler(seed=self._seed(), n_startup_trials=self._asked.startup)
        return samplers.RandomSampler(seed=self._seed())

    def _seed(self) -> int:
        """Of the next trial alone."""
        return int(np.random.SeedSequence([self._asked.seed, len(self._study.get_trials(deepcopy=False))]).generate_state(1)[0])

    def _mark(self, trial: "optuna.trial.FrozenTrial", key: str, value: str) -> None:
        study = self._storage.get_study_id_from_name(self._name)
        self._storage.set_trial_user_attr(self._storage.get_trial_id_from_study_id_trial_number(study, trial.number), key, value)

    def _proposal(self, job: int, trial: int) -> Proposal:
        swept = self._space.swept(self._study.trials[trial].params)
        return Proposal(job, (*self._space.fixed, *swept), swept, self._own(trial))

    def _own(self, trial: int) -> tuple[str, ...]:
        """Where the job reports to."""
        if self._asked.pruner == "none" or self._asked.pruning is None:
            return ()
        knobs: dict[str, Any] = {
            "_target_": "forge.sweep.pruning.Pruning",
            "journal": quoted(str(self._journal)),
            "study": quoted(self._name),
            "trial": trial,
            "rule": self._asked.pruner,
            "startup": self._asked.pruning.startup,
            "warmup": self._asked.pruning.warmup,
            "factor": self._asked.pruning.factor,
        }
        return ("++callbacks.pruning={" + ",".join(f"{key}:{value}" for key, value in knobs.items()) + "}",)


def library() -> Any:
    """optuna, which says nothing but warnings. Raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sweep.sampler: a search needs optuna: pip install 'forge-mlx[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(journal: Path) -> "optuna.storages.JournalStorage":
    """Safe between processes."""
    journals = library().storages.journal
    return library().storages.JournalStorage(journals.JournalFileBackend(str(journal)))


def _mend(journal: Path) -> None:
    """Take away the end of a line that a full disk or a power cut left; optuna could read nothing that is written after it."""
    if journal.is_file() and not (text := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)


def distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    distributions = library().distributions
    match dimension:
        case Values(texts=texts, ordered=True):
            return distributions.IntDistribution(0, len(texts) - 1)
        case Values(texts=texts):
            return distributions.CategoricalDistribution(range(len(texts)))
        case Interval(low=low, high=high, log=log, whole=True):
            return distributions.IntDistribution(int(low), int(high), log=log)
        case Interval(low=low, high=high, log=log):
            return distributions.FloatDistribution(low, high, log=log)

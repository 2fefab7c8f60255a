"""Searches: what they propose, what they learn, and that nothing is lost when they are cut short. SWP-4."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from forge import binding
from forge.errors import ConfigError
from forge.settings import PruningSpec, SweepSpec
from forge.sweep import study
from forge.sweep.pruning import Pruning
from forge.sweep.search import Proposal
from forge.sweep.space import read

LR = "optimizer.lr=tag(log, interval(1e-5, 1e-1))"


def search(folder: Path, *overrides: str, **settings: object) -> study.Optimised:
    asked = SweepSpec(**{"jobs": 1, "release_winner": True, "again": False, "sampler": "tpe", "trials": 8} | settings)  # type: ignore[arg-type]
    return study.Optimised(
        read(OverridesParser.create().parse_overrides(list(overrides))), asked, folder / "notes" / "study.journal", "one"
    )


def journalled(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="one", storage=study.storage(folder / "notes" / "study.journal")).trials


def number(proposal: Proposal, key: str) -> float:
    return float(dict(override.split("=") for override in proposal.swept)[key])


def asked(found: study.Optimised) -> Proposal:
    proposal = found.ask()
    assert proposal is not None
    return proposal


def off(proposal: Proposal) -> float:
    """A loss that is lowest at lr 1e-3."""
    return 2 + (math.log10(number(proposal, "optimizer.lr")) + 3) ** 2


def all_of(found: study.Optimised, loss: Callable[[Proposal], float | None]) -> list[Proposal]:
    proposals = []
    while proposal := found.ask():
        proposals.append(proposal)
        value = loss(proposal)
        found.tell(proposal.number, value, None if value is not None else "planted")
    return proposals


def test_a_grid_proposes_each_job_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        found = search(tmp_path / str(number), "seed=0", "a=1,2,3", "b=x,y", sampler="grid", trials=None, seed=seed)
        orders.append([proposal.swept for proposal in all_of(found, lambda _: 1.0)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [(f"a={a}", f"b={b}") for a in "123" for b in "xy"]


def test_jobs_have_the_fixed_overrides_and_numbers_without_gaps(tmp_path: Path) -> None:
    found = search(tmp_path, "seed=7", "+experiment=quickstart", "a=1,2", "b=1,2", sampler="random", trials=9)
    proposals = all_of(found, lambda _: 1.0)
    assert [proposal.number for proposal in proposals] == [0, 1, 2, 3]  # there are no more than four
    assert all(proposal.overrides == ("seed=7", "+experiment=quickstart", *proposal.swept) for proposal in proposals)


def test_numbers_have_an_order_and_words_have_none() -> None:
    numbers, words = read(OverridesParser.create().parse_overrides(["a=8,2,4", "b=x,y"])).dimensions
    assert study.distribution(numbers) == optuna.distributions.IntDistribution(0, 2)
    assert study.distribution(words) == optuna.distributions.CategoricalDistribution((0, 1))


def test_no_parameters_are_trained_twice(tmp_path: Path) -> None:
    proposals = all_of(search(tmp_path, "a=range(6)", "b=1,2", trials=50, startup=3), lambda p: abs(number(p, "a") - 2))
    assert len({proposal.swept for proposal in proposals}) == len(proposals) == 12


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sweep_that_is_killed_at_each_job_proposes_what_one_in_peace_does(tmp_path: Path, sampler: str) -> None:
    space = (LR, "a=1,2,4,8", "b=x,y,z")
    whole = [(proposal.number, proposal.swept) for proposal in all_of(search(tmp_path / "peace", *space, sampler=sampler), off)]
    assert len(set(whole)) == len(whole) == 8
    pieces = []
    for _ in whole:
        asked(search(tmp_path / "war", *space, sampler=sampler))  # and dies before the job ends
        heir = search(tmp_path / "war", *space, sampler=sampler)
        again = asked(heir)
        pieces.append((again.number, again.swept))
        heir.tell(again.number, off(again), None)
    assert pieces == whole
    assert search(tmp_path / "war", *space, sampler=sampler).ask() is None


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    few = all_of(search(tmp_path, LR, trials=5), off)
    more = all_of(search(tmp_path, LR, trials=8), off)
    assert [proposal.number for proposal in more] == [5, 6, 7]
    assert len({proposal.swept for proposal in few + more}) == 8


@pytest.mark.parametrize("override", ["a=1,2,3", "a=tag(int, interval(1,3))"])
def test_where_there_are_no_other_jobs_asking_again_and_again_writes_nothing(tmp_path: Path, override: str) -> None:
    """A parent asks four times a second while the last jobs run; each time ten trials came on top."""
    found = search(tmp_path, override, trials=20)
    first, *_ = asked(found), asked(found), asked(found)
    assert found.ask() is None
    before = len(journalled(tmp_path))
    assert {found.ask() for _ in range(5)} == {None} and len(journalled(tmp_path)) == before
    found.tell(first.number, 2.0, None)
    assert found.ask() is None and len(journalled(tmp_path)) <= before + 10


def test_tpe_learns_where_it_is_good_and_random_does_not(tmp_path: Path) -> None:
    late = {}
    for sampler in ("tpe", "random"):
        proposals = all_of(search(tmp_path / sampler, LR, sampler=sampler, trials=25, startup=6), off)
        late[sampler] = median(off(proposal) for proposal in proposals[15:])
    assert late["tpe"] < 2.5 < 2.7 < late["random"]  # of random ones, half are more than a decade off


def test_tpe_turns_away_from_what_fails(tmp_path: Path) -> None:
    """Above lr 1e-3, half of the space, every job diverges; below it all are as good."""

    def loss(proposal: Proposal) -> float | None:
        return None if number(proposal, "optimizer.lr") > 1e-3 else 2.0

    proposals = all_of(search(tmp_path, LR, trials=30, startup=6), loss)
    assert sum(loss(proposal) is None for proposal in proposals[15:]) < 7  # were failures left out of account, all would fail


def test_a_failed_job_is_proposed_again_by_the_next_sweep_alone(tmp_path: Path) -> None:
    found = search(tmp_path, LR, trials=3)
    first, second, third = asked(found), asked(found), asked(found)
    assert found.ask() is None
    found.tell(second.number, None, "out of memory")
    found.tell(third.number, 2.5, None)
    assert found.ask() is None
    heir = search(tmp_path, LR, trials=3)
    assert [heir.ask(), heir.ask(), heir.ask()] == [first, second, None]
    heir.tell(first.number, 2.25, None)
    heir.tell(second.number, None, "out of memory once more")
    last = {trial.user_attrs["job"]: (trial.value, trial.user_attrs.get("failed")) for trial in journalled(tmp_path)}
    assert last == {0: (2.25, None), 1: (None, "out of memory once more"), 2: (2.5, None)}


def test_a_trial_that_its_parent_left_half_made_counts_as_none(tmp_path: Path) -> None:
    found = search(tmp_path, LR)
    found.tell(asked(found).number, 2.0, None)
    kept = optuna.load_study(study_name="one", storage=study.storage(tmp_path / "notes" / "study.journal"))
    half = kept.ask().number
    assert asked(search(tmp_path, LR)).number == 1
    assert kept.trials[half].state == optuna.trial.TrialState.FAIL  # else tpe would keep away from it


def test_a_journal_whose_last_line_was_cut_is_read_and_goes_on(tmp_path: Path) -> None:
    found = search(tmp_path, LR)
    first = asked(found)
    found.tell(first.number, 2.0, None)
    with (tmp_path / "notes" / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_')
    heir = search(tmp_path, LR)
    second = asked(heir)
    heir.tell(second.number, 2.1, None)
    assert [trial.value for trial in journalled(tmp_path)] == [2.0, 2.1]


def test_the_key_that_matters_has_the_importance(tmp_path: Path) -> None:
    found = search(tmp_path, LR, "trainer.micro_batch=4,8", sampler="random", trials=15)
    assert found.importances() == {}
    all_of(found, off)
    shares = found.importances()
    assert shares["optimizer.lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_equal_losses_show_no_importance(tmp_path: Path) -> None:
    found = search(tmp_path, LR, trials=6)
    all_of(found, lambda _: 2.0)
    assert found.importances() == {}


def test_jobs_report_to_the_journal_wherever_it_lies(tmp_path: Path) -> None:
    """The override is read by Hydra's parser and checked as a callback."""
    folder = tmp_path / "it's, a: {place}"
    rules = PruningSpec(startup=4, warmup=0.3, factor=2)
    proposal = asked(search(folder, LR, pruner="median", pruning=rules))
    assert proposal.swept == proposal.overrides  # the search says nothing about the experiment
    (override,) = OverridesParser.create().parse_overrides(list(proposal.own))
    problems = binding.Problems()
    build = binding.target(override.value(), "callbacks.pruning", problems)
    assert override.get_key_element() == "++callbacks.pruning" and not problems and build is not None
    callback = build()
    assert isinstance(callback, Pruning)
    assert (callback.journal, callback.trial, callback.rule) == (str(folder / "notes" / "study.journal"), 0, "median")
    assert (callback.study, callback.startup, callback.warmup, callback.factor) == ("one", 4, 0.3, 2)
    assert asked(search(tmp_path, LR)).own == ()


def test_without_optuna_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'forge-mlx\[search\]'"):
        search(tmp_path, LR)


@pytest.mark.parametrize(
    ("settings", "why"), [({"sampler": "random", "trials": None}, "random needs trials"), ({"pruner": "median"}, "median needs pruning")]
)
def test_settings_that_belong_together_are_asked_for(tmp_path: Path, settings: Mapping[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        search(tmp_path, LR, **settings)

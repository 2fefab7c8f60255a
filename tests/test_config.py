"""preflight(): composes every job of a command line and reports all that is wrong with them. CFG-1, CFG-2, CFG-5."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from forge.config import Config, check, identity
from forge.errors import ConfigError
from forge.jobs import Jobs, preflight, task_overrides
from forge.settings import TrainerSpec


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A root for results, which composing must leave empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("FORGE_HOME", str(folder))
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The user's own conf folder: an experiment that sweeps by itself and an optimizer."""
    for name, text in {
        "experiment/rates.yaml": "# @package _global_\nname: rates\nhydra: {sweeper: {params: {optimizer.lr: '1e-3,1e-4'}}}\n",
        "optimizer/plain.yaml": "_target_: mlx.optimizers.SGD\n_partial_: true\nlearning_rate: 0.5\n",
    }.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


def jobs(*argv: str) -> Jobs:
    found = preflight(list(argv))
    assert found is not None
    return found


def one(*argv: str) -> Config:
    (found,) = jobs(*argv).configs
    return found


@functools.cache
def default() -> Mapping[str, Any]:
    return one().resolved


def changed(key: str, value: Any) -> Config:
    """The default configuration with one value put in, checked. Quicker than composing it anew."""
    tree = OmegaConf.create(dict(default()))
    OmegaConf.update(tree, key, value, merge=False)
    return check(tree)


def refusal(*argv: str) -> list[str]:
    """The problems that are told, a line each."""
    with pytest.raises(ConfigError) as refused:
        preflight(list(argv))
    return str(refused.value).splitlines()


# ---- one job ----------------------------------------------------------------------------------------------------------


def test_a_configuration_becomes_specs_and_bound_callables(home: Path) -> None:
    found = one("trainer.budget=2k steps", "trainer.micro_batch=3", "optimizer.lr=0.25", "data.sources.stdlib.weight=7", "seed=11")
    assert isinstance(found.trainer, TrainerSpec)
    assert (found.trainer.budget, found.trainer.micro_batch, found.seed, found.resume) == ("2k steps", 3, 11, None)
    assert float(found.optimizer().learning_rate) == 0.25
    assert found.data.sources["stdlib"].weight == 7.0
    assert set(found.sources) == {"stdlib", "reference"}
    assert list(home.iterdir()) == []


def test_an_option_of_a_group_takes_the_whole_group() -> None:
    found = one("schedule=constant")
    assert [found.shape(t) for t in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


def test_references_are_resolved() -> None:
    found = one("name=mine")
    assert (found.tracking.experiment, found.release.name) == ("mine", "forge-mine")


def test_the_recorded_yaml_is_the_resolved_tree() -> None:
    found = one("name=mine", "optimizer.lr=0.25")
    tree = yaml.safe_load(found.yaml())
    assert tree == found.resolved
    assert (tree["tracking"]["experiment"], tree["optimizer"]["lr"]) == ("mine", 0.25)


def test_a_callback_is_built_and_null_leaves_it_out() -> None:
    assert one("callbacks.early_stopping.patience=9").callbacks["early_stopping"].patience == 9
    assert "early_stopping" not in one("callbacks.early_stopping=null").callbacks


def test_what_is_no_callback_is_not_even_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one's constructor starts a thread: a configuration that is only looked at must not."""
    from forge.tracking.pulse import Pulse

    built: list[Any] = []
    monkeypatch.setattr(Pulse, "__init__", lambda self: built.append(self))
    with pytest.raises(ConfigError, match=r"^callbacks\.mine: has to be a dataclass"):
        one("+callbacks.mine._target_=forge.tracking.pulse.Pulse")
    assert built == []


def test_callbacks_keep_their_state_to_themselves() -> None:
    """Two jobs of one sweep have two objects: what one counts, the other does not see."""
    first, second = jobs("-m", "seed=1,2").configs
    assert first.callbacks["early_stopping"] is not second.callbacks["early_stopping"]


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_each_with_path_key_and_nearest_name(home: Path) -> None:
    found = refusal("trainer.micro_bach=3", "optimizer.beta3=0.5", "seed=abc", "trainer.accumulate=0", "callbacks.early_stopping.patince=1")
    assert sorted(found) == [
        "callbacks.early_stopping.patince: unknown key; did you mean 'patience'? (valid: best, flat, min_delta, patience)",
        "optimizer.beta3: unknown key; did you mean 'beta2'? (valid: beta1, beta2, eps, lr, weight_decay)",
        "seed: 'abc' should be a valid integer",
        "trainer.accumulate: 0 should be greater than or equal to 1",
        "trainer.micro_bach: unknown key; did you mean 'micro_batch'? (valid: accumulate, budget, clip_norm, dtype, ema, eval_every, "
        "gradient_checkpointing, keep, log_every, lr_factors, master_weights, memory_limit, micro_batch, no_decay, save_every)",
    ]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("sed", 1, "unknown key; did you mean 'seed'? (valid: "),
        ("trainer.micro_batch", 0, "0 should be greater than or equal to 1"),
        ("trainer.micro_batch", 2.5, "2.5 should be a valid integer"),
        ("trainer.micro_batch", True, "True should be a valid integer"),
        ("trainer.micro_batch", "3", "'3' should be a valid integer"),
        ("trainer.clip_norm", float("nan"), "nan should be "),
        ("trainer.budget", 400, "400 is not a duration"),
        ("trainer.budget", "3%", "'3%': a run's length is steps, tokens or epochs"),
        ("trainer.budget", "0 steps", "'0 steps': a run's length is steps, tokens or epochs, and above 0"),
        ("schedule.warmup", "3 percent", "'3 percent' is not a duration"),
        ("schedule.shape.finl", 0.1, "unknown key; did you mean 'final'? (valid: final)"),
        ("data.sources.stdlib.wieght", 1, "unknown key; did you mean 'weight'? (valid: max_epochs, over_length, source, weight)"),
        ("data.sources.stdlib.weight", -1, "-1 should be greater than or equal to 0"),
        ("data.sources.stdlib.source.pth", "x", "unknown key"),
        ("data.sources.stdlib.source", {}, "needs a _target_"),
        ("data.valid_fraction", 1, "1 should be less than 1"),
        ("callbacks.mine", 5, "needs a _target_"),
        ("trainer", 5, "5 should be "),
        ("seed", -1, "-1 should be greater than or equal to 0"),
        ("seed", 2**32, "4294967296 should be less than 4294967296"),
        ("name", "a b", "'a b' "),
        ("release.alias", "1st", "'1st' "),
        ("release.name", "a:b", "'a:b': a model's name has no . or ~ in front, no / : \\ or control character, and at most 200 bytes"),
        *[("release.name", name, f"{name[:80]!r}: a model's name ") for name in ("..", ".a", "~a", "a/b", "a\\b", "a\nb", "", "x" * 201)],
        ("allowed_targets", "mine.", "'mine.' should be "),
        ("objective._target_", "os.system", "'os.system' is outside the allowed packages"),
        ("callbacks.early_stopping._target_", "os.system", "'os.system' is outside the allowed packages"),
        ("data.sources.stdlib.source._target_", "os.system", "'os.system' is outside the allowed packages"),
        ("schedule.shape._target_", "os.system", "'os.system' is outside the allowed packages"),
        ("tracking.experiment", "${nope}", "Interpolation key 'nope' not found"),
    ],
)
def test_one_wrong_value_gets_one_line(key: str, value: Any, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        changed(key, value)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{key}: {what}")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("optimzer=adamw", "optimzer: unknown key; did you mean 'optimizer'? (valid: "),
        ("optimizer=adamww", "optimizer=adamww: there is no such option; did you mean 'adamw'? (valid: adafactor, adam, adamw"),
        ("+experiment=quikstart", "experiment=quikstart: there is no such option; did you mean 'quickstart'? (valid: "),
        ("data.sources.new.weight=1", "data.sources.new.source: is required and has no value"),
        ("~trainer.keep", "trainer.keep: is required and has no value"),
        ("~model", "model: is required and has no value"),
        ("optimizer.lr", "optimizer.lr: not an override; write key=value"),
        ("optimizer.lr=[1", "optimizer.lr=[1: not an override; write key=value"),
        ("optimizer.lr=1,2", "Ambiguous value for argument "),
    ],
)
def test_one_wrong_override_gets_one_line(override: str, start: str) -> None:
    (line,) = refusal(override)
    assert line.startswith(start)


def test_all_missing_values_are_told_at_once() -> None:
    """What refers to one, such as the source's path, is not told on top."""
    assert refusal("model=hub", "data=folder", "seed=x") == [
        "model.id: has no value yet: set model.id=…",
        "data.path: has no value yet: set data.path=…",
    ]


def test_some_source_needs_a_weight() -> None:
    weights = ["data.sources.stdlib.weight=0", "data.sources.reference.weight=0"]
    assert refusal(*weights) == ["data.sources: no source has a weight above 0"]
    assert one(weights[0]).data.sources["stdlib"].weight == 0


def test_a_config_dir_that_is_not_there_is_told() -> None:
    assert refusal("--config-dir", "nowhere") == ["--config-dir nowhere: there is no such folder"]


def test_a_group_set_to_null_is_told() -> None:
    (line,) = refusal("trainer=null")
    assert line.startswith("trainer")


@pytest.mark.parametrize("key", ["optimizer.lr", "data.sources.stdlib.weight"])
def test_infinity_is_no_number(key: str) -> None:
    with pytest.raises(ConfigError):
        changed(key, float("inf"))


def test_an_override_is_told_as_it_was_typed() -> None:
    assert "++" not in refusal("optimizer.lr=1,2")[0]


# ---- information ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["--hydra-help"], ["--info", "config"], ["--help", "trainer.micro_bach=1"]])
def test_a_question_for_hydra_is_left_to_hydra(argv: list[str]) -> None:
    assert preflight(argv) is None


def test_outside_a_job_there_are_no_overrides() -> None:
    assert task_overrides() == []


# ---- the user's own folder --------------------------------------------------------------------------------------------


def test_the_user_s_folder_stands_beside_ours(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    for folder in (str(own), "own"):
        found = one("--config-dir", folder, "optimizer=plain", "schedule=constant")
        assert float(found.optimizer().learning_rate) == 0.5


def test_the_nearest_option_may_be_the_user_s(own: Path) -> None:
    assert refusal("--config-dir", str(own), "optimizer=plian") == [
        "optimizer=plian: there is no such option; did you mean 'plain'? (valid: adafactor, adam, adamw, lion, muon, plain, sgd)"
    ]


# ---- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_every_combination_in_order() -> None:
    found = jobs("-m", "optimizer.lr=0.1,0.2", "seed=range(3,5)", "trainer.keep=2")
    assert [(c.resolved["optimizer"]["lr"], c.seed, c.trainer.keep) for c in found.configs] == [
        (0.1, 3, 2),
        (0.1, 4, 2),
        (0.2, 3, 2),
        (0.2, 4, 2),
    ]
    assert found.swept == ("optimizer.lr", "seed")
    assert found.multirun


def test_the_options_of_a_group_can_be_swept() -> None:
    found = jobs("-m", "schedule=cosine,constant")
    assert [c.resolved["schedule"]["shape"]["_target_"].rpartition(".")[2] for c in found.configs] == ["cosine", "constant"]
    assert found.swept == ("schedule",)


def test_an_experiment_may_sweep_by_itself(own: Path) -> None:
    found = jobs("--config-dir", str(own), "-m", "+experiment=rates")
    assert [(c.name, c.resolved["optimizer"]["lr"]) for c in found.configs] == [("rates", 0.001), ("rates", 0.0001)]
    assert found.swept == ("optimizer.lr",)


def test_a_single_run_sweeps_nothing() -> None:
    found = jobs("seed=3")
    assert (found.swept, found.multirun, len(found.configs)) == ((), False, 1)


def test_one_bad_job_refuses_the_whole_sweep() -> None:
    assert refusal("-m", "optimizer.lr=0.1,fast,0.2") == ["optimizer.lr: 'fast' should be a valid number"]


def test_a_problem_of_all_jobs_is_told_once() -> None:
    assert refusal("-m", "seed=1,2,3", "optimizer.lr=fast") == ["optimizer.lr: 'fast' should be a valid number"]


def test_the_problems_of_all_jobs_are_told_at_once() -> None:
    assert refusal("-m", "seed=x,-1", "optimizer.lr=0.1,fast") == [
        "seed: 'x' should be a valid integer",
        "optimizer.lr: 'fast' should be a valid number",
        "seed: -1 should be greater than or equal to 0",
    ]


def test_two_jobs_of_one_identity_are_refused() -> None:
    assert refusal("-m", "seed=1,2,1") == ["two jobs of the sweep are the same experiment: seed=1; sweep over what changes a result"]


# ---- identity ---------------------------------------------------------------------------------------------------------


def test_identity_is_a_hash_of_the_sorted_settings() -> None:
    """printf '{"a": 1}' | sha256sum, the first 16 digits. `resume` is no part of it."""
    assert identity({"a": 1, "resume": "auto"}) == "f9d86028c6e0d64e"


def test_identity_does_not_depend_on_the_order_of_keys() -> None:
    assert identity({"a": {"b": 1, "c": 2}, "d": 3}) == identity({"d": 3, "a": {"c": 2, "b": 1}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resume", "auto"),
        ("tracking.run_name", "mine"),
        ("tracking.uri", "sqlite:///other.db"),
        ("release.enabled", False),
        ("release.alias", "best"),
        ("sweep.release_winner", False),
        ("data.limits.bad_share", 0.5),
        ("data.cache_gb", 1.0),
        ("allowed_targets", ["mine."]),
    ],
)
def test_where_results_go_is_no_part_of_the_identity(key: str, value: Any) -> None:
    assert changed(key, value).identity == identity(default())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("data.split_seed", 1),
        ("data.mask", "last"),
        ("data.filters", {"length": {"_target_": "forge.data.filters.length", "min_chars": 5}}),
        ("data.sources.stdlib.weight", 5.0),
        ("model.layers", 3),
        ("adapter", {"_target_": "forge.models.adapters.lora", "rank": 1, "alpha": 1.0, "dropout": 0.0, "targets": "mlp", "layers": None}),
        ("optimizer.lr", 0.25),
        ("schedule.shape", {"_target_": "forge.training.schedules.constant"}),
        ("trainer.budget", "2 epochs"),
        ("callbacks.early_stopping.patience", 4),
        ("evaluation.max_tokens", 10),
    ],
)
def test_what_can_change_a_result_changes_the_identity(key: str, value: Any) -> None:
    assert changed(key, value).identity != identity(default())

"""The command line as a user meets it: real processes, from another folder, with results going to FORGE_HOME. CFG-2, CFG-4."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    errors: list[str]


@dataclass(frozen=True)
class Shell:
    """A place to run commands in: `cwd` is some folder of the user's, `home` is FORGE_HOME and not there yet."""

    cwd: Path
    home: Path

    def forge(self, *argv: str) -> Done:
        return self.python("-m", "forge.train", *argv)

    def python(self, *argv: str) -> Done:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FORGE_", "MLFLOW_", "HYDRA_"))}
        path = os.pathsep.join([str(ROOT), str(self.cwd)])
        environment = kept | {"FORGE_HOME": str(self.home), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, *argv], cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=60)
        # What forge says of this machine's BLAS is not the subject.
        return Done(done.returncode, done.stdout, [line for line in done.stderr.splitlines() if not line.startswith("forge: no fast BLAS")])

    def refused(self, *argv: str) -> list[str]:
        """The lines of a refusal, without their "error: ". Exit code 2, nothing on stdout, nothing written."""
        before = sorted(self.cwd.rglob("*"))
        done = self.forge(*argv)
        assert (done.code, done.out) == (2, ""), done
        assert not self.home.exists()
        assert sorted(self.cwd.rglob("*")) == before
        assert all(line.startswith("error: ") for line in done.errors), done.errors
        return [line.removeprefix("error: ") for line in done.errors]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "elsewhere").mkdir()
    return Shell(tmp_path / "elsewhere", tmp_path / "home")


@pytest.fixture
def mine(shell: Shell) -> Shell:
    """A user's own folder: a package with a source, its YAML, and an experiment that uses it."""
    for name, text in {
        "mypackage.py": "def poems(*, lines: int):\n    return iter(())\n",
        "own/data/source/poems.yaml": "_target_: mypackage.poems\n_partial_: true\nlines: 3\n",
        "own/experiment/poetry.yaml": """# @package _global_
defaults:
  - /data/source/poems@data.sources.poems.source
name: poetry
data: {sources: {poems: {weight: 2.0}}}
""",
    }.items():
        (shell.cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (shell.cwd / name).write_text(text)
    return shell


def test_help_works_from_any_folder_and_writes_nothing(shell: Shell) -> None:
    done = shell.forge("--help")
    assert (done.code, done.errors) == (0, [])
    assert "optimizer: adafactor, adam, adamw" in done.out and "experiment: cpt, cpt_ift, ift, quickstart" in done.out
    assert not shell.home.exists() and list(shell.cwd.iterdir()) == []


def test_cfg_prints_the_composed_configuration_and_writes_nothing(shell: Shell) -> None:
    done = shell.forge("--cfg", "job", "optimizer.lr=0.25", "schedule=constant")
    assert (done.code, done.errors) == (0, [])
    tree = yaml.safe_load(done.out)
    assert tree["optimizer"]["lr"] == 0.25
    assert tree["schedule"]["shape"]["_target_"] == "forge.training.schedules.constant"
    assert not shell.home.exists() and list(shell.cwd.iterdir()) == []


def test_every_mistake_is_told_at_once(shell: Shell) -> None:
    """A typo in a typed key, one under a _target_, a wrong type."""
    found = shell.refused("trainer.micro_bach=3", "optimizer.weight_decya=0.5", "trainer.accumulate=two")
    assert sorted(line.split(" (valid")[0] for line in found) == [
        "optimizer.weight_decya: unknown key; did you mean 'weight_decay'?",
        "trainer.accumulate: 'two' should be a valid integer",
        "trainer.micro_bach: unknown key; did you mean 'micro_batch'?",
    ]


def test_a_mistake_is_told_before_anything_heavy_is_imported(shell: Shell) -> None:
    done = shell.python(
        "-c",
        "import sys; from forge.train import main; code = main(['trainer.micro_bach=3'])\n"
        "print(code, [name for name in ('mlflow', 'transformers', 'mlx_lm', 'matplotlib', 'torch') if name in sys.modules])",
    )
    assert done.out == "2 []\n"


def test_an_unknown_option_gets_the_nearest_one(shell: Shell) -> None:
    (line,) = shell.refused("schedule=cosin")
    assert line.startswith("schedule=cosin: there is no such option; did you mean 'cosine'? (valid: ")


def test_a_value_that_has_to_be_given_is_told(shell: Shell) -> None:
    assert shell.refused("model=hub") == ["model.id: has no value yet: set model.id=…"]


def test_a_target_outside_the_allowed_packages_is_refused(shell: Shell) -> None:
    (line,) = shell.refused("objective._target_=os.system")
    assert line.startswith("objective._target_: 'os.system' is outside the allowed packages (forge., mlx.optimizers.)")


def test_one_bad_job_refuses_a_sweep_before_its_first_starts(shell: Shell) -> None:
    assert shell.refused("-m", "optimizer.lr=0.1,fast") == ["optimizer.lr: 'fast' should be a valid number"]


def test_a_sweep_with_a_job_twice_is_refused(shell: Shell) -> None:
    (line,) = shell.refused("-m", "optimizer.lr=0.1,0.2,0.1")
    assert line.startswith("two jobs of the sweep are the same experiment: optimizer.lr=0.1")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("optimizer.lr=interval(0.1,0.2)",), "optimizer.lr: an interval needs a search: add sweep=tpe"),
        (("resume=0123456789abcdef", "seed=1,2"), "resume=… names one run, but a sweep goes on by itself"),
        (
            ("seed=1,2", "hydra.sweeper._target_=hydra_plugins.optuna.OptunaSweeper"),
            "hydra/sweeper: hydra_plugins.optuna.OptunaSweeper can't drive",
        ),
    ],
)
def test_what_a_sweep_does_itself_is_not_asked_of_hydra(shell: Shell, argv: tuple[str, ...], said: str) -> None:
    (line,) = shell.refused("-m", *argv)
    assert line.startswith(said)


def test_the_user_s_own_experiment_and_source_work_once_their_package_is_allowed(mine: Shell) -> None:
    done = mine.forge("--config-dir", "own", "+experiment=poetry", "allowed_targets=[mypackage.]", "--cfg", "job")
    assert (done.code, done.errors) == (0, [])
    tree = yaml.safe_load(done.out)
    assert tree["name"] == "poetry"
    assert tree["data"]["sources"]["poems"] == {"source": {"_target_": "mypackage.poems", "_partial_": True, "lines": 3}, "weight": 2.0}


def test_the_user_s_own_target_is_refused_until_then_and_checked_after(mine: Shell) -> None:
    argv = ("--config-dir", "own", "+experiment=poetry", "data.sources.poems.source.lines=many")
    (line,) = mine.refused(*argv)
    assert line.startswith("data.sources.poems.source._target_: 'mypackage.poems' is outside the allowed packages")
    assert mine.refused(*argv, "allowed_targets=[mypackage.]") == ["data.sources.poems.source.lines: 'many' should be a valid integer"]


@pytest.mark.parametrize("override", ["tracking.tags.team=blue", "callbacks.early_stopping.best=1.0"])
def test_what_the_check_accepts_hydra_accepts(shell: Shell, override: str) -> None:
    """A new entry of a mapping, and a knob that the YAML leaves at its default."""
    done = shell.forge(override, "--cfg", "job")
    assert (done.code, done.errors) == (0, [])


def test_cfg_of_a_sweep_is_refused_in_one_line(shell: Shell) -> None:
    assert len(shell.refused("-m", "--cfg", "job", "seed=1,2")) == 1


def test_flags_may_stand_behind_overrides(shell: Shell) -> None:
    done = shell.forge("optimizer.lr=0.25", "--cfg", "job")
    assert (done.code, done.errors) == (0, [])
    assert yaml.safe_load(done.out)["optimizer"]["lr"] == 0.25

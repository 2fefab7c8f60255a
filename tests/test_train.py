"""What python -m forge.train refuses before it opens a run."""

from pathlib import Path

import pytest

from forge import evaluate, train
from forge.errors import ModelError
from forge.tracking import registry, store

_ALIAS, _VERSION = "Registered Model with name=nobody not found", "Model Version (name=nobody, version=3) not found"
_WAY_OUT = "`mlflow ui` lists the models that there are"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["model=models:/nobody@champion"], f"models:/nobody@champion: {_ALIAS}"),
        (["model=models:/nobody/3"], f"models:/nobody/3: {_VERSION}"),
        (["-m", "model=models:/somebody/1,models:/nobody/3"], f"models:/nobody/3: {_VERSION}"),
        (["-m", "model=models:/somebody/1,models:/nobody/3", "sweep=tpe", "sweep.trials=2"], f"models:/nobody/3: {_VERSION}"),
        (["+experiment=cpt_ift", "model=models:/nobody@champion"], f"models:/nobody@champion: {_ALIAS}"),
    ],
)
def test_a_registered_model_that_is_not_there_is_refused_and_no_run_is_left(
    home: Path, words: list[str], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = store.connect(None)
    if not client.search_model_versions("name='somebody'"):
        client.create_registered_model("somebody")
        client.create_model_version("somebody", source=home.as_uri())
    assert train.main([*words, "tracking.experiment=missing"]) == ModelError.exit_code
    assert capfd.readouterr().err == f"error: {why}; {_WAY_OUT}\n"
    assert client.get_experiment_by_name("missing") is None
    with pytest.raises(ModelError) as caught:
        registry.fetch(None, why.partition(": ")[0])
    assert str(caught.value) == f"{why}; {_WAY_OUT}"  # as where it is loaded


def test_an_evaluation_refuses_it_too(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["data=folder", f"data.path={home}", "tracking.experiment=unmeasured"]
    assert evaluate.main(["model=models:/nobody@champion", *words]) == ModelError.exit_code
    assert capfd.readouterr().err == f"error: models:/nobody@champion: {_ALIAS}; {_WAY_OUT}\n"
    assert store.connect(None).get_experiment_by_name("unmeasured") is None


def test_only_the_first_of_several_processes_says_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    assert train.main(["model=models:/nobody@champion"]) == ModelError.exit_code
    assert capfd.readouterr().err == ""

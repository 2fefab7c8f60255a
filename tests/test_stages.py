"""A chain's command line: what goes to all stages, what to one, and what is refused before anything starts."""

from typing import Any

import pytest

from forge.config import Config
from forge.errors import ConfigError
from forge.jobs import Jobs, preflight, single


def chained(*argv: str) -> Jobs:
    asked = preflight(["+experiment=cpt_ift", *argv])
    assert asked and asked.chain
    return asked


def settings(config: Config, *keys: str) -> list[Any]:
    found: list[Any] = []
    for key in keys:
        node: Any = config.resolved
        for part in key.split("."):
            node = node[part]
        found.append(node)
    return found


def refusals(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight(["+experiment=cpt_ift", *argv])
    return str(caught.value).splitlines()


def test_stages_are_named_by_the_chain_and_register_apart() -> None:
    asked = chained("name=notes", "seed=5", "ift.seed=6", "tracking.run_name=both", "hydra.run.dir=/tmp/x")
    cpt, ift = asked.configs
    keys = ("name", "release.name", "tracking.experiment", "tracking.run_name", "tracking.tags", "seed")
    assert settings(cpt, *keys) == ["notes-cpt", "forge-notes-cpt", "notes", None, {"forge.stage": "cpt"}, 5]
    assert settings(ift, *keys) == ["notes-ift", "forge-notes-ift", "notes", None, {"forge.stage": "ift"}, 6]
    assert asked.chain and asked.chain.run_name == "both" and asked.chain.stages == ("cpt", "ift")


def test_an_override_is_for_all_stages_or_for_one() -> None:
    cpt, ift = chained(
        "trainer.micro_batch=3", "cpt.optimizer=lion", "ift.optimizer.lr=1e-5", "ift.model.quantize={bits: 4, group_size: 64}"
    ).configs
    assert settings(cpt, "trainer.micro_batch", "optimizer._target_") == [3, "forge.training.optim.lion"]
    assert settings(ift, "trainer.micro_batch", "optimizer._target_", "optimizer.lr") == [3, "forge.training.optim.adamw", 1e-5]
    assert ift.resolved["model"]["quantize"] == {"bits": 4, "group_size": 64}


def test_the_user_s_own_data_takes_the_place_of_the_built_in_of_each() -> None:
    cpt, ift = chained("cpt.data=folder", "cpt.data.path=~/notes", "ift.data=folder", "ift.data.path=~/dialogues").configs
    assert [settings(each, "data.path")[0] for each in (cpt, ift)] == ["~/notes", "~/dialogues"]
    assert [set(each.data.sources) for each in (cpt, ift)] == [{"folder"}, {"folder"}]


@pytest.mark.parametrize("word", ["model=models:/mine/4", "cpt.model=models:/mine/4"])
def test_the_model_is_the_first_stage_s_and_the_others_start_from_what_is_released(word: str) -> None:
    asked = chained(word)
    cpt, ift = asked.configs
    assert settings(cpt, "model.uri") == ["models:/mine/4"]
    assert settings(ift, "model.uri") == ["models:/forge-adapted-cpt/0"]  # not known yet
    assert asked.overrides[1][-1] == "model.uri=models:/forge-adapted-cpt/0"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["data=folder"], ["data=folder: which stage's? write cpt.data=folder or ift.data=folder"]),
        (["data.path=x"], ["data.path=x: which stage's? write cpt.data.path=x or ift.data.path=x"]),
        (["ift.model=hub"], ["ift.model=hub: ift starts from what the stage before it releases; the chain begins with cpt.model=…"]),
        (["cpt.name=x"], ["cpt.name=x: a chain settles its stages' name: leave it out"]),
        (["stages.cpt.seed=1"], ["stages.cpt.seed=1: for one stage write cpt.seed=1"]),
        (["release.enabled=false"], ["release.enabled=false: ift starts from what cpt releases; add cpt.release.enabled=true"]),
        (
            ["cpt.optimizer.lr=-1", "seed=-1"],
            ["seed: -1 should be greater than or equal to 0", "cpt.optimizer.lr: -1 should be greater than 0"],
        ),
        (["ift.data=folder"], ["ift.data.path: has no value yet: set ift.data.path=…"]),
    ],
)
def test_a_mistake_is_told_by_its_stage(argv: list[str], said: list[str]) -> None:
    assert refusals(*argv) == said


@pytest.mark.parametrize(("word", "meant"), [("itf.seed=1", "ift"), ("+ctp.model.x=1", "cpt"), ("optimzer.lr=1", "optimizer")])
def test_a_stage_that_there_is_not_gets_the_nearest_stage_or_key(word: str, meant: str) -> None:
    (line,) = refusals(word)
    stage = word.lstrip("+").partition(".")[0]
    assert line.startswith(f"{word}: there is no stage {stage!r}, nor such a key; did you mean {meant!r}? (valid: adapter, ")
    assert "cpt, " in line and "ift, " in line and "stages" not in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-m", "seed=1,2"], "can't be swept"),
        (["resume=abc"], "goes on by itself"),
        (["stages=null"], "stages: write the overrides of each by its name"),
        (["stages.ift=x"], "for one stage write ift=x"),
        (["+stages.data=[]"], "for one stage write +data=[]"),
    ],
)
def test_what_a_chain_is_not_for_is_told(argv: list[str], said: str) -> None:
    assert said in refusals(*argv)[0]


@pytest.mark.parametrize(
    ("words", "parent", "releases"),
    [
        ([], None, True),
        (["release.enabled=false"], None, False),
        ([], "a sweep's", False),
        (["tracking.tags={forge.stage: cpt}"], "a chain's", True),
    ],
)
def test_a_stage_releases_itself_and_a_sweep_s_child_does_not(words: list[str], parent: str | None, releases: bool) -> None:
    asked = preflight(words)
    assert asked and asked.configs[0].releases(parent) is releases


def test_an_entry_that_looks_at_one_job_refuses_a_chain() -> None:
    with pytest.raises(ConfigError, match="plan looks at one job, and this is a chain of cpt and ift: name the experiment of one"):
        single(["+experiment=cpt_ift"], "plan looks at one job")


def test_tuning_without_a_model_names_the_ways_to_give_one() -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(["+experiment=ift"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("model.uri: has no value yet") and "model=models:/NAME@champion, model=FOLDER, or model=hub" in line


@pytest.mark.parametrize("model", [["model=hub", "model.id=a/b"], ["model=local", "model.path=x"], ["model=scratch_tiny"]])
def test_the_command_line_wins_over_what_an_experiment_chooses(model: list[str]) -> None:
    asked = preflight(["+experiment=ift", *model, "data=folder", "data.path=x"])
    assert asked and set(asked.configs[0].data.sources) == {"folder"}
    assert asked.configs[0].resolved["model"]["_target_"].rpartition(".")[2] in ("hub", "local", "build")

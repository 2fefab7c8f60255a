"""python -m forge.release as it is typed: which run, which recipes, what is said, and the exit code."""

import re
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from forge import pins
from forge.models.loaders import registry
from forge.release.__main__ import main
from forge.tracking import store
from tests.place import Place

WIDE = ("model.hidden_size=64", "model.head_dim=32", "model.mlp_size=64")
EASY = ("release.max_degenerate=1", "release.answers=2", "release.answer_tokens=16")


@pytest.fixture(scope="module")
def run_id(place: Place) -> str:
    """A run that trained and was not released."""
    life = place.life("released", *WIDE, "tracking.run_name='1e2'", *EASY, "trainer.budget=6 steps")
    assert life.code == 0, life.output
    return str(life.runs[0].info.run_id)


@pytest.fixture
def typed(place: Place, run_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """typed(words…) -> the exit code, and all that was printed."""
    monkeypatch.setenv("FORGE_HOME", str(place.folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(place.folder)  # the run's configuration calls a function that lies there

    def go(*words: str) -> tuple[int, str]:
        code = main([*words, "allowed_targets=[planted.]"])
        told = capsys.readouterr()
        return code, told.out + told.err

    return go


def tags(name: str, version: str) -> dict[str, str]:
    return dict(store.connect(None).get_model_version(name, version).tags)


def test_the_best_checkpoint_of_a_run_that_is_called_like_a_number(typed: Any, run_id: str) -> None:
    code, told = typed("run=1e2")
    assert code == 0, told
    assert f"run 1e2 ({run_id[:8]}), step 6: " in told
    assert "models:/forge-tiny/1 is now champion: first champion of forge-tiny" in told
    found = store.connect(None).get_model_version("forge-tiny", "1")
    assert found.run_id == run_id and found.tags["forge.checkpoint"] == "step-00000006"


def test_quantised_under_a_name_of_its_own(typed: Any, run_id: str) -> None:
    code, told = typed(f"run={run_id[:8]}", "quantise=8bit-g32")
    assert code == 0, told
    assert "models:/forge-tiny-8bit-g32/1 is now champion" in told and "models:/forge-tiny/" not in told
    assert tags("forge-tiny-8bit-g32", "1")["forge.quantisation"] == "8bit-g32"


def test_several_in_one_table_with_a_name_and_an_alias(typed: Any, run_id: str) -> None:
    code, told = typed(f"run={run_id}", "quantise=[8bit-g32,6bit-g32]", "name=mine", "alias=best")
    assert code == 0, told
    assert "models:/mine-8bit-g32/1 is now best" in told and "models:/mine-6bit-g32/1 is now best" in told


def test_a_name_for_one_is_taken_as_it_is_and_a_refusal_is_code_6(typed: Any, run_id: str) -> None:
    code, told = typed(f"run={run_id}", "quantise=8bit-g32", "name=strict", "release.max_kl=1e-12")
    assert code == 6
    assert "8bit-g32: refused, KL from the fused model " in told and "(release.max_kl=1e-12)" in told
    assert "error: models:/strict/1: refused by the gate, so without alias" in told
    assert tags("strict", "1")["forge.gate"] == "refused" and store.connect(None).get_registered_model("strict").aliases == {}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "error: which run? Write run=RUN; --help"),
        (("run=nobody",), 7, "error: nobody: no run has this id or name; the newest are 1e2"),
        (("run=1e2", "quantise=7bit"), 2, "error: quantise: '7bit': bits are 2, 3, 4, 5, 6, 8"),
        (
            ("run=1e2", "quantise=4bit-g128"),
            6,
            "error: 4bit-g128: no layer's width is a multiple of 128; take a smaller group",
        ),
        (("run=1e2", "qantise=4bit"), 2, "qantise: "),
        (("run=1e2", "release.max_kll=1"), 2, "release.max_kll"),
        (("1e2",), 2, "error: 1e2: not a setting; write key=value"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], code: int, said: str, typed: Any) -> None:
    found, told = typed(*words)
    assert found == code and said in told, told
    assert "Traceback" not in told


def test_a_run_that_someone_else_holds_is_left_alone(typed: Any, run_id: str) -> None:
    with store.lock(f"run-{run_id}"):
        code, told = typed("run=1e2")
    assert code == 6 and "is being trained or released by another process; wait for it" in told


def test_checkpoints_that_are_gone_are_missed_at_once(typed: Any, run_id: str, place: Place) -> None:
    folder = place.folder / "home" / "mlruns" / "checkpoints" / run_id
    aside = folder.with_name("aside")
    shutil.move(folder, aside)
    try:
        code, told = typed("run=1e2")
    finally:
        shutil.move(aside, folder)
    assert code == 6 and f"its checkpoints are gone, none lies in {folder}" in told


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        ("forge.base", "local /base f00d", r"run 1e2 \(\w{8}\): its base \S+ was f00d and is \w+ now; put it back"),
        ("forge.tokenizer_digest", "0", "its tokenizer was made from its training text, and this is another; leave data as the run had it"),
    ],
)
def test_another_base_than_the_run_s_own_is_refused(typed: Any, run_id: str, tag: str, value: str, said: str) -> None:
    client = store.connect(None)
    own = client.get_run(run_id).data.tags[tag]
    client.set_tag(run_id, tag, value)
    try:
        code, told = typed("run=1e2")
    finally:
        client.set_tag(run_id, tag, own)
    assert code == 4 and re.search(rf"error: .*{said}", told), told


def test_the_base_is_the_version_that_the_run_had(typed: Any, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that the alias of its settings names by now."""
    pinned: list[str] = []
    real = pins.with_own_base

    def seen(config: Any, run: Any) -> Any:
        moved = replace(config, model=partial(registry, uri="models:/a@champion"))
        own = real(moved, replace(run, tags={**run.tags, "forge.base": "registry models:/a@champion models:/a/3"}))
        pinned.append(own.model.keywords["uri"])
        return own

    monkeypatch.setattr(pins, "with_own_base", seen)
    code, told = typed("run=1e2")
    assert pinned == ["models:/a/3"] and code == 4 and "error: models:/a/3: " in told, told


def test_help_is_the_modules_own(typed: Any) -> None:
    code, told = typed("--help")
    assert code == 0 and "quantise=RECIPES" in told

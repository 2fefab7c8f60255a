"""A model named by what it is, in place of the option and the setting that take it."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from forge.errors import ConfigError
from forge.jobs import preflight
from forge.words import expanded, quoted


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A configuration with the options hub and mine/small; two model folders and a file lie where the test stands."""
    (tmp_path / "conf" / "model" / "mine").mkdir(parents=True)
    for name in ("hub", "mine/small"):
        (tmp_path / "conf" / "model" / f"{name}.yaml").touch()
    (tmp_path / "here" / "qwen").mkdir(parents=True)
    (tmp_path / "here" / "Ann's, old").mkdir()
    (tmp_path / "here" / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    return [tmp_path / "conf"]


@pytest.mark.parametrize("word", ["model=hub", "model=mine/small", "model=nothing_known", "seed=1", "model.path=./qwen", "+model=qwen"])
def test_other_words_stay_as_they_are(folders: list[Path], word: str) -> None:
    assert expanded([word], folders) == [word]


@pytest.mark.parametrize("uri", ["models:/forge-a@champion", "models:/forge-a/12"])
def test_a_registered_version_is_one_of_the_registry(folders: list[Path], uri: str) -> None:
    assert expanded(["seed=1", f"model={uri}"], folders) == ["seed=1", "model=registry", f"model.uri={uri}"]


@pytest.mark.parametrize("value", ["qwen", "./qwen", "~/qwen", "'./qwen'", '"qwen"', "../here/qwen"])
def test_a_folder_is_a_local_one_by_its_whole_path(folders: list[Path], tmp_path: Path, value: str) -> None:
    option, setting = expanded([f"model={value}"], folders)
    assert option == "model=local" and Path(setting.removeprefix("model.path=")).resolve() == (tmp_path / "here" / "qwen").resolve()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("models:/forge-a", r"model=models:/forge-a: write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("./none", r"model=\./none: there is no such folder; give a model's folder"),
        ("./file", r"model=\./file: this is a file"),
        ("Qwen/Qwen3-0.6B", r"there is no such folder; .*from the hub it is model=hub model\.id=Qwen/Qwen3-0\.6B"),
    ],
)
def test_what_is_no_model_is_told_with_the_way_out(folders: list[Path], value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expanded([f"model={value}"], folders)


def test_a_path_from_home_needs_no_quotes(folders: list[Path]) -> None:
    """bash leaves the ~ behind a key with a dot as it is, and Hydra takes none."""
    asked = preflight(["data=folder", "data.path=~/my notes"])
    assert asked and asked.configs[0].data.path == "~/my notes"


def test_several_are_swept_over_by_their_setting(folders: list[Path], tmp_path: Path) -> None:
    assert expanded(["model=models:/a/1,models:/b@c"], folders, several=True) == ["model=registry", "model.uri=models:/a/1,models:/b@c"]
    assert expanded(["model=hub,mine/small"], folders, several=True) == ["model=hub,mine/small"]
    with pytest.raises(ConfigError, match="registered models and folders can't be swept together"):
        expanded(["model=models:/a/1,./qwen"], folders, several=True)
    with pytest.raises(ConfigError, match="options and models can't be mixed"):
        expanded(["model=hub,./qwen"], folders, several=True)


@pytest.mark.parametrize("text", ["/a/b", "/with a space", "/Ann's, old", "/back\\slash", "/ends\\", "/both\\'of", "/{braces}=[x]"])
def test_hydra_reads_back_any_path(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"model.path={quoted(text)}"])
    value = override.value()
    assert str(getattr(value, "text", value)) == text


def test_a_run_is_checked_and_recorded_with_what_the_word_stands_for(folders: list[Path], tmp_path: Path) -> None:
    for argv in (["model=./Ann's, old", "seed=3"], ["-m", "model=models:/a/1,models:/a/2"]):
        asked = preflight(argv)
        assert asked
        models = [config.resolved["model"] for config in asked.configs]
        if asked.multirun:
            assert [model["uri"] for model in models] == ["models:/a/1", "models:/a/2"] and asked.swept == ("model.uri",)
        else:
            assert models[0]["path"] == str(tmp_path / "here" / "Ann's, old")
            assert "model=local" in asked.argv and any(word.startswith("++model.path=") for word in asked.argv)

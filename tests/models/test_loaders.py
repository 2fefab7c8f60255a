"""Models from a folder and the registry (tests/models/test_hubcache.py: the hub); every user's mistake is one sentence."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forge.arrays import flat
from forge.errors import ModelError
from forge.models import Loaded, fuse, loaders

TOKENS = mx.array([[1, 5, 3, 8, 2, 9]])


def no_texts() -> Iterator[str]:
    raise AssertionError("only a model from scratch reads the training text")


def no_fetch(uri: str) -> tuple[Path, str]:
    raise AssertionError("only a registered model is fetched")


def local(path: Path) -> Loaded:
    return loaders.local(no_texts, 0, no_fetch, path=str(path))


@pytest.fixture
def folder(make_tiny_model: Callable[..., Loaded], tmp_path: Path) -> Path:
    fuse.save(make_tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_saved_model_comes_back_the_same(make_tiny_model: Callable[..., Loaded], folder: Path) -> None:
    saved, loaded = make_tiny_model(), local(folder)
    weights, found = flat(saved.model.parameters()), flat(loaded.model.parameters())
    assert set(found) == set(weights)
    assert all(np.array_equal(np.array(found[name]), np.array(weights[name])) for name in weights)
    assert np.array_equal(np.array(loaded.model(TOKENS)), np.array(saved.model(TOKENS)))
    text = "def add(a, b):\n    return 🙂"
    assert loaded.tokenizer.encode(text) == saved.tokenizer.encode(text)
    assert loaded.tokenizer.eos_token_id == saved.tokenizer.eos_token_id
    assert loaded.config["model_type"] == "qwen3"
    assert (loaded.lineage.kind, loaded.lineage.uri) == ("local", str(folder.resolve()))


def test_the_revision_is_of_the_content_not_of_the_path(folder: Path) -> None:
    before = local(folder).lineage.revision
    moved = folder.rename(folder.parent / "moved")
    assert local(moved).lineage.revision == before
    edit(moved / "config.json", rope_theta=5000.0)
    assert local(moved).lineage.revision != before


def test_other_weights_of_the_same_size_are_another_revision(make_tiny_model: Callable[..., Loaded], folder: Path) -> None:
    before, size = local(folder).lineage.revision, (folder / "model.safetensors").stat().st_size
    fuse.save(make_tiny_model(seed=1), folder)
    assert (folder / "model.safetensors").stat().st_size == size
    assert local(folder).lineage.revision != before


def test_a_path_may_start_with_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert local(Path("~/model")).lineage == local(folder).lineage


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.path=.*nowhere: there is no such folder; give a model's folder, or model=hub"):
        local(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["config.json"], "config.json is missing; it needs that, a tokenizer and model*.safetensors"),
        (["model.safetensors", "model.safetensors.index.json"], "no model*.safetensors is there; take a copy of the model that has them"),
    ],
)
def test_a_folder_without_a_model(folder: Path, missing: list[str], said: str) -> None:
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ModelError) as caught:
        local(folder)
    assert f"model.path={folder}: no whole model lies there: {said}" in str(caught.value)


def test_a_base_that_is_packed_while_loading_is_another_base(folder: Path) -> None:
    """The sizes of the tiny model are 16 and 32: only what is 32 wide can be packed in groups of 32."""
    plain = local(folder)
    packed = loaders.local(no_texts, 0, no_fetch, path=str(folder), quantize={"bits": 4, "group_size": 32})
    assert packed.config["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert str(packed.lineage) == f"{plain.lineage} quantised to 4 bits in groups of 32"
    down = packed.model.layers[0].mlp.down_proj
    expected = mx.quantize(plain.model.layers[0].mlp.down_proj.weight, group_size=32, bits=4)
    assert all(np.array_equal(np.array(a), np.array(b)) for a, b in zip((down.weight, down.scales, down.biases), expected, strict=True))
    assert packed.model.layers[0].mlp.up_proj.weight.dtype == mx.float32


def test_a_base_that_can_not_be_packed(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.quantize\.group_size=64: no layer's width is a multiple of it; take a smaller one"):
        loaders.local(no_texts, 0, no_fetch, path=str(folder), quantize={"bits": 4, "group_size": 64})


BROKEN: dict[str, Callable[[Path], Any]] = {
    "unknown architecture": lambda folder: edit(folder / "config.json", model_type="martian"),
    "no architecture": lambda folder: edit(folder / "config.json", model_type=None),
    "a size is missing": lambda folder: edit(folder / "config.json", hidden_size=None),
    "sizes of another model": lambda folder: edit(folder / "config.json", hidden_size=32),
    "configuration is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "half a download": lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000]),
    "a git-lfs pointer": lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n"),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "tokenizer of another program": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "no end-of-text token": lambda folder: edit(folder / "tokenizer_config.json", eos_token=None),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_one_sentence_that_names_it(folder: Path, fault: str) -> None:
    BROKEN[fault](folder)
    with pytest.raises(ModelError) as caught:
        local(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_registered_model_is_fetched_once_by_its_uri(folder: Path) -> None:
    asked: list[str] = []

    def fetch(uri: str) -> tuple[Path, str]:
        asked.append(uri)
        return folder, "3"

    loaded = loaders.registry(no_texts, 0, fetch, uri="models:/toy@champion")
    loaders.registry(no_texts, 0, fetch, uri="models:/toy@champion", quantize={"bits": 8, "group_size": 32})
    assert asked == ["models:/toy@champion"] * 2
    assert (loaded.lineage.kind, loaded.lineage.uri, loaded.lineage.revision) == ("registry", "models:/toy@champion", "3")

"""Each recipe packs what it says, is read back as it was made, and learns from training text alone."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS
from pydantic import TypeAdapter, ValidationError

from forge import progress
from forge.errors import ReleaseError
from forge.models import Loaded, fuse
from forge.release import recipes
from forge.release.divergence import diverge, keep
from forge.release.recipes import Recipe, parse
from forge.spec import Lineage
from forge.values import Recipes
from tests.release.conftest import Trained

TOKENS = mx.array([[1, 5, 3, 8, 2, 9, 40, 7]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4bit", ("plain", 4, 4, 64)),
        ("8bit-g32", ("plain", 8, 8, 32)),
        ("mixed_2_6", ("mixed", 2, 6, 64)),
        ("dynamic_4_6-g128", ("dynamic", 4, 6, 128)),
        ("awq", ("awq", 4, 4, 64)),
        ("dwq-3bit", ("dwq", 3, 3, 64)),
        ("gptq-2bit-g32", ("gptq", 2, 2, 32)),
    ],
)
def test_a_recipe_is_read(text: str, expected: tuple[Any, ...]) -> None:
    assert parse(text) == Recipe(text, *expected)
    assert TypeAdapter(Recipes).validate_python(text) == [text]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("7bit", "bits are 2, 3, 4, 5, 6, 8"),
        ("gptq-3bit", "bits are 2, 4, 8"),
        ("dwq-8bit", "bits are 2, 3, 4, 5, 6"),
        ("4bit-g16", "write 4bit, 4bit-g32"),
        ("mixed_3_5", "write 4bit"),
        ("dynamic_6_4", "the fewer bits first"),
        (["4bit", "4bit"], "the same recipe twice"),
    ],
)
def test_what_is_no_recipe_is_refused(asked: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TypeAdapter(Recipes).validate_python(asked)


def quantised(trained: Trained, text: str, tokens: int = 1024) -> Loaded:
    teacher = trained.make().model
    return recipes.quantise(parse(text), trained.make(), teacher, lambda: recipes.calibration(trained.data, tokens))


def bits(loaded: Loaded) -> dict[str, tuple[int, int]]:
    """The bits and the group of each packed layer of the last block, by its last name."""
    block = loaded.model.layers[-1]
    return {name.rpartition(".")[2]: (m.bits, m.group_size) for name, m in block.named_modules() if hasattr(m, "bits")}


RECIPES = ["2bit", "3bit-g32", "5bit", "6bit", "8bit", "mixed_3_6", "dynamic_3_6", "awq-3bit-g32", "dwq-3bit", "gptq-4bit-g32"]


@pytest.mark.parametrize("text", RECIPES)
def test_it_is_read_back_as_it_was_made(trained: Trained, text: str, tmp_path: Path) -> None:
    made, wanted = quantised(trained, text), parse(text)
    fuse.save(made, tmp_path / "model")
    model, _ = fuse.load(tmp_path / "model")
    np.testing.assert_allclose(np.array(model(TOKENS)), np.array(made.model(TOKENS)), atol=1e-4)
    packed = bits(replace(made, model=model))
    assert len(packed) == 7 and {group for _, group in packed.values()} == {wanted.group_size}
    assert {width for width, _ in packed.values()} <= {wanted.bits, wanted.high}
    stated = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stated["quantization"] == stated["quantization_config"]
    unpacked = np.abs(np.array(model(TOKENS)) - np.array(trained.make().model(TOKENS))).max()
    assert 0 < unpacked < {2: 40, 3: 20}.get(wanted.bits, 5)


def test_mixed_gives_values_and_the_way_down_more_bits(trained: Trained) -> None:
    """mlx_lm.convert: in the last eighth of the blocks, rounded up, among others."""
    found = bits(quantised(trained, "mixed_2_6"))
    assert {name for name, (width, _) in found.items() if width == 6} == {"v_proj", "down_proj"}
    assert {width for name, (width, _) in found.items() if name not in ("v_proj", "down_proj")} == {2}


def test_dynamic_comes_to_the_mean_of_both_ends(trained: Trained) -> None:
    from mlx_lm.utils import compute_bits_per_weight

    low, high, mixed = (compute_bits_per_weight(quantised(trained, text).model) for text in ("2bit", "6bit", "dynamic_2_6"))
    assert high - low == pytest.approx(4, abs=0.2)
    assert mixed == pytest.approx((low + high) / 2, abs=1.0)  # whole layers, of which this model has fifteen


@pytest.mark.parametrize(("better", "than", "share"), [("dwq-2bit", "2bit", 0.5), ("8bit", "4bit", 0.1)])
def test_effort_pays_on_text_that_it_has_not_seen(trained: Trained, better: str, than: str, share: float, tmp_path: Path) -> None:
    keep(trained.make().model, trained.data, 10**6, tmp_path / "kept")
    kl = {text: diverge(quantised(trained, text, 8192).model, trained.data, 10**6, tmp_path / "kept").kl for text in (better, than)}
    assert 0 < kl[better] < share * kl[than]


def test_calibration_is_whole_documents_of_training_and_moves_nothing(trained: Trained) -> None:
    train = trained.data.train
    train.cursor = 3
    found = recipes.calibration(trained.data, 1000)
    assert train.cursor == 3
    decode = trained.make().tokenizer.decode
    texts, held_out = [decode(tokens.tolist()) for tokens in found], set()
    for batch in (batch for batches in trained.data.valid.values() for batch in batches):
        for row, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
            held_out |= {decode(row[segments == segment].tolist()) for segment in range(1, segments.max() + 1)}
    assert 1000 <= sum(map(len, found)) < 1000 + 4 * 65
    assert all(text.startswith("<|endoftext|>") and text.count("<|endoftext|>") <= 2 for text in texts)
    assert not held_out & set(texts)


def test_rows_are_full_and_enough_for_a_batch() -> None:
    found = np.array(recipes.rows([np.array([1, 2, 3]), np.array([4, 5])]))
    np.testing.assert_array_equal(found.reshape(-1), ([1, 2, 3, 4, 5] * 5)[:24])
    assert found.shape == (8, 3)


@pytest.mark.parametrize("text", ["awq-3bit-g32", "dwq-3bit", "gptq-4bit-g32", "dynamic_3_6", "4bit"])
def test_what_takes_minutes_says_where_it_is_and_mlx_lm_says_nothing(
    trained: Trained, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two blocks of seven layers each; rows in batches of 4, of GPTQ's 8, the last not full; DWQ watches 4 documents, in whole batches."""
    documents = recipes.calibration(trained.data, 1024)
    rows, watched = len(recipes.rows(documents)), [("watched batch", 1)]
    parts = {
        "awq": [("block", 2)],
        "dwq": [*watched, ("step", (len(documents) - 4) // 4), *watched],
        "gptq": [("batch", math.ceil(rows / 8)), ("layer", 14)],
        "dynamic": [("batch", math.ceil(rows / 4))],
        "plain": [],
    }[parse(text).method]
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    quantised(trained, text)
    expected = [f"{text}: {name} {n} of {total}" for name, total in parts for n in range(1, total + 1)]
    out, err = capfd.readouterr()
    assert (out.splitlines(), err) == (expected, "")


# ---- what can't be done -----------------------------------------------------------------------------------------------


def nothing() -> list[np.ndarray]:
    return [np.array([1, 2, 3])]


@pytest.mark.parametrize("text", ["gptq-4bit-g32", "awq-4bit-g32", "dynamic_4_6-g32"])
def test_a_layer_that_is_no_multiple_of_the_group_is_named(make_tiny_model: Callable[..., Loaded], text: str) -> None:
    """Layers are 16 and 32 wide."""
    loaded = make_tiny_model()
    with pytest.raises(
        ReleaseError, match=rf"^{text}: model\.\S+ is 16 wide, no multiple of 32; take 4bit, which leaves such layers as they are$"
    ):
        recipes.quantise(parse(text), loaded, loaded.model, nothing)


def test_where_no_layer_can_be_packed_that_is_said(make_tiny_model: Callable[..., Loaded]) -> None:
    loaded = make_tiny_model()
    with pytest.raises(ReleaseError, match=r"^4bit: no layer's width is a multiple of 64; take a smaller group, such as -g32$"):
        recipes.quantise(parse("4bit"), loaded, loaded.model, nothing)


def test_an_architecture_that_a_recipe_does_not_know_is_told() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    loaded = Loaded(model, None, {"model_type": "gpt2"}, Lineage("local", "/x", "1"))
    with pytest.raises(ReleaseError, match=r"^mixed_3_6: gpt2 has no layers called down_proj, .* take dynamic_4_6$"):
        recipes.quantise(parse("mixed_3_6"), loaded, model, nothing)
    assert "gpt2" not in AWQ_MODEL_CONFIGS
    with pytest.raises(ReleaseError, match=r"^awq: mlx-lm knows AWQ for .*, qwen3, not for gpt2; take dwq or gptq$"):
        recipes.quantise(parse("awq"), loaded, model, nothing)

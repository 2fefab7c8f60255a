"""Whether what is measured was trained on: row by row, against sets of texts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from forge import data, jobs
from forge.config import Config
from forge.data import Corpus
from forge.data.cache import Cache
from forge.data.ledger import digest
from forge.evaluation import heldout
from forge.settings import DataSpec, SourceSpec
from forge.spec import Document

TEXTS = {"a": [f"a text {n}" for n in range(60)], "b": [f"b text {n}" for n in range(40)], "both": [f"a text {n}" for n in range(0, 60, 3)]}


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """corpus(seed, valid share, source=weight, …)"""
    cache = Cache(tmp_path / "cache", 1.0)

    def make(seed: int, fraction: float = 0.3, **weights: float) -> Corpus:
        spec = DataSpec({name: SourceSpec({}, weight) for name, weight in weights.items()}, 16, fraction, seed, test_fraction=0.1)
        rows = {name: [Document(f"{name}/{n}", text, "made up") for n, text in enumerate(TEXTS[name])] for name in weights}
        return data.read(spec, {name: lambda each=each: each for name, each in rows.items()}, {}, cache)

    return make


def texts(corpus: Corpus, name: str, side: str) -> set[str]:
    rows = [row.text for row in corpus.surveys[name].rows]  # type: ignore[union-attr]
    return {rows[n] for n in getattr(corpus.sides[name], side).tolist()}


def counted(trained: Corpus, name: str, measured: Corpus, by: str) -> list[str]:
    known = texts(trained, by, "train")
    sides = {what: texts(measured, name, side) for side, what in (("valid", "validation"), ("test", "test"))}
    return [f"{len(rows & known)} of {len(rows)} {what} rows" for what, rows in sides.items() if rows & known]


def test_another_seed_and_another_source_hold_rows_that_were_trained_on(corpus: Callable[..., Corpus]) -> None:
    own = corpus(0, a=1.0, b=1.0)
    other = corpus(1, a=1.0, b=1.0)
    found = heldout.seen(own, other)
    assert found == {name: counted(own, name, other, name) for name in "ab"} and len(found["a"]) == 2
    copied = corpus(0, 0.5, both=1.0)  # under another name, at half aside: what was trained on before
    assert heldout.seen(own, copied) == {"both": counted(own, "both", copied, "a")}


def test_the_same_split_fewer_rows_aside_and_sources_without_weight_are_held_out(corpus: Callable[..., Corpus]) -> None:
    own = corpus(0, a=1.0, b=0.0)
    assert heldout.seen(own, own) == {} == heldout.seen(own, corpus(0, 0.2, a=1.0, b=0.0))
    assert set(heldout.seen(own, corpus(1, a=1.0, b=1.0))) == {"a"}


@pytest.fixture
def configured(home: Path, tmp_path: Path) -> Callable[..., Config]:
    """configured(*overrides) of 40 files in a folder"""
    (tmp_path / "texts").mkdir()
    for n in range(40):
        (tmp_path / "texts" / f"{n}.txt").write_text(f"text {n}")

    def make(*words: str) -> Config:
        found = jobs.single(["data=folder", f"data.path={tmp_path}/texts", "data.valid_fraction=0.3", "data.test_fraction=0", *words], "")
        assert found
        return found

    return make


def test_only_other_data_is_looked_at(configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "corpus_of", lambda _: pytest.fail("nothing has to be read"))
    assert heldout.not_held_out(configured(), configured("evaluation.answers=3"), "any") is None


def test_it_is_said_in_a_line_also_where_it_can_not_be_told(configured: Callable[..., Config], tmp_path: Path) -> None:
    """Without a change to the data the counts are exact."""
    own, other, fewer = configured(), configured("data.split_seed=1"), configured("data.valid_fraction=0.1")
    then = digest(heldout.corpus_of(own).digests)
    counts = counted(heldout.corpus_of(own), "folder", heldout.corpus_of(other), "folder")
    assert len(counts) == 1
    said = f"not held out: the run was trained on {counts[0]} of source 'folder'"
    assert heldout.not_held_out(own, other, then) == said
    assert heldout.not_held_out(own, other, "another") == f"{said}; its data has changed since, so there may be more or fewer"
    assert heldout.not_held_out(own, fewer, then) is None
    unknown = "so it can't be told which of these rows it was trained on"
    assert heldout.not_held_out(own, fewer, "another") == f"perhaps not held out: the run's own data has changed since, {unknown}"
    gone = configured("data.path=/no/such/folder")
    told = heldout.not_held_out(gone, other, then)
    assert (
        told and told.startswith("perhaps not held out: the run's own data can't be read (path=/no/such/folder") and told.endswith(unknown)
    )

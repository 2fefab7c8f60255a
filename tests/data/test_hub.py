"""Datasets through the `datasets` library, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from forge.data.sources.hub import dataset
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Document

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    place = tmp_path / "chats"
    place.mkdir()
    write(place / "train.jsonl", *({"messages": TURNS, "n": n} for n in range(3)))
    write(place / "test.jsonl", {"messages": TURNS[:1], "n": 9})
    return place


def write(path: Path, *records: Any) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_rows_of_a_split_are_numbered(chats: Path) -> None:
    rows = list(dataset(id=str(chats)))
    assert [row.origin for row in rows] == ["chats/train:1", "chats/train:2", "chats/train:3"]
    assert all(isinstance(row, Conversation) and list(row.messages) == TURNS and row.id == row.origin for row in rows)
    (bad,) = dataset(id=str(chats), split="test")
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("chats/test:1", "no_target")


def test_a_row_over_the_limit_is_a_bad_row_and_the_others_are_used(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    write(tmp_path / "long" / "train.jsonl", {"body": "one"}, {"body": "x" * 2000}, {"body": "last"})
    one, bad, last = dataset(id=str(tmp_path / "long"), text_field="body", max_row_mb=0.001)
    assert (one, last) == (Document("long/train:1", "one", "long/train:1"), Document("long/train:3", "last", "long/train:3"))
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("long/train:2", "too_large")


def test_the_fingerprint_changes_with_content_split_revision_and_knobs(chats: Path) -> None:
    prints = [
        dataset(id=str(chats), **knobs).fingerprint
        for knobs in ({}, {"split": "test"}, {"split": "train[:1]"}, {"text_field": "body"}, {"max_row_mb": 1.0})
    ]
    assert dataset(id=str(chats)).fingerprint == prints[0]
    write(chats / "train.jsonl", {"messages": TURNS, "n": 7})
    prints.append(dataset(id=str(chats)).fingerprint)
    assert len(set(prints)) == 6


@pytest.mark.parametrize("several", [False, True])
def test_a_dataset_that_save_to_disk_wrote_is_read(tmp_path: Path, several: bool) -> None:
    from datasets import Dataset, DatasetDict

    made = Dataset.from_dict({"text": ["zero", "one", "two"]}).select([2, 0])
    (DatasetDict({"train": made}) if several else made).save_to_disk(str(tmp_path / "saved"))
    assert [row.text for row in dataset(id=str(tmp_path / "saved")) if isinstance(row, Document)] == ["two", "zero"]
    if several:
        with pytest.raises(DataError, match=r"Unknown split \"test\"\. Should be one of \['train'\]"):
            list(dataset(id=str(tmp_path / "saved"), split="test"))


def one_split(place: Path) -> None:
    write(place / "train.jsonl", {"text": "a"})


def several_configurations(place: Path) -> None:
    write(place / "a.jsonl", {"text": "a"})
    entries = "".join(f"- config_name: {name}\n  data_files: a.jsonl\n" for name in ("one", "two"))
    (place / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")


@pytest.mark.parametrize(
    ("make", "knobs", "message"),
    [
        (one_split, {"split": "tset"}, r"Unknown split \"tset\"\. Should be one of \['train'\]; set"),
        (several_configurations, {"name": "three"}, r"BuilderConfig 'three' not found\. Available: \['one', 'two'\]; set"),
        (several_configurations, {}, r"Config name is missing.*\['one', 'two'\]"),
        (lambda place: None, {}, "doesn't contain any data files; give"),
        (lambda place: (place / "train.jsonl").write_text('{"text": '), {}, "its files can't be read .*; give the files to data=folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dataset_is_told_in_one_line(tmp_path: Path, make: Any, knobs: dict[str, Any], message: str) -> None:
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises(DataError, match=rf"^id=.*set: .*{message}") as caught:
        list(dataset(id=str(tmp_path / "set"), **knobs))
    assert "\n" not in str(caught.value)


def test_without_a_network_a_dataset_that_is_not_cached_says_what_to_do() -> None:
    rows = dataset(id="nobody/nothing")  # nothing is looked up yet
    with pytest.raises(DataError, match=r"nobody/nothing: it is not in the cache \(.*cache\), and HF_HUB_OFFLINE is set; connect"):
        _ = rows.fingerprint

"""The report on a folder of small files, read as a person would; a model of a few hundred weights, made and not trained."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from forge.data_report import main

TINY = ("model.layers=1", "model.hidden_size=16", "model.heads=2", "model.kv_heads=1", "model.head_dim=8", "model.mlp_size=32")
SETTINGS = (
    *TINY,
    "model.vocab_size=280",
    "data=folder",
    "data.sequence_length=32",
    "data.valid_fraction=0.25",
    "trainer.budget=2 epochs",
    "trainer.micro_batch=1",
    "trainer.accumulate=1",
)
Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["data_report"])
    return tmp_path / "home"


@pytest.fixture
def report(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Report:
    """report(*overrides) -> (exit code, stdout, stderr). 22 files: one a copy, one empty, two alike with orders for the terminal."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(18):
        (folder / f"{n:02}.txt").write_text(f"Text {n} says naïve things in 日本 and of 😀. " * (n // 6 + 1))
    (folder / "copy.txt").write_text((folder / "03.txt").read_text())
    (folder / "empty.txt").write_text("  \n")
    for name in ("orders.txt", "orders-copy.txt"):
        (folder / name).write_text("a\x1b[31mred\x07 [bold]and\u202e more of it\r\n")

    def run(*overrides: str, flags: Sequence[str] = ()) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*flags, *SETTINGS, f"data.path={folder}", *overrides])
        return code, *capfd.readouterr()

    return run


def lines(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_what_a_run_would_be_trained_on(report: Report, root: Path) -> None:
    """22 rows read: 1 empty, 2 duplicates, 19 on the two sides."""
    code, out, err = report()
    assert (code, [line for line in err.splitlines() if "BLAS" not in line]) == (0, [])
    said = lines(out)
    counts = {line[0]: int(line[1]) for line in said if len(line) == 2 and line[1].isdigit()}
    assert counts["train"] + counts["valid"] == 19 and counts["valid"] > 0
    assert (counts["bad"], counts["dropped"], counts["empty"], counts["duplicate"]) == (0, 3, 1, 2)
    assert ["rows", "read", "22"] in said and ["=", "sum", "of", "the", "five", "22"] in said
    (epochs,) = [float(line[2]) for line in said if line[:2] == ["epochs", "planned"]]
    assert epochs == pytest.approx(2, abs=0.1)
    assert "packed: qwen3 keeps packed documents apart" in out and re.search(r"tokenizer +[0-9a-f]{12}", out)
    assert ("too long for 32" in out and "folder: duplicate: copy.txt: " in out) or "folder: duplicate: 03.txt: " in out
    (picture,) = re.findall(r"as a picture: (.+\.png)", out)
    assert Path(picture).parent == root / "mlruns" / "reports" / "data" and Path(picture).read_bytes().startswith(b"\x89PNG")


def test_samples_mark_what_is_learnt_and_give_the_terminal_no_orders(report: Report) -> None:
    """In plain output the first token of a row is outside the brackets, and nothing but printable text comes out."""
    _, out, _ = report("data.packing=bucket", "data.sequence_length=256")
    samples = [line for line in out.splitlines() if line.startswith("│ ")]
    assert len(samples) >= 2 and any("日本" in line and "😀" in line for line in samples)
    assert sum(line.count("⟦") for line in samples) == sum(line.count("⟧") for line in samples) >= 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out)
    assert r"folder: duplicate: orders.txt: a\x1b[31mred\x07 [bold]and\u202e more of it" in out.splitlines()


def test_colour_takes_the_place_of_brackets(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out, _ = report()
    assert "⟦" not in out and "\x1b[32mlearnt\x1b[0m, the rest is only read" in out
    assert re.search(r"\x1b\[2m│ \x1b\[0m[^\x1b]*\x1b\[32m", out)  # neither the margin nor the first token is coloured so


def test_documents_of_a_row_are_told_apart_and_long_rows_shortened(report: Report) -> None:
    """All training text in rows of 512 tokens: several documents in each, and more tokens than are shown."""
    _, out, _ = report("data.sequence_length=512")
    sizes = [int(found) for found in re.findall(r"folder: (\d+) tokens in", out)]
    left_out = [int(found) for found in re.findall(r"│ … (\d+) tokens left out …", out)]
    assert left_out == [size - 180 - 80 for size in sizes if size > 320] and left_out
    assert "│ ┄┄┄┄ document 2 ┄┄┄┄" in out.splitlines()


def test_opens_no_run_and_writes_only_its_picture_and_the_cache(report: Report, root: Path) -> None:
    report()
    assert {path.name for path in root.iterdir()} == {"mlruns"}
    assert {path.name for path in (root / "mlruns").iterdir()} == {"cache", "reports"}


def test_the_longest_rows_come_first(report: Report) -> None:
    """Texts 12 … 17 stand three times in their files; one of them is the longest on the training side."""
    _, out, _ = report()
    after = out.partition("folder: longest rows")[2].splitlines()[1:4]
    tokens = [int(line.split()[0]) for line in after]
    assert tokens == sorted(tokens, reverse=True) and all(re.search(r"1[2-7]\.txt$", line) for line in after)


def test_a_broken_limit_is_told_after_the_report(report: Report) -> None:
    """3 of 22 rows are dropped, and 2 epochs are planned."""
    code, out, err = report("data.limits.dropped_share=0.05", "data.limits.epochs=1", "data.limits.bad_share=0.5")
    assert code == 3 and "Rows that are not used" in out
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 2
    assert "dropped_share is 0.1364, above data.limits.dropped_share=0.05" in told[0] and "data.limits.epochs=1" in told[1]


def test_preference_pairs_in_use_are_told_as_by_train(report: Report) -> None:
    pairs = "+data/source@data.sources.pairs.source=preferences"
    code, out, err = report(pairs, "+data.sources.pairs.weight=1", "data.template=simple")
    assert code == 3 and "Samples" in out and "source 'pairs' holds preference pairs" in err
    assert report(pairs, "+data.sources.pairs.weight=0", "data.template=simple")[0] == 0


def test_a_plan_that_can_t_be_made_is_told_with_the_rest(report: Report) -> None:
    code, out, err = report("schedule.warmup=1000000 steps")
    assert code == 2 and "no plan, so no epochs: schedule: 1000000 warm-up" in out and ["epochs", "planned", "–"] in lines(out)
    assert "error: schedule: 1000000 warm-up" in err


def test_mistakes_are_told_as_by_train(report: Report) -> None:
    code, out, err = report("data.path=/nowhere/at/all")
    assert code == 3 and "error: " in err and "/nowhere/at/all" in err and out == ""
    assert report("trainer.micro_bach=3")[0] == 2


def test_a_sweep_is_refused_in_one_line(report: Report) -> None:
    code, out, err = report("seed=1,2", flags=["-m"])
    assert (code, out, err) == (2, "", "error: data_report looks at the data of one job: leave out -m\n")


def test_cfg_prints_the_configuration_and_writes_nothing(report: Report, root: Path) -> None:
    code, out, _ = report(flags=["--cfg", "job"])
    assert code == 0 and "sequence_length: 32" in out and not root.exists()

"""Runs side by side: what is paired and what is not, in words, tables, a picture, a page and a CSV."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forge.errors import TrackingError
from forge.reports import comparison, comparison_figure, comparison_page, documents
from forge.reports.comparison import Compared
from forge.reports.palette import DARK, LIGHT

SIZES = {"code": [10 + n for n in range(30)], "prose": [40 + 2 * n for n in range(20)], "apart": [5] * 10}


def losses(level: float, noise: float = 0.0, seed: int = 0) -> dict[str, list[tuple[str, float, int]]]:
    """Of each document `level` nats a token, and noise."""
    draw = np.random.default_rng(seed)
    return {
        source: [(f"{source}/{n:02}", size * (level + noise * float(draw.normal())), size) for n, size in enumerate(sizes)]
        for source, sizes in SIZES.items()
    }


def make(name: str, level: float = 2.0, seed: int = 0, digest: str = "f" * 64, noise: float = 0.02, **changes: Any) -> Compared:
    held = losses(level, noise, seed)
    means = {f"final/loss/{source}": sum(loss for _, loss, _ in each) / sum(SIZES[source]) for source, each in held.items()}
    digests = {"full_digest": digest, "valid_digest": "e" * 64, "data_digest": "d" * 64, "tokenizer_digest": "a" * 64}
    settings: dict[str, Any] = {
        "name": name,
        "id": name.rjust(32, "0"),
        "status": "FINISHED",
        "history": [(step, {"train/loss": level + 1 / step, "val/loss": level + 1.1 / step}) for step in range(1, 30)],
        "metrics": {"final/loss": level, "best/val_loss": level + 0.1, "best/step": 29.0, "train/tokens": 5e6} | means,
        "settings": {"optimizer.lr": "0.1", "seed": str(seed)},
        "digests": digests,
        "seconds": 75.0,
        "documents": documents.read(documents.text(digest, held, {"apart"})),
    }
    return Compared(**(settings | changes))


def against(*runs: Compared, confidence: float = 0.95) -> list[comparison.Verdict]:
    return comparison.verdicts({run.name: [run] for run in runs}, confidence)


# ---- documents --------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_written() -> None:
    text = documents.text("digest", {"a": [("one é", 1.23456789012, 3), ("two", math.nan, 4)], "b": [("x", 1e6 / 3, 10**6)]}, {"b"})
    assert json.loads(text)["sources"]["a"][1] == ["two", None, 4]
    assert "NaN" not in text and ": " not in text
    held = documents.read(text)
    assert (held.digest, held.unweighted, held.names) == ("digest", {"b"}, {"a": ["one é", "two"], "b": ["x"]})
    assert held.losses["a"].tolist() == pytest.approx([1.23456789, math.nan], nan_ok=True)
    assert held.losses["b"].tolist() == pytest.approx([1e6 / 3], rel=1e-8)
    assert held.targets["a"].tolist() == [3, 4]


@pytest.mark.parametrize("text", ["", "[]", '{"digest": "d"}', '{"digest": "d", "unweighted": [], "sources": {"a": [["x", 1]]}}'])
def test_a_file_that_is_not_ours_is_told_so(text: str) -> None:
    with pytest.raises(TrackingError, match=r"evaluation/documents\.json of a run isn't what forge writes"):
        documents.read(text)


# ---- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_difference_is_that_of_the_losses_by_hand() -> None:
    """In every document 0.25 nats a token, in `apart` too, which has no weight: 2 → 1.75 is 12.5 %."""
    first, second = make("A", 2.0, noise=0), make("B", 1.75, noise=0)
    (found,) = against(first, second)
    assert (found.word, found.label) == ("better", "B")
    assert found.overall.value == pytest.approx(-0.25) and found.by_source["apart"].value == pytest.approx(-0.25)
    assert found.sentence.startswith("B is better than A by 0.2500 nats a token (12.50%): 95 % interval 0.2500 to 0.2500")
    assert "over 50 documents" in found.sentence  # 30 and 20, not the 10 apart
    (found,) = against(second, first)
    assert found.word == "worse" and found.sentence.startswith("A is worse than B by 0.2500 nats a token (14.29%)")


def test_a_source_without_weight_decides_nothing() -> None:
    held = losses(2.0)
    other = held | {"apart": [(name, loss / 2, size) for name, loss, size in held["apart"]]}
    runs = [make(name, documents=documents.read(documents.text("f" * 64, each, {"apart"}))) for name, each in (("A", held), ("B", other))]
    (found,) = against(*runs)
    assert found.sentence == "can't tell B from A: they are the same on each of 50 documents"
    assert found.by_source["apart"].value == pytest.approx(-1.0)


def test_noise_is_no_verdict() -> None:
    (found,) = against(make("A", seed=1), make("B", seed=2))
    assert found.word == "can't tell" and re.match(
        r"can't tell B from A: .* nats a token .* 95 % interval -0.* to \+0.* p 0\.", found.sentence
    )


def test_each_further_run_makes_a_verdict_harder() -> None:
    """p is about 0.04: enough alone, not among three."""
    first, *same = make("A", seed=1), make("C", seed=3), make("D", seed=4)
    second = make("B", 2.0 - 0.0115, seed=2)
    (alone,) = against(first, second)
    assert alone.word == "better" and 0.02 < alone.p < 0.05
    among = against(first, second, *same)[0]
    assert among.word == "can't tell" and "though by itself it would be told" in among.sentence
    assert among.p == pytest.approx(3 * alone.p)
    assert "corrected for 3 comparisons" in comparison.caveat([among] * 3)


def test_seeds_are_taken_together() -> None:
    """The two groups' means differ by 0.01, their seeds by twice that."""
    groups = {
        "narrow": [make(f"n{n}", level, n) for n, level in enumerate((1.98, 2.0, 2.02))],
        "wide": [make(f"w{n}", level - 0.01, 5 + n) for n, level in enumerate((1.98, 2.0, 2.02))],
    }
    (found,) = comparison.verdicts(groups, 0.95)
    assert found.word == "can't tell" and "3 against 3 runs" in found.sentence
    assert found.overall.value == pytest.approx(-0.01, abs=0.01)
    assert against(groups["narrow"][0], make("w", 1.97, 5))[0].word == "better"
    assert comparison.caveat([found]) == ""


def test_runs_of_the_same_seeds_are_matched() -> None:
    """In whatever order they are named: seeds move both sides by ten times the difference."""
    levels = (1.9, 2.0, 2.1)
    first = [make(f"n{n}", level, n) for n, level in enumerate(levels)]
    second = [make(f"w{n}", level - 0.01, n) for n, level in enumerate(levels)][::-1]
    (found,) = comparison.verdicts({"A": first, "B": second}, 0.95)
    assert found.word == "better" and "3 runs against 3 of the same seeds" in found.sentence
    (found,) = comparison.verdicts({"A": first[:2], "B": second}, 0.95)
    assert found.word == "can't tell" and "3 against 2 runs" in found.sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digest": "0" * 64}, "can't be compared on different tokens: give them the same data"),
        ({"documents": documents.read(documents.text("f" * 64, {"code": [("x", 1.0, 9)]}))}, "can't be compared on different tokens"),
        ({"documents": None}, "B has no evaluation/documents.json, since it was trained by an older forge"),
        ({"documents": None, "status": "RUNNING"}, "and it is still running"),
        ({"documents": None, "status": "KILLED"}, "as it did not come to its end (KILLED)"),
        ({"digest": "0" * 64, "digests": {"tokenizer_digest": "b" * 64, "data_digest": "0"}}, "tokenizers were not measured on the same"),
    ],
)
def test_what_can_not_be_paired_says_why(changes: dict[str, Any], said: str) -> None:
    (found,) = against(make("A"), make("B", 1.0, **changes))
    assert found.word == "can't tell" and found.shared is None and said in found.sentence


def tokenised(name: str, bits: float, pieces: int, spelt: int, **changes: Any) -> Compared:
    """`bits` a byte on 50 texts of 20 … 118 bytes, cut into `pieces` tokens each."""
    texts = [20 + 2 * n for n in range(50)]
    held = {"a": [(f"{n:02}", bits * math.log(2) * size * spelt / sum(texts), pieces) for n, size in enumerate(texts)]}
    digests = {"tokenizer_digest": name, "data_digest": "d", "full_digest": name}
    return make(
        name, documents=documents.read(documents.text(name, held)), digests=digests, metrics={"final/bits_per_byte": bits}, **changes
    )


def test_other_tokens_of_the_same_text_are_compared_by_the_byte() -> None:
    total = sum(20 + 2 * n for n in range(50))
    (found,) = against(tokenised("A", 1.2, 9, total), tokenised("B", 0.9, 4, total - 30))
    assert found.overall.value == pytest.approx(-0.3) and "B is better than A by 0.3000 bits a byte (25.00%)" in found.sentence
    (found,) = against(tokenised("A", 1.2, 9, total), tokenised("B", 0.9, 4, total - 100))  # not the same text
    assert found.word == "can't tell" and found.shared is None


def test_what_was_trained_on_is_no_evidence_in_silence() -> None:
    seen = replace(make("A"), not_held_out="not held out: the run was trained on 3 of 4 validation rows of source 'a'")
    assert comparison.warnings({"A": [seen], "B": [make("B")]}) == [
        "A: not held out: the run was trained on 3 of 4 validation rows of source 'a'"
    ]


def test_warnings_name_what_is_not_the_same() -> None:
    groups = {"A": [make("A")], "B": [make("B", digest="0" * 64), make("C", settings={"optimizer.lr": "0.2", "seed": "0"}, documents=None)]}
    told = comparison.warnings(groups)
    assert [text.split(":")[0] for text in told] == ["DIFFERENT DATA", "the runs of B differ in more than their seed", "B"]
    assert "optimizer.lr" in told[1] and "C left out of the verdict" in told[2]
    assert comparison.warnings({"A": [make("A")], "B": [make("B", seed=1), make("C", seed=2)]}) == []


# ---- tables, picture, page, CSV ---------------------------------------------------------------------------------------


def cells(table: comparison.Table) -> list[Sequence[str]]:
    return [table.header, *table.rows]


def test_tables_hold_what_differs_and_nothing_else() -> None:
    running = {"status": "RUNNING", "documents": None, "metrics": {}, "settings": {"optimizer.lr": "0.1", "seed": "0", "model.layers": "2"}}
    groups = {"A": [make("A")], "seeds": [make("B", 1.75, 1), make("C", 1.75, 2)], "D": [make("D", **running)]}
    runs, sources, settings, digests = comparison.tables(groups, comparison.verdicts(groups, 0.9), 0.9)
    assert [row[0] for row in runs.rows] == ["A", "seeds: B", "seeds: C", "D"]
    assert runs.rows[0][2:] == ["finished", "2.1000", "29", "2.0000", "–", "5M", "75 s"]
    assert runs.rows[3][2:7] == ["running", "2.0379", "29", "–", "–"]  # 2 + 1.1 / 29
    assert cells(settings)[1:] == [["model.layers", "–", "–", "2"], ["seed", "0", "1, 2", "0"]]
    assert sources.header == ["source", "A", "seeds", "D", "seeds less A"] and sources.rows[0][1:4] == ["2.0000", "1.7500", "–"]
    assert sources.rows[0][4].startswith("-0.2") and "90 %" in sources.note
    assert [row[-1] for row in digests.rows] == ["same"] * 5
    alone = {"A": [make("A")], "B": [make("B")]}
    assert comparison.tables(alone, [], 0.9)[2].note == "nothing differs"


@pytest.mark.parametrize("kind", ["paired", "unpaired", "nothing"])
@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_the_picture_stays_within_its_page(kind: str, palette: Any) -> None:
    long = "$a name of 100 letters$ " * 4
    changes: dict[str, Any] = {"paired": {}, "unpaired": {"documents": None}, "nothing": {"documents": None, "history": []}}[kind]
    groups = {long: [make("A")], "B": [make("B", 1.75, 1, **changes), make("C", 1.7, 2, **changes)], "D": [make("D", 1.9, **changes)]}
    if kind == "nothing":
        groups = {"B": groups["B"], "D": groups["D"]}
    found = comparison.verdicts(groups, 0.95)
    figure = comparison_figure.draw(groups, found, ["DIFFERENT DATA: " + "so " * 60], palette)
    figure.canvas.draw()
    page = figure.bbox
    for ax in figure.axes:
        for text in ax.texts:
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
    (curves,) = (ax for ax in figure.axes if ax.get_label() == "curves")
    assert len(curves.lines) == (0 if kind == "nothing" else 8)  # training and validation of four runs
    pixels = np.asarray(Image.open(io.BytesIO(comparison_page.png(figure))).convert("RGB"))
    assert "#{:02x}{:02x}{:02x}".format(*pixels[0, 0]) == palette.paper


@pytest.mark.parametrize(("first", "whole"), [(4.2, True), (8.0, False)])
def test_the_axis_shows_where_validation_started_unless_that_would_flatten_the_rest(first: float, whole: bool) -> None:
    """From step 34 of 100 the losses go from 4.0 down to 2.6; a tuned model starts a little above that, one from nothing far."""
    train = [(step, {"train/loss": 4.0 - 1.4 * max(step - 34, 0) / 66}) for step in range(1, 101)]
    valid = [(0, {"val/loss": first}), (50, {"val/loss": 3.9}), (100, {"val/loss": 3.7})]
    run = make("tuned", history=[*valid[:1], *train, *valid[1:]])
    figure = comparison_figure.draw({"tuned": [run]}, [], palette=LIGHT)
    (top,) = {axes.get_ylim()[1] for axes in figure.axes if any("validation" in text.get_text() for text in axes.texts)}
    assert (top > first) == whole and top > 3.9


def test_the_page_needs_nothing_else_and_trusts_no_name() -> None:
    name = "<script>alert(1)</script>"
    groups = {"A": [make("A")], name: [make(name, 1.75)]}
    found = comparison.verdicts(groups, 0.95)
    figures = {theme: comparison_figure.draw(groups, found, palette=palette) for theme, palette in (("light", LIGHT), ("dark", DARK))}
    page = comparison_page.page(
        " · ".join(groups), found, comparison.caveat(found), ["a warning"], comparison.tables(groups, found, 0.95), figures
    )
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href|srcset)=\"(?!data:)|https?://|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 2 and "a warning" in page and "Configuration, where it differs" in page


def test_the_csv_has_a_line_a_document() -> None:
    groups = {"A": [make("A", seed=1)], "B": [make("B", 1.75, 2), make("C", 1.75, 3)], "D": [make("D", documents=None)]}
    lines = list(csv.DictReader(io.StringIO(comparison_page.table("A", comparison.verdicts(groups, 0.95)))))
    assert len(lines) == 60 and {line["second"] for line in lines} == {"B"}
    one = next(line for line in lines if line["document"] == "prose/03")
    values = [float(run.documents.losses["prose"][3]) for run in (*groups["A"], *groups["B"]) if run.documents]
    assert (one["source"], one["size"], one["unit"]) == ("prose", "46", "nats a token")
    assert float(one["first_loss"]) == pytest.approx(values[0]) and float(one["second_loss"]) == pytest.approx((values[1] + values[2]) / 2)
    assert float(one["difference"]) == pytest.approx((values[1] + values[2]) / 2 - values[0])

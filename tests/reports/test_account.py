"""The ledger as tables and lengths as bars, read off as a terminal of a given width would show them."""

import numpy as np
import pytest
from rich.console import Console

from forge.reports.account import bar, bars, digests, doubling, tables
from forge.spec import Ledger


def ledger(*names: str) -> Ledger:
    """Each source has 100 rows: 60 + 20 + 5 on the sides, 6 bad (4 + 2), 9 dropped (all duplicates). The last has a reason of its own."""
    counts: dict[str, float] = {"data/overlap": 0}
    for name in names:
        rows = {"rows_in": 100, "rows_train": 60, "rows_valid": 20, "rows_test": 5, "rows_bad": 6, "rows_dropped": 9}
        rows |= {"rows_bad/no_text": 4, "rows_bad/bad_json": 2, "rows_dropped/duplicate": 9}
        tokens = {"tokens_train": 8000, "tokens_cut": 80, "targets_train": 2000, "weight": 1 / len(names), "epochs_planned": 1.5}
        counts |= {f"data/{name}/{key}": value for key, value in (rows | tokens).items()}
    counts[f"data/{names[-1]}/rows_noted/system_merged"] = 3
    counts[f"data/{names[-1]}/files_skipped/.docx"] = 7
    return Ledger(counts, "d" * 64, "e" * 64, dict.fromkeys(names, "f" * 64))


def shown(renderable: object, width: int = 100) -> list[list[str]]:
    """The words of each line that has any."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(renderable)
    return [line.split() for line in captured.get().splitlines() if line.strip()]


def test_rows_visibly_add_up() -> None:
    (table,) = tables(ledger("a", "b"), 100)
    lines = shown(table)
    assert lines[0] == ["a", "b", "all"]
    rows = {" ".join(word for word in line if not word[0].isdigit()): line[-3:] for line in lines[2:]}
    sides = ["train", "valid", "test", "bad", "dropped"]
    assert [sum(int(rows[side][column]) for side in sides) for column in range(3)] == [100, 100, 200]
    assert rows["rows read"] == rows["= sum of the five"] == ["100", "100", "200"]
    assert rows["bad_json"] == ["2", "2", "4"] and rows["no_text"] == ["4", "4", "8"] and rows["duplicate"] == ["9", "9", "18"]


def test_shares_and_what_is_not_known() -> None:
    (table,) = tables(ledger("a", "b"), 100)
    lines = shown(table)
    assert ["learnt,", "share", "25", "%", "25", "%"] in lines  # 2000 of 8000
    assert ["cut,", "share", "1", "%", "1", "%"] in lines
    assert ["epochs", "planned", "1.50", "1.50"] in lines
    assert ["padding", "–", "–"] in lines
    assert ["rows", "noted:", "system_merged", "–", "3", "3"] in lines
    assert ["files_skipped/.docx", "–", "7", "7"] in lines  # a count that the table doesn't know
    assert not [line for line in lines if line[0].startswith(("rows_", "tokens_", "targets_"))]  # and no other stands there twice


def test_a_source_alone_has_no_sums() -> None:
    (table,) = tables(ledger("alone"), 80)
    assert shown(table)[0] == ["alone"]


def test_many_sources_take_several_tables_and_none_is_cut() -> None:
    names = [f"source-number-{n}" for n in range(8)]
    found = [shown(table, 80)[0] for table in tables(ledger(*names), 80)]
    assert [name for header in found for name in header] == [*names, "all"] and len(found) > 2
    assert len(list(tables(ledger(*names), 20))) == 8  # too narrow for any: one each


def test_digests_are_short_and_what_there_is_none_of_says_so() -> None:
    found = shown(digests(ledger("a")))
    assert found == [
        ["data", "d" * 12],
        ["validation", "tokens", "e" * 12],
        ["tokenizer", "none"],
        ["chat", "template", "none"],
        ["source", "a", "f" * 12],
    ]


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (20, 300, [17, 33, 65, 129, 258, 513]),
        (257, 257, [129, 258]),
        (258, 258, [258, 513]),
        (1, 1, [1, 2, 3, 5, 9, 17, 33, 65, 129, 258]),
    ],
)
def test_bins_double_away_from_the_limit(low: int, high: int, edges: list[int]) -> None:
    """256 positions take 257 tokens."""
    assert doubling(low, high, 256) == edges


def test_bars_are_as_long_as_their_share_and_the_limit_stands_between() -> None:
    lines = shown(bars(np.array([100] * 20 + [200] * 80 + [300]), 256))
    assert lines[0] == ["65–128", "█" * 10, "20"]
    assert lines[1] == ["129–257", "█" * 40, "80"]
    assert " ".join(lines[2]).strip("─ ") == "0.99 % too long for 256"
    assert lines[3] == ["258–512", "▌", "1"]


def test_the_limit_is_shown_where_all_fit() -> None:
    assert " ".join(shown(bars(np.array([200]), 256))[-1]).strip("─ ") == "none too long for 256"


@pytest.mark.parametrize(("share", "drawn"), [(0, ""), (1e-9, "▏"), (1 / 40, "█"), (1.5 / 40, "█▌"), (1, "█" * 40)])
def test_a_bar_has_eighths_and_what_is_there_is_seen(share: float, drawn: str) -> None:
    assert bar(share) == drawn

"""python -m forge.compare A B … : which of these runs is better, how sure that is, and in what they differ. Loads no model.

A run is an id, the beginning of one, or a name; RUN@base is the model that it started from; LABEL=RUN,RUN,… are seeds of one configuration.
The first is what the others are held against. Prints tables and verdicts, and writes a picture, a page and a CSV of all documents to a
folder and to each run. Costs a second or two, and another for 10,000 steps.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forge.entry import Parser, entry
from forge.errors import ConfigError, TrackingError
from forge.reports import comparison, comparison_answers, documents, questions
from forge.reports.comparison import Compared, Groups, Verdict

if TYPE_CHECKING:
    from forge.tracking.reader import MlflowClient

_CURVES = ("train/loss", "val/loss")
_BASE = "@base"
_WIDE = 160  # characters of a line in a file, so that no name is cut
_STYLES = {"better": "bold green", "worse": "bold red", "can't tell": "bold"}


def main(argv: list[str]) -> int:
    """The exit code: 0 whatever the verdict is, or that of an error."""
    return entry(_compare, argv)


def _compare(argv: list[str]) -> int:
    from forge.tracking import reader

    asked = _arguments(argv)
    if not 0.5 <= asked.confidence <= 0.99:
        raise ConfigError(f"--confidence {asked.confidence:g}: has to be from 0.5 to 0.99")
    client = reader.opened(asked.uri)
    groups = _groups(client, asked.runs)
    alarms = comparison.warnings(groups)
    found = comparison.verdicts(groups, asked.confidence)
    answered = comparison_answers.answered(groups, asked.confidence)
    tables = comparison.tables(groups, found, asked.confidence)
    if table := comparison_answers.table(groups, answered, asked.confidence):
        tables.insert(2, table)  # behind the losses
    said = [*found, *(each.verdict for each in answered)]
    note = comparison.caveat(found)
    _print(alarms, said, note, tables)
    folder = asked.out or Path(f"forge-compare-{'-'.join(map(_plain, groups))}"[:120])
    files = _write(folder, groups, alarms, found, said, note, tables)
    print(f"\nwritten to {files[0].parent}")
    if not asked.no_log:
        _log(client, groups, files, said)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    about = (__doc__ or "").partition(" : ")[2]
    parser = Parser("forge.compare", about)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="RUN, RUN@base, or LABEL=RUN,RUN,…")
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and verdicts (default: 0.95)")
    parser.add_argument("--out", type=Path, help="the folder to write to (default: ./forge-compare-A-B)")
    parser.add_argument("--no-log", action="store_true", help="leave the runs in the store as they are")
    return parser.parse_args(argv)


# ---- reading ----------------------------------------------------------------------------------------------------------


def _groups(client: "MlflowClient", words: Sequence[str]) -> Groups:
    """By label. Raises ConfigError and TrackingError."""
    if len(words) < 2:
        raise ConfigError("name two runs or more, as in: python -m forge.compare A B; a run and what it started from are A@base A")
    found: dict[str, list[Compared]] = {}
    seen: set[str] = set()
    for word in words:
        label, runs = _group(client, word)
        if again := [run.name for run in runs if run.id in seen]:
            raise ConfigError(f"{word}: the run {again[0]} was named before; name each once")
        for run in runs:
            seen.add(run.id)
        found[f"{label} {runs[0].id[:8]}" if label in found else label] = runs
    return found


def _group(client: "MlflowClient", word: str) -> tuple[str, list[Compared]]:
    """A run alone, whose name may hold "=", else LABEL=RUN,RUN."""
    label, several, names = word.partition("=")
    try:
        run = _read(client, word)
    except TrackingError as error:
        if not several:
            raise
        try:
            return label, [_read(client, name) for name in names.split(",")]
        except TrackingError as member:
            raise TrackingError(f"{word}: no run is called so, and as LABEL=RUN,RUN: {member}") from error
    return run.name, [run]


def _read(client: "MlflowClient", wanted: str) -> Compared:
    from forge.tracking import reader

    base = wanted.endswith(_BASE)
    seen = reader.find(client, wanted.removesuffix(_BASE))
    names = (documents.BASE_FILE, questions.BASE_FILE) if base else (documents.FILE, questions.FILE)
    config, held, asked = (reader.text(client, seen.id, name) for name in ("config/config.yaml", *names))
    of_base = {key.replace("base/", "final/", 1): value for key, value in seen.metrics.items() if key.startswith("base/")}
    return Compared(
        name=seen.name + _BASE * base,
        id=seen.id + _BASE * base,
        status=seen.status,
        history=[] if base else reader.history(client, seen.id, [key for key in _CURVES if key in seen.metrics]),
        metrics=of_base if base else seen.metrics,
        settings=_settings(config) if config else {},
        digests={tag: seen.tags.get(f"forge.{tag}", "") for tag in comparison.DIGESTS},
        seconds=0.0 if base else (seen.ended or time.time() * 1000) / 1000 - seen.started / 1000,
        documents=documents.read(held) if held else None,
        questions=questions.read(asked) if asked else None,
        not_held_out="" if base else seen.tags.get("forge.not_held_out", ""),
    )


def _settings(text: str) -> dict[str, str]:
    """Those that can change a result, by dotted name."""
    from omegaconf import OmegaConf

    from forge.config import dotted, relevant

    tree: Any = OmegaConf.to_container(OmegaConf.create(text))
    return {key: "null" if value is None else str(value) for key, value in dotted(relevant(tree))}


# ---- telling ----------------------------------------------------------------------------------------------------------


def _print(alarms: Sequence[str], said: Sequence[Verdict], note: str, tables: Sequence[comparison.Table]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    for each in tables:
        console.print()
        console.print(_shown(each.title, "bold underline"))
        if each.rows:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for cell in each.header:
                table.add_column(_shown(cell))
            for row in each.rows:
                table.add_row(*(_shown(cell) for cell in row))
            console.print(table)
        if each.note:
            console.print(_shown(each.note, "dim"))
    console.print()
    for alarm in alarms:
        console.print(_shown(f"WARNING: {alarm}", "bold red"), soft_wrap=True)
    for one in said:
        console.print(_shown(one.sentence, _STYLES[one.word]), soft_wrap=True)
    if note:
        console.print(_shown(note, "dim"), soft_wrap=True)


def _shown(text: str, style: str = "") -> Text:
    """Names from a store give the terminal no orders."""
    return Text("".join(char if char.isprintable() else "?" for char in text), style)


def _write(
    folder: Path,
    groups: Groups,
    alarms: Sequence[str],
    found: Sequence[Verdict],
    said: Sequence[Verdict],
    note: str,
    tables: Sequence[comparison.Table],
) -> list[Path]:
    """`found`: of losses, which the picture shows; `said`: these, and those of answers."""
    from forge.reports import comparison_figure, comparison_page
    from forge.reports.palette import THEMES

    figures = {theme: comparison_figure.draw(groups, found, palette=palette) for theme, palette in THEMES.items()}
    title = " · ".join(groups)
    contents = {
        "compare.png": comparison_page.png(comparison_figure.draw(groups, found, alarms)),
        "compare.html": comparison_page.page(title, said, note, alarms, tables, figures).encode(),
    }
    if any(each.shared for each in found):
        contents["documents.csv"] = comparison_page.table(next(iter(groups)), found).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror}); choose another place with --out") from error
    return [folder / name for name in contents]


def _log(client: "MlflowClient", groups: Groups, files: Sequence[Path], found: Sequence[Verdict]) -> None:
    """To each run, below the ids of those that it was held against."""
    from forge.tracking.attach import attach

    said = " / ".join(each.sentence for each in found)
    for run in (run for group in groups.values() for run in group if not run.id.endswith(_BASE)):
        others = [other for group in groups.values() if run not in group for other in group]
        ids = ["base" if other.id == run.id + _BASE else other.id.replace(_BASE, "-base") for other in others]
        place = "-".join(each[:8] for each in ids[:4]) + (f"-and-{len(ids) - 4}-more" if len(ids) > 4 else "")
        attach(client, run.id, files, f"compare/{place}", {f"forge.compare.{place}": said})


def _plain(label: str) -> str:
    return re.sub(r"[^\w.]+", "_", label).strip("_")[:40]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

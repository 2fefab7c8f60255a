"""python -m forge.data_report +experiment=… data=… : what a run would be trained on. Opens no run and trains nothing.

Costs what the start of a run costs: reading, tokenising, and the model, whose tokenizer it needs. What was prepared is kept for the run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from forge import jobs, paths
from forge.config import Config
from forge.data import ledger, preview
from forge.data.preview import Extent, Sample, printable
from forge.entry import entry
from forge.errors import DataError, ForgeError
from forge.spec import Data, Ledger, Plan

_WORST = 3  # rows of a kind
_LEARNT = "green"


def main(argv: list[str]) -> int:
    """The exit code: 0, 3 where a limit of data.limits is broken, or that of the error which the run would have ended with."""
    return entry(_report, argv)


def _report(argv: list[str]) -> int:
    config = jobs.single(argv, "data_report looks at the data of one job")
    if config:
        _show(config)
    return 0


def _show(config: Config) -> None:
    """Raises, once all is printed, what the run would have ended with before its first step."""
    from forge.assemble import assemble, plan, planned

    def fetch(uri: str) -> tuple[Path, str]:
        from forge.tracking import registry

        return registry.fetch(config.tracking.uri, uri)

    parts = assemble(config, fetch)
    account, steps, refused = parts.data.ledger, None, None
    try:
        steps = plan(config, parts.data, peak=1.0)  # learning rates are not reported
        account = planned(parts.data, steps)
    except ForgeError as error:
        refused = error
    console = Console(highlight=False)
    _heading(console, config, parts.data, steps, refused)
    _account(console, account)
    _lengths(console, config, parts.data)
    tokenizer = parts.loaded.tokenizer
    _samples(console, parts.data, lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    _unused(console, account)
    _outstanding(console, parts.data)
    if broken := ledger.broken(account, config.data.limits):
        raise DataError("\n".join(broken))
    if refused:
        raise refused


def _heading(console: Console, config: Config, built: Data, steps: Plan | None, refused: ForgeError | None) -> None:
    _title(console, f"What {config.name} ({config.identity}) would be trained on")
    _say(console, f"rows of {config.data.sequence_length:,} tokens, {built.ledger.packing}")
    if steps:
        rows = config.trainer.micro_batch * config.trainer.accumulate
        targets = steps.total_steps * rows * built.tokens_per_row
        _say(
            console,
            f"{steps.total_steps:,} steps of {rows} rows: about {targets:,.0f} targets; all sources once hold {built.epoch_tokens:,}",
        )
    else:
        _say(console, f"no plan, so no epochs: {refused}", "bold red")


def _account(console: Console, account: Ledger) -> None:
    from forge.reports.account import digests, tables

    _title(console, "What became of every row")
    for table in tables(account, console.width):
        console.print(table)
    overlap = account.counts.get("data/overlap", 0)
    _say(console, f"on more than one side: {overlap:,.0f} rows", "bold red" if overlap else "")
    _title(console, "Digests")
    console.print(digests(account))


def _lengths(console: Console, config: Config, built: Data) -> None:
    from forge.reports import account, lengths

    _title(console, "Lengths of training rows, in tokens")
    for name, values in built.lengths.items():
        ordered = np.sort(values)
        _say(console, f"{name}: {lengths.spread(ordered)}")
        if len(ordered):
            console.print(account.bars(ordered, config.data.sequence_length))
    file = paths.runs() / "reports" / "data" / f"{config.identity}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    lengths.draw(built.lengths, config.data.sequence_length).savefig(file)
    _say(console, f"as a picture: {file}")


def _samples(console: Console, built: Data, decode: preview.Decode) -> None:
    coloured = console.color_system is not None and not console.no_color
    _title(console, "Samples")
    console.print(Text.assemble(_learnt("learnt", coloured), ", the rest is only read"))
    for name, rows in preview.samples(built, decode).items():
        for row in rows:
            side = "" if row.trained_on else ", from validation: the first batches hold none"
            documents = f"{row.documents} document{'s' if row.documents > 1 else ''}"
            console.print()
            _say(console, f"{name}: {row.tokens:,} tokens in {documents}, {row.targets:,} learnt{side}", "bold")
            _say(console, row.where, "dim")
            for line in _text(row, coloured).split("\n", allow_blank=True):
                console.print(Text.assemble(("│ ", "dim"), line), soft_wrap=True)


def _text(row: Sample, coloured: bool) -> Text:
    """The sample with its targets marked, a rule between documents, and the count of what is left out."""
    text, document = Text(), 1

    def rule(words: str) -> None:
        text.append(("\n" if text and not text.plain.endswith("\n") else "") + words + "\n", "dim")

    for spans in (row.head, row.tail):
        for span in spans:
            if span.document != document:
                document = span.document
                rule(f"┄┄┄┄ document {document} ┄┄┄┄")
            text.append(_learnt(span.text, coloured) if span.learnt else Text(span.text))
        if spans is row.head and row.left_out:
            rule(f"… {row.left_out:,} tokens left out …")
    return text


def _learnt(text: str, coloured: bool) -> Text:
    return Text(text, _LEARNT) if coloured else Text(f"⟦{text}⟧")


def _unused(console: Console, account: Ledger) -> None:
    _title(console, "Rows that are not used")
    for name, examples in account.examples.items():
        shown: dict[str, int] = {}
        for where, reason, detail in examples:
            shown[reason] = shown.get(reason, 0) + 1
            if shown[reason] <= _WORST:
                _say(console, f"{name}: {reason}: {where}: {detail}")
    if not any(account.examples.values()):
        _say(console, "none")


def _outstanding(console: Console, built: Data) -> None:
    found = preview.extents(preview.training(built))
    for name, rows in found.items():
        known = int(built.ledger.counts.get(f"data/{name}/rows_train", len(rows)))
        among = "" if len(rows) >= known else f", of the {len(rows):,} among the first batches ({known:,} in all)"
        _title(console, f"{name}: longest rows{among}")
        _rows(console, preview.longest(rows, _WORST))
        if least := preview.least_learnt(rows, _WORST):
            _title(console, f"{name}: rows of which least is learnt{among}")
            _rows(console, least)


def _rows(console: Console, rows: Sequence[Extent]) -> None:
    from forge.reports.lengths import percent

    for row in rows:
        _say(console, f"{row.tokens:>9,} tokens, {percent(row.share):>11} learnt  {row.id}")


def _title(console: Console, text: str) -> None:
    console.print()
    _say(console, text, "bold underline")


def _say(console: Console, text: str, style: str = "") -> None:
    """One line, whatever it holds: text from files gives the terminal no orders."""
    console.print(Text(printable(text, one_line=True), style), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

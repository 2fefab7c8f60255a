"""What was compared, as rows of words: for the terminal, the model card and the run."""

import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forge.release.gate import Measured, Verdict
from forge.spec import Metrics

HEADER = ("model", "bits a weight", "MB", "validation loss", "KL (nats)", "same token", "answers end", "gate")
Rows = Sequence[Sequence[str]]


def base_row(base: Metrics) -> list[str]:
    return ["base", "", "", f"{base['val/loss']:.4f}", "", "", "", ""]


def checkpoint_row(loss: float) -> list[str]:
    return ["checkpoint", "", "", f"{loss:.4f}", "", "", "", ""]


def row(name: str, measured: Measured, verdict: Verdict) -> list[str]:
    """KL and agreement are with the checkpoint for the fused model, and with the fused one for those that are quantised."""
    written, against = measured.written, measured.against
    return [
        name,
        f"{measured.bits:.2f}",
        f"{measured.bytes / 1e6:.2f}",
        f"{measured.loss:.4f}",
        f"{against.kl:.2g}" if against.kl < 1e-4 else f"{against.kl:.4f}",
        f"{against.agreement:.1%}",
        f"{written.ended} of {written.asked}" if written.asked else "–",
        "passed" if verdict.passed else "refused",
    ]


def markdown(rows: Rows) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rest))


def as_json(rows: Rows) -> str:
    """In the form that MLflow shows as a table."""
    return dump({"columns": list(rows[0]), "data": [list(row) for row in rows[1:]]})


def dump(tree: object) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False)


def show(rows: Rows) -> None:
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        table.add_column(Text(name), justify="left" if name == rows[0][0] else "right")
    for cells in rows[1:]:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)

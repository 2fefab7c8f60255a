"""A sweep's result as a table: in the terminal, in the parent run's description, and as its artifact."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from forge.progress import clock
from forge.sweep.children import Child
from forge.sweep.winner import Finalist, Verdict

_WIDTH = 160  # where output goes to a file


def ranked(children: Sequence[Child], verdict: Verdict | None) -> list[Child]:
    """The winner, then the other finished ones by their loss, then the pruned ones by theirs; then the rest as they came."""

    def order(child: Child) -> tuple[bool, bool, bool, float, int]:
        number, loss = child.proposal.number, child.loss
        won = verdict is not None and number == verdict.number
        return loss is None, not won, child.pruned, loss if loss is not None else 0.0, number

    return sorted(children, key=order)


def finalists(children: Sequence[Child], rows: Mapping[str, Sequence[tuple[float, int]]]) -> list[Finalist]:
    """Those that may win: pruned ones only where there are no others. `rows` by run id."""
    candidates = [child for child in children if not child.pruned] if any(c.finished and not c.pruned for c in children) else children
    return [
        Finalist(c.proposal.number, c.proposal.name, c.loss, c.run.tags.get("forge.valid_digest", ""), rows.get(c.run.id, ()))
        for c in candidates
        if c.loss is not None
    ]


def columns(children: Sequence[Child], verdict: Verdict | None, swept: Sequence[str]) -> dict[str, list[Any]]:
    """By name, a value for each child in their order. MLflow's table takes a dot in a name for a path, so keys have slashes."""
    rows = [_row(rank, child, swept) for rank, child in zip(_ranks(children, verdict), children, strict=True)]
    return {name.replace(".", "/"): [row[name] for row in rows] for name in rows[0]} if rows else {}


def _ranks(children: Sequence[Child], verdict: Verdict | None) -> list[int | None]:
    """None for those that have no loss, and for all where losses can't be compared."""
    comparable = verdict is not None and verdict.number is not None
    return [rank if comparable and child.loss is not None else None for rank, child in enumerate(children, start=1)]


def _row(rank: int | None, child: Child, swept: Sequence[str]) -> dict[str, Any]:
    step = child.run.metrics.get("best/step") if child.finished else None
    return {
        "rank": rank,
        "child": child.proposal.name,
        **{key: child.proposal.values.get(key) for key in swept},
        "best_val_loss": child.loss,
        "best_step": None if step is None else int(step),
        "run_id": child.run.id,
        "status": child.run.status,
        "cause": child.cause,
    }


def show(children: Sequence[Child], verdict: Verdict | None) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("rank", "child", "best val loss", "step", "time"):
        table.add_column(name, justify="left" if name == "child" else "right", overflow="fold")
    for rank, child in zip(_ranks(children, verdict), children, strict=True):
        took = "before" if child.seconds is None else clock(child.seconds)
        if child.loss is None:
            table.add_row("–", child.proposal.name, child.run.status.lower(), "–", took)
        else:
            table.add_row(
                "pruned" if child.pruned else str(rank or "–"),
                child.proposal.name,
                f"{child.loss:.4f}",
                f"{child.run.metrics.get('best/step', 0):.0f}",
                took,
            )
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print()
    console.print(table)
    for child in children:
        if child.pruned or not child.finished:
            print(f"{child.proposal.name}: {child.ending}: {child.cause}", flush=True)


def markdown(children: Sequence[Child], verdict: Verdict | None) -> str:
    """The parent's description."""
    lines = [
        "No child finished." if verdict is None else f"{verdict.why if verdict.number is None else f'Best: {verdict.why}'}.",
        "",
        *heads("", "child", "best validation loss (nats a token)", "step"),
    ]
    for rank, child in zip(_ranks(children, verdict), children, strict=True):
        name = child.proposal.name
        if child.loss is None:
            lines.append(line("–", name, f"{child.ending}: {child.cause}", ""))
        else:
            place = "pruned" if child.pruned else rank or "–"
            lines.append(line(place, name, f"{child.loss:.4f}", f"{child.run.metrics.get('best/step', 0):.0f}"))
    return "\n".join(lines)


def heads(*cells: object) -> list[str]:
    """How a table in Markdown begins."""
    return [line(*cells), "|" + "---|" * len(cells)]


def line(*cells: object) -> str:
    """A row of a table in Markdown. MLflow draws the cells with no room between them, so the text brings it."""
    return "| " + " | ".join(f"{cell}&emsp;".replace("|", "\\|") for cell in cells) + " |"

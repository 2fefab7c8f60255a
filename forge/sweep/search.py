"""Which jobs a sweep runs: those that the command line lists, or those that a search proposes as results come in."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forge.reports.sweep_children import short

SWEPT = "forge.swept"


@dataclass(frozen=True)
class Proposal:
    """One job. `swept`: the overrides that tell it from the others, such as ("optimizer.lr=1e-4",), which also name its run.

    `own`: overrides that say nothing about the experiment, such as where the job reports to.
    """

    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    own: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, str]:
        """What is swept, by its key, without Hydra's escapes."""
        parts = (override.lstrip("+~").partition("=") for override in self.swept)
        return {key: re.sub(r"\\(.)", r"\1", value) for key, _, value in parts}

    @property
    def name(self) -> str:
        """ "lr=1e-4 seed=1", with as much of a key as tells it from the others; without sweeping, "job 1"."""
        names = short(list(self.values))
        return " ".join(f"{names[key]}={value}" for key, value in self.values.items()) or f"job {self.number + 1}"

    @property
    def tags(self) -> dict[str, str]:
        """Of its run: what a search that goes on makes the job of again."""
        return {SWEPT: json.dumps(self.swept)}

    def title(self, total: int | None) -> str:
        """For the terminal: "[2/8] lr=1e-3", of so many where that is known."""
        return f"[{self.number + 1}{f'/{total}' if total else ''}] {self.name}"


def quoted(text: str) -> str:
    """As overrides hold any text."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


class Search(Protocol):
    def ask(self) -> Proposal | None:
        """The next job; None: none until another one has ended, or none at all where none is running."""

    def tell(self, number: int, loss: float | None, why: str | None) -> None:
        """How a job ended: its best validation loss, or None with the reason."""


class Listed:
    """All jobs are known from the start."""

    def __init__(self, proposals: Sequence[Proposal]):
        self._left = list(proposals)

    def ask(self) -> Proposal | None:
        return self._left.pop(0) if self._left else None

    def tell(self, number: int, loss: float | None, why: str | None) -> None:
        pass

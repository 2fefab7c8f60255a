"""python -m forge.doctor [--quick] [--json] : is this machine fit for forge? What is not, and what to do about it.

Looks at the device, memory, BLAS, versions, the tracking store, disks, optional parts and the environment, and changes nothing. Then a
self-test of up to a minute trains, fuses, quantises and serves a tiny model in a folder of its own; --quick leaves it out. The exit code
is 1 where there is a problem. --json is for programs.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

import forge
from forge.checks import Check, Finding, disk, environment, guarded, machine, products, versions
from forge.checks import store as stores
from forge.entry import Parser, entry

_MARKS = {"ok": ("✓", "green"), "off": ("–", "dim"), "note": ("!", "yellow"), "problem": ("✗", "bold red")}
_PLAIN = {"ok": "ok", "off": "off", "note": "NOTE", "problem": "PROBLEM"}
_NAME = 22  # characters of a name, where text goes to a file

Sections = Iterable[tuple[str, Iterable[Finding]]]


def main(argv: list[str]) -> int:
    """The exit code: 0, or 1 where there is a problem."""
    return entry(_examine, argv, interrupted="not looked at to the end; nothing was changed")


def _examine(argv: list[str]) -> int:
    parser = Parser("forge.doctor", (__doc__ or "").partition(" : ")[2])
    parser.add_argument("--quick", action="store_true", help="leave out the self-test")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of text")
    asked = parser.parse_args(argv)
    sections = _sections(asked.uri, asked.quick)
    found = _as_json(sections) if asked.json else _as_text(sections)
    return 1 if any(finding.state == "problem" for finding in found) else 0


def _sections(uri: str | None, quick: bool) -> Iterator[tuple[str, Iterator[Finding]]]:
    checks: dict[str, dict[str, Check]] = {
        "machine": {"device": machine.device, "memory": machine.memory},
        "matrix products": {
            "BLAS": products.library,
            "kernels": products.kernels,
            "threads": products.threads,
            "environment": products.switches,
        },
        "versions": {"versions": versions.versions, "constraints.txt": versions.drift},
        "optional parts": {"extras": versions.extras},
        "environment": {"environment": environment.environment},
        "disk": {"disk": disk.room, "mlruns": disk.sizes},
        "tracking store": {"store": partial(stores.store, uri)},
    }
    for title, named in checks.items():
        yield title, (finding for name, check in named.items() for finding in guarded(name, check))
    if not quick:
        from forge.checks import selftest

        yield "self-test", selftest.run()


def _as_json(sections: Sections) -> list[Finding]:
    told = [(title, finding) for title, findings in sections for finding in findings]
    count = sum(finding.state == "problem" for _, finding in told)
    findings = [{"section": title, **asdict(finding)} for title, finding in told]
    print(json.dumps({"forge": forge.__version__, "problems": count, "findings": findings}, indent=2))
    return [finding for _, finding in told]


def _as_text(sections: Sections) -> list[Finding]:
    """Each line as soon as it is known."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    told: list[Finding] = []
    for title, findings in sections:
        console.print(Text(f"\n{title}" if told else title, "bold"))
        for finding in findings:
            told.append(finding)
            console.print(_line(finding) if console.is_terminal else _plain(finding))
    console.print()
    console.print(_verdict(told))
    return told


def _line(finding: Finding) -> Table:
    """For a terminal: the mark, the name, and what was said, with the way out below it."""
    mark, style = _MARKS[finding.state]
    said = Text(finding.said, "dim" if finding.state == "off" else "")
    if finding.seconds is not None:
        said.append(f"  {finding.seconds:.1f} s", "dim")
    if finding.way_out:
        said.append(f"\n→ {finding.way_out}", style)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=3, justify="right")
    table.add_column(width=_NAME)
    table.add_column(ratio=1)
    table.add_row(Text(mark, style), Text(finding.name), said)
    return table


def _plain(finding: Finding) -> Text:
    """For a file: one line, which grep finds."""
    seconds = "" if finding.seconds is None else f" ({finding.seconds:.1f} s)"
    way_out = f" -> {finding.way_out}" if finding.way_out else ""
    return Text(f"{_PLAIN[finding.state]:<8}{finding.name:<{_NAME}} {finding.said}{seconds}{way_out}")


def _verdict(told: list[Finding]) -> Text:
    problems, notes = (sum(finding.state == state for finding in told) for state in ("problem", "note"))
    if problems:
        named = ", ".join(finding.name for finding in told if finding.state == "problem")
        return Text(f"{problems} problem{'s' * (problems > 1)}: {named}" + (f"; {notes} to note" if notes else ""), "bold red")
    return Text("nothing is wrong" + (f"; {notes} thing{'s' * (notes > 1)} to note" if notes else ""), "green")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

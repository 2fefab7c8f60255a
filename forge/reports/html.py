"""The report of one run as a web page that needs nothing else: no network, no scripts; light and dark, on a phone and on paper.

Takes about a second; some 70 kB, 150 kB for 10,000 steps. report.html.j2 is the page; what it shows is made here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from forge.reports import curves
from forge.reports.curves import compact, decimals, signed
from forge.reports.dashboard import PANELS
from forge.reports.losses import best_word, gap_word, wide_names
from forge.reports.palette import DARK, LIGHT
from forge.reports.remedy import Advice
from forge.reports.summary import Rows, checkpoint_rows, progress_rows, share_done, validation_rows
from forge.reports.svg import inline
from forge.spec import History, RunFacts

_WIDTH, _TALL, _LOW = 330.0, 250.0, 196.0  # points: about what a phone has, so that text is not drawn smaller there
_LEFT, _TOP, _FOOT, _RIGHT, _NAMES = 42.0, 44.0, 32.0, 12.0, 90.0  # points around the axes; right of some stand names
_WITH_NAMES = ("loss", "sources")


def page(
    history: History,
    facts: RunFacts,
    *,
    run_id: str = "",
    command: str = "",
    advice: Sequence[Advice] = (),
    scores: Mapping[str, float] | None = None,
    plan: Sequence[tuple[str, float, float]] = (),
    samples: Sequence[tuple[str, str]] = (),
    ledger: Mapping[str, Sequence[Any]] | None = None,
    config: str = "",
    overrides: Sequence[str] = (),
) -> str:
    """The whole page; parts that are empty are left out.

    command: what to type to make the run again. scores: final/… and test/… metrics. plan: what, as estimated, as it was.
    samples: what was asked, and what was written. ledger: a column of names, and one of counts a source. config: YAML, with the lines
    that `overrides` set marked.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "without_blanks": without_blanks}
    template = environment.from_string(files("forge.reports").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        light=LIGHT.named,
        dark=DARK.named,
        facts=facts,
        done=share_done(history, facts),
        verdict=verdict(history, facts),
        figures=[inline(panel(name, history, facts), LIGHT, name) for name in PANELS],
        progress=progress_rows(history, facts),
        validation=validation_rows(history, facts),
        checkpoints=checkpoint_rows(facts),
        scored=scored(history, scores or {}),
        zip=zip,
        lines=marked(config, overrides),
        run_id=run_id,
        command=command,
        advice=advice,
        plan=plan,
        samples=samples,
        ledger=ledger or {},
        overrides=overrides,
    )


def verdict(history: History, facts: RunFacts) -> Rows:
    """The numbers to read first, each with what it means."""
    best = curves.best_step(history, facts.best_step)
    loss = curves.value_at(history, "val/loss", best)
    out: Rows = [] if loss is None else [(decimals(loss, 3), f"{best_word(facts)} validation loss, nats a token, at step {best:,}")]
    if loss is not None and facts.unigram_loss is not None and math.isfinite(facts.unigram_loss):
        below = facts.unigram_loss - loss
        out.append((decimals(abs(below), 3), f"nats {'below' if below >= 0 else 'above'} what token frequencies alone reach"))
    gap = curves.generalisation_gap(history)
    if gap is not None:
        out.append((signed(gap, 3), f"nats from training to validation loss: {gap_word(gap)}"))
    return out


def scored(history: History, scores: Mapping[str, float]) -> list[tuple[str, float | None, float]]:
    """What was scored at the end, the base's loss where it is known, and the chosen checkpoint's, nats a token."""
    first = history[0][1] if history else {}
    sets = {"final": "full validation set", "test": "test rows"}
    out = []
    for key, value in scores.items():
        kind, _, rest = key.partition("/")
        measure, _, source = rest.partition("/")
        if kind in sets and measure == "loss":
            base = first.get(f"base/{rest}") if kind == "final" else None
            out.append((f"{sets[kind]}, {source or 'all'}", base, value))
    return out


def marked(config: str, overrides: Sequence[str]) -> list[tuple[str, bool]]:
    """The lines of block-style YAML, and whether an override sets what stands there."""
    names = {override.lstrip("+~").partition("=")[0] for override in overrides}
    path: list[tuple[int, str]] = []  # indents and keys on the way to a line
    out = []
    for line in config.splitlines():
        indent, key = len(line) - len(line.lstrip()), line.strip().partition(":")[0]
        if line.strip() and not line.strip().startswith(("- ", "#")):
            path = [*(part for part in path if part[0] < indent), (indent, key)]
        out.append((line, ".".join(part for _, part in path) in names and not line.strip().startswith("- ")))
    return out


def number(value: object) -> str:
    """Whole numbers in full, others with four digits; a dash where there is none."""
    if value is None:
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if abs(value) < 1000 else compact(value, 4)


def without_blanks(text: str) -> str:
    """What a model wrote, with blank lines counted where it wrote several: one that goes wrong writes hundreds."""
    return re.sub(r"\n(?:[ \t]*\n){3,}", lambda run: f"\n… {run[0].count(chr(10)) - 1} blank lines …\n", text.rstrip())


def panel(name: str, history: History, facts: RunFacts) -> Figure:
    """One panel of the dashboard as a figure for itself."""
    height, right = (_TALL, _NAMES) if name in _WITH_NAMES else (_LOW, _RIGHT)
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    FigureCanvasAgg(figure)
    figure.patch.set_visible(False)
    ax = figure.add_axes((0, 0, 1, 1), label=name, facecolor="none")
    right += wide_names(ax, history) * (name == "sources")
    ax.set_position((_LEFT / _WIDTH, _FOOT / height, 1 - (_LEFT + right) / _WIDTH, 1 - (_TOP + _FOOT) / height))
    PANELS[name](ax, history, facts, LIGHT)
    return figure

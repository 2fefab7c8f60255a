"""The report page, read by a parser as a browser would read it."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from forge.reports.html import marked, number, page, scored, verdict
from forge.reports.palette import DARK, LIGHT
from forge.reports.remedy import Advice
from forge.spec import RunFacts

VOID = {"meta", "br", "img", "link", "input", "hr", "source", "base", "embed"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image", "video", "audio"}
EVIL = "<script>alert(1)</script>"
BREAKOUT = '"><img src=http://evil.example onerror="x">{{ 7 * 7 }}</pre></style></svg>'
FACTS = RunFacts("a title", "the budget is used up", 400, best_step=100, unigram_loss=5.5)
SECTIONS = ["recommendations", "figures", "numbers", "scores", "plan", "samples", "data", "again", "configuration"]


class Page(HTMLParser):
    """The elements (tag, attributes), the ids, and all text that is shown; fails at an end without its start."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.style, self._open = [], [], "", []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        elif data.strip():
            self.words.append(data.strip())

    @property
    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def made_up(steps, sources=("code",), every=50):
    rng = np.random.default_rng(0)
    history = []
    for step in range(steps + 1):
        loss = 8 / (1 + step / 50) + 2
        noisy = {name: rng.lognormal() for name in ("train/grad_norm", "perf/tokens_per_s", "memory/peak_gib", "memory/active_gib")}
        metrics = {"base/loss": 10.0, "base/loss/code": 9.0}
        if step:
            metrics = {"train/loss": loss + rng.normal() / 5, "train/lr": 1e-3, **noisy}
        if step % every == 0:
            metrics |= {"val/loss": loss, "val/perplexity": math.exp(loss)} | {
                f"val/loss/{name}": loss + i for i, name in enumerate(sources)
            }
        history.append((step, metrics))
    return history


def full(hostile=""):
    """Every part there is, with `hostile` in each place that holds text from outside."""
    facts = RunFacts(
        f"a title {hostile}",
        f"a status{hostile}",
        400,
        {f"key {hostile}": f"value {hostile}"},
        [1e-3] * 400,
        100,
        5.5,
        {"trainer.clip_norm": 1.0},
        [(50, 6.1), (100, 4.667)],
        16.0,
        f"a reason{hostile}",
    )
    return page(
        made_up(400, [f"source {hostile}"]),
        facts,
        run_id=f"0123{hostile}",
        command=f"python -m forge.train {hostile}",
        advice=[Advice(f"rule {hostile}", f"a headline {hostile}", f"why {hostile}", f"lr=1 {hostile}", "problem")],
        scores={"final/loss": 4.0, f"final/loss/{hostile or 'code'}": 4.5},
        plan=[(f"tokens {hostile}", 1000.0, 1200.0)],
        samples=[(f"prompt {hostile}", f"text {hostile}")],
        ledger={"count": ["rows_in", f"rows_bad/{hostile}"], f"source {hostile}": [1234.0, None]},
        config=f"trainer:\n  budget: 3 epochs\n  note: {hostile}",
        overrides=["trainer.budget=3 epochs", f"trainer.note={hostile}"],
    )


@pytest.mark.parametrize("hostile", ["", EVIL, BREAKOUT])
def test_nothing_is_loaded_and_nothing_runs(hostile):
    found = Page(full(hostile))
    assert {tag for tag, _ in found.elements}.isdisjoint(LOADING)
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert name not in ("src", "href", "xlink:href", "srcset", "data", "action") and not name.startswith("on"), (tag, name)
            assert (tag == "svg" and name == "aria-label") or "url(" not in (value or ""), (tag, name)
    assert "url(" not in found.style and "@import" not in found.style and "http" not in found.style


@pytest.mark.parametrize("hostile", [EVIL, BREAKOUT])
def test_what_comes_from_outside_is_shown_as_it_is(hostile):
    text = " ".join(Page(full(hostile)).words)
    assert hostile in text and "49" not in re.findall(r"\b49\b", text)
    places = ["a title", "a status", "0123", "value", "a reason", "a headline", "why", "lr=1", "tokens", "prompt", "text", "trainer.note="]
    for place in places:
        assert re.search(rf"{re.escape(place)}\s*{re.escape(hostile)}", text), place


def test_all_parts_are_there_and_those_that_are_empty_are_left_out():
    assert Page(full()).ids == SECTIONS
    assert Page(page([], RunFacts("a title", "starting", 0))).ids == ["figures", "numbers"]


def test_a_sample_of_blank_lines_takes_none():
    words = Page(page([], RunFacts("a title", "starting", 0), samples=[("who?\n", "\n\n \n"), ("and?\n", "me\n\n\n \n\nyou\n\n")])).words
    assert words[-4:] == ["who?", "(nothing)", "and?", "me\n… 4 blank lines …\nyou"]


def test_the_page_says_what_is_asked_first():
    words = Page(full()).words
    first = ["a title", "a status · run 0123", "4.667", "best validation loss, nats a token, at step 100", "0.833", "Chosen: a reason."]
    tables = ["step 100, best", "4.6670 nats", "1,234", "–", "1,200", "1.20", "-6.0000", "-4.5000"]
    for said in (*first, *tables, "a headline", "why", "prompt"):
        assert said in words, said
    assert "best 4.67 at step 100" in words  # text of the loss figure


def test_the_figures_take_their_colours_from_the_page():
    found = Page(full())
    assert sum(tag == "svg" for tag, _ in found.elements) == 8
    used = {value for _, a in found.elements for name, value in a.items() if name in ("fill", "stroke")} - {"none"}
    assert used <= {f"var(--{name})" for name in LIGHT.named} and {"var(--train)", "var(--valid)", "var(--source-0)"} <= used
    dark = found.style[found.style.index("prefers-color-scheme: dark") :]
    for name, colour in DARK.named.items():
        assert f"--{name}: {LIGHT.named[name]};" in found.style and f"--{name}: {colour};" in dark
    assert f"--paper: {LIGHT.paper};" in dark[dark.index("@media print") :]  # paper is light


def test_a_long_run_of_many_sources_is_a_small_page():
    known = RunFacts("long", "done", 10_000, planned_lr=[1e-3] * 10_000, best_step=10_000, unigram_loss=5.5)
    text = page(made_up(10_000, [f"source {i}" for i in range(20)], every=10), known)
    assert len(text.encode()) < 1_500_000
    assert not re.search(r'd="[^"]*(nan|inf)', text)


@pytest.mark.parametrize(
    "history", [[], [(0, {"val/loss": math.nan})], [(1, {"train/loss": 2.0})], [(1, {"train/loss": math.inf, "val/loss": 2.0})]]
)
def test_any_history_makes_a_page(history):
    text = page(history, FACTS)
    assert Page(text).ids == ["figures", "numbers"] and not re.search(r"\b(nan|inf)\b", text)


def test_the_verdict_in_numbers():
    """3.0 at the checkpoint is 2.5 below 5.5; validation 3.4 against training 2.8, unsmoothed, at the last evaluation."""
    history = [(100, {"train/loss": 3.1, "val/loss": 3.0}), (200, {"train/loss": 2.8, "val/loss": 3.4})]
    assert verdict(history, FACTS) == [
        ("3.000", "best validation loss, nats a token, at step 100"),
        ("2.500", "nats below what token frequencies alone reach"),
        ("+0.600", "nats from training to validation loss: memorising"),
    ]
    assert verdict([], FACTS) == []


def test_scores_stand_against_those_of_the_base():
    history = [(0, {"base/loss": 9.0, "base/loss/code": 8.0}), (1, {})]
    scores = {"final/loss": 4.0, "final/perplexity": 54.6, "final/loss/code": 3.0, "final/loss/new": 2.0, "test/loss": 4.2}
    assert scored(history, scores) == [
        ("full validation set, all", 9.0, 4.0),
        ("full validation set, code", 8.0, 3.0),
        ("full validation set, new", None, 2.0),
        ("test rows, all", None, 4.2),
    ]
    assert scored([], {}) == []


def test_overridden_lines_are_marked():
    config = "optimizer:\n  lr: 1\n  betas:\n  - 0.9\ndata:\n  lr: 2\n  deep:\n    lr: 3\nseed: 0"
    overrides = ["optimizer.lr=1", "+data.deep.lr=3", "optimizer.betas=[0.9]", "+experiment=quick", "~seed"]
    assert [line.strip() for line, set in marked(config, overrides) if set] == ["lr: 1", "betas:", "lr: 3", "seed: 0"]
    assert "\n".join(line for line, _ in marked(config, overrides)) == config


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1234567.0, "1,234,567"), (0.12345678, "0.1235"), (123456.7, "123.5k"), ("name", "name")],
)
def test_numbers_in_tables(value, text):
    assert number(value) == text

"""The table of metrics against what is logged."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.system_metrics.metrics import gpu_monitor

from forge.reports.metrics import METRICS, find, markdown
from forge.spec import Data, Plan
from forge.tracking.system import System

CODE = Path(__file__).parents[2] / "forge"
# What a small run on this machine does not log, and a text in the code that does.
ELSEWHERE = {
    "test/": 'scores("test"',
    "release/max_logit_difference": "release/max_logit_difference",
    "release/val_loss/<source>": 'f"release/val_loss/{source}"',
    "plan/tokens_ratio": 'Score("tokens"',
    "plan/seconds_ratio": 'Score("seconds"',
    "plan/peak_memory_ratio": 'Score("peak_memory"',
    **{
        f"<set>/{name}{source}": 'f"{prefix}/{name}/{source}"'
        for name in ("exact_match", "f1", "bleu", "rouge1", "rouge2", "rougeL", "ended", "answers")
        for source in ("", "/<source>")
    },
    "<set>/retention": 'f"{prefix}/retention{kind}"',
    "<set>/retention/<kind>": 'f"{prefix}/retention{kind}"',
    "harness/<task>/<metric>": 'f"harness/{task}/',
    "base/harness/<task>/<metric>": 'f"{prefix}/{key}"',
    "best/val_loss": "best/val_loss",
    "best/step": "best/step",
    "sweep/finished": "sweep/finished",
    "sweep/failed": "sweep/failed",
    "data/<source>/share_realised": "/share_realised",
    "data/<source>/epochs_planned": "/epochs_planned",
    "data/<source>/rows_pairs": '"rows_pairs"',
    "data/<source>/rows_bad/<reason>": '"rows_bad": bad',
    "data/<source>/rows_dropped/<reason>": '"rows_dropped": dropped',
    "data/<source>/rows_noted/<reason>": '"rows_noted": ',
    "data/<source>/files_skipped/<reason>": '"files_skipped": ',
    "data/<source>/rows_evaluated_test": '("test", "_test")',
    "data/<source>/targets_evaluated_test": '("test", "_test")',
}


@pytest.fixture
def logged(make_tiny_model: Callable[..., Any], toy_data: Data, tmp_path: Path) -> set[str]:
    """The names of all that a run of the engine and of what stands around it logs."""
    from forge.training.checkpoint import Store
    from forge.training.engine import fit
    from forge.training.evaluate import baseline, forgetting, full
    from forge.training.objectives import causal_lm
    from forge.training.optim import adamw
    from forge.training.update import Update

    names: set[str] = set()
    model = make_tiny_model().model
    update = Update(model, lambda: adamw(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1))
    plan = Plan(2, 1, 2, 1, 1, 1.0, 0, lambda step: 1e-2)
    objective = partial(causal_lm, z_loss=1e-4)
    fit(model, toy_data, objective, update, plan, {}, Store(tmp_path, "r", {}), lambda metrics, _: names.update(metrics))
    final = full(model, toy_data).metrics
    names |= {*toy_data.ledger.counts, *baseline(toy_data), *final, *forgetting(final, final)}
    system = System(lambda metrics, _: names.update(metrics))
    system.sample()
    system.sample()
    return names


def test_the_table_holds_all_that_is_logged_and_nothing_else(logged: set[str]) -> None:
    assert sorted(name for name in logged if find(name) is None) == []
    found = {metric.name for name in logged if (metric := find(name))}
    missing = {metric.name for metric in METRICS} - found - ELSEWHERE.keys()
    probe = Path(gpu_monitor.__file__).read_text()
    gpu = {name for name in missing if f'gpu_{{i}}_{name.removeprefix("system/gpu_<n>_")}"' in probe}
    network = {"system/network_receive_megabytes", "system/network_transmit_megabytes"}  # a container may have none
    assert missing - gpu - network == set()
    code = "\n".join(path.read_text() for path in CODE.rglob("*.py") if path.name != "metrics.py")
    assert [text for text in ELSEWHERE.values() if text not in code] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/loss", "train/loss"),
        ("train/epoch/my-code.v2", "train/epoch/<source>"),
        ("final/bits_per_byte/a", "<set>/bits_per_byte/<source>"),
        ("data/a/rows_dropped/near_duplicate", "data/<source>/rows_dropped/<reason>"),
        ("data/a/rows_dropped", "data/<source>/rows_dropped"),
        ("system/gpu_11_power_usage_watts", "system/gpu_<n>_power_usage_watts"),
        ("other/loss", None),
        ("train/lossy", None),
        ("base/forgetting/a", None),
        ("train/epoch/a/b", None),
    ],
)
def test_a_name_is_found_by_its_pattern(name: str, expected: str | None) -> None:
    assert (metric := find(name)) is None or metric.name == expected
    assert (metric is None) == (expected is None)


def test_each_has_a_unit_and_a_row_of_its_own() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names)) and all(metric.unit and metric.meaning for metric in METRICS)
    rows = [line.split(" | ")[0].strip("| `") for line in markdown().splitlines() if line.startswith("| `")]
    assert rows == names


def test_the_readme_shows_the_table() -> None:
    assert markdown() in (CODE.parent / "README.md").read_text(encoding="utf-8")

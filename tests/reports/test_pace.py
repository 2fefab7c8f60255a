"""The panels of how training goes, drawn one by one."""

import numpy as np

from forge.reports.html import panel
from forge.spec import RunFacts

FACTS = RunFacts("a run", "running", 30)


def drawn(name, history, facts=FACTS):
    (ax,) = panel(name, history, facts).axes
    return ax


def words(ax):
    return {text.get_text() for text in ax.texts}


def test_the_plan_starts_at_step_one_and_is_all_drawn():
    planned, used = drawn("lr", [(1, {"train/lr": 1e-4})], RunFacts("a run", "running", 3, planned_lr=[1e-4, 2e-4, 3e-4])).lines
    assert (planned.get_xdata().tolist(), planned.get_ydata().tolist()) == ([1, 2, 3], [1e-4, 2e-4, 3e-4])
    assert (used.get_xdata().tolist(), used.get_ydata().tolist()) == ([1], [1e-4])


def test_gradient_norm_gets_a_log_axis_only_for_spikes():
    calm = [(step, {"train/grad_norm": 1.0 + step % 3}) for step in range(30)]
    spike, zero = (30, {"train/grad_norm": 300.0}), (31, {"train/grad_norm": 0.0})
    assert drawn("grad_norm", calm).get_yscale() == "linear"
    assert drawn("grad_norm", [*calm, spike]).get_yscale() == "log"
    assert drawn("grad_norm", [*calm, spike, zero]).get_yscale() == "linear"  # a log axis can't show 0


def test_limits_are_drawn_where_the_curve_comes_near_them():
    """Clipping at 1: of the norms 0.5, 0.5, 0.5 and 2 a quarter. Memory: 9.5 of 10 GiB is more than nine tenths."""
    history = [(step, {"train/grad_norm": 2.0 if step == 3 else 0.5, "memory/peak_gib": 9.5}) for step in range(4)]

    def under(clip, room):
        facts = RunFacts("a run", "running", 30, settings={"trainer.clip_norm": clip}, memory_gib=room)
        return drawn("grad_norm", history, facts), drawn("memory", history, facts)

    norm, memory = under(1.0, 10.0)
    assert {"clipped to 1", "median 0.50; 25% clipped"} <= words(norm)
    assert {"nearly full", "of 10 GiB"} <= words(memory)
    assert 10.0 in np.concatenate([line.get_ydata() for line in memory.lines])
    norm, memory = under(100.0, 100.0)
    assert "median 0.50; 0% clipped" in words(norm) and "clipped to 100" not in words(norm)
    assert "of 100 GiB" in words(memory) and "nearly full" not in words(memory)


def test_a_setting_that_is_no_limit_is_none():
    facts = RunFacts("a run", "running", 30, settings={"trainer.clip_norm": None}, memory_gib=float("nan"))
    assert not any("clipped" in text for text in words(drawn("grad_norm", [(1, {"train/grad_norm": 1.0})], facts)))
    assert "GiB" in words(drawn("memory", [(1, {"memory/peak_gib": 1.0})], facts))

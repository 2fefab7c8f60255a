"""The machine's metrics beside a run's own."""

import time
from typing import Any

import psutil
import pytest

from forge.tracking import store
from forge.tracking.run import run
from forge.tracking.system import System

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/disk_usage_percentage",
    "system/disk_usage_megabytes",
    "system/disk_available_megabytes",
}


def work(seconds: float) -> None:
    """Keeps one core busy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def cpu(run_id: str) -> list[float]:
    return [m.value for m in store.connect(None).get_metric_history(run_id, "system/cpu_utilization_percentage")]


def steps(run_id: str) -> list[int]:
    return [m.step for m in store.connect(None).get_metric_history(run_id, "system/cpu_utilization_percentage")]


def test_a_sample_is_the_machine_as_it_is() -> None:
    sent: list[Any] = []
    system = System(lambda metrics, step: sent.append((step, dict(metrics))), first=7)
    system.sample()
    assert sent == []
    work(0.3)
    system.sample()
    system.sample()
    (step, found), (next_step, _) = sent
    assert (step, next_step) == (7, 8) and found.keys() >= NAMES
    assert 100 / (psutil.cpu_count() or 1) * 0.5 < found["system/cpu_utilization_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] == pytest.approx(psutil.virtual_memory().used / 1e6, rel=0.2)
    assert found["system/disk_usage_percentage"] == pytest.approx(psutil.disk_usage("/").percent, abs=2)


@pytest.mark.slow
def test_the_samples_of_a_run_go_on_where_its_earlier_life_ended(make_spec: Any) -> None:
    """One a second, which is the shortest."""
    with pytest.raises(KeyboardInterrupt), run(make_spec(system_metrics=1), "i") as first:
        work(2.5)
        raise KeyboardInterrupt
    assert steps(first.id) == [0, 1] and min(cpu(first.id)) > 0
    with run(make_spec(system_metrics=1), "i", resume_id=first.id):
        time.sleep(1.5)
    assert steps(first.id) == [0, 1, 2]
    time.sleep(1.5)
    assert steps(first.id) == [0, 1, 2]  # it ends with the run


def test_no_sampling_means_none(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "sample", lambda self: pytest.fail("sampled"))
    with run(make_spec(system_metrics=None), "i") as opened:
        assert len(opened._pulse._tasks) == 2
    assert not [name for name in store.connect(None).get_run(opened.id).data.metrics if name.startswith("system/")]

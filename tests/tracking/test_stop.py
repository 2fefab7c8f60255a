"""The tag forge.stop, set in MLflow while a run goes on."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from forge.errors import Stopped, TrackingError
from forge.signals import Interrupts
from forge.tracking import resume, stop, store
from forge.tracking.pulse import Pulse
from forge.tracking.run import run

OWN = "stopped by the tag forge.stop in MLflow"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "POLL_S", 0.02)


def answer(asked: Callable[[], str | None], seconds: float = 5.0) -> str | None:
    """What is answered in the end."""
    until = time.monotonic() + seconds
    while asked() is None and time.monotonic() < until:
        time.sleep(0.01)
    return asked()


def tags(run_id: str) -> dict[str, str]:
    return dict(store.connect(None).get_run(run_id).data.tags)


@pytest.mark.parametrize("value", ["true", "1", "yes please", "False alarm"])
def test_the_tag_stops_a_run_which_is_then_killed_with_the_reason(make_spec: Any, value: str) -> None:
    """As the runner does it: the loop asks after each step, and comes to its end when it is told to."""
    after = []
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts, run(make_spec(), "i") as opened:
        with interrupts.patient(opened.asked_to_stop) as asked:
            assert asked() is None
            store.connect(None).set_tag(opened.id, "forge.stop", value)
            assert answer(asked) == OWN
            opened.tags({"forge.stop_reason": asked() or ""})
        after.append("released")
    found = store.connect(None).get_run(opened.id)
    assert (found.info.status, found.data.tags["forge.cause"], found.data.tags["forge.stop_reason"]) == ("KILLED", OWN, OWN)
    assert "forge.stop" not in found.data.tags
    assert stopped.value.exit_code == 128 + signal.SIGINT and after == []


@pytest.mark.parametrize("value", ["", "false", "0", "False", " 0 "])
def test_a_value_that_says_no_stops_nothing(make_spec: Any, value: str) -> None:
    with run(make_spec(), "i") as opened:
        store.connect(None).set_tag(opened.id, "forge.stop", value)
        assert answer(opened.asked_to_stop, seconds=0.2) is None
    assert "forge.stop" not in tags(opened.id)


def test_a_run_is_not_stopped_by_another_s_tag(make_spec: Any) -> None:
    with run(make_spec(), "a") as one, run(make_spec(), "b") as other:
        store.connect(None).set_tag(other.id, "forge.stop", "true")
        assert answer(other.asked_to_stop) == OWN
        assert answer(one.asked_to_stop, seconds=0.1) is None


def test_a_sweep_s_tag_stops_its_children_and_stays(make_spec: Any) -> None:
    with run(make_spec(), "p") as parent:
        with run(make_spec(parent_run=parent.id), "c") as child:
            store.connect(None).set_tag(parent.id, "forge.stop", "true")
            assert answer(child.asked_to_stop) == "stopped by the tag forge.stop of its parent run in MLflow"
        assert tags(parent.id)["forge.stop"] == "true"
        assert answer(parent.asked_to_stop) == OWN


def test_a_tag_that_came_too_late_does_not_stop_the_next_life(make_spec: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 leaves the tag where it was."""
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        raise KeyboardInterrupt
    store.connect(None).set_tag(first.id, "forge.stop", "true")
    with run(make_spec(), "i", resume_id=resume.unfinished(make_spec(), "i")) as second:
        assert second.id == first.id and "forge.stop" not in tags(first.id)
        assert answer(second.asked_to_stop, seconds=0.2) is None
    assert "the tag forge.stop was left from before and is taken away" in capsys.readouterr().out


def test_one_who_may_not_go_on_with_a_run_leaves_its_tag_alone(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        store.connect(None).set_tag(opened.id, "forge.stop", "true")
        with pytest.raises(TrackingError, match="another process"), run(make_spec(), "i", resume_id=opened.id):
            pass
        assert tags(opened.id)["forge.stop"] == "true"


class Flaky:
    """The real client, whose first three looks fail; remembers who looked."""

    def __init__(self, client: Any):
        self._client, self.looks = client, list[str]()

    def get_run(self, run_id: str) -> Any:
        self.looks.append(threading.current_thread().name)
        if len(self.looks) <= 3:
            raise ConnectionError("down")
        return self._client.get_run(run_id)


def test_the_look_survives_a_store_that_is_away_and_ends_with_the_answer(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        client = Flaky(store.connect(None))
        tag = stop.StopTag(client, opened.id)  # type: ignore[arg-type]
        store.connect(None).set_tag(opened.id, "forge.stop", "true")
        pulse = Pulse((0.01, tag.look))
        assert answer(tag.asked) == OWN
        time.sleep(0.1)
        assert set(client.looks) == {"mlflow-pulse"} and len(client.looks) == 4  # and no more once it knows
        pulse.close()

"""Signals are raised at once, except inside a patient block, which comes to its end first."""

import signal
from contextlib import suppress

import pytest

from forge.errors import Stopped
from forge.signals import AskedToStop, Interrupts

ALL = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@ALL
def test_a_signal_outside_a_patient_block_stops_at_once(number: signal.Signals) -> None:
    after = []
    with pytest.raises(Stopped) as stopped, Interrupts():
        signal.raise_signal(number)
        after.append("more")
    assert after == []
    assert stopped.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}[number]


@ALL
def test_a_patient_block_comes_to_its_end_and_then_stops(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    inside, after, asked = [], [], []
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts:
        with interrupts.patient():
            signal.raise_signal(number)
            asked.append(interrupts.asked())
            inside.append("the rest of the step")
        after.append("more")
    assert inside == ["the rest of the step"] and after == []
    assert asked == [f"stopped by {number.name}"]
    assert stopped.value.signal_number == number
    assert capsys.readouterr().err == "\nforge: stopping after this step; once more to stop at once\n"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(second: signal.Signals) -> None:
    inside = []
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts, interrupts.patient():
        signal.raise_signal(signal.SIGINT)
        inside.append("the step")
        signal.raise_signal(second)
        inside.append("more")
    assert inside == ["the step"]
    assert stopped.value.signal_number == second


def test_patience_ends_with_its_block() -> None:
    after = []
    with pytest.raises(Stopped), Interrupts() as interrupts:
        with interrupts.patient():
            pass
        signal.raise_signal(signal.SIGINT)
        after.append("more")
    assert after == []


def test_patience_ends_when_its_block_fails() -> None:
    after = []
    with pytest.raises(Stopped), Interrupts() as interrupts:
        with pytest.raises(ValueError), interrupts.patient():
            raise ValueError
        signal.raise_signal(signal.SIGINT)
        after.append("more")
    assert after == []


def test_an_error_in_a_patient_block_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="the loss is nan"), Interrupts() as interrupts, interrupts.patient():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("the loss is nan")


def test_without_a_signal_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with Interrupts() as interrupts, interrupts.patient():
        assert interrupts.asked() is None
    assert capsys.readouterr().err == ""


def test_no_handler_of_exceptions_swallows_a_stop() -> None:
    with pytest.raises(Stopped), Interrupts(), suppress(Exception):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_former_handlers_come_back(error: type[Exception] | None) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = [signal.getsignal(number) for number in numbers]
    with suppress(ValueError), Interrupts():
        assert not {signal.getsignal(number) for number in numbers} & set(former)
        if error:
            raise error
    assert [signal.getsignal(number) for number in numbers] == former


def test_what_nohup_ignores_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts, interrupts.patient() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_another_s_wish_to_stop_is_raised_at_the_end_with_its_reason() -> None:
    inside, after = [], []
    with pytest.raises(AskedToStop, match=r"^by a tag$") as stopped, Interrupts() as interrupts:
        with interrupts.patient(lambda: "by a tag") as asked:
            assert asked() == "by a tag"
            inside.append("the checkpoint")
        after.append("more")
    assert inside == ["the checkpoint"] and after == []
    assert stopped.value.exit_code == 130


def test_a_wish_that_was_not_asked_for_any_more_stops_nothing() -> None:
    """It came after the last step: the run is finished."""
    with Interrupts() as interrupts, interrupts.patient(lambda: "by a tag"):
        pass


def test_of_a_signal_and_a_wish_the_signal_is_told() -> None:
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts, interrupts.patient(lambda: "by a tag") as asked:
        assert asked() == "by a tag"
        signal.raise_signal(signal.SIGTERM)
        assert asked() == "stopped by SIGTERM"
    assert stopped.value.exit_code == 143

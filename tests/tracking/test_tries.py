"""Which failing calls are made again, and what becomes of a run whose calls fail for good."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE
from requests import HTTPError, Response, Timeout
from sqlalchemy.exc import IntegrityError, OperationalError

from forge.errors import TrackingError
from forge.tracking import store, tries
from forge.tracking.run import run
from forge.tracking.tries import again, transient


def http(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(response=response)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """failing(name, error, times) makes that client call fail as often; returns the times of the calls."""
    monkeypatch.setattr(tries, "PAUSES_S", (0.0, 0.0))

    def make(name: str, error: Exception, times: int = 10**6) -> list[float]:
        real, calls = getattr(MlflowClient, name), list[float]()

        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(time.monotonic())
            if len(calls) <= times:
                raise error
            return real(*arguments, **more)

        monkeypatch.setattr(MlflowClient, name, call)
        return calls

    return make


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("too many", REQUEST_LIMIT_EXCEEDED), True),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "oops"}), True),
        (MlflowException("no such name", INVALID_PARAMETER_VALUE), False),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), False),
        (http(503), True),
        (http(403), False),
        (Timeout(), True),
        (ConnectionResetError(), True),
        (OperationalError("INSERT", {}, Exception("database is locked")), True),
        (IntegrityError("INSERT", {}, Exception("UNIQUE")), False),
        (PermissionError(13, "no"), False),
        (TypeError("a bug"), False),
    ],
)
def test_what_passes_by_itself_is_told_from_what_does_not(error: Exception, expected: bool) -> None:
    assert transient(error) == expected


def test_a_call_is_made_again_after_each_pause_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSES_S", (0.05, 0.1))
    calls: list[float] = []

    def call() -> None:
        calls.append(time.monotonic())
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        again(call)
    first, second, third = calls
    assert 0.05 <= second - first < 0.1 <= third - second


def test_a_call_that_is_refused_is_not_made_again() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise MlflowException("not like that", INVALID_PARAMETER_VALUE)

    with pytest.raises(MlflowException, match="not like that"):
        again(call)
    assert len(calls) == 1


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_inputs", "log_text", "log_table", "set_terminated"])
def test_a_store_that_is_away_for_a_moment_loses_nothing(make_spec: Any, failing: Any, call: str) -> None:
    calls = failing(call, MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), times=2)
    with run(make_spec(system_metrics=None), "i") as opened:
        everything(opened)
    found = store.connect(None).get_run(opened.id)
    assert len(calls) > 2 and found.info.status == "FINISHED" and found.data.params == {"a": "1"}
    assert found.data.tags["mine"] == "x" and "forge.lost_metrics" not in found.data.tags


@pytest.mark.parametrize(("call", "lost"), [("log_inputs", 1), ("log_text", 2), ("log_table", 1)])
@pytest.mark.parametrize("error", [MlflowException("the server is down"), MlflowException("not like that", INVALID_PARAMETER_VALUE)])
def test_what_the_store_does_not_take_is_told_and_ends_no_training(
    make_spec: Any, failing: Any, call: str, lost: int, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(call, error)
    with run(make_spec(), "i") as opened:
        everything(opened)
    found = store.connect(None).get_run(opened.id)
    assert (found.info.status, found.data.tags["forge.lost_metrics"]) == ("FINISHED", str(lost))
    out = capsys.readouterr().out
    assert out.count("MLflow did not take ") == lost and f"({error}); the run goes on without" in out


def test_a_bug_of_ours_is_no_answer_of_the_store(make_spec: Any, failing: Any) -> None:
    failing("log_text", TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"), run(make_spec(), "i") as opened:
        opened.text("x", "x.txt")


@pytest.mark.parametrize("call", ["create_run", "get_experiment_by_name"])
def test_without_a_run_there_is_nothing_to_train_and_one_line_says_so(make_spec: Any, failing: Any, call: str) -> None:
    calls = failing(call, MlflowException("the server is down\nand a trace"))
    with pytest.raises(TrackingError, match=r"could not .* \(the server is down\); check tracking.uri") as error, run(make_spec(), "i"):
        pass
    assert "\n" not in str(error.value) and len(calls) == 3


def everything(opened: Any) -> None:
    from forge.spec import Ledger

    opened.tags({"mine": "x"})
    opened.params({"a": 1})
    opened.text("hello", "hello.txt")
    opened.table({"a": [1]}, "table.json")
    opened.data(Ledger({}, digest="d", valid_digest="v", source_digests={"a": "s"}), {"a": {}})

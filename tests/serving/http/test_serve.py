"""python -m forge.serve as it is typed: what is wrong with its words, what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge import serve
from tests.serving.http.conftest import until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_token(monkeypatch) -> None:
    monkeypatch.delenv("FORGE_SERVE_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "which model? Write model=models:/NAME@ALIAS or model=FOLDER; --help"),
        (["-h"], 0, "python -m forge.serve model="),
        (["port=8000"], 2, "which model? Write model=models:/NAME@ALIAS or model=FOLDER; --help"),
        (["prot=1"], 2, "model: is required"),
        (["MODEL", "prot=1"], 2, "did you mean 'port'"),
        (["MODEL", "port=70000"], 2, "port"),
        (["MODEL", "slots=0"], 2, "slots"),
        (["MODEL", "timeout_s=fast"], 2, "timeout_s"),
        (["MODEL", "read_s=0"], 2, "read_s"),
        (["MODEL", "host=0.0.0.0"], 2, "needs a token"),
        (["MODEL", 'host="::"'], 2, "needs a token"),
        (["MODEL", "token="], 2, "token: is empty"),
        (["MODEL", "cors=example.org"], 2, "cors"),
        (["MODEL", "cors=[https://a.example, '*']"], 2, "cors"),
        (["MODEL", "adapter={other: /x}"], 2, "adapter: there is no model other"),
        (["model={a/b: /x}"], 2, "model"),
        (["model=/nowhere/at-all"], 8, "config.json"),
        (["model=~/nowhere-at-all"], 8, "config.json"),
        (["just words"], 2, "key=value"),
        (["MODEL", "port=0", "audit=/proc/no/such"], 8, "audit=/proc/no/such"),
    ],
)
def test_wrong_words_are_refused_in_a_line(no_token, chat_folder, capsys, words, code, says) -> None:
    began = time.monotonic()
    assert serve.main([f"model={chat_folder}" if word == "MODEL" else word for word in words]) == code
    told = capsys.readouterr()
    assert says in told.out + told.err and "Traceback" not in told.err
    assert time.monotonic() - began < 5


def test_a_registered_model_is_looked_for_in_a_store_that_is_there(no_token, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert serve.main(["model=models:/law@champion", "port=0"]) == 7
    assert "error: there is no tracking store at " in capsys.readouterr().err and not (tmp_path / "home").exists()


def test_a_token_is_never_shown_and_never_taken_for_a_number(capsys) -> None:
    assert serve.main(["model=/nowhere", "token=0123456789", "prot=1"]) == 2
    told = capsys.readouterr()
    assert "0123456789" not in told.out + told.err and "123456789" not in told.err


class Process:
    """forge.serve, in a session of its own as a terminal gives it."""

    def __init__(self, log: Path, *words: str, **environment: str):
        self.log = log
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "FORGE_HOME": str(log.parent), **environment}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "forge.serve", *words]
            self.process = subprocess.Popen(command, env=settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def address(self) -> str:
        until(lambda: "Ctrl-C stops" in self.said or self.process.poll() is not None, 60)
        assert "serving" in self.said, self.said
        return self.said.split(" at ")[1].split("/v1")[0]


@pytest.fixture
def started(tmp_path, no_token) -> Iterator:
    processes: list[Process] = []

    def start(*words: str, **environment: str) -> Process:
        processes.append(Process(tmp_path / f"{len(processes)}.log", *words, **environment))
        return processes[-1]

    yield start
    for each in processes:
        each.process.kill()
        each.process.wait()


def ask(address: str, path: str, body: dict | None = None, token: str = "") -> dict:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_it_serves_several_models_says_where_and_ends_with_the_number_of_the_signal(started, chat_folder, base_folder) -> None:
    served = started(f"model={{talks: {chat_folder}, writes: {base_folder}}}", "port=0")
    address = served.address()
    assert [model["id"] for model in ask(address, "/v1/models")["data"]] == ["talks", "writes"]
    assert ask(address, "/v1/completions", {"model": "writes", "prompt": "the", "max_tokens": 2})["usage"]["completion_tokens"] == 2

    second = started(f"model={chat_folder}", f"port={address.rpartition(':')[2]}")
    assert second.process.wait(60) == 8
    (line,) = [line for line in second.said.splitlines() if line]
    assert line.startswith("error: can't listen at 127.0.0.1:") and "port=" in line

    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(15) == 130, served.said
    assert "Traceback" not in served.said


@pytest.mark.slow
def test_a_signal_while_it_computes_and_a_second_one(started, make_folder, tmp_path) -> None:
    """The first lets what runs go on, the second ends it at once. The token comes from the environment, and no process list shows it."""
    folder = make_folder(tmp_path / "endless", None, context=10**9, endless=True)
    served = started(f"model={folder}", "port=0", "grace_s=60", FORGE_SERVE_TOKEN="a-long-secret")
    address = served.address()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(address, "/v1/models")
    body = {"prompt": "the", "max_tokens": 10**8, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer a-long-secret"}
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read(100)
        served.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in served.said, 5)
        answer.read(1000)
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGTERM)
        assert b"shutting_down" in answer.read()
    assert served.process.wait(15) == 143, served.said
    assert "Traceback" not in served.said and "a-long-secret" not in served.said

"""What package.py hands to MLflow, and which forge a loaded model uses. Subprocesses stand for other environments."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import forge
from forge.errors import ServingError
from forge.serving.package import save_arguments

ROOT = Path(forge.__file__).parents[1]
FORGET = f"import sys; sys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]\n"
# How setuptools makes an editable install of a package findable: by a finder behind the one that looks through sys.path.
FINDER = f"""
import importlib.machinery
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [{str(ROOT)!r}]) if name == "forge" else None
sys.meta_path.append(Finder)
"""
LOAD = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
text = model.predict({"prompt": "the cat", "max_tokens": 3, "temperature": 0.0})["choices"][0]["text"]
import forge
print(forge.__file__)
import forge.spec
print("spec imported")
"""


def environment(folder: Path, sitecustomize: str) -> dict[str, str]:
    """A process that runs `sitecustomize` when it starts, and sees no forge but by that."""
    (folder / "sitecustomize.py").write_text(sitecustomize)
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }


def test_ships_the_serving_code_alone(saved: Path) -> None:
    shipped = {path.relative_to(saved / "code").as_posix() for path in (saved / "code").rglob("*.py")}
    serving = {f"forge/serving/{path.name}" for path in (ROOT / "forge" / "serving").glob("*.py")}
    not_shipped = {"forge/serving/package.py", "forge/serving/pyfunc.py"}
    assert shipped == {"forge/__init__.py", "forge/blas.py", "forge/chat_template.py", "forge/errors.py"} | serving - not_shipped
    assert not [path for path in shipped if "/" in path.removeprefix("forge/").removeprefix("serving/")]


def test_requirements_are_pinned(saved: Path) -> None:
    lines = (saved / "requirements.txt").read_text().split("\n")
    assert {line.split("==")[0] for line in lines} == {"mlx", "mlx[cpu]", "mlx-lm", "mlflow"}
    assert all("==" in line for line in lines)


def test_incomplete_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ServingError, match=r"tokenizer\.json and \*\.safetensors missing"):
        save_arguments(tmp_path)


def test_forge_stays_whole_in_this_process(model) -> None:
    import forge.spec

    assert Path(forge.spec.__file__).parents[1] == ROOT
    assert not [entry for entry in sys.path if entry.endswith("/code")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sitecustomize", "whole"),
    [(FORGET, False), (FORGET + FINDER, True), (FORGET + f"sys.path.append({str(ROOT)!r})", True)],
    ids=["no forge", "editable by a finder", "editable by a path"],
)
def test_which_forge_is_used(saved: Path, tmp_path: Path, sitecustomize: str, whole: bool) -> None:
    """The shipped copy where there is no other; else the installed one, whole."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(saved)],
        cwd=tmp_path,
        env=environment(tmp_path, sitecustomize),
        capture_output=True,
        text=True,
        timeout=120,
    )
    used = Path(done.stdout.split("\n")[0])
    assert used == (ROOT if whole else saved / "code") / "forge" / "__init__.py", done.stderr
    assert ("spec imported" in done.stdout) == whole
    assert (done.returncode == 0) == whole


@pytest.mark.slow
def test_exit_while_generating(base_folder: Path, tmp_path: Path) -> None:
    """An MLX thread that computes while the process ends makes it abort (-6)."""
    code = (
        "import sys, time\nfrom forge.serving.engine import GenerationThread, Sampling\n"
        "engine = GenerationThread(sys.argv[1])\n"
        "for _ in range(500): engine.submit('the cat', Sampling(temperature=0))\ntime.sleep(0.5)\nprint(engine.stats().queued)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(base_folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert int(done.stdout) > 0, "it has to be busy when it ends"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def url(saved: Path, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve` of the saved model, in an environment without forge."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local", "-h", "127.0.0.1"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "-p", str(port)],
            cwd=tmp_path,
            env=environment(tmp_path, FORGET),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(timeout=20)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def post(url: str, body: str) -> tuple[int, dict]:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
def test_http(url: str) -> None:
    """The bodies in the docstring of pyfunc.py, and a mistake."""
    status, chat = post(url, '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}')
    assert (status, chat["object"], chat["choices"][0]["message"]["role"]) == (200, "chat.completion", "assistant")
    status, text = post(url, '{"prompt": "Once upon", "max_tokens": 20, "temperature": 0}')
    assert (status, text["object"], text["usage"]["completion_tokens"]) == (200, "text_completion", 20)
    rows = '{"inputs": {"prompt": ["Once upon", "There was"]}, "params": {"max_tokens": 20, "temperature": 0}}'
    status, answers = post(url, rows)
    assert (status, len(answers["predictions"])) == (200, 2)
    assert answers["predictions"][0]["choices"] == text["choices"]
    frame = '{"dataframe_split": {"columns": ["prompt"], "data": [["Once upon"]]}, "params": {"max_tokens": 20, "temperature": 0}}'
    assert post(url, frame)[1]["predictions"][0]["choices"] == text["choices"]
    status, error = post(url, '{"prompt": "Once upon", "temprature": 0}')
    assert (status, error["message"]) == (400, "unknown key `temprature`, did you mean `temperature`?")
    assert "stack_trace" not in error


@pytest.mark.slow
def test_the_openai_client(url: str) -> None:
    """MLflow has one route for all, so the client is told that one."""
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "temperature": 0}
    with OpenAI(base_url=url.removesuffix("/invocations"), api_key="none", max_retries=0) as client:
        answer = client.post("/invocations", body=body, cast_to=ChatCompletion)
    assert (answer.object, answer.choices[0].message.role) == ("chat.completion", "assistant")
    assert answer.usage is not None and answer.usage.completion_tokens <= 20
    assert answer.choices[0].message.content == post(url, json.dumps(body))[1]["choices"][0]["message"]["content"]

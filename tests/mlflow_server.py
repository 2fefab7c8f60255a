"""An MLflow server as a team runs it: PostgreSQL for what is searched, an S3-compatible store for artifacts, where both are installed."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

BUCKET = "forge"
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_WAIT_S = 120


def missing() -> str | None:
    """What isn't installed of what the server needs."""
    if not _postgres():
        return "PostgreSQL"
    return next((package for package in ("psycopg2", "boto3", "moto") if not find_spec(package)), None)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The server's address. `folder` holds the database, the objects being in memory."""
    with ExitStack() as stack:
        database = stack.enter_context(_database())
        objects = stack.enter_context(_objects())
        port = _free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "-w", "1"]
        command += ["--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}", "--serve-artifacts"]
        settings = {**os.environ, **_KEYS, "MLFLOW_S3_ENDPOINT_URL": objects, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        settings |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
        settings.pop("MLFLOW_TRACKING_URI", None)
        with (folder / "server.log").open("w") as log:
            process = subprocess.Popen(command, env=settings, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_end, process)
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health", process, folder / "server.log")
        yield address


@contextmanager
def _database() -> Iterator[str]:
    """PostgreSQL refuses to run as root: then it runs as the user that its package makes. That one can't enter pytest's folders."""
    tools, port = _postgres(), _free_port()
    assert tools
    folder = Path(tempfile.mkdtemp(prefix="forge-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    control = [*as_user, str(tools / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*as_user, str(tools / "initdb"), "-D", str(folder / "data"), "-U", "forge", "-A", "trust", "--no-sync"], **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg2://forge@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder)


@contextmanager
def _objects() -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        server.stop()


def _postgres() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them off the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

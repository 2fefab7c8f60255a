"""Eight clients against forge.serve for FORGE_LOAD_S seconds (6 if not set): nothing lost, nothing miscounted, equal seeds, equal texts.

Memory and the worst /health are bars of `scripts/bench load`, on a machine that does nothing else.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.serving.http.conftest import until

ROOT = Path(__file__).parents[3]


class Cut(BaseHTTPRequestHandler):
    """Streams that end in the middle, and answers that are shorter than they said."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent = b'data: {"choices": []}\n\n' if body.get("stream") else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent) + (0 if body.get("stream") else 9)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


def test_a_client_of_the_bench_counts_broken_answers_as_lost(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benches")
    load = importlib.import_module("load")
    seen, ended = load.Seen(), threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = threading.Thread(target=load._client, args=(server.server_port, [("completions", {}, 1)], 0, seen, ended), daemon=True)
        client.start()
        until(lambda: {lost.partition(":")[0] for lost in seen.lost} >= {"AssertionError", "IncompleteRead"}, 10)
        ended.set()
        client.join(10)
        server.shutdown()
    assert not seen.seconds


@pytest.mark.slow
def test_load(tmp_path) -> None:
    minutes = float(os.environ.get("FORGE_LOAD_S", "6")) / 60
    command = [sys.executable, "scripts/benches/load.py", "--minutes", str(minutes), "--most-tokens", "24", "--no-memory"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORGE_HOME": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=minutes * 60 + 300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ", 0 lost" in ended.stdout and "wrong: 0" in ended.stdout

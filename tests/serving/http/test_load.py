"""Eight clients against forge.serve for FORGE_LOAD_S seconds (20 if not set): nothing lost, nothing miscounted, equal seeds, equal texts.

Memory and the worst /health are bars of `scripts/bench load`, on a machine that does nothing else.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_load(tmp_path) -> None:
    minutes = float(os.environ.get("FORGE_LOAD_S", "20")) / 60
    command = [sys.executable, "scripts/benches/load.py", "--minutes", str(minutes), "--most-tokens", "24", "--no-memory"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORGE_HOME": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=minutes * 60 + 300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ", 0 lost" in ended.stdout and "wrong: 0" in ended.stdout

"""Event files for TensorBoard beside the store, read back with TensorBoard's own reader."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge.errors import TrackingError
from forge.tracking import mirror, store
from forge.tracking.run import run


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("tensorboardX")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_each_life_adds_to_one_folder_what_the_store_gets(make_spec: Any, home: Path) -> None:
    pytest.importorskip("tensorboardX")
    spec = make_spec(tensorboard=True, experiment="../a b", run_name="mine/1")
    with pytest.raises(KeyboardInterrupt), run(spec, "i") as first:
        first.log({"train/loss": 0.5, "val/perplexity": float("inf")}, 1)
        first.log({"train/loss": 0.25}, 2)
        raise KeyboardInterrupt
    with run(spec, "i", resume_id=first.id) as second:
        for step in (2, 3):
            second.log({"train/loss": 1 / 2**step}, step)
    folder = home / "mlruns" / "tensorboard" / "_a_b" / f"mine_1-{first.id[:8]}"
    assert folder == mirror.place("../a b", "mine/1", first.id)
    assert read_back(folder) == {"train/loss": [(1, 0.5), (2, 0.25), (3, 0.125)]}
    assert len(list(folder.iterdir())) == 2


def test_without_tensorboardx_it_says_what_to_install(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=r"pip install 'forge-mlx\[tensorboard\]'"), run(make_spec(tensorboard=True), "i"):
        pass
    assert store.connect(None).get_experiment_by_name(make_spec().experiment) is None  # before there is a run


@pytest.mark.slow
def test_off_it_is_not_imported(home: Path) -> None:
    code = "import sys, forge.tracking.run\nprint([name for name in sys.modules if 'tensorboard' in name.lower()])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr

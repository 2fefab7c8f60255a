"""A copy of the metrics for TensorBoard, beside MLflow: mlruns/tensorboard/<experiment>/<run>. Look with `tensorboard --logdir`.

Written by the writer's thread, and on disk some seconds later. Each life of a run adds an event file.
"""

import re
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from forge import paths
from forge.errors import TrackingError

_FLUSH_S = 5.0


def require() -> None:
    """Raises TrackingError where tensorboardX is not installed."""
    if find_spec("tensorboardX") is None:
        raise TrackingError("tracking.tensorboard=true needs tensorboardX: pip install 'forge-mlx[tensorboard]', or set it to false")


class Mirror:
    """One life's event file in `folder`. All of it belongs to the writer's thread."""

    def __init__(self, folder: Path):
        self._folder, self._flushed = folder, time.monotonic()
        self._file: Any = None

    def write(self, metrics: Sequence[Metric]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The library names files by the second, and would write over another's of the same one.
            self._file = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        for (step, at_ms), group in groupby(metrics, lambda metric: (metric.step, metric.timestamp)):
            summary = Summary(value=[Summary.Value(tag=metric.key, simple_value=metric.value) for metric in group])
            self._file.write_event(Event(wall_time=at_ms / 1000, step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def place(experiment: str, run_name: str, run_id: str) -> Path:
    """Names may be the same in two runs, and hold what no folder may be called."""
    plain = (re.sub(r"[^\w.=-]", "_", part).lstrip(".") or "_" for part in (experiment, f"{run_name}-{run_id[:8]}"))
    return paths.runs().joinpath("tensorboard", *plain)

"""Sends metrics and images to MLflow from one background thread, in order.

mlflow's own asynchronous mode loses data without a word when a call fails. Here each call is made synchronously by the
thread, tried again, and counted when it is lost. Giving it 50 metrics takes the caller 0.01 to 0.1 ms.
"""

import math
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from mlflow import MlflowClient
from mlflow.entities import Metric

from forge.spec import Metrics
from forge.tracking.tries import Tries

_BATCH = 1000  # MLflow's limit

Item = list[Metric] | Callable[[], None]


class Writer:
    """`lost` counts what could not be sent, `why` is the last reason; `non_finite` counts the values that MLflow can't hold.

    `mirror` gets the metrics too, on the same thread; `mirrored` tells what it did not take.
    """

    def __init__(self, client: MlflowClient, run_id: str, mirror: Callable[[list[Metric]], object] | None = None):
        self._client, self._run_id, self._mirror = client, run_id, mirror
        self._queue: queue.Queue[Item | None] = queue.Queue()
        self._tries = Tries((Exception,))  # a picture that can't be drawn must not end the thread
        self.mirrored = Tries((Exception,))  # of its own: that the mirror works does not mean that the store is back
        self.non_finite = 0
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        return self._tries.lost

    @property
    def why(self) -> str:
        return self._tries.why

    def metrics(self, metrics: Metrics, step: int) -> int:
        """Their time in the store, in ms since 1970."""
        now = int(time.time() * 1000)
        finite = [Metric(name, value, now, step) for name, value in metrics.items() if math.isfinite(value)]
        self.non_finite += len(metrics) - len(finite)
        if finite:
            self._queue.put(finite)
        return now

    def call(self, task: Callable[[], None]) -> None:
        """Run `task`, which talks to MLflow, after all that was given before."""
        self._queue.put(task)

    def close(self) -> None:
        """Wait until everything was sent or counted as lost."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        item = self._queue.get()
        while item is not None:
            if callable(item):
                self._tries.make(item)
                item = self._queue.get()
            else:
                batch, waiting = self._gather(item)
                self._tries.make(partial(self._client.log_batch, self._run_id, metrics=batch, synchronous=True), len(batch))
                if self._mirror:
                    self.mirrored.make(partial(self._mirror, batch), len(batch))
                item = waiting[0] if waiting else self._queue.get()

    def _gather(self, first: list[Metric]) -> tuple[list[Metric], list[Item | None]]:
        """`first` with the metrics that queued up meanwhile, for one call; and the item that was taken but does not belong."""
        batch = list(first)
        while not self._queue.empty():
            item = self._queue.get()
            if not isinstance(item, list) or len(batch) + len(item) > _BATCH:
                return batch, [item]
            batch += item
        return batch, []

"""What the machine does meanwhile, as MLflow's own system metrics: system/cpu_utilization_percentage and so on, on the tab of that name.

MLflow's monitor ends for good at the first call that fails and may hold a run's end up, so that its probes alone are used: processor,
memory, disk and network everywhere, NVIDIA GPUs where nvidia-ml-py is installed. Apple's GPU can't be read without root rights; what MLX
holds of its memory is in memory/…. A sample takes 0.1 ms, on a thread that is not the training's.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
from mlflow import MlflowClient
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from forge.spec import Metrics

_ALWAYS_THERE = "system/cpu_utilization_percentage"


class System:
    """Gives `send` the machine's metrics at each sample() but the first, from which shares of time are counted; on one thread.

    Their step counts them from `first` on.
    """

    def __init__(self, send: Callable[[Metrics, int], object], first: int = 0):
        self._send, self._step = send, first
        self._probes = list(_probes())
        self._begun = False

    def sample(self) -> None:
        if not self._begun:
            psutil.cpu_percent()  # since this thread asked before; its first answer is 0
            self._begun = True
            return
        metrics: dict[str, float] = {}
        for probe in self._probes:
            probe.collect_metrics()
            metrics |= {f"system/{name}": value for name, value in probe.aggregate_metrics().items()}
            probe.clear_metrics()
        self._send(metrics, self._step)
        self._step += 1


def samples_of(client: MlflowClient, run_id: str) -> int:
    """How many samples earlier lives of the run have sent: the step that the next one takes."""
    return max((metric.step + 1 for metric in client.get_metric_history(run_id, _ALWAYS_THERE)), default=0)


def _probes() -> Iterator[BaseMetricsMonitor]:
    for probe in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(Exception):  # a container without a network card, a machine without that GPU: fewer metrics, whatever the reason
            yield probe()

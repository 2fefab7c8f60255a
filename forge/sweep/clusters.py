"""What starts a sweep's jobs elsewhere and says how they ended: submitit, for SLURM's queue and in its local form, and Ray."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from forge.errors import ConfigError
from forge.sweep.elsewhere import Handle, Task
from forge.sweep.launch import Ended

_LOOK_EVERY_S = 60.0  # at SLURM's accounting, for jobs that ended without a word
_GRACE_S = 15.0  # for a shared disk to show the result of a job that has ended
_GONE = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED",
         "FINISHED", "INTERRUPTED")  # fmt: skip
_CARRIED = ("FORGE_", "MLFLOW_")  # variables of this process that a Ray worker of another machine would not have


class Submitit:
    """`cluster`: "slurm" or "local". `parameters`: submitit's own, those of one cluster with its name in front."""

    def __init__(self, cluster: str, folder: Path, parameters: Mapping[str, Any]):
        import submitit

        try:
            self._executor = submitit.AutoExecutor(folder / "%j", cluster, **{f"{cluster}_max_num_timeout": 0})
        except RuntimeError as error:
            raise ConfigError("hydra/launcher=submitit_slurm: there is no srun here; start the sweep where SLURM takes jobs") from error
        self._executor.update_parameters(**parameters)
        self._name = {"slurm": "SLURM job", "local": "submitit process"}[cluster]
        self._local = cluster == "local"
        self._looked = time.monotonic()
        self._gone: dict[str, float] = {}

    def start(self, task: Task) -> Handle | Ended:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return self._executor.submit(task)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            return _lost(f"sbatch did not take it: {_last_line(error)}")

    def ended(self, handle: Handle) -> Ended | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if handle.paths.result_pickle.exists():
            try:
                return handle.result()
            except (FailedJobError, UncompletedJobError) as error:
                said = str(error)
                why = "its time was up" if "timed-out" in said else "it was preempted" if "not requeued" in said else _last_line(error)
                return _lost(f"{self._name} {handle.job_id}: {why}")
        state = self._state(handle)
        if state not in _GONE:
            return None
        if time.monotonic() - self._gone.setdefault(handle.job_id, time.monotonic()) < (1.0 if self._local else _GRACE_S):
            return None
        return _lost(f"{self._name} {handle.job_id} ended as {state}, without a result; what it said is in {handle.paths.stderr}")

    def cancel(self, handle: Handle) -> None:
        if not self._local:
            handle.cancel(check=False)
            return
        with suppress(psutil.NoSuchProcess):
            controller = psutil.Process(int(handle.job_id))
            for process in (*controller.children(recursive=True), controller):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        while not handle.done():  # takes the process off the system's table
            time.sleep(0.05)

    def close(self) -> None:
        pass

    def _state(self, handle: Handle) -> str:
        if self._local:
            return str(handle.state)
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            handle.watcher.update()  # of all jobs
        return str(handle.watcher.get_state(handle.job_id, mode="cache")).partition(" ")[0]


class Ray:
    """`init`: what ray.init takes. `remote`: what a job needs, as ray.remote takes it.

    Raises ConfigError where there is no cluster at the address, and for options that Ray does not have.
    """

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        try:
            # Retries would train a child twice: what comes back after a loss is for the same command to go on with.
            self._call = ray.remote(**{**remote, "max_retries": 0})(_call)
            if self._ours:
                with _own_signals():
                    ray.init(**{"log_to_driver": False, "logging_level": logging.ERROR, **init})
        except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=ray: {' '.join(str(error).split())}") from error
        self._environment = {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)}

    def start(self, task: Task) -> Handle | Ended:
        environment = {**self._environment, **task.job.environment}
        return self._call.remote(replace(task, job=replace(task.job, environment=environment)))

    def ended(self, handle: Handle) -> Ended | None:
        if not self._ray.wait([handle], timeout=0)[0]:
            return None
        try:
            ended: Any = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            return _lost(f"its Ray task ended without a result: {_last_line(error)}")
        assert isinstance(ended, Ended)
        return ended

    def cancel(self, handle: Handle) -> None:
        self._ray.cancel(handle, force=True)

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()


def _call(task: Task) -> Ended:
    return task()


def _lost(why: str) -> Ended:
    return Ended(1, f"error: {why}")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _own_signals() -> Iterator[None]:
    """ray.init puts a handler of its own in the place of ours."""
    main = threading.current_thread() is threading.main_thread()
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, former)

"""A run's sign of life: the tag `forge.heartbeat`, which says who works on it and when that was last seen to live.

    {"host": "studio.local", "pid": 4711, "process_started": "2026-05-01T09:00:03+00:00", "seen": "2026-05-01T11:24:33+00:00"}

Set every 30 s: one call to the store of 5 to 15 ms, none of them the training's.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache

import psutil
from mlflow import MlflowClient

from forge.tracking import store

TAG = "forge.heartbeat"
BEAT_S = 30.0
_SAME_S = 5.0  # two readings of one process's start may differ where the system's clock was set meanwhile


@dataclass(frozen=True)
class Heartbeat:
    """Times are ISO 8601, in UTC."""

    host: str
    pid: int
    process_started: str
    seen: str

    @property
    def seen_s(self) -> float:
        """In seconds since 1970."""
        return datetime.fromisoformat(self.seen).timestamp()

    def lives(self) -> bool:
        """Whether that very process is on this machine: a pid alone may be another one's by now."""
        try:
            found = psutil.Process(self.pid)
            return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - _seconds(self.process_started)) <= _SAME_S
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


def now() -> str:
    """This process's heartbeat, as the tag holds it."""
    return json.dumps(asdict(Heartbeat(platform.node(), os.getpid(), _started(os.getpid()), _iso(datetime.now(UTC).timestamp()))))


def read(tag: str | None) -> Heartbeat | None:
    """None where no heartbeat of ours stands there."""
    try:
        found = Heartbeat(**json.loads(tag or ""))
        found.seen_s, _seconds(found.process_started)
    except (ValueError, TypeError):
        return None
    return found


def beat(client: MlflowClient, run_id: str, ended: Callable[[], bool]) -> None:
    """Also takes back that the run ended, which another machine may have said while this one slept; unless it is `ended` by now."""
    client.set_tag(run_id, TAG, now())
    if client.get_run(run_id).info.status != "RUNNING" and not ended():
        client.update_run(run_id, status="RUNNING")
        store.untag(client, run_id, "forge.cause")


@cache
def _started(pid: int) -> str:
    return _iso(psutil.Process(pid).create_time())


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()

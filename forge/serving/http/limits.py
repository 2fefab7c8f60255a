"""How much of the server one client gets, and how large a request may be."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from forge.serving.http.faults import busy

_CLIENTS = 10_000  # whose buckets are remembered


@dataclass(frozen=True)
class Limits:
    """timeout_s: a request in all. read_s: until its head has come, and then its body. body_bytes: of the body.

    queue: completions that may wait for a model. rate: requests a minute that a client may send, None: any number; burst: of them, at once.
    models: loaded at one time.
    """

    timeout_s: float = 300.0
    read_s: float = 30.0
    body_bytes: int = 2_000_000
    queue: int = 64
    rate: float | None = None
    burst: int = 20
    models: int = 4


class Buckets:
    """A token bucket for each client: it holds `burst` requests, and fills at `rate` a minute."""

    def __init__(self, rate: float | None, burst: int):
        self._per_s = rate / 60 if rate else None
        self._burst = float(burst)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how full, and when that was

    def take(self, client: str) -> None:
        """Raises the refusal 429 where the client's bucket is empty."""
        if self._per_s is None:
            return
        now = time.monotonic()
        level, then = self._levels.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._per_s)
        self._levels[client] = (level - 1 if level >= 1 else level, now)
        if len(self._levels) > _CLIENTS:
            self._levels.popitem(last=False)
        if level < 1:
            raise busy(f"more than {self._per_s * 60:g} requests a minute", (1 - level) / self._per_s)

"""What the server did, in numbers: counters and histograms for Prometheus, and the last minutes' percentiles for /stats."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from forge.serving.contract import Stats

_LAST = 1000  # requests of a model that percentiles are of
_RATE_S = 60.0  # seconds that a speed is of
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAUGES = {
    "active": "Requests that are being computed",
    "queued": "Requests that wait",
    "memory_gib": "GiB that MLX holds in this process",
    "prompt_cache_gib": "GiB of kept prompt prefixes",
}

Live = Callable[[], dict[str, Stats]]  # by model


@dataclass(frozen=True)
class Done:
    """An answered request. Times in seconds since it came; `first_token_s` None where nothing was generated."""

    ended: float  # on time.monotonic's clock
    seconds: float
    first_token_s: float | None
    completion_tokens: int


class Metrics:
    """`live`: the state of each model that is loaded now. All methods belong to the event loop."""

    def __init__(self, live: Live):
        self._live, self._last = live, dict[str, deque[Done]]()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gauges(live))
        self._requests = self._counter("requests", "HTTP requests by their answer", "route", "model", "status")
        self._prompt = self._counter("prompt_tokens", "Tokens of answered prompts", "model")
        self._completion = self._counter("completion_tokens", "Tokens of answers", "model")
        self._cached = self._counter("cached_tokens", "Prompt tokens that a kept prefix saved computing", "model")
        self._seconds = self._histogram("request_seconds", "Seconds from request to the end of its answer", _REQUEST_S)
        self._first = self._histogram("time_to_first_token_seconds", "Seconds from request to its first token", _FIRST_TOKEN_S)

    def request(self, route: str, model: str | None, status: int) -> None:
        self._requests.labels(route, model or "", str(status)).inc()

    def answered(self, model: str, done: Done, prompt_tokens: int, cached_tokens: int) -> None:
        self._prompt.labels(model).inc(prompt_tokens)
        self._completion.labels(model).inc(done.completion_tokens)
        self._cached.labels(model).inc(cached_tokens)
        self._seconds.labels(model).observe(done.seconds)
        if done.first_token_s is not None:
            self._first.labels(model).observe(done.first_token_s)
        self._last.setdefault(model, deque(maxlen=_LAST)).append(done)

    def typical_s(self, model: str) -> float:
        """The median seconds of the last answers; 1 where there is none."""
        return _percentile([done.seconds for done in self._last.get(model, ())], 50) or 1.0

    def summary(self) -> dict[str, Any]:
        """By model: what it does now, its totals, and the last answers' times."""
        return {name: {**vars(stats), **self._recent(name)} for name, stats in self._live().items()}

    def _recent(self, model: str) -> dict[str, Any]:
        last, now = self._last.get(model, ()), time.monotonic()
        firsts = [done.first_token_s for done in last if done.first_token_s is not None]
        rates = [done.completion_tokens / done.seconds for done in last if done.completion_tokens and done.seconds]
        recent = [done for done in last if now - done.ended <= _RATE_S]
        return {
            "answers": len(last),
            "latency_s": _quantiles([done.seconds for done in last]),
            "time_to_first_token_s": _quantiles(firsts),
            "tokens_per_s_of_a_request": _quantiles(rates),
            "tokens_per_s_last_minute": round(sum(done.completion_tokens for done in recent) / _RATE_S, 3),
        }

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"forge_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(f"forge_{name}", says, ("model",), registry=self.registry, buckets=tuple(buckets))


class _Gauges:
    """Read when they are asked for, so that a model that was unloaded is no longer shown."""

    def __init__(self, live: Live):
        self._live = live

    def collect(self) -> Iterator[Metric]:
        models = self._live()
        for name, says in _GAUGES.items():
            gauge = GaugeMetricFamily(f"forge_{name}", says, labels=["model"])
            for model, stats in models.items():
                gauge.add_metric([model], getattr(stats, name))
            yield gauge


def process_gib() -> float:
    """Memory that this process holds in RAM."""
    return float(psutil.Process().memory_info().rss / 2**30)


def _quantiles(values: list[float]) -> dict[str, float | None]:
    return {"p50": _percentile(values, 50), "p95": _percentile(values, 95)}


def _percentile(values: list[float], percent: int) -> float | None:
    """The smallest of the values that `percent` of them don't exceed (nearest rank); None of none."""
    return round(sorted(values)[-(-percent * len(values) // 100) - 1], 4) if values else None

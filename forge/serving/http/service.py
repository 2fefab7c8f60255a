"""What all routes share."""

from dataclasses import dataclass

from forge.serving.http.audit import Audit
from forge.serving.http.auth import Tokens
from forge.serving.http.limits import Limits
from forge.serving.http.metrics import Metrics
from forge.serving.http.models import Models
from forge.serving.http.sources import Allowed
from forge.serving.prompt import Mode


@dataclass(frozen=True)
class Service:
    """`cors`: origins of pages, as https://host:port, that may ask from a browser. `mode`: whether models are bases or chat."""

    models: Models
    metrics: Metrics
    audit: Audit
    limits: Limits
    tokens: Tokens
    allowed: Allowed
    cors: tuple[str, ...] = ()
    mode: Mode = "auto"

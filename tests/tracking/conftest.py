"""Tracking settings for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.settings import TrackingSpec


@pytest.fixture
def make_spec(home: Path, request: pytest.FixtureRequest) -> Callable[..., TrackingSpec]:
    """make_spec(**changes): tracking settings with an experiment of the test's own."""

    def make(**changes: Any) -> TrackingSpec:
        settings: dict[str, Any] = {
            "uri": None,
            "experiment": request.node.name,
            "run_name": None,
            "parent_run": None,
            "dashboard": True,
            "tags": {},
        }
        return TrackingSpec(**(settings | changes))

    return make

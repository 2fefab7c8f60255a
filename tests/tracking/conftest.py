"""Tracking settings for a test, which runs on both stores: the local one, and a server with PostgreSQL and S3-compatible artifacts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.settings import TrackingSpec


@pytest.fixture(params=["local", pytest.param("server", marks=pytest.mark.slow)])
def make_spec(home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrackingSpec]:
    """make_spec(**changes): tracking settings with an experiment of the test's own."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))

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

"""What is read back of runs, and what is said where that can't be."""

from typing import Any

import pytest
from mlflow import MlflowClient
from requests import ConnectionError as Unreachable

from forge.errors import TrackingError
from forge.tracking import reader, store, tries
from forge.tracking.run import run


def test_a_file_that_is_not_there_is_none_and_a_store_that_is_away_is_an_error(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep would take another winner, and a comparison say that a run keeps no documents, were the two the same."""
    with run(make_spec(), "i") as opened:
        opened.text("é", "evaluation/rows.json")
    client = store.connect(None)
    found = [reader.text(client, opened.id, name) for name in ("evaluation/rows.json", "evaluation/other.json", "nowhere/x", "x")]
    assert found == ["é", None, None, None]

    def away(*_: Any) -> None:
        raise Unreachable("down")

    monkeypatch.setattr(tries, "PAUSES_S", (0.0,))
    for call in ("download_artifacts", "list_artifacts"):
        monkeypatch.setattr(MlflowClient, call, away)
        with pytest.raises(TrackingError, match=r"rows\.json can't be read from the tracking store \(ConnectionError: down"):
            reader.text(client, opened.id, "evaluation/rows.json")

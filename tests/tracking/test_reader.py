"""What is read back of runs, and what is said where that can't be."""

from typing import Any

import pytest
from mlflow import MlflowClient
from requests import ConnectionError as Unreachable

from forge.errors import TrackingError
from forge.tracking import reader, store, tries
from forge.tracking.recorded import recorded
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


def test_a_run_that_only_holds_others_names_them(make_spec: Any) -> None:
    with run(make_spec(run_name="both"), "i") as parent, run(make_spec(run_name="first", parent_run=parent.id), "j") as child:
        pass
    client = store.connect(None)
    with pytest.raises(TrackingError, match=rf"^run both \({parent.id[:8]}\) trained .* one of its 1 runs: first \({child.id[:8]}\)$"):
        recorded(client, reader.get(client, parent.id))
    with pytest.raises(TrackingError, match=r"^run first .* holds no config/config\.yaml"):
        recorded(client, reader.get(client, child.id))

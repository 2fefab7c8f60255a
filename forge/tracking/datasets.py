"""A source of documents as an MLflow dataset: name, digest and counts."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset
from mlflow.entities import DatasetInput, InputTag

from forge.spec import Ledger

DIGEST_LENGTH = 36  # MLflow's limit


class _Documents(Dataset):
    def __init__(self, name: str, digest: str, origin: Mapping[str, str], profile: Mapping[str, float]):
        self._profile = dict(profile)
        super().__init__(CodeDatasetSource(tags=dict(origin)), name=name, digest=digest[:DIGEST_LENGTH])

    def _compute_digest(self) -> str:
        raise NotImplementedError("the data path computes it")

    @property
    def profile(self) -> dict[str, float]:
        return self._profile

    @property
    def schema(self) -> None:
        return None

    def to_dict(self) -> dict[str, str]:
        return {**super().to_dict(), "profile": json.dumps(self._profile)}


def inputs(ledger: Ledger, sources: Mapping[str, Mapping[str, Any]]) -> list[DatasetInput]:
    """One input a source. `sources` holds each source's configuration, its origin."""
    return [
        DatasetInput(
            _Documents(
                name=name,
                digest=digest,
                origin={key: str(value) for key, value in sources[name].items()},
                profile={
                    key.removeprefix(f"data/{name}/"): value for key, value in ledger.counts.items() if key.startswith(f"data/{name}/")
                },
            )._to_mlflow_entity(),
            tags=[InputTag("mlflow.data.context", "train and validation")],
        )
        for name, digest in ledger.source_digests.items()
    ]

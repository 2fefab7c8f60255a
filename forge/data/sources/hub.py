"""A dataset of the Hugging Face hub, or of its cache, as rows. Cost: one download, then a memory-mapped file read in batches of 32 MB."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from forge import paths
from forge.data.sources.readers.rows import Knobs, batch_rows, batch_values, record
from forge.errors import DataError
from forge.spec import Row


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in order. The dataset is loaded when it is first asked for. Raises DataError then."""

    id: str
    split: str
    name: str | None
    revision: str | None
    knobs: Knobs

    def __iter__(self) -> Iterator[Row]:
        number = 0
        label = f"{Path(self.id).expanduser().resolve().name}/{self.split}"
        size = batch_rows(self._loaded.data.nbytes, self._loaded.data.num_rows)
        for table in self._loaded.with_format("arrow").iter(batch_size=size):
            for batch in table.to_batches():
                for value in batch_values(batch, self.knobs.limit):
                    number += 1
                    yield record(value, f"{label}:{number}", self.knobs)

    @property
    def fingerprint(self) -> str:
        """Changes with the dataset's content, which `datasets` identifies, with the revision and the knobs."""
        state = (self._loaded._fingerprint, len(self._loaded), self.revision, self.knobs)
        return hashlib.sha256(repr(state).encode()).hexdigest()

    @cached_property
    def _loaded(self) -> Any:
        """A datasets.Dataset."""
        from datasets.exceptions import DatasetsError

        try:
            return _load(self)
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # all that `datasets` raises for what it is given
            raise DataError(f"id={self.id}: {_explained(error, self)}") from error


def dataset(
    *,
    id: str,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    format: str = "auto",
    text_field: str = "text",
    speakers: dict[str, str] | None = None,
    speaker_pattern: str | None = None,
    max_row_mb: Annotated[float, Field(gt=0)] = 16.0,
) -> Rows:
    """One split of a dataset: of the hub (`id` is OWNER/NAME), of a folder with data files, or of one that save_to_disk wrote.

    `name`: its configuration, where it has several. `split`: also a part, as train[:10%]. The other knobs are those of
    forge.data.sources.readers.rows.Knobs. A private one takes its token from HF_TOKEN in the environment.
    """
    return Rows(id, split, name, revision, Knobs(format, text_field, speakers, speaker_pattern, max_row_mb=max_row_mb))


def _load(wanted: Rows) -> Any:
    import datasets

    place = paths.given("id", wanted.id)
    if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(place))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or wanted.split): saved}
        if wanted.split not in splits:
            raise ValueError(f'Unknown split "{wanted.split}". Should be one of {list(splits)}.')
        return splits[wanted.split]
    found = str(place) if place.exists() else wanted.id
    return datasets.load_dataset(found, wanted.name, split=wanted.split, revision=wanted.revision)


def _explained(error: Exception, wanted: Rows) -> str:
    from datasets import config
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    if isinstance(error, ConnectionError):
        why = "HF_HUB_OFFLINE is set" if config.HF_HUB_OFFLINE else "the hub can't be reached"
        return f"it is not in the cache ({config.HF_DATASETS_CACHE}), and {why}; connect once, or use files of your own with data=folder"
    if isinstance(error, DatasetNotFoundError):
        revision = f" at revision {wanted.revision}" if wanted.revision else ""
        return f"the hub has no such dataset{revision}, or it is private; mend the id, or set HF_TOKEN to a token that may read it"
    if isinstance(error, DatasetGenerationError):
        return f"its files can't be read ({_line(error.__cause__ or error)}); give the files to data=folder, which names each bad row"
    if isinstance(error, ValueError):
        return f"{_line(error).rstrip('.')}; set split and name (the configuration) to ones that it has"
    return f"{_line(error)}; give the id of a dataset, or a folder with one"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())

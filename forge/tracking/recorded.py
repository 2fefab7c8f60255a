"""The configuration that a run was made with, read back from the tracking store and checked anew."""

from collections.abc import Sequence

from mlflow import MlflowClient
from omegaconf import OmegaConf

from forge import keys
from forge.config import Config, check
from forge.errors import ConfigError, TrackingError
from forge.tracking import reader
from forge.tracking.reader import Seen

_SHOWN = 5  # names in an error message


def recorded(client: MlflowClient, run: Seen, overrides: Sequence[str] = (), allowed: Sequence[str] = ()) -> Config:
    """With `overrides` (dotted key=value) put over it.

    Composing a configuration runs the code that it names, so targets outside forge's own have to be `allowed` anew, whatever the run itself
    allowed. Raises ConfigError, also where this forge no longer takes the run's settings, and TrackingError where the run has none.
    """
    text = reader.text(client, run.id, "config/config.yaml")
    if text is None and (inner := reader.children(client, run)):
        names = ", ".join(f"{child.name} ({child.id[:8]})" for child in inner[:_SHOWN])
        raise TrackingError(f"run {run.name} ({run.id[:8]}) trained nothing itself: name one of its {len(inner)} runs: {names}")
    if text is None:
        raise TrackingError(f"run {run.name} ({run.id[:8]}) holds no config/config.yaml: it ended too early, or forge did not make it")
    kept = OmegaConf.create(text)
    given = keys.tree(overrides)
    try:
        return check(OmegaConf.merge(kept, given, {"allowed_targets": list(allowed), "resume": None}))  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"the recorded configuration of run {run.name} is refused here:\n{error}") from error

"""What the environment chooses: where things lie and whether the hub may be asked. Values of secrets are never shown."""

import os
import re
from collections.abc import Iterator

from forge import paths
from forge.checks import Finding
from forge.errors import ConfigError

_YES = ("1", "ON", "YES", "TRUE")


def environment() -> Iterator[Finding]:
    yield _home()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    yield Finding("MLFLOW_TRACKING_URI", "ok", re.sub(r"//[^/@]*@", "//…@", uri) if uri else "not set: mlflow.db at the root")
    yield _offline()
    yield _token()


def _home() -> Finding:
    given = os.environ.get("FORGE_HOME")
    try:
        root = paths.root()
    except ConfigError as error:
        return Finding("FORGE_HOME", "problem", str(error), "set FORGE_HOME to a folder, or unset it")
    why = "" if given else ", the checkout" if paths.in_checkout() else ", the current folder"
    said = f"{given or 'not set'}: results go to {root}{why}"
    if given or paths.in_checkout():
        return Finding("FORGE_HOME", "ok", said)
    return Finding("FORGE_HOME", "note", said, "set FORGE_HOME, so that results lie in one place whatever the current folder is")


def _offline() -> Finding:
    value = os.environ.get("HF_HUB_OFFLINE", "")
    if value.upper() in _YES:
        return Finding("HF_HUB_OFFLINE", "ok", f"{value}: models and data of the hub come from its local cache alone")
    return Finding("HF_HUB_OFFLINE", "ok", "not set: what the hub's local cache has not is downloaded")


def _token() -> Finding:
    if os.environ.get("HF_TOKEN"):
        return Finding("HF_TOKEN", "ok", "set")
    from huggingface_hub import get_token

    kept = get_token() is not None  # what `hf auth login` left
    return Finding(
        "HF_TOKEN", "ok", "not set, but `hf auth login` left a token" if kept else "not set: private and gated models stay closed"
    )

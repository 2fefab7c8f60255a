"""Models of the Hugging Face hub as folders on disk: from the hub's local cache without a request, else by one download.

A copy counts as whole where its configuration, a tokenizer and every file of the weights are there; huggingface_hub itself takes a folder
for one as soon as it exists. Looking costs milliseconds.
"""

import json
import re
from pathlib import Path

from forge.errors import ModelError

_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja", "README.md", "LICENSE*", "LICENCE*"]
_OTHER = ("*.bin", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "consolidated*.safetensors", "*.npz")
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")


def cached(id: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if it is whole. Its name is its commit. Raises ModelError for what is no id or revision."""
    found = _found(id, revision)
    return found if found and not _rest(found) else None


def download(id: str, revision: str | None) -> Path:
    """The snapshot, fetched but for what is there. Raises ModelError with one line, also where the network or HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, IncompleteSnapshotError, LocalEntryNotFoundError, RevisionNotFoundError

    _require_names(id, revision)
    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=_FILES))
    except RevisionNotFoundError as error:
        raise ModelError(
            f"model.revision={revision}: {id} has no such branch, tag or commit on the hub; leave it out for the newest, or take a commit"
        ) from error
    except (LocalEntryNotFoundError, IncompleteSnapshotError) as error:
        raise ModelError(_away(id, revision)) from error
    except HfHubHTTPError as error:
        raise ModelError(f"model.id={id}: the hub says no ({_line(error)}); check the id, and HF_TOKEN if it is private") from error
    except HTTPError as error:
        raise ModelError(f"model.id={id}: the download broke off ({_line(error)}); run it again, and it goes on from there") from error
    except OSError as error:
        why = error.strerror or _line(error)
        raise ModelError(f"model.id={id}: can't be downloaded to {cache()} ({why}); make room, or set HF_HOME to another disk") from error
    if missing := lacking(folder):
        raise ModelError(_away(id, revision) if constants.HF_HUB_OFFLINE else f"model.id={id}: {missing}")
    return folder


def cache() -> Path:
    """Where the hub keeps what it fetched, for all its users: HF_HUB_CACHE, else a folder of HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def lacking(folder: Path) -> str:
    """What a model's folder still needs, and what to do; "" where it is whole."""
    if not (folder / "config.json").is_file():
        return "config.json is missing; it needs that, a tokenizer and model*.safetensors"
    index = folder / _INDEX
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{_INDEX} can't be read; fetch the model again"
        if gone := [name for name in named if not (folder / str(name)).is_file()]:
            return f"{len(gone)} of its {len(named)} files of weights are missing, {gone[0]} among them; fetch the model again"
        return ""
    if any(file.is_file() for file in folder.glob("model*.safetensors")):
        return ""
    other = next((file.name for pattern in _OTHER for file in sorted(folder.glob(pattern))), None)
    what = f"its weights are in {other}, and only model*.safetensors can be loaded" if other else "no model*.safetensors is there"
    return f"{what}; take a copy of the model that has them, or save it anew with transformers' save_pretrained"


def _rest(folder: Path) -> str:
    """What a copy of a hub's model needs to be whole."""
    tokenizer = any(file.is_file() for name in _TOKENIZER for file in folder.glob(name))
    return lacking(folder) or ("" if tokenizer else "no tokenizer is there")


def _found(id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    _require_names(id, revision)
    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        return None


def _require_names(id: str, revision: str | None) -> None:
    """Both become parts of paths in the cache."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(id)
    except HFValidationError as error:
        raise ModelError(f"model.id={id}: not a hub id; write OWNER/NAME, or model=local model.path=… for a folder") from error
    if revision is not None and (not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", revision) or ".." in revision):
        raise ModelError(f"model.revision={revision}: not a commit, branch or tag; write one as the hub shows it, or null for the newest")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _away(id: str, revision: str | None) -> str:
    """Why there is no copy, and what to do."""
    from huggingface_hub import constants

    wanted = f"model.id={id}" + (f" model.revision={revision}" if revision else "")
    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
    way_out = "unset HF_HUB_OFFLINE" if offline else "connect"
    here = _snapshots(id)
    if not here:
        return f"{wanted}: {why} and the model is not in the local cache ({cache()}); {way_out}, or use model=local model.path=…"
    found = next((one for one in here.values() if revision in (None, one.name)), None) or here.get(revision or "main")
    if found is None:
        return f"{wanted}: {why} and the local cache has other revisions alone: {', '.join(sorted(here))}; take one of them, or {way_out}"
    return f"{wanted}: {why} and the copy in the local cache is a part only: {_rest(found).partition(';')[0]}; {way_out} to fetch the rest"


def _snapshots(id: str) -> dict[str, Path]:
    """The copies of a model in the local cache by the names of their revisions, else by their commits."""
    folder = cache() / f"models--{id.replace('/', '--')}"
    commits = {path.name: path for path in sorted(folder.glob("snapshots/*")) if path.is_dir()}
    for ref in sorted(file for file in folder.glob("refs/**/*") if file.is_file()):
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
        if commit in commits:
            commits[ref.relative_to(folder / "refs").as_posix()] = commits[commit]
    return commits

"""Existing models: a local folder, the Hugging Face hub, forge's own registry. loader(texts, seed, fetch, *, knobs) -> Loaded.

Offline first: a model of the hub that lies whole in its local cache is taken from there, without a request. One download fetches it; the
next ones are the user's to ask for (`hf download ID`, or another revision).

Each takes `quantize`, which packs a base that is not quantised yet; one that is (config.json says so) stays as it is. The lineage then
says so too, since it is another base.
"""

from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge import paths
from forge.errors import ModelError
from forge.models import Loaded, hubcache
from forge.models.names import classes
from forge.models.quantise import Quantize, quantise
from forge.models.translate import translate
from forge.spec import Fetch, Lineage, Texts


def local(texts: Texts, seed: int, fetch: Fetch, *, path: str, quantize: Quantize | None = None) -> Loaded:
    """A folder in the Hugging Face layout. Its revision is the digest of its configuration, tokenizer and weights."""
    folder = paths.given("model.path", path)
    if not folder.is_dir():
        raise ModelError(f"model.path={path}: there is no such folder; give a model's folder, or model=hub model.id=… to download one")
    if lacking := hubcache.lacking(folder):
        raise ModelError(f"model.path={path}: no whole model lies there: {lacking}")
    revision = _digest([folder / "config.json", *sorted(folder.glob("tokenizer*")), *sorted(folder.glob("model*.safetensors"))])
    return _open(folder, Lineage("local", str(folder.resolve()), revision), quantize)


def hub(texts: Texts, seed: int, fetch: Fetch, *, id: str, revision: str | None = None, quantize: Quantize | None = None) -> Loaded:
    """A model of the Hugging Face hub, or of its local cache. `revision`: a commit, branch or tag. HF_TOKEN opens private ones.

    Without a revision it is the one that was fetched last; the lineage holds its commit.
    """
    folder = hubcache.cached(id, revision) or hubcache.download(id, revision)
    return _open(folder, Lineage("hub", id, folder.name), quantize)  # a snapshot's folder is named by its commit


def registry(texts: Texts, seed: int, fetch: Fetch, *, uri: str, quantize: Quantize | None = None) -> Loaded:
    """A version that forge registered, such as models:/forge-quickstart@champion or models:/forge-quickstart/3."""
    folder, version = fetch(uri)
    return _open(folder, Lineage("registry", uri, version), quantize)


def _open(folder: Path, lineage: Lineage, wanted: Quantize | None) -> Loaded:
    from mlx_lm.utils import load_tokenizer

    try:
        model, config = _read(folder, lazy=wanted is not None)
        tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
        if wanted is not None:
            config = quantise(model, config, wanted)
            lineage = replace(
                lineage, revision=f"{lineage.revision} quantised to {wanted['bits']} bits in groups of {wanted['group_size']}"
            )
        for part in (*model.layers, model):  # one after the other, so that memory holds few full weights at a time
            mx.eval(part.parameters())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:  # whatever a broken folder leads to
        raise ModelError(f"{folder}: mlx-lm can't load it ({type(error).__name__}: {_first_line(error)})") from error
    if not tokenizer.encode("a"):
        raise ModelError(f"{folder}: no tokenizer lies there; it needs tokenizer.json or tokenizer.model")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no end-of-text token; set eos_token in tokenizer_config.json")
    return Loaded(model, tokenizer, config, lineage)


def _read(folder: Path, lazy: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The model that the folder holds, and config.json in mlx-lm's keys beside its own, which mlx-lm and transformers read alike."""
    from mlx_lm.utils import load_config, load_model

    try:
        return load_model(folder, lazy=lazy, model_config=translate(load_config(folder)), get_model_classes=classes)
    except ModelError as error:
        raise ModelError(f"{folder}/{error}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _digest(files: list[Path]) -> str:
    """16 hex digits of the content. One pass over the weights: about a second a GB."""
    whole = sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(file.name.encode() + file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:16]

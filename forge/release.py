"""From the best checkpoint to a registered model that serves: fuse, check that nothing changed, register, move the alias if better."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from forge import paths
from forge.arrays import flat, scalar
from forge.assemble import Parts
from forge.config import Config
from forge.errors import ReleaseError
from forge.models import fuse
from forge.serving.package import save_arguments
from forge.spec import Data
from forge.tracking import registry
from forge.tracking.registry import Candidate, Version
from forge.training import checkpoint
from forge.training.evaluate import evaluate
from forge.training.isolation import forward
from forge.training.objectives import shift

LOSS, VALID_DIGEST, TOKENIZER_DIGEST = "forge.val_loss", "forge.valid_digest", "forge.tokenizer_digest"
_LOSS_TOLERANCE = 1e-3  # nats a token, between the checkpoint's own validation loss and the saved model's


@dataclass(frozen=True)
class Released:
    """`moved`: whether the alias now points at `version`; `reason` says why or why not, in words."""

    version: Version
    moved: bool
    reason: str
    max_logit_difference: float

    def sentence(self, alias: str) -> str:
        return f"{self.version.uri} {f'is now {alias}' if self.moved else 'is registered without alias'}: {self.reason}"


def release(config: Config, parts: Parts, saved: Path, run_id: str) -> Released:
    """Register the checkpoint `saved` of run `run_id`. Changes the model in `parts`.

    Raises ReleaseError when the saved model is not the evaluated one; nothing is registered then.
    """
    checkpoint.verify(saved)
    checkpoint.load_weights(parts.loaded.model, saved)
    evaluated = evaluate(parts.loaded.model, parts.data).metrics["val/loss"]
    reference = _logits(parts.loaded.model, parts.data)
    limit = config.release.max_logit_difference + _rounding(parts.loaded.model) * scalar(mx.abs(reference).max())
    with paths.scratch(paths.cache() / "release" / run_id) as scratch:
        folder = scratch / config.release.name  # serving reports the folder's name as the model's
        fuse.save(fuse.fuse(parts.loaded), folder)
        model, _ = fuse.load(folder)
        difference = scalar(mx.abs(_logits(model, parts.data) - reference).max())
        scores = evaluate(model, parts.data).metrics
        loss = scores["val/loss"]
        if not (difference <= limit and abs(loss - evaluated) <= _LOSS_TOLERANCE):  # nor may either be NaN
            raise ReleaseError(
                f"the saved model is not the evaluated one: logits differ by {difference:.2g} (limit {limit:.2g}), "
                f"validation loss {loss:.4f} against {evaluated:.4f}; nothing was registered. The checkpoint is {saved}"
            )
        tags = {
            LOSS: repr(loss),  # every digit: a twin is not better
            VALID_DIGEST: parts.data.ledger.valid_digest,
            TOKENIZER_DIGEST: hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
            "forge.data_digest": parts.data.ledger.digest,
            "forge.base": str(parts.loaded.lineage),
            "forge.checkpoint": saved.name,
            "forge.identity": config.identity,
        }
        candidate = Candidate(
            run_id=run_id,
            step=checkpoint.step_of(saved),
            arguments=save_arguments(folder),
            tags=tags,
            description=_description(config, parts, loss, saved),
            scores={name: (scores[f"val/loss/{name}"], digest) for name, digest in parts.data.ledger.source_digests.items()},
        )
        version = registry.register(config.tracking.uri, config.release.name, candidate)
    moved, reason = _promote(config, parts.data, version, loss)
    registry.tag(config.tracking.uri, version, {"forge.decision": reason})
    return Released(version, moved, reason, difference)


def _rounding(model: nn.Module) -> float:
    """How far rounding may move a logit, as a share of the largest: two of bf16's eight bits where weights are 16 bits wide, else 0."""
    wide = all(value.dtype in (mx.float32, mx.uint32) for value in flat(model.parameters()).values())
    return 0.0 if wide else 2.0**-6


def _description(config: Config, parts: Parts, loss: float, saved: Path) -> str:
    sources = ", ".join(f"{name} {source.weight:g}" for name, source in config.data.sources.items())
    return f"Validation loss {loss:.4f} nats a token at {saved.name}. Base: {parts.loaded.lineage.uri}. Mix: {sources}."


def _promote(config: Config, data: Data, version: Version, loss: float) -> tuple[bool, str]:
    """Move the alias to `version` if its loss is below that of the version that bears it, on the same tokens. Under a lock."""
    with registry.alias(config.tracking.uri, version.name, config.release.alias) as (bearer, move):
        if bearer is None:
            move(version)
            return True, f"first {config.release.alias} of {version.name}"
        stays = f"version {bearer.number} stays {config.release.alias}"
        theirs = _loss_of(config, data, bearer, version)
        if theirs is None:
            return False, f"{stays}: its tokenizer is another one, so losses a token can't be compared"
        if loss >= theirs:
            return False, f"{stays}: validation loss {loss:.4f} is not below its {theirs:.4f}, on the same tokens"
        move(version)
        return True, f"validation loss {loss:.4f} is below {theirs:.4f} of version {bearer.number}, on the same tokens"


def _loss_of(config: Config, data: Data, bearer: Version, rival: Version) -> float | None:
    """The bearer's loss on the rival's validation tokens: as recorded where they are the same, else measured; None when neither can be."""
    if bearer.tags.get(VALID_DIGEST) == rival.tags[VALID_DIGEST]:
        return float(bearer.tags[LOSS])
    if bearer.tags.get(TOKENIZER_DIGEST) != rival.tags[TOKENIZER_DIGEST]:
        return None
    folder, _ = registry.fetch(config.tracking.uri, bearer.uri)
    model, _ = fuse.load(folder)
    return evaluate(model, data).metrics["val/loss"]


def _logits(model: nn.Module, data: Data) -> mx.array:
    """fp32 logits of the first validation batch of each source, as evaluation computes them."""
    model.eval()
    shifted = [shift(batches[0]) for batches in data.valid.values()]
    joined = mx.concatenate([forward(model, inputs, segments).astype(mx.float32).flatten() for inputs, _, _, segments in shifted])
    mx.eval(joined)
    return joined

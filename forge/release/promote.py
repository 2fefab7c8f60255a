"""Which alias a new version gets: the champion's where it is better on the same tokens, else the challenger's. Decided under a lock."""

from dataclasses import dataclass

from forge.models import fuse
from forge.settings import ReleaseSpec, TrackingSpec
from forge.spec import Data
from forge.tracking import registry
from forge.tracking.registry import Version
from forge.training.evaluate import evaluate

LOSS, VALID_DIGEST, TOKENIZER_DIGEST = "forge.val_loss", "forge.valid_digest", "forge.tokenizer_digest"


@dataclass(frozen=True)
class Decision:
    """`alias`: the one that the version got, if any; `reason` says why, in words."""

    alias: str | None
    reason: str


def decide(spec: ReleaseSpec, tracking: TrackingSpec, data: Data, version: Version) -> Decision:
    """For a version that passed the gate: spec.alias if its loss is below that of the one that bears it, else spec.challenger."""
    with registry.aliases(tracking.uri, version.name) as (bearer, move):
        champion = bearer(spec.alias)
        if champion and champion.number == version.number:  # a release that was cut short had come so far
            return Decision(spec.alias, f"it is {spec.alias} already")
        better, reason = _better(tracking, data, version, champion, spec.alias)
        if better:
            move(spec.alias, version, reason)
            return Decision(spec.alias, reason)
        challenger = bearer(spec.challenger)
        if challenger and int(challenger.number) > int(version.number):
            return Decision(None, f"{reason}; version {challenger.number} is newer and stays {spec.challenger}")
        move(spec.challenger, version, reason)
        return Decision(spec.challenger, reason)


def _better(tracking: TrackingSpec, data: Data, version: Version, bearer: Version | None, alias: str) -> tuple[bool, str]:
    if bearer is None:
        return True, f"first {alias} of {version.name}"
    loss, stays = float(version.tags[LOSS]), f"version {bearer.number} stays {alias}"
    theirs = _loss_of(tracking, data, bearer, version)
    if theirs is None:
        return False, f"{stays}: its tokenizer is another one, so losses a token can't be compared"
    if loss >= theirs:
        return False, f"{stays}: validation loss {loss:.4f} is not below its {theirs:.4f}, on the same tokens"
    return True, f"validation loss {loss:.4f} is below {theirs:.4f} of version {bearer.number}, on the same tokens"


def _loss_of(tracking: TrackingSpec, data: Data, bearer: Version, rival: Version) -> float | None:
    """The bearer's loss on the rival's validation tokens: as recorded where they are the same, else measured; None when neither can be."""
    if bearer.tags.get(VALID_DIGEST) == rival.tags[VALID_DIGEST]:
        return float(bearer.tags[LOSS])
    if bearer.tags.get(TOKENIZER_DIGEST) != rival.tags[TOKENIZER_DIGEST]:
        return None
    folder, _ = registry.fetch(tracking.uri, bearer.uri)
    model, _ = fuse.load(folder)
    return evaluate(model, data).metrics["val/loss"]

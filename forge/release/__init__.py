"""From the best checkpoint to registered models that serve: fuse, quantise where asked, gate, register, and move the aliases.

The fused model is registered under release.name, and each quantised one under a name of its own, so that it is held against its like.
What the gate refuses is registered all the same, without an alias, and with the reason; what is not what was evaluated is not registered.
"""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from forge import paths
from forge.assemble import Parts
from forge.config import Config
from forge.release import card, gate, origin, promote, table
from forge.release.card import Subject
from forge.release.gate import Verdict, judge
from forge.release.history import past
from forge.release.make import Made, Workshop
from forge.release.promote import Decision
from forge.serving.package import save_arguments
from forge.tracking import registry, store
from forge.tracking.attach import attach
from forge.tracking.registry import Candidate, Version
from forge.training import checkpoint

__all__ = ["Released", "release"]

_SAME = ("forge.checkpoint", "forge.quantisation", promote.VALID_DIGEST, "forge.gate")  # of a version that is not made twice


@dataclass(frozen=True)
class Released:
    """`alias`: the one that now points at `version`, if any; `reason` says why or why not, in words. `refused`: by the gate.

    `others`: what was registered beside it.
    """

    version: Version
    alias: str | None
    reason: str
    max_logit_difference: float
    refused: bool
    others: tuple["Released", ...] = ()

    def sentence(self) -> str:
        """A line for each."""
        became = "is refused by the gate and registered without alias" if self.refused else "is registered without alias"
        if self.alias:
            became = f"is now {self.alias}"
        return "\n".join([f"{self.version.uri} {became}: {self.reason}", *(other.sentence() for other in self.others)])


def release(
    config: Config, parts: Parts, saved: Path, run_id: str, *, fused: bool = True, name: str | None = None, anew: bool = False
) -> Released:
    """Register the checkpoint `saved` of run `run_id`: fused, and by each recipe of release.quantise. Changes the model in `parts`.

    fused: False registers the quantised ones alone. name: of the one model that is registered, in place of the usual one. anew: also what
    the run registered before; else a release that was cut short goes on with the versions that it had made.
    Prints what was compared. Raises ReleaseError when the saved model is not the evaluated one; nothing is registered then.
    """
    spec = config.release
    before = past(saved, parts.data.ledger.digest)
    where = origin.find(parts.loaded, partial(registry.fetch, config.tracking.uri))
    names = {recipe: name or f"{spec.name}-{recipe}" for recipe in spec.quantise}
    with paths.scratch(paths.within(paths.cache() / "release", run_id)) as scratch:
        workshop = Workshop(spec, parts, scratch)
        whole = workshop.fused(saved, name or spec.name)
        made = [whole, *(workshop.quantised(whole, recipe, names[recipe]) for recipe in spec.quantise)]
        verdicts = [judge(spec, whole.measured, before.base, each.measured if each.recipe else None) for each in made]
        rows = [list(table.HEADER), *([table.base_row(before.base)] if before.base else []), table.checkpoint_row(whole.evaluated)]
        rows += [table.row(each.recipe or "fused", each.measured, verdict) for each, verdict in zip(made, verdicts, strict=True)]
        _account(rows, list(zip(made, verdicts, strict=True)))
        versions: list[tuple[Version, Verdict]] = []
        for each, verdict in list(zip(made, verdicts, strict=True))[0 if fused else 1 :]:
            subject = Subject(config, parts, before, where, each.folder.name, run_id, saved.name, each.recipe, each.measured, verdict, rows)
            card.write(subject, each.folder)
            candidate = _candidate(config, parts, run_id, saved, each, verdict)
            former = None if anew else _former(config, each.folder.name, candidate)
            versions.append((former or registry.register(config.tracking.uri, each.folder.name, candidate), verdict))
        _attach(config, run_id, rows, versions, scratch)
    found = [_decide(config, parts, version, verdict, whole.measured.against.difference) for version, verdict in versions]
    return replace(found[0], others=tuple(found[1:]))


def _decide(config: Config, parts: Parts, version: Version, verdict: Verdict, difference: float) -> Released:
    refused = Decision(None, verdict.reason)
    decision = promote.decide(config.release, config.tracking, parts.data, version) if verdict.passed else refused
    registry.tag(config.tracking.uri, version, {"forge.decision": decision.reason})
    return Released(version, decision.alias, decision.reason, difference, refused=not verdict.passed)


def _former(config: Config, name: str, candidate: Candidate) -> Version | None:
    """What the run has registered of the same checkpoint, with the same verdict; losses may differ in a digit on a GPU."""
    same = {key: value for key, value in candidate.tags.items() if key in _SAME}
    return registry.registered(config.tracking.uri, name, candidate.run_id, same)


def _candidate(config: Config, parts: Parts, run_id: str, saved: Path, made: Made, verdict: Verdict) -> Candidate:
    measured, account = made.measured, parts.data.ledger
    tags = {
        promote.LOSS: repr(measured.loss),  # every digit: a twin is not better
        promote.VALID_DIGEST: account.valid_digest,
        promote.TOKENIZER_DIGEST: sha256((made.folder / "tokenizer.json").read_bytes()).hexdigest(),
        "forge.data_digest": account.digest,
        "forge.base": str(parts.loaded.lineage),
        "forge.checkpoint": saved.name,
        "forge.identity": config.identity,
        "forge.size_mb": f"{measured.bytes / 1e6:.2f}",
        **gate.tags(verdict),
    }
    if made.recipe:
        against = measured.against
        tags |= {
            "forge.quantisation": made.recipe,
            "forge.bits_per_weight": f"{measured.bits:.3f}",
            "forge.kl": f"{against.kl:.6g}",
            "forge.agreement": f"{against.agreement:.4f}",
        }
    digests = {} if made.recipe else account.source_digests
    return Candidate(
        run_id=run_id,
        step=checkpoint.step_of(saved),
        arguments=save_arguments(made.folder),
        tags=tags,
        description=_description(config, parts, made, saved),
        scores={name: (measured.scores[f"val/loss/{name}"], digest) for name, digest in digests.items()},
    )


def _description(config: Config, parts: Parts, made: Made, saved: Path) -> str:
    sources = ", ".join(f"{name} {source.weight:g}" for name, source in config.data.sources.items())
    packed = f" Quantised: {made.recipe}." if made.recipe else ""
    loss = made.measured.loss
    return f"Validation loss {loss:.4f} nats a token at {saved.name}.{packed} Base: {parts.loaded.lineage.uri}. Mix: {sources}."


def _account(rows: table.Rows, judged: list[tuple[Made, Verdict]]) -> None:
    """What was compared, and what the gate found wrong or could not ask."""
    table.show(rows)
    for made, verdict in judged:
        for check in verdict.checks:
            if check.passed is False:
                print(f"{made.recipe or 'fused'}: refused, {check.words}")
    for check in judged[0][1].checks:
        if check.passed is None:
            print(f"{check.name}: not judged, {check.words}")


def _attach(config: Config, run_id: str, rows: table.Rows, versions: list[tuple[Version, Verdict]], scratch: Path) -> None:
    """The table, and each version's checks, to the run."""
    checks = {version.uri: [vars(check) for check in verdict.checks] for version, verdict in versions}
    first = versions[0][0]
    files = {"table.json": table.as_json(rows), "gate.json": table.dump(checks)}
    for file, text in files.items():
        (scratch / file).write_text(text, encoding="utf-8")
    attach(store.connect(config.tracking.uri), run_id, [scratch / file for file in files], f"release/{first.name}-{first.number}", {})

"""The gate: whether what is to be registered is good enough for an alias, and if not, why, with the numbers.

What it looks at is read back from disk. Costs an evaluation, a comparison of logits and some generation for each model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from forge.evaluation.answers import Answer, answers, continuations
from forge.models import Loaded
from forge.release.divergence import Divergence
from forge.settings import ReleaseSpec
from forge.spec import Data, Metrics

_LONG = 16  # tokens: fewer are no proof of going on for ever


@dataclass(frozen=True)
class Written:
    """What a model wrote. `degenerate`: how many of all `texts` are empty or one token for ever, `worst` one of them; `ended`: how many of
    the `asked` answers, those whose reference is short enough, ended by themselves."""

    texts: int
    degenerate: int
    worst: str
    asked: int
    ended: int


@dataclass(frozen=True)
class Measured:
    """A model that was read back from disk. `scores` are val/… metrics; `bytes` its weights' on disk; `against`: the fused model against
    the checkpoint, a quantised one against the fused one."""

    scores: Metrics
    against: Divergence
    bytes: int
    bits: float
    written: Written

    @property
    def loss(self) -> float:
        return self.scores["val/loss"]


@dataclass(frozen=True)
class Check:
    """One question of the gate. `passed` None: it can't be asked, and `words` say why; else they hold the number and the limit."""

    name: str
    passed: bool | None
    words: str


@dataclass(frozen=True)
class Verdict:
    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def reason(self) -> str:
        """What is wrong, with numbers and limits; empty where all is well."""
        return "; ".join(check.words for check in self.checks if check.passed is False)


def judge(spec: ReleaseSpec, fused: Measured, base: Metrics | None, quantised: Measured | None = None) -> Verdict:
    """Of the quantised model where there is one, else of the fused one. `base`: val/… of the base on the same tokens, where it is known."""
    model = quantised or fused
    checks = [_finite(model), _regression(spec, fused, base)]
    if quantised:
        checks += _like_the_fused(spec, fused, quantised)
    checks += [_smoke(spec, model.written), _ends(spec, model.written), *_size(spec, fused, quantised)]
    return Verdict(tuple(checks))


def _finite(model: Measured) -> Check:
    fine = model.against.finite and math.isfinite(model.loss)
    return Check("finite", fine, f"logits at {model.against.places} held-out tokens are {'' if fine else 'not all '}finite")


def _regression(spec: ReleaseSpec, fused: Measured, base: Metrics | None) -> Check:
    if base is None:
        return Check("no regression", None, "the base's loss on these validation tokens is not known")
    rise = fused.loss - base["val/loss"]
    words = (
        f"the tuned model's validation loss {fused.loss:.4f} is {abs(rise):.4f} {'above' if rise > 0 else 'below'} the base's "
        f"{base['val/loss']:.4f} (release.max_regression={spec.max_regression:g})"
    )
    return Check("no regression", rise <= spec.max_regression, words)


def _like_the_fused(spec: ReleaseSpec, fused: Measured, quantised: Measured) -> list[Check]:
    against, rise = quantised.against, quantised.loss - fused.loss
    return [
        Check("KL", against.kl <= spec.max_kl, f"KL from the fused model {against.kl:.4f} nats a token (release.max_kl={spec.max_kl:g})"),
        Check(
            "agreement",
            against.agreement >= spec.min_agreement,
            f"the likeliest token is the fused model's at {against.agreement:.1%} of places (release.min_agreement={spec.min_agreement:g})",
        ),
        Check(
            "loss",
            rise <= spec.max_loss_rise,
            f"validation loss {quantised.loss:.4f} is {rise:+.4f} from the fused model's (release.max_loss_rise={spec.max_loss_rise:g})",
        ),
    ]


def _smoke(spec: ReleaseSpec, written: Written) -> Check:
    if not written.texts:
        return Check("generation", None, "there is no held-out text to go on from")
    share = written.degenerate / written.texts
    example = f", such as {written.worst!r}" if written.degenerate else ""
    words = (
        f"{written.degenerate} of {written.texts} texts that it wrote are empty or one token for ever{example} "
        f"(release.max_degenerate={spec.max_degenerate:g})"
    )
    return Check("generation", share <= spec.max_degenerate, words)


def _ends(spec: ReleaseSpec, written: Written) -> Check:
    if not written.asked:
        return Check("end of turn", None, "there are no held-out conversations with answers short enough to tell")
    share = written.ended / written.asked
    words = (
        f"{written.ended} of {written.asked} answers ended by themselves within {spec.answer_tokens} tokens "
        f"(release.min_ended={spec.min_ended:g})"
    )
    return Check("end of turn", share >= spec.min_ended, words)


def _size(spec: ReleaseSpec, fused: Measured, quantised: Measured | None) -> list[Check]:
    model, checks = quantised or fused, []
    if quantised:
        words = f"it takes {quantised.bytes / 1e6:.1f} MB, and the fused model {fused.bytes / 1e6:.1f} MB"
        checks.append(Check("smaller", quantised.bytes < fused.bytes, words))
    if spec.max_size_gb is not None:
        words = f"it takes {model.bytes / 1e9:.3f} GB on disk (release.max_size_gb={spec.max_size_gb:g})"
        checks.append(Check("size", model.bytes <= spec.max_size_gb * 1e9, words))
    return checks


# ---- generation -------------------------------------------------------------------------------------------------------


def write(loaded: Loaded, data: Data, spec: ReleaseSpec) -> Written:
    """Answers to held-out questions and what comes after beginnings of plain text, the likeliest token each time.

    Not of sources of weight 0: a base that was trained on text alone need not end its answers.
    """
    data = replace(data, valid_full={name: some for name, some in data.valid_full.items() if name not in data.unweighted})
    asked = answers(loaded, data, spec.answers, spec.answer_tokens)
    texts = [*asked, *continuations(loaded, data, spec.answers, spec.answer_tokens)]
    bad = [one for one in texts if _degenerate(one)]
    worst = bad[0].text[:40] if bad else ""
    short = [one for one in asked if _length(loaded, one.reference) <= spec.answer_tokens // 2]
    return Written(len(texts), len(bad), worst, len(short), sum(one.ended for one in short))


def _degenerate(one: Answer) -> bool:
    """Nothing to read, or a second half that is one token over and over, without an end."""
    half = one.tokens[len(one.tokens) // 2 :]
    return not one.text.strip() or (not one.ended and len(one.tokens) >= _LONG and len(set(half)) == 1)


def _length(loaded: Loaded, text: str) -> int:
    return len(loaded.tokenizer.encode(text, add_special_tokens=False))


def tags(verdict: Verdict) -> Mapping[str, str]:
    """What a version says of the gate."""
    return {"forge.gate": "passed"} if verdict.passed else {"forge.gate": "refused", "forge.gate_reason": verdict.reason}

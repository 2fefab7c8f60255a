"""How many of the built-in instructions a model follows, so that base and tuned can be held against each other.

Asked as one user turn each, greedily, in the tokenizer's chat template; a model without one gets the instruction as bare text, which few
bases follow. Costs 40 answers, some 32 at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forge.evaluation.answers import answered
from forge.evaluation.instructions import INSTRUCTIONS, followed
from forge.models import Loaded


@dataclass(frozen=True)
class Kept:
    """One instruction, what came of it, and whether that follows it."""

    kind: str
    prompt: str
    answer: str
    followed: bool


def retention(loaded: Loaded, max_tokens: int) -> list[Kept]:
    """In the order of INSTRUCTIONS."""
    prompts = [_encoded(loaded.tokenizer, each.prompt) for each in INSTRUCTIONS]
    texts = [text for text, _, _ in answered(loaded, prompts, max_tokens)]
    return [Kept(each.kind, each.prompt, text, followed(each, text)) for each, text in zip(INSTRUCTIONS, texts, strict=True)]


def metrics(prefix: str, kept: Sequence[Kept]) -> dict[str, float]:
    """<prefix>/retention and <prefix>/retention/<kind>: the share that was followed."""
    kinds = {"": kept, **{f"/{kind}": [each for each in kept if each.kind == kind] for kind in dict.fromkeys(each.kind for each in kept)}}
    return {f"{prefix}/retention{kind}": sum(each.followed for each in some) / len(some) for kind, some in kinds.items() if some}


def _encoded(tokenizer: Any, instruction: str) -> list[int]:
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode(f"{instruction}\n"))
    return list(tokenizer.apply_chat_template([{"role": "user", "content": instruction}], add_generation_prompt=True))

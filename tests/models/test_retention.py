"""The retention suite as a model is asked it."""

from collections.abc import Callable
from typing import Any

import pytest

from forge.evaluation import retention
from forge.evaluation.instructions import INSTRUCTIONS
from forge.evaluation.retention import Kept, metrics
from forge.models import Loaded


def test_shares_by_kind_and_of_all() -> None:
    """2 of 3 followed: 1 of 2, and 1 of 1."""
    kept = [Kept("case", "a", "", True), Kept("case", "b", "", False), Kept("list", "c", "", True)]
    assert metrics("base", kept) == pytest.approx({"base/retention": 2 / 3, "base/retention/case": 0.5, "base/retention/list": 1.0})
    assert metrics("base", []) == {}


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"]
)
def test_each_is_asked_once_in_the_chat_template_where_there_is_one(
    make_tiny_model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    """An answer of capital letters follows the two instructions that ask for them, and no other kind's but by chance."""
    loaded = make_tiny_model()
    loaded.tokenizer.chat_template, loaded.tokenizer.has_chat_template = template, template is not None
    asked: list[str] = []

    def answered(loaded: Loaded, prompts: Any, max_tokens: int) -> list[tuple[str, tuple[int, ...], bool]]:
        asked.extend(loaded.tokenizer.decode(list(prompt)) for prompt in prompts)
        return [("SNOW IS WHITE", (), True)] * len(prompts)

    monkeypatch.setattr(retention, "answered", answered)
    found = retention.retention(loaded, 9)
    bare = loaded.tokenizer.bos_token
    assert asked == [f"<user>{each.prompt}!" if template else f"{bare}{each.prompt}\n" for each in INSTRUCTIONS]
    assert [each.prompt for each in found if each.kind == "case" and each.followed] == [
        each.prompt for each in INSTRUCTIONS if each.kind == "case" and "capital letters" in each.prompt
    ]
    monkeypatch.undo()
    assert len(retention.retention(loaded, 2)) == len(INSTRUCTIONS)

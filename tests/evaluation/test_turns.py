"""The last user turn, read out of what templates of many families render."""

from pathlib import Path
from typing import Any

import pytest

from forge.chat_template import SIMPLE
from forge.evaluation.turns import Turns
from tests.serving import families

SPOKEN = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "The\n\nweather? "}]
FILES = sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))


def asked(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return Turns.of(tokenizer).last(prompt)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("turns", [1, 3])
def test_the_last_question_is_read_as_it_was_asked(file: Path, turns: int) -> None:
    assert asked(families.tokenizer("started", file.read_text(encoding="utf-8")), SPOKEN[-turns:]) == "The\n\nweather?"


def test_system_text_is_no_part_of_it_where_the_template_has_that_role() -> None:
    assert asked(families.tokenizer("base", SIMPLE), [{"role": "system", "content": "Be brief."}, *SPOKEN]) == "The\n\nweather?"


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "none"])
def test_nothing_is_said_where_the_template_does_not_tell(template: str | None) -> None:
    turns = Turns.of(families.tokenizer("base", template))
    assert turns.last("<|user|>\nThe weather?") == ""


def test_plain_text_holds_no_question() -> None:
    assert Turns.of(families.tokenizer("base", SIMPLE)).last("Once upon a time") == ""

"""Instruction tuning of a base: what it starts from, the template that it gets, and that it learns to end its answers. TRN-3."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.assemble import Parts, assemble, plan, store_of, update_of
from forge.config import Config
from forge.jobs import preflight
from forge.models import Loaded, fuse
from forge.spec import Data, Metrics
from forge.training.engine import fit

COLOURS = ["red", "blue", "pink", "teal", "gray", "gold", "lime", "rose"]
QUESTIONS = {f"What is {name}?": f"{name} is {colour}." for name, colour in zip("ABCDEFGH", COLOURS, strict=True)}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def base(make_tiny_model: Callable[..., Loaded], tmp_path: Path) -> Path:
    """A folder with a model whose tokenizer has no chat template."""
    loaded = make_tiny_model()
    fuse.save(loaded, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    rows = ({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS.items())
    (tmp_path / "dialogues").mkdir()
    (tmp_path / "dialogues" / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "dialogues"


def configured(base: Path, source: Path, *overrides: str) -> Config:
    asked = preflight(
        [f"model={base}", "data=folder", f"data.path={source}", "data.sequence_length=64", "data.valid_fraction=0.2", *overrides]
    )
    assert asked
    return asked.configs[0]


def built(base: Path, source: Path, *overrides: str) -> tuple[Config, Parts]:
    config = configured(base, source, *overrides)
    return config, assemble(config, lambda uri: pytest.fail(uri))


def trained(config: Config, parts: Parts) -> list[tuple[int, Metrics]]:
    emitted: list[tuple[int, Metrics]] = []
    update = update_of(config, parts.loaded.model)
    steps, store = plan(config, parts.data, update.peak), store_of(config, parts, "r" * 32)
    fit(
        parts.loaded.model,
        parts.data,
        config.objective,
        update,
        steps,
        {},
        store,
        lambda metrics, step: emitted.append((step, dict(metrics))),
    )
    return emitted


def measured(folder: Path, data: Data) -> float:
    """The loss (nats a target) of the model in the folder on the validation documents, one at a time, through mlx-lm's own call."""
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    total, count = 0.0, 0
    for batches in data.valid.values():
        for batch in batches:
            for tokens_T, mask_T, segments_T in zip(batch.tokens_BT, batch.mask_BT, batch.segments_BT, strict=True):
                for segment in range(1, int(segments_T.max()) + 1):
                    own = segments_T == segment
                    ids, targets = tokens_T[own], mask_T[own][1:]
                    logits = np.asarray(model(mx.array(ids[None, :-1]))[0], dtype=np.float64)
                    top = logits.max(-1)
                    losses = top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(len(targets)), ids[1:]]
                    total, count = total + float(losses[targets].sum()), count + int(targets.sum())
    return total / count


def test_the_first_validation_loss_is_that_of_the_base(base: Path, dialogues: Path) -> None:
    config, parts = built(base, dialogues, "trainer.budget=1 steps", "adapter=lora")
    first = trained(config, parts)[0]
    assert first[0] == 0 and first[1]["val/loss"] == pytest.approx(measured(base, parts.data), abs=1e-6)


def test_a_base_without_a_template_gets_one_that_is_said_saved_and_read_back(
    base: Path, dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, parts = built(base, dialogues)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "template" in line)
    assert line == "forge: this tokenizer has no chat template, so it gets 'simple', which ends turns with <|endoftext|>"
    assert parts.loaded.tokenizer.has_chat_template
    fuse.save(fuse.fuse(parts.loaded), tmp_path / "tuned")
    _, tokenizer = fuse.load(tmp_path / "tuned")
    assert tokenizer.has_chat_template
    start = tokenizer.eos_token_id  # it also starts each text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is A?"}], add_generation_prompt=True)
    row = next(ids for ids, _ in rows(parts.data) if parts.loaded.tokenizer.decode(ids.tolist()).startswith("<|endoftext|><|user|>\n"))
    assert prompt[0] == start == row[0]  # one token, and not the letters that spell it


def test_the_end_of_turn_is_a_target_and_the_question_is_none(base: Path, dialogues: Path) -> None:
    _, parts = built(base, dialogues)
    for ids, mask in rows(parts.data):
        learnt = parts.loaded.tokenizer.decode(ids[mask].tolist())
        assert learnt.endswith("<|endoftext|>") and learnt.removesuffix("<|endoftext|>") in QUESTIONS.values()


def rows(data: Data) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and targets of the conversations in the first batch of training rows."""
    batch = data.train.next()
    return [
        (tokens_T[segments_T == n], mask_T[segments_T == n])
        for tokens_T, mask_T, segments_T in zip(batch.tokens_BT, batch.mask_BT, batch.segments_BT, strict=True)
        for n in range(1, int(segments_T.max()) + 1)
    ]


def test_what_was_learnt_by_heart_is_answered_and_ended(base: Path, dialogues: Path, tmp_path: Path) -> None:
    """Greedy, from the saved folder, with the prompt that its own tokenizer makes."""
    settings = ["trainer.budget=150 steps", "trainer.micro_batch=8", "optimizer.lr=0.01", "schedule=constant", "optimizer.weight_decay=0"]
    config, parts = built(base, dialogues, *settings, "trainer.eval_every=150 steps", "trainer.save_every=150 steps")
    known = {parts.loaded.tokenizer.decode(ids[mask].tolist()).removesuffix("<|endoftext|>") for ids, mask in rows(parts.data)}
    trained(config, parts)
    fuse.save(fuse.fuse(parts.loaded), tmp_path / "tuned")
    model, tokenizer = fuse.load(tmp_path / "tuned")
    for question, answer in QUESTIONS.items():
        if answer in known:
            assert greedy(model, tokenizer, question, 40) == (answer, True)
    assert len(known) >= 5


def greedy(model: nn.Module, tokenizer: Any, question: str, most: int) -> tuple[str, bool]:
    ids = list(tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True))
    said: list[int] = []
    for _ in range(most):
        token = int(mx.argmax(model(mx.array([ids + said]))[0, -1]).item())
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(said), True
        said.append(token)
    return tokenizer.decode(said), False


# ---- what does not make a base an instructed model ------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["null", "simple"])
def test_documents_alone_leave_the_tokenizer_without_a_template(base: Path, tmp_path: Path, template: str) -> None:
    (tmp_path / "documents").mkdir()
    for number in range(20):
        (tmp_path / "documents" / f"{number}.txt").write_text(f"text number {number}")
    _, parts = built(base, tmp_path / "documents", f"data.template={template}")
    assert parts.loaded.tokenizer.chat_template is None and not parts.loaded.tokenizer.has_chat_template
    assert parts.data.ledger.template_digest == ""


def test_conversations_that_are_only_measured_leave_it_so_too(base: Path, dialogues: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    for number in range(20):
        (tmp_path / "documents" / f"{number}.txt").write_text(f"text number {number}")
    measured = ["+data/source@data.sources.talk.source=folder", f"data.sources.talk.source.path={dialogues}", "+data.sources.talk.weight=0"]
    _, parts = built(base, tmp_path / "documents", *measured)
    assert parts.data.valid["talk"] and not parts.loaded.tokenizer.has_chat_template


@pytest.mark.parametrize(("asked", "kept"), [("null", "own {{ messages }}"), ("chatml", "<|im_start|>")])
def test_an_own_template_stays_unless_another_is_asked_for(
    make_tiny_model: Callable[..., Loaded], dialogues: Path, tmp_path: Path, asked: str, kept: str
) -> None:
    loaded = make_tiny_model()
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{# own {{ messages }} #}"
    fuse.save(loaded, tmp_path / "own")
    _, parts = built(tmp_path / "own", dialogues, f"data.template={asked}")
    assert kept in parts.loaded.tokenizer.chat_template

"""Each check of the self-test passes as things are, and turns red where what it looks at is broken."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forge.arrays import flat
from forge.checks import giving, learning, selftest, toy
from forge.checks.toy import Toy
from forge.training.update import Update

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def test(made: Toy, tmp_path: Path) -> Iterator[Toy]:
    """With a folder of the test's own for what it trains."""
    yield replace(made, folder=tmp_path)


# What is broken, by the check that has to find it. Each patches what the check goes through, not the check.


def starts_elsewhere(patch: Patch) -> None:
    real = toy.adapters.lora

    def lora(model: Any, **knobs: Any) -> None:
        real(model, **knobs)
        b = {name: value + 0.01 for name, value in flat(model.trainable_parameters()).items() if name.endswith("lora_b")}
        model.load_weights(list(b.items()), strict=False)

    patch.setattr(toy.adapters, "lora", lora)


def loses_the_end(patch: Patch) -> None:
    real = toy.Encoder.encode

    def encode(self: Any, rows: Any) -> Any:
        found = real(self, rows)
        for each in found:
            each.targets[each.ids == self.eos_token_id] = False
        return found

    patch.setattr(toy.Encoder, "encode", encode)


def learns_the_question(patch: Patch) -> None:
    real = toy.Encoder.encode

    def encode(self: Any, rows: Any) -> Any:
        found = real(self, rows)
        for each in found:
            each.targets[3] = True
        return found

    patch.setattr(toy.Encoder, "encode", encode)


def sees_the_neighbour(patch: Patch) -> None:
    patch.setattr(learning, "forward", lambda model, tokens, segments: model(tokens))


def learns_nothing(patch: Patch) -> None:
    patch.setattr(Update, "apply", lambda *_: None)


def forgets_the_optimizer(patch: Patch) -> None:
    patch.setattr(Update, "restore", lambda *_: None)


def repeats_the_batch(patch: Patch) -> None:
    """A resume that starts the data over."""
    real = toy.Store.resume

    def resume(self: Any, checkpoint: Any = None) -> Any:
        if (found := real(self, checkpoint)) is not None:
            found[0].cursor = 0
        return found

    patch.setattr(toy.Store, "resume", resume)


def trains_the_base(patch: Patch) -> None:
    """Scales of packed layers beside the adapter."""
    real = toy.adapters.lora

    def lora(model: Any, **knobs: Any) -> None:
        real(model, **knobs)
        scales = next(name for name in flat(model.parameters()) if name.endswith("scales"))
        patch.setattr(Update, "apply", _moves(scales))

    patch.setattr(toy.adapters, "lora", lora)


def _moves(name: str) -> Callable[..., None]:
    real = Update.apply

    def apply(self: Any, model: Any, gradients: Any, lr: float) -> None:
        real(self, model, gradients, lr)
        model.load_weights([(name, flat(model.parameters())[name] * 1.5)], strict=False)

    return apply


def drops_the_adapter(patch: Patch) -> None:
    real = giving.fuse.fuse

    def fuse(loaded: Any, *rest: Any, **knobs: Any) -> Any:
        b = [(name, mx.zeros_like(v)) for name, v in flat(loaded.model.parameters()).items() if name.endswith("lora_b")]
        loaded.model.load_weights(b, strict=False)
        return real(loaded, *rest, **knobs)

    patch.setattr(giving.fuse, "fuse", fuse)


def writes_half_precision(patch: Patch) -> None:
    real = giving.fuse.save

    def save(loaded: Any, folder: Path, *rest: Any, **knobs: Any) -> None:
        loaded.model.set_dtype(mx.bfloat16)
        real(loaded, folder, *rest, **knobs)

    patch.setattr(giving.fuse, "save", save)


def serves_another_text(patch: Patch) -> None:
    ticket = SimpleNamespace(result=lambda: SimpleNamespace(text="The lamp is out."))
    engine = SimpleNamespace(submit=lambda *_, **__: ticket, close=lambda: None)
    patch.setattr("forge.serving.engine.GenerationThread", lambda folder: engine)


def keeps_memory(patch: Patch) -> None:
    real, kept = toy.fit, []

    def fit(*given: Any, **named: Any) -> Any:
        kept.append(mx.zeros((64, 1024, 1024)) + 1)
        mx.eval(kept)
        return real(*given, **named)

    patch.setattr(toy, "fit", fit)


def multiplies_slowly(patch: Patch) -> None:
    """A product of 1024 numbers a side is 2.1e9 operations: in 0.15 s, 14 GFLOP/s."""
    real = mx.eval

    def slow(*arrays: Any) -> None:
        real(*arrays)
        giving.time.sleep(0.15)

    patch.setattr(giving.mx, "eval", slow)


FAULTS: dict[str, tuple[Callable[[Toy], tuple[bool, str]], list[Callable[[Patch], None]]]] = {
    "adapter's start": (learning.adapter_starts_as_the_base, [starts_elsewhere]),
    "masks": (learning.masks_hold_the_end_of_turn, [loses_the_end, learns_the_question]),
    "packed rows": (learning.packed_equals_unpacked, [sees_the_neighbour]),
    "overfit one batch": (learning.overfits, [learns_nothing]),
    "resume": (learning.resumes_as_if_never_stopped, [forgets_the_optimizer, repeats_the_batch]),
    "quantised base": (learning.quantised_base_is_untouched, [trains_the_base, learns_nothing]),
    "fused model": (giving.fused_equals_adapter, [drops_the_adapter, writes_half_precision]),
    "served model": (giving.serves_what_the_model_says, [serves_another_text]),
    "memory": (giving.memory_is_given_back, [keeps_memory]),
    "matrix product": (giving.products_are_fast, [multiplies_slowly]),
}


def test_every_check_has_its_fault() -> None:
    assert {each.name: each.check for each in selftest.tests()} == {name: check for name, (check, _) in FAULTS.items()}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, (_, faults) in FAULTS.items() for fault in faults])
def test_a_planted_fault_turns_its_line_red(test: Toy, monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Patch], None]) -> None:
    fault(monkeypatch)
    well, said = FAULTS[name][0](test)
    assert not well and said


def test_a_check_that_raises_is_a_problem_that_says_what_to_do() -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("[metal] no\nkernel")

    found = selftest._run("fused model", broken, "don't release")
    assert (found.state, found.said, found.way_out) == ("problem", "RuntimeError: [metal] no kernel", "don't release")
    assert found.seconds is not None


def test_without_a_folder_to_write_to_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    (found,) = selftest.run()
    assert (found.state, found.way_out) == ("problem", "make room there, or set TMPDIR to another folder")


def test_the_model_learns_what_colour_things_are(test: Toy) -> None:
    """64 answers; the toy is real data by forge's own path: its targets decode to the answers."""
    batch = test.batch()
    learnt = np.asarray(batch.tokens_BT)[np.asarray(batch.mask_BT)]
    assert "The " in test.encoder.decode(learnt) and "Say " not in test.encoder.decode(learnt)


@pytest.mark.slow
def test_all_of_it_passes_and_leaves_the_user_s_root_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    found = {each.name: each for each in selftest.run()}
    assert {name: each.said for name, each in found.items() if each.state != "ok" and name != "matrix product"} == {}
    assert set(found) == {"preparation", *FAULTS}
    assert list((tmp_path / "home").iterdir()) == list((tmp_path / "tmp").iterdir()) == []
    assert os.environ["FORGE_HOME"] == str(tmp_path / "home")


def test_the_root_is_the_user_s_again_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FORGE_HOME", raising=False)
    with selftest._root(tmp_path):
        assert os.environ["FORGE_HOME"] == str(tmp_path)
    assert "FORGE_HOME" not in os.environ

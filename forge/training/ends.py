"""A model's two ends: the input embedding, and the output projection with the hidden states that go into it.

Both are found by running the model once on two tokens, without computing anything: the embedding is the module that is given the tokens,
the projection the one whose answer the model hands out as it is. Where something stands behind the projection (soft caps and scales of
the logits: Gemma 2, Cohere, Granite) there is none to be found, and callers work on the logits.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge.errors import ModelError
from forge.training import host
from forge.training.isolation import exchanged, forward

Noise = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Head:
    """hidden states -> logits: the module, or its transpose where it is the embedding (`tied`)."""

    module: nn.Module
    tied: bool

    def __call__(self, hidden: mx.array) -> mx.array:
        project: Any = self.module.as_linear if self.tied else self.module
        logits: mx.array = project(hidden)
        return logits

    def applied(self, weights: Any, hidden: mx.array) -> mx.array:
        """The logits under other trainable weights, such as the ones that a gradient is taken of."""
        own = self.module.trainable_parameters()
        self.module.update(weights)
        try:
            return self(hidden)
        finally:
            self.module.update(own)


LOGITS = Head(nn.Identity(), tied=False)  # where the hidden states are the logits already


@dataclass(frozen=True)
class _Ends:
    """Where the ends are, as dotted names; they hold for the adapted model too. None where there is none to be found."""

    embedding: str | None
    head: str | None
    tied: bool = False


def hidden_states(model: nn.Module, tokens_BT: mx.array, segments_BT: mx.array | None, noise: Noise | None = None) -> tuple[mx.array, Head]:
    """hidden_BTD and the head that makes logits of them. `noise` is added to the input embeddings, given those.

    Raises ModelError where there is noise to be added and no input embedding to be found.
    """
    ends = _ends(model)
    if noise and ends.embedding is None:
        raise ModelError(
            f"{type(model).__module__}: no input embedding is found in it, so it can take no noise: set objective.neftune_alpha to 0"
        )
    stands: dict[str, _Stand] = {}
    for name in {ends.embedding if noise else None, ends.head} - {None}:
        assert name is not None
        stands[name] = _Stand(_at(model, name), noise if name == ends.embedding else None, name == ends.head, ends.tied)
    with _standing(model, stands):
        out = forward(model, tokens_BT, segments_BT)
    if ends.head is None:
        return out, LOGITS
    stand = stands[ends.head]
    if out is not stand.hidden:  # an adapter or a mode has put something behind the projection
        _ENDS[id(model)] = _Ends(ends.embedding, None)
        return hidden_states(model, tokens_BT, segments_BT, noise)
    return out, Head(stand.module, ends.tied)


class _Stand:
    """Stands where an end does: adds noise to embeddings, hands hidden states out in place of logits. In all else it is that end."""

    def __init__(self, module: Any, noise: Noise | None, is_head: bool, tied: bool):
        self.module, self._noise, self._is_head, self._tied = module, noise, is_head, tied
        self.hidden: mx.array | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, x: mx.array, *rest: Any, **named: Any) -> mx.array:
        if self._is_head and not self._tied:
            self.hidden = x
            return x
        out: mx.array = self.module(x, *rest, **named)
        return out if self._noise is None else out + self._noise(out)

    def as_linear(self, x: mx.array) -> mx.array:
        if self._is_head and self._tied:
            self.hidden = x
            return x
        logits: mx.array = self.module.as_linear(x)
        return logits


class _Probe:
    """Stands where a module does and remembers what it was given and what it answered."""

    def __init__(self, module: Any):
        self.module = module
        self.calls: list[tuple[Any, Any, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        out = self.module(*given, **named)
        self.calls.append((given[0] if given else None, out, False))
        return out

    def as_linear(self, x: mx.array) -> mx.array:
        out: mx.array = self.module.as_linear(x)
        self.calls.append((x, out, True))
        return out


_ENDS: dict[int, _Ends] = {}  # by id: modules are dicts, which have no hash


def _ends(model: nn.Module) -> _Ends:
    if id(model) not in _ENDS:
        _ENDS[id(model)] = _found(model)
        weakref.finalize(model, _ENDS.pop, id(model), None)
    return _ENDS[id(model)]


def _found(model: nn.Module) -> _Ends:
    tokens = mx.array([[0, 1]])
    names = [name for name, _ in model.named_modules() if name and not any(part.isdigit() for part in name.split("."))]
    probes = {name: _Probe(_at(model, name)) for name in names}
    state: Any = mx.random.state
    high, low = state[0].tolist()
    run: Any = model
    with _standing(model, probes), host.noted():  # what is noted is never settled
        out = run(tokens)
    mx.random.seed((high << 32) + low)  # dropout of a run that has asked is that of a run that has not
    calls = [(name, *call) for name, probe in probes.items() for call in probe.calls]
    embeddings = [name for name, given, _, tied in calls if given is tokens and not tied and hasattr(_at(model, name), "as_linear")]
    heads = [(name, tied) for name, _, answer, tied in calls if answer is out]
    # An adapter's own embedding lies inside of it; the projection of a model inside a model is the innermost one that gives the answer.
    embedding = min(embeddings, key=lambda name: name.count("."), default=None)
    head, tied = max(heads, key=lambda end: end[0].count("."), default=(None, False))
    return _Ends(embedding, head, tied)


def _at(model: nn.Module, name: str) -> Any:
    module: Any = model
    for part in name.split("."):
        module = module[part]
    return module


@contextmanager
def _standing(model: nn.Module, stands: Any) -> Iterator[None]:
    """Within, each of them stands at its name."""
    with ExitStack() as stack:
        for name, stand in sorted(stands.items(), key=lambda item: -item[0].count(".")):
            owner, _, key = name.rpartition(".")
            stack.enter_context(exchanged(_at(model, owner) if owner else model, key, stand))
        yield

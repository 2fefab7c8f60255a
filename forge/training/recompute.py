"""Gradient checkpointing: of each block only the input is kept, and what lies inside is computed again in the backward pass.

Activations then cost one block's and every block's input instead of all; in time, the blocks' forward pass is done twice, a third more
arithmetic (Chen et al. 2016, arXiv 1604.06174, with the blocks as segments). Gradients are those of the plain pass, to the bit on a CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from forge.arrays import flat

# mx.random's functions, each of which takes one key off the global state unless it is given one.
_SAMPLERS: tuple[str, ...] = ("bernoulli", "categorical", "gumbel", "laplace", "multivariate_normal", "normal")
_SAMPLERS += ("permutation", "randint", "truncated_normal", "uniform")


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Within, every class of block that `model` has recomputes its inside. A backward pass may come later than the exit.

    It exchanges functions of classes and modules, so that only one thread of a process may take gradients at a time.
    """
    calls: dict[type, tuple[Callable[..., Any], bool]] = {
        kind: (kind.__call__, "__call__" in vars(kind)) for kind in {type(block) for block in model.layers}
    }
    for kind, (call, _) in calls.items():
        kind.__call__ = _recomputing(call)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, (call, own) in calls.items():
            if own:
                kind.__call__ = call  # type: ignore[method-assign]
            else:
                del kind.__call__


def _recomputing(call: Callable[..., Any]) -> Callable[..., Any]:
    def recompute(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: Any = mx.random.state
        then: AbstractContextManager[None] = nullcontext()

        def inside(weights: Any, *args: Any, **kwargs: Any) -> Any:
            present = block.trainable_parameters()
            block.update(weights)
            try:
                with then:
                    return call(block, *args, **kwargs)
            finally:
                block.update(present)  # or the model would hold on to the graph of the backward pass

        attention, key = mx.fast.scaled_dot_product_attention, state[0]
        weights, first = _gradients_at_once(block.trainable_parameters(), args[0])
        outputs = mx.checkpoint(inside)(weights, first, *args[1:], **kwargs)
        then = _as_then(attention, key)  # for the second time, in the backward pass
        return outputs

    return recompute


def _gradients_at_once(*trees: Any) -> Any:
    """`trees`, with gradients of which none is there before all are.

    MLX walks graphs in breadth (forge.blas): by itself it would compute the weights' gradients last, and keep the inside of all blocks.
    """

    @mx.custom_function
    def same(*trees: Any) -> Any:
        return trees

    @same.vjp
    def same_vjp(_: Any, cotangents: Any, __: Any) -> Any:
        all_of_them = list(flat(cotangents).values())
        waited = iter(mx.depends(all_of_them, all_of_them))
        return tree_map(lambda _: next(waited), cotangents)

    return same(*trees)


@contextmanager
def _as_then(attention: Callable[..., Any], key: mx.array) -> Iterator[None]:
    """Within, attention is the one that the forward pass saw (forge.training.attention exchanges it), and random numbers are drawn anew
    from its state: mx.checkpoint alone would draw other dropout masks. The global state stays where it is."""
    before = {(mx.random, name): getattr(mx.random, name) for name in _SAMPLERS}
    before[mx.fast, "scaled_dot_product_attention"] = mx.fast.scaled_dot_product_attention

    def from_key(sampler: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> mx.array:
            nonlocal key
            key, own = mx.random.split(key)
            return sampler(*args, **{"key": own, **kwargs})

        return draw

    for name in _SAMPLERS:
        setattr(mx.random, name, from_key(getattr(mx.random, name)))
    mx.fast.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)

"""The CPU's own functions are the functions: values and gradients against numpy in double precision and MLX's own."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import forge  # noqa: F401
from forge.training import formulation
from forge.training.formulation import cpu_formulation, exp, exp2

X = np.concatenate([np.linspace(-30, 30, 4001), [-100.0, -88.0, 80.0, 0.0]]).astype(np.float32)
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not formulation.on_cpu(), reason="of the CPU")


def test_exp2_is_numpys() -> None:
    x = np.linspace(-100, 100, 20001).astype(np.float32)
    np.testing.assert_allclose(np.array(exp2(mx.array(x))), np.exp2(x.astype(np.float64)), rtol=5e-7)


def test_exp_is_numpys() -> None:
    x = np.linspace(-60, 60, 20001).astype(np.float32)
    np.testing.assert_allclose(np.array(exp(mx.array(x))), np.exp(x.astype(np.float64)), rtol=1e-5)
    near = np.linspace(-2, 2, 20001).astype(np.float32)
    np.testing.assert_allclose(np.array(exp(mx.array(near))), np.exp(near.astype(np.float64)), rtol=5e-7)


@pytest.mark.parametrize("x", [-101.0, -1e9, -math.inf])
def test_what_is_too_small_is_next_to_nothing(x: float) -> None:
    assert 0 <= exp2(mx.array(x)).item() < 1e-30


def test_not_a_number_stays_one() -> None:
    assert math.isnan(exp2(mx.array(math.nan)).item())
    assert math.isnan(exp2(mx.array(math.inf) - mx.array(math.inf)).item())


def by_numpy(name: str, x: np.ndarray) -> np.ndarray:
    if name == "gelu_approx":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.tanh(x / 2))


@pytest.mark.parametrize("name", ["silu", "gelu_approx", "swiglu"])
def test_activations_and_their_gradients_are_numpys(name: str) -> None:
    """Gradients against differences in double precision; the second argument of SwiGLU is 2.5."""
    function: Callable[..., mx.array] = getattr(formulation, name)
    rest = [mx.full(X.shape, 2.5)] if name == "swiglu" else []
    factor, x = 2.5 if rest else 1.0, X.astype(np.float64)
    np.testing.assert_allclose(np.array(function(mx.array(X), *rest)), factor * by_numpy(name, x), atol=1e-5, rtol=1e-5)
    _, found = mx.vjp(lambda *arrays: [3 * function(*arrays)], [mx.array(X), *rest], [mx.ones(X.shape)])
    slope = (by_numpy(name, x + 1e-5) - by_numpy(name, x - 1e-5)) / 2e-5
    np.testing.assert_allclose(np.array(found[0]), 3 * factor * slope, atol=2e-5)
    if rest:
        np.testing.assert_allclose(np.array(found[1]), 3 * by_numpy(name, x), atol=1e-5, rtol=1e-5)


def test_models_find_them_within_and_mlx_s_behind() -> None:
    from mlx_lm.models import activations, qwen3

    before = (nn.silu, nn.gelu_approx, qwen3.swiglu, activations.swiglu)
    with pytest.raises(ZeroDivisionError), cpu_formulation(), cpu_formulation():
        assert not {nn.silu, nn.gelu_approx, qwen3.swiglu, activations.swiglu} & set(before)
        half, whole = (mx.ones((3,), dtype) for dtype in (mx.bfloat16, mx.float32))
        assert qwen3.swiglu(half, half).dtype == mx.bfloat16
        assert qwen3.swiglu(whole, whole).tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 3)
        1 / 0  # noqa: B018
    assert (nn.silu, nn.gelu_approx, qwen3.swiglu, activations.swiglu) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of the Linux CPU backend")
def test_no_compiler_is_called(tmp_path: Path) -> None:
    """The only g++ on the path leaves a note and fails."""
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n: > {tmp_path}/called\nexit 1\n")
    compiler.chmod(0o755)
    code = """
import forge, mlx.core as mx, mlx.nn as nn, numpy as np
from mlx_lm.models import qwen3
from forge.spec import Batch
from forge.training.gradients import Gradients
from forge.training.objectives import causal_lm
sizes = dict(hidden_size=16, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
model = qwen3.Model(qwen3.ModelArgs("qwen3", rms_norm_eps=1e-6, vocab_size=23, max_position_embeddings=64, rope_theta=1e4,
                                    tie_word_embeddings=True, **sizes))
model.set_dtype(mx.bfloat16)
tokens = np.ones((2, 9), dtype=np.int32)
mx.eval(Gradients(model, causal_lm)(Batch(tokens, tokens > 0, tokens, ("a", "b"))))
mx.eval(model(mx.array(tokens)))
print("trained")
"""
    clean = {name: value for name, value in os.environ.items() if name != "MLX_DISABLE_COMPILE"}
    clean |= {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}  # MLX keeps there what it compiled before
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)
    assert done.stdout == "trained\n", done.stderr
    assert not (tmp_path / "called").exists()

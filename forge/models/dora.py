"""DoRA layers: LoRA on the direction of each row of a weight matrix, its length trained apart (Liu et al. 2024, arXiv 2402.09353).

    W' = m · (W + ΔW) / ‖W + ΔW‖, with ΔW = scale · B A, lengths by row (output), and ‖·‖ held constant in the gradient (their section 4.3)

mlx-lm's own take no base of 3, 5 or 6 bits and no quantised embedding, round m to the model's type, and give NaN for a row of zeros, which
padded vocabularies have. These compute y + (s - 1) y + s ΔW x with s = m / ‖W + ΔW‖, which is the base exactly while ΔW is 0.
Each forward pass makes W + ΔW in fp32, once a layer, for its lengths.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from forge.models.quantise import dense

_TINY = 1e-30  # a row of zeros stays one


class DoRALinear(nn.Module):
    def __init__(self, linear: nn.Module, *, rank: int, scale: float, dropout: float):
        super().__init__()
        weight = dense(linear)
        rows, columns = weight.shape
        bound = 1 / math.sqrt(columns)
        self.linear, self.scale, self.dropout = linear, scale, nn.Dropout(dropout)
        self.lora_a = mx.random.uniform(-bound, bound, (columns, rank))
        self.lora_b = mx.zeros((rank, rows))
        self.m = mx.linalg.norm(weight, axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        z = self.scale * (self.dropout(x) @ self.lora_a) @ self.lora_b
        s = _stretch(self.m, self._adapted(), axis=1)
        unbiased = y - self.linear.bias if "bias" in self.linear else y
        return (y + (s - 1) * unbiased + s * z).astype(y.dtype)

    def fuse(self) -> nn.Linear:
        """A plain layer in fp32."""
        weight = self._adapted()
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        fused.weight = _stretch(self.m, weight, axis=1)[:, None] * weight
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        return fused

    def _adapted(self) -> mx.array:
        return dense(self.linear) + (self.scale * self.lora_b.T) @ self.lora_a.T


class DoRAEmbedding(nn.Module):
    """A row a token; the same table may be the output projection (as_linear)."""

    def __init__(self, embedding: nn.Module, *, rank: int, scale: float, dropout: float):
        super().__init__()
        weight = dense(embedding)
        rows, columns = weight.shape
        bound = 1 / math.sqrt(rows)
        self.embedding, self.scale, self.dropout = embedding, scale, nn.Dropout(dropout)
        self.lora_a = mx.random.uniform(-bound, bound, (rows, rank))
        self.lora_b = mx.zeros((rank, columns))
        self.m = mx.linalg.norm(weight, axis=1)

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.embedding(ids)
        z = self.scale * self.lora_a[ids] @ self.lora_b
        s = _stretch(self.m[ids], y + z, axis=-1)[..., None]
        return (y + (s - 1) * y + s * self.dropout(z)).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        y = self.embedding.as_linear(x)
        z = self.scale * (self.dropout(x) @ self.lora_b.T) @ self.lora_a.T
        s = _stretch(self.m, self._adapted(), axis=1)
        return (y + (s - 1) * y + s * z).astype(y.dtype)

    def fuse(self) -> nn.Embedding:
        """A plain table in fp32."""
        weight = self._adapted()
        fused = nn.Embedding(weight.shape[0], weight.shape[1])
        fused.weight = _stretch(self.m, weight, axis=1)[:, None] * weight
        return fused

    def _adapted(self) -> mx.array:
        return dense(self.embedding) + (self.scale * self.lora_a) @ self.lora_b


def _stretch(m: mx.array, rows: mx.array, axis: int) -> mx.array:
    """Each row's trained length over its present one."""
    length = mx.linalg.norm(rows.astype(mx.float32), axis=axis)
    return m / mx.stop_gradient(mx.maximum(length, _TINY))

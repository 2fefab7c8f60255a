"""Optimizers: optimizer(*, lr, knobs) -> mlx optimizer whose learning rate is the peak. mlx.optimizers' own also work as targets."""

from typing import Annotated

import mlx.optimizers as optimizers
from pydantic import Field

Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


def adamw(*, lr: Rate, beta1: Beta, beta2: Beta, eps: Rate, weight_decay: NotNegative) -> optimizers.Optimizer:
    """AdamW as published (arXiv 1711.05101), with the bias correction that mlx leaves out unless told."""
    return optimizers.AdamW(learning_rate=lr, betas=[beta1, beta2], eps=eps, weight_decay=weight_decay, bias_correction=True)

"""Quantising a fused model: a recipe such as 4bit, mixed_3_6, dynamic_4_6, awq-3bit-g32, dwq or gptq, carried out by mlx-lm.

    Nbit       all layers in N bits, by rounding
    mixed_L_H  H bits for the head and the value and down projections of some blocks, L for the rest (mlx_lm.convert)
    dynamic_L_H  H bits where the loss feels the rounding most, as many as take the mean half way from L to H (mlx_lm.dynamic_quant)
    awq        weights are scaled and clipped first, so that rounding moves a block's output least (Lin et al. 2023, arXiv 2306.00978)
    gptq       columns are rounded one by one, and those that follow make up for the error (Frantar et al. 2022, arXiv 2210.17323)
    dwq        scales and biases are trained until the answers are those of the fused model (mlx_lm.dwq)

-gG is the number of weights that share a scale and a bias (64); awq, gptq and dwq take -Nbit (4). What looks at text looks at training
text, never at what the model is judged by. Rounding costs seconds; dwq and dynamic a few passes of training, awq some 40 of inference for
each block, gptq the inverse of a matrix for each layer. How far they are is told.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge import bars
from forge.arrays import flat, scalar
from forge.errors import ReleaseError
from forge.models import Loaded
from forge.models.parts import is_quantised
from forge.models.quantise import learn_packing
from forge.progress import Work
from forge.spec import Batch, Data
from forge.training.formulation import on_cpu
from forge.values import RECIPE

_LENGTH, _FEWEST = 512, 8  # tokens of a document, and rows
_BATCH = 4
_DWQ_RATE = 5e-3  # of the mean scale, a step
_SEED = 0

Config = dict[str, Any]
Documents = Callable[[], Sequence[np.ndarray]]  # tokens of training text


@dataclass(frozen=True)
class Recipe:
    """`bits` are the fewer and `high` the more of the two where there are two."""

    text: str
    method: str
    bits: int
    high: int
    group_size: int


def parse(text: str) -> Recipe:
    """`text` is one that forge.settings.ReleaseSpec takes."""
    found = RECIPE.fullmatch(text)
    assert found, text
    group_size = int(found["group"] or 64)
    for method in ("mixed", "dynamic"):
        if found[method]:
            low, high = map(int, found[method].split("_"))
            return Recipe(text, method, low, high, group_size)
    bits = int(found["plain"] or found["bits"] or 4)
    return Recipe(text, found["method"] or "plain", bits, bits, group_size)


def quantise(recipe: Recipe, fused: Loaded, teacher: nn.Module, documents: Documents) -> Loaded:
    """`fused` with its weights packed, in place. `teacher` is the same model, which stays. Raises ReleaseError where it can't be done."""
    if recipe.method in _WHOLE_GROUPS:
        _require_whole_groups(recipe, fused.model)
    mx.random.seed(_SEED)
    with Work(recipe.text) as work, bars.told(work, _BARS.get(recipe.method, {})), _quiet():
        model, config = _METHODS[recipe.method](recipe, fused, teacher, documents)
    if not is_quantised(model):
        raise ReleaseError(f"{recipe.text}: no layer's width is a multiple of {recipe.group_size}; take a smaller group, such as -g32")
    config["quantization_config"] = config["quantization"]
    model.eval()
    mx.eval(model.parameters())
    return Loaded(model, fused.tokenizer, config, fused.lineage)


def calibration(data: Data, tokens: int) -> list[np.ndarray]:
    """Documents of the training text, some `tokens` in all, each at most 512 long. Leaves the run's own place alone."""
    train, place = data.train, data.train.cursor
    found: list[np.ndarray] = []
    train.cursor = 0
    try:
        while sum(map(len, found)) < tokens and (data.max_batches is None or train.cursor < data.max_batches):
            found += _documents(train.next())
    finally:
        train.cursor = place
    return found


def _documents(batch: Batch) -> Iterator[np.ndarray]:
    for tokens_T, segments_T in zip(batch.tokens_BT, batch.segments_BT, strict=True):
        for segment in range(1, segments_T.max() + 1):
            tokens = tokens_T[segments_T == segment][:_LENGTH]
            if len(tokens) > 1:
                yield tokens


def rows(documents: Sequence[np.ndarray]) -> mx.array:
    """rows_NT, where one document follows another without padding: from the beginning again where there is less than 8 rows."""
    stream = np.concatenate(documents)
    length = min(_LENGTH, max(map(len, documents)))
    return mx.array(np.resize(stream, (max(_FEWEST, len(stream) // length), length)))


# ---- methods ----------------------------------------------------------------------------------------------------------


def _plain(recipe: Recipe, fused: Loaded, *_: Any) -> tuple[nn.Module, Config]:
    from mlx_lm.utils import quantize_model

    return quantize_model(fused.model, fused.config, recipe.group_size, recipe.bits)


def _mixed(recipe: Recipe, fused: Loaded, *_: Any) -> tuple[nn.Module, Config]:
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    name = f"mixed_{recipe.bits}_{recipe.high}"
    try:
        predicate = mixed_quant_predicate_builder(name, fused.model, recipe.group_size)
    except ValueError as error:
        kind = fused.config["model_type"]
        raise ReleaseError(f"{recipe.text}: {kind} has no layers called down_proj, which this recipe goes by; take dynamic_4_6") from error
    return quantize_model(fused.model, fused.config, recipe.group_size, recipe.bits, quant_predicate=cast(Any, predicate))


def _dynamic(recipe: Recipe, fused: Loaded, _: nn.Module, documents: Documents) -> tuple[nn.Module, Config]:
    from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
    from mlx_lm.utils import compute_bits_per_weight, quantize_model

    group = recipe.group_size
    spans = (recipe.bits, group, recipe.high, group)
    felt = dict(estimate_sensitivities(fused.model, rows(documents()), *spans, batch_size=_BATCH))
    ends = [compute_bits_per_weight(_plain_copy(fused.model, bits, group)) for bits in (recipe.bits, recipe.high)]
    threshold = estimate_threshold(fused.model, felt, sum(ends) / 2, *spans)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int]:
        return {"bits": recipe.high, "group_size": group} if felt[path] > threshold else True

    return quantize_model(fused.model, fused.config, group, recipe.bits, quant_predicate=predicate)


def _awq(recipe: Recipe, fused: Loaded, _: nn.Module, documents: Documents) -> tuple[nn.Module, Config]:
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize, update_config

    kind = fused.config["model_type"]
    if kind not in AWQ_MODEL_CONFIGS:
        raise ReleaseError(f"{recipe.text}: mlx-lm knows AWQ for {', '.join(sorted(AWQ_MODEL_CONFIGS))}, not for {kind}; take dwq or gptq")
    size = {"bits": recipe.bits, "group_size": recipe.group_size}
    embedding = {f"embed_{name}": value for name, value in size.items()}
    awq_quantize(fused.model, rows(documents()), AWQ_MODEL_CONFIGS[kind], **size, **embedding)
    return fused.model, update_config(fused.model, dict(fused.config))


def _dwq(recipe: Recipe, fused: Loaded, teacher: nn.Module, documents: Documents) -> tuple[nn.Module, Config]:
    from mlx.optimizers import Adam
    from mlx_lm.quant.dwq import dwq_quantize

    model, config = _plain(recipe, fused)
    texts = [(tokens.tolist(), 0) for tokens in documents()]
    texts *= math.ceil(2 * _BATCH / len(texts))  # a batch to train on and one to watch
    watched = max(_BATCH, len(texts) // 16)
    scales = [value for name, value in flat(model.parameters()).items() if name.endswith(".scales")]
    if scales:
        mean = sum(scalar(mx.abs(each.astype(mx.float32)).mean()) for each in scales) / len(scales)
        if on_cpu():
            learn_packing(model)
        model.freeze()
        dwq_quantize(
            model,
            lambda tokens, index, split: teacher(tokens),
            Adam(learning_rate=_DWQ_RATE * mean, bias_correction=True),
            texts[watched:],
            texts[:watched],
            batch_size=_BATCH,
            max_seq_length=_LENGTH,
            seed=_SEED,
            dtype=scales[0].dtype,
        )
    return model, config


def _gptq(recipe: Recipe, fused: Loaded, _: nn.Module, documents: Documents) -> tuple[nn.Module, Config]:
    from mlx_lm.quant.gptq import gptq_quantize

    size = recipe.bits, recipe.group_size
    model, quantization = gptq_quantize(fused.model, rows(documents()), *size, *size)
    return model, {**fused.config, "quantization": quantization}


_METHODS: dict[str, Callable[[Recipe, Loaded, nn.Module, Documents], tuple[nn.Module, Config]]] = {
    "plain": _plain,
    "mixed": _mixed,
    "dynamic": _dynamic,
    "awq": _awq,
    "dwq": _dwq,
    "gptq": _gptq,
}
BY_ROUNDING = ("plain", "mixed")  # these look at no text
_BARS: dict[str, dict[str, bars.Names]] = {  # by method, what mlx-lm counts there
    "dynamic": {"mlx_lm.quant.dynamic_quant": {"Estimating sensitivities": "batch"}},
    "awq": {"mlx_lm.quant.awq": {"": "block"}},
    "dwq": {"mlx_lm.quant.dwq": {"": "step", "Computing validation loss": "watched batch"}},
    "gptq": {"mlx_lm.quant.gptq": {"Computing Hessians": "batch", "Quantizing": "layer"}},
}
_WHOLE_GROUPS = ("dynamic", "awq", "gptq")  # these take each layer, or fail


def _require_whole_groups(recipe: Recipe, model: nn.Module) -> None:
    for name, module in _packable(model):
        if (width := module.weight.shape[-1]) % recipe.group_size:
            raise ReleaseError(f"{recipe.text}: {name} is {width} wide, no multiple of {recipe.group_size}; take {_instead(recipe, width)}")


def _instead(recipe: Recipe, width: int) -> str:
    if width % 32 == 0:
        return f"{recipe.text.removesuffix(f'-g{recipe.group_size}')}-g32"
    return f"{recipe.bits}bit, which leaves such layers as they are"


def _packable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "to_quantized"))


def _plain_copy(model: nn.Module, bits: int, group_size: int) -> nn.Module:
    copy = deepcopy(model)
    nn.quantize(copy, group_size, bits)
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """mlx-lm prints."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield

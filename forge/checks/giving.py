"""The self-test's checks of what comes after training: the fused model on disk, the served one, memory, and speed."""

import gc
import time

import mlx.core as mx
import numpy as np

from forge import blas
from forge.arrays import scalar
from forge.checks import toy
from forge.checks.learning import Saw
from forge.checks.toy import Toy, close, difference
from forge.models import fuse

_FUSED = "fused-model"
_TOKENS = 16
_KEPT_MB = 32
_SIZE = 1024
_RATIO, _TRAP = 0.4, 0.1  # of numpy's speed: below the first something slows MLX down, below the second it is the reference BLAS


def fused_equals_adapter(test: Toy) -> Saw:
    """A trained adapter's logits, and those of the model that was fused, written, and read back."""
    loaded = test.model()
    toy.lora(loaded.model)
    toy.train(test, loaded.model, "adapter", 10)
    loaded.model.eval()
    tokens = mx.array(test.batch().tokens_BT)
    adapted = loaded.model(tokens)
    mx.eval(adapted)
    fuse.save(fuse.fuse(loaded), test.folder / _FUSED)
    model, _ = fuse.load(test.folder / _FUSED)
    far = difference(adapted, model(tokens))
    return far <= close(), f"logits differ by {far:.1g} from those read back from disk (limit {close():g})"


def serves_what_the_model_says(test: Toy) -> Saw:
    """The fused folder's greedy text, served and token by token in process."""
    from forge.serving.engine import GenerationThread, Sampling
    from forge.serving.prompt import encode

    folder = test.folder / _FUSED
    if not folder.is_dir():
        fuse.save(test.model(), folder)
    model, tokenizer = fuse.load(folder)
    prompt = "<|user|>\nSay lamp, red.\n<|assistant|>\n"
    tokens = ids = encode(tokenizer, prompt)
    while len(tokens) < len(ids) + _TOKENS:
        likeliest = int(scalar(mx.argmax(model(mx.array([tokens]))[0, -1])))
        if likeliest == tokenizer.eos_token_id:
            break
        tokens = [*tokens, likeliest]
    expected = tokenizer.decode(tokens[len(ids) :])
    engine = GenerationThread(folder)
    try:
        said = engine.submit(prompt, Sampling(max_tokens=_TOKENS, temperature=0.0), timeout_s=60.0).result().text
    finally:
        engine.close()
    if said.strip() != expected.strip():
        return False, f"{prompt!r} is served as {said!r}, and in process it is {expected!r}"
    return True, f"{len(tokens) - len(ids)} tokens are the same, served and in process"


def memory_is_given_back(test: Toy) -> Saw:
    """What MLX holds before and after a model is trained and dropped."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    toy.train(test, test.model().model, "memory", 4)
    gc.collect()
    mx.clear_cache()
    kept = max(0, mx.get_active_memory() - before) / 10**6
    return kept < _KEPT_MB, f"{kept:.1f} MB stay of what a training took (limit {_KEPT_MB})"


def products_are_fast(_: Toy) -> Saw:
    """An fp32 product of MLX's, against the same one of numpy's, which brings a fast BLAS with it."""
    blas.use_threads(blas.cores())
    mine, numpys = 0.0, 0.0
    x = np.random.default_rng(0).normal(size=(_SIZE, _SIZE)).astype(np.float32)
    y = mx.array(x)
    for _round in range(5):  # in turn: other programs' load comes and goes
        began = time.perf_counter()
        mx.eval(y @ y)
        between = time.perf_counter()
        x @ x
        mine, numpys = max(mine, 1 / (between - began)), max(numpys, 1 / (time.perf_counter() - between))
    gflops, share = 2e-9 * _SIZE**3 * mine, mine / numpys
    said = f"{gflops:.0f} GFLOP/s in fp32, {share:.0%} of what numpy does on these {blas.cores()} cores"
    return share > _RATIO, said + (": the slow reference BLAS" if share < _TRAP else "")

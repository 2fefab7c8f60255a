"""Makes the numbers of tests/models/parity/ with transformers and peft: python scripts/parity_reference.py [SHAPE …]

Needs torch, transformers, peft and safetensors, and nothing of forge but tests/models/parity/cases.py. Takes a minute. Each document is
run alone, in fp32, with plain attention, so that nothing here knows of packing, padding or masks. By shape and mode the file holds the
loss (nats a target) and the norm of the gradient at each of 20 AdamW steps, and, before the first and after the last, the gradient of each
tensor on the first batch.
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file

_FOLDER = Path(__file__).resolve().parents[1] / "tests" / "models" / "parity"
cases = SimpleNamespace(**runpy.run_path(str(_FOLDER / "cases.py")))


def main() -> None:
    torch.manual_seed(0)
    for shape in sys.argv[1:] or cases.CONFIGS:
        shapes = _file_shapes(cases.CONFIGS[shape])
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), cases.CONFIGS[shape], shapes)
            whole = _load(folder)
            full = _train(whole, _by_file_name(whole, shapes))
            wrapped, modules = _with_lora(_load(folder))
            adapted = _train(wrapped, _lora_by_name(wrapped, modules))
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        stored = {"versions": versions, "shapes": shapes, "modules": modules, "full": full, "lora": adapted}
        (_FOLDER / f"{shape}.json").write_text(_one_entry_a_line(_rounded(stored)))
        print(shape, "full", full["losses"][0], "->", full["losses"][-1], "lora", adapted["losses"][0], "->", adapted["losses"][-1])


def _file_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """What a file of the hub holds: tied heads aren't in it, and GPT-2's has the names without "transformer."."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    tied = model.config.tie_word_embeddings
    named = {name.removeprefix("transformer."): list(value.shape) for name, value in model.named_parameters()}
    return {name: shape for name, shape in named.items() if not (tied and name.startswith("lm_head"))}


def _write(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(cases.weights(shapes), folder / "model.safetensors", metadata={"format": "pt"})


def _load(folder: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def _by_file_name(model: Any, shapes: dict[str, list[int]]) -> dict[str, torch.nn.Parameter]:
    found = {name.removeprefix("transformer."): value for name, value in model.named_parameters()}
    assert set(found) == set(shapes), set(found) ^ set(shapes)
    for name, value in cases.weights(shapes).items():  # loading may have left something out with a mere warning
        assert np.array_equal(found[name].detach().numpy(), value), name
    return found


def _with_lora(model: Any) -> tuple[Any, dict[str, list[int]]]:
    """LoRA on every linear layer of the blocks, and these layers' [inputs, outputs]."""
    transposed = model.config.model_type == "gpt2"  # its Conv1D holds (inputs, outputs)
    settings = peft.LoraConfig(r=cases.RANK, lora_alpha=cases.ALPHA, target_modules="all-linear", fan_in_fan_out=transposed)
    wrapped = peft.get_peft_model(model, settings)
    found = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    modules: dict[str, list[int]] = {}
    for name, value in found.items():
        inputs_first = value.shape[1] if ".lora_A." in name else value.shape[0]
        modules.setdefault(_module(name), [0, 0])[".lora_B." in name] = inputs_first
    initial = cases.lora(modules)
    with torch.no_grad():
        for name, value in found.items():
            value.copy_(torch.from_numpy(initial[_lora_name(name)]))
    return wrapped, modules


def _lora_by_name(wrapped: Any, modules: dict[str, list[int]]) -> dict[str, torch.nn.Parameter]:
    found = {_lora_name(name): value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert set(found) == set(cases.lora(modules))
    return found


def _module(name: str) -> str:
    """base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight -> model.layers.0.self_attn.q_proj"""
    return name.removeprefix("base_model.model.").removeprefix("transformer.").split(".lora_")[0]


def _lora_name(name: str) -> str:
    return f"{_module(name)}.lora_{'a' if '.lora_A.' in name else 'b'}"


def _train(model: Any, weights: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    chosen = cases.OPTIMIZER
    betas, eps, decay = (chosen["beta1"], chosen["beta2"]), chosen["eps"], chosen["weight_decay"]
    optimizer = torch.optim.AdamW(weights.values(), lr=chosen["lr"], betas=betas, eps=eps, weight_decay=decay)
    losses, norms = [], []
    first, *others = cases.batches()
    before = _backward(model, weights, first)
    for rows in (first, *others):
        loss, gradient = _backward(model, weights, rows)
        optimizer.step()
        losses.append(loss)
        norms.append(sum(norm**2 for norm, _ in gradient.values()) ** 0.5)
    after = _backward(model, weights, first)
    return {"losses": losses, "norms": norms, "before": before[1], "after": after[1]}


def _backward(model: Any, weights: dict[str, torch.nn.Parameter], rows: Any) -> tuple[float, dict[str, list[float]]]:
    """The loss, and each gradient's fingerprint; the gradients stay for the optimizer."""
    for value in weights.values():
        value.grad = None
    loss = _mean_loss(model, rows)
    loss.backward()
    return loss.item(), {name: cases.fingerprint(name, value.grad.numpy()) for name, value in weights.items()}


def _mean_loss(model: Any, rows: Any) -> torch.Tensor:
    total = torch.zeros(())
    for tokens, mask, segments in zip(*rows, strict=True):
        for number in range(1, segments.max() + 1):
            document = torch.from_numpy(tokens[segments == number].astype(np.int64))
            targets = torch.from_numpy(mask[segments == number])
            logits = model(input_ids=document[None]).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits[:-1][targets[1:]], document[1:][targets[1:]], reduction="sum")
    return total / int(rows.mask.sum())


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.8g}") if isinstance(tree, float) else tree


def _one_entry_a_line(tree: dict[str, Any]) -> str:
    """JSON with a line for each name of the second level."""
    parts = []
    for name, entries in tree.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()

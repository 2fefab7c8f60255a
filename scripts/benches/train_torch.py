"""A plain torch loop with transformers and peft, for scripts/benches/train.py: fused AdamW, torch's own attention, bf16 by autocast."""

import time
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from train_setup import LINEAR, LORA, OPTIMIZER, hand_back, settings
from transformers import AutoModelForCausalLM


def main() -> None:
    asked, rows = settings()
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA, as MLX has it there
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).to(device)
    if asked["mode"] == "lora":
        from peft import LoraConfig, get_peft_model

        names = [name.split(".")[-1] for name in LINEAR]
        model = get_peft_model(model, LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=names))
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    betas, eps, decay = (OPTIMIZER["beta1"], OPTIMIZER["beta2"]), OPTIMIZER["eps"], OPTIMIZER["weight_decay"]
    optimizer = torch.optim.AdamW(trained, OPTIMIZER["lr"], betas, eps, decay, fused=True)
    seconds, losses = [], []
    for tokens in torch.from_numpy(rows.astype(np.int64)):
        started = time.perf_counter()
        losses.append(step(model, optimizer, tokens.to(device), asked["dtype"]))
        seconds.append(time.perf_counter() - started)
    where = torch.cuda.get_device_name() if cuda else f"{device}, {torch.get_num_threads()} threads"
    about = {"torch": torch.__version__, "transformers": version("transformers"), "peft": version("peft"), "torch device": where}
    hand_back(asked, seconds, losses, torch.cuda.max_memory_allocated() if cuda else 0.0, about)


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, dtype: str) -> float:
    optimizer.zero_grad()
    with nullcontext() if dtype == "float32" else torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    value = loss.item()
    if tokens.device.type == "cuda":
        torch.cuda.synchronize()  # the update too, not the loss alone
    return value


if __name__ == "__main__":
    main()

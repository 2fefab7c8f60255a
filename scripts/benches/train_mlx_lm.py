"""mlx-lm's own loop on its own data path, for scripts/benches/train.py. Imports nothing of forge, which would change MLX's BLAS.

`mlx_lm.lora --fine-tune-type full` leaves embeddings and the last norm frozen; here all is trained, as by the others.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx_lm import load
from mlx_lm.tuner.datasets import CacheDataset, load_dataset
from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from train_setup import LINEAR, LORA, OPTIMIZER, hand_back, settings


class Reports(TrainingCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.found.append(train_info)


def main() -> None:
    asked, rows = settings()
    mx.random.seed(0)
    model, tokenizer = load(asked["folder"])
    model.set_dtype(getattr(mx, asked["dtype"]))
    if asked["mode"] == "lora":
        model.freeze()
        knobs = {"rank": LORA["rank"], "scale": LORA["alpha"] / LORA["rank"], "dropout": 0.0, "keys": LINEAR}
        linear_to_lora_layers(model, len(model.layers), knobs)
    betas, eps, decay = [OPTIMIZER["beta1"], OPTIMIZER["beta2"]], OPTIMIZER["eps"], OPTIMIZER["weight_decay"]
    optimizer = optimizers.AdamW(OPTIMIZER["lr"], betas, eps, decay, bias_correction=True)
    steps, size, length = rows.shape
    reports = Reports()
    with tempfile.TemporaryDirectory() as folder:
        write(rows, Path(folder))
        found, _, _ = load_dataset(SimpleNamespace(data=folder, train=True, test=False), tokenizer)
        chosen = TrainingArgs(
            batch_size=size,
            iters=steps,
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=length,
            adapter_file=str(Path(folder, "adapters.safetensors")),
        )
        np.random.seed(0)
        train(model, optimizer, CacheDataset(found), args=chosen, training_callback=reports)
    about = {"mlx-lm": version("mlx-lm"), "mlx": version("mlx"), "mlx device": str(mx.default_device())}
    seconds = [1 / report["iterations_per_second"] for report in reports.found]
    hand_back(asked, seconds, [report["train_loss"] for report in reports.found], mx.get_peak_memory(), about)


def write(rows: np.ndarray, folder: Path) -> None:
    """The rows as text, so that the loop, which takes batches in an order of its own, sees them in ours. It adds the last token itself."""
    order = np.random.RandomState(0).permutation(len(rows))
    batches = [rows[step] for step in np.argsort(order)]
    lines = [json.dumps({"text": " ".join(f"w{token}" for token in row[:-1])}) for batch in batches for row in batch]
    (folder / "train.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

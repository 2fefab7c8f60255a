"""The folders that may be registered, each read back from disk and measured: the fused model, and quantised ones made of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from forge import paths
from forge.arrays import flat
from forge.assemble import Parts
from forge.errors import ReleaseError
from forge.models import Loaded, fuse
from forge.release import gate, recipes
from forge.release.divergence import diverge, keep
from forge.release.gate import Measured
from forge.settings import ReleaseSpec
from forge.training import checkpoint
from forge.training.evaluate import evaluate

_LOSS_TOLERANCE = 1e-3  # nats a token, between the checkpoint's own validation loss and the saved model's


@dataclass(frozen=True)
class Made:
    """A model's folder; `recipe` None is the fused one. `evaluated`: the validation loss of the checkpoint before it was fused."""

    folder: Path
    recipe: str | None
    measured: Measured
    evaluated: float


@dataclass(frozen=True)
class Workshop:
    """What is made, of what, and in which empty folder."""

    spec: ReleaseSpec
    parts: Parts
    scratch: Path

    def fused(self, saved: Path, name: str) -> Made:
        """The checkpoint, fused. Changes the model in `parts`. Raises ReleaseError when what was saved is not what was evaluated."""
        loaded, data = self.parts.loaded, self.parts.data
        checkpoint.verify(saved)
        checkpoint.load_weights(loaded.model, saved)
        evaluated = evaluate(loaded.model, data).metrics["val/loss"]
        rounding = _rounding(loaded.model)
        keep(loaded.model, data, self.spec.compared_tokens, self._logits("checkpoint"))
        folder = self._place("fused", name)
        fuse.save(fuse.fuse(loaded), folder)
        made = Made(folder, None, self._measure(folder, "checkpoint"), evaluated)
        against, loss = made.measured.against, made.measured.loss
        limit = self.spec.max_logit_difference + rounding * against.largest
        if not (against.difference <= limit and abs(loss - evaluated) <= _LOSS_TOLERANCE):  # nor may either be NaN
            raise ReleaseError(
                f"the saved model is not the evaluated one: logits differ by {against.difference:.2g} (limit {limit:.2g}), "
                f"validation loss {loss:.4f} against {evaluated:.4f}; nothing was registered. The checkpoint is {saved}"
            )
        return made

    def quantised(self, fused: Made, text: str, name: str) -> Made:
        """The fused model, quantised by the recipe `text`. Raises ReleaseError where it can't be."""
        recipe, base = recipes.parse(text), self.parts.loaded
        looks = "" if recipe.method in recipes.BY_ROUNDING else f", by {self.spec.calibration_tokens:,} tokens of training text"
        print(f"quantising to {text}{looks}", flush=True)
        if not self._logits("fused").exists():
            keep(self._read(fused.folder).model, self.parts.data, self.spec.compared_tokens, self._logits("fused"))
        made = recipes.quantise(
            recipe,
            self._read(fused.folder),
            base.model,
            lambda: recipes.calibration(self.parts.data, self.spec.calibration_tokens),
        )
        folder = self._place(text, name)
        fuse.save(made, folder)
        del made
        return Made(folder, text, self._measure(folder, "fused"), fused.evaluated)

    def _measure(self, folder: Path, reference: str) -> Measured:
        from mlx_lm.utils import compute_bits_per_weight

        data = self.parts.data
        loaded = self._read(folder)
        return Measured(
            scores=evaluate(loaded.model, data).metrics,
            against=diverge(loaded.model, data, self.spec.compared_tokens, self._logits(reference)),
            bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            bits=compute_bits_per_weight(loaded.model),
            written=gate.write(loaded, data, self.spec),
        )

    def _read(self, folder: Path) -> Loaded:
        """With the configuration that lies there: the base's own may say that it is quantised, which what was fused no longer is."""
        model, tokenizer = fuse.load(folder)
        return Loaded(model, tokenizer, json.loads((folder / "config.json").read_text()), self.parts.loaded.lineage)

    def _logits(self, whose: str) -> Path:
        return self.scratch / f"logits-{whose}"

    def _place(self, kind: str, name: str) -> Path:
        """Serving reports the folder's name as the model's."""
        folder = paths.within(self.scratch / kind, name)
        folder.parent.mkdir()
        return folder


def _rounding(model: nn.Module) -> float:
    """How far rounding may move a logit, as a share of the largest: two of bf16's eight bits where weights are 16 bits wide, else 0."""
    wide = all(value.dtype in (mx.float32, mx.uint32) for value in flat(model.parameters()).values())
    return 0.0 if wide else 2.0**-6

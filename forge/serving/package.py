"""What MLflow needs to store a fused model folder as a model that it can serve."""

import atexit
import functools
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec

import forge
from forge.errors import ServingError
from forge.serving.engine import Sampling

_ROOT = Path(forge.__file__).parent
_SCRIPT = _ROOT / "serving" / "pyfunc.py"
_NOT_SHIPPED = ("package.py", "pyfunc.py")  # the first is for saving; MLflow stores the second itself


def save_arguments(folder: Path) -> dict[str, Any]:
    """The keyword arguments for mlflow.pyfunc.log_model(name=..., **these) or save_model(path, **these).

    `folder` is in the Hugging Face layout. Nothing in here makes MLflow load the weights. Raises ServingError where a file is missing.
    """
    folder = Path(folder).resolve()
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    missing += [] if list(folder.glob("*.safetensors")) else ["*.safetensors"]
    if missing:
        raise ServingError(f"{folder} can't be served, {' and '.join(missing)} missing: pass the folder of a fused model")
    return {
        "python_model": str(_SCRIPT),
        "artifacts": {"model": str(folder)},
        "signature": signature(),
        "pip_requirements": requirements(),
        "code_paths": [str(_shipped())],
    }


def signature() -> ModelSignature:
    """The sampling parameters. Inputs are left open: MLflow would drop unknown keys before forge.serving.protocol could name them."""
    default = Sampling()
    return ModelSignature(
        params=ParamSchema(
            [
                ParamSpec("max_tokens", "long", default.max_tokens),
                ParamSpec("temperature", "double", default.temperature),
                ParamSpec("top_p", "double", default.top_p),
                ParamSpec("top_k", "long", default.top_k),
                ParamSpec("min_p", "double", default.min_p),
                ParamSpec("repetition_penalty", "double", default.repetition_penalty),
                ParamSpec("presence_penalty", "double", default.presence_penalty),
                ParamSpec("frequency_penalty", "double", default.frequency_penalty),
                ParamSpec("seed", "long", default.seed),
                ParamSpec("stop", "string", list(default.stop), shape=(-1,)),
            ]
        )
    )


def requirements() -> list[str]:
    """The installed versions. On Linux mlx has no backend of its own: the CPU's runs everywhere, on a GPU install mlx[cuda13] over it."""
    mlx = version("mlx")
    return [
        f"mlx=={mlx}; sys_platform == 'darwin'",
        f"mlx[cpu]=={mlx}; sys_platform == 'linux'",
        f"mlx-lm=={version('mlx-lm')}",
        f"mlflow=={version('mlflow')}",
    ]


@functools.cache
def _shipped() -> Path:
    """A folder `forge` with the serving code alone, there until the process ends. MLflow copies it into each model."""
    holder = Path(tempfile.mkdtemp(prefix="forge-serving-"))
    atexit.register(shutil.rmtree, holder, ignore_errors=True)
    package = holder / "forge"
    (package / "serving").mkdir(parents=True)
    for name in ("__init__.py", "blas.py", "chat_template.py", "errors.py"):
        shutil.copy(_ROOT / name, package / name)
    for source in sorted((_ROOT / "serving").glob("*.py")):
        if source.name not in _NOT_SHIPPED:
            shutil.copy(source, package / "serving" / source.name)
    return package

"""A model folder of a few thousand random parameters, with and without a chat template, saved and loaded the way users do."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # both are read when mlflow is imported or used first
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import forge  # noqa: F401  (before mlx)

with warnings.catch_warnings():  # mlflow warns of its own type hints when it is imported
    warnings.simplefilter("ignore")
    import mlflow.pyfunc

CONTEXT = 64
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = ["the cat sat on the mat", "a dog ran over the hill and sat", "hi there, how is the cat?", "the hill is over there"] * 4


def make_tokenizer(chat_template: str | None):
    """Byte-level BPE. It puts its BOS in front of a text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(_SENTENCES, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def write_folder(folder: Path, chat_template: str | None, context: int = CONTEXT, endless: bool = False) -> Path:
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.models import qwen3
    from mlx_lm.utils import save_config, save_model

    tokenizer = make_tokenizer(chat_template)
    config = {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
    }
    mx.random.seed(0)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    model.update(tree_map(lambda weight: 2 * mx.random.normal(weight.shape), model.parameters()))  # else one token is all it says
    # Most of the bytes are no text by themselves: a zero row of the tied embedding makes such a token unlikely.
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    plain = mx.array(
        [[(piece == "<|endoftext|>" and not endless) or (piece.lstrip("Ġ").isalpha() and piece.lstrip("Ġ").isascii())] for piece in pieces]
    )
    model.model.embed_tokens.weight = model.model.embed_tokens.weight * plain
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tokenizer.save_pretrained(folder)
    return folder


def save_pyfunc(folder: Path, path: Path) -> Path:
    from forge.serving.package import save_arguments

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")  # one would make MLflow load the weights
        mlflow.pyfunc.save_model(path, **save_arguments(folder))
    return path


@pytest.fixture(scope="session")
def make_folder():
    return write_folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("chat") / "tiny-chat", CHATML)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("base") / "tiny-base", None)


@pytest.fixture(scope="session")
def saved(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pyfunc(chat_folder, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="session")
def model(saved: Path):
    return mlflow.pyfunc.load_model(str(saved))


@pytest.fixture(scope="session")
def tokenizer(chat_folder: Path):
    """The tokenizer by itself, to count by."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="session")
def invoke(model):
    """What POST /invocations answers, without the HTTP: the parsed answer, or the exception that becomes a 4xx."""
    from mlflow.pyfunc import scoring_server

    def post(body: dict) -> dict:
        return json.loads(scoring_server.invocations(json.dumps(body), "application/json", model, None).response)

    return post


@pytest.fixture(scope="session")
def base_engine(base_folder: Path) -> Iterator:
    from forge.serving.engine import GenerationThread

    engine = GenerationThread(base_folder)
    yield engine
    engine.close()

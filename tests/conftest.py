"""What several test folders need: a model that trains in milliseconds, and data for it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)
from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.pack import PackedRows
from forge.data.tokens import Sequences
from forge.models import Loaded, scratch
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Data, Document, Packing
from forge.values import OverLength
from tests import mlflow_server
from tests.place import Place, Told, opened

_SENTENCES = (
    "the cat sat on the mat and looked at the hill",
    "a dog ran over the hill, sat down and barked",
    "def add(a, b):\n    return a + b\n",
    "hi there, how is the cat today?",
)


def _sentences(number: int, source: str) -> str:
    return "\n".join(f"{source} {number}, line {line}: {_SENTENCES[(number + line) % len(_SENTENCES)]}" for line in range(number % 3 + 1))


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Loaded]:
    """make_tiny_model(seed=0): a new Qwen3 of about 10,000 random weights (2 blocks, 288 tokens) with its byte-level tokenizer."""

    def make(seed: int = 0) -> Loaded:
        def unused(uri: str) -> tuple:
            raise AssertionError("a model from scratch downloads nothing")

        sizes = {"vocab_size": 288, "hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_size": 32}
        return scratch.build(lambda: iter(_SENTENCES), seed, unused, **sizes, max_positions=256)

    return make


@pytest.fixture(scope="session")
def pack_rows() -> Callable[..., PackedRows]:
    """pack_rows(documents, ids, row, …): one source's rows from lists of tokens, `row` tokens wide; targets: beside each, which are."""

    def make(
        documents: Sequence[Sequence[int]],
        ids: Sequence[str],
        row: int,
        packed: bool = True,
        policy: OverLength = "split",
        targets: Sequence[Sequence[bool]] | None = None,
        name: str = "a",
    ) -> PackedRows:
        joined = np.concatenate([np.asarray(document, dtype=np.int32) for document in documents])
        mask = None if targets is None else np.concatenate([np.asarray(each, dtype=bool) for each in targets])
        borders = np.cumsum([0, *map(len, documents)])
        return PackedRows(name, Sequences(joined, borders, mask, ids), np.arange(len(documents)), row, packed, policy)

    return make


@pytest.fixture
def toy_data(make_tiny_model: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Two sources mixed 3 : 1: "short" (120 documents of a line or two) and "long" (12 of about 40 lines), in rows of 33 tokens."""
    sources = {
        "short": lambda: [Document(f"short/{n}", _sentences(n, "short"), "made up") for n in range(120)],
        "long": lambda: [Document(f"long/{n}", "\n".join(_sentences(n + 20 * k, "long") for k in range(20)), "made up") for n in range(12)],
    }
    weights = {"short": SourceSpec({}, 3.0), "long": SourceSpec({}, 1.0)}
    spec = DataSpec(weights, sequence_length=32, valid_fraction=0.25, split_seed=0)
    cache, encoder = Cache(tmp_path_factory.mktemp("cache"), 1.0), Encoder(make_tiny_model().tokenizer)
    corpus = data.read(spec, sources, {}, cache)
    return data.build(corpus, spec, EvaluationSpec(max_tokens=2000), encoder, cache, batch_rows=2, seed=0, packing=Packing(True, "a test"))


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all tests that track: making a store takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the test, with its tracking store. Choose experiment and model names of the test's own."""
    monkeypatch.setenv("FORGE_HOME", str(shared_home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shared_home


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on PostgreSQL and an S3-compatible store."""
    if missing := mlflow_server.missing():
        pytest.skip(f"{missing} is not installed")
    with mlflow_server.running(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A user's folder, and a root for results, of the module's own."""
    with opened(tmp_path_factory.mktemp("user")) as found:
        yield found


@pytest.fixture(scope="module")
def tales(request: pytest.FixtureRequest, place: Place) -> Iterator[Told]:
    told = Told(request, place)
    yield told
    told.close()


@pytest.fixture
def told(request: pytest.FixtureRequest, tales: Told) -> Any:
    return tales.by(request.node)

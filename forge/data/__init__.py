"""Documents in, batches and a ledger of counts out. read() needs no tokenizer, build() does.

Cost: one pass over the text and one tokenisation, tokens kept as int32.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from forge.data import unigram
from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.data.split import Split, split
from forge.errors import DataError
from forge.spec import Batch, Data, DataSpec, Document, EvaluationSpec, Ledger


class Tokenizer(Protocol):
    """What the data path asks of a tokenizer; ids are ints. `encode` puts the model's own start token, if it has one, in front."""

    eos_token_id: int

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Corpus:
    """Documents read and split, not yet tokenised."""

    splits: Mapping[str, Split]
    weights: Mapping[str, float]

    def training_texts(self) -> Iterator[str]:
        """The training text of every source in use, for a tokenizer to be made from."""
        return (d.text for name, s in self.splits.items() if self.weights[name] > 0 for d in s.train)


def read(spec: DataSpec, sources: Mapping[str, Callable[[], Iterable[Document]]]) -> Corpus:
    """Read every source, drop exact duplicates, split by document. Raises DataError."""
    return Corpus(
        splits=split({name: source() for name, source in sources.items()}, spec.valid_fraction, spec.split_seed),
        weights={name: s.weight for name, s in spec.sources.items()},
    )


def build(
    corpus: Corpus, spec: DataSpec, evaluation: EvaluationSpec, tokenizer: Tokenizer, batch_rows: int, seed: int, isolated: bool
) -> Data:
    """Tokenise, pack and mix. `isolated`: whether the model keeps packed documents apart; if not, each piece has its own row."""
    row = spec.sequence_length + 1  # the last token of a row is a target only, the first an input only
    train: dict[str, PackedRows] = {}
    valid: dict[str, tuple[Batch, ...]] = {}
    counts: dict[str, float] = {}
    valid_bytes: dict[str, int] = {}
    token_counts = np.zeros(0, dtype=np.int64)
    validation: dict[str, list[np.ndarray]] = {}

    for name, side in corpus.splits.items():
        documents = _tokenise(side.train, tokenizer)
        train[name] = PackedRows(documents, [d.id for d in side.train], row, isolated)
        if corpus.weights[name] > 0:
            token_counts = unigram.add(token_counts, documents)
        if not len(train[name]):
            raise DataError(f"source {name!r}: no training document has two tokens")
        held_out = _fixed_validation(side.valid, tokenizer, evaluation.max_tokens)
        if not held_out:
            raise DataError(f"source {name!r}: no validation document has two tokens")
        validation[name] = [tokens for _, tokens in held_out]
        valid_bytes[name] = sum(len(d.text.encode("utf-8", "surrogatepass")) for d, _ in held_out)
        rows = PackedRows(validation[name], [d.id for d, _ in held_out], row, isolated)
        numbers = range(len(rows))
        valid[name] = tuple(rows.batch(numbers[start : start + batch_rows]) for start in range(0, len(rows), batch_rows))
        counts |= _count(name, side, documents, train[name], validation[name])

    mixture = Mixture(train, corpus.weights, batch_rows, seed)
    used = [rows for name, rows in train.items() if corpus.weights[name] > 0]
    total = sum(corpus.weights.values())
    counts |= {f"data/{name}/weight": weight / total for name, weight in corpus.weights.items()}
    return Data(
        train=mixture,
        valid=valid,
        ledger=_ledger(corpus, counts, validation, f"rows of {row}"),
        epoch_tokens=int(sum(rows.targets.sum() for rows in used)),
        tokens_per_row=mixture.tokens_per_row,
        unigram={name: unigram.loss(token_counts, documents) for name, documents in validation.items()},
        valid_bytes=valid_bytes,
    )


def _tokenise(documents: Iterable[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Each document's ids with the end-of-text token behind them."""
    return [np.array([*tokenizer.encode(d.text), tokenizer.eos_token_id], dtype=np.int32) for d in documents]


def _fixed_validation(documents: Iterable[Document], tokenizer: Tokenizer, max_tokens: int) -> list[tuple[Document, np.ndarray]]:
    """Whole documents and their ids, in the order of the hash of their key, up to the one that would pass `max_tokens` targets.

    At least one. The order is arbitrary but fixed: it favours no folder, no alphabet and no length.
    """
    kept: list[tuple[Document, np.ndarray]] = []
    targets = 0
    for document in sorted(documents, key=lambda d: hashlib.sha256(d.key.encode("utf-8", "surrogatepass")).digest()):
        (tokens,) = _tokenise([document], tokenizer)
        targets += len(tokens) - 1
        if kept and targets > max_tokens:
            break
        if len(tokens) > 1:
            kept.append((document, tokens))
    return kept


def _count(name: str, side: Split, documents: list[np.ndarray], rows: PackedRows, evaluated: list[np.ndarray]) -> dict[str, float]:
    prefix = f"data/{name}"
    return {
        f"{prefix}/rows_in": side.rows_in,
        f"{prefix}/rows_duplicate": side.duplicates,
        f"{prefix}/rows_empty": side.empty,
        f"{prefix}/rows_train": len(side.train),
        f"{prefix}/rows_valid": len(side.valid),
        f"{prefix}/tokens_train": sum(len(d) for d in documents),
        f"{prefix}/targets_train": int(rows.targets.sum()),
        f"{prefix}/rows_evaluated": len(evaluated),
        f"{prefix}/targets_evaluated": sum(len(d) - 1 for d in evaluated),
        f"{prefix}/rows_packed": len(rows),
        f"{prefix}/padding_share": rows.padding_share,
    }


def _ledger(corpus: Corpus, counts: Mapping[str, float], validation: Mapping[str, list[np.ndarray]], context: str) -> Ledger:
    """`context`: how the validation tokens lie in rows; what a token can see moves its loss."""
    digests = {name: side.digest for name, side in corpus.splits.items()}
    held_out = {name: _digest(np.concatenate(documents).tobytes()) for name, documents in validation.items()} | {"": context}
    return Ledger(dict(counts), digest=_digest(_listing(digests)), valid_digest=_digest(_listing(held_out)), source_digests=digests)


def _listing(digests: Mapping[str, str]) -> bytes:
    return "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Rows to token ids and target masks: the one place that decides both.

Documents cost one call of the tokenizer's own batch routine, on all cores and without the interpreter lock. Conversations cost
some 0.2 ms each to render, under a lock, and their tokenisation.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from forge.data.render import Rendered, render
from forge.data.templates import Template
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Document, Preference
from forge.values import Mask


@dataclass(frozen=True)
class Encoded:
    """One row.

    ids          int32 (T,)
    targets      bool (T,); None: every token but the first is a target (documents)
    target_bytes UTF-8 bytes of the text that the targets spell; added tokens, such as the end of a turn, spell none
    notes        short codes of what is not as the row said (see Rendered)
    """

    ids: np.ndarray
    targets: np.ndarray | None
    target_bytes: int
    notes: tuple[str, ...] = ()


class Encoder:
    """Encodes with a fast transformers tokenizer, bare or in mlx-lm's wrapper; safe to share between threads.

    template: jinja text that takes the place of the tokenizer's own chat template. Other tokenizers, which have `encode` and
    `eos_token_id` only, encode documents one by one. Raises DataError for a tokenizer without an end token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, mask: Mask = "assistant"):
        self._tokenizer, self.mask = tokenizer, mask
        if tokenizer.eos_token_id is None:
            raise DataError("this tokenizer has no end-of-text token, so documents can't be told apart; set eos_token in its configuration")
        self.eos_token_id = int(tokenizer.eos_token_id)
        self._source = template or _own_template(tokenizer)
        self.template_digest = _digest(self._source) if self._source else ""
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._backend = _copy_of(getattr(tokenizer, "backend_tokenizer", None))
        if self._backend is None:
            vocabulary = sorted(getattr(tokenizer, "get_vocab", dict)().items())
            spelt = list(tokenizer.encode("abcdefghijklmnopqrstuvwxyz"))
            self.digest = _digest(f"{type(tokenizer).__qualname__} {vocabulary} {spelt} {self.eos_token_id}")
            self.vocab_size: int = getattr(tokenizer, "vocab_size", 2**16)
            return
        # The flag is not in the backend's file, and not carried over by a copy.
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self.digest = _digest(f"{self._backend.to_str()} {self.eos_token_id} {tokenizer.split_special_tokens}")
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self._ends_itself = self._backend.encode("a").ids[-1:] == [self.eos_token_id]

    def encode(self, rows: Sequence[Document | Conversation | Preference]) -> list[Encoded | BadRow]:
        """One result a row, in order. A preference is encoded with the chosen answer, else the rejected one, and serves for counting.

        BadRow: lone_surrogate, and for conversations template_refused, template_mask, no_target. An empty document is its end token.
        Memory is that of the tokenizer's own results, some 100 bytes a token: give it a few megabytes of text at a time.
        Raises DataError for conversations where there is no chat template.
        """
        results: dict[int, Encoded | BadRow] = {}
        documents: dict[int, str] = {}
        conversations: dict[int, Conversation] = {}
        for n, row in enumerate(rows):
            if isinstance(row, Document):
                documents[n] = row.text
            else:
                conversations[n] = _conversation(row)
        results |= self._documents(documents, rows)
        if conversations:
            results |= self._conversations(conversations)
        return [results[n] for n in range(len(rows))]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that ids spell, special tokens included."""
        listed = np.asarray(ids).tolist()
        return self._tokenizer.decode(listed) if self._backend is None else self._backend.decode(listed, skip_special_tokens=False)

    def spelt(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of the text that ids spell; added tokens, such as the end of a turn, spell none."""
        text = ids[~self._added_V[ids]] if self._backend is not None else ids[ids != self.eos_token_id]
        return len(self.decode(text).encode("utf-8", "replace")) if len(text) else 0

    def _spelt_by(self, id: int) -> int:
        """spelt() of one id, remembered."""
        if self._backend is None:
            return 0  # taken for the start token that such a tokenizer puts in front
        if id not in self._sizes:
            token, whole = self._backend.id_to_token(id), "\ufffd" not in self.decode([id])
            # A part of a character: a byte fallback, or in a byte-level vocabulary a letter for each byte.
            self._sizes[id] = self.spelt(np.array([id])) if whole else 1 if token.startswith("<0x") else len(token)
        return self._sizes[id]

    # ---- documents --------------------------------------------------------------------------------------------------------

    def _documents(self, texts: dict[int, str], rows: Sequence[Any]) -> dict[int, Encoded | BadRow]:
        results: dict[int, Encoded | BadRow] = {}
        sizes: dict[int, int] = {}
        for n, text in texts.items():
            size = _bytes(text)
            if size is None:
                results[n] = _surrogate(rows[n].origin)
            else:
                sizes[n] = size
        for n, ids in zip(sizes, self._tokenise([texts[n] for n in sizes]), strict=True):
            results[n] = Encoded(ids, None, sizes[n] - self._spelt_by(int(ids[0])))  # the first token is no target
        return results

    def _tokenise(self, texts: list[str]) -> list[np.ndarray]:
        """What the tokenizer's encode() gives for each, with the end token behind."""
        if self._backend is None:
            return [np.array([*self._tokenizer.encode(text), self.eos_token_id], dtype=np.int32) for text in texts]
        encodings = self._backend.encode_batch_fast(texts)
        return [self._ended(encoding.ids) for encoding in encodings]

    def _ended(self, ids: list[int]) -> np.ndarray:
        if not self._ends_itself:
            ids.append(self.eos_token_id)
        return np.fromiter(ids, dtype=np.int32, count=len(ids))

    # ---- conversations ----------------------------------------------------------------------------------------------------

    def _conversations(self, rows: dict[int, Conversation]) -> dict[int, Encoded | BadRow]:
        with self._lock:  # a compiled template keeps state while it renders
            template, backend = self._chat
            rendered = {n: render(row, template, self.mask) for n, row in rows.items()}
        results: dict[int, Encoded | BadRow] = {n: each for n, each in rendered.items() if isinstance(each, BadRow)}
        good = {n: each for n, each in rendered.items() if isinstance(each, Rendered)}
        for n in [n for n, each in good.items() if _bytes(each.text) is None]:
            results[n] = _surrogate(rows[n].origin)
            del good[n]
        encodings = backend.encode_batch([each.text for each in good.values()], add_special_tokens=False)
        for (n, each), encoding in zip(good.items(), encodings, strict=True):
            results[n] = self._masked(each, encoding, rows[n].origin)
        return results

    def _masked(self, rendered: Rendered, encoding: Any, origin: str) -> Encoded | BadRow:
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        spans = rendered.spans
        if self.mask == "all":
            spans = ((int(offsets[0, 1]) if len(ids) else 0, len(rendered.text)),)
            targets = np.ones(len(ids), dtype=bool)
        else:
            targets = _inside(offsets, spans, self._added_V[ids])
        targets[:1] = False
        if not targets.any():
            return BadRow(origin, "no_target", "no token is left to learn; drop the row or look at what its template makes of it")
        size = sum(len(rendered.text[start:stop].encode()) for start, stop in spans)
        added = sum(len(rendered.text[start:stop].encode()) for start, stop in offsets[targets & self._added_V[ids]])
        return Encoded(ids, targets, size - added, rendered.notes)

    @cached_property
    def _added_V(self) -> np.ndarray:
        """Which ids are added tokens."""
        added = np.zeros(self.vocab_size, dtype=bool)
        added[list(self._backend.get_added_tokens_decoder())] = True
        return added

    @cached_property
    def _chat(self) -> tuple[Template, Any]:
        """The chat template, and a copy of the tokenizer, which takes special tokens in text for what they are and gives true offsets."""
        if self._backend is None:
            raise DataError("conversations need a fast tokenizer, one that has a tokenizer.json; this one encodes documents only")
        if not self._source:
            raise DataError("this tokenizer has no chat template: set data.template=simple, or to the path of a .jinja file")
        backend = _copy_of(self._backend)
        backend.post_processor = None  # some trim white space off offsets; what else they add is the template's to write
        variables = dict(self._tokenizer.special_tokens_map)
        if hasattr(self._tokenizer, "has_thinking"):
            variables["enable_thinking"] = self._tokenizer.has_thinking  # as mlx-lm's wrapper asks when it serves
        added = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
        end_ids = getattr(self._tokenizer, "eos_token_ids", self.eos_token_id)  # several in mlx-lm's wrapper, else one
        ends = [backend.id_to_token(n) for n in (end_ids if isinstance(end_ids, set) else {self.eos_token_id})]
        return Template(self._source, variables, added, [token for token in ends if token]), backend


def _own_template(tokenizer: Any) -> str | None:
    own = getattr(tokenizer, "chat_template", None)
    return own.get("default") if isinstance(own, dict) else own


def _copy_of(backend: Any) -> Any:
    """A tokenizer of our own, which cuts and pads nothing: calls of the user's on theirs set what ours would do."""
    from tokenizers import Tokenizer

    if not isinstance(backend, Tokenizer):
        return None
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _conversation(row: Conversation | Preference) -> Conversation:
    return row if isinstance(row, Conversation) else Conversation(row.id, (*row.prompt, *(row.chosen or row.rejected)), row.origin)


def _inside(offsets: np.ndarray, spans: Sequence[tuple[int, int]], added: np.ndarray) -> np.ndarray:
    """Which tokens (first and behind-last character each, N x 2) overlap a span.

    `added` (N,): an added token that begins before a span is the header's, even where it takes in white space behind it.
    """
    first, behind = offsets[:, 0], offsets[:, 1]
    inside = np.zeros(len(offsets), dtype=bool)
    for start, stop in spans:
        inside |= (first < stop) & (behind > start) & ~(added & (first < start))
    return inside


def _bytes(text: str) -> int | None:
    """UTF-8 bytes; None for text that has no UTF-8."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _surrogate(origin: str) -> BadRow:
    return BadRow(origin, "lone_surrogate", "it holds half of a UTF-16 pair (\\ud800 to \\udfff), which is no text; mend or drop the row")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

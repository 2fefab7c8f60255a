"""What a model answers to held-out questions: the last turn of conversations that it was not trained on, token by token the likeliest.

A question is what stands before the last answer's targets in its row, to the token as in training. Of plain text, continuations() gives
what the model writes on, which is no answer. Cost: one pass over each prompt, then one step a token for up to 32 of them together, fewer
where their caches would hold more than 16,384 positions; models whose caches can't stand in a batch go one by one.
"""

import hashlib
import heapq
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge.evaluation.turns import Turns
from forge.models import Loaded
from forge.spec import Batch, Data
from forge.training.evaluate import document_names, evaluating

Written = tuple[tuple[int, ...], bool]  # tokens, and whether an end token came after them
Suffices = Callable[[Sequence[int]], bool]
Enough = Callable[[int, Sequence[int]], bool]

_SLOTS, _PREFILL, _POSITIONS = 32, 8, 2**14
_CHUNK = 128  # prompts of like length that share one generator
_BEGINNING = 32  # tokens of plain text to go on from


@dataclass(frozen=True)
class Answer:
    """`tokens`: what was generated, without the token that ended it. `ended`: whether such a token came before the limit.

    `reference`: the answer in the data, likewise; `document`: the conversation's name. `question`: False for plain text. `asked`: of the
    prompt what is to be read: the last user turn, or the plain text, without the template's words and special tokens.
    """

    source: str
    prompt: str
    reference: str
    text: str
    tokens: tuple[int, ...]
    ended: bool
    document: str = ""
    question: bool = True
    asked: str = ""


@dataclass(frozen=True)
class _Question:
    source: str
    document: str
    prompt: tuple[int, ...]
    reference: tuple[int, ...]
    whole: bool  # the reference ends with a token that ends a turn

    @property
    def rank(self) -> tuple[bool, bytes, str]:
        """An order that favours no length and no alphabet, whatever rows the question lies in."""
        return not self.whole, hashlib.sha256(self.document.encode()).digest(), self.document


def answers(loaded: Loaded, data: Data, most: int, max_tokens: int) -> list[Answer]:
    """To at most `most` questions a source, always the same ones; of at most `max_tokens` tokens each. Empty where all is plain text."""
    return _written(loaded, _questions(loaded.tokenizer, data, most), max_tokens)


def continuations(loaded: Loaded, data: Data, most: int, max_tokens: int) -> list[Answer]:
    """Of at most `most` plain texts a source: the first 32 tokens, and what the model writes after them. `ended` means little here."""
    found = [
        question
        for source, batches in data.valid_full.items()
        for question in heapq.nsmallest(most, _beginnings(source, batches, max_tokens), key=lambda each: each.rank)
    ]
    return [replace(each, question=False) for each in _written(loaded, found, max_tokens)]


def answered(loaded: Loaded, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[str, tuple[int, ...], bool]]:
    """To each prompt, a token or more: text, tokens, and whether they ended by themselves. Nothing where the context has no room left."""
    context = {**loaded.config, **loaded.config.get("text_config", {})}.get("max_position_embeddings") or sys.maxsize
    rooms = [min(max_tokens, context - len(prompt)) for prompt in prompts]
    fitting = [n for n, room in enumerate(rooms) if room > 0]
    made = generate(loaded.model, loaded.tokenizer, [prompts[n] for n in fitting], [rooms[n] for n in fitting]) if fitting else []
    found = dict(zip(fitting, made, strict=True))
    written = (found.get(n, ((), False)) for n in range(len(prompts)))
    return [(loaded.tokenizer.decode(list(tokens)), tokens, ended) for tokens, ended in written]


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], most: Sequence[int], enough: Enough = lambda n, tokens: False
) -> list[Written]:
    """Of each prompt at most so many of the likeliest tokens, without an end token, and whether one came. Prompts hold a token or more.

    enough: given a prompt's number and its tokens after each, whether that is as far as anyone looks.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found: dict[int, Written] = {}
    with evaluating(model):
        together = _batchable(model)
        for start in range(0, len(order), _CHUNK):
            chosen = order[start : start + _CHUNK]
            asked, limits = [list(prompts[n]) for n in chosen], [most[n] for n in chosen]
            slots = at_once(len(asked[-1]) + max(limits))
            suffices: list[Suffices] = [partial(enough, n) for n in chosen]
            if together and slots > 1:
                made = _together(model, tokenizer, asked, limits, suffices, slots)
            else:
                made = [_alone(model, tokenizer, *each) for each in zip(asked, limits, suffices, strict=True)]
            found |= dict(zip(chosen, made, strict=True))
    return [found[n] for n in range(len(prompts))]


def at_once(tokens: int) -> int:
    """How many answers of at most so many tokens, their prompts' included, are generated together."""
    return max(1, min(_SLOTS, _POSITIONS // tokens))


def _together(
    model: nn.Module, tokenizer: Any, prompts: list[list[int]], most: list[int], enough: list[Suffices], slots: int
) -> list[Written]:
    from mlx_lm.generate import BatchGenerator

    ends = [[token] for token in sorted(tokenizer.eos_token_ids)]
    generator = BatchGenerator(model, stop_tokens=ends, completion_batch_size=slots, prefill_batch_size=min(_PREFILL, slots))
    try:
        ids = generator.insert(prompts, most)
        tokens: dict[int, list[int]] = {uid: [] for uid in ids}
        suffices = dict(zip(ids, enough, strict=True))
        ended: set[int] = set()
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason == "stop":
                    ended.add(response.uid)
                else:
                    tokens[response.uid].append(int(response.token))
                    if response.finish_reason is None and suffices[response.uid](tokens[response.uid]):
                        generator.remove([response.uid])
    finally:
        generator.close()
    return [(tuple(tokens[uid]), uid in ended) for uid in ids]


def _alone(model: nn.Module, tokenizer: Any, prompt: list[int], most: int, enough: Suffices) -> Written:
    from mlx_lm.generate import generate_step

    made: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=most):
        if token in tokenizer.eos_token_ids:
            return tuple(made), True
        made.append(int(token))
        if enough(made):
            break
    return tuple(made), False


def _batchable(model: nn.Module) -> bool:
    from mlx_lm.models.cache import make_prompt_cache

    return all(hasattr(part, "merge") for cache in make_prompt_cache(model) for part in getattr(cache, "caches", (cache,)))


def _written(loaded: Loaded, questions: Sequence[_Question], max_tokens: int) -> list[Answer]:
    decode = loaded.tokenizer.decode
    made = answered(loaded, [each.prompt for each in questions], max_tokens)
    turns = Turns.of(loaded.tokenizer)
    return [
        Answer(
            each.source,
            decode(list(each.prompt)),
            decode(list(each.reference)),
            text,
            tokens,
            ended,
            each.document,
            asked=turns.last(decode(list(each.prompt))) or decode(list(each.prompt), skip_special_tokens=True).strip(),
        )
        for each, (text, tokens, ended) in zip(questions, made, strict=True)
    ]


# ---- which -------------------------------------------------------------------------------------------------------------


def _questions(tokenizer: Any, data: Data, most: int) -> list[_Question]:
    """Answers that a row cuts short are asked for only in a source where no answer ends with an end token."""
    ends = {*tokenizer.eos_token_ids, *getattr(tokenizer, "all_special_ids", ())}
    found: list[_Question] = []
    for source, batches in data.valid_full.items():
        first = heapq.nsmallest(most, _asked(source, batches, ends), key=lambda each: each.rank)
        found += [each for each in first if each.whole or not first[0].whole]
    return found


def _asked(source: str, batches: Sequence[Batch], ends: set[int]) -> Iterator[_Question]:
    for document, tokens_T, mask_T in _documents(batches):
        stop = len(mask_T) - int(np.argmax(mask_T[::-1]))  # behind the last target
        start = stop - int(np.argmin(mask_T[:stop][::-1]))  # the first of the last targets in one piece
        if start < 2 or not mask_T.any():
            continue  # plain text, or an answer whose question a cut took away
        reference = tokens_T[start:stop].tolist()
        whole = reference[-1] in ends
        yield _Question(source, document, tuple(tokens_T[:start].tolist()), tuple(reference[: len(reference) - whole]), whole)


def _beginnings(source: str, batches: Sequence[Batch], max_tokens: int) -> Iterator[_Question]:
    for document, tokens_T, mask_T in _documents(batches):
        size = min(_BEGINNING, len(tokens_T) // 2)
        if size and mask_T[1:].all():
            ids = tokens_T.tolist()
            yield _Question(source, document, tuple(ids[:size]), tuple(ids[size : size + max_tokens]), whole=False)


def _documents(batches: Sequence[Batch]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each piece in the rows: its document, tokens and targets."""
    for batch in batches:
        for row_id, tokens_T, mask_T, segments_T in zip(batch.row_ids, batch.tokens_BT, batch.mask_BT, batch.segments_BT, strict=True):
            sizes = np.bincount(segments_T)[1:].tolist()
            for nth, document in enumerate(document_names(row_id, sizes), start=1):
                own = segments_T == nth
                yield document, tokens_T[own], mask_T[own]

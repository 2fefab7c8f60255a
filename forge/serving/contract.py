"""What goes into the generation thread, and what comes out of it."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to continue. The one place of the defaults.

    max_tokens          at most so many new tokens, the end token included; fewer where the context ends. 0: none, with echo.
    temperature         0: always the likeliest token.
    top_p, top_k, min_p 1, 0 and 0: no restriction.
    repetition_penalty  divides the logits of the last 20 tokens, the prompt's too (multiplies where negative); 1: none.
    presence_penalty    off the logit of each token that the completion holds; 0: none.
    frequency_penalty   off the logit of each token as often as the completion holds it; 0: none.
    seed                equal seeds give equal texts on one machine; None: another text each time.
    stop                the text ends before the first of these.
    logprobs            None: none; k: the log-probability of each token, and the k likeliest, before temperature and filters.
    echo                the prompt's tokens too, in Completion.prompt, with log-probabilities where `logprobs` is given.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False


@dataclass(frozen=True)
class Token:
    """`text`: what this token alone stands for, U+FFFD for a part of a character; the end token has its own, "<|im_end|>" or so.

    `logprob`: in nats, None where it isn't known (the first of a prompt) or wasn't asked for. `top`: the likeliest, best first.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A bit more of the text. The pieces of a completion, put together, are its text, and their tokens its tokens.

    What may turn out to be the beginning of a stop string, or of a character, waits for the piece that decides.
    `thinking`: the completion as a whole begins inside a thought, which the prompt opened.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    thinking: bool = False


@dataclass(frozen=True)
class Completion:
    """`completion_tokens`: those the model generated, an end token and those of a stop string included.

    `finish_reason`: "stop" at the end token or a stop string, "length" where max_tokens or the context ended it.
    `tokens`: where the sampling asked for log-probabilities, those generated, an end token too, but none from a stop string on.
    `prompt`: where it asked for echo.
    `cached_tokens`: of the prompt's, those that a kept prefix saved computing. `thinking`: as in Piece.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Reason
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()
    cached_tokens: int = 0
    thinking: bool = False


@dataclass(frozen=True)
class Stats:
    """active and queued: requests now. The rest: since the model was loaded, failed and cancelled requests' tokens included.

    requests           accepted so far
    prompt_tokens      of the prompts begun, cached ones included
    completion_tokens  generated
    cached_tokens      of prompt_tokens, those that a kept prefix saved computing
    memory_gib         what MLX holds now in this process, its weights included
    peak_memory_gib    the most so far
    prompt_cache_gib   of that, kept prefixes
    """

    active: int = 0
    queued: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    memory_gib: float = 0.0
    peak_memory_gib: float = 0.0
    prompt_cache_gib: float = 0.0

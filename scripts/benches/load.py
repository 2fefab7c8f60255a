"""Several clients ask one forge.serve for minutes; afterwards nothing may be lost, miscounted, changed, leaked or slow to answer /health.

    scripts/bench load --minutes 10 [--clients 8] [--model FOLDER]

Requests are chats or completions, streamed or not, with one seed for each of a few prompts. An answer is wrong where its text isn't that
of its prompt and seed before, or where its counts of tokens aren't those of the tokenizer and of max_tokens. A client also leaves in the
middle now and then. Leaves with 1 where a bar is missed. Costs the time asked for and a few seconds.
"""

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))

_SIZE = "8M"
_PROMPTS = 12
_LEAVES = 0.03  # share of streams
_HEALTH_MS, _GROWTH = 100.0, 0.05
_WARM_UP = 0.1  # of the time: not part of the first half's memory


@dataclass
class Seen:
    """What the clients saw. `texts`: of each request so far, by what it asked."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    left: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    health_ms: list[float] = field(default_factory=list)
    memory_gib: list[tuple[float, float]] = field(default_factory=list)  # when, and how much


def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="forge-load-") as place:
        folder = Path(asked.model) if asked.model else _made(Path(place, "model"))
        process, port = _started(folder, Path(place, "log"))
        try:
            seen, took = _load(asked, folder, port)
        finally:
            process.terminate()
            code = process.wait(30)
    return _told(seen, asked, took, code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", help="a folder; without it, one of 8 million random weights is made")
    parser.add_argument("--most-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--no-memory", action="store_true", help="leave memory and /health out of the bars: too short, or a shared machine")
    return parser.parse_args()


def _made(folder: Path) -> Path:
    """Words only, and a template, so that chats work."""
    from train_setup import SIZES, make_folder

    import forge  # noqa: F401  (before mlx)

    make_folder(SIZES[_SIZE], folder)
    template = "{% for m in messages %}w1 {{ m['content'] }} w2 {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def _started(folder: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-m", "forge.serve", f"model={folder}", "port=0", "timeout_s=120"]
    environment = {**os.environ, "PYTHONPATH": str(_HERE.parents[1])}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("serving"):
                return process, int(line.split("127.0.0.1:")[1].split("/")[0])
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")


def _load(asked: argparse.Namespace, folder: Path, port: int) -> tuple[Seen, float]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    bodies = _bodies(tokenizer, asked.most_tokens)
    seen, began, ended = Seen(), time.monotonic(), threading.Event()
    threads = [threading.Thread(target=_client, args=(port, bodies, number, seen, ended)) for number in range(asked.clients)]
    threads.append(threading.Thread(target=_watch, args=(port, seen, ended)))
    for thread in threads:
        thread.start()
    ended.wait(asked.minutes * 60)
    ended.set()
    for thread in threads:
        thread.join(150)
        if thread.is_alive():
            seen.lost.append("a client still waits")
    return seen, time.monotonic() - began


def _bodies(tokenizer: Any, most: int) -> list[tuple[str, dict[str, Any], int]]:
    """Route, body, and how many tokens its prompt has."""
    random.seed(0)
    found: list[tuple[str, dict[str, Any], int]] = []
    for number in range(_PROMPTS):
        text = " ".join(f"w{random.randrange(3, 4000)}" for _ in range(random.choice([4, 30, 200])))
        settings = {"seed": number, "max_tokens": random.randrange(4, most + 1), "temperature": random.choice([0, 1])}
        if number % 2:
            messages = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            found.append(("chat/completions", {"messages": messages, **settings}, len(ids)))
        else:
            found.append(("completions", {"prompt": text, **settings}, len(tokenizer.encode(text))))
    return found


def _client(port: int, bodies: list[tuple[str, dict[str, Any], int]], number: int, seen: Seen, ended: threading.Event) -> None:
    chance = random.Random(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=140)
    while not ended.is_set():
        route, body, prompt_tokens = chance.choice(bodies)
        stream = chance.random() < 0.5
        leaves = stream and chance.random() < _LEAVES
        began = time.monotonic()
        try:
            if leaves:
                _ask(connection, route, body, stream).read(20)
                connection.close()
                seen.left += 1
                continue
            answer = _ask(connection, route, body, stream)
            raw = answer.read()
            assert answer.status == 200, f"{answer.status}: {raw[:200]!r}"
            took, said = time.monotonic() - began, _joined(raw) if stream else _whole(json.loads(raw))
        except Exception as error:  # no connection, half an answer, none that can be read: a client that died of it would miss nothing
            seen.lost.append(f"{type(error).__name__}: {error}")
            connection.close()
            continue
        seen.seconds.append(took)
        _check(seen, route, body, prompt_tokens, *said)


def _ask(connection: http.client.HTTPConnection, route: str, body: dict[str, Any], stream: bool) -> http.client.HTTPResponse:
    asked = {**body, **({"stream": True, "stream_options": {"include_usage": True}} if stream else {})}
    connection.request("POST", f"/v1/{route}", json.dumps(asked), {"Content-Type": "application/json"})
    return connection.getresponse()


def _whole(answer: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
    (choice,) = answer["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"], choice["finish_reason"], answer["usage"]


def _joined(raw: bytes) -> tuple[str, str, dict[str, int]]:
    """A stream's text, its reason to end and its counts. Raises where it isn't whole."""
    *events, last = [event.removeprefix("data: ") for event in raw.decode().strip().split("\n\n")]
    assert last == "[DONE]", f"a stream ended with {last[:200]}"
    chunks = [json.loads(event) for event in events]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)
    return text, next(choice["finish_reason"] for choice in choices if choice["finish_reason"]), chunks[-1]["usage"]


def _check(seen: Seen, route: str, body: dict[str, Any], prompt_tokens: int, text: str, reason: str, usage: dict[str, int]) -> None:
    most, generated = body["max_tokens"], usage["completion_tokens"]
    seen.tokens += generated
    if usage["prompt_tokens"] != prompt_tokens or usage["total_tokens"] != prompt_tokens + generated:
        seen.wrong.append(f"{usage} for a prompt of {prompt_tokens}")
    if generated != most if reason == "length" else not 0 < generated <= most:
        seen.wrong.append(f"{generated} tokens of {most}, ended by {reason}")
    if seen.texts.setdefault(f"{route} {json.dumps(body)}", text) != text:
        seen.wrong.append(f"another text for seed {body['seed']}, {route}")


def _watch(port: int, seen: Seen, ended: threading.Event) -> None:
    """/health on a connection of its own each time, as a load balancer asks it."""
    began = time.monotonic()
    while not ended.wait(0.1):
        asked = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            seen.health_ms.append(1e3 * (time.monotonic() - asked))
            connection.request("GET", "/stats")
            seen.memory_gib.append((time.monotonic() - began, json.loads(connection.getresponse().read())["process_gib"]))
        except Exception as error:
            seen.lost.append(f"/health or /stats: {type(error).__name__}: {error}")
        connection.close()


def _told(seen: Seen, asked: argparse.Namespace, took: float, code: int) -> int:
    """Print what was seen; the exit code."""
    seconds, health = sorted(seen.seconds), sorted(seen.health_ms)
    if not health or not seen.memory_gib:
        raise SystemExit(f"the server answered neither /health nor /stats: {seen.lost[:5]}")
    end = seen.memory_gib[-1][0]
    halves = [[gib for at, gib in seen.memory_gib if low * end <= at <= high * end] for low, high in ((_WARM_UP, 0.5), (0.5, 1.0))]
    first, second = (sum(half) / max(1, len(half)) for half in halves)
    print(f"{asked.clients} clients, {took:.0f} s: {len(seconds)} answers, {seen.left} left in the middle, {len(seen.lost)} lost")
    print(f"wrong: {len(seen.wrong)}; {len(seen.texts)} requests that differ, each asked many times; the server's exit code {code}")
    print(f"latency p50 {_at(seconds, 0.5):.3f} s, p95 {_at(seconds, 0.95):.3f} s")
    print(f"{seen.tokens / took:,.0f} tokens/s, {len(seconds) / took:.1f} answers/s")
    print(f"/health p50 {_at(health, 0.5):.1f} ms, p99 {_at(health, 0.99):.1f} ms, worst {health[-1]:.1f} ms of {len(health)}")
    print(f"memory {first:.3f} GiB in the first half (after {_WARM_UP:.0%} of it), {second:.3f} in the second: {second / first - 1:+.1%}")
    for what in (*seen.lost[:5], *seen.wrong[:5]):
        print(f"  {what}", file=sys.stderr)
    missed = bool(seen.lost or seen.wrong or not seconds) or code != 143
    if not asked.no_memory:
        missed = missed or health[-1] > _HEALTH_MS or second > first * (1 + _GROWTH)
    return int(missed)


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())

"""python -m forge.chat as a person meets it: through a pipe and in a terminal, on a model of a few thousand weights. SRV-8."""

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from rich.console import Console

from forge import chat
from forge.console import files, settings
from forge.console.lines import Lines
from forge.console.safe import plain, whole
from forge.console.side import Reply
from forge.console.turns import History, Turn
from forge.console.view import Pieces, Stream
from forge.errors import ConfigError, ServingError
from forge.serving.body import ChatBody
from forge.serving.faults import PromptTooLong
from forge.serving.parts import Format
from forge.spec import Message

ROOT = Path(__file__).parents[1]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
# Makes its input the terminal that Ctrl-C comes from, and runs what its arguments say.
_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def models(make_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `talks` (256 tokens of context), `endless` (the same weights, whose texts have no end), `goes-on`, a base."""
    from mlx_lm.utils import save_config, save_model

    folder = tmp_path_factory.mktemp("models")
    for name, template, context in (("talks", TEMPLATE, 256), ("endless", TEMPLATE, 10**6), ("goes-on", None, 256)):
        loaded = make_tiny_model(seed=1)
        if name == "endless":  # every state has much of the first number, and the head, which is the embedding, counts it against the end
            loaded.model.model.embed_tokens.weight[:, 0] = 1.0
            loaded.model.model.embed_tokens.weight[loaded.config["eos_token_id"], 0] = -50.0
        (folder / name).mkdir()
        save_model(folder / name, loaded.model)
        save_config({**loaded.config, "max_position_embeddings": context}, folder / name / "config.json")
        loaded.tokenizer.chat_template = template
        loaded.tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def say(models: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """say(text, *words) -> the lines that a session with this input prints, which has to end well."""

    def session(text: str, *words: str) -> list[str]:
        command = [sys.executable, "-m", "forge.chat", *words]
        done = subprocess.run(command, input=text, cwd=models, env=_environment(tmp_path), capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    return session


class Terminal:
    """A process in a terminal of 100 columns."""

    def __init__(self, folder: Path, home: Path, *words: str):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        command = [sys.executable, "-c", _IN_TERMINAL, "-m", "forge.chat", *words]
        environment = _environment(home) | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def prompted(self) -> str:
        """Until it waits for what is typed, in a mode in which Ctrl-C is a key."""
        return self.until("\x1b[?2004h", ">\x08")

    def until(self, *words: str) -> str:
        """What came since the last call, up to where all the words have come."""
        end = time.monotonic() + 60
        while not all(word in self.seen for word in words):
            assert time.monotonic() < end and self._read(), f"{words} did not come: {self.seen!r}"
        seen, self.seen = self.seen, ""
        return seen

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 30)[0]:
            return False
        try:
            got = os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # how Linux tells the end
            return False
        self.seen += got
        return bool(got)


@pytest.fixture
def terminal(models: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open(*words: str) -> Terminal:
        opened.append(Terminal(models, tmp_path, *words))
        return opened[-1]

    yield open
    for each in opened:
        each.close()


def _environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FORGE_", "MLFLOW_"))}
    return kept | {"FORGE_HOME": str(home / "home"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def answers(lines: list[str]) -> list[str]:
    """What follows each line of the input that was no command, without notes."""
    found: list[str] = []
    taking = False
    for line in lines:
        if line.startswith("> "):
            taking = not line.startswith("> /") or line == "> /retry"
            found += [""] if taking else []
        elif taking and not line.startswith("["):
            found[-1] += line + "\n"
    return found


# ---- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_scripted_session(say: Callable[..., list[str]], models: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "chat.json"
    text = "hi\n/stats\nsecond\n/undo\n/retry\n/system be brief\n/save FILE\n/nonsense\n/set temperature=3\n/reset\n/retry\n"
    lines = say(text.replace("FILE", str(file)), "model=talks", "max_tokens=8", "seed=4")
    assert lines[0] == "talks: chat, context 256 tokens"
    measures = dict(line.split(maxsplit=1) for line in lines if line.startswith(("prompt", "answer ", "speed", "context", "memory")))
    prompt = len(AutoTokenizer.from_pretrained(models / "talks").encode("u:hi\na:", add_special_tokens=False))
    assert measures["prompt"] == f"{prompt} tokens, 0 of them cached"
    assert measures["answer"] == "8 tokens" and measures["context"] == f"{prompt + 8} of 256 tokens"
    assert "tokens/s" in measures["speed"] and "B" in measures["memory"]
    assert "[cut at max_tokens=8]" in lines and "[taken back: second]" in lines
    assert "error: /nonsense: there is no such command; /help lists them, and // begins a message with a slash" in lines
    assert "error: temperature: 3 should be less than or equal to 2" in lines
    assert lines[-1] == "error: there is nothing to answer yet"
    first, _, retried = answers(lines)[:3]
    assert first != retried
    kept = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in kept] == ["system", "user", "assistant"] and kept[1]["content"] == "hi"
    assert plain(kept[2]["content"]) == retried.removesuffix("\n")
    # The next seed is what a session with it begins with, and a saved chat goes on as it was left.
    again = say(f"hi\n/load {file}\nand\n", "model=talks", "max_tokens=8", "seed=5")
    assert answers(again)[0] == retried and "[3 messages read]" in again
    known = say("hi\n/system be brief\nand\n", "model=talks", "max_tokens=8", "seed=5")
    assert answers(again)[1] == answers(known)[1]


@pytest.mark.slow
def test_a_base_goes_on_with_text_and_two_models_answer_one_after_the_other(say: Callable[..., list[str]]) -> None:
    lines = say("the cat\n/stats\n", "model=goes-on", "against=talks", "mode=base", "max_tokens=6", "seed=2")
    assert lines[:2] == [f"{name}: continues your text, {why}; context 256 tokens" for name, why in _BASES]
    at = lines.index("> the cat")
    assert lines[at + 1] == "── goes-on ──" and "── talks ──" in lines
    left, right = (["", *block, ""] for block in _blocks(lines[at + 1 : lines.index("> /stats")]))
    assert left == right  # the same weights, text and seed
    alone = say("the cat\n", "model=goes-on", "max_tokens=6", "seed=2")
    assert alone[0] == "goes-on: continues your text, since it has no chat template; context 256 tokens"
    assert answers(alone)[0] == "\n".join(left[1:-1]) + "\n"
    chatting = say("the cat\n", "model=goes-on", "mode=instruct", "max_tokens=6", "seed=2")
    assert "in forge's simple template" in chatting[0] and answers(chatting) != answers(alone)


_BASES = (("goes-on", "as mode=base asks"), ("talks", "as mode=base asks"))


def _blocks(lines: list[str]) -> list[list[str]]:
    """The answer of each model, without its name and notes."""
    starts = [n for n, line in enumerate(lines) if line.startswith("──")] + [len(lines)]
    return [[line for line in lines[a + 1 : b] if not line.startswith("[")] for a, b in pairwise(starts)]


@pytest.mark.slow
def test_a_full_context_is_said_and_the_chat_goes_on(say: Callable[..., list[str]]) -> None:
    turn = "x" * 90 + "\n"  # some 95 tokens with the template's
    lines = say(turn * 4 + "y" * 300 + "\n/retry\nbye\n", "model=talks", "max_tokens=4", "seed=0")
    note = "[the oldest turn no longer fits into the context of 256 tokens: the model goes on without; /reset begins anew]"
    assert lines.count(note) == 2  # two fit with what was answered; the third and the fourth each push one out
    (refusal,) = [line for line in lines if line.startswith("error")]
    assert refusal.startswith("error: this message come to 30") and "context holds 256" in refusal
    assert answers(lines)[-2] and answers(lines)[-1]  # what was refused is forgotten


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_then_leaves(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    screen = terminal("model=endless", "max_tokens=900000", "seed=1")
    assert "Ctrl-D leaves" in screen.prompted()
    for text in ("gr\u00fc\u00df dich \u4e16\u754c", "go on"):  # the second waits for no first one
        screen.type(f"{text}\r")
        screen.until("\x1b[?2004l")  # the line is taken
        time.sleep(0.5)
        assert screen._read() and len(screen.seen) > 20  # some of the answer is there while it is made
        screen.type("\x03")
        assert "[stopped; /retry answers again]" in screen.prompted()
    screen.type("one\x1b\rtwo")
    screen.type("\x03")  # takes the line back
    screen.type("/stats\r")
    assert "all answers   2, " in screen.prompted()
    screen.type("\x03")
    assert screen.end() == 0
    kept = (tmp_path / "home" / "mlruns" / "cache" / "chat_history").read_text()
    assert "+gr\u00fc\u00df dich \u4e16\u754c" in kept and "+one" not in kept


@pytest.mark.slow
def test_two_models_stand_in_two_columns(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("model=talks", "against=endless", "max_tokens=20", "seed=1")
    assert "Ctrl-D leaves" in screen.prompted()
    screen.type('"""\rtwo\rlines"""\r')
    shown = screen.until("[talks: cut at max_tokens=20]", "[endless: cut at max_tokens=20]", "\x1b[?2004h", ">\x08")
    assert any(line.split() == ["talks", "endless"] for line in _bare(shown).splitlines())
    screen.type("\x04")
    assert screen.end() == 0


def _bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# ---- parts ------------------------------------------------------------------------------------------------------------


def tokens_of(history: History) -> Callable[[int], list[int]]:
    """A token a word of the text."""
    return lambda first: [len(word) for word in history.text(first).split()]


def test_the_oldest_turns_are_left_out_once_the_context_is_full() -> None:
    """Turns of 3 words, the last one of 2. An answer has 16 / 4 = 4, so that 12 are left: 2 + 3 * 3 = 11 fit, 14 don't."""
    history = History(turns=[Turn(f"{n} q ", "a") for n in range(9)] + [Turn("last q")])
    ids, left_out = history.fit(tokens_of(history), 16, wanted=100)
    assert (history.first, left_out, len(ids)) == (6, 6, 11)
    assert history.fit(tokens_of(history), 16, wanted=100)[1] == 0


def test_an_answer_that_wants_little_leaves_more_of_the_history() -> None:
    history = History(turns=[Turn(f"{n} q ", "a") for n in range(9)] + [Turn("last q")])
    history.fit(tokens_of(history), 16, wanted=2)
    assert history.first == 5  # 2 + 4 * 3 = 14


@pytest.mark.parametrize(("context", "turns"), [(None, 400), (1600, 400)])
def test_where_all_fits_it_is_encoded_once(context: int | None, turns: int) -> None:
    history, calls = History(turns=[Turn("q ", "a")] * turns), []

    def encode(first: int) -> list[int]:
        calls.append(first)
        return tokens_of(history)(first)

    history.fit(encode, context, wanted=9)
    assert calls == [0]


def test_a_message_that_fills_the_context_is_refused_and_nothing_is_left_out() -> None:
    history = History(turns=[Turn("q ", "a"), Turn("w " * 16)])
    with pytest.raises(PromptTooLong, match="come to 16 tokens, but the model's context holds 16"):
        history.fit(tokens_of(history), 16, wanted=4)
    assert history.first == 0


def test_turns_without_an_answer_are_not_shown_but_the_last() -> None:
    history = History("be brief", [Turn("a", "1"), Turn("b"), Turn("c")])
    said = [message["content"] for message in history.messages()]
    assert said == ["be brief", "a", "1", "c"] and history.text() == "a1\nc"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m\x07", "[31mred[0m"),
        ("\x9b31m \x00\x7f\r\n", "31m \n"),
        ("\x1b]0;title\x1b\\", "]0;title\\"),
        ("a\u202eb\u2066c\u200e", "abc"),
        ("a\u2028b", "a\nb"),
        ("half \ud83d", "half \ufffd"),
        ("👨\u200d👩\u200d👧 नमस्ते", "👨\u200d👩\u200d👧 नमस्ते"),
    ],
)
def test_nothing_that_a_model_says_is_an_order(text: str, shown: str) -> None:
    assert plain(text) == shown == "".join(map(plain, text))


def toy(**marks: Any) -> Any:
    return SimpleNamespace(name="toy", format=Format(**marks))


def test_markup_of_a_model_is_shown_as_it_is() -> None:
    out = io.StringIO()
    stream = Stream(Console(file=out, force_terminal=True, color_system="truecolor"), toy())
    for piece in ("[bold]", ":smile: \x1b[2J", "http://a.b 'c' 12"):
        stream.show(0, Reply(1), piece)
    stream.end()
    assert out.getvalue() == "[bold]:smile: [2Jhttp://a.b 'c' 12\n"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_thoughts_are_told_from_what_is_said(size: int) -> None:
    text = "<think>\nhm, <b>\n</think>\n\nyes"
    for labels, expected in ((False, ["hm, <b>", "\n\nyes"]), (True, ["[thought]\nhm, <b>", "\n\n[answer]\nyes"])):
        pieces = Pieces(toy(think_start="<think>", think_end="</think>"), False, labels)
        parts = [part for at in range(0, len(text), size) for part in pieces.add(text[at : at + size])] + pieces.rest()
        assert ["".join(part for part, thought in parts if thought is kind) for kind in (True, False)] == expected


def test_quotes_hold_several_lines_and_a_file_may_end_within_them() -> None:
    lines = Lines(io.StringIO('one\r\n"""\ntwo\n\nthree"""\n"""short"""\n"""open\nend'), lambda line: None)
    assert [lines.read() for _ in range(5)] == ["one", "two\n\nthree", "short", "open\nend", None]


def test_what_no_tokenizer_takes_is_replaced() -> None:
    assert whole("a\udce9 \U0001f600") == "a\ufffd \U0001f600"


# ---- settings and files -----------------------------------------------------------------------------------------------


def test_text_is_taken_as_it_was_typed() -> None:
    read = settings.read(["model=a: b", "system=be: terse # always", "temperature=0", "seed=null", "uri=1"])
    assert (read.model, read.system, read.temperature, read.seed, read.uri) == ("a: b", "be: terse # always", 0.0, None, "1")


def test_some_settings_change_and_the_others_stay() -> None:
    read = settings.changed(settings.read(["model=m", "top_k=5"]), ["seed=3", "temperature=0.5"])
    assert (read.top_k, read.seed, read.temperature) == (5, 3, 0.5)
    with pytest.raises(ConfigError, match="model: unknown key"):
        settings.changed(read, ["model=other"])


def test_a_setting_is_what_a_request_may_ask_for() -> None:
    asked, known = get_type_hints(ChatBody, include_extras=True), get_type_hints(settings.SamplingSpec, include_extras=True)
    assert len(known) == 7 and known == {name: asked[name] for name in known}
    assert settings.read(["model=m", f"seed={2**63 - 1}"]).seed == 2**63 - 1
    for word in ("top_k=2147483648", "repetition_penalty=1000001", "max_tokens=2147483648", f"seed={2**63}"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            settings.read(["model=m", word])


MESSAGES: list[Message] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "grüß\u2028dich 世界"},
    {"role": "assistant", "content": "ja"},
]


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_a_chat_comes_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    history = files.load(_written(tmp_path / "given.json", json.dumps(MESSAGES)))
    assert files.save(tmp_path / name, history) == 3
    assert files.save(tmp_path / name, files.load(tmp_path / name)) == 3  # over itself
    assert list(files.load(tmp_path / name).messages()) == MESSAGES
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "holds no message"),
        (b"[]", "holds no message"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"just words\nof mine", "message 1 is none: a chat holds"),
        (b"[" * 100_000, "message 1 is none"),
        (b'{"messages": 3}', "message 1 is none"),
        (b'[{"role": "user", "content": ["a"]}]', "message 1 is none"),
        (b'[{"role": "tool", "content": "a"}]', "message 1: role 'tool'; it has to be one of system, user, assistant"),
        (b'[{"role": "assistant", "content": "a"}]', "message 1 is of the assistant where one of the user has to be"),
        (b'{"role": "user", "content": "a"}\n{"role": "user", "content": "b"}', "message 2 is of the user where one of the assistant"),
    ],
)
def test_what_is_no_chat_is_refused_in_one_line(tmp_path: Path, text: bytes, why: str) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(text)
    with pytest.raises(ServingError) as error:
        files.load(file)
    assert why in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ServingError, match="is there already, and is no chat"):
        files.save(file, History(turns=[Turn("a", "b")]))
    assert file.read_bytes() == text


def test_files_that_can_not_be_read_or_written_are_said(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nothing.json", Path("/dev/zero")):
        with pytest.raises(ServingError, match=r"is no file|No such file"):
            files.load(file)
    with pytest.raises(ServingError, match="can't be written"):
        files.save(tmp_path / "no" / "chat.json", History(turns=[Turn("a", "b")]))
    with pytest.raises(ServingError, match="nothing to save yet"):
        files.save(tmp_path / "chat.json", History("system", [Turn("unanswered")]))
    assert files.place(' "~/a b.json" ') == Path.home() / "a b.json"
    with pytest.raises(ServingError, match="which file"):
        files.place("")


def _written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ((), 2, "which model? Write model=models:/NAME@ALIAS or model=FOLDER; --help"),
        (("model=",), 2, "model: '' should have at least 1 character"),
        (("talks",), 2, "talks: not a setting; write key=value (valid: "),
        (("model=m", "temprature=1"), 2, "temprature: unknown key; did you mean 'temperature'?"),
        (("model=m", "mode=chat"), 2, "mode: 'chat' should be 'auto', 'instruct' or 'base'"),
        (("model=/nowhere",), 4, "/nowhere: no model lies there; give a folder with config.json"),
        (("model=models:/name",), 4, "models:/name: write models:/NAME@ALIAS or models:/NAME/VERSION"),
        (("model=models:/name@champion",), 7, "there is no tracking store at "),
    ],
)
def test_wrong_words_are_one_line_each(
    words: tuple[str, ...], code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert chat.main(list(words)) == code
    out, errors = capsys.readouterr()
    assert errors.startswith(f"error: {why}") and errors.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []

"""Filters: what stays, what goes, and under which reason."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge import binding
from forge.data import filters
from forge.data.filters import language, length, quality
from forge.errors import DataError

# Unlike lines of unlike words, as prose has them.
ENGLISH = """The ferry leaves the harbour at seven and crosses to the island in about forty minutes.
Most passengers stand outside, because the benches in the cabin are hard and smell of diesel.
A teacher from the mainland takes it every Monday; she reads the paper until the lighthouse comes in sight.
On stormy days nobody travels, and the school stays closed until the wind has gone down again."""
JAPANESE = """毎朝七時に港を出る船は、四十分ほどで島に着きます。乗客の多くは甲板に立って海を眺めます。
本土から通う先生は、月曜日だけこの船に乗り、灯台が見えるまで新聞を読んでいるそうです。
嵐の日には誰も出かけず、風が弱まるまで学校も休みになります。"""
CHINESE = """渡轮每天早上七点离开港口,大约四十分钟后到达小岛。大多数乘客喜欢站在甲板上看海。
有一位老师从大陆来上课,她总是读报纸,直到看见灯塔。暴风雨的日子里没有人出门,学校也会关闭。"""
KOREAN = """배는 매일 아침 일곱 시에 항구를 떠나 약 사십 분 뒤에 섬에 닿는다. 승객 대부분은 밖에 서서 바다를 본다.
육지에서 온 선생님은 월요일마다 이 배를 타고 등대가 보일 때까지 신문을 읽는다. 폭풍이 부는 날에는 아무도 나가지
않고 바람이 잦아들 때까지 학교도 문을 닫는다. 그런 날 아이들은 집에서 책을 읽거나 창밖을 보며 하루를 보낸다."""
VIETNAMESE = """Chiếc phà rời bến cảng lúc bảy giờ sáng và đến hòn đảo sau khoảng bốn mươi phút. Phần lớn hành khách đứng ngoài
trời vì ghế trong khoang rất cứng. Một cô giáo từ đất liền đi phà mỗi thứ hai và đọc báo cho đến khi nhìn thấy ngọn hải đăng.
Ngày bão không ai ra khỏi nhà, trường học cũng đóng cửa cho đến lúc gió lặng."""
GERMAN = """Die Fähre verlässt den Hafen um sieben und erreicht die Insel nach etwa vierzig Minuten. Die meisten Fahrgäste stehen
draußen, weil die Bänke in der Kabine hart sind. Eine Lehrerin vom Festland fährt jeden Montag mit."""
SYLLABLES = [consonant + vowel for consonant in "bcdfglmnpr" for vowel in "aeiou"]
WORDS = [start + end for start in SYLLABLES for end in ("bra", "lta", "mer", "nos", "rus", "tik", "vel")]  # 350, of 5 letters each


@pytest.mark.parametrize(
    ("text", "knobs", "reason"),
    [
        ("abc", {}, None),
        (" \n\t", {}, "too_short"),
        ("", {"min_chars": 0}, None),
        (" abc ", {"min_chars": 3}, None),
        (" abc ", {"min_chars": 4}, "too_short"),
        (" abcd\n", {"max_chars": 4}, None),
        ("abcde", {"max_chars": 4}, "too_long"),
        ("one two", {"min_words": 2}, None),
        ("one two", {"min_words": 3}, "too_few_words"),
        ("今日は雨。", {"min_words": 4}, None),  # four letters and a mark
        ("今日は雨。", {"min_words": 5}, "too_few_words"),
        ("iPhoneを買う", {"min_words": 4}, None),  # iPhone and three letters
        ("iPhoneを買う", {"min_words": 5}, "too_few_words"),
    ],
)
def test_length(text: str, knobs: dict[str, Any], reason: str | None) -> None:
    assert length(text, **knobs) == reason


def test_limits_that_no_text_meets_are_an_error() -> None:
    with pytest.raises(DataError, match="max_chars=5 is below min_chars=10"):
        length("text", min_chars=10, max_chars=5)


@pytest.mark.parametrize(
    ("text", "keep", "reason"),
    [
        (ENGLISH, ["en"], None),
        (ENGLISH, ["de", "en"], None),
        (GERMAN, ["en"], "language_de"),
        (JAPANESE, ["ja"], None),
        (JAPANESE, ["en", "de"], "language_ja"),
        (CHINESE, ["zh", "wuu", "yue"], None),
        ("ok", ["en"], "language_unsure"),
        ("", ["en"], "language_unsure"),
    ],
)
def test_language(text: str, keep: list[str], reason: str | None) -> None:
    pytest.importorskip("py3langid")
    assert language(text, keep=keep) == reason


def test_language_looks_at_the_start_only() -> None:
    pytest.importorskip("py3langid")
    assert language(ENGLISH * 6 + GERMAN * 100, keep=["en"]) is None


def test_probabilities_of_the_languages_kept_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.45 + 0.35 >= 0.7, though neither is; with da alone nothing is that probable, and at 0.4 it is no."""

    class Scandinavian:
        labels = ("no", "da", "sv")

        def rank(self, text: str) -> list[tuple[str, float]]:
            return [("no", 0.45), ("da", 0.35), ("sv", 0.2)]

    monkeypatch.setattr(filters, "_identifier", Scandinavian)
    assert language("tekst", keep=["no", "da"], min_probability=0.7) is None
    assert language("tekst", keep=["no", "no"], min_probability=0.7) == "language_unsure"
    assert language("tekst", keep=["da"], min_probability=0.4) == "language_no"
    with pytest.raises(DataError, match="keep='dk' is no language of the model; take from da, no, sv"):
        language("tekst", keep=["dk"])


def test_a_missing_library_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    filters._identifier.cache_clear()
    with pytest.raises(DataError, match=r'pip install "forge-mlx\[language\]"'):
        language(ENGLISH, keep=["en"])


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, JAPANESE, CHINESE, KOREAN, VIETNAMESE], ids=["en", "de", "ja", "zh", "ko", "vi"])
def test_prose_is_kept_in_every_script(text: str) -> None:
    assert quality(text, min_words=20) is None


def prose(count: int) -> str:
    """`count` unlike words, 10 a line."""
    return "\n".join(" ".join(WORDS[n : min(n + 10, count)]) for n in range(0, count, 10))


def mixed(phrase: str, times: int, others: int) -> str:
    """`others` unlike words on one line, with `phrase` put between them at even distances."""
    step = others // times
    pieces = [" ".join(WORDS[n * step : (n + 1) * step]) for n in range(times)]
    return " ".join(f"{phrase} {piece}" for piece in pieces) + " " + " ".join(WORDS[times * step : others])


def each_line(shape: str, count: int, rest: int) -> str:
    """`count` lines of ten words put into `shape`, then `rest` plain ones."""
    lines = prose(10 * (count + rest)).split("\n")
    return "\n".join([shape.format(line) for line in lines[:count]] + lines[count:])


def with_refrain(times: int, others: int) -> str:
    """A line of two words `times` times, each after a line of ten others, and those that are left."""
    lines = prose(10 * others).split("\n")
    return "\n".join([f"{line}\n{n * ' '}read more" for n, line in enumerate(lines[:times])] + lines[times:])


def short(twos: int, threes: int) -> str:
    return " ".join([*SYLLABLES[:twos], *(word[:3] for word in WORDS[::7][:threes])])


LONG = [f"{one}{other}" for one, other in zip(WORDS, reversed(WORDS), strict=True)][:60]  # of 10 letters
COMMAS = prose(79).replace(" ", ", ")
NUMBERS = "".join(f" {n}%" for n in range(20))
HAN = "".join(chr(0x4E00 + n) for n in range(100))

BORDERS = {
    # 60 words: 31 of 2 letters and 29 of 3 make 149 < 2.5 * 60; 30 and 30 make 150.
    "shorter words": ("word_length", "min_word_length", short(31, 29), short(30, 30)),
    "longer words": ("word_length", "max_word_length", " ".join([*LONG[1:], LONG[0] + "s"]), " ".join(LONG)),
    # 60 words: 6 symbols are a tenth. The kinds are not added up.
    "hashes": ("symbols", "max_symbols", prose(60) + "#" * 7, prose(60) + "#" * 6),
    "ellipses in the text": ("symbols", "max_symbols", "…a...b" * 3 + "… " + prose(59), "…a...b" * 3 + "###### " + prose(59)),
    # 20 lines: 18 are 90 %.
    "bullets": ("bullets", "max_bullets", each_line(" • {}", 19, 1), each_line("- {}", 18, 2)),
    # 10 lines: 3 are 30 %.
    "open ends": ("ellipses", "max_ellipses", each_line("{}... ", 4, 6), each_line("{}…", 3, 7)),
    # 100 words: 20 numbers leave 80 %. A comma behind a word makes it no number.
    "numbers": ("alphabetic", "min_alphabetic", COMMAS + NUMBERS + " 20%", COMMAS + ", so" + NUMBERS),
    # 10 lines: "read more" five times repeats four, four times three.
    "a refrain": ("duplicate_lines", "max_duplicate_lines", with_refrain(5, 5), with_refrain(4, 6)),
    # 100 words of 5 letters: 10 pairs hold 20 % of them.
    "a pair": ("top_bigram", "max_top_bigram", mixed("hokus pokus", 11, 78), mixed("hokus pokus", 10, 80)),
    # 100 words, 96 runs of 5: a passage of 19 words has 15 of them (15.6 %), one of 18 has 14 (14.6 %).
    "a passage": ("repeated", "max_repeated", " ".join(WORDS[:81] + WORDS[:19]), " ".join(WORDS[:82] + WORDS[:18])),
    # 100 letters, 91 runs of 10: a passage of 23 letters has 14 of them (15.4 %), one of 22 has 13 (14.3 %).
    "a Chinese passage": ("repeated", "max_repeated", HAN[:77] + HAN[:23], HAN[:78] + HAN[:22]),
}


@pytest.mark.parametrize(("reason", "knob", "over", "within"), BORDERS.values(), ids=BORDERS.keys())
def test_each_rule_has_its_border_its_reason_and_its_switch(reason: str, knob: str, over: str, within: str) -> None:
    assert quality(over) == f"quality_{reason}"
    assert quality(within) is None
    assert quality(over, **{knob: None}) is None
    assert quality(over, min_words=101 + len(over.split())) is None


def test_short_words_of_scripts_with_dense_letters_are_no_fault() -> None:
    """60 words of 2 letters, in Hangul and in Latin; Chinese has 100 words of one."""
    hangul = " ".join(chr(0xAC00 + 28 * n) + chr(0xAC00 + 28 * n + 600) for n in range(60))
    latin = " ".join(a + b for a in "bcdfglmn" for b in "aeiouxyz")
    assert [quality(text) for text in (hangul, HAN, latin)] == [None, None, "quality_word_length"]


@pytest.mark.parametrize("chosen", [length, language, quality])
def test_the_yaml_says_the_defaults(chosen: Any) -> None:
    """`keep` has none."""
    node = yaml.safe_load((Path(__file__).parents[2] / f"conf/data/filter/{chosen.__name__}.yaml").read_text(encoding="utf-8"))
    problems = binding.Problems()
    assert binding.target(node, "filter", problems) is not None and not problems
    knobs = {name: p.default for name, p in inspect.signature(chosen).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert {"_target_": f"forge.data.filters.{chosen.__name__}", "_partial_": True} | knobs | {"keep": ["en"]} == node | {"keep": ["en"]}

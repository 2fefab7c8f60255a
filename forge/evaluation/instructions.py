"""Instructions whose following a program can check: eight kinds of five, for whether tuning has cost a model what it could do.

The idea is IFEval's (Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, arXiv 2311.07911); prompts and checks
are forge's own, and few, so that a share moves in steps of 1/5. No answer that says nothing follows an instruction.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[str], bool]


@dataclass(frozen=True)
class Instruction:
    """`holds`: whether an answer, white space at its ends left out, keeps to it."""

    kind: str
    prompt: str
    holds: Check


def followed(instruction: Instruction, answer: str) -> bool:
    """What a model thought before it answered, up to </think>, is no part of the answer."""
    said = answer.rpartition("</think>")[2].strip()
    return any(char.isalnum() for char in said) and instruction.holds(said)


# ---- checks ------------------------------------------------------------------------------------------------------------


def words(fewest: int, most: int) -> Check:
    """Counted at white space; what holds no letter and no digit, such as a dash, is no word."""
    return lambda text: fewest <= sum(any(char.isalnum() for char in word) for word in text.split()) <= most


def holding(*wanted: str, without: tuple[str, ...] = ()) -> Check:
    """All of `wanted` and none of `without`, as whole words in any case."""

    def check(text: str) -> bool:
        said = set(re.findall(r"\w+", text.lower()))
        return said.issuperset(wanted) and said.isdisjoint(without)

    return check


def without_characters(characters: str) -> Check:
    return lambda text: not any(char in text for char in characters)


def cased(upper: bool) -> Check:
    """Every letter that has two cases, and there are some."""
    return lambda text: text.isupper() if upper else text.islower()


def beginning(phrase: str) -> Check:
    return lambda text: text.startswith(phrase)


def ending(phrase: str) -> Check:
    return lambda text: text.endswith(phrase)


def bullets(count: int) -> Check:
    """So many lines that begin with "- " or "* ", and no text elsewhere."""

    def check(text: str) -> bool:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return len(lines) == count and all(re.match(r"[-*]\s+\S", line) for line in lines)

    return check


def json_object(*keys: str) -> Check:
    """One object with exactly these keys, in a code block or alone."""

    def check(text: str) -> bool:
        fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.DOTALL)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.keys() == set(keys)

    return check


def paragraphs(count: int) -> Check:
    """Apart by a line that holds three asterisks alone."""

    def check(text: str) -> bool:
        parts = re.split(r"(?m)^\s*\*\*\*\s*$", text)
        return len(parts) == count and all(part.strip() for part in parts)

    return check


# ---- instructions ------------------------------------------------------------------------------------------------------

INSTRUCTIONS = (
    Instruction("length", "Describe the sea in exactly five words.", words(5, 5)),
    Instruction("length", "What is bread made of? Answer in at most ten words.", words(1, 10)),
    Instruction("length", "Name one use of a ladder in exactly three words.", words(3, 3)),
    Instruction("length", "Tell me about winter in at least forty words.", words(40, 10_000)),
    Instruction("length", "Which animal gives wool? Answer with a single word.", words(1, 1)),
    Instruction("keyword", "Write a sentence about a garden that contains the words rain and stone.", holding("rain", "stone")),
    Instruction("keyword", "Describe a train journey and use the word window.", holding("window")),
    Instruction("keyword", "Write two sentences about music. Use the words drum, night and slow.", holding("drum", "night", "slow")),
    Instruction("keyword", "Describe a cat without using the word cat, but use the word tail.", holding("tail", without=("cat",))),
    Instruction("keyword", "Say what a library is for. Do not use the word book or books.", holding(without=("book", "books"))),
    Instruction("case", "Describe a river. Use lower-case letters only.", cased(upper=False)),
    Instruction("case", "What colour is snow? Answer in capital letters only.", cased(upper=True)),
    Instruction("case", "Name three fruits, all in lower-case letters.", cased(upper=False)),
    Instruction("case", "Write a short warning about a wet floor. Use capital letters only.", cased(upper=True)),
    Instruction("case", "Explain what a clock does. Write everything in lower case, without a single capital letter.", cased(upper=False)),
    Instruction("ending", "Describe breakfast. End your answer with exactly: That is all.", ending("That is all.")),
    Instruction("ending", "Why do people sleep? Let the last words of your answer be: Good night!", ending("Good night!")),
    Instruction("ending", "Write a sentence about birds that ends with a question mark.", ending("?")),
    Instruction("ending", "Say something about mountains and finish with the word END in capitals, with nothing after it.", ending("END")),
    Instruction("ending", "Describe a bridge. Finish with three dots, like this: ...", ending("...")),
    Instruction("beginning", "Give advice on learning to swim. Begin your answer with the word First", beginning("First")),
    Instruction("beginning", "Describe tea. Your answer must start with: In short,", beginning("In short,")),
    Instruction("beginning", "What does a baker do? Start your answer with the word Every", beginning("Every")),
    Instruction("beginning", "Write a greeting to a neighbour that starts with: Dear neighbour", beginning("Dear neighbour")),
    Instruction("beginning", "Explain why ice floats. Begin with the sign > and a space.", beginning("> ")),
    Instruction(
        "list", "List exactly three colours as bullet points, each on a line that begins with '- '. Write nothing else.", bullets(3)
    ),
    Instruction("list", "Give exactly two reasons to walk, as lines that begin with '* '. Write nothing else.", bullets(2)),
    Instruction("list", "List exactly four tools as bullet points with '- ' in front. No introduction.", bullets(4)),
    Instruction("list", "Name five European countries as bullet points that begin with '- ', and nothing else.", bullets(5)),
    Instruction("list", "Write two short paragraphs about cities. Put a line with only *** between them.", paragraphs(2)),
    Instruction(
        "json", 'Give a JSON object with the keys "name" and "age" for a made-up person. Only the JSON.', json_object("name", "age")
    ),
    Instruction(
        "json", 'Answer as a JSON object with the single key "answer": what is two plus two? Only the JSON.', json_object("answer")
    ),
    Instruction(
        "json",
        'Describe a car as a JSON object with the keys "colour", "wheels", "speed". Only JSON.',
        json_object("colour", "wheels", "speed"),
    ),
    Instruction("json", 'Write a JSON object with the keys "city" and "country" for Rome. Only the JSON.', json_object("city", "country")),
    Instruction(
        "json", 'Return a JSON object with the key "days" that holds a list of the days of a weekend. Only JSON.', json_object("days")
    ),
    Instruction("characters", "Describe a forest without using a comma.", without_characters(",")),
    Instruction("characters", "Name the capital of France. Do not use a full stop.", without_characters(".")),
    Instruction("characters", "Say how many legs a spider has. Use no digits.", without_characters("0123456789")),
    Instruction("characters", "Write a cheerful sentence without an exclamation mark.", without_characters("!")),
    Instruction("characters", "Explain what salt is without using the letter z.", without_characters("zZ")),
)

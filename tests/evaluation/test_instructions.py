"""The retention suite's instructions: what follows each, and what does not."""

from collections import Counter

import pytest

from forge.evaluation.instructions import INSTRUCTIONS, followed

# By the beginning of the prompt: an answer that follows, and one that nearly does.
CASES = {
    "Describe the sea": ("Blue – deep, wide, cold, salty.", "Blue, deep, wide and cold and salty."),
    "What is bread": ("Flour, water, salt.", "It is made of flour and of water and salt and of yeast."),
    "Name one use": ("Reaching high places", "Reaching places"),
    "Tell me about winter": ("cold " * 40, "cold " * 39),
    "Which animal": ("Sheep.", "The sheep."),
    "Write a sentence about a garden": ("Rain fell on the stone.", "Rainy days made the stone wet."),
    "Describe a train": ("From the Window one sees fields.", "The windows were large."),
    "Write two sentences": ("The drum is slow. The night is long.", "The drum is slow. It is long."),
    "Describe a cat": ("It has fur and a tail.", "A cat has a tail."),
    "Say what a library": ("It lends reading matter.", "It lends books."),
    "Describe a river": ("water flows, 3 metres wide.", "Water flows."),
    "What colour is snow": ("WHITE!", "White"),
    "Name three fruits": ("apple, pear, plum", "Apple, pear, plum"),
    "Write a short warning": ("CAREFUL: WET!", "CAREFUL: wet!"),
    "Explain what a clock": ("it shows the time.", "It shows the time."),
    "Describe breakfast": ("Eggs. That is all.", "Eggs. That is all!"),
    "Why do people": ("To rest. Good night!", "Good night! To rest."),
    "Write a sentence about birds": ("Do birds sing?", "Birds sing."),
    "Say something about mountains": ("They are high. END", "They are high. END."),
    "Describe a bridge": ("It spans a river...", "It spans a river."),
    "Give advice": ("First, breathe.", "At First, breathe."),
    "Describe tea": ("In short, it is hot.", "It is hot, in short."),
    "What does a baker": ("Every morning he bakes.", "A baker bakes."),
    "Write a greeting": ("Dear neighbour, hello.", "Hello, Dear neighbour."),
    "Explain why ice": ("> It is lighter.", ">It is lighter."),
    "List exactly three": ("- red\n- blue\n- green", "Here:\n- red\n- blue\n- green"),
    "Give exactly two": ("* health\n\n* fun", "* health\n* fun\n* both"),
    "List exactly four": ("- saw\n- axe\n- file\n- drill", "- saw\n- axe\n- file"),
    "Name five": ("- a\n- b\n- c\n- d\n- e", "1. a\n2. b\n3. c\n4. d\n5. e"),
    "Write two short": ("Old.\n***\nNew.", "Old. *** New."),
    "Give a JSON": ('{"name": "A", "age": 3}', '{"name": "A"}'),
    "Answer as a JSON": ('```json\n{"answer": 4}\n```', 'Sure: {"answer": 4}'),
    "Describe a car": ('{"colour": 1, "wheels": 4, "speed": 9}', '[{"colour": 1, "wheels": 4, "speed": 9}]'),
    "Write a JSON": ('{"city": "Rome", "country": "Italy"}', '{"city": "Rome", "country": "Italy"'),
    "Return a JSON": ('{"days": ["Saturday", "Sunday"]}', '{"Days": []}'),
    "Describe a forest": ("Green and dark.", "Green, dark."),
    "Name the capital": ("Paris", "Paris."),
    "Say how many": ("Eight", "8 legs"),
    "Write a cheerful": ("What a day.", "What a day!"),
    "Explain what salt": ("A white mineral.", "It comes in many sizes."),
}


@pytest.mark.parametrize("beginning", CASES)
def test_an_answer_that_follows_is_told_from_one_that_nearly_does(beginning: str) -> None:
    (instruction,) = (each for each in INSTRUCTIONS if each.prompt.startswith(beginning))
    follows, fails = CASES[beginning]
    assert followed(instruction, f"\n{follows} ") and not followed(instruction, fails)


def test_each_instruction_is_tried_and_each_kind_has_five() -> None:
    assert len(INSTRUCTIONS) == len(CASES) == len({each.prompt for each in INSTRUCTIONS}) == 40
    assert set(Counter(each.kind for each in INSTRUCTIONS).values()) == {5}


@pytest.mark.parametrize("nothing", ["", "\n\n", "...", "?", "<think>Paris</think>"])
def test_saying_nothing_follows_nothing(nothing: str) -> None:
    assert not any(followed(each, nothing) for each in INSTRUCTIONS)


def test_what_was_thought_is_no_part_of_the_answer() -> None:
    (one_word,) = (each for each in INSTRUCTIONS if each.prompt.startswith("Which animal"))
    assert followed(one_word, "<think>It may be the goat, or the sheep.</think>\n\nSheep")

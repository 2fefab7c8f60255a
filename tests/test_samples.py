"""What the samples of a report begin with, and where they end."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from forge.models import Loaded
from forge.samples import samples
from forge.spec import Batch, Data


def test_a_prompt_is_what_comes_before_the_first_target_else_the_text_s_beginning(
    make_tiny_model: Callable[..., Loaded], toy_data: Data
) -> None:
    """Three rows of 8: a question of 3 tokens before its answer; plain text of 6 (3 are given), its padding left out; one token alone."""
    tokens_BT = np.array([[70, 71, 72, 80, 81, 82, 83, 84], [90, 91, 92, 93, 94, 95, 0, 0], [60, 0, 0, 0, 0, 0, 0, 0]], dtype=np.int32)
    mask_BT = np.zeros((3, 8), dtype=bool)
    mask_BT[0, 3:], mask_BT[1, 1:6] = True, True
    segments_BT = np.array([[1] * 8, [1] * 6 + [0] * 2, [1] + [0] * 7], dtype=np.int32)
    loaded = make_tiny_model()
    batch = Batch(tokens_BT, mask_BT, segments_BT, ("a", "b", "c"))
    found = samples(loaded, replace(toy_data, valid={"s": (batch,)}), a_source=3)
    decoded: Any = loaded.tokenizer.decode
    assert [prompt for prompt, _ in found] == [decoded([70, 71, 72]), decoded([90, 91, 92])]
    assert found == samples(loaded, replace(toy_data, valid={"s": (batch,)}), a_source=3)

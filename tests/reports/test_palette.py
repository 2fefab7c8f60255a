"""Colours: apart from each other, and readable on their paper."""

import pytest

from forge.reports.palette import DARK, LIGHT, THEMES


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_written_in_a_colour_can_be_read(theme):
    """WCAG 2.2, 1.4.3: small text has a contrast of 4.5 to its paper."""
    named = THEMES[theme].named
    for name, colour in named.items():
        if name not in ("paper", "rule", "plan"):
            low, high = sorted([luminance(colour), luminance(named["paper"])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} {colour}"


@pytest.mark.parametrize("theme", THEMES)
def test_no_colour_stands_for_two_things(theme):
    named = THEMES[theme].named
    assert len(set(named.values())) == len(named) == 16
    assert all(colour == colour.lower() and len(colour) == 7 for colour in named.values())


def test_both_themes_have_the_same_names():
    assert list(LIGHT.named) == list(DARK.named)

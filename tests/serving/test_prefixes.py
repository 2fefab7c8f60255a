"""Kept prefixes, with caches that hold the ids themselves."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from forge.serving.prefixes import Prefixes

PIECE = 4


def trimmable(ids: list[int]) -> list[KVCache]:
    """Its keys and values take 8 bytes a token, in blocks of 256."""
    cache = KVCache()
    values = mx.array(ids, dtype=mx.float32)[None, None, :, None]
    cache.update_and_fetch(values, values)
    mx.eval(cache.state)
    return [cache]


def recurrent(ids: list[int]) -> list[ArraysCache]:
    cache = ArraysCache(1)
    cache[0] = mx.array([ids], dtype=mx.float32)
    return [cache]


def held(cache: list) -> list[int]:
    values = cache[0][0][0] if isinstance(cache[0], ArraysCache) else cache[0].keys_and_values()[0][0, 0, :, 0]
    return [int(value) for value in values.tolist()]


@pytest.mark.parametrize("shared", [0, 3, 4, 7, 8, 9])
def test_whole_pieces_of_a_common_beginning(shared: int) -> None:
    kept = Prefixes(10**6, PIECE)
    first = list(range(1, 11))
    kept.offer(first, 8, trimmable(first[:8]))
    cache, length = kept.find([*first[:shared], 90, 91, 92, 93, 94])
    assert length == shared // 4 * 4 if shared < 9 else 8
    assert (cache is None) == (length == 0)
    assert cache is None or held(cache) == first[:length]


def test_what_cannot_be_cut_serves_those_that_begin_with_all_of_it() -> None:
    kept = Prefixes(10**6, PIECE)
    first = list(range(1, 30))
    for done in range(4, 29, 4):
        kept.offer(first, done, recurrent(first[:done]))
    for shared, length in ((3, 0), (5, 4), (8, 8), (15, 8), (16, 16), (27, 16), (29, 28)):  # 1, 2 and 4 pieces, and all 7
        cache, found = kept.find([*first[:shared], 99])
        assert found == length
        assert cache is None or held(cache) == first[:length]


def test_a_copy_is_handed_out() -> None:
    kept = Prefixes(10**6, PIECE)
    ids = list(range(8))
    kept.offer(ids, 8, trimmable(ids))
    for _ in range(2):
        cache, _ = kept.find(ids)
        assert cache and held(cache) == ids
        more = mx.full((1, 1, 5, 1), 77.0)
        cache[0].trim(3)
        cache[0].update_and_fetch(more, more)


def test_the_one_used_longest_ago_goes_first() -> None:
    """256 tokens of 8 bytes an entry: room for two."""
    kept = Prefixes(2 * 256 * 8, PIECE)
    first, second, third = ([n] * 8 for n in (1, 2, 3))
    kept.offer(first, 8, trimmable(first))
    kept.offer(second, 8, trimmable(second))
    assert kept.find(first)[1] == 8
    kept.offer(third, 8, trimmable(third))
    assert [kept.find(ids)[1] for ids in (first, second, third)] == [8, 0, 8]
    assert kept.nbytes == 2 * 256 * 8


def test_no_room_keeps_nothing() -> None:
    kept = Prefixes(100, PIECE)
    kept.offer([1] * 8, 8, trimmable([1] * 8))
    assert (kept.find([1] * 8), kept.nbytes) == ((None, 0), 0)


def test_a_longer_one_takes_the_place_of_its_beginning() -> None:
    kept = Prefixes(10**6, PIECE)
    ids = list(range(16))
    kept.offer(ids[:8], 8, trimmable(ids[:8]))
    kept.offer(ids, 16, trimmable(ids))
    kept.offer(ids, 16, trimmable(ids))
    assert kept.nbytes == 256 * 8
    assert kept.find(ids[:9])[1] == 8

"""Ranges against a plain set of bytes, reassembly against the bytes that were sent."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import DecodeError
from edge_sdk.wire.ranges import RANGES_MAX, ChunkSize, Ranges, Reassembly, plan_chunks

TOTAL = 60
PAIRS = st.lists(
    st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)).map(lambda p: (p[0], min(TOTAL, p[0] + p[1]))),
    max_size=12,
)


def covered(pairs: list[tuple[int, int]]) -> set[int]:
    return {i for start, stop in pairs for i in range(start, stop)}


@given(PAIRS)
def test_ranges_equal_a_set_of_bytes(pairs: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(pairs), covered(pairs)
    assert covered(list(ranges)) == model
    assert ranges.bytes == len(model)
    assert covered(ranges.missing(TOTAL)) == set(range(TOTAL)) - model
    assert ranges.covers(TOTAL) == (len(model) == TOTAL)
    flat = [edge for pair in ranges for edge in pair]
    assert flat == sorted(set(flat)), "sorted, disjoint and never touching"
    assert Ranges.from_wire(ranges.to_wire(), TOTAL) == ranges


@given(PAIRS, st.randoms(use_true_random=False))
def test_ranges_do_not_depend_on_the_order(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Ranges(shuffled) == Ranges(pairs)


def test_add_leaves_the_original_as_it_was() -> None:
    before = Ranges([(0, 4)])
    after = before.add(4, 8)
    assert (list(before), list(after)) == ([(0, 4)], [(0, 8)])


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        "ab",
        [[0]],
        [[0, 1, 2]],
        [[True, 2]],
        [[0.0, 2]],
        [[-1, 2]],
        [[2, 2]],
        [[0, 61]],
        [[4, 8], [0, 2]],
        [[0, 8], [4, 9]],
        [[0, 1 << 80]],
        [[0, 1]] * (RANGES_MAX + 1),
    ],
)
def test_hostile_ranges_are_refused(value: object) -> None:
    with pytest.raises(DecodeError) as caught:
        Ranges.from_wire(value, TOTAL)
    assert caught.value.reason == "ranges"


def test_touching_ranges_on_the_wire_become_one() -> None:
    assert list(Ranges.from_wire([[0, 4], [4, 8]], TOTAL)) == [(0, 8)]


def reassembly(content: bytes, bytes_max: int = 1 << 20) -> Reassembly:
    return Reassembly(hashlib.sha256(content).digest(), len(content), bytes_max=bytes_max)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 50), st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_twice_give_the_content(content: bytes, chunk_bytes: int, random: object) -> None:
    target = reassembly(content)
    chunks = plan_chunks(target.received.missing(len(content)), chunk_bytes)
    assert all(0 < stop - start <= chunk_bytes for start, stop in chunks)
    shuffled = chunks + chunks[::3]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    new_bytes = sum(target.add(start, content[start:stop]) for start, stop in shuffled)
    assert new_bytes == len(content)
    assert target.complete
    assert target.take() == content
    assert not target.complete and target.received.bytes == 0


def test_wrong_bytes_are_refused_and_the_content_can_come_again() -> None:
    target = reassembly(b"right")
    target.add(0, b"wrong")
    with pytest.raises(DecodeError) as caught:
        target.take()
    assert caught.value.reason == "digest"
    assert target.received == Ranges()
    target.add(0, b"right")
    assert bytes(target.take()) == b"right"


def test_taking_too_early_is_the_callers_mistake() -> None:
    target = reassembly(b"abcd")
    target.add(0, b"ab")
    with pytest.raises(ValueError, match="2 of 4 bytes"):
        target.take()
    assert list(target.received) == [(0, 2)]


@pytest.mark.parametrize(
    ("offset", "data"), [(-1, b"a"), (4, b"a"), (3, b"ab"), (0, b""), (1 << 70, b"a"), (True, b"a"), ("0", b"a")]
)
def test_chunks_out_of_bounds_are_refused_and_store_nothing(offset: int, data: bytes) -> None:
    target = reassembly(b"abcd")
    with pytest.raises(DecodeError) as caught:
        target.add(offset, data)
    assert caught.value.reason == "range"
    assert target.received.bytes == 0


@pytest.mark.parametrize("total", [0, -1, 101, 1 << 62, True, 3.0, None])
def test_a_total_beyond_the_limit_is_refused_before_memory_is_taken(total: int) -> None:
    with pytest.raises(DecodeError) as caught:
        Reassembly(bytes(32), total, bytes_max=100)
    assert caught.value.reason == "size"


def test_a_digest_of_another_length_is_refused() -> None:
    with pytest.raises(DecodeError):
        Reassembly(bytes(31), 10, bytes_max=100)


def test_memory_is_taken_only_with_the_first_data() -> None:
    huge = Reassembly(bytes(32), 1 << 50, bytes_max=1 << 50)  # would fail at once if it were allocated here
    assert huge.received.bytes == 0


def test_scattered_single_bytes_cannot_grow_the_list_of_ranges() -> None:
    target = Reassembly(bytes(32), 10_000, bytes_max=10_000)
    with pytest.raises(DecodeError) as caught:
        for offset in range(0, 10_000, 2):
            target.add(offset, b"x")
    assert caught.value.reason == "ranges"
    assert len(target.received) == RANGES_MAX
    target.add(1, b"x")  # filling a hole is still possible
    assert len(target.received) == RANGES_MAX - 1


def test_chunk_size_halves_without_progress_and_stops_at_the_floor() -> None:
    size = ChunkSize(start=32_768, floor=4096, ceiling=65_536)
    size.cut(progress=True)
    assert size.current == 32_768
    for _ in range(10):
        size.cut(progress=False)
    assert size.current == 4096


def test_chunk_size_grows_back_to_the_ceiling_while_chunks_arrive() -> None:
    size = ChunkSize(start=4096, floor=4096, ceiling=10_000)
    for _ in range(15):
        size.progress()
    assert size.current == 4096
    for _ in range(100):
        size.progress()
    assert size.current == 10_000


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="floor 8, start 4"):
        ChunkSize(start=4, floor=8, ceiling=16)
    with pytest.raises(ValueError, match="chunk_bytes_max is 0"):
        plan_chunks([(0, 1)], 0)

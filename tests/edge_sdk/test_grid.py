"""Steps on a grid: they come back as they were, add up to the bit, take few bytes, and no bytes make anything else."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.codecs.frame import pack_frame
from edge_sdk.codecs.grid import EXACT_MAX, MAGNITUDES_MAX, WIRE_ID, GridSteps, decode_grid, encode_grid, merged
from edge_sdk.errors import DecodeError, VersionError


def some_steps(seed: int, size: int, count: int, magnitudes: int = 4, exponent: int = -20) -> GridSteps:
    draw = np.random.Generator(np.random.PCG64(seed))
    indices = np.sort(draw.choice(size, count, replace=False)).astype(np.int64)
    # A few are frequent and most are rare, as in practice.
    numbers = np.minimum(draw.geometric(0.6, count), magnitudes) * 5
    return GridSteps(size, exponent, indices, numbers * draw.choice([-1, 1], count))


def same(one: GridSteps, other: GridSteps) -> bool:
    plain = (one.size, one.exponent, one.exact) == (other.size, other.exponent, other.exact)
    return plain and np.array_equal(one.indices, other.indices) and np.array_equal(one.numbers, other.numbers)


@given(
    seed=st.integers(0, 1 << 32),
    size=st.integers(1, 3000),
    share=st.floats(0.0, 1.0),
    magnitudes=st.sampled_from([1, 2, 3, 16, 17, 18, 40, MAGNITUDES_MAX]),
    exponent=st.integers(-120, 30),
)
@settings(max_examples=200, deadline=None)
def test_steps_come_back_as_they_were(seed: int, size: int, share: float, magnitudes: int, exponent: int) -> None:
    steps = some_steps(seed, size, round(share * size), magnitudes, exponent)
    if seed % 3 == 0:  # all magnitudes are as frequent, and one of them is 0
        steps = replace(steps, numbers=np.arange(steps.indices.size, dtype=np.int64) % magnitudes, exact=False)
    assert same(decode_grid(encode_grid(steps), size), steps)


@given(seed=st.integers(0, 1 << 32), cuts=st.sets(st.integers(1, 5)))
@settings(max_examples=50, deadline=None)
def test_moves_add_up_to_the_bit_in_any_groups(seed: int, cuts: set[int]) -> None:
    size = 400
    several = [some_steps(seed + number, size, 120) for number in range(6)]
    start = np.random.Generator(np.random.PCG64(seed)).standard_normal(size).astype(np.float32)

    def moved(vector: NDArray[np.float32], steps: GridSteps) -> NDArray[np.float32]:
        vector = vector.copy()
        vector[steps.indices] = steps.moved(vector[steps.indices])
        return vector

    one_by_one = start
    for steps in several:
        one_by_one = moved(one_by_one, steps)
    grouped, edges = start, [0, *sorted(cuts), 6]
    for first, last in itertools.pairwise(edges):
        group = merged(several[first:last])
        assert group is not None
        grouped = moved(grouped, decode_grid(encode_grid(group), size))
    assert grouped.tobytes() == one_by_one.tobytes()


def test_a_move_there_and_back_still_puts_its_coordinate_on_the_grid() -> None:
    there = GridSteps(1, -4, np.array([0]), np.array([3]))
    back = replace(there, numbers=np.array([-3]))
    both = merged([there, back])
    assert both is not None and both.indices.tolist() == [0] and both.numbers.tolist() == [0]
    assert both.moved(np.array([0.26], np.float32)).tolist() == [0.25]


def test_moves_that_do_not_add_up_exactly_are_not_merged() -> None:
    steps = some_steps(0, 100, 10)
    assert merged([steps, replace(steps, exact=False)]) is None
    assert merged([steps, replace(steps, exponent=-19)]) is None
    many = GridSteps(1000, -20, np.arange(400), np.arange(400) % 200)
    assert merged([many]) is not None
    assert merged([many, replace(many, numbers=1000 * (np.arange(400) // 200))]) is None, "too many magnitudes"


def test_a_coordinate_is_rounded_to_the_grid_and_moved() -> None:
    steps = GridSteps(4, -2, np.arange(4), np.array([0, 1, -2, 5]))
    found = steps.moved(np.array([0.3, -0.13, 1.0, 2.0**30], np.float32))
    assert found.tolist() == [0.25, 0.0, 0.5, 2.0**30], "what is beyond float32's whole numbers is rounded"
    assert EXACT_MAX == 1 << 24 and np.float32(EXACT_MAX) + np.float32(1) == EXACT_MAX


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2, 0.5])
def test_frames_are_within_three_per_cent_of_the_entropy_of_what_they_say(share: float) -> None:
    size = 200_000
    steps = some_steps(1, size, round(share * size))
    _, counts = np.unique(steps.numbers, return_counts=True)
    of_numbers = -float(np.sum(counts * np.log2(counts / counts.sum())))
    of_places = -size * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert len(encode_grid(steps)) <= 1.03 * (of_numbers + of_places) / 8 + 60


def test_what_cannot_be_told_is_an_error_of_the_caller() -> None:
    steps = GridSteps(1000, -20, np.arange(300), np.arange(300))
    with pytest.raises(ValueError, match="300 different"):
        encode_grid(steps)
    with pytest.raises(ValueError, match="different"):
        encode_grid(GridSteps(1, -20, np.array([0]), np.array([1 << 41])))


# --- hostile frames ---------------------------------------------------------------------------------------------------

HONEST = some_steps(2, 500, 60, 40)
FRAME = encode_grid(HONEST)


def test_a_frame_cut_off_anywhere_or_of_another_size_is_refused() -> None:
    for length in range(len(FRAME)):
        with pytest.raises(DecodeError):
            decode_grid(FRAME[:length], 500)
    for frame, size in ((FRAME + b"\0", 500), (FRAME, 501)):
        with pytest.raises(DecodeError):
            decode_grid(frame, size)
    with pytest.raises(VersionError):
        decode_grid(b"\x02" + FRAME[1:], 500)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02\xec\x00",  # exact is 0 or 1
        b"\x01\x80\x00",  # 2^-128
        b"\x01\x7f\x00",  # 2^127
        b"\x01\xec\x00\x00",  # bytes behind nothing
        b"\x01\xec\x06",  # more coordinates than there are
        b"\x01\xec\x01",  # no indices
    ],
    ids=lambda body: body.hex() or "empty",
)
def test_heads_out_of_range_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_grid(pack_frame(body, 5, WIRE_ID), 5)
    with pytest.raises(DecodeError, match="codec"):
        decode_grid(pack_frame(b"\x01\xec\x00", 5, 3), 5)


def test_of_mutated_bodies_nothing_but_an_honest_one_is_read() -> None:
    """With a right checksum, so that the body itself is looked at."""
    body = FRAME[len(pack_frame(b"", 500, WIRE_ID)) :]
    for seed in range(4000):
        rng = random.Random(seed)
        data = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            if rng.random() < 0.7:
                data[place] = rng.randrange(256)
            else:
                data[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 4))
        try:
            steps = decode_grid(pack_frame(bytes(data), 500, WIRE_ID), 500)
        except (DecodeError, VersionError):
            continue
        assert (np.diff(steps.indices) > 0).all() and (not steps.indices.size or 0 <= steps.indices[-1] < 500)
        assert steps.indices.shape == steps.numbers.shape and steps.indices.dtype == steps.numbers.dtype == np.int64
        steps.moved(np.zeros(steps.indices.size, np.float32))


def test_a_few_bytes_that_announce_many_coordinates_cost_little_memory() -> None:
    size = 10_000_000
    tracemalloc.start()
    try:
        for body in (b"\x01\xec\x80\x89\x7a", b"\x01\xec\x80\x89\x7a" + bytes(100)):
            with pytest.raises(DecodeError):
                decode_grid(pack_frame(body, size, WIRE_ID), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20

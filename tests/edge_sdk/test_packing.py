"""Packed blobs: what is unpacked is what was packed, or nothing, within a bound."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.compile import build_zoo_model, compile_model
from edge_sdk.errors import DecodeError
from edge_sdk.training.bundle import encode_parameters
from edge_sdk.wire.packing import FLOAT_STRIDE, PACK_BYTES_MAX, pack, unpack

WORDS = encode_parameters(np.arange(1000, dtype=np.float32))


@given(st.binary(min_size=1, max_size=300), st.integers(1, 40))
def test_what_is_unpacked_is_what_was_packed(data: bytes, times: int) -> None:
    for stride, blob in ((1, data * times), (FLOAT_STRIDE, data * times * 4)):
        packed = pack(blob, stride)
        assert packed is None or (unpack(packed, len(blob)) == blob and len(packed) < len(blob))


def test_a_program_and_the_first_parameters_of_a_model_are_a_fraction_when_packed() -> None:
    graph = build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(200,), seed=0)
    made = compile_model(graph, loss="softmax_cross_entropy", optimizer="sgd", name="m", verify=False)
    program, parameters = made.program.encode(), encode_parameters(made.parameters)
    assert len(pack(program) or program) < len(program) / 3
    assert len(pack(parameters, FLOAT_STRIDE) or parameters) < 0.4 * len(parameters)


def test_what_would_be_hardly_smaller_or_is_too_large_is_not_packed() -> None:
    assert pack(b"") is None and pack(b"x") is None
    assert pack(random.Random(0).randbytes(10_000)) is None
    assert pack(bytes(PACK_BYTES_MAX)) is not None and pack(bytes(PACK_BYTES_MAX + 1)) is None
    assert pack(b"x" * 101, FLOAT_STRIDE) is None, "no whole words"


def deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x01",
        b"\x02" + deflated(WORDS),
        b"\x00" + deflated(WORDS),
        b"\x04" + deflated(WORDS)[:-3],
        b"\x04" + deflated(WORDS) + b"more",
        b"\x04" + deflated(WORDS[:-4]),
        b"\x04" + deflated(WORDS + b"more"),
        b"\x01no stream of deflate",
    ],
)
def test_a_damaged_one_is_refused(packed: bytes) -> None:
    with pytest.raises(DecodeError, match="packed blob"):
        unpack(packed, len(WORDS))


def test_a_bomb_is_not_inflated() -> None:
    bomb = b"\x01" + deflated(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            unpack(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_mutated_ones_give_other_bytes_or_are_refused() -> None:
    packed, chance = pack(WORDS, FLOAT_STRIDE), random.Random(1)
    assert packed is not None
    for _ in range(300):
        mutated = bytearray(packed)
        mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        try:
            assert len(unpack(bytes(mutated), len(WORDS))) == len(WORDS)
        except DecodeError:
            continue

"""An update's two frames: statistics are never sparsified or quantised, and nothing changes without them."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from edge_sdk.errors import DecodeError
from edge_sdk.frames import decode_frames, encode_frames, frames_bytes_max, statistic_mask
from edge_sdk.messages import Update
from edge_sdk.parameters import ParameterSpec
from edge_sdk.update import CodecSettings, decode_update, encode_update, frame_bytes_max

PLAIN = ParameterSpec([("w", (30, 10), "trainable"), ("b", (7,), "trainable")])
MIXED = ParameterSpec(
    [
        ("w", (30, 9), "trainable"),
        ("mean", (10,), "statistic"),
        ("scale", (10,), "trainable"),
        ("variance", (10,), "statistic"),
        ("b", (7,), "trainable"),
    ]
)
CODECS = [CodecSettings("dense"), CodecSettings("int8"), CodecSettings("int4"), CodecSettings("sparse", density=0.05)]


def delta(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(307).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_statistics_arrive_as_they_are_under_every_codec(codec: CodecSettings) -> None:
    sent = encode_frames(delta(), None, codec, MIXED, seed=1)
    found = decode_frames(sent.frame, sent.statistics, codec, MIXED)
    statistic = MIXED.mask("statistic")
    whole = found.whole.dense()
    assert np.array_equal(whole[statistic], delta()[statistic])
    trainable = decode_update(encode_update(delta()[~statistic], None, codec, seed=1).frame, 287, codec)
    assert np.array_equal(whole[~statistic], trainable.dense())
    assert np.array_equal(found.trainable, trainable.values)
    if found.whole.indices is not None:
        assert (np.diff(found.whole.indices) > 0).all() and found.whole.indices.shape == found.whole.values.shape
    assert len(sent.frame) + len(sent.statistics or b"") <= frames_bytes_max(MIXED, codec)


def test_what_is_left_out_of_trainables_comes_with_the_next_update() -> None:
    codec, residual = CodecSettings("sparse", density=0.05), None
    statistic = MIXED.mask("statistic")
    total, sums = np.zeros(307), np.zeros(307)
    for seed in range(5):
        sent = encode_frames(delta(seed), residual, codec, MIXED, seed=seed)
        residual = sent.residual
        total += decode_frames(sent.frame, sent.statistics, codec, MIXED).whole.dense()
        sums += delta(seed)
    assert residual is not None and residual.shape == (287,)
    np.testing.assert_allclose(total[statistic], sums[statistic], rtol=1e-6)
    np.testing.assert_allclose(total[~statistic] + residual, sums[~statistic], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_without_statistics_there_is_one_frame_and_it_is_the_codecs(codec: CodecSettings) -> None:
    sent, plain = encode_frames(delta(), None, codec, PLAIN, seed=1), encode_update(delta(), None, codec, seed=1)
    assert sent.statistics is None and sent.frame == plain.frame
    assert np.array_equal(
        decode_frames(sent.frame, None, codec, PLAIN).trainable, decode_update(plain.frame, 307, codec).values
    )
    assert frames_bytes_max(PLAIN, codec) == frame_bytes_max(307, codec)
    assert statistic_mask(PLAIN) is None


def update(statistics: bytes | None) -> Update:
    return Update(1, 2, 0.5, True, 1.0, "numpy", b"frame", None, statistics)


def test_an_update_without_statistics_has_the_bytes_that_it_always_had() -> None:
    fields = {"examples": 1, "steps": 2, "loss": 0.5, "complete": True, "seconds": 1.0, "engine": "numpy"}
    assert update(None).encode() == msgpack.packb({"version": 1, **fields, "frame": b"frame", "evaluation": None})
    for statistics in (None, b"", b"dense"):
        assert Update.decode(update(statistics).encode()) == update(statistics)


def test_a_frame_of_statistics_too_few_or_too_many_is_refused() -> None:
    codec = CodecSettings("dense")
    mixed, plain = (encode_frames(delta(), None, codec, spec, seed=0) for spec in (MIXED, PLAIN))
    assert mixed.statistics is not None
    damaged = mixed.statistics[:-1] + bytes([mixed.statistics[-1] ^ 1])
    for frame, statistics, spec in [
        (mixed.frame, None, MIXED),
        (plain.frame, mixed.statistics, PLAIN),
        (plain.frame, mixed.statistics, MIXED),
        (mixed.frame, mixed.frame, MIXED),
        (mixed.frame, b"", MIXED),
        (mixed.frame, damaged, MIXED),
    ]:
        with pytest.raises(DecodeError):
            decode_frames(frame, statistics, codec, spec)
    with pytest.raises(DecodeError, match="statistics"):
        Update.decode(msgpack.packb({**msgpack.unpackb(update(None).encode()), "statistics": "text"}))

"""An update's two frames: buffers are never sparsified or quantised, and nothing changes without them."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.codecs import CodecSettings, decode_update, encode_update, frame_bytes_max
from edge_sdk.codecs.frames import (
    DecodedParts,
    decode_frames,
    encode_frames,
    fitted_frames,
    frames_bytes_max,
    groups_of,
    joined,
    untrained_mask,
)
from edge_sdk.errors import DecodeError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.wire.messages import Update

PLAIN = ParameterSpec([("w", (30, 10), "trainable"), ("b", (7,), "trainable")])
MIXED = ParameterSpec(
    [
        ("w", (30, 9), "trainable"),
        ("mean", (10,), "buffer"),
        ("scale", (10,), "trainable"),
        ("variance", (10,), "buffer"),
        ("b", (7,), "trainable"),
    ]
)
CODECS = [CodecSettings("dense"), CodecSettings("int8"), CodecSettings("int4"), CodecSettings("sparse", density=0.05)]
CODECS += [CodecSettings("eden", bits=bits) for bits in (0.25, 1, 3)] + [
    CodecSettings("int2"),
    CodecSettings("float16"),
]


def delta(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(307).astype(np.float32)


def whole(parts: DecodedParts, codec: CodecSettings, spec: ParameterSpec) -> np.ndarray:
    vector = np.zeros(spec.size, dtype=np.float32)
    for group, part in zip(groups_of(spec, codec), parts, strict=True):
        group.put(vector, part.dense())
    return vector


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_statistics_arrive_as_they_are_under_every_codec(codec: CodecSettings) -> None:
    sent = encode_frames(delta(), None, codec, MIXED, seed=1)
    trainable, buffers = decode_frames(sent.frames, codec, MIXED)
    buffer = MIXED.mask("buffer")
    assert np.array_equal(buffers.dense(), delta()[buffer])
    alone = decode_update(encode_update(delta()[~buffer], None, codec, seed=1).frame, 287, codec)
    assert np.array_equal(trainable.dense(), alone.dense())
    assert sum(map(len, sent.frames)) <= frames_bytes_max(MIXED, codec)


def test_what_is_left_out_of_trainables_comes_with_the_next_update() -> None:
    codec, kept = CodecSettings("sparse", density=0.05), None
    buffer = MIXED.mask("buffer")
    total, sums = np.zeros(307), np.zeros(307)
    for seed in range(5):
        sent = encode_frames(delta(seed), kept, codec, MIXED, seed=seed)
        kept, residual = sent.kept, sent.residual
        total += whole(decode_frames(sent.frames, codec, MIXED), codec, MIXED)
        sums += delta(seed)
    assert residual is not None and residual.shape == (287,)
    np.testing.assert_allclose(total[buffer], sums[buffer], rtol=1e-6)
    np.testing.assert_allclose(total[~buffer] + residual, sums[~buffer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_without_statistics_there_is_one_frame_and_it_is_the_codecs(codec: CodecSettings) -> None:
    sent, plain = encode_frames(delta(), None, codec, PLAIN, seed=1), encode_update(delta(), None, codec, seed=1)
    assert sent.frames == (plain.frame,)
    (decoded,) = decode_frames(sent.frames, codec, PLAIN)
    assert np.array_equal(decoded.dense(), decode_update(plain.frame, 307, codec).dense())
    assert frames_bytes_max(PLAIN, codec) == frame_bytes_max(307, codec)
    assert untrained_mask(PLAIN) is None


def test_a_frame_of_statistics_too_few_or_too_many_is_refused() -> None:
    codec = CodecSettings("dense")
    mixed, plain = (encode_frames(delta(), None, codec, spec, seed=0).frames for spec in (MIXED, PLAIN))
    main, buffers = mixed
    damaged = buffers[:-1] + bytes([buffers[-1] ^ 1])
    for frames, spec in [
        ((main,), MIXED),
        ((*plain, buffers), PLAIN),
        ((*plain, buffers), MIXED),
        ((main, main), MIXED),
        ((main, b""), MIXED),
        ((main, damaged), MIXED),
        ((buffers, main), MIXED),
    ]:
        with pytest.raises(DecodeError):
            decode_frames(frames, codec, spec)


RULES = CodecSettings(
    "sparse", density=0.05, tensors=(("b", CodecSettings("dense")), ("sc*", CodecSettings("sparse", density=0.5)))
)


def test_tensors_that_match_a_pattern_are_encoded_as_it_says() -> None:
    sent = encode_frames(delta(), None, RULES, MIXED, seed=1)
    assert len(sent.frames) == 4
    found = whole(decode_frames(sent.frames, RULES, MIXED), RULES, MIXED)
    tensors, original = MIXED.unflatten(found), MIXED.unflatten(delta())
    assert np.array_equal(tensors["b"], original["b"])
    assert np.count_nonzero(tensors["scale"]) == 5 and 0 < np.count_nonzero(tensors["w"]) <= 14
    assert sent.residual is not None
    left = delta()[~MIXED.mask("buffer")] - found[~MIXED.mask("buffer")]
    np.testing.assert_allclose(sent.residual, left, atol=1e-6)
    payload = Update(1, 2, 0.5, True, 1.0, "numpy", {"delta": sent.frames})
    assert Update.decode(payload.encode()) == payload


def test_patterns_may_take_all_tensors_and_one_that_takes_none_makes_no_frame() -> None:
    every = CodecSettings("sparse", tensors=(("nothing*", CodecSettings("int8")), ("*", CodecSettings("dense"))))
    sent = encode_frames(delta(), None, every, PLAIN, seed=1)
    (decoded,) = decode_frames(sent.frames, every, PLAIN)
    assert np.array_equal(decoded.dense(), delta())
    for frames in ((b"x", *sent.frames), (), (*sent.frames, b"x")):
        with pytest.raises(DecodeError, match=r"update: \d frames, the plan makes 1"):
            decode_frames(frames, every, PLAIN)


def test_a_limit_of_bytes_is_kept_by_the_main_group_alone() -> None:
    most = frames_bytes_max(MIXED, RULES) - 10
    fitting = fitted_frames(MIXED, RULES, most)
    assert fitting is not None and fitting.tensors == RULES.tensors and fitting.to_wire()["density"] < 0.05
    assert frames_bytes_max(MIXED, fitting) <= most
    assert fitted_frames(MIXED, RULES, 100) is None


CONVOLUTIONS = ParameterSpec(
    [
        ("conv.weight", (8, 2, 5, 5), "trainable"),
        ("conv.bias", (8,), "trainable"),
        ("gru.weight", (1, 40, 50), "trainable"),
        ("fc.weight", (100, 40), "trainable"),
        ("variance", (8, 3, 3), "buffer"),
    ]
)


def test_auto_gives_kernels_of_convolutions_four_times_the_bits_for_no_more_bytes() -> None:
    auto = CodecSettings("auto", bits=0.1)
    main, kernels, buffers = groups_of(CONVOLUTIONS, auto)
    assert kernels.where == slice(0, 400)
    assert kernels.settings == CodecSettings("eden", bits=0.4) and main.settings.name == "auto"
    assert main.size * main.settings.to_wire()["bits"] + 400 * 0.4 == pytest.approx(0.1 * (main.size + 400), rel=1e-3)
    assert buffers.size == 72 and buffers.kind == "buffers"
    vector = np.random.default_rng(0).standard_normal(CONVOLUTIONS.size).astype(np.float32)
    sent = encode_frames(vector, None, auto, CONVOLUTIONS, seed=1)
    assert len(decode_frames(sent.frames, auto, CONVOLUTIONS)) == 3


def test_auto_leaves_kernels_with_the_rest_where_they_are_many_or_patterns_say_otherwise() -> None:
    many = ParameterSpec([("conv.weight", (8, 2, 5, 5), "trainable"), ("fc.weight", (50, 40), "trainable")])
    assert len(groups_of(many, CodecSettings("auto", bits=0.1))) == 1
    rules = CodecSettings("auto", bits=0.1, tensors=(("fc*", CodecSettings("int8")),))
    assert [group.size for group in groups_of(CONVOLUTIONS, rules)] == [2408, 4000, 72]


@pytest.mark.parametrize("bits", [3, 1, 0.6, 0.09, 0.001])
@pytest.mark.parametrize("limit", [700, 900, 1200, 100_000])
def test_what_auto_makes_within_a_limit_is_read_by_a_decoder_that_knows_the_plan_alone(bits: float, limit: int) -> None:
    plan = CodecSettings("auto", bits=bits)
    fitting = fitted_frames(CONVOLUTIONS, plan, limit)
    if fitting is None:  # the kernels' frame and the buffers alone may be too large
        assert limit < frames_bytes_max(CONVOLUTIONS, plan)
        return
    vector = np.random.default_rng(0).standard_normal(CONVOLUTIONS.size).astype(np.float32)
    sent = encode_frames(vector, None, fitting, CONVOLUTIONS, seed=1)
    assert sum(map(len, sent.frames)) <= limit
    decode_frames(sent.frames, plan, CONVOLUTIONS)


NORMALISED = ParameterSpec(
    [
        ("mean", (3,), "constant"),
        ("w", (30, 9), "trainable"),
        ("variance", (10,), "buffer"),
        ("b", (7,), "trainable"),
        ("scale", (300,), "constant"),
    ]
)
"""The same with constants before, between and behind."""


@pytest.mark.parametrize("codec", [*CODECS, CodecSettings("auto", bits=0.5)], ids=lambda c: c.name)
def test_constants_cost_no_byte_and_decode_to_zero(codec: CodecSettings) -> None:
    constant = NORMALISED.mask("constant")
    without = ParameterSpec([(t.name, t.shape, t.kind) for t in NORMALISED if t.kind != "constant"])
    vector = np.random.default_rng(3).standard_normal(NORMALISED.size).astype(np.float32)
    kept = {"residual": np.full(277, 0.01, np.float32)} if codec.keeps else None
    sent = encode_frames(vector, kept, codec, NORMALISED, seed=1, shared_seed=5)
    alone = encode_frames(vector[~constant], kept, codec, without, seed=1, shared_seed=5)
    assert sent.frames == alone.frames
    assert frames_bytes_max(NORMALISED, codec) == frames_bytes_max(without, codec)
    assert {name: left.tobytes() for name, left in sent.kept.items()} == {
        name: left.tobytes() for name, left in alone.kept.items()
    }
    parts = decode_frames(sent.frames, codec, NORMALISED)
    decoded = joined(groups_of(NORMALISED, codec), [part.dense() for part in parts])
    assert decoded.shape == (NORMALISED.size,) and not decoded[constant].any()
    expected = joined(groups_of(without, codec), [part.dense() for part in decode_frames(alone.frames, codec, without)])
    assert decoded[~constant].tobytes() == expected.tobytes()


def test_a_pattern_that_names_a_constant_makes_no_group_of_it() -> None:
    rules = CodecSettings("int8", tensors=(("mean", CodecSettings("dense")), ("b", CodecSettings("dense"))))
    assert [(g.kind, g.size, g.where) for g in groups_of(NORMALISED, rules)] == [
        ("main", 270, slice(3, 273)),
        ("part", 7, slice(283, 290)),
        ("buffers", 10, slice(273, 283)),
    ]
    several = ParameterSpec([("a", (4,), "trainable"), ("c", (2,), "constant"), ("b", (3,), "trainable")])
    (group,) = groups_of(several, CodecSettings("dense"))
    assert group.positions(np.array([0, 3, 4])).tolist() == [0, 3, 6]
    (group,) = groups_of(ParameterSpec([("c", (2,), "constant"), ("b", (3,), "trainable")]), CodecSettings("dense"))
    assert group.positions(np.array([0, 2])).tolist() == [2, 4]

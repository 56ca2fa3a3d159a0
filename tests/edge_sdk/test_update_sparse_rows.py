"""Updates that are sparse by nature: what is zero stays zero and costs nothing, what is not is sent well."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.server_optimizers import FedAdam
from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings, Decoded, decode_update, encode_update, fitted, frame_bytes_max, frame_codec
from edge_sdk.codecs.eden import bits_for
from edge_sdk.codecs.frames import EncodedFrames, decode_frames, encode_frames, groups_of, joined
from edge_sdk.codecs.sparse_rows import tables_of
from edge_sdk.parameters import ParameterSpec

AUTO = CodecSettings("auto", bits=0.09)
ROWS = CodecSettings("sparse_rows", bits=0.09)
TABLE = ParameterSpec((("table", (3000, 20), "trainable"),))
DEEP = ParameterSpec(
    (
        ("users", (2000, 16), "trainable"),
        ("items", (1000, 16), "trainable"),
        ("inclination", (1000,), "trainable"),
        ("dense", (64, 64), "trainable"),
        ("classes", (10, 3000), "trainable"),
        ("scalar", (), "trainable"),
    )
)


def touched(spec: ParameterSpec, share: float, seed: int = 0) -> NDArray[np.float32]:
    """A delta in which ``share`` of the rows of each tensor of 1000 rows and more has moved, and all of the others."""
    rng = np.random.default_rng(seed)
    parts = []
    for tensor in spec:
        values = rng.standard_normal(tensor.shape).astype(np.float32)
        if tensor.shape and tensor.shape[0] >= 1000:
            values[rng.permutation(tensor.shape[0])[round(share * tensor.shape[0]) :]] = 0.0
        if tensor.name == "classes":
            values[:, rng.permutation(tensor.shape[1])[round(share * tensor.shape[1]) :]] = 0.0
        parts.append(values.ravel())
    return np.concatenate(parts)


def sent(delta: NDArray[np.float32], spec: ParameterSpec, codec: CodecSettings = AUTO, seed: int = 1) -> EncodedFrames:
    return encode_frames(delta, None, codec, spec, seed=seed, shared_seed=7)


def received(frames: EncodedFrames, spec: ParameterSpec, codec: CodecSettings = AUTO) -> NDArray[np.float32]:
    parts = decode_frames(frames.frames, codec, spec)
    return joined(groups_of(spec, codec), [part.plain().dense() for part in parts])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
@pytest.mark.parametrize(("cohort", "adaptive"), [(5, False), (20, True), (100, True), (200, False)])
def test_auto_sends_the_rows_that_moved_whatever_the_size_of_a_round(share: float, cohort: int, adaptive: bool) -> None:
    codec = CodecSettings("auto", bits=bits_for(cohort, adaptive))
    delta = touched(TABLE, share)
    frames = sent(delta, TABLE, codec)
    assert frame_codec(frames.frames[0]) == "sparse_rows" and not frames.kept
    back = received(frames, TABLE, codec)
    assert not back[delta == 0.0].any()
    assert np.square(back - delta).sum() < 0.05 * np.square(delta).sum()


def test_a_row_costs_one_index_and_three_bits_a_coordinate() -> None:
    delta = touched(TABLE, 0.01)
    frame = sent(delta, TABLE).frames[0]
    assert len(frame) < 30 * (20 * 3 / 8 + 10 / 8) + 50
    assert 4 * TABLE.size / len(frame) > 700
    assert len(frame) < len(encode_update(delta, None, CodecSettings("sparse", density=0.01), seed=1).frame)


@pytest.mark.parametrize("bits", [0.01, 0.09, 1.0])
def test_dense_layers_beside_tables_get_noise_and_tables_none_of_it(bits: float) -> None:
    codec = CodecSettings("auto", bits=bits)
    delta = touched(DEEP, 0.02)
    frames = sent(delta, DEEP, codec)
    assert [frame_codec(frame) for frame in frames.frames] == ["sparse_rows"]
    back = received(frames, DEEP, codec)
    for tensor in DEEP:
        where = slice(tensor.offset, tensor.offset + tensor.size)
        if tensor.name in ("dense", "scalar"):
            continue
        assert not back[where][delta[where] == 0.0].any(), tensor.name
        # The rotation of the values is one of all tables, so that an error is a share of their mean square.
        assert np.square(back[where] - delta[where]).sum() < 0.08 * np.square(delta[where]).sum(), tensor.name
    names = {
        table.start: (table.by_columns, table.lines.size)
        for table in tables_of(delta, groups_of(DEEP, codec)[0].matrices)
    }
    assert names == {0: (False, 40), 32_000: (False, 20), 48_000: (False, 20), 53_096: (True, 60)}


def test_what_is_sent_is_right_in_the_mean() -> None:
    delta = touched(DEEP, 0.02)
    mean = sum(received(sent(delta, DEEP, seed=seed), DEEP).astype(np.float64) for seed in range(60)) / 60
    first = received(sent(delta, DEEP), DEEP)
    assert np.square(mean - delta).sum() < np.square(first - delta).sum() / 30


def test_layers_that_did_not_move_are_no_part_of_the_rotation() -> None:
    spec = ParameterSpec((("frozen", (200, 200), "trainable"), ("head", (200, 40), "trainable")))
    delta = np.zeros(spec.size, dtype=np.float32)
    delta[40_000:] = np.random.default_rng(0).standard_normal(8000)
    frames = sent(delta, spec)
    assert frame_codec(frames.frames[0]) == "sparse_rows"
    assert not received(frames, spec)[:40_000].any()
    assert len(frames.frames[0]) < len(encode_update(delta[40_000:], None, CodecSettings("eden"), seed=1).frame) + 30


def test_single_coordinates_are_sparse_with_the_density_that_is_there() -> None:
    delta = np.zeros(TABLE.size, dtype=np.float32)
    where = np.random.default_rng(0).permutation(TABLE.size)[:1000]
    delta[where] = np.random.default_rng(1).standard_normal(1000)
    for bits in (0.01, 0.09):
        codec = CodecSettings("auto", bits=bits)
        frames = sent(delta, TABLE, codec)
        assert frame_codec(frames.frames[0]) == "sparse"
        back = received(frames, TABLE, codec)
        assert np.array_equal(np.flatnonzero(back), np.sort(where))
        assert frames.residual is not None and not frames.residual[delta == 0.0].any()


def test_an_update_that_moves_much_is_rotated_as_before() -> None:
    half = touched(TABLE, 0.5)
    assert frame_codec(sent(half, TABLE).frames[0]) == "eden"
    dense = np.random.default_rng(0).standard_normal(TABLE.size).astype(np.float32)
    assert frame_codec(sent(dense, TABLE).frames[0]) == "eden"
    dense[:200] = 0.0  # ten rows of three thousand
    assert frame_codec(sent(dense, TABLE).frames[0]) == "eden"


def test_what_an_earlier_frame_left_out_is_sent() -> None:
    delta, left = touched(TABLE, 0.01, seed=0), touched(TABLE, 0.01, seed=1)
    frames = encode_frames(delta, {"residual": left}, AUTO, TABLE, seed=1)
    assert not frames.kept
    back = received(frames, TABLE)
    assert np.square(back - delta - left).sum() < 0.05 * np.square(delta + left).sum()


def test_a_device_with_a_limit_of_bytes_sends_rows_with_fewer_bits() -> None:
    delta = touched(TABLE, 0.05)
    whole = len(sent(delta, TABLE).frames[0])
    assert whole > frame_bytes_max(TABLE.size, CodecSettings("eden", bits=0.09))
    for limit in (whole - 1, whole // 2):
        codec = fitted(AUTO, TABLE.size, limit)
        assert codec is not None and frame_bytes_max(TABLE.size, codec) <= limit
        frame = sent(delta, TABLE, codec).frames[0]
        assert frame_codec(frame) == "sparse_rows" and len(frame) <= limit
        back = decode_update(frame, TABLE.size, AUTO).dense()
        assert not back[delta == 0.0].any()


@pytest.mark.parametrize("columns", [1, 2, 20])
@pytest.mark.parametrize("rows", [30, 1100, 5000])
def test_no_table_however_small_is_sent_in_more_bytes_than_dense_takes(rows: int, columns: int) -> None:
    spec = ParameterSpec((("table", (rows, columns), "trainable"), ("bias", (3,), "trainable")))
    for share, bits in itertools.product((0.0, 0.001, 0.01, 0.1, 0.12), (0.01, 0.5, 8.0)):
        delta = touched(spec, share)
        codec = CodecSettings("auto", bits=bits)
        frames = sent(delta, spec, codec).frames
        assert sum(map(len, frames)) <= sum(map(len, sent(delta, spec, CodecSettings("dense")).frames))
        assert len(frames[0]) <= frame_bytes_max(spec.size, codec)


@pytest.mark.parametrize("spec", [TABLE, DEEP])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.124])
@pytest.mark.parametrize("row_bits", [1, 3, 8])
def test_frames_are_within_what_the_codec_promises(spec: ParameterSpec, share: float, row_bits: int) -> None:
    codec = CodecSettings("sparse_rows", bits=0.25, row_bits=row_bits)
    delta = touched(spec, share)
    matrices = groups_of(spec, codec)[0].matrices
    frame = encode_update(delta, None, codec, seed=1, matrices=matrices).frame
    assert len(frame) <= 11 + codec.codec.bytes_max_of(tables_of(delta, matrices), spec.size)  # type: ignore[attr-defined]
    assert len(frame) <= frame_bytes_max(spec.size, codec)
    decoded = decode_update(frame, spec.size, codec)
    assert isinstance(decoded, Decoded) and decoded.indices is not None
    assert (np.diff(decoded.indices) > 0).all()


# --- sums -------------------------------------------------------------------------------------------------------------


def test_sums_of_rows_and_of_rotated_frames_are_exact_in_any_order() -> None:
    """One device moves everything, the others some rows; one says so by single coordinates."""
    deltas = [touched(TABLE, share, seed) for seed, share in enumerate((1.0, 0.01, 0.02, 0.0))]
    deltas[3][::200] = 1.0
    parts = [decode_frames(sent(delta, TABLE, seed=i).frames, AUTO, TABLE) for i, delta in enumerate(deltas)]
    reports = []
    for order in itertools.permutations(range(4)):
        halves = [GroupedMean(groups_of(TABLE, AUTO), FixedPoint(), 7) for _ in range(2)]
        for place, i in enumerate(order):
            halves[place % 2].accumulate(parts[i], 10 + i)
        halves[0].merge(halves[1])
        reports.append(halves[0].report().tobytes())
    assert len(set(reports)) == 1
    plain = sum((10 + i) * part[0].plain().dense().astype(np.float64) for i, part in enumerate(parts))
    np.testing.assert_allclose(np.frombuffer(reports[0], np.float32), plain / 46, atol=1e-5)


def test_a_row_that_one_device_of_many_touched_is_averaged_over_the_weights_of_all() -> None:
    total = GroupedMean(groups_of(TABLE, AUTO), FixedPoint(), 7)
    deltas = [touched(TABLE, 0.01, seed) for seed in range(20)]
    for seed, delta in enumerate(deltas):
        total.accumulate(decode_frames(sent(delta, TABLE, seed=seed).frames, AUTO, TABLE), 5)
    mean, dense = total.report(), np.mean(deltas, axis=0)
    assert not mean[dense == 0.0].any()
    assert np.square(mean - dense).sum() < 0.05 * np.square(dense).sum()


def test_a_server_optimiser_moves_rows_that_nobody_touched_as_with_dense() -> None:
    optimiser = FedAdam(eta=0.1)
    states = {}
    for codec in (AUTO, CodecSettings("dense")):
        model, memory = np.zeros(TABLE.size, dtype=np.float32), optimiser.init(TABLE.size)
        for number in range(3):
            total = GroupedMean(groups_of(TABLE, codec), FixedPoint(), 7)
            for seed in range(5):
                delta = touched(TABLE, 0.01, 10 * number + seed)
                total.accumulate(decode_frames(sent(delta, TABLE, codec, seed).frames, codec, TABLE), 1)
            model, memory = optimiser.apply(model, total.report(), memory)
        states[codec.name] = model
    untouched = states["dense"] == 0.0
    assert untouched.sum() > 0.8 * TABLE.size
    assert not states["auto"][untouched].any()

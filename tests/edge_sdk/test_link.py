"""ModelDeltas: every device's copy is the coordinator's to the bit, and no bytes make anything else of it."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings, decode_update
from edge_sdk.codecs.grid import GridSteps, decode_grid
from edge_sdk.errors import DecodeError, TrainingError, VersionError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import (
    Choose,
    ModelDelta,
    apply_model_deltas,
    encode_model_delta,
    merge_model_deltas,
    spans_of,
)

GOLDEN = Path(__file__).parent.parent / "golden"
PLAIN = ParameterSpec([("w", (30, 10), "trainable"), ("b", (7,), "trainable")])
MIXED = ParameterSpec(
    [
        ("w", (30, 9), "trainable"),
        ("mean", (5,), "buffer"),
        ("variance", (5,), "buffer"),
        ("scale", (10,), "trainable"),
        ("count", (10,), "buffer"),
        ("b", (7,), "trainable"),
    ]
)
NORMALISED = ParameterSpec(
    [
        ("w", (30, 10), "trainable"),
        ("variance", (7,), "buffer"),
        ("mean", (5,), "constant"),
        ("scale", (5,), "constant"),
        ("b", (7,), "trainable"),
        ("table", (1000,), "constant"),
    ]
)
ONLY_STATISTICS = ParameterSpec([("mean", (4,), "buffer")])


def largest(share: float, exponent: int = -20, quantum: int = 12) -> Choose:
    """A chooser of the simplest kind: the largest share of the changes, in steps of 2^quantum of the grid's."""

    def choose(wanted: NDArray[np.float32], held: NDArray[np.float32]) -> GridSteps:
        missing = wanted.astype(np.float64) - held
        indices = np.sort(np.argsort(-np.abs(missing), kind="stable")[: max(1, round(share * missing.size))])
        numbers = np.rint(np.ldexp(missing[indices], -exponent - quantum)).astype(np.int64) << quantum
        return GridSteps(missing.size, exponent, indices, numbers)

    return choose


CHOOSERS = {"few": largest(0.05), "all": largest(1.0, quantum=14)}
by_choice = pytest.mark.parametrize("choose", CHOOSERS.values(), ids=CHOOSERS.keys())


def walk(seed: int, size: int, steps: int) -> list[NDArray[np.float32]]:
    """A model on its way."""
    draw = np.random.Generator(np.random.PCG64(seed))
    model = draw.standard_normal(size)
    return [(model := model + 0.1 * draw.standard_normal(size)).astype(np.float32) for _ in range(steps)]


def chain(models: list[NDArray[np.float32]], spec: ParameterSpec, choose: Choose) -> tuple[list[bytes], list[bytes]]:
    """What devices hold of a model on its way: all parameters, and the deltas between them."""
    published, deltas = [encode_parameters(models[0])], []
    for model in models[1:]:
        model_delta, blob = encode_model_delta(
            published[-1], model, spans_of(spec, "buffer"), choose, constants=spans_of(spec, "constant")
        )
        deltas.append(model_delta)
        published.append(blob)
    return published, deltas


# --- the way down -----------------------------------------------------------------------------------------------------


@by_choice
@pytest.mark.parametrize("spec", [PLAIN, MIXED, NORMALISED], ids=["plain", "mixed", "normalised"])
@given(seed=st.integers(0, 1 << 32), data=st.data())
@settings(max_examples=25, deadline=None)
def test_after_any_history_a_copy_is_the_coordinators_to_the_bit(
    spec: ParameterSpec, choose: Choose, seed: int, data: st.DataObject
) -> None:
    published, deltas = chain(walk(seed, spec.size, 6), spec, choose)
    seen = data.draw(st.lists(st.integers(0, 5), min_size=1, unique=True).map(sorted), "rounds not missed")
    held = published[seen[0]]
    for before, after in itertools.pairwise(seen):
        held = apply_model_deltas(held, deltas[before:after], digest_of(published[after]))
        assert held == published[after] and held.readonly


@by_choice
def test_what_a_link_leaves_out_comes_with_later_ones(choose: Choose) -> None:
    model = walk(1, MIXED.size, 2)
    published, _ = chain([model[0]] + 60 * [model[1]], MIXED, choose)
    gaps = [float(np.abs(decode_parameters(blob, MIXED) - model[1]).max()) for blob in published]
    assert gaps[1] < gaps[0] and gaps[-1] <= 0.03 * gaps[0]


@by_choice
def test_statistics_are_replaced_and_not_moved(choose: Choose) -> None:
    models = walk(2, MIXED.size, 3)
    models[2][MIXED.mask("buffer")] = np.float32(1e-30)  # a sum of steps would not find this again
    published, _ = chain(models, MIXED, choose)
    for model, blob in zip(models, published, strict=True):
        buffer = MIXED.mask("buffer")
        assert decode_parameters(blob, MIXED)[buffer].tobytes() == model[buffer].tobytes()


@by_choice
def test_constants_arrive_exactly_when_they_change_and_cost_nothing_when_they_do_not(choose: Choose) -> None:
    models = walk(9, NORMALISED.size, 5)
    constant, table = NORMALISED.mask("constant"), slice(-1000, None)
    for model in models[1:]:
        model[table] = models[0][table]
    for number in (1, 3, 4):
        models[number][constant] = models[number - 1][constant]
    published, deltas = chain(models, NORMALISED, choose)
    for model, blob in zip(models, published, strict=True):
        assert decode_parameters(blob, NORMALISED)[constant].tobytes() == model[constant].tobytes()
    assert apply_model_deltas(published[0], deltas, digest_of(published[-1])) == published[-1]
    told = [ModelDelta.decode(each) for each in deltas]
    unchanged, changed = ((300, 307),), ((300, 307), (307, 317))
    assert [each.replaced for each in told] == [unchanged, changed, unchanged, unchanged]
    assert [each.kept for each in told] == [((307, 317), (324, 1324)), ((324, 1324),), *2 * [((307, 317), (324, 1324))]]
    without = ParameterSpec([(t.name, t.shape, t.kind) for t in NORMALISED if t.kind != "constant"])
    plain = chain([model[~constant] for model in models], without, choose)[1]
    assert abs(len(deltas[0]) - len(plain[0])) <= 32


def test_a_model_of_statistics_alone_has_a_link_too() -> None:
    published, deltas = chain(walk(3, 4, 2), ONLY_STATISTICS, CHOOSERS["few"])
    assert apply_model_deltas(published[0], deltas, digest_of(published[1])) == encode_parameters(walk(3, 4, 2)[1])


def test_a_coordinate_is_put_on_the_grid_and_moved_by_whole_steps() -> None:
    """Written down a second time, one coordinate after the other, in whole numbers."""
    published, deltas = chain(walk(4, MIXED.size, 2), MIXED, CHOOSERS["few"])
    vector = decode_parameters(published[0], MIXED).copy()
    trainable = np.flatnonzero(MIXED.mask("trainable"))
    model_delta = ModelDelta.decode(deltas[0])
    steps = decode_grid(model_delta.frame, trainable.size)
    assert steps.indices.size == round(0.05 * trainable.size)
    for index, number in zip(steps.indices, steps.numbers, strict=True):
        place, unit = trainable[index], Fraction(1, 1 << 20)
        start = math.floor(Fraction(float(vector[place])) / unit + Fraction(1, 2))
        vector[place] = np.float32(float((start + int(number)) * unit))
    buffers = MIXED.mask("buffer")
    vector[buffers] = decode_update(model_delta.values, int(buffers.sum()), CodecSettings("dense")).values
    assert encode_parameters(vector) == published[1]


@by_choice
@pytest.mark.parametrize("spec", [PLAIN, MIXED, NORMALISED], ids=["plain", "mixed", "normalised"])
def test_merged_links_lead_to_the_same_bits_in_fewer_bytes(spec: ParameterSpec, choose: Choose) -> None:
    models = walk(11, spec.size, 9)
    for model in models:
        model[spec.mask("constant")] = models[0][spec.mask("constant")]
    published, deltas = chain(models, spec, choose)
    whole = merge_model_deltas(deltas)
    halves = [merge_model_deltas(deltas[:3]), merge_model_deltas(deltas[3:])]
    assert whole is not None and halves[0] is not None and halves[1] is not None
    assert apply_model_deltas(published[0], [whole], digest_of(published[-1])) == published[-1]
    assert apply_model_deltas(published[0], halves, digest_of(published[-1])) == published[-1]
    assert merge_model_deltas(halves) == whole, "in any groups"
    assert len(whole) < sum(map(len, halves)) < sum(map(len, deltas))


def test_links_are_not_merged_where_constants_change_or_the_grid_does() -> None:
    models = walk(12, NORMALISED.size, 4)
    _, deltas = chain(models, NORMALISED, CHOOSERS["few"])
    assert merge_model_deltas(deltas) is not None, "all replaced every time"
    models[2][NORMALISED.mask("constant")] = models[1][NORMALISED.mask("constant")]
    _, deltas = chain(models, NORMALISED, CHOOSERS["few"])
    assert merge_model_deltas(deltas) is None
    _, (first,) = chain([model[: PLAIN.size] for model in models[:2]], PLAIN, CHOOSERS["few"])
    base = encode_parameters(models[1][: PLAIN.size])
    second, _ = encode_model_delta(base, models[2][: PLAIN.size], (), largest(0.05, exponent=-19))
    assert merge_model_deltas([first, second]) is None


def test_equal_models_make_equal_links_and_what_is_given_stays_as_it_is() -> None:
    base, model = (encode_parameters(vector) for vector in walk(5, PLAIN.size, 2))
    vector = decode_parameters(model, PLAIN).copy()
    first, again = (encode_model_delta(base, vector, (), CHOOSERS["few"]) for _ in range(2))
    assert first == again and encode_parameters(vector) == model
    apply_model_deltas(base, [first[0]], digest_of(first[1]))
    assert digest_of(base) == ModelDelta.decode(first[0]).base


def test_a_sparse_link_is_far_smaller_than_the_model() -> None:
    spec = ParameterSpec([("w", (100_000,), "trainable")])
    (whole, _), (model_delta,) = chain(walk(6, spec.size, 2), spec, CHOOSERS["few"])
    assert len(model_delta) * 30 < len(whole)


def test_spans_name_the_statistics_and_join_those_that_touch() -> None:
    assert spans_of(PLAIN, "buffer") == ()
    assert spans_of(MIXED, "buffer") == ((270, 280), (290, 300))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_model_that_has_diverged_is_not_sent(value: float) -> None:
    base = encode_parameters(np.zeros(PLAIN.size, np.float32))
    model = np.zeros(PLAIN.size, np.float32)
    model[3] = value
    with pytest.raises(TrainingError):
        encode_model_delta(base, model, (), CHOOSERS["few"])
    with pytest.raises(ValueError, match="elements"):
        encode_model_delta(base, model[:-1], (), CHOOSERS["few"])


# --- committed bytes --------------------------------------------------------------------------------------------------


def test_committed_links_lead_to_the_committed_parameters_for_ever() -> None:
    base, target = ((GOLDEN / f"link_{name}.bin").read_bytes() for name in ("base", "target"))
    deltas = [(GOLDEN / f"link_{name}.bin").read_bytes() for name in ("few", "all")]
    assert apply_model_deltas(base, deltas, digest_of(target)) == target
    assert apply_model_deltas(base, [(GOLDEN / "link_merged.bin").read_bytes()], digest_of(target)) == target
    first = ModelDelta.decode(deltas[0])
    assert (first.base, first.size) == (digest_of(base), MIXED.size)
    assert first.replaced == spans_of(MIXED, "buffer")
    assert first.encode() == deltas[0]


# --- hostile deltas --------------------------------------------------------------------------------------------------

PUBLISHED, LINKS = chain(walk(7, MIXED.size, 4), MIXED, CHOOSERS["few"])
HONEST = ModelDelta.decode(LINKS[0])


def refused(*deltas: bytes, base: bytes = PUBLISHED[0], target: bytes = digest_of(PUBLISHED[1])) -> str:
    with pytest.raises(DecodeError) as caught:
        apply_model_deltas(base, deltas, target)
    return caught.value.reason


def test_links_out_of_order_missing_or_from_another_base_are_refused() -> None:
    end = digest_of(PUBLISHED[3])
    assert apply_model_deltas(PUBLISHED[0], LINKS, end) == PUBLISHED[3]
    assert refused(LINKS[0], LINKS[2], target=end) == "chain"
    assert refused(LINKS[1], LINKS[0], LINKS[2], target=end) == "chain"
    assert refused(LINKS[0], LINKS[1], target=end) == "chain"
    assert refused(target=end) == "chain"
    assert refused(*LINKS, base=PUBLISHED[1], target=end) == "digest"
    assert refused(LINKS[0], base=encode_parameters(np.zeros(3, np.float32))) == "spec"
    assert refused(LINKS[0], base=b"EFPV") == "magic"


def test_a_link_that_lies_about_where_it_leads_is_refused() -> None:
    other = encode_model_delta(PUBLISHED[0], walk(8, MIXED.size, 1)[0], spans_of(MIXED, "buffer"), CHOOSERS["few"])[0]
    lying = replace(ModelDelta.decode(other), target=HONEST.target).encode()
    assert refused(lying) == "digest"


@pytest.mark.parametrize(
    "changes",
    [
        {"replaced": [[0, 10], [5, 20]]},
        {"replaced": [[20, 30], [10, 20]]},
        {"kept": [[275, 285]]},
        {"kept": [[0, 10]]},
        {"kept": [[5, 5]]},
        {"kept": [[300, 308]]},
        {"kept": None},
        {"replaced": [[300, 308]]},
        {"replaced": [[5, 5]]},
        {"replaced": [[5]]},
        {"replaced": [[0.0, 1.0]]},
        {"replaced": [["a", "b"]]},
        {"replaced": [[False, True]]},
        {"replaced": 10_001 * [[0, 1]]},
        {"replaced": None},
        {"replaced": [[270, 280]]},
        {"replaced": []},
        {"replaced": [[0, 307]]},
        {"size": 0},
        {"size": -1},
        {"size": 1 << 60},
        {"size": True},
        {"size": 300},
        {"base": b"short"},
        {"target": "text"},
        {"frame": None},
        {"frame": b""},
        {"values": b""},
        {"values": 7},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_fields_out_of_range_are_refused(changes: dict[str, object]) -> None:
    fields = msgpack.unpackb(LINKS[0][8:]) | changes
    with pytest.raises(DecodeError):
        apply_model_deltas(PUBLISHED[0], [LINKS[0][:8] + msgpack.packb(fields)], HONEST.target)


def test_versions_of_tomorrow_are_told_apart_from_damage() -> None:
    frame = b"\x02" + HONEST.frame[1:]
    for data in (b"EFLK\x02\x00" + LINKS[0][6:], replace(HONEST, frame=frame).encode()):
        with pytest.raises(VersionError):
            apply_model_deltas(PUBLISHED[0], [data], HONEST.target)


def test_a_link_cut_off_anywhere_is_refused() -> None:
    for length in range(len(LINKS[0])):
        refused(LINKS[0][:length])
    refused(LINKS[0] + b"\0")


def test_whatever_bytes_come_nothing_but_the_wanted_parameters_is_made() -> None:
    _, every = chain(walk(7, MIXED.size, 2), MIXED, CHOOSERS["all"])
    for seed in range(2000):
        rng = random.Random(seed)
        data = bytearray(rng.choice((LINKS[0], every[0])))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            if rng.random() < 0.7:
                data[place] = rng.randrange(256)
            else:
                data[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 5))
        try:
            assert apply_model_deltas(PUBLISHED[0], [data], HONEST.target) == PUBLISHED[1]
        except (DecodeError, VersionError):
            pass


def test_a_few_hostile_bytes_cost_little_memory() -> None:
    """A large base is all that is ever allocated, once, whatever a model delta announces."""
    base = encode_parameters(np.zeros(250_000, np.float32))
    bombs = [replace(HONEST, size=1 << 28), replace(HONEST, size=250_000), replace(HONEST, frame=bytes(1000))]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(DecodeError):
                apply_model_deltas(base, [bomb.encode()], HONEST.target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(base)

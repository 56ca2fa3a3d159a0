"""Codec settings: checked once locally, and never believed from the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import CODECS, CodecSettings, settings_of
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError

GOOD = CodecSettings("int4", block_size=64, rounding="nearest").to_wire()
EDEN = CodecSettings("eden", bits=0.5).to_wire()
SPARSE = CodecSettings("sparse")
TEXT = st.sampled_from(["", "sparse", "nearest", "density", "no such thing", "x" * 1000])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8)


@pytest.mark.parametrize("name", CODECS)
def test_settings_survive_the_wire(name: str) -> None:
    rules = (("*.bias", CodecSettings("dense")), ("fc*", CodecSettings("eden", bits=4)))
    changed = CodecSettings.of(name, density=0.02, block_size=512, rounding="nearest", bits=0.5).codec
    value = CodecSettings(changed, tensors=rules)
    assert CodecSettings.from_wire(value.to_wire()) == value
    assert CodecSettings.from_wire({**value.to_wire(), "of_a_later_version": [1, 2]}) == value
    assert hash(CodecSettings.from_wire(value.to_wire())) == hash(value)


@pytest.mark.parametrize("name", CODECS)
def test_a_map_on_the_wire_holds_what_the_codec_reads_and_nothing_else(name: str) -> None:
    reads = [field.name for field in settings_of(CODECS[name]) if field.metadata["told"]]
    assert list(CodecSettings(name).to_wire()) == ["name", *reads]
    for key in reads:
        wire = CodecSettings(name).to_wire()
        del wire[key]
        with pytest.raises(DecodeError, match=f"plan.codec.{key}: missing"):
            CodecSettings.from_wire(wire)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("zip", "name", None),
        ("sparse", "density", 0.0),
        ("sparse", "density", 1.5),
        ("sparse", "density", float("nan")),
        ("sparse", "density", True),
        ("sparse", "density", "0.1"),
        ("sparse", "momentum", 1.0),
        ("int8", "block_size", 7),
        ("int4", "block_size", 1 << 17),
        ("int2", "block_size", 64.0),
        ("int8", "block_size", True),
        ("int8", "rounding", "up"),
        ("int8", "rounding", 1),
        ("eden", "bits", 0.0),
        ("auto", "bits", 9),
        ("eden", "bits", 1.5),
        ("eden", "bits", True),
        ("auto", "bits", float("nan")),
        ("auto", "participation", 1.5),
    ],
)
def test_a_local_mistake_names_field_and_value(name: str, field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"codec.{field} = .*: must be "):
        CodecSettings(name, **({} if field == "name" else {field: value}))


@pytest.mark.parametrize(
    "rules",
    [(("", SPARSE),), (("x" * 201, SPARSE),), (("*", CodecSettings("sparse", tensors=(("*", SPARSE),))),),
     (("*", SPARSE),) * 17],
)  # fmt: skip
def test_a_local_mistake_in_rules_is_named(rules: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"codec\.tensors"):
        CodecSettings("sparse", tensors=rules)


def test_what_a_codec_does_not_read_is_refused_with_what_it_reads() -> None:
    with pytest.raises(ConfigurationError, match=r"codec\.density: is not read by int8, which reads block_size, round"):
        CodecSettings("int8", density=0.1)
    with pytest.raises(ConfigurationError, match=r"codec\.bits: is not read by dense, which has no settings"):
        CodecSettings("dense", bits=1)
    assert CodecSettings.of("dense", bits=1) == CodecSettings("dense")


def test_settings_can_be_changed_one_by_one() -> None:
    rules = (("*.bias", CodecSettings("dense")),)
    asked = CodecSettings("eden", bits=2, tensors=rules)
    assert asked.but(bits=0.5) == CodecSettings("eden", bits=0.5, tensors=rules)
    assert asked.taking_part(0.2) == asked
    assert CodecSettings("auto", bits=1).taking_part(0.2) == CodecSettings("auto", bits=1, participation=0.2)
    assert asked.keeps == frozenset() and CodecSettings("dense", tensors=(("*", SPARSE),)).keeps == SPARSE.keeps


@pytest.mark.parametrize("field", GOOD)
@pytest.mark.parametrize("value", [None, -1, 1e300, float("nan"), True, "x" * 1000, [], {}, b"sparse"])
def test_a_remote_mistake_is_a_decode_error(field: str, value: object) -> None:
    with pytest.raises(DecodeError):
        CodecSettings.from_wire({**GOOD, field: value})
    with pytest.raises(DecodeError):
        CodecSettings.from_wire({key: v for key, v in GOOD.items() if key != field})


def test_a_codec_of_a_later_version_says_which_side_to_upgrade() -> None:
    with pytest.raises(VersionError, match="upgrade this side"):
        CodecSettings.from_wire({**GOOD, "name": "of a later version"})


@pytest.mark.parametrize(
    "fields",
    [
        {"tensors": {}},
        {"tensors": [["*"]]},
        {"tensors": [["", GOOD]]},
        {"tensors": [[1, GOOD]]},
        {"tensors": [["*", None]]},
        {"tensors": [["*", {**GOOD, "tensors": [["*", GOOD]]}]]},
        {"tensors": [["*", GOOD]] * 17},
    ],
)
def test_a_remote_mistake_in_what_may_be_absent_is_a_decode_error(fields: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        CodecSettings.from_wire({**GOOD, **fields})


@pytest.mark.parametrize("bits", [0, "1", 100, 1.5, None, True, float("nan")])
def test_bits_that_make_no_sense_are_a_decode_error(bits: object) -> None:
    with pytest.raises(DecodeError, match=r"plan\.codec\.bits"):
        CodecSettings.from_wire({**EDEN, "bits": bits})


@settings(max_examples=100, deadline=None)
@given(SCALARS | st.lists(SCALARS, max_size=3) | st.fixed_dictionaries(dict.fromkeys(GOOD, SCALARS)))
def test_nothing_on_the_wire_raises_anything_else(value: object) -> None:
    try:
        CodecSettings.from_wire(value)
    except (DecodeError, VersionError):
        pass

"""Codec settings: checked once locally, and never believed from the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import CODECS, CodecSettings
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError

GOOD = CodecSettings("int4", density=0.25, block_size=64, rounding="nearest").to_wire()
TEXT = st.sampled_from(["", "sparse", "nearest", "density", "no such thing", "x" * 1000])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8)


@pytest.mark.parametrize("name", CODECS)
def test_settings_survive_the_wire(name: str) -> None:
    rules = (("*.bias", CodecSettings("dense")), ("fc*", CodecSettings("eden", bits=4)))
    value = CodecSettings(name, density=0.03, block_size=512, rounding="nearest", bits=0.5, tensors=rules)
    assert CodecSettings.from_wire(value.to_wire()) == value
    assert CodecSettings.from_wire({**value.to_wire(), "of_a_later_version": [1, 2]}) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "zip"),
        ("name", None),
        ("name", ["sparse"]),
        ("density", 0.0),
        ("density", 1.5),
        ("density", float("nan")),
        ("density", True),
        ("density", "0.1"),
        ("block_size", 7),
        ("block_size", 1 << 17),
        ("block_size", 64.0),
        ("block_size", True),
        ("rounding", "up"),
        ("rounding", 1),
        ("bits", 0.0),
        ("bits", 9),
        ("bits", 1.5),
        ("bits", True),
        ("bits", float("nan")),
        ("tensors", (("", CodecSettings()),)),
        ("tensors", (("x" * 201, CodecSettings()),)),
        ("tensors", (("*", CodecSettings(tensors=(("*", CodecSettings()),))),)),
        ("tensors", (("*", CodecSettings()),) * 17),
    ],
)
def test_a_local_mistake_names_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"codec.{field}"):
        CodecSettings(**{field: value})


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
        {"bits": 0},
        {"bits": "1"},
        {"bits": 100},
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


@settings(max_examples=100, deadline=None)
@given(SCALARS | st.lists(SCALARS, max_size=3) | st.fixed_dictionaries(dict.fromkeys(GOOD, SCALARS)))
def test_nothing_on_the_wire_raises_anything_else(value: object) -> None:
    try:
        CodecSettings.from_wire(value)
    except (DecodeError, VersionError):
        pass

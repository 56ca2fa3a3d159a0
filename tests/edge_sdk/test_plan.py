"""The training plan on the wire: what is sent comes back, what makes no sense is refused and named."""

from __future__ import annotations

from typing import Any

import pytest

from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import mapping
from edge_sdk.wire.plan import SCALARS_MAX, TrainingPlan

PLAN = TrainingPlan(epochs=3, batch_size=8, steps_max=100, seconds_max=30.0, scalars={"lr": 0.1, "mu": 0.0})


def test_a_plan_survives_the_trip() -> None:
    assert TrainingPlan.from_wire(PLAN.to_wire()) == PLAN


def test_unknown_fields_are_ignored() -> None:
    assert TrainingPlan.from_wire(PLAN.to_wire() | {"warmup": 5}) == PLAN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("epochs", 1.0),
        ("epochs", None),
        ("batch_size", 1 << 21),
        ("steps_max", -1),
        ("seconds_max", float("nan")),
        ("seconds_max", -1),
        ("held_out", 0.95),
        ("held_out_last", 1),
        ("clip_norm", float("inf")),
        ("scalars", {"lr": "fast"}),
        ("scalars", {1: 0.5}),
        ("scalars", [0.1]),
        ("scalars", {f"s{i}": 0.0 for i in range(SCALARS_MAX + 1)}),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(field: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=field):
        TrainingPlan.from_wire(PLAN.to_wire() | {field: value})


@pytest.mark.parametrize("field", PLAN.to_wire())
def test_no_field_may_be_missing(field: str) -> None:
    wire = PLAN.to_wire()
    del wire[field]
    with pytest.raises(DecodeError, match=field):
        TrainingPlan.from_wire(wire)


@pytest.mark.parametrize("value", [None, [], "text", 5, {b"bytes": 1}, {1: 1}])
def test_only_a_map_with_text_keys_is_a_map(value: object) -> None:
    with pytest.raises(DecodeError):
        mapping(value, "plan")

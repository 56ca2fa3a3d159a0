"""A device refuses a bundle that contradicts itself before any engine sees it: the work fails, the device goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hand_made import blobs, mlp_program, start

from edge_sdk.codecs import CodecSettings
from edge_sdk.device.session import StartTraining
from edge_sdk.device.training_job import TrainingJob
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.training.bundle import digest_of, encode_parameters
from edge_sdk.wire.plan import Plan, TrainingPlan

PROGRAM = mlp_program()
PARAMETERS = encode_parameters(start(PROGRAM))


def order(program: bytes, parameters: bytes = PARAMETERS) -> TrainingJob:
    plan = Plan(TrainingPlan(), CodecSettings("dense"))
    digests = digest_of(program), digest_of(parameters)
    begun = StartTraining(bytes(16), bytes(8), "default", 1, 1, "0", *digests, plan, 10.0)
    return TrainingJob(
        begun, program, parameters, lambda spec: {}, lambda length: True, 0, lambda: False, lambda steps, loss: None
    )


def run(program: bytes, parameters: bytes = PARAMETERS, engine: str = "no such engine") -> Any:
    """Any program that gets as far as an engine ends in that engine's ConfigurationError."""
    return TrainingWork(lambda: blobs(20), engines=EngineCache(engine)).run(order(program, parameters))


def with_fields(change: Callable[[dict[str, Any]], None]) -> bytes:
    data = PROGRAM.encode()
    fields = msgpack.unpackb(data[8:])
    change(fields)
    return data[:8] + msgpack.packb(fields)


def test_a_sound_bundle_reaches_the_engine_and_trains() -> None:
    with pytest.raises(ConfigurationError, match="no such engine"):
        run(PROGRAM.encode())
    assert run(PROGRAM.encode(), engine="numpy").result.steps == 1


def read_what_nobody_made(fields: dict[str, Any]) -> None:
    fields["train_plan"]["nodes"][0][1][0] = "nowhere"


def leave_an_output_out(fields: dict[str, Any]) -> None:
    fields["train_plan"]["outputs"].pop()


def take_an_input_of_nobody(fields: dict[str, Any]) -> None:
    fields["evaluate_plan"]["inputs"].append("somebody")


def claim_a_constant_larger_than_its_bytes(fields: dict[str, Any]) -> None:
    fields["train_plan"]["constants"]["off_on"][1] = [1 << 20]


def name_a_parameter_that_no_plan_knows(fields: dict[str, Any]) -> None:
    fields["spec"][0][0] = "another"


def grow_beyond_every_limit(fields: dict[str, Any]) -> None:
    fields["spec"][0][1] = [1 << 40]


def fix_the_batch(fields: dict[str, Any]) -> None:
    fields["inputs"][0][2] = [4, 6]


@pytest.mark.parametrize(
    "change",
    [
        read_what_nobody_made,
        leave_an_output_out,
        take_an_input_of_nobody,
        claim_a_constant_larger_than_its_bytes,
        name_a_parameter_that_no_plan_knows,
        grow_beyond_every_limit,
        fix_the_batch,
    ],
    ids=lambda change: change.__name__,
)
def test_a_program_whose_plan_and_shapes_disagree_is_refused_before_any_engine(
    change: Callable[[dict[str, Any]], None],
) -> None:
    with pytest.raises(DecodeError):
        run(with_fields(change))


@pytest.mark.parametrize("size", [1, PROGRAM.spec.size - 1, PROGRAM.spec.size + 1])
def test_parameters_of_another_shape_are_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=f"{size} element"):
        run(PROGRAM.encode(), encode_parameters(np.zeros(size, np.float32)), engine="numpy")

"""Large constants travel once; whatever a hostile program writes in their place is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from coordinator.compile import build_zoo_model, compile_model
from edge_sdk.errors import DecodeError
from edge_sdk.training.bundle import Bundle, Program

MODEL = build_zoo_model("mlp", inputs=(64,), hidden=(48,), outputs=3, seed=0)
FROZEN_BYTES = 4 * 64 * 48


def partly_frozen() -> Bundle:
    return compile_model(MODEL, loss="softmax_cross_entropy", train=["fc2*"], name="m", verify=False)


def test_a_frozen_weight_is_in_the_program_once_and_comes_back_everywhere() -> None:
    program = partly_frozen().program
    data = program.encode()
    again = Program.decode(data)
    assert FROZEN_BYTES < len(data) < 1.9 * FROZEN_BYTES
    for name in ("train", "evaluate", "infer"):
        assert getattr(again, name) == getattr(program, name)
        plan, before = getattr(again, f"{name}_plan"), getattr(program, f"{name}_plan")
        assert plan.nodes == before.nodes and set(plan.constants) == set(before.constants)
        for key, array in before.constants.items():
            np.testing.assert_array_equal(plan.constants[key], array)
    assert again.encode() == data and again.digest == program.digest


def test_a_program_without_large_constants_is_written_as_ever() -> None:
    program = compile_model(MODEL, loss="softmax_cross_entropy", name="m", verify=False).program
    assert b"shared" not in program.encode()


def changed(**fields: Any) -> bytes:
    data = partly_frozen().program.encode()
    body = msgpack.unpackb(data[8:])
    return data[:8] + msgpack.packb({**body, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared": []}, "there is no number 0, there are 0"),
        ({"shared": {"a": 1}}, "expected a list of byte strings"),
        ({"shared": [1, 2]}, "expected a list of byte strings"),
        ({"train": [b"a", -1]}, "there is no number -1"),
        ({"train": [b"a", "text"]}, "expected bytes, or a list of bytes and numbers"),
        ({"train": [b"a", True]}, "expected bytes, or a list of bytes and numbers"),
        ({"train": [0] * 20_000}, "more than 67108864 bytes"),
        ({"train": [0] * 200_000}, "more than 100000 segments"),
        ({"shared": None}, "program"),
    ],
)
def test_what_cannot_be_put_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        Program.decode(changed(**fields))

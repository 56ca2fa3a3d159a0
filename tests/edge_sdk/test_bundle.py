"""Programs, parameters and bundle files: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hand_made import mlp_program, start

from edge_sdk.errors import BundleError, DecodeError, VersionError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import (
    Bundle,
    Input,
    Node,
    NumpyPlan,
    Program,
    decode_parameters,
    digest_of,
    encode_parameters,
)
from edge_sdk.training.normalise import Normalise

GOLDEN = Path(__file__).parent.parent / "golden"


def small_program() -> Program:
    """A program with one of everything that the wire form knows; its bytes are in tests/golden."""
    plan = NumpyPlan(
        inputs=("x", "target", "w", "state/momentum/w", "lr"),
        outputs=("loss", "new/w", "new/state/momentum/w"),
        constants={
            "axes": np.array([0, -1], dtype=np.int64),
            "half": np.array(0.5, dtype=np.float32),
            "empty": np.zeros((0, 2), dtype=np.uint8),
        },
        nodes=(
            Node("Gemm", ("x", "w"), ("y",), {"alpha": 0.25, "transA": 0, "transB": 1}),
            Node("Clip", ("y", "", "half"), ("z",)),
            Node("ReduceSum", ("z", "axes"), ("loss",), {"keepdims": 0}),
            Node("Identity", ("w",), ("new/w",)),
            Node("Conv", ("state/momentum/w",), ("new/state/momentum/w",), {"pads": [0, 1], "auto_pad": "NOTSET"}),
            Node("ConstantOfShape", ("axes",), ("unused",), {"value": np.array([1.5], dtype=np.float32)}),
        ),
    )
    evaluate = NumpyPlan(
        inputs=("x", "w"),
        outputs=("loss_sum", "metric_sum"),
        nodes=(Node("Split", ("x",), ("loss_sum", "metric_sum")),),
    )
    return Program(
        name="kleinstes Modell",
        kind="graph",
        spec=ParameterSpec([("w", (2, 3), "trainable"), ("running_mean", (3,), "buffer")][:1]),
        inputs=(Input("x", "float32", (None, 3)),),
        target=Input("target", "int64", (None,)),
        loss="hinge",
        optimizer="momentum",
        metric="accuracy",
        state=(("state/momentum/w", (2, 3)),),
        scalars={"momentum": 0.9, "lr": 0.1},
        train=b"train graph",
        evaluate=b"evaluate graph",
        infer=b"infer graph",
        train_plan=plan,
        evaluate_plan=evaluate,
        classes=2,
        requires=("something",),
    )


def changed(program: Program, **fields: Any) -> bytes:
    """The program's bytes with top-level fields of its map replaced, however wrong they become."""
    data = program.encode()
    return data[:8] + msgpack.packb({**msgpack.unpackb(data[8:]), **fields})


def test_program_survives_the_wire() -> None:
    program = small_program()
    data = program.encode()
    back = Program.decode(data)
    assert back == program
    assert back.encode() == data
    assert back.digest == program.digest == digest_of(data)
    assert back.scalars == {"lr": 0.1, "momentum": 0.9}
    assert back.train_plan.nodes[0] == program.train_plan.nodes[0]
    for name, value in program.train_plan.constants.items():
        got = back.train_plan.constants[name]
        assert got.dtype == value.dtype and got.shape == value.shape and np.array_equal(got, value)


def test_program_bytes_are_the_committed_ones() -> None:
    golden = (GOLDEN / "program_v1.bin").read_bytes()
    assert small_program().encode() == golden
    assert Program.decode(golden) == small_program()


def test_parameter_bytes_are_the_committed_ones() -> None:
    vector = np.array([0.0, -1.5, 3.25, 1e-38, 3e38], dtype=np.float32)
    golden = (GOLDEN / "program_parameters_v1.bin").read_bytes()
    assert encode_parameters(vector) == golden
    spec = ParameterSpec([("w", (5,), "trainable")])
    assert np.array_equal(decode_parameters(golden, spec), vector)


def test_unknown_fields_are_ignored_and_keep_the_digest_of_the_bytes_received() -> None:
    data = changed(small_program(), invented_later=[1, 2])
    program = Program.decode(data)
    assert program.name == small_program().name
    assert program.digest == digest_of(data)


def test_program_of_a_later_version_says_which_side_to_upgrade() -> None:
    data = bytearray(small_program().encode())
    data[4] = 2
    with pytest.raises(VersionError, match="upgrade the device"):
        Program.decode(data)


def test_program_above_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(DecodeError, match="at most 100"):
        Program.decode(small_program().encode(), program_bytes_max=100)


def test_few_bytes_that_announce_many_objects_are_refused() -> None:
    header = small_program().encode()[:8]
    for bomb in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff" * 1000,
        b"\x91" * 5000,
        b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000,
    ):
        with pytest.raises(DecodeError):
            Program.decode(header + bomb)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "script"},
        {"loss": "unknown"},
        {"optimizer": 3},
        {"metric": ["accuracy"]},
        {"name": None},
        {"spec": [["w", [2, 0], "trainable"]]},
        {"spec": [["w", [1 << 40], "trainable"]]},
        {"inputs": []},
        {"inputs": [["x", "float32", [4, 3]]]},
        {"inputs": [["x", "object", [None, 3]]]},
        {"inputs": [["x", "float32", [None, 1 << 27, 1 << 27]]]},
        {"inputs": [["w", "float32", [None, 3]]]},
        {"target": ["label", "int64", [None]]},
        {"scalars": {"lr": float("nan")}},
        {"scalars": {"lr": "0.1"}},
        {"scalars": {"w": 0.1}},
        {"state": [["state/momentum/w", [-1]]]},
        {"train": "text"},
        {"train": b""},
        {"classes": -1},
        {"classes": True},
        {"requires": [1]},
        {"train_plan": []},
    ],
)
def test_program_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        Program.decode(changed(small_program(), **fields))


@pytest.mark.parametrize(
    "plan",
    [
        {"nodes": [["Add", ["x", "nowhere"], ["loss"], {}]]},
        {"nodes": [["Add", ["x", "x"], ["x"], {}]]},
        {"nodes": [["Add", ["x", "x"], [""], {}]]},
        {"nodes": [["Add", ["x", "x"], ["loss"]]]},
        {"nodes": [["Add", ["x", "x"], ["loss"], {"axis": {"a": 1}}]]},
        {"nodes": [["Add", ["x", "x"], ["loss"], {"axis": [1, "a"]}]]},
        {"nodes": [["Add", [1, "x"], ["loss"], {}]]},
        {"outputs": ["loss"]},
        {"inputs": ["x", "somebody"]},
        {"inputs": ["x", "x"]},
        {"constants": {"c": ["float32", [1 << 20, 1 << 20], b"1234"]}},
        {"constants": {"c": ["object", [1], b"12345678"]}},
        {"constants": {"c": [["float32"], [1], b"1234"]}},
        {"constants": {"c": ["float32", [-1, -1], b"1234"]}},
        {"constants": {"x": ["float32", [1], b"1234"]}},
    ],
)
def test_plan_that_contradicts_itself_is_refused(plan: dict[str, Any]) -> None:
    whole = msgpack.unpackb(small_program().encode()[8:])["train_plan"]
    with pytest.raises(DecodeError):
        Program.decode(changed(small_program(), train_plan={**whole, **plan}))


def test_a_program_may_leave_out_the_plan_that_numpy_could_not_run() -> None:
    program = replace(small_program(), train_plan=NumpyPlan(), evaluate_plan=NumpyPlan())
    assert Program.decode(program.encode()) == program


def test_parameters_are_decoded_without_a_copy() -> None:
    spec = ParameterSpec([("w", (4,), "trainable")])
    data = encode_parameters(np.arange(4, dtype=np.float32))
    vector = decode_parameters(data, spec)
    assert np.shares_memory(vector, np.frombuffer(data, dtype=np.uint8))
    assert not vector.flags.writeable


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused_on_both_sides(value: float) -> None:
    spec = ParameterSpec([("w", (3,), "trainable")])
    vector = np.array([1, value, 2], dtype=np.float32)
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_parameters(vector)
    data = encode_parameters(np.ones(3, dtype=np.float32))[:16] + vector.tobytes()
    with pytest.raises(DecodeError, match="NaN or infinity"):
        decode_parameters(data, spec)


def test_parameters_of_another_model_are_refused() -> None:
    data = encode_parameters(np.ones(3, dtype=np.float32))
    with pytest.raises(DecodeError, match="3 elements"):
        decode_parameters(data, ParameterSpec([("w", (4,), "trainable")]))


def test_bundle_survives_the_disk(tmp_path: Path) -> None:
    program = mlp_program()
    path = tmp_path / "model.bundle"
    Bundle(program, start(program)).save(path)
    back = Bundle.load(path)
    assert back.program == program
    assert np.array_equal(back.parameters, start(program))
    assert [p.name for p in tmp_path.iterdir()] == ["model.bundle"]


@pytest.mark.parametrize("place", [0, 5, 20, 60, 400, -3])
def test_bundle_with_a_flipped_bit_is_refused(tmp_path: Path, place: int) -> None:
    program = mlp_program()
    path = tmp_path / "model.bundle"
    Bundle(program, start(program)).save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises((BundleError, VersionError)):
        Bundle.load(path)


def test_bundle_that_is_missing_or_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        Bundle.load(tmp_path / "nothing.bundle")
    program = mlp_program()
    path = tmp_path / "model.bundle"
    Bundle(program, start(program)).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError, match="its manifest says otherwise"):
        Bundle.load(path)


def test_bundle_refuses_parameters_of_another_size() -> None:
    with pytest.raises(BundleError, match="float32"):
        Bundle(mlp_program(), np.zeros(3, dtype=np.float32))


def normalised_program() -> Program:
    """The small program with an input in raw units."""
    plain = small_program()
    constants = [("normalise/mean", (3,), "constant"), ("normalise/scale", (3,), "constant")]
    spec = ParameterSpec([("w", (2, 3), "trainable"), *constants])
    told = Normalise("x", 1, 3, "local", "normalise/mean", "normalise/scale", 1e4)
    return replace(plain, spec=spec, normalise=told, missing="mean")


def test_normalisation_survives_the_wire_and_costs_nothing_where_there_is_none() -> None:
    program = normalised_program()
    back = Program.decode(program.encode())
    assert back == program
    assert (back.normalise, back.missing) == (program.normalise, "mean")
    assert not {"normalise", "missing"} & set(msgpack.unpackb(small_program().encode()[8:]))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"normalise": ["y", 1, 3, "local", "normalise/mean", "normalise/scale", 1.0]}, "none of the float32 inputs"),
        ({"normalise": ["x", 2, 3, "local", "normalise/mean", "normalise/scale", 1.0]}, "do not fit"),
        ({"normalise": ["x", 1, 4, "local", "normalise/mean", "normalise/scale", 1.0]}, "do not fit"),
        ({"normalise": ["x", 1, 3, "local", "normalise/mean", "normalise/mean", 1.0]}, "two constants"),
        ({"normalise": ["x", 1, 3, "local", "normalise/mean", "w", 1.0]}, "two constants"),
        ({"normalise": ["x", 1, 3, "global", "normalise/mean", "normalise/scale", 1.0]}, "not one of federated, local"),
        ({"normalise": ["x", 0, 3, "local", "normalise/mean", "normalise/scale", 1.0]}, "normalise.axis"),
        ({"normalise": ["x", 1, 3, "local", "normalise/mean", "normalise/scale", float("nan")]}, "normalise.clip"),
        ({"normalise": ["x", 1, 3, "local"]}, r"expected \[input, axis"),
        ({"normalise": {"x": 1}}, r"expected \[input, axis"),
        ({"missing": "zero"}, "missing"),
        ({"normalise": None}, "needs an input that is normalised"),
        (
            {
                "spec": [["w", [2, 3], "trainable"]]
                + [[f"normalise/{n}", [1, 3], "constant"] for n in ("mean", "scale")]
            },
            "two constants of shape",
        ),
        (
            {"spec": [["w", [2, 3], "trainable"]] + [[f"normalise/{n}", [3], "buffer"] for n in ("mean", "scale")]},
            "two constants of shape",
        ),
    ],
)
def test_normalisation_that_does_not_fit_its_program_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        Program.decode(changed(normalised_program(), **fields))

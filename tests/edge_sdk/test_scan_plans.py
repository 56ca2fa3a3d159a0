"""A loop in a plan: what the kernel computes, how a body travels, and which bodies are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import onnxruntime
import pytest
from hand_made import mlp_program
from onnx import TensorProto, helper

from edge_sdk.errors import BundleError, DecodeError, TrainingError
from edge_sdk.training.bundle import Node, NumpyPlan, Program
from edge_sdk.training.engine.executor import Executor

FLOAT = TensorProto.FLOAT


def looping(**attributes: Any) -> NumpyPlan:
    """A state that decays and takes up one element of ``x`` in each step; its values, stacked."""
    body = NumpyPlan(
        ("s", "e", "rate"),
        ("s2", "seen"),
        {"one": np.array(1, np.float32)},
        (
            Node("Mul", ("s", "rate"), ("kept",)),
            Node("Add", ("kept", "e"), ("s2",)),
            Node("Mul", ("s2", "one"), ("seen",)),
        ),
    )
    given = {"body": body, "num_scan_inputs": 1, "captured": 1, **attributes}
    return NumpyPlan(
        ("start", "x", "rate"), ("end", "all"), {}, (Node("Scan", ("start", "x", "rate"), ("end", "all"), given),)
    )


FEEDS = {
    "start": np.array([1, 2], np.float32),
    "x": np.arange(8, dtype=np.float32).reshape(4, 2),
    "rate": np.array(0.5, np.float32),
}


@pytest.mark.parametrize("read", [[], [1]])
@pytest.mark.parametrize("write", [[], [1]])
def test_a_loop_agrees_with_onnxruntime_in_both_directions(read: list[int], write: list[int]) -> None:
    row, info = [2], helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["s", "rate"], ["kept"]),
        helper.make_node("Add", ["kept", "e"], ["s2"]),
        helper.make_node("Identity", ["s2"], ["seen"]),
    ]
    ends = [info("s2", FLOAT, row), info("seen", FLOAT, row)]
    body = helper.make_graph(nodes, "body", [info("s", FLOAT, row), info("e", FLOAT, row)], ends)
    directions = {"scan_input_directions": read, "scan_output_directions": write}
    given = {key: value for key, value in directions.items() if value}
    loop = helper.make_node("Scan", ["start", "x"], ["end", "all"], body=body, num_scan_inputs=1, **given)
    inputs = [info("start", FLOAT, row), info("x", FLOAT, [4, 2]), info("rate", FLOAT, [])]
    graph = helper.make_graph([loop], "g", inputs, [info("end", FLOAT, row), info("all", FLOAT, [4, 2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, FEEDS)
    found = Executor(looping(**directions), "loop").run(FEEDS)
    np.testing.assert_array_equal(found["end"], expected[0])
    np.testing.assert_array_equal(found["all"], expected[1])


def with_loop(change: Callable[[list[Any]], None]) -> bytes:
    """A program whose evaluate plan ends in a loop, the loop changed as a hostile sender might."""
    program = mlp_program()
    plan = program.evaluate_plan
    nodes = (*plan.nodes, Node("Scan", ("loss_sum", "x", "loss_sum"), ("a", "b"), looping().nodes[0].attributes))
    changed = replace(program, evaluate_plan=NumpyPlan(plan.inputs, plan.outputs, plan.constants, nodes))
    data = changed.encode()
    body = msgpack.unpackb(data[8:])
    change(body["evaluate_plan"]["nodes"][-1])
    return data[:8] + bytes(msgpack.packb(body, use_bin_type=True))


def test_a_body_survives_the_wire() -> None:
    data = with_loop(lambda node: None)
    program = Program.decode(data)
    assert program.encode() == data
    sent, arrived = looping().nodes[0].attributes["body"], program.evaluate_plan.nodes[-1].attributes["body"]
    assert isinstance(sent, NumpyPlan) and isinstance(arrived, NumpyPlan)
    assert arrived.nodes == sent.nodes and arrived.inputs == sent.inputs and arrived.outputs == sent.outputs
    np.testing.assert_array_equal(arrived.constants["one"], sent.constants["one"])


def nest(node: list[Any]) -> None:
    node[3]["body"]["plan"]["nodes"].append(["Scan", ["s", "e", "rate"], ["p", "q"], copy.deepcopy(node[3])])


@pytest.mark.parametrize(
    "change",
    [
        nest,
        lambda node: node.__setitem__(0, "Loop"),
        lambda node: node[3].update(other=node[3]["body"]),
        lambda node: node[3].update(body={"plan": []}),
        lambda node: node[3].update(body={"plan": {}}),
        lambda node: node[3]["body"]["plan"]["inputs"].pop(),
        lambda node: node[3]["body"]["plan"]["outputs"].pop(),
        lambda node: node[3]["body"]["plan"]["inputs"].append("more"),
        lambda node: node[3]["body"]["plan"]["nodes"][0][1].append("outside"),
        lambda node: node[3]["body"]["plan"]["nodes"].pop(),
        lambda node: node[3]["body"]["plan"]["constants"].update(c=["float32", [1 << 20, 1 << 20], b"1234"]),
    ],
)
def test_a_body_that_is_none_is_refused(change: Callable[[list[Any]], None]) -> None:
    with pytest.raises(DecodeError):
        Program.decode(with_loop(change))


@pytest.mark.parametrize(
    ("attributes", "feeds"),
    [
        ({"num_scan_inputs": 0}, {}),
        ({"num_scan_inputs": 9}, {}),
        ({"num_scan_inputs": -1}, {}),
        ({"captured": -1}, {}),
        ({"captured": 3}, {}),
        ({"num_scan_inputs": "a"}, {}),
        ({}, {"x": np.zeros((0, 2), np.float32)}),
        ({}, {"x": np.array(0, np.float32)}),
        ({}, {"x": np.zeros((4, 3), np.float32)}),
        ({"num_scan_inputs": 2, "captured": 0}, {"rate": np.zeros((3, 2), np.float32)}),
    ],
)
def test_a_loop_that_cannot_run_ends_in_a_training_error(attributes: dict[str, Any], feeds: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="loop: Scan"):
        Executor(looping(**attributes), "loop").run({**FEEDS, **feeds})


def test_a_loop_without_a_body_is_refused_when_the_executor_is_made() -> None:
    for attributes in ({"num_scan_inputs": 1}, {"num_scan_inputs": 1, "body": 3}):
        with pytest.raises(BundleError, match="Scan has no body"):
            Executor(NumpyPlan(("x",), ("y",), {}, (Node("Scan", ("x",), ("y",), attributes),)), "plan")

"""Many training steps in one run: the train graph as the body of a Scan, where measuring finds that it pays.

A step of a tiny model (9-6 logistic regression: about 14 us on x86-64) costs less than the call that makes it. A Scan
over batches carries parameters and optimiser state from step to step inside onnxruntime, with the same kernels and so
the same results. Where a step is long it brings nothing, and costs a second copy of the graph in the program.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from coordinator.compile.cost import step_cost
from coordinator.compile.emit import to_onnx
from coordinator.compile.graph import Graph, Node, Value
from coordinator.compile.rules.dropout import DROPOUT_FACTOR
from coordinator.compile.samples import random_inputs, random_target
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine.onnx_runtime import STEPS_AT_ONCE, OnnxRuntimeEngine, OnnxRuntimeHandle
from edge_sdk.training.program import NEW

__all__ = ["loop_bytes", "with_loop_if_faster"]

GAIN_MIN: Final = 0.15
"""A loop is kept where it saves this share of a step's CPU time, at least."""
FLOPS_MAX: Final = 4_000_000
NODES_MAX: Final = 80
"""A longer step is not looked at: what a call costs, some 10 us, is no share of it that counts."""
TRAIN_BYTES_MAX: Final = 1 << 16
"""Nor is a graph with large constants, which would travel twice."""
BATCH_SIZE: Final = 32
ROUNDS: Final = 5
AGREEMENT: Final = 1e-5

INNER: Final = "step/"
"""Before names in the body: they must differ from those around it."""


def loop_bytes(train: Graph, program: Program) -> bytes:
    """The train graph as the body of a Scan, as ONNX bytes.

    Args:
        train: The graph of ``program.train``.
        program: Says which of its inputs are carried on (parameters, state), which come by the step, and which are
            the same for all (constants, scalars, anchors).

    Raises:
        CompileError: The graph holds a loop already; a device takes none inside another.
    """
    looping = _loop_of(train)
    if looping is not None:
        raise CompileError(
            f"loop: the train graph has a {looping.op} of its own, which cannot stand in another one; "
            "leave loop at auto"
        )
    changing = [t.name for t in program.spec if t.kind != "constant"]
    carried = [*changing, *(name for name, _ in program.state)]
    by_step = [*(entry.name for entry in program.inputs), program.target.name]
    inputs = {value.name: value for value in train.inputs}
    outputs = {value.name: value for value in train.outputs}
    around = set(inputs) - {*carried, *by_step}
    steps = {name: Value(name, v.dtype, ("steps", *v.shape)) for name, v in {**inputs, **outputs}.items()}

    def inner(name: str) -> str:
        return name if name in around or not name else INNER + name

    results = [*(NEW + name for name in carried), "loss"]
    body = Graph(
        f"{train.name}/step",
        tuple(replace(inputs[name], name=inner(name)) for name in (*carried, *by_step)),
        tuple(replace(outputs[name], name=inner(name)) for name in results),
        tuple(Node(n.op, tuple(map(inner, n.inputs)), tuple(map(inner, n.outputs)), n.attributes) for n in train.nodes),
        {inner(name): array for name, array in train.constants.items()},
    )
    scan = Node("Scan", (*carried, *by_step), tuple(results), {"body": body, "num_scan_inputs": len(by_step)})
    whole = Graph(
        f"{train.name}_loop",
        tuple(steps[name] if name in by_step else value for name, value in inputs.items()),
        tuple(steps[name] if name == "loss" else value for name, value in outputs.items()),
        (scan,),
        {},
    )
    data: bytes = to_onnx(whole).SerializeToString(deterministic=True)
    return data


def with_loop_if_faster(bundle: Bundle, train: Graph, *, always: bool = False) -> Bundle:
    """``bundle`` with a loop in its program where that is clearly faster on this machine, else as it is.

    Args:
        bundle: Without a loop.
        train: The graph of its ``train``.
        always: Add it whatever it brings, checked all the same.

    Raises:
        CompileError: The loop does not give what single steps give; or ``always``, and it cannot be made.
    """
    program = bundle.program
    if not always and not _is_tiny(program, train):
        return bundle
    looped = Bundle(replace(program, train_loop=loop_bytes(train, program)), bundle.parameters, bundle.source)
    trial = _Trial(looped)
    trial.check()
    return looped if always or trial.gain() >= GAIN_MIN else bundle


def _is_tiny(program: Program, train: Graph) -> bool:
    if len(program.train) > TRAIN_BYTES_MAX or len(train.nodes) > NODES_MAX or _loop_of(train) is not None:
        return False
    return step_cost(program.train, BATCH_SIZE).flops <= FLOPS_MAX


def _loop_of(train: Graph) -> Node | None:
    return next((node for node in train.nodes if any(isinstance(a, Graph) for a in node.attributes.values())), None)


class _Trial:
    """Both ways to make a few steps on random examples, on onnxruntime."""

    def __init__(self, bundle: Bundle) -> None:
        program = bundle.program
        rng = np.random.Generator(np.random.PCG64(0))
        batches = [
            {**random_inputs(program.inputs, BATCH_SIZE, rng), "target": random_target(program, BATCH_SIZE, rng)}
            for _ in range(STEPS_AT_ONCE)
        ]
        self._bundle = bundle
        self._engine = OnnxRuntimeEngine(program)
        self._handle = self._engine.load(bundle.parameters)
        self._batches = batches
        self._stacked: dict[str, Any] = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        # A random mask is another one each time, and cannot be compared.
        self._scalars = {DROPOUT_FACTOR: 0.0} if DROPOUT_FACTOR in program.scalars else {}

    def check(self) -> None:
        """Raise CompileError unless both ways give the same losses and parameters."""
        loop, single = self._engine.load(self._bundle.parameters), self._engine.load(self._bundle.parameters)
        found = self._engine.steps(loop, self._stacked, self._scalars)
        expected = np.array(self._singly(single, STEPS_AT_ONCE), np.float32)
        for what, one, other in (
            ("losses", found, expected),
            ("parameters", self._engine.read(loop), self._engine.read(single)),
        ):
            if not np.allclose(one, other, rtol=AGREEMENT, atol=AGREEMENT, equal_nan=True):
                raise CompileError(f"loop: {STEPS_AT_ONCE} steps in one run give other {what} than single steps do")

    def gain(self) -> float:
        """The share of a step's CPU time that the loop saves: the median of rounds, in which both take turns."""
        gains = []
        for _ in range(ROUNDS):
            single = _seconds(lambda: self._singly(self._handle, STEPS_AT_ONCE))
            loop = _seconds(lambda: self._engine.steps(self._handle, self._stacked, self._scalars))
            gains.append(1 - loop / max(single, 1e-9))
        return statistics.median(gains)

    def _singly(self, handle: OnnxRuntimeHandle, count: int) -> list[float]:
        return [self._engine.step(handle, batch, self._scalars) for batch in self._batches[:count]]


def _seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started

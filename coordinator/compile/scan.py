"""Loops over time: the body of a Scan, built like the graph around it.

A body reads what is the same at each step (weights, constants) under its name in the graph around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.compile.graph import Graph, GraphBuilder, Node, Shape, Value

__all__ = ["Body"]


class Body:
    """The graph of one step.

    Args:
        b: The graph around it, which the finished Scan is appended to.
        row: The shape of every state, of an element of every sequence and of every result of a step.
    """

    def __init__(self, b: GraphBuilder, row: Shape) -> None:
        self._b = b
        self._row = row
        self._nodes: list[Node] = []
        self._states: list[tuple[Value, str]] = []
        self._elements: list[tuple[Value, str]] = []

    def state(self, initial: str) -> str:
        """A name that holds ``initial`` at the first step, and then what the step before gave."""
        value = Value(self._b.fresh("state"), "float32", self._row)
        self._states.append((value, initial))
        return value.name

    def element(self, sequence: str) -> str:
        """A name that holds, at each step, its element of ``sequence``."""
        self._elements.append((Value(self._b.fresh("element"), "float32", self._row), sequence))
        return self._elements[-1][0].name

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; the name of that output."""
        return self.ops(op, inputs, 1, **attributes)[0]

    def ops(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Append a node with ``outputs`` outputs; their names."""
        names = tuple(self._b.fresh(op) for _ in range(outputs))
        self._nodes.append(Node(op, tuple(inputs), names, attributes))
        return names

    def finish(
        self, states: Sequence[str], results: Sequence[str], *, back: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Append the Scan to the graph.

        Args:
            states: What the step gives for each state.
            results: What is stacked over time.
            back: Go from the last step to the first; what is stacked stays in the order of time.

        Returns:
            Names of the last states, and of the stacked results.
        """
        computed = {name for node in self._nodes for name in node.outputs}
        outputs: list[str] = []
        for name in (*states, *results):  # a graph's output must be what a node gives, and only once
            outputs.append(name if name in computed and name not in outputs else self.op("Identity", name))
        inputs = tuple(value for value, _ in (*self._states, *self._elements))
        values = tuple(Value(name, "float32", self._row) for name in outputs)
        body = Graph(self._b.fresh("body"), inputs, values, tuple(self._nodes), {})
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(self._elements)}
        if back:
            attributes["scan_input_directions"] = [1] * len(self._elements)
            if results:
                attributes["scan_output_directions"] = [1] * len(results)
        given = [name for _, name in (*self._states, *self._elements)]
        names = self._b.ops("Scan", given, len(outputs), **attributes)
        return names[: len(states)], names[len(states) :]

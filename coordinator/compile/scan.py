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
        row: The shape of a state and of what a step gives, ``[batch, width]``; the width may be another one.
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

    def element(self, sequence: str, width: int = 0) -> str:
        """A name that holds, at each step, its element of ``sequence``: [batch, width], the row by default."""
        shape = (*self._row[:-1], width or self._row[-1])
        self._elements.append((Value(self._b.fresh("element"), "float32", shape), sequence))
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
        self, states: Sequence[str], results: Sequence[tuple[str, int]], *, back: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Append the Scan to the graph.

        Args:
            states: What the step gives for each state.
            results: What is stacked over time, and its width; at most one use of a name, states included.
            back: Go from the last step to the first; what is stacked stays in the order of time.

        Returns:
            Names of the last states, and of the stacked results.
        """
        computed = {name for node in self._nodes for name in node.outputs}
        outputs: list[Value] = []
        for name, width in (*((name, self._row[-1]) for name in states), *results):
            if name not in computed or name in {v.name for v in outputs}:  # a graph's output must be a node's, and once
                name = self.op("Identity", name)
            outputs.append(Value(name, "float32", (*self._row[:-1], width)))
        inputs = tuple(value for value, _ in (*self._states, *self._elements))
        body = Graph(self._b.fresh("body"), inputs, tuple(outputs), tuple(self._nodes), {})
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(self._elements)}
        if back:
            attributes["scan_input_directions"] = [1] * len(self._elements)
            if results:
                attributes["scan_output_directions"] = [1] * len(results)
        given = [name for _, name in (*self._states, *self._elements)]
        names = self._b.ops("Scan", given, len(outputs), **attributes)
        return names[: len(states)], names[len(states) :]

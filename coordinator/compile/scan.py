"""Loops over time: the body of a Scan, built like the graph around it.

A body reads what is the same at each step (weights, constants) under its name in the graph around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.compile.graph import Dim, Graph, GraphBuilder, Node, Value

__all__ = ["Body"]


class Body:
    """The graph of one step.

    Args:
        b: The graph around it, which the finished Scan is appended to.
        batch: Rows of every state, of an element of every sequence and of every result of a step.
        width: Columns of these, where nothing else is said.
    """

    def __init__(self, b: GraphBuilder, batch: Dim, width: int) -> None:
        self._b = b
        self._batch = batch
        self._width = width
        self._widths: dict[str, int] = {}
        self._nodes: list[Node] = []
        self._states: list[tuple[Value, str]] = []
        self._elements: list[tuple[Value, str]] = []

    def state(self, initial: str) -> str:
        """A name that holds ``initial`` at the first step, and then what the step before gave."""
        self._states.append((self._value(self._b.fresh("state")), initial))
        return self._states[-1][0].name

    def element(self, sequence: str, width: int | None = None) -> str:
        """A name that holds, at each step, its element of ``sequence``."""
        name = self._b.fresh("element")
        if width is not None:
            self._widths[name] = width
        self._elements.append((self._value(name), sequence))
        return name

    def beside(self, *parts: str) -> str:
        """States, elements or results of a step as one matrix, beside each other."""
        name = self.op("Concat", *parts, axis=1)
        self._widths[name] = sum(self._widths.get(part, self._width) for part in parts)
        return name

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
            if name not in computed or name in outputs:
                name = self._copy(name)
            outputs.append(name)
        inputs = tuple(value for value, _ in (*self._states, *self._elements))
        values = tuple(self._value(name) for name in outputs)
        body = Graph(self._b.fresh("body"), inputs, values, tuple(self._nodes), {})
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(self._elements)}
        if back:
            attributes["scan_input_directions"] = [1] * len(self._elements)
            if results:
                attributes["scan_output_directions"] = [1] * len(results)
        given = [name for _, name in (*self._states, *self._elements)]
        names = self._b.ops("Scan", given, len(outputs), **attributes)
        return names[: len(states)], names[len(states) :]

    def _copy(self, name: str) -> str:
        copy = self.op("Identity", name)
        if name in self._widths:
            self._widths[copy] = self._widths[name]
        return copy

    def _value(self, name: str) -> Value:
        return Value(name, "float32", (self._batch, self._widths.get(name, self._width)))

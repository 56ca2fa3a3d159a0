"""Runs a NumpyPlan: a list of prepared calls over numbered slots.

Names are resolved once, when the executor is made. A value is dropped right after its last use, so the memory held
is that of the values still needed, as in a compiled graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import BundleError, EdgeFedError, TrainingError
from edge_sdk.training.engine.kernels import KERNELS, Kernel
from edge_sdk.training.numpy_plan import Node, NumpyPlan

__all__ = ["Executor"]

_ABSENT: Final = 0  # the slot that holds None, for inputs that are left out


class _Call(NamedTuple):
    kernel: Kernel
    arguments: list[int]
    outputs: list[int]
    dead: list[int]  # slots that nothing uses afterwards
    node: Node


class Executor:
    """One plan, ready to run.

    Args:
        plan: A checked plan.
        where: What it is called in messages.

    Raises:
        BundleError: An operator or an attribute is not known to the NumPy engine.
    """

    def __init__(self, plan: NumpyPlan, where: str) -> None:
        self.where = where
        self.outputs = plan.outputs
        self._template: list[Any] = [None]
        slots = {"": _ABSENT}
        for name in (*plan.inputs, *plan.constants):
            slots[name] = len(self._template)
            self._template.append(plan.constants.get(name))
        self._inputs = [(slots[name], name) for name in plan.inputs]
        self._calls = [self._call(node, slots) for node in plan.nodes]
        self._results = [slots[name] for name in plan.outputs]
        self._drop_after_last_use(keep={slots[name] for name in (*plan.constants, *plan.outputs)} | {_ABSENT})

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The plan's outputs by name.

        Raises:
            TrainingError: An input is missing, or an operator failed on these values.
        """
        missing = [name for _, name in self._inputs if name not in feeds]
        if missing:
            raise TrainingError(f"{self._place(None)}: {missing[0][:80]!r} is missing")
        # Overflow and 0/0 give infinity and NaN, as in onnxruntime; training looks at the loss.
        with np.errstate(all="ignore"):
            return dict(zip(self.outputs, self([feeds[name] for _, name in self._inputs]), strict=True))

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """The plan's outputs for its inputs, both in order, as a body is run; NumPy's error state is the caller's.

        Raises:
            TrainingError: An operator failed on these values.
        """
        slots = self._template.copy()
        call: _Call | None = None
        try:
            for (slot, _), given in zip(self._inputs, values, strict=True):
                slots[slot] = given
            for call in self._calls:
                kernel, arguments, outputs, dead, _ = call
                value = kernel(*[slots[i] for i in arguments])
                if type(value) is not tuple:
                    slots[outputs[0]] = value
                else:
                    for slot, part in zip(outputs, value, strict=False):
                        slots[slot] = part
                for slot in dead:
                    slots[slot] = None
        except EdgeFedError as error:
            raise TrainingError(f"{self._place(call)}: {error}") from error
        except Exception as error:  # whatever a kernel raises on values that the plan should not have led to
            what = f"{self._place(call)}: {type(error).__name__}"
            raise TrainingError(f"{what}: {error}", public=what) from error
        return [slots[slot] for slot in self._results]

    def _place(self, call: _Call | None) -> str:
        if call is None:
            return f"{self.where}: inputs"
        return f"{self.where}: {call.node.op} -> {call.node.outputs[0][:80]!r}"

    def _call(self, node: Node, slots: dict[str, int]) -> _Call:
        arguments = [slots[name] for name in node.inputs]
        outputs = []
        for name in node.outputs:
            outputs.append(len(self._template))
            self._template.append(None)
            if name:
                slots[name] = outputs[-1]
        return _Call(_prepared(node, self.where), arguments, outputs, [], node)

    def _drop_after_last_use(self, keep: set[int]) -> None:
        seen = set(keep)
        for _, arguments, outputs, dead, _ in reversed(self._calls):
            for slot in {*arguments, *outputs} - seen:
                dead.append(slot)
                seen.add(slot)


def _prepared(node: Node, where: str) -> Kernel:
    """The node's kernel with its attributes put in."""
    kernel = KERNELS.get(node.op)
    if kernel is None:
        raise BundleError(
            f"{where}: the NumPy engine has no operator {node.op[:80]!r}: use the onnxruntime engine "
            f'(pip install "edgefed[onnx]")'
        )
    known = _keywords(kernel)
    unknown = sorted(set(node.attributes) - known | {"rng"} & set(node.attributes))
    if unknown:
        raise BundleError(f"{where}: the NumPy engine's {node.op} has no attribute {unknown[0][:80]!r}")
    keywords: dict[str, Any] = dict(node.attributes)
    if "body" in known:
        body = keywords.get("body")
        if not isinstance(body, NumpyPlan):
            raise BundleError(f"{where}: the NumPy engine's {node.op} has no body")
        keywords["body"] = Executor(body, f"{where}: {node.op}")
    if "rng" in known:  # a stream for each node, as in onnxruntime: of its seed, or else of this machine's entropy
        seed = node.attributes.get("seed")
        keywords["rng"] = np.random.Generator(np.random.PCG64(abs(seed) if isinstance(seed, int) else None))
    if "output_count" in known:
        keywords["output_count"] = len(node.outputs)
    elif len(node.outputs) > 1:
        raise BundleError(f"{where}: the NumPy engine's {node.op} has one output, the node names {len(node.outputs)}")
    return partial(kernel, **keywords) if keywords else kernel


@cache
def _keywords(kernel: Kernel) -> frozenset[str]:
    if isinstance(kernel, np.ufunc) or kernel is np.where:
        return frozenset()
    return frozenset(
        name
        for name, parameter in inspect.signature(kernel).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
    )

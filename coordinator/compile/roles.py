"""Which initializers are trained: what the exporter says of them, where they stand, what they are called and look like.

ONNX does not tell a parameter from a constant of the architecture. These questions are put in order, and the first
answer counts:

1. What does the exporter say? PyTorch's newer one lists the parameters and buffers of the module; a Constant node is a
   constant; of scikit-learn's pipelines only what the last step has learnt is trained.
2. Where does the tensor stand? The slots of a Gemm, Conv, LSTM, normalisation, ... hold weights.
3. What is it called, where it is an operand of plain arithmetic? ``fc.weight`` is a weight, ``inv_freq`` is none.
4. What does it look like there? One element is a factor, unless it is the bias of a layer with one output; sines of
   positions, numbers in equal steps and masks are tables. All else is a parameter: a bias, a scale, learned positions.

A constant is trained where ``train`` asks for it by its full name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from coordinator.compile.graph import Node, Role, Shape, Value
from coordinator.compile.rules import FALLBACK_PARAMETERS, RULES
from coordinator.compile.tables import is_sinusoidal, look_of

__all__ = ["Origin", "Roles"]

WEIGHTED: Final = frozenset(
    {"BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gather", "Gemm"}
    | {"GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu", "RNN"}
)
"""Operators whose parameter slots hold weights; in those of others a constant is as likely."""

PASSED: Final = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that a weight may pass on the way to its slot."""

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators behind which a bias may be added."""

SIGNATURE: Final = "pkg.torch.export.ExportedProgram.graph_signature"
"""Where PyTorch's newer exporter lists what the tensors of the module are."""
SIGNED: Final = re.compile(r": (PARAMETER|BUFFER|CONSTANT_TENSOR)\b[^\n]*?target='([^']+)'")
CONSTANT_NAME: Final = re.compile(r"(^|/)Constant(_\d+)?_output_\d+$")
"""How PyTorch's older exporter calls an initializer that was a Constant node."""
WEIGHT_NAME: Final = re.compile(r"(^|[._/])(weight|bias)(_\w+)?$|(weight|bias)$")
TABLE_NAME: Final = re.compile(r"(^|[._/])(pe|inv_freq|freqs|(\w+_)?mask|(\w+_)?window|(cos|sin)_cached)$")
SKLEARN: Final = "skl2onnx"
SKLEARN_NAME: Final = re.compile(r"(^|\.)(coef|intercept|feature_log_prob|class_log_prior)")
"""How scikit-learn's converter calls what a model, not a transformer before it, has learnt."""


@dataclass(frozen=True)
class Origin:
    """What a file says of where it comes from.

    Attributes:
        producer: Who wrote it.
        signed: By name ``PARAMETER``, ``BUFFER`` or ``CONSTANT_TENSOR``, where the exporter says so.
        constants: Names of what Constant nodes give.
    """

    producer: str = ""
    signed: Mapping[str, str] = field(default_factory=dict)
    constants: Collection[str] = ()

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Origin:
        """What ``model`` says."""
        listed = [
            entry.value for entry in (*model.metadata_props, *model.graph.metadata_props) if entry.key == SIGNATURE
        ]
        signed = {name: kind for text in listed for kind, name in SIGNED.findall(text)}
        constants = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
        constants |= {tensor.name for tensor in model.graph.initializer if CONSTANT_NAME.search(tensor.name)}
        return cls(model.producer_name, signed, constants)


class Roles:
    """Tells parameters from constants, use by use, and keeps what it said.

    Args:
        nodes: The model's nodes in topological order.
        constants: All arrays by name.
        values: Types of values by name, where they are known.
        origin: What the file says.
        asked: Full names of what is trained in any case.

    Attributes:
        found: The role of each float array that was asked about, by name.
    """

    def __init__(
        self,
        nodes: Collection[Node],
        constants: Mapping[str, NDArray[Any]],
        values: Mapping[str, Value],
        origin: Origin,
        asked: Iterable[str],
    ) -> None:
        self._constants = constants
        self._values = values
        self._origin = origin
        held = {id(constants[name]) for name in origin.constants if name in constants}
        self._from_nodes = {name for name, array in constants.items() if id(array) in held}  # other names included
        self._asked = frozenset(asked)
        self._makers = {name: node for node in nodes for name in node.outputs}
        self._weights = _weights(nodes, constants)
        self._of_sklearn = origin.producer == SKLEARN and any(map(SKLEARN_NAME.search, constants))
        self.found: dict[str, Role] = {}

    def role(self, node: Node, slot: int, *, learned: bool) -> Role:
        """What the operand in ``slot`` of ``node`` is there; of what is no float array, that it is constant.

        Args:
            node: A node of the model.
            slot: Which of its inputs.
            learned: Whether all else that meets in the node depends on parameters, and nothing comes from inputs alone.
        """
        name = node.inputs[slot]
        array = self._constants.get(name)
        if array is None or array.dtype.kind != "f":
            return Role("constant", "no float")
        role = self._role(node, slot, array, learned)
        before = self.found.get(name)
        if before is None or before.kind == "constant":  # one use as a parameter is enough
            self.found[name] = role
        return role

    def _role(self, node: Node, slot: int, array: NDArray[Any], learned: bool) -> Role:
        name, rule = node.inputs[slot], RULES.get(node.op)
        slots = FALLBACK_PARAMETERS.get(node.op, ()) if rule is None else rule.parameters
        if slot not in slots and not (rule is not None and slot in rule.learned):
            return Role("constant", f"a setting of {_told(node)}")
        if rule is not None and slot in rule.buffers:
            return Role("statistics", f"running statistics of {_told(node)}")
        if np.any(np.isinf(array)):
            return Role("constant", "a mask: it holds infinity")
        if name in self._asked:
            return Role("parameter", "asked for by its name")
        if name in self._from_nodes:
            return Role("constant", "a Constant node", guessed=array.size > 1)
        if name in self._origin.signed:
            is_parameter = self._origin.signed[name] == "PARAMETER"
            return (
                Role("parameter", "a parameter in PyTorch") if is_parameter else Role("constant", "a buffer in PyTorch")
            )
        if not array.ndim:
            return Role("constant", "a scalar")
        if self._of_sklearn and not SKLEARN_NAME.search(name):
            return Role("constant", "measured by a transformer of scikit-learn")
        if slot not in slots and not learned:
            return Role("constant", f"applied to an input in {_told(node)}")
        return self._by_place(node, slot, name, array)

    def _by_place(self, node: Node, slot: int, name: str, array: NDArray[Any]) -> Role:
        if name in self._weights:
            if self._weights[name] == "Gather" and is_sinusoidal(array):
                return Role("constant", "a table: sines and cosines of positions", guessed=True)
            return Role("parameter", f"weights of a {self._weights[name]}")
        if WEIGHT_NAME.search(name):
            return Role("parameter", "its name says so")
        if TABLE_NAME.search(name):
            return Role("constant", "its name says so", guessed=True)
        if array.size == 1 and not self._is_narrow_bias(node, slot):
            return Role("constant", f"a factor of shape {list(array.shape)}", guessed=True)
        if look := look_of(array):
            return Role("constant", f"a table: {look}", guessed=True)
        return Role("parameter", f"an operand of {_told(node)}")

    def _is_narrow_bias(self, node: Node, slot: int) -> bool:
        """Whether one element is added to the one output of a layer."""
        others = [name for place, name in enumerate(node.inputs) if place != slot]
        if node.op != "Add" or len(others) != 1 or others[0] not in self._values:
            return False
        maker, shape = self._makers.get(others[0]), self._values[others[0]].shape
        return maker is not None and maker.op in PRODUCTS and _channels(maker, shape) == 1


def _weights(nodes: Collection[Node], constants: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """By array, the operator that has it as a weight, as it is or turned and reshaped on the way."""
    sources = {name: name for name in constants}
    found: dict[str, str] = {}
    for node in nodes:
        if node.op in PASSED and node.inputs[0] in sources:
            sources[node.outputs[0]] = sources[node.inputs[0]]
        rule = RULES.get(node.op)
        slots = FALLBACK_PARAMETERS.get(node.op, ()) if rule is None else rule.parameters
        for slot, name in enumerate(node.inputs):
            if node.op in WEIGHTED and slot in slots and name in sources:
                found.setdefault(sources[name], node.op)
    return found


def _channels(node: Node, shape: Shape) -> int | str:
    return shape[1] if node.op in ("Conv", "ConvTranspose") and len(shape) > 1 else shape[-1]


def _told(node: Node) -> str:
    return f"{node.op} {node.name or node.outputs[0]!r}"

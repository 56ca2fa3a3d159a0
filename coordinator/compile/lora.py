"""Low-rank adapters: beside a frozen weight ``W`` a trained product ``A B`` (Hu et al., LoRA, ICLR 2022, equation 3).

``y = x W`` becomes ``y = x W + (x A) B`` with ``A`` [in, rank] random and ``B`` [rank, out] zero, so that training
starts from the model as it is, and only ``rank (in + out)`` numbers a layer travel. Export adds ``A B`` to ``W``.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import Model, Node, Value
from edge_sdk.errors import CompileError

__all__ = ["Lora", "is_adapter", "merged_adapters", "with_adapters"]

DOWN: Final = ".lora_a"
UP: Final = ".lora_b"


@dataclass(frozen=True, slots=True)
class Lora:
    """Which weights get adapters, and of what rank."""

    rank: int
    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, rank: str, pattern: str) -> Lora:
        """From the words of a command line, ``rank=8`` and a pattern.

        Raises:
            CompileError: The first word is not ``rank=`` and a number above 0.
        """
        found = re.fullmatch(r"(?:rank=)?([1-9]\d{0,4})", rank)
        if found is None:
            raise CompileError(f"--lora {rank!r}: expected rank=8 or another number above 0, then a pattern")
        return cls(int(found[1]), (pattern,))


def with_adapters(model: Model, lora: Lora, *, train: Sequence[str] = (), seed: int = 0) -> tuple[Model, list[str]]:
    """``model`` with adapters, and the patterns of what is to be trained: the adapters, and what ``train`` names.

    Args:
        model: An imported model.
        lora: Patterns of weight names.
        train: Patterns of further parameters to train.
        seed: Decides the initial ``A``.

    Raises:
        CompileError: No weight of a Gemm or MatMul fits a pattern, or the rank is not below the weight's sides.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    parameters: dict[str, NDArray[np.float32]] = {}
    values, nodes = dict(model.values), []
    for node in model.nodes:
        weight = node.inputs[1] if node.op in ("Gemm", "MatMul") and len(node.inputs) > 1 else ""
        array = model.parameters.get(weight)
        if array is None or array.ndim != 2 or not any(fnmatchcase(weight, p) for p in lora.patterns):
            nodes.append(node)
            continue
        if node.op == "Gemm" and (node.attributes["transA"] or node.attributes["alpha"] != 1):
            raise CompileError(f"{node}: lora needs a Gemm without transA and alpha; leave {weight!r} out")
        sides = array.shape[::-1] if _is_transposed(node) else array.shape
        if lora.rank >= min(sides):
            raise CompileError(
                f"lora: rank {lora.rank} saves nothing for {weight!r} {list(array.shape)}; take one below {min(sides)}"
            )
        if weight + DOWN not in parameters:
            # A uniform draw from raw bits: the same numbers with every NumPy.
            drawn = rng.bit_generator.random_raw(sides[0] * lora.rank) >> np.uint64(11)
            uniform = (drawn.astype(np.float64) * 2.0**-52 - 1) / np.sqrt(sides[0])
            parameters[weight + DOWN] = uniform.astype(np.float32).reshape(sides[0], lora.rank)
            parameters[weight + UP] = np.zeros((lora.rank, sides[1]), np.float32)
        nodes += _adapted(node, weight, lora.rank, values)
    if not parameters:
        names = ", ".join(name for name, a in model.parameters.items() if a.ndim == 2)
        raise CompileError(f"lora {list(lora.patterns)}: no weight of a Gemm or MatMul fits; the matrices are {names}")
    values.update({name: Value(name, "float32", array.shape) for name, array in parameters.items()})
    adapted = replace(model, nodes=tuple(nodes), parameters={**model.parameters, **parameters}, values=values)
    return adapted, [*map(glob.escape, parameters), *train]


def is_adapter(name: str) -> bool:
    """Whether a parameter is half of an adapter."""
    return name.endswith((DOWN, UP))


def merged_adapters(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """By weight, the product ``A B`` [in, out] that its adapters stand for."""
    pairs = {name.removesuffix(DOWN): name for name in arrays if name.endswith(DOWN)}
    return {
        weight: (arrays[name].astype(np.float64) @ arrays[weight + UP].astype(np.float64)).astype(np.float32)
        for weight, name in pairs.items()
        if weight + UP in arrays
    }


def _is_transposed(node: Node) -> bool:
    return node.op == "Gemm" and bool(node.attributes["transB"])


def _adapted(node: Node, weight: str, rank: int, values: dict[str, Value]) -> list[Node]:
    y = node.outputs[0]
    plain, narrow, added = (f"{y}/{part}" for part in ("lora_plain", "lora_narrow", "lora_added"))
    shape = values[y].shape if y in values else ()
    if shape:
        values[plain] = Value(plain, "float32", shape)
        values[added] = Value(added, "float32", shape)
        values[narrow] = Value(narrow, "float32", (*shape[:-1], rank))
    return [
        replace(node, outputs=(plain,)),
        Node("MatMul", (node.inputs[0], weight + DOWN), (narrow,), {}, f"{node.name}/lora_a"),
        Node("MatMul", (narrow, weight + UP), (added,), {}, f"{node.name}/lora_b"),
        Node("Add", (plain, added), (y,), {}, f"{node.name}/lora"),
    ]

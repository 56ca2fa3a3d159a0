"""What a person should know about a source model before it is trained, in whole sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import onnx

from coordinator.compile.batch_first import moved_inputs
from coordinator.compile.graph import Role
from coordinator.compile.roles import SIGNATURE

__all__ = ["notes_of"]

NAMES_SHOWN: Final = 5
NORMALISED: Final = re.compile(r": BUFFER target='(?:(.*)\.)?running_mean'")
"""How the signature of PyTorch's newer exporter names the running mean of a BatchNorm."""
NAMELESS: Final = re.compile(r"^onnx::(Conv|ConvTranspose|Gemm)_\d+$")
"""How its older exporter names a tensor that is not the module's own."""
OLDER_NODE: Final = re.compile(r"^/")
"""How its older exporter begins the name of a node."""
NORMALISATIONS: Final = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)


def notes_of(source: onnx.ModelProto, roles: Mapping[str, Role]) -> list[str]:
    """The notes on a model.

    Args:
        source: As it was exported.
        roles: What its initializers were taken for.
    """
    return [*_moved(source), *_folded_normalisation(source), *_left_out(roles)]


def _moved(source: onnx.ModelProto) -> Iterator[str]:
    for name, axis in moved_inputs(source).items():
        yield f"input {name}: the file has the batch in dimension {axis}; examples are given with it in front"


def _folded_normalisation(source: onnx.ModelProto) -> Iterator[str]:
    """BatchNorm that the exporter merged into the layer before it: gone, with names and shapes that look right."""
    names = {tensor.name for tensor in source.graph.initializer}
    signatures = [e.value for e in (*source.metadata_props, *source.graph.metadata_props) if e.key == SIGNATURE]
    if signatures:
        layers = [layer for text in signatures for layer in NORMALISED.findall(text)]
        folded = [layer for layer in layers if f"{layer}.running_mean".lstrip(".") not in names]
        if folded:
            yield (
                f"the exporter has folded BatchNorm ({_listed(folded)}) into the layers before it, so the model trains "
                "without it: to keep it, export with optimize=False"
            )
        return
    nodes = [n for n in source.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm") and len(n.input) > 2]
    nameless = [node.name for node in nodes if all(NAMELESS.match(name) for name in node.input[1:3])]
    if nameless:
        yield (
            f"weights and biases of {_listed(nameless)} are not the module's own: if BatchNorm follows there in your "
            "model, the exporter has folded it into them, and the model trains without it; to keep it, export with "
            "training=torch.onnx.TrainingMode.PRESERVE (model.eval() all the same)"
        )
        return
    convolutions = [n for n in source.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    older = any(OLDER_NODE.match(node.name) for node in source.graph.node)
    biased = bool(convolutions) and all(len(node.input) > 2 for node in convolutions)
    normalised = any(node.op_type in NORMALISATIONS for node in source.graph.node)
    if source.producer_name == "pytorch" and biased and not normalised and not older:
        yield (
            "if your model has BatchNorm, the exporter has folded it into the convolutions before it, and the model "
            "trains without it: to keep it, export with optimize=False"
        )


def _left_out(roles: Mapping[str, Role]) -> Iterator[str]:
    """What might be a parameter all the same."""
    guessed = [f"{name} ({role.why})" for name, role in roles.items() if role.guessed]
    if guessed:
        yield (
            f"not trained, since it looks like a constant: {_listed(guessed)}; to train one, give its full name: train"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more

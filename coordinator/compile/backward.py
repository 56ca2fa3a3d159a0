"""Reverse-mode differentiation: from the gradient of an output to the gradients of all parameters.

The walk goes through the model's nodes from the last to the first, asks each operator's rule for the gradients of its
inputs and adds up where a tensor has several users (Griewank & Walther, Evaluating Derivatives, 2nd ed., chapter 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.compile.graph import GraphBuilder, Model, Node, prune
from coordinator.compile.rules import RULES, Gradient
from coordinator.compile.rules.fallback import INSTALL, fallback_gradient, fallback_training, has_fallback
from edge_sdk.errors import CompileError

__all__ = ["append_forward", "differentiate", "needs_gradient"]


def needs_gradient(model: Model) -> frozenset[str]:
    """Names of all float tensors that depend on a trainable parameter."""
    needing = set(model.trainable)
    for node in model.nodes:
        if needing.intersection(node.inputs):
            needing.update(name for name in node.outputs if name and _is_float(model, name))
    return frozenset(needing)


def append_forward(b: GraphBuilder, output: str) -> None:
    """Append the model's nodes up to ``output``, each in its training form."""
    needing = needs_gradient(b.model)
    nodes = prune(b.model.nodes, [output])
    _check_rules(nodes, needing)
    for node in nodes:
        rule = RULES.get(node.op)
        training = rule.training if rule else fallback_training
        if training is not None and needing.intersection(node.inputs) and needing.intersection(node.outputs):
            training(b, node)
        else:
            b.append(node)


def differentiate(b: GraphBuilder, seeds: Mapping[str, str]) -> dict[str, Gradient]:
    """Append the backward pass.

    Args:
        b: Holds the forward pass (:func:`append_forward`).
        seeds: Gradient (its name in the graph) by output.

    Returns:
        The gradient of every trainable parameter; a product is not emitted yet.

    Raises:
        CompileError: An operator on the way has no rule and onnx-ad cannot stand in for one, or a parameter has no
            influence on the outputs.
    """
    needing = needs_gradient(b.model)
    nodes = prune(b.model.nodes, seeds)
    _check_rules(nodes, needing)
    gradients: dict[str, Gradient] = dict(seeds)
    for node in reversed(nodes):
        dy = tuple(b.materialise(gradients[name]) if name in gradients else "" for name in node.outputs)
        wanted = [name in needing for name in node.inputs]
        if not any(dy) or not any(wanted):
            continue
        rule = RULES.get(node.op)
        found = (rule.gradient if rule else fallback_gradient)(b, node, dy, wanted)
        for name, gradient in zip(node.inputs, found, strict=False):  # trailing inputs without gradient may be left out
            if gradient is not None and name in needing:
                gradients[name] = b.add(gradients[name], gradient) if name in gradients else gradient
    for name in b.model.trainable:
        if name not in gradients:
            raise CompileError(
                f"parameter {name!r} does not influence the output that the loss is computed on ({', '.join(seeds)}); "
                "choose the output that it leads to, or freeze the parameter"
            )
    return {name: gradients[name] for name in b.model.trainable}


def _check_rules(nodes: Iterable[Node], needing: frozenset[str]) -> None:
    missing = [
        n for n in nodes if n.op not in RULES and needing.intersection(n.inputs) and needing.intersection(n.outputs)
    ]
    if missing and not has_fallback():
        others = sorted({n.op for n in missing} - {missing[0].op})
        also = f" (also without a rule here: {', '.join(others)})" if others else ""
        raise CompileError(
            f"{missing[0]}: this operator has no gradient rule{also}. Replace it in the model, freeze the parameters "
            f"before it, {INSTALL}, or add a rule to coordinator/compile/rules. Operators with a rule: "
            f"{', '.join(sorted(RULES))}"
        )


def _is_float(model: Model, name: str) -> bool:
    return name not in model.values or model.values[name].dtype.startswith("float")

"""Optimisers: from a parameter and its gradient to the parameter after the step.

A plain SGD step is linear in the gradient. So the backward pass of SGD and momentum starts from ``-lr`` instead of 1:
what arrives at a parameter is the step itself, and a dense layer's new weight is one Gemm, ``dY^T X + W``. Adam squares
the gradient and gets it unscaled.

Two optional terms pull parameters back: the proximal term of FedProx, ``mu/2 |w - anchor|^2``, towards the round's
starting model (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, equation 2), and weight decay
towards zero, inside the gradient for SGD and momentum, beside it for Adam (Loshchilov & Hutter, Decoupled Weight Decay
Regularization, ICLR 2019, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.compile.graph import GraphBuilder, Product
from edge_sdk.program import ANCHOR

__all__ = ["OPTIMIZERS", "Optimizer", "Pulls"]

STEP: Final = "state/step"


@dataclass(frozen=True, slots=True)
class Pulls:
    """Which of the optional terms are compiled in."""

    proximal: bool = False
    weight_decay: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Names of a parameter, and of its state tensors, after the step."""

    parameter: str
    state: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimiser.

    Attributes:
        scalars: Its scalar inputs and their defaults (besides those of ``Pulls``).
        slots: State tensors that it keeps for each parameter, of the parameter's shape: ``state/<slot>/<parameter>``.
        counts: Whether it counts steps, in the scalar ``state/step``.
        scaled: Whether the backward pass starts from ``-lr``.
        update: ``(builder, parameter, gradient, pulls) -> Update``.
    """

    scalars: Mapping[str, float]
    slots: tuple[str, ...]
    counts: bool
    scaled: bool
    update: Callable[[GraphBuilder, str, str | Product, Pulls], Update]


def slot_name(slot: str, parameter: str) -> str:
    """The name of a parameter's state tensor."""
    return f"state/{slot}/{parameter}"


def _sgd(b: GraphBuilder, parameter: str, gradient: str | Product, pulls: Pulls) -> Update:
    """w' = w - lr g."""
    return Update(b.materialise(gradient, _pulled(b, parameter, parameter, pulls)), {})


def _momentum(b: GraphBuilder, parameter: str, gradient: str | Product, pulls: Pulls) -> Update:
    """v' = momentum v - lr g, w' = w + v' (Sutskever et al., ICML 2013, equations 1 and 2)."""
    slot = slot_name("momentum", parameter)
    kept = b.op("Mul", slot, "momentum")
    velocity = b.materialise(gradient, _pulled(b, kept, parameter, pulls))
    return Update(b.op("Add", parameter, velocity), {slot: velocity})


def _adam(b: GraphBuilder, parameter: str, gradient: str | Product, pulls: Pulls) -> Update:
    """Kingma & Ba, Adam, ICLR 2015, algorithm 1, with both bias corrections moved into two scalars."""
    if pulls.proximal:
        pull = b.op("Mul", b.op("Sub", parameter, ANCHOR + parameter), "mu")
        g = b.materialise(gradient, pull)
    else:
        g = b.materialise(gradient)
    first, second = slot_name("first", parameter), slot_name("second", parameter)
    one = b.scalar(1.0)
    mean = b.op("Add", b.op("Mul", first, "beta1"), b.op("Mul", g, b.op("Sub", one, "beta1")))
    square = b.op("Mul", b.op("Mul", g, g), b.op("Sub", one, "beta2"))
    spread = b.op("Add", b.op("Mul", second, "beta2"), square)
    step = b.op("Add", STEP, one)
    bias1 = b.op("Sub", one, b.op("Pow", "beta1", step))
    root2 = b.op("Sqrt", b.op("Sub", one, b.op("Pow", "beta2", step)))
    rate = b.op("Div", b.op("Mul", "lr", root2), bias1)
    scale = b.op("Add", b.op("Sqrt", spread), b.op("Mul", "epsilon", root2))
    start = parameter
    if pulls.weight_decay:
        start = b.op("Mul", parameter, b.op("Sub", one, b.op("Mul", "lr", "weight_decay")))
    moved = b.op("Sub", start, b.op("Div", b.op("Mul", mean, rate), scale))
    return Update(moved, {first: mean, second: spread})


def _pulled(b: GraphBuilder, start: str, parameter: str, pulls: Pulls) -> str:
    """``start - lr (weight_decay w + mu (w - anchor))``."""
    if pulls.weight_decay:
        rate = b.op("Mul", "lr", "weight_decay")
        if start == parameter:
            start = b.op("Mul", parameter, b.op("Sub", b.scalar(1.0), rate))
        else:
            start = b.op("Sub", start, b.op("Mul", parameter, rate))
    if pulls.proximal:
        distance = b.op("Sub", parameter, ANCHOR + parameter)
        start = b.op("Sub", start, b.op("Mul", distance, b.op("Mul", "lr", "mu")))
    return start


OPTIMIZERS: Final[Mapping[str, Optimizer]] = {
    "sgd": Optimizer({"lr": 0.1}, (), False, True, _sgd),
    "momentum": Optimizer({"lr": 0.1, "momentum": 0.9}, ("momentum",), False, True, _momentum),
    "adam": Optimizer(
        {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}, ("first", "second"), True, False, _adam
    ),
}

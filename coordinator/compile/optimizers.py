"""Optimisers: from a parameter and its gradient to the parameter after the step.

A plain SGD step is linear in the gradient. So the backward pass of SGD and momentum starts from ``-lr`` instead of 1:
what arrives at a parameter is the step itself, and a dense layer's new weight is one Gemm, ``dY^T X + W``. Adam and
RMSProp square the gradient and get it unscaled; so does whatever is clipped.

Two optional terms pull parameters back: the proximal term of FedProx, ``mu/2 |w - anchor|^2``, towards the round's
starting model (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, equation 2), and weight decay
towards zero, inside the gradient, for AdamW beside it (Loshchilov & Hutter, Decoupled Weight Decay Regularization,
ICLR 2019, algorithm 2). Clipping is of the loss's gradient alone, before either is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.compile.graph import GraphBuilder
from coordinator.compile.rules import Gradient
from edge_sdk.training.program import ANCHOR

__all__ = ["NORM_MAX", "OPTIMIZERS", "Optimizer", "Pulls", "clipped"]

STEP: Final = "state/step"
NORM_MAX: Final = "gradient_norm_max"


@dataclass(frozen=True, slots=True)
class Pulls:
    """Which of the optional terms are compiled in."""

    proximal: bool = False
    weight_decay: bool = False
    clipped: bool = False


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
    update: Callable[[GraphBuilder, str, Gradient, Pulls], Update]


def slot_name(slot: str, parameter: str) -> str:
    """The name of a parameter's state tensor."""
    return f"state/{slot}/{parameter}"


def clipped(b: GraphBuilder, gradients: Mapping[str, Gradient], optimizer: Optimizer) -> dict[str, Gradient]:
    """Unscaled gradients times ``min(1, gradient_norm_max / |g|)``, and as the optimiser wants them, ``-lr`` of that.

    The norm is that of all gradients together (Pascanu et al., On the difficulty of training RNNs, ICML 2013).
    """
    whole = {name: b.materialise(gradient) for name, gradient in gradients.items()}
    squares = [b.op("ReduceSum", b.op("Mul", g, g), keepdims=0) for g in whole.values()]
    norm = b.op("Sqrt", b.op("Sum", *squares) if len(squares) > 1 else squares[0])
    factor = b.op("Min", b.op("Div", NORM_MAX, b.op("Add", norm, b.scalar(1e-6))), b.scalar(1.0))
    if optimizer.scaled:
        factor = b.op("Mul", factor, b.op("Neg", "lr"))
    return {name: b.op("Mul", g, factor) for name, g in whole.items()}


def _sgd(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """w' = w - lr g."""
    return Update(b.materialise(gradient, _pulled(b, parameter, parameter, pulls)), {})


def _momentum(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """v' = momentum v - lr g, w' = w + v' (Sutskever et al., ICML 2013, equations 1 and 2)."""
    slot = slot_name("momentum", parameter)
    kept = b.op("Mul", slot, "momentum")
    velocity = b.materialise(gradient, _pulled(b, kept, parameter, pulls))
    return Update(b.op("Add", parameter, velocity), {slot: velocity})


def _nesterov(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """v' = momentum v - lr g, w' = w + momentum v' - lr g (Sutskever et al., ICML 2013, section 3, rewritten in v')."""
    slot = slot_name("momentum", parameter)
    step = b.materialise(gradient)
    if pulls.weight_decay or pulls.proximal:
        step = _pulled(b, step, parameter, pulls)
    velocity = b.op("Add", b.op("Mul", slot, "momentum"), step)
    moved = b.op("Add", parameter, b.op("Add", b.op("Mul", velocity, "momentum"), step))
    return Update(moved, {slot: velocity})


def _adam(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """Kingma & Ba, Adam, ICLR 2015, algorithm 1, with both bias corrections moved into two scalars."""
    return _adam_from(b, parameter, parameter, _loss_gradient(b, parameter, gradient, pulls, pulls.weight_decay))


def _adamw(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """Adam that shrinks the parameter by ``1 - lr weight_decay`` beside the step."""
    start = b.op("Mul", parameter, b.op("Sub", b.scalar(1.0), b.op("Mul", "lr", "weight_decay")))
    return _adam_from(b, parameter, start, _loss_gradient(b, parameter, gradient, pulls, False))


def _adam_from(b: GraphBuilder, parameter: str, start: str, g: str) -> Update:
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
    moved = b.op("Sub", start, b.op("Div", b.op("Mul", mean, rate), scale))
    return Update(moved, {first: mean, second: spread})


def _rmsprop(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls) -> Update:
    """s' = rho s + (1 - rho) g^2, w' = w - lr g / (sqrt(s') + epsilon) (Tieleman & Hinton, 2012, lecture 6.5)."""
    g = _loss_gradient(b, parameter, gradient, pulls, pulls.weight_decay)
    slot = slot_name("square", parameter)
    square = b.op("Mul", b.op("Mul", g, g), b.op("Sub", b.scalar(1.0), "rho"))
    spread = b.op("Add", b.op("Mul", slot, "rho"), square)
    step = b.op("Div", b.op("Mul", g, "lr"), b.op("Add", b.op("Sqrt", spread), "epsilon"))
    return Update(b.op("Sub", parameter, step), {slot: spread})


def _loss_gradient(b: GraphBuilder, parameter: str, gradient: Gradient, pulls: Pulls, decays: bool) -> str:
    """``g + mu (w - anchor) + weight_decay w``."""
    pull = ""
    if pulls.proximal:
        pull = b.op("Mul", b.op("Sub", parameter, ANCHOR + parameter), "mu")
    if decays:
        decay = b.op("Mul", parameter, "weight_decay")
        pull = b.op("Add", pull, decay) if pull else decay
    return b.materialise(gradient, pull)


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


ADAM: Final[Mapping[str, float]] = {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}

OPTIMIZERS: Final[Mapping[str, Optimizer]] = {
    "sgd": Optimizer({"lr": 0.1}, (), False, True, _sgd),
    "momentum": Optimizer({"lr": 0.1, "momentum": 0.9}, ("momentum",), False, True, _momentum),
    "nesterov": Optimizer({"lr": 0.1, "momentum": 0.9}, ("momentum",), False, True, _nesterov),
    "adam": Optimizer(ADAM, ("first", "second"), True, False, _adam),
    "adamw": Optimizer({**ADAM, "weight_decay": 0.01}, ("first", "second"), True, False, _adamw),
    "rmsprop": Optimizer({"lr": 0.001, "rho": 0.9, "epsilon": 1e-7}, ("square",), False, False, _rmsprop),
}

"""Server optimisers: how the mean delta of a round moves the parameters.

**Signs, once for the whole project.** A client's delta is ``local - global``: where it wants the parameters to go. D is
the weighted mean of the deltas. A descent method subtracts a gradient, and the *negative* of D plays that part, so
that everything below **adds**: ``w' = w + step(D)``. FedAvg with eta 1 gives ``w + D``, the weighted mean of the
clients' parameters.

    FedAvg      step = eta D
    FedAvgM     v = momentum v + D;                            step = eta v
    FedAdagrad  v = v + D^2                                    m = beta1 m + (1 - beta1) D
    FedAdam     v = beta2 v + (1 - beta2) D^2                  step = eta m / (sqrt(v) + tau)
    FedYogi     v = v - (1 - beta2) D^2 sign(v - D^2)          (the last three; v begins as tau^2, m as 0)

Sources: McMahan et al. 2017, Algorithm 1; Hsu et al. 2019 (FedAvgM); Reddi et al. 2021, Algorithm 2, which has no bias
correction. FedAvgM is without Nesterov's look-ahead.

Elements of kind "buffer" (running means and variances) are no gradients: under every optimiser they become
``w + D``.

Everything is float32, elementwise, in a fixed order of IEEE operations, and inputs are never changed: the same round
applied again after a restart gives the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigurationError, DivergedError, StateError
from edge_sdk.extension import is_dotted, make

__all__ = [
    "SERVER_OPTIMIZERS",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "ServerOptimizer",
    "ServerState",
    "make_server_optimizer",
    "server_settings",
]

Vector: TypeAlias = NDArray[np.float32]
ServerState: TypeAlias = dict[str, Vector]
"""What an optimiser remembers between rounds: float32[P] by name, ready for a checkpoint."""


class ServerOptimizer(Protocol):
    """A pure pair: ``init`` makes the state, ``apply`` takes one step."""

    def init(self, size: int) -> ServerState:
        """The state before the first round, for ``size`` parameters."""

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        """One step.

        Args:
            parameters: float32[P], the global parameters.
            mean_delta: float32[P], D.
            state: As ``init`` or the last ``apply`` gave it.
            buffer: bool[P], true where an element is averaged plainly; None where none is.

        Returns:
            New parameters float32[P] and new state; the arguments are unchanged.

        Raises:
            ValueError: A vector has another length or type.
            StateError: The state is that of another optimiser or model.
            DivergedError: A new parameter is not finite: training has diverged.
        """


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Moves by the mean delta; ``eta`` is the server's learning rate."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "eta")

    def init(self, size: int) -> ServerState:
        return {}

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        _check_vectors(parameters, mean_delta, state, ())
        return _moved(parameters, np.float32(self.eta) * mean_delta, mean_delta, buffer), {}


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Moves by a running sum of deltas that forgets; ``momentum`` 0 is FedAvg."""

    eta: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_positive(self, "eta")
        _check_share(self, "momentum")

    def init(self, size: int) -> ServerState:
        return {"v": np.zeros(size, dtype=np.float32)}

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        _check_vectors(parameters, mean_delta, state, ("v",))
        v = np.float32(self.momentum) * state["v"] + mean_delta
        return _moved(parameters, np.float32(self.eta) * v, mean_delta, buffer), {"v": v}


@dataclass(frozen=True, slots=True)
class FedAdagrad:
    """Adagrad: an element's steps shrink with all that it has ever moved.

    ``beta1`` is 0 by default, since Adagrad is usually run without momentum; Algorithm 2 allows it.
    """

    eta: float = 0.1
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self, "eta", "tau")
        _check_share(self, "beta1")

    def init(self, size: int) -> ServerState:
        return _adaptive_state(size, self.tau)

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        _check_vectors(parameters, mean_delta, state, ("m", "v"))
        v = state["v"] + mean_delta * mean_delta
        return _adaptive(self, v, parameters, mean_delta, state, buffer)


@dataclass(frozen=True, slots=True)
class FedAdam:
    """Adam without bias correction: steps shrink with how much an element has moved lately."""

    eta: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self, "eta", "tau")
        _check_share(self, "beta1", "beta2")

    def init(self, size: int) -> ServerState:
        return _adaptive_state(size, self.tau)

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        _check_vectors(parameters, mean_delta, state, ("m", "v"))
        v = np.float32(self.beta2) * state["v"] + np.float32(1.0 - self.beta2) * (mean_delta * mean_delta)
        return _adaptive(self, v, parameters, mean_delta, state, buffer)


@dataclass(frozen=True, slots=True)
class FedYogi:
    """Yogi: as Adam, but an element's scale changes by at most a share of D^2 a round, which suits sparse deltas."""

    eta: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self, "eta", "tau")
        _check_share(self, "beta1", "beta2")

    def init(self, size: int) -> ServerState:
        return _adaptive_state(size, self.tau)

    def apply(
        self,
        parameters: Vector,
        mean_delta: Vector,
        state: Mapping[str, Vector],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[Vector, ServerState]:
        _check_vectors(parameters, mean_delta, state, ("m", "v"))
        squared = mean_delta * mean_delta
        v = state["v"] - np.float32(1.0 - self.beta2) * squared * np.sign(state["v"] - squared)
        return _adaptive(self, v, parameters, mean_delta, state, buffer)


SERVER_OPTIMIZERS: Final[Mapping[str, type[FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi]]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def make_server_optimizer(name: str, **settings: Any) -> ServerOptimizer:
    """The optimiser of that name, or the user's own class by its dotted name.

    Args:
        name: A key of ``SERVER_OPTIMIZERS`` or ``"package.module:Class"``.
        settings: Its fields; those left out keep their defaults.

    Raises:
        ConfigurationError: The name or a setting is unknown, or a value is out of range.
    """
    if is_dotted(name):
        made = make("aggregation.server_optimizer", name, settings, methods=("init", "apply"))
        return cast(ServerOptimizer, made)
    if name not in SERVER_OPTIMIZERS:
        raise ConfigurationError(f"server optimizer {name!r} is unknown: choose one of {', '.join(SERVER_OPTIMIZERS)}")
    allowed = server_settings(name)
    for setting in settings:
        if setting not in allowed:
            raise ConfigurationError(f"{name} has no setting {setting!r}: it has {', '.join(allowed)}")
    return SERVER_OPTIMIZERS[name](**settings)


def server_settings(name: str) -> tuple[str, ...]:
    """The settings of the optimiser with that name, a key of ``SERVER_OPTIMIZERS``."""
    return tuple(field.name for field in dataclasses.fields(SERVER_OPTIMIZERS[name]))


def _adaptive_state(size: int, tau: float) -> ServerState:
    return {"m": np.zeros(size, dtype=np.float32), "v": np.full(size, tau * tau, dtype=np.float32)}


def _adaptive(
    settings: FedAdagrad | FedAdam | FedYogi,
    v: Vector,
    parameters: Vector,
    mean_delta: Vector,
    state: Mapping[str, Vector],
    buffer: NDArray[np.bool_] | None,
) -> tuple[Vector, ServerState]:
    m = np.float32(settings.beta1) * state["m"] + np.float32(1.0 - settings.beta1) * mean_delta
    root: Vector = np.sqrt(v)
    step = np.float32(settings.eta) * m / (root + np.float32(settings.tau))
    return _moved(parameters, step, mean_delta, buffer), {"m": m, "v": v}


def _moved(parameters: Vector, step: Vector, mean_delta: Vector, buffer: NDArray[np.bool_] | None) -> Vector:
    if buffer is not None:
        step = np.where(buffer, mean_delta, step)
    moved = parameters + step
    if not np.isfinite(moved).all():
        raise DivergedError(
            "the server's step gives parameters that are not finite: training has diverged; "
            "lower the server's eta or the clients' learning rate, and go back to an earlier checkpoint"
        )
    return moved


def _check_vectors(parameters: Vector, mean_delta: Vector, state: Mapping[str, Vector], names: tuple[str, ...]) -> None:
    if parameters.ndim != 1 or parameters.dtype != np.float32:
        raise ValueError(f"parameters are {parameters.dtype}{list(parameters.shape)}, expected float32[P]")
    if mean_delta.shape != parameters.shape or mean_delta.dtype != np.float32:
        raise ValueError(
            f"mean delta is {mean_delta.dtype}{list(mean_delta.shape)}, expected float32[{parameters.size}]"
        )
    found = {name: (array.dtype, array.shape) for name, array in state.items()}
    if found != dict.fromkeys(names, (parameters.dtype, parameters.shape)):
        raise StateError(
            f"the server optimizer's state is {found}, expected {list(names)} as float32[{parameters.size}]: "
            "the checkpoint is of another optimizer or model; use that one, or begin with a fresh state"
        )


def _check_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (_is_number(value) and value > 0):
            raise ConfigurationError(f"{type(settings).__name__}.{name} is {value!r}, expected a finite number above 0")


def _check_share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (_is_number(value) and 0 <= value < 1):
            raise ConfigurationError(f"{type(settings).__name__}.{name} is {value!r}, expected 0 <= {name} < 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""The sum of delta and residual (error feedback), and the check that it can be sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX
from edge_sdk.errors import DivergedError

__all__ = ["add_residual", "check_magnitude"]


def add_residual(delta: NDArray[np.float32], residual: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """``delta + residual``, float32[P], which may be ``delta`` itself: not for writing.

    Raises:
        DivergedError: A coordinate of the sum cannot be sent.
    """
    # What overflows is refused below; a warning on the device's console would say less.
    with np.errstate(over="ignore", invalid="ignore"):
        total = delta if residual is None else delta + residual
        largest = max(float(total.max()), -float(total.min()))
    check_magnitude(largest)
    return total


def check_magnitude(largest: float) -> None:
    """Refuse a sum whose largest magnitude is ``largest``.

    Raises:
        DivergedError: It is above ``MAGNITUDE_MAX``, infinite or not a number.
    """
    if not largest <= MAGNITUDE_MAX:
        raise DivergedError(
            f"delta + residual has a coordinate of magnitude {largest:g}, at most {MAGNITUDE_MAX:g} can be sent: "
            "training diverged; lower the learning rate or clip the delta"
        )

"""The codec that chooses: for each update the one that fits the round, the vector and the device.

What is chosen, and why (``docs/choosing-a-codec.md`` has the measurements):

* ``eden`` with the bits of the plan, in nearly all cases. Its error is noise that averages out over the devices of a
  round, so the larger the cohort, the fewer bits: :func:`edge_sdk.codecs.eden.bits_for` has the rule, which a
  coordinator applies.
* ``sparse`` with all that is there where an update is sparse by nature: it has moved at most one coordinate in ten
  (rows of a table that are looked up, words of a vocabulary). Few devices of a round move the same coordinate, so the
  noise of a rotation, which is on all of them, would not average out.
* ``sparse`` too where, for no more bytes than ``eden`` takes, the largest coordinates hold 95 % of the energy. What they
  leave out comes with a later update, so the device must be able to keep a residual and take part in at least one of
  twenty rounds; else they must hold 99.9 %.
* Tensors of a thousand rows or columns and more apart, since one may be such a table and another not
  (:meth:`Auto.split`).
* Kernels of convolutions apart, with four times the bits: they are few and move far, and the error of ``eden`` is the
  same for all coordinates that it rotates together.
* ``int8`` for vectors of less than 1024 coordinates, where heads and scales weigh more than bits; ``dense`` for those
  of one or two, where even the scale of ``int8`` is more than it saves.

A frame says which codec it is in. A decoder reads all of these, as long as the frame is within the plan's bound on the
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import Codec, Context, setting
from edge_sdk.codecs.dense import Dense
from edge_sdk.codecs.eden import BITS_MIN, Eden, bits_for, bits_setting, fitted_bits
from edge_sdk.codecs.fit import largest_that_fits
from edge_sdk.codecs.quantised import Int8
from edge_sdk.codecs.select import add_and_select
from edge_sdk.codecs.sparse import DENSITY_MIN, Sparse, largest_count
from edge_sdk.parameters import Tensor
from edge_sdk.wire.fields import number

__all__ = ["SMALL_SIZE", "Auto", "largest_hold"]

SMALL_SIZE: Final = 1024
ENERGY_SHARE: Final = 0.95
ENERGY_SHARE_ALONE: Final = 0.999
PARTICIPATION_MIN: Final = 0.05
KERNELS_SHARE: Final = 0.15
KERNELS_FACTOR: Final = 4.0
TOUCHED_MAX: Final = 0.1
TABLE_LENGTH_MIN: Final = 1000
TABLES_MAX: Final = 8
SMALL_MODEL: Final = 20_000
"""Parameters up to which all tables together are worth less than what a message costs."""
_TOUCHED_STEPS: Final = 32
_SMALL: Final = (Int8(), Dense())
_ANY_DENSITY: Final = Sparse(density=1.0)


@dataclass(frozen=True, slots=True)
class Auto(Codec):
    """Chooses a codec for each update."""

    name: ClassVar[str] = "auto"
    wire_id: ClassVar[int] = 255
    chooses: ClassVar[bool] = True
    sends_all: ClassVar[bool] = False  # it may choose sparse
    bits: float = bits_setting()
    participation: float = setting(
        number(0.0, 1.0),
        0.0,
        "Share of the rounds in which a device is expected to take part; 0 if unknown.",
        allowed="a number at least 0, at most 1",
        key=False,
    )
    touched: float = setting(
        number(0.0, 1.0),
        0.0,
        "Share of the coordinates that an update may have moved to be sent as one that is sparse by nature.",
        allowed="a number at least 0, at most 1",
        key=False,
    )

    def choose(self, total: NDArray[np.float32], context: Context) -> Codec:
        """See :meth:`Codec.choose`."""
        if total.size < SMALL_SIZE:
            return _small(total.size)
        moved = int(np.count_nonzero(total))
        if 0 < moved <= self.touched * total.size:
            return Sparse(density=max(DENSITY_MIN, moved / total.size))
        eden = Eden(bits=self.bits)
        count, share = largest_hold(total, eden)
        if count:
            lasting = context.keeps_residual and not 0.0 < self.participation < PARTICIPATION_MIN
            if share >= (ENERGY_SHARE if lasting else ENERGY_SHARE_ALONE):
                return Sparse(density=count / total.size)
        return eden

    def reader(self, wire_id: int) -> Codec | None:
        """See :meth:`Codec.reader`."""
        readers = (Eden(bits=self.bits), _ANY_DENSITY, *_SMALL)
        return next((codec for codec in readers if codec.wire_id == wire_id), None)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        if size < SMALL_SIZE:
            return _small(size).body_bytes_max(size)
        most = Eden(bits=self.bits).body_bytes_max(size)
        return max(most, Sparse(density=self.touched).body_bytes_max(size)) if self.touched else most

    def fitted(self, fits: Callable[[Self], bool]) -> Self | None:
        """See :meth:`Codec.fitted`: first a smaller share that counts as sparse by nature, then fewer bits."""
        if fits(self):
            return self
        bare = replace(self, touched=0.0)
        if not fits(bare):
            return fitted_bits(bare, fits)
        share = self.touched / _TOUCHED_STEPS
        return largest_that_fits(lambda step: replace(self, touched=share * step), _TOUCHED_STEPS, fits) or bare

    def smallest(self) -> Self:
        """See :meth:`Codec.smallest`."""
        return replace(self, bits=BITS_MIN, touched=0.0)

    def split(self, tensors: Sequence[Tensor]) -> tuple[Codec, tuple[tuple[Codec, frozenset[str]], ...]]:
        """See :meth:`Codec.split`: kernels and the rest together take as many bytes as both alike would."""
        size = sum(tensor.size for tensor in tensors)
        kernels = [tensor for tensor in tensors if _rank(tensor) > 2]
        share = sum(tensor.size for tensor in kernels) / max(size, 1)
        main = self
        apart: list[tuple[Codec, frozenset[str]]] = []
        if 0.0 < share <= KERNELS_SHARE:
            fine = self.bits
            if self.bits < 1.0:
                fine = min(1.0, KERNELS_FACTOR * self.bits)
                main = replace(self, bits=round(max(BITS_MIN, (self.bits - share * fine) / (1.0 - share)), 4))
            apart.append((Eden(bits=round(fine, 4)), frozenset(tensor.name for tensor in kernels)))
        # Where one of them is all of the model, it is the main group.
        apart += [(main, names) for names in _tables(tensors) if len(names) < len(tensors)]
        return main, tuple(apart)

    def for_model(self, tensors: Sequence[Tensor]) -> Self:
        """See :meth:`Codec.for_model`: whether there is anything of which an update may move a few rows only."""
        small = sum(tensor.size for tensor in tensors) <= SMALL_MODEL
        return replace(self, touched=TOUCHED_MAX if small or _tables(tensors) else 0.0)

    def taking_part(self, participation: float) -> Self:
        """See :meth:`Codec.taking_part`."""
        return replace(self, participation=participation)

    @classmethod
    def for_cohort(cls, cohort: int, adaptive: bool) -> dict[str, Any]:
        """See :meth:`Codec.for_cohort`."""
        return {"bits": bits_for(cohort, adaptive)}


def _tables(tensors: Sequence[Tensor]) -> list[frozenset[str]]:
    """Names of matrices of many rows or columns, the largest first; with each the vectors of as many elements as it has
    rows or columns, which are of the same things."""
    matrices = [tensor for tensor in tensors if _rank(tensor) == 2 and max(tensor.shape) >= TABLE_LENGTH_MIN]
    vectors = [tensor for tensor in tensors if _rank(tensor) == 1 and tensor.size >= TABLE_LENGTH_MIN]
    tables, taken = [], set[str]()
    for matrix in sorted(matrices, key=lambda tensor: -tensor.size)[:TABLES_MAX]:
        beside = {vector.name for vector in vectors if vector.size in matrix.shape} - taken
        taken |= beside
        tables.append(frozenset({matrix.name, *beside}))
    return tables


def _rank(tensor: Tensor) -> int:
    """Dimensions that are longer than 1."""
    return sum(length > 1 for length in tensor.shape)


def _small(size: int) -> Codec:
    """What sends fewer bytes of a vector of less than ``SMALL_SIZE`` coordinates."""
    return min(_SMALL, key=lambda codec: codec.body_bytes_max(size))


def largest_hold(total: NDArray[np.float32], eden: Eden) -> tuple[int, float]:
    """How many of the largest coordinates ``sparse`` can send in the bytes that ``eden`` takes, and the share of the
    energy of ``total`` (float32[P]) that they hold."""
    count = largest_count(total.size, eden.body_bytes_max(total.size))
    if not count:
        return 0, 0.0
    sent, indices = add_and_select(total, None, count)
    energy = float(np.dot(total, total))
    return count, float(np.square(sent[indices], dtype=np.float64).sum()) / energy if energy > 0.0 else 1.0

"""The codec that chooses: for each update the one that fits the round, the vector and the device.

What is chosen, and why (``docs/choosing-a-codec.md`` has the measurements):

* ``eden`` with the bits of the plan, in nearly all cases. Its error is noise that averages out over the devices of a
  round, so the larger the cohort, the fewer bits: :func:`edge_sdk.codecs.eden.bits_for` has the rule, which a
  coordinator applies.
* ``sparse_rows`` where a device has touched few rows of the model's tables (embeddings), or trains a part of the model
  alone: all that is not exactly zero, with bits that need no averaging, since the other devices of the round may not
  have touched these rows; the other tensors as ``eden`` does. It may take more bytes than ``eden``, up to half a bit
  for each coordinate of the model.
* ``sparse`` where few single coordinates are not zero: all of them, within the same bytes. Also where, for no more
  bytes than ``eden`` takes, the largest coordinates hold 95 % of the energy: what they leave out comes with a later
  update, so the device must be able to keep a residual and take part in at least one of twenty rounds; else they must
  hold 99.9 %.
* Kernels of convolutions apart, with four times the bits: they are few and move far, and the error of ``eden`` is the
  same for all coordinates that it rotates together (:meth:`Auto.split`).
* ``int8`` for vectors of less than 1024 coordinates, where heads and scales weigh more than bits; ``dense`` for those
  of one or two, where even the scale of ``int8`` is more than it saves.

A frame says which codec it is in. A decoder reads all of these, as long as the frame is within the plan's bound on the
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import Codec, Context, setting
from edge_sdk.codecs.dense import Dense
from edge_sdk.codecs.eden import BITS_MIN, Eden, bits_for, bits_setting, fitted_bits
from edge_sdk.codecs.quantised import Int8
from edge_sdk.codecs.select import add_and_select
from edge_sdk.codecs.sparse import DENSITY_MIN, Sparse, largest_count
from edge_sdk.codecs.sparse_rows import ROW_BITS, SMALL_SIZE, SparseRows, small_codec, tables_of
from edge_sdk.wire.fields import number

__all__ = ["SMALL_SIZE", "Auto", "largest_hold"]

SPARSE_BITS: Final = 0.5
SPARSE_ONE_IN: Final = 8
"""Where more than one coordinate in so many is not zero, a vector is not sparse by nature."""
ENERGY_SHARE: Final = 0.95
ENERGY_SHARE_ALONE: Final = 0.999
PARTICIPATION_MIN: Final = 0.05
KERNELS_SHARE: Final = 0.15
KERNELS_FACTOR: Final = 4.0
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
    sparse_bits: float = setting(
        number(0.0, 8.0),
        SPARSE_BITS,
        "Bits a coordinate of the whole model that an update may take if few of its coordinates are not zero.",
        allowed="a number at least 0, at most 8",
        key=False,
        told=False,
    )
    participation: float = setting(
        number(0.0, 1.0),
        0.0,
        "Share of the rounds in which a device is expected to take part; 0 if unknown.",
        allowed="a number at least 0, at most 1",
        key=False,
    )

    def choose(self, total: NDArray[np.float32], context: Context) -> Codec:
        """See :meth:`Codec.choose`."""
        if total.size < SMALL_SIZE:
            return small_codec(total.size)
        by_nature = self._of_all_that_moved(total, context)
        if by_nature is not None:
            return by_nature
        eden = Eden(bits=self.bits)
        count, share = largest_hold(total, eden)
        if count:
            lasting = context.keeps_residual and not 0.0 < self.participation < PARTICIPATION_MIN
            if share >= (ENERGY_SHARE if lasting else ENERGY_SHARE_ALONE):
                return Sparse(density=count / total.size)
        return eden

    def reader(self, wire_id: int) -> Codec | None:
        """See :meth:`Codec.reader`."""
        readers = (Eden(bits=self.bits), SparseRows(bits=self.bits), _ANY_DENSITY, *_SMALL)
        return next((codec for codec in readers if codec.wire_id == wire_id), None)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        if size < SMALL_SIZE:
            return small_codec(size).body_bytes_max(size)
        return max(Eden(bits=self.bits).body_bytes_max(size), int(self.sparse_bits * size) >> 3)

    def fitted(self, size: int, bytes_max: int) -> Self | None:
        """See :meth:`Codec.fitted`: first fewer for sparse updates; then fewer bits, below one bit a smaller share."""
        if self.body_bytes_max(size) <= bytes_max:
            return self
        room = replace(self, sparse_bits=min(self.sparse_bits, 8 * max(bytes_max, 0) / size))
        return fitted_bits(room, size, bytes_max)

    def smallest(self) -> Self:
        """See :meth:`Codec.smallest`."""
        return replace(self, bits=BITS_MIN, sparse_bits=0.0)

    def split(self, kernels: int, size: int) -> tuple[Codec, Codec] | None:
        """See :meth:`Codec.split`: together they take as many bytes as both alike would."""
        share = kernels / size
        if not 0.0 < share <= KERNELS_SHARE:
            return None
        if self.bits >= 1.0:
            return Eden(bits=self.bits), self
        fine = min(1.0, KERNELS_FACTOR * self.bits)
        main = max(BITS_MIN, (self.bits - share * fine) / (1.0 - share))
        return Eden(bits=round(fine, 4)), replace(self, bits=round(main, 4))

    def taking_part(self, participation: float) -> Self:
        """See :meth:`Codec.taking_part`."""
        return replace(self, participation=participation)

    def _of_all_that_moved(self, total: NDArray[np.float32], context: Context) -> Codec | None:
        """What sends every coordinate that is not zero, where these are few."""
        bytes_max = self.body_bytes_max(total.size)
        moved = int(np.count_nonzero(total))
        if total.size - moved < SMALL_SIZE:
            return None
        tables = tables_of(total, context.matrices)
        zeros = sum(table.size - table.sent for table in tables)
        if zeros >= SMALL_SIZE and 2 * moved >= total.size - zeros:
            codecs = (SparseRows(bits=self.bits, row_bits=bits) for bits in range(ROW_BITS, 0, -1))
            return next((codec for codec in codecs if codec.bytes_max_of(tables, total.size) <= bytes_max), None)
        if moved <= min(total.size // SPARSE_ONE_IN, largest_count(total.size, bytes_max)):
            return Sparse(density=max(DENSITY_MIN, moved / total.size))
        return None

    @classmethod
    def for_cohort(cls, cohort: int, adaptive: bool) -> dict[str, Any]:
        """See :meth:`Codec.for_cohort`."""
        return {"bits": bits_for(cohort, adaptive)}


def largest_hold(total: NDArray[np.float32], eden: Eden) -> tuple[int, float]:
    """How many of the largest coordinates ``sparse`` can send in the bytes that ``eden`` takes, and the share of the
    energy of ``total`` (float32[P]) that they hold."""
    count = largest_count(total.size, eden.body_bytes_max(total.size))
    if not count:
        return 0, 0.0
    sent, indices = add_and_select(total, None, count)
    energy = float(np.dot(total, total))
    return count, float(np.square(sent[indices], dtype=np.float64).sum()) / energy if energy > 0.0 else 1.0

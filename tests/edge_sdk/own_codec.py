"""A codec as somebody outside of the project would write one: the sign of each coordinate, and one magnitude."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import RESIDUAL, Codec, Context, Decoded, Kept, Vectors, setting
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import number


@dataclass(frozen=True, slots=True)
class Signs(Codec):
    """One bit a coordinate, with error feedback."""

    name: ClassVar[str] = "signs"
    wire_id: ClassVar[int] = 200
    keeps: ClassVar[tuple[str, ...]] = (RESIDUAL,)
    gain: float = setting(number(0.0, 10.0), 1.0, "Factor of the mean magnitude.", allowed="a number from 0 to 10")

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        total = delta + kept[RESIDUAL] if RESIDUAL in kept else delta
        step = np.float32(self.gain * float(np.abs(total).mean()))
        negative = total < 0.0
        sent = np.where(negative, -step, step).astype(np.float32)
        return struct.pack("<f", step) + np.packbits(negative).tobytes(), {RESIDUAL: total - sent}

    def decode(self, body: memoryview, size: int) -> Decoded:
        if len(body) != self.body_bytes_max(size):
            raise DecodeError("update frame: not the bytes of so many signs", reason="length")
        (step,) = struct.unpack_from("<f", body)
        negative = np.unpackbits(np.frombuffer(body[4:], dtype=np.uint8), count=size)
        return Decoded(size, None, np.where(negative == 1, -step, step).astype(np.float32))

    def body_bytes_max(self, size: int) -> int:
        return 4 + (size + 7) // 8

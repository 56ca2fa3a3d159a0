"""One frame of one vector: a codec's body, its header around it; and the way back, which trusts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import RESIDUAL, Codec, Context, Decoded, Kept, Rotated, Vectors
from edge_sdk.codecs.feedback import add_residual
from edge_sdk.codecs.frame import CODEC_OFFSET, HEADER_BYTES_MAX, pack_frame, unpack_frame
from edge_sdk.codecs.index_coding import Matrix
from edge_sdk.codecs.settings import CodecSettings
from edge_sdk.codecs.table import CODECS, OWN_WIRE_IDS
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError
from edge_sdk.parameters import ELEMENTS_MAX

__all__ = ["Encoded", "decode_update", "encode_update", "frame_bytes_max", "frame_codec"]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A frame, and what to keep for the next one.

    Attributes:
        frame: The bytes to send.
        kept: The vectors to keep if the update counts, float32[P] each, by name; empty where the codec keeps none.
    """

    frame: bytes
    kept: Vectors

    @property
    def residual(self) -> NDArray[np.float32] | None:
        """What the frame left out, None where the codec keeps no residual."""
        return self.kept.get(RESIDUAL)


def encode_update(
    delta: NDArray[np.float32],
    kept: Kept | None,
    settings: CodecSettings,
    *,
    seed: int,
    shared_seed: int | None = None,
    matrices: Sequence[Matrix] = (),
    keeps_residual: bool = True,
) -> Encoded:
    """The frame of one update.

    Args:
        delta: float32[P], local parameters minus global ones; not changed.
        kept: What :class:`Encoded` gave for the update before, float32[P] each by name, or None for nothing; not
            changed. A codec that keeps no residual sends a given one too, so that nothing is lost when a plan changes
            codecs; other vectors that the codec does not keep are forgotten.
        settings: The codec and its settings.
        seed: 64 random bits of this update: stochastic rounding, rotations, what is left out. The same arguments give
            the same bytes.
        shared_seed: The same for all devices of a round: the rotation that they share, if the codec has them share
            one. ``seed`` if not given.
        matrices: First coordinate, rows and columns of tensors that have several rows, in order: their indices may be
            coded by columns, and rows that are zero left out.
        keeps_residual: Whether the device can keep what is left out; a codec that chooses asks.

    Returns:
        The frame, and what to keep. What the frame decodes to plus the new residual equals ``delta + residual`` up to
        the rounding of float32.

    Raises:
        ConfigurationError: A vector is not float32[P] with 1..2^28 elements, or two differ in size.
        TrainingError: ``delta + residual`` is not finite, or above ``MAGNITUDE_MAX`` somewhere.
    """
    _check_vector("delta", delta)
    before = {} if kept is None else dict(kept)
    for name, vector in before.items():
        _check_vector(name, vector)
        if vector.size != delta.size:
            raise ConfigurationError(f"{name}: {vector.size} elements, the delta has {delta.size}; drop it")
    codec = settings.codec
    if RESIDUAL not in codec.keeps:
        delta = add_residual(delta, before.pop(RESIDUAL, None))
    context = Context(seed, seed if shared_seed is None else shared_seed, tuple(matrices), keeps_residual)
    codec = codec.choose(delta, context)
    body, after = codec.encode(delta, {name: before[name] for name in codec.keeps if name in before}, context)
    return Encoded(pack_frame(body, delta.size, codec.wire_id), after)


def decode_update(frame: bytes | memoryview, size: int, settings: CodecSettings) -> Decoded | Rotated:
    """What a frame that nobody vouches for says.

    Args:
        frame: The bytes; not referred to by the result.
        size: Number of coordinates of the model's vector.
        settings: The settings that the sender was told to use.

    Raises:
        ConfigurationError: ``size`` is not in 1..2^28.
        DecodeError: The frame is damaged, or not one that an honest sender with these settings can make.
        VersionError: Its version is not ours (says which side to upgrade).
    """
    _check_size(size)
    codec = settings.codec
    wire_id, body = unpack_frame(frame, size, codec.body_bytes_max(size))
    reader = codec.reader(wire_id)
    if reader is None:
        raise DecodeError(f"update frame: codec {wire_id}, the plan asked for {codec.name}", reason="codec")
    return _decode_own(reader, body, size) if wire_id in OWN_WIRE_IDS else reader.decode(body, size)


def frame_bytes_max(size: int, settings: CodecSettings) -> int:
    """Bytes that no honest frame of ``size`` coordinates exceeds; ``decode_update`` refuses longer ones."""
    _check_size(size)
    return HEADER_BYTES_MAX + settings.codec.body_bytes_max(size)


def frame_codec(frame: bytes) -> str:
    """The name of the codec that a frame says it is in; "unknown" for one that is not known, or no frame."""
    wire_id = frame[CODEC_OFFSET] if len(frame) > CODEC_OFFSET else -1
    return next((name for name, codec in CODECS.items() if codec.wire_id == wire_id), "unknown")


def _decode_own(reader: Codec, body: memoryview, size: int) -> Decoded | Rotated:
    """What a codec that is not ours says: it must not stop a round, whatever it does."""
    try:
        decoded = reader.decode(body, size)
    except (DecodeError, VersionError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise DecodeError(f"update frame: codec {reader.name} fails on it: {said[:200]}", reason="codec") from error
    if not isinstance(decoded, Decoded | Rotated) or decoded.size != size:
        raise DecodeError(f"update frame: codec {reader.name} gives no vector of {size} coordinates", reason="codec")
    return decoded


def _check_size(size: int) -> None:
    if not 0 < size <= ELEMENTS_MAX:
        raise ConfigurationError(f"size: {size!r} is not a number of coordinates in 1..{ELEMENTS_MAX}")


def _check_vector(name: str, vector: NDArray[np.float32]) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        kind = f"{vector.dtype}{list(vector.shape)}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise ConfigurationError(f"{name}: {kind}, expected a float32 vector (ParameterSpec.flatten makes one)")
    _check_size(vector.size)

"""The outside of an update frame: version, then checksum, then lengths, then meaning.

    offset  bytes  field
    0       1      version, 1
    1       4      CRC-32 of the version byte followed by all bytes from offset 5 to the end
    5       4      bytes of the body
    9       4      coordinates of the whole vector
    13      1      codec (the table in ``codecs.py``)
    14      ..     body, written and read by the codec

All integers are little-endian and unsigned. A frame is checked in the order of its fields, and nothing is allocated
before its length is known to be plausible.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from edge_sdk.errors import DecodeError, VersionError

__all__ = ["HEADER_BYTES", "VERSION", "pack_frame", "unpack_frame"]

VERSION: Final = 1
_HEAD: Final = struct.Struct("<BI")
_LENGTHS: Final = struct.Struct("<IIB")
HEADER_BYTES: Final = _HEAD.size + _LENGTHS.size


def pack_frame(body: bytes, size: int, wire_id: int) -> bytes:
    """The frame around ``body``, which describes a vector of ``size`` coordinates in the codec ``wire_id``."""
    checked = _LENGTHS.pack(len(body), size, wire_id) + body
    return _HEAD.pack(VERSION, _checksum(VERSION, checked)) + checked


def unpack_frame(frame: bytes | memoryview, size: int, wire_id: int, body_bytes_max: int) -> memoryview:
    """The body of a frame that nobody vouches for.

    Args:
        frame: The bytes.
        size: Number of coordinates that the vector must have.
        wire_id: The codec that it must be in.
        body_bytes_max: Bytes that the body may have at most.

    Raises:
        VersionError: The frame's version is not ours (says which side to upgrade).
        DecodeError: The checksum, a length, the number of coordinates or the codec is wrong.
    """
    view = memoryview(frame).cast("B")
    if len(view) == 0:
        raise DecodeError("update frame: no bytes", reason="length")
    version = view[0]
    if version != VERSION:
        side = "this side (the decoder)" if version > VERSION else "the side that encoded it"
        raise VersionError(f"update frame: version {version}, this side reads version {VERSION}: upgrade {side}")
    if not HEADER_BYTES <= len(view) <= HEADER_BYTES + body_bytes_max:
        raise DecodeError(
            f"update frame: {len(view)} bytes, expected {HEADER_BYTES}..{HEADER_BYTES + body_bytes_max}",
            reason="length",
        )
    _, checksum = _HEAD.unpack_from(view)
    if checksum != _checksum(version, view[_HEAD.size :]):
        raise DecodeError("update frame: the checksum does not match, bytes were damaged", reason="checksum")
    body_bytes, frame_size, frame_codec = _LENGTHS.unpack_from(view, _HEAD.size)
    if body_bytes != len(view) - HEADER_BYTES:
        raise DecodeError(
            f"update frame: a body of {len(view) - HEADER_BYTES} bytes announced as {body_bytes}", reason="length"
        )
    if frame_size != size:
        raise DecodeError(f"update frame: {frame_size} coordinates, the model has {size}", reason="size")
    if frame_codec != wire_id:
        raise DecodeError(f"update frame: codec {frame_codec}, the plan asked for {wire_id}", reason="codec")
    return view[HEADER_BYTES:]


def _checksum(version: int, checked: bytes | memoryview) -> int:
    return zlib.crc32(checked, zlib.crc32(bytes((version,))))

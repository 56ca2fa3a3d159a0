"""The outside of an update frame: version, then checksum, then lengths, then meaning.

    offset  bytes  field
    0       1      version, 1
    1       4      CRC-32 of the version byte followed by all bytes from offset 5 to the end
    5       1      codec (the table in ``codecs.py``)
    6       1..5   coordinates of the whole vector, LEB128
    ..      ..     body, written and read by the codec, up to the end

The checksum is little-endian. A frame is checked in the order of its fields, and nothing is allocated before its length
is known to be plausible.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.errors import DecodeError, VersionError
from edge_sdk.parameters import ELEMENTS_MAX

__all__ = ["CODEC_OFFSET", "HEADER_BYTES_MAX", "VERSION", "pack_frame", "unpack_frame"]

VERSION: Final = 1
_HEAD: Final = struct.Struct("<BI")
_VERSION_CHECKSUM: Final = zlib.crc32(bytes((VERSION,)))
CODEC_OFFSET: Final = _HEAD.size
HEADER_BYTES_MIN: Final = _HEAD.size + 2
HEADER_BYTES_MAX: Final = _HEAD.size + 6


def pack_frame(body: bytes, size: int, wire_id: int) -> bytes:
    """The frame around ``body``, which describes a vector of ``size`` coordinates in the codec ``wire_id``."""
    checked = bytes((wire_id,)) + pack_number(size) + body
    return _HEAD.pack(VERSION, _checksum(checked)) + checked


def unpack_frame(frame: bytes | memoryview, size: int, body_bytes_max: int) -> tuple[int, memoryview]:
    """The codec and the body of a frame that nobody vouches for.

    Args:
        frame: The bytes.
        size: Number of coordinates that the vector must have.
        body_bytes_max: Bytes that the body may have at most.

    Raises:
        VersionError: The frame's version is not ours (says which side to upgrade).
        DecodeError: The checksum, a length or the number of coordinates is wrong.
    """
    view = memoryview(frame).cast("B")
    if len(view) == 0:
        raise DecodeError("update frame: no bytes", reason="length")
    version = view[0]
    if version != VERSION:
        side = "this side (the decoder)" if version > VERSION else "the side that encoded it"
        raise VersionError(f"update frame: version {version}, this side reads version {VERSION}: upgrade {side}")
    if not HEADER_BYTES_MIN <= len(view) <= HEADER_BYTES_MAX + body_bytes_max:
        raise DecodeError(
            f"update frame: {len(view)} bytes, expected {HEADER_BYTES_MIN}..{HEADER_BYTES_MAX + body_bytes_max}",
            reason="length",
        )
    _, checksum = _HEAD.unpack_from(view)
    if checksum != _checksum(view[_HEAD.size :]):
        raise DecodeError("update frame: the checksum does not match, bytes were damaged", reason="checksum")
    wire_id = view[_HEAD.size]
    frame_size, body = unpack_number(view[_HEAD.size + 1 :], ELEMENTS_MAX, "the number of coordinates")
    if frame_size != size:
        raise DecodeError(f"update frame: {frame_size} coordinates, the model has {size}", reason="size")
    return wire_id, body


def _checksum(checked: bytes | memoryview) -> int:
    return zlib.crc32(checked, _VERSION_CHECKSUM)

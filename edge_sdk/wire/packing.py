"""Blobs made smaller for the way: a program, or whole parameters, deflated.

    stride u8, raw deflate stream (RFC 1951)

The stream holds the blob, or with the stride 4 first byte 0 of each of its 4-byte words, then byte 1 of each, 2 and 3:
bytes of one place have more in common than neighbours, where words are float32. A packed blob has a SHA-256 of its own,
by which it is asked for; what is unpacked is checked against that of the blob.
"""

from __future__ import annotations

import zlib
from typing import Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["FLOAT_STRIDE", "PACK_BYTES_MAX", "pack", "unpack"]

PACK_BYTES_MAX: Final = 4 << 20
"""Larger blobs stay as they are: packing would hold up whoever does it."""
WORTH: Final = 15 / 16
"""Of the blob's bytes; a packed one that is larger is not worth a name of its own."""
FLOAT_STRIDE: Final = 4
"""Of parameters, which are float32 behind a header of whole words."""
LEVELS: Final = {1: 6, FLOAT_STRIDE: 1}
"""By stride. Higher ones take ten times as long for float32, and save nothing."""
RAW: Final = -15


def pack(data: BytesLike, stride: int = 1) -> bytes | None:
    """The packed blob; None where it would be hardly smaller, or the blob is above ``PACK_BYTES_MAX`` bytes.

    Args:
        data: The blob.
        stride: 1, or 4 for parameters.
    """
    if not 0 < len(data) <= PACK_BYTES_MAX or len(data) % stride:
        return None
    deflate = zlib.compressobj(LEVELS[stride], zlib.DEFLATED, RAW)
    packed = bytes((stride,)) + deflate.compress(_planes(bytes(data), stride)) + deflate.flush()
    return packed if len(packed) <= WORTH * len(data) else None


def unpack(data: BytesLike, total: int) -> bytes:
    """The blob of ``total`` bytes in a packed one that nobody vouches for; takes no more memory than twice that.

    Raises:
        DecodeError: It is damaged, or holds another number of bytes.
    """
    view = memoryview(data)
    stride = view[0] if len(view) else 0
    if stride not in LEVELS or total % stride:
        raise DecodeError(f"packed blob: stride {stride} for {total} bytes", reason="packing")
    inflate = zlib.decompressobj(RAW)
    try:
        planes = inflate.decompress(view[1:], total + 1)
    except zlib.error as error:
        raise DecodeError(f"packed blob: {error}", reason="packing") from error
    if len(planes) != total or not inflate.eof or inflate.unused_data:
        raise DecodeError(f"packed blob: it does not hold {total} bytes", reason="packing")
    plain = bytearray(total)
    for place in range(stride):
        length = total // stride
        plain[place::stride] = planes[place * length : (place + 1) * length]
    return bytes(plain)


def _planes(data: bytes, stride: int) -> bytes:
    return data if stride == 1 else b"".join(data[place::stride] for place in range(stride))

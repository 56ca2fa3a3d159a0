"""The form of a state file: a prefix with version and checksum, a small head, and a body that is written uncopied.

    magic "EFst" | version u8 | kind u8 | 0 u16 | head bytes u32 | CRC-32 of all else u32 | head: msgpack, padded | body

All integers are little-endian. The body begins at a multiple of 64 bytes, so that an array can be used where it lies.
The checksum finds torn writes and flipped bits; it is no protection against somebody who can write to the card.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import msgpack

from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["HEAD_BYTES_MAX", "CorruptError", "seal", "unseal"]

MAGIC: Final = b"EFst"
VERSION: Final = 1
PREFIX: Final = struct.Struct("<4sBBHI")
CHECKSUM: Final = struct.Struct("<I")
ALIGNMENT: Final = 64
HEAD_BYTES_MAX: Final = 4096


class CorruptError(Exception):
    """A state file that is torn, flipped, or of a version that is not known here."""


def seal(kind: int, head: dict[str, Any], *body: BytesLike) -> list[BytesLike]:
    """The parts of a state file.

    Args:
        kind: What the file is for, 0..255; a file under another's name is thus found out.
        head: Small values, at most ``HEAD_BYTES_MAX`` bytes when packed.
        body: Bytes of any length, in as many pieces as it has; the returned list holds these very objects.

    Raises:
        ValueError: The head is too long.
    """
    packed: bytes = msgpack.packb(head)
    # msgpack stops reading where its map ends: the zeros behind it need no length of their own.
    packed += bytes(-(PREFIX.size + CHECKSUM.size + len(packed)) % ALIGNMENT)
    if len(packed) > HEAD_BYTES_MAX:
        raise ValueError(f"the head of a state file has {len(packed)} bytes, at most {HEAD_BYTES_MAX} are allowed")
    prefix = PREFIX.pack(MAGIC, VERSION, kind, 0, len(packed))
    checksum = zlib.crc32(packed, zlib.crc32(prefix))
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    return [prefix + CHECKSUM.pack(checksum) + packed, *body]


def unseal(data: bytes, kind: int) -> tuple[dict[str, Any], memoryview]:
    """Head and body of a state file; the body is a view of ``data``.

    Raises:
        CorruptError: Anything at all is wrong with it.
    """
    view = memoryview(data)
    head_start = PREFIX.size + CHECKSUM.size
    if len(view) < head_start:
        raise CorruptError(f"only {len(view)} bytes")
    magic, version, kind_found, _, head_bytes = PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise CorruptError("not a state file")
    if version != VERSION:
        raise CorruptError(f"version {version}, only {VERSION} is known here")
    (checksum,) = CHECKSUM.unpack_from(view, PREFIX.size)
    if zlib.crc32(view[head_start:], zlib.crc32(view[: PREFIX.size])) != checksum:
        raise CorruptError("the checksum is another one")
    body_start = head_start + head_bytes
    if kind_found != kind or head_bytes > HEAD_BYTES_MAX or body_start > len(view):
        raise CorruptError("its prefix makes no sense")
    unpacker = msgpack.Unpacker(max_buffer_size=HEAD_BYTES_MAX)
    try:
        unpacker.feed(view[head_start:body_start])
        head = unpacker.unpack()
    except Exception as error:  # msgpack has no common root for what malformed bytes raise
        raise CorruptError(f"its head cannot be read: {error!r}") from None
    if not isinstance(head, dict):
        raise CorruptError("its head is not a map")
    return head, view[body_start:]

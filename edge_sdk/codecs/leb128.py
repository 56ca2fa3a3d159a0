"""Small numbers of a frame's head: LEB128, seven bits a byte, lowest first, in no more bytes than needed.

Source: DWARF 5, section 7.6.
"""

from __future__ import annotations

from edge_sdk.errors import DecodeError

__all__ = ["pack_number", "unpack_number"]


def pack_number(number: int) -> bytes:
    """``number``, at least 0, in LEB128."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def unpack_number(section: memoryview, number_max: int, what: str) -> tuple[int, memoryview]:
    """The number at the head of ``section``, which nobody vouches for, and what follows it.

    Args:
        section: The bytes.
        number_max: More than this is refused, before further bytes are read.
        what: Names the number in errors.

    Raises:
        DecodeError: The section ends within the number, or it is longer than it needs or above ``number_max``.
    """
    number = 0
    for place, octet in enumerate(section[: -(-max(number_max.bit_length(), 1) // 7)]):
        number |= (octet & 0x7F) << (7 * place)
        if octet <= 0x7F:
            if place and not octet:
                raise DecodeError(f"update frame: {what} is written longer than it needs", reason="length")
            if number > number_max:
                raise DecodeError(f"update frame: {what} is {number}, at most {number_max} is allowed", reason="count")
            return number, section[place + 1 :]
    raise DecodeError(f"update frame: {what} does not end, or is above {number_max}", reason="length")

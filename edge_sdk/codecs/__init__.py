"""Updates as frames of bytes: sparsify, quantise, code the indices, check; and the way back, which trusts nothing.

    encode_update(delta, kept, settings, seed=...) -> Encoded(frame, kept)
    decode_update(frame, size, settings) -> Decoded(size, indices, values), or Rotated(...)

The wire format is described byte by byte in ``docs/wire-format.md``.
"""

from __future__ import annotations

from edge_sdk.codecs.codec import (
    MAGNITUDE_MAX,
    RESIDUAL,
    VELOCITY,
    Codec,
    Context,
    Decoded,
    Kept,
    Rotated,
    Vectors,
    setting,
    settings_of,
)
from edge_sdk.codecs.frame import VERSION
from edge_sdk.codecs.index_coding import Matrix
from edge_sdk.codecs.settings import TENSOR_RULES_MAX, CodecSettings, fitted
from edge_sdk.codecs.table import CODECS, find_codec, register_codec
from edge_sdk.codecs.update import Encoded, decode_update, encode_update, frame_bytes_max, frame_codec

__all__ = [
    "CODECS",
    "MAGNITUDE_MAX",
    "RESIDUAL",
    "TENSOR_RULES_MAX",
    "VELOCITY",
    "VERSION",
    "Codec",
    "CodecSettings",
    "Context",
    "Decoded",
    "Encoded",
    "Kept",
    "Matrix",
    "Rotated",
    "Vectors",
    "decode_update",
    "encode_update",
    "find_codec",
    "fitted",
    "frame_bytes_max",
    "frame_codec",
    "register_codec",
    "setting",
    "settings_of",
]

"""The table of codecs: a new one is a file beside this one and a line here."""

from __future__ import annotations

from typing import Final

from edge_sdk.codecs.auto import AUTO
from edge_sdk.codecs.codec import Codec
from edge_sdk.codecs.dense import DENSE, FLOAT16
from edge_sdk.codecs.eden import EDEN
from edge_sdk.codecs.quantised import INT2, INT4, INT8
from edge_sdk.codecs.sparse import SPARSE

__all__ = ["CODECS"]

CODECS: Final[dict[str, Codec]] = {
    "dense": DENSE,
    "float16": FLOAT16,
    "int8": INT8,
    "int4": INT4,
    "int2": INT2,
    "sparse": SPARSE,
    "eden": EDEN,
    "auto": AUTO,
}

"""The table of codecs: a new one is a file beside this one and a line here."""

from __future__ import annotations

from typing import Final

from edge_sdk.update.codec import Codec
from edge_sdk.update.dense import DENSE
from edge_sdk.update.quantised import INT4, INT8
from edge_sdk.update.sparse import SPARSE

__all__ = ["CODECS"]

CODECS: Final[dict[str, Codec]] = {
    "dense": DENSE,
    "int8": INT8,
    "int4": INT4,
    "sparse": SPARSE,
}

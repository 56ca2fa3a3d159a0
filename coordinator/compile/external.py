"""Tensors whose data lie in another file, as PyTorch's exporter writes them: ``model.onnx`` and ``model.onnx.data``.

A bundle is one file, so the data are read into the model when it is loaded. A model may come from a stranger: what it
names is read only where it is a file inside of the model's own folder, and holds what the tensor's shape needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import onnx
from onnx import helper

from edge_sdk.errors import CompileError

__all__ = ["check_whole", "every_node", "read_external"]

BYTES_MAX: Final = (1 << 31) - 1
"""What protobuf can hold."""


def read_external(model: onnx.ModelProto, folder: Path) -> None:
    """Put the data of every tensor into the model, in place.

    Args:
        model: As it stands in its file.
        folder: Where that file is.

    Raises:
        CompileError: Data are missing, lie outside of ``folder``, or are not as long as their tensor.
    """
    total = model.ByteSize()
    for where, tensor in _tensors(model):
        if not _is_external(tensor):
            continue
        given = {entry.key: entry.value for entry in tensor.external_data}
        path = _inside(folder, given.get("location", ""), where)
        length = _length(tensor, where)
        offset, stated = _number(given, "offset", 0, where), _number(given, "length", length, where)
        total += length
        if stated != length:
            raise CompileError(
                f"{where}: {path.name} is said to hold {stated} bytes of it, and its shape {list(tensor.dims)} needs "
                f"{length}; export the model again"
            )
        if total > BYTES_MAX:
            raise CompileError(f"{where}: with its external data the model is larger than {BYTES_MAX} bytes (protobuf)")
        tensor.raw_data = _read(path, offset, length, where)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def check_whole(model: onnx.ModelProto, name: str) -> None:
    """Raise CompileError where a tensor's data are not in the model."""
    for where, tensor in _tensors(model):
        if _is_external(tensor):
            location = next((e.value for e in tensor.external_data if e.key == "location"), "no location given")
            raise CompileError(
                f"model {name!r}: {where} lies in another file ({location}), which is read only with the model's own "
                "file beside it: give the path of the .onnx file, or save it with save_as_external_data=False"
            )


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs inside of it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from every_node(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in model.graph.initializer:
        yield f"initializer {tensor.name!r}", tensor
    nodes = [*every_node(model.graph), *(inner for f in model.functions for node in f.node for inner in _with(node))]
    for node in nodes:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                yield f"attribute {attribute.name!r} of node {node.name or ', '.join(node.output)!r}", tensor
            for inner in (attribute.g, *attribute.graphs):
                for tensor in inner.initializer:
                    yield f"initializer {tensor.name!r}", tensor


def _with(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from every_node(inner)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == onnx.TensorProto.EXTERNAL


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file that ``location`` names, links followed, where it is inside of ``folder``."""
    relative = PurePosixPath(location.replace("\0", ""))
    path = folder / relative
    if not location or relative.is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise CompileError(
            f"{where}: its data are said to lie in {location!r}, which is not inside of the model's folder; put the "
            "file beside the model, and export it so that it names it there"
        )
    if not path.is_file():
        raise CompileError(f"{where}: its data are said to lie in {path}, and there is no such file; copy it there too")
    return path.resolve()


def _length(tensor: onnx.TensorProto, where: str) -> int:
    try:
        width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise CompileError(f"{where}: type {tensor.data_type} cannot be read; export the model in float32") from None
    if any(d < 0 for d in tensor.dims):
        raise CompileError(f"{where}: its shape {list(tensor.dims)} is none")
    return math.prod(int(d) for d in tensor.dims) * width


def _number(given: dict[str, str], key: str, default: int, where: str) -> int:
    text = given.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CompileError(
            f"{where}: {key} {text!r} of its external data is no number of bytes; export the model again"
        )
    return int(text)


def _read(path: Path, offset: int, length: int, where: str) -> bytes:
    try:
        size = path.stat().st_size
        if offset + length > size:
            raise CompileError(
                f"{where}: needs bytes {offset} to {offset + length} of {path}, which has {size}; is the file complete?"
            )
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise CompileError(f"{where}: {path} cannot be read: {error.strerror}") from error
    if len(data) != length:
        raise CompileError(f"{where}: {path} became shorter while it was read; try again")
    return data

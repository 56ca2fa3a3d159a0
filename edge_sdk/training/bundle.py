"""The model bundle: a program, the parameters to start from, and a manifest of both digests.

On the wire the two halves travel apart, each under its SHA-256, because a program stays for the whole task while
parameters change each round. In a file (``model.bundle``) they lie one behind the other::

    b"EFBN"  version u16  zero u16  manifest_bytes u32  manifest (msgpack)  program  parameters  [source]

Parameters are ``b"EFPV"``, version (u16), zero (u16), count (u64) and ``count`` little-endian float32, so that the
numbers start at a multiple of 16 and a reader needs no copy. The source is the ONNX file that was compiled, kept for
the export of trained weights; no device reads it.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import BundleError, DecodeError, VersionError
from edge_sdk.parameters import ELEMENTS_MAX, ParameterSpec
from edge_sdk.training.numpy_plan import Node, NumpyPlan
from edge_sdk.training.program import PROGRAM_BYTES_MAX, Input, Program, digest_of
from edge_sdk.wire.fields import integer
from edge_sdk.wire.safe_msgpack import unpack_checked

__all__ = [
    "PARAMETERS_HEADER_BYTES",
    "PROGRAM_BYTES_MAX",
    "Bundle",
    "Input",
    "Node",
    "NumpyPlan",
    "Program",
    "decode_parameters",
    "digest_of",
    "encode_parameters",
    "parameters_vector",
]

BUNDLE_VERSION: Final = 1
PARAMETERS_VERSION: Final = 1

_BUNDLE_HEADER: Final = struct.Struct("<4sHHI")
_BUNDLE_MAGIC: Final = b"EFBN"
_PARAMETERS_HEADER: Final = struct.Struct("<4sHHQ")
PARAMETERS_HEADER_BYTES: Final = _PARAMETERS_HEADER.size
"""Before the float32 of the parameters."""
_PARAMETERS_MAGIC: Final = b"EFPV"
_MANIFEST_BYTES_MAX: Final = 4096
_SOURCE_BYTES_MAX: Final = 1 << 31


def encode_parameters(vector: NDArray[np.float32]) -> bytes:
    """The bytes of float32[P]; their SHA-256 names these parameters.

    Raises:
        ValueError: ``vector`` is not one-dimensional float32 with finite elements.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise ValueError(f"parameters must be float32[P], got {vector.dtype}{list(vector.shape)}")
    if not _is_finite(vector):
        raise ValueError("parameters hold NaN or infinity")
    header = _PARAMETERS_HEADER.pack(_PARAMETERS_MAGIC, PARAMETERS_VERSION, 0, vector.size)
    body = np.ascontiguousarray(vector, dtype="<f4")
    return b"".join((header, body.data))


def decode_parameters(data: bytes | bytearray | memoryview, spec: ParameterSpec) -> NDArray[np.float32]:
    """The float32[P] in ``data``: a view of these bytes (read-only where they are), nothing is copied.

    Raises:
        DecodeError: Malformed, of another length than ``spec`` has elements, or not finite.
        VersionError: Written in a version that this side does not read.
    """
    view = memoryview(data)
    count = _parameters_count(view)
    if count != spec.size:
        raise DecodeError(f"parameters: {count} elements, the program's spec has {spec.size}", reason="spec")
    vector = parameters_vector(view).astype(np.float32, copy=False)
    if not _is_finite(vector):
        raise DecodeError("parameters: NaN or infinity among the elements", reason="not_finite")
    return vector


def parameters_vector(data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """The little-endian float32[P] in ``data``, whatever its program is: a view, to be written to where they can be.

    Raises:
        DecodeError: Malformed; the elements themselves are not looked at.
        VersionError: Written in a version that this side does not read.
    """
    view = memoryview(data)
    count = _parameters_count(view)
    if len(view) != _PARAMETERS_HEADER.size + 4 * count:
        raise DecodeError(f"parameters: {len(view)} bytes do not hold {count} float32")
    return np.frombuffer(view, dtype="<f4", offset=_PARAMETERS_HEADER.size)


def _parameters_count(view: memoryview) -> int:
    if len(view) < _PARAMETERS_HEADER.size or bytes(view[:4]) != _PARAMETERS_MAGIC:
        raise DecodeError("parameters: these bytes do not start like parameters", reason="magic")
    _, version, zero, count = _PARAMETERS_HEADER.unpack_from(view)
    _check_version("parameters", version, PARAMETERS_VERSION)
    if zero:
        raise DecodeError(f"parameters: header field is {zero}, expected 0")
    return int(count)


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A program and the parameters (float32[P]) with which its training starts.

    ``source`` is the ONNX file that it was compiled from, empty where it was made in another way.
    """

    program: Program
    parameters: NDArray[np.float32]
    source: bytes = b""

    def __post_init__(self) -> None:
        if self.parameters.shape != (self.program.spec.size,) or self.parameters.dtype != np.float32:
            raise BundleError(
                f"bundle {self.program.name!r}: parameters are {self.parameters.dtype}{list(self.parameters.shape)}, "
                f"the spec asks for float32[{self.program.spec.size}]"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bundle to ``path``; a reader sees the old file or the whole new one.

        Raises:
            BundleError: The parameters are not finite, or the file cannot be written.
        """
        target = Path(path)
        program = self.program.encode()
        try:
            parameters = encode_parameters(self.parameters)
        except ValueError as error:
            raise BundleError(f"bundle {self.program.name!r}: {error}") from error
        entries = {
            "name": self.program.name,
            "parameters_bytes": len(parameters),
            "parameters_digest": digest_of(parameters),
            "program_bytes": len(program),
            "program_digest": digest_of(program),
        }
        if self.source:
            entries |= {"source_bytes": len(self.source), "source_digest": digest_of(self.source)}
        manifest: bytes = msgpack.packb(entries)
        header = _BUNDLE_HEADER.pack(_BUNDLE_MAGIC, BUNDLE_VERSION, 0, len(manifest))
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                for part in (header, manifest, program, parameters, self.source):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise BundleError(f"cannot write the bundle {target}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, program_bytes_max: int = PROGRAM_BYTES_MAX) -> Bundle:
        """The bundle in the file ``path``, its digests checked.

        Raises:
            BundleError: No such file, damaged, or not what its manifest says.
            VersionError: Written in a version that this side does not read.
        """
        try:
            with Path(path).open("rb") as file:
                return _read(file, os.fstat(file.fileno()).st_size, program_bytes_max)
        except OSError as error:
            raise BundleError(f"cannot read the bundle {path}: {error.strerror or error}") from error
        except DecodeError as error:
            raise BundleError(f"the bundle {path} is damaged: {error}; compile it again or copy it anew") from error

    @classmethod
    def decode(cls, data: bytes, *, program_bytes_max: int = PROGRAM_BYTES_MAX) -> Bundle:
        """The bundle in the bytes of a bundle file, its digests checked.

        Raises:
            BundleError: Damaged, or not what its manifest says.
            VersionError: Written in a version that this side does not read.
        """
        try:
            return _read(io.BytesIO(data), len(data), program_bytes_max)
        except DecodeError as error:
            raise BundleError(f"the bundle is damaged: {error}; compile it again or copy it anew") from error


def _read(file: BinaryIO, size: int, program_bytes_max: int) -> Bundle:
    head = file.read(_BUNDLE_HEADER.size)
    if len(head) < _BUNDLE_HEADER.size or head[:4] != _BUNDLE_MAGIC:
        raise DecodeError("it does not start like a bundle", reason="magic")
    _, version, zero, manifest_bytes = _BUNDLE_HEADER.unpack(head)
    _check_version("bundle", version, BUNDLE_VERSION)
    if zero or manifest_bytes > _MANIFEST_BYTES_MAX:
        raise DecodeError(f"header fields {zero} and {manifest_bytes} are out of range")
    manifest = unpack_checked(file.read(manifest_bytes), objects_max=64, depth_max=2, where="manifest")
    program_bytes = _length(manifest, "program_bytes", program_bytes_max)
    parameters_bytes = _length(manifest, "parameters_bytes", _PARAMETERS_HEADER.size + 4 * ELEMENTS_MAX)
    source_bytes = _length(manifest, "source_bytes", _SOURCE_BYTES_MAX) if "source_bytes" in manifest else 0
    if size != _BUNDLE_HEADER.size + manifest_bytes + program_bytes + parameters_bytes + source_bytes:
        raise DecodeError(f"the file has {size} bytes, its manifest says otherwise")
    program = Program.decode(_part(file, program_bytes, manifest, "program"), program_bytes_max=program_bytes_max)
    if manifest.get("name") != program.name:
        raise DecodeError("the manifest names another model")
    parameters = decode_parameters(_part(file, parameters_bytes, manifest, "parameters"), program.spec)
    return Bundle(program, parameters, _part(file, source_bytes, manifest, "source") if source_bytes else b"")


def _part(file: BinaryIO, length: int, manifest: dict[str, Any], name: str) -> bytes:
    data = file.read(length)
    if len(data) != length or manifest.get(f"{name}_digest") != digest_of(data):
        raise DecodeError(f"the {name} does not have the digest that its manifest names", reason="digest")
    return data


def _length(manifest: object, name: str, most: int) -> int:
    value = manifest.get(name) if isinstance(manifest, dict) else None
    return cast(int, integer(0, most)(value, f"manifest.{name}"))


def _check_version(what: str, version: int, spoken: int) -> None:
    if version != spoken:
        side = "this side (pip install -U edgefed)" if version > spoken else "the side that wrote it"
        raise VersionError(f"{what}: version {version}, this side reads {spoken}: upgrade {side}")


def _is_finite(vector: NDArray[np.float32]) -> bool:
    # NaN propagates through min and max, and neither needs a temporary array as isfinite would.
    return vector.size == 0 or bool(np.isfinite(vector.min()) and np.isfinite(vector.max()))

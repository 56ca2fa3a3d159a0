"""The model of a simulation: a zoo name, an ONNX model or a bundle, as a compiled bundle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.compile import load_onnx
from coordinator.compile.cost import step_cost
from coordinator.compile.loop import BATCH_SIZE as LOOP_BATCH_SIZE
from coordinator.compile.loop import FLOPS_MAX as LOOP_FLOPS_MAX
from coordinator.compile.zoo import ZOO
from coordinator.config import FederationConfig
from coordinator.setup import build_bundle
from device_sim.datasets import Dataset, as_dataset, column_values
from device_sim.simulation.clients import Clients
from device_sim.simulation.settings import Tables, configured
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.bundle import Bundle, digest_of
from edge_sdk.training.data.layout import used_columns
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.names import features_width

__all__ = ["Source", "bundle_for", "source_of"]

IN_MEMORY: Final = Path("model.onnx")
BUNDLE_MAGIC: Final = b"EFBN"
COMPILED_KEPT: Final = 16
BINARY: Final = ("logistic_regression", "linear_svm")
"""Models with one output for two classes."""

_COMPILED: Final[OrderedDict[tuple[str, int, bytes], Bundle]] = OrderedDict()
"""Models that this process has compiled: a sweep over settings compiles once."""


class Source:
    """Where the model comes from.

    Attributes:
        table: What it sets in the table [model] of the configuration.
        bundle: The bundle, if it is one already.
        onnx: The bytes of an ONNX model that is in no file; None for another source.
    """

    def __init__(self, table: dict[str, Any], bundle: Bundle | None = None, onnx: bytes | None = None) -> None:
        self.table = table
        self.bundle = bundle
        self.onnx = onnx

    def built(self, config: FederationConfig) -> Bundle:
        """The compiled model.

        Raises:
            CompileError, BundleError: It cannot be used; says why, and what to do.
        """
        if self.bundle is not None:
            return self.bundle
        model, data = config.model, self.onnx
        if model.onnx is not None and data is None and model.onnx.is_file():
            data = load_onnx(model.onnx).SerializeToString(deterministic=True)  # with the data beside it
        key = (model.model_dump_json(), config.federation.seed, digest_of(data or b""))
        if key not in _COMPILED:
            _COMPILED[key] = _compiled(config, data)
            while len(_COMPILED) > COMPILED_KEPT:
                _COMPILED.popitem(last=False)
        _COMPILED.move_to_end(key)
        return _COMPILED[key]


def source_of(model: Any, clients: Clients, given: Mapping[str, Any]) -> Source:
    """Tells the forms of a model apart.

    Args:
        model: As of ``simulate``.
        clients: Their examples give ``inputs`` and ``outputs`` of a zoo model.
        given: The keys of the table [model] that were set beside.

    Raises:
        ConfigurationError: It is in no form that is known.
    """
    if isinstance(model, Bundle):
        return Source({"bundle": "model.bundle"}, model)
    if isinstance(model, bytes | bytearray | memoryview):
        data = bytes(model)
        if data.startswith(BUNDLE_MAGIC):
            return Source({"bundle": "model.bundle"}, Bundle.decode(data))
        return Source({"onnx": str(IN_MEMORY)}, onnx=data)
    if hasattr(model, "SerializeToString"):
        return Source({"onnx": str(IN_MEMORY)}, onnx=model.SerializeToString())
    if isinstance(model, str) and model in ZOO:
        return Source({"zoo": model, **_shape(model, clients, given)})
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".onnx":
            return Source({"onnx": str(path)})
        if path.is_file() or path.suffix == ".bundle":
            return Source({"bundle": str(path)}, Bundle.load(path))
    raise ConfigurationError(
        f"simulate: model={str(model)[:60]!r}: is neither one of {', '.join(ZOO)}, nor an .onnx file or its bytes, nor "
        "a bundle (edge-coordinator compile makes one)"
    )


def bundle_for(model: Any, data: Dataset, *, loss: str | None, seed: int) -> Bundle:
    """A model for a data set, compiled.

    Args:
        model: As of ``simulate``; None for a linear model.
        data: Gives ``inputs`` and ``outputs`` of a zoo model.
        loss: The loss; None for the model's own.
        seed: Of the initial weights.

    Raises:
        ConfigurationError, CompileError, BundleError: It cannot be used.
    """
    linear = "linear_regression" if data.labels is None else "softmax_regression"
    tables: Tables = {"model": {"loss": loss}} if loss else {}
    source = source_of(model or linear, Clients({"all": data.examples}, None), tables.get("model", {}))
    config = configured(tables, model=source.table, goal_count=1, rounds=1, seed=seed, evaluated=False)
    return source.built(config)


def _compiled(config: FederationConfig, onnx: bytes | None) -> Bundle:
    """A zoo model is known to be right: it is checked only where it is so small that a loop is worth a measurement."""
    if config.model.zoo is None:
        return build_bundle(config, onnx=onnx)
    bundle = build_bundle(config, verify=False)
    is_tiny = step_cost(bundle.program.train, LOOP_BATCH_SIZE).flops <= LOOP_FLOPS_MAX
    return build_bundle(config) if is_tiny else bundle


def _shape(name: str, clients: Clients, given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of a zoo model by the clients' examples, where they are not given."""
    values = (*clients.values(), clients.evaluation)
    sets = [as_dataset(value, "clients") for value in values if value is not None]
    found: dict[str, Any] = {}
    if not {"inputs", "features"} & given.keys():
        found |= _inputs(sets) if sets[0].file is None else _columns(sets, sets[0].file)
    if not {"outputs", "labels"} & given.keys():
        found |= _outputs(name, sets)
    return found


def _inputs(sets: Sequence[Dataset]) -> dict[str, Any]:
    x = sets[0].x
    if x.ndim < 2:
        raise ExamplesError(f"clients: x has shape {list(x.shape)}, expected [examples, features...]")
    return {"inputs": list(x.shape[1:])}


def _columns(sets: Sequence[Dataset], file: ExamplesFile) -> dict[str, Any]:
    """The columns of a table that have no other use, by name; a column of texts is a category."""
    header = tuple(sets[0].arrays)
    apart = used_columns(header, file).apart
    features = file.features or tuple(name for name in header if name not in apart)
    categories = {}
    for name in features:
        values = {value for data in sets for value in column_values(data, name)}
        if any(isinstance(value, str) for value in values):
            categories[name] = sorted(map(str, values))
    found: dict[str, Any] = {"features": list(features), "categories": categories}
    if file.window is not None:
        found["inputs"] = [features_width(features, categories) * file.window.length]
    return found


def _outputs(name: str, sets: Sequence[Dataset]) -> dict[str, Any]:
    targets = [data for data in sets if data.target_name is not None]
    if not targets:  # the model learns to reconstruct its input
        return {"outputs": int(np.prod(sets[0].x.shape[1:], dtype=int))}
    arrays = [data.y for data in targets]
    if targets[0].file is not None or any(y.dtype.kind == "U" for y in arrays):
        values = sorted({value for data in targets for value in column_values(data, data.target_name or "")}, key=str)
        if any(isinstance(value, str) for value in values):
            return {"labels": [str(value) for value in values], "outputs": 1 if name in BINARY else len(values)}
        arrays = [np.array(values)]
    if name == "linear_regression" or any(y.dtype.kind == "f" and y.ndim > 1 for y in arrays):
        return {"outputs": int(np.prod(arrays[0].shape[1:], dtype=int))}
    highest = max((float(y.max()) for y in arrays if y.size), default=0.0)
    if name == "linear_svm" or (name == "logistic_regression" and highest <= 1):
        return {"outputs": 1}
    return {"outputs": max(2, int(highest) + 1)}

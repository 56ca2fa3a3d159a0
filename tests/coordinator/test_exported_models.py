"""Models exported by PyTorch with both exporters: a step of either engine moves each parameter as torch.autograd says.

The files, and what autograd found in float64, come from ``tests/data/onnx/make_torch_zoo.py``; torch is not needed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_graphs import run

from coordinator.compile import compile_model, load_onnx
from coordinator.compile.export import merge_into_source
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

FOLDER = Path(__file__).parents[1] / "data" / "onnx"
MODELS = sorted(path.stem for path in FOLDER.glob("*.npz"))
GATES = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}
"""Where PyTorch has each gate that ONNX keeps in another order: i f g o against i o f c, r z n against z r h."""
TOLERANCE = 1e-4
RATE = 1024.0  # a power of two: dividing the step by it is exact

Array = NDArray[np.float64]


@functools.cache
def expected(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def compiled(name: str, exporter: str) -> Bundle:
    loss = str(expected(name)["loss_name"])
    return compile_model(load_onnx(FOLDER / f"{name}.{exporter}.onnx"), loss=loss, name=name)


def stepped(bundle: Bundle, engine_name: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[float, dict[str, Array]]:
    """The loss and the gradients that one step of plain SGD went down, by parameter of the bundle."""
    engine = make_engine(bundle.program, engine_name)
    batch = {entry.name: arrays[f"input/{entry.name}"] for entry in bundle.program.inputs}
    batch["target"] = arrays["target"]
    handle = engine.load(bundle.parameters)
    loss = engine.step(handle, batch, {"lr": RATE})
    moved = (bundle.parameters.astype(np.float64) - engine.read(handle)) / RATE
    spec = bundle.program.spec
    return loss, {t.name: moved[t.offset : t.offset + t.size].reshape(t.shape) for t in spec if t.kind == "trainable"}


def as_torch_has_it(array: Array, gates: tuple[int, ...]) -> list[Array]:
    """The forms in which PyTorch may hold what the graph holds: as it is, transposed, in a recurrent layer's order."""
    forms = [array, array.T] if array.ndim == 2 else [array]
    if gates and array.ndim == 3 and array.shape[0] == 1 and array.shape[1] % len(gates) == 0:
        forms.append(in_torch_order(array[0], gates))
    if gates and array.ndim == 2 and array.shape[0] == 1 and array.shape[1] % (2 * len(gates)) == 0:
        forms += [in_torch_order(half, gates) for half in np.split(array[0], 2)]  # the two biases, side by side
    return forms


def in_torch_order(array: Array, gates: tuple[int, ...]) -> Array:
    blocks = np.split(array, len(gates))
    return np.concatenate([blocks[gate] for gate in gates])


def matched(
    bundle: Bundle, gradients: Mapping[str, Array], arrays: Mapping[str, NDArray[Any]], gates: tuple[int, ...]
) -> dict[str, float]:
    """By PyTorch's parameter, the relative error of its gradient.

    Names are PyTorch's own where the exporter kept them; elsewhere the values tell which is which, and where several
    start with the same values, each tensor of the graph is given to one parameter, the nearest ones first.
    """
    torch_names = [key.removeprefix("value/") for key in arrays if key.startswith("value/")]
    values = bundle.program.spec.unflatten(bundle.parameters)
    largest = max(float(np.linalg.norm(arrays[f"gradient/{name}"])) for name in torch_names)
    forms = []
    for key, gradient in gradients.items():
        pairs = zip(as_torch_has_it(values[key], gates), as_torch_has_it(gradient, gates), strict=True)
        forms += [(key, number, *pair) for number, pair in enumerate(pairs)]
    candidates = []
    for name, (key, number, value, gradient) in itertools.product(torch_names, forms):
        if (key in torch_names and key != name) or not np.array_equal(value, arrays[f"value/{name}"]):
            continue
        reference = arrays[f"gradient/{name}"].astype(np.float64)
        size = float(np.linalg.norm(reference))
        # Before a normalisation a bias has no gradient at all, and what float32 leaves of it has no relative error.
        error = float(np.linalg.norm(gradient - reference)) / (size if size > 1e-6 * largest else largest)
        place = key if number < 2 else f"{key}/{number}"
        candidates.append((error, name, place))
    errors: dict[str, float] = {}
    taken: set[str] = set()
    for error, name, place in sorted(candidates):
        if name not in errors and place not in taken:
            errors[name] = error
            taken.add(place)
    missing = sorted(set(torch_names) - set(errors))
    assert not missing, f"no tensor of the graph stands for {missing}"
    assert {place.split("/")[0] for place in taken} >= {key.split("/")[0] for key in gradients}
    return errors


@pytest.mark.parametrize("engine", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_that_of_torch_autograd(name: str, exporter: str, engine: str) -> None:
    arrays, bundle = expected(name), compiled(name, exporter)

    loss, gradients = stepped(bundle, engine, arrays)

    assert loss == pytest.approx(float(arrays["loss"]), rel=1e-5)
    errors = matched(bundle, gradients, arrays, GATES.get(name, ()))
    assert len(errors) == sum(key.startswith("value/") for key in arrays)
    assert max(errors.values()) <= TOLERANCE, {key: error for key, error in errors.items() if error > TOLERANCE}


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_running_statistics_move_as_those_of_torch(name: str, exporter: str, engine_name: str) -> None:
    arrays, bundle = expected(name), compiled(name, exporter)
    engine = make_engine(bundle.program, engine_name)
    batch = {
        **{entry.name: arrays[f"input/{entry.name}"] for entry in bundle.program.inputs},
        "target": arrays["target"],
    }
    handle = engine.load(bundle.parameters)

    engine.step(handle, batch, {"lr": 0.0})

    found = bundle.program.spec.unflatten(engine.read(handle))
    wanted = {key.removeprefix("moved/"): array for key, array in arrays.items() if key.startswith("moved/")}
    assert set(wanted) == {t.name for t in bundle.program.spec if t.kind == "buffer"}
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_trained_weights_go_back_into_the_export(name: str, exporter: str) -> None:
    arrays, bundle = expected(name), compiled(name, exporter)
    source = load_onnx(FOLDER / f"{name}.{exporter}.onnx")
    rng = np.random.default_rng(0)
    trained = (bundle.parameters * rng.uniform(0.9, 1.1, bundle.parameters.shape)).astype(np.float32)

    merged = merge_into_source(bundle.program, trained, source)

    feeds = {key.removeprefix("input/"): array for key, array in arrays.items() if key.startswith("input/")}
    engine = make_engine(bundle.program, "onnxruntime")
    (found,) = run(merged.SerializeToString(), feeds).values()
    ((_, wanted),) = engine.infer(trained, feeds).items()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_zoo_is_whole() -> None:
    assert len(MODELS) == 12

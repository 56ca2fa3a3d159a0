"""Recurrent models exported by PyTorch with both exporters: every gradient is that of torch.autograd, on both engines.

The files come from ``tests/data/onnx/make_recurrent.py``; torch is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.compile import compile_model, load_onnx
from edge_sdk.training.engine import make_engine

FOLDER = Path(__file__).parents[1] / "data" / "onnx" / "recurrent"
MODELS = sorted(path.stem for path in FOLDER.glob("*.npz"))
RATE = 1024.0  # a power of two: dividing the step by it is exact
TOLERANCE = 1e-4


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_that_of_torch_autograd(name: str, exporter: str) -> None:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    expected = {key.partition("/")[2]: g for key, g in arrays.items() if key.startswith(f"{exporter}/")}
    source = load_onnx(FOLDER / f"{name}.{exporter}.onnx")
    bundle = compile_model(source, loss="softmax_cross_entropy", name=name, verify=False)
    spec = bundle.program.spec
    assert {t.name for t in spec} == set(expected)
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        handle = engine.load(bundle.parameters)
        loss = engine.step(handle, {"x": arrays["x"], "target": arrays["target"]}, {"lr": RATE})
        assert loss == pytest.approx(float(arrays["loss"]), rel=1e-5)
        moved = spec.unflatten(((bundle.parameters.astype(np.float64) - engine.read(handle)) / RATE).astype(np.float32))
        for key, gradient in expected.items():
            error = float(np.linalg.norm(moved[key] - gradient)) / float(np.linalg.norm(gradient))
            assert error <= TOLERANCE, f"{engine_name}: {key} by {error:.2g}"


def test_no_model_is_missing() -> None:
    assert MODELS == ["gru_stack", "lstm_learned", "lstm_stack", "rnn_relu"]

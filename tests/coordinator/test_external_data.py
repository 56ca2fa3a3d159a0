"""Models whose tensors lie in another file: read where that is safe and whole, else refused with tensor and file."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import model_of, run
from typer.testing import CliRunner

from coordinator.__main__ import app
from coordinator.compile import compile_model, load_onnx, merge_into_source, read_onnx
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "data" / "onnx" / "torch_recipe"
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def saved(folder: Path, location: str = "model.onnx.data") -> Path:
    """y = x W + b in a file, its tensors in another one."""
    model = model_of("h = MatMul(x, w); y = Add(h, b)", {"w": W, "b": np.zeros(3)}, inputs={"x": ["n", 4]})
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "model.onnx"


def changed(path: Path, key: str, value: str) -> Path:
    """The file with another entry about the data of w."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    for entry in [e for e in tensor.external_data if e.key == key]:
        tensor.external_data.remove(entry)
    tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, *messages: str) -> None:
    with pytest.raises(CompileError) as caught:
        load_onnx(path)
    for message in ("initializer 'w'", *messages):
        assert message in str(caught.value)


@pytest.mark.parametrize("location", ["model.onnx.data", "weights/w.bin"])
def test_a_model_is_read_with_the_data_beside_it(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights").mkdir()
    model = load_onnx(saved(tmp_path, location))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), W)
    assert not any(t.external_data or t.data_location for t in model.graph.initializer)


def test_the_committed_export_of_the_pytorch_recipe_compiles_trains_and_comes_back(tmp_path: Path) -> None:
    assert (RECIPE / "model.onnx.data").stat().st_size > 10_000
    runner = CliRunner()
    done = runner.invoke(
        app, ["compile", str(RECIPE / "model.onnx"), "--loss", "softmax_cross_entropy", "-o", str(tmp_path / "b")]
    )
    assert done.exit_code == 0, done.output
    bundle = Bundle.load(tmp_path / "b")
    assert [t.name for t in bundle.program.spec] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    source = read_onnx(bundle.source, "the bundle's source")  # whole, without a file beside it
    trained = merge_into_source(bundle.program, bundle.parameters * 1.5, source)
    feeds = {"input": np.ones((2, 1, 8, 8), np.float32)}
    (before,), (after,) = (run(m.SerializeToString(), feeds).values() for m in (source, trained))
    assert not np.allclose(before, after)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_pytorch_recipe_of_the_documents_runs_word_for_word(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "bring-your-model.md").read_text()
    recipe = next(t for t in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import torch" in t)
    subprocess.run([sys.executable, "-c", recipe], cwd=tmp_path, check=True, timeout=300)
    bundle = compile_model(load_onnx(tmp_path / "model.onnx"), loss="softmax_cross_entropy", name="recipe")
    assert bundle.program.spec.size == 784 * 100 + 100 + 100 * 10 + 10


def test_the_committed_export_is_what_the_recipe_of_the_documents_makes() -> None:
    """The recipe of the page and the script that made the export stay one text."""
    script = (ROOT / "tests" / "data" / "onnx" / "make_torch_recipe.py").read_text()
    page = (ROOT / "docs" / "bring-your-model.md").read_text()
    for replaced in re.findall(r'\.replace\("([^"]+)"', script):
        assert replaced in page


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "weights/../../w.bin", "", "..", "."])
def test_data_outside_of_the_models_folder_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    path = changed(saved(tmp_path / "model"), "location", location)
    refused(path, repr(location) if location != "." else "no such file")


def test_a_link_out_of_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "w.bin").write_bytes(W.tobytes() * 4)
    path = saved(tmp_path / "model")
    (tmp_path / "model" / "model.onnx.data").unlink()
    (tmp_path / "model" / "model.onnx.data").symlink_to(tmp_path / "w.bin")
    refused(path, "not inside of the model's folder")


def test_a_link_within_the_models_folder_is_followed(tmp_path: Path) -> None:
    path = saved(tmp_path, "blob")
    (tmp_path / "w.bin").symlink_to(tmp_path / "blob")
    np.testing.assert_array_equal(
        numpy_helper.to_array(load_onnx(changed(path, "location", "w.bin")).graph.initializer[0]), W
    )


def test_missing_data_are_said_with_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "model.onnx.data").unlink()
    refused(path, str(tmp_path / "model.onnx.data"), "copy it there")


def test_a_pipe_instead_of_data_is_not_waited_for(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "model.onnx.data").unlink()
    os.mkfifo(tmp_path / "model.onnx.data")
    refused(path, "no such file")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("length", "47", "is said to hold 47 bytes of it, and its shape [4, 3] needs 48"),
        ("length", "4800000000000000000", "needs 48"),
        ("offset", "1000000", "needs bytes 1000000 to 1000048"),
        ("offset", "-4", "offset '-4'"),
        ("offset", "9" * 30, "is no number of bytes"),
        ("length", "٤٨", "is no number of bytes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, key: str, value: str, message: str) -> None:
    refused(changed(saved(tmp_path), key, value), message)


def test_a_shape_larger_than_any_file_allocates_nothing(tmp_path: Path) -> None:
    path = changed(saved(tmp_path), "length", str(4 << 40))
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 20])
    path.write_bytes(model.SerializeToString())
    refused(path, "larger than 2147483647 bytes")


def test_a_truncated_data_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(W.tobytes()[:20])
    refused(path, "which has 20; is the file complete?")


def test_data_of_a_constant_node_are_read_too_and_never_from_elsewhere(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model = model_of("h = MatMul(x, w); y = Add(h, c)", {"w": W}, inputs={"x": ["n", 4]})
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="hidden", value=tensor))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CompileError, match=r"attribute 'value' of node 'hidden'.*'/etc/passwd'"):
        load_onnx(path)
    tensor.external_data[0].value = "c.bin"
    model.graph.node[0].attribute[0].t.CopyFrom(tensor)
    path.write_bytes(model.SerializeToString())
    (tmp_path / "c.bin").write_bytes(np.array([1, 2, 3], np.float32).tobytes())
    (y,) = run(load_onnx(path).SerializeToString(), {"x": np.zeros((1, 4), np.float32)}).values()
    np.testing.assert_array_equal(y, [[1, 2, 3]])


def test_a_model_in_memory_without_its_data_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = read_onnx(saved(tmp_path).read_bytes(), "model")
    with pytest.raises(
        CompileError, match=r"initializer 'w' lies in another file \(model.onnx.data\).*path of the .onnx"
    ):
        compile_model(model, loss="mean_squared_error", name="model")

"""Names of columns and classes: out of the configuration or the command line into the bundle, if they fit the model."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from coordinator.__main__ import app
from coordinator.compile import build_zoo_model
from coordinator.compile.naming import ColumnNames
from coordinator.config import load_config
from coordinator.model_identity import differences
from coordinator.setup import build_bundle
from edge_sdk.errors import CompileError, ConfigurationError
from edge_sdk.training.bundle import Bundle, Program

HEAD = '[federation]\nname = "garden"\n[model]\n'
NAMED = """
features = ["load", "fuel", "rpm"]
labels = ["ok", "worn", "fault"]
[model.categories]
fuel = ["diesel", "petrol"]
"""


def program_of(path: Path, model: str) -> Program:
    (path / "federation.toml").write_text(HEAD + model)
    bundle = build_bundle(load_config(path / "federation.toml"), verify=False)
    return Program.decode(bundle.program.encode())


def test_a_model_of_the_zoo_is_as_wide_as_its_names_and_carries_them(tmp_path: Path) -> None:
    program = program_of(tmp_path, 'zoo = "mlp"\n' + NAMED)
    assert (program.inputs[0].shape, program.classes) == ((None, 4), 3)
    assert program.features == ("load", "fuel", "rpm") and program.labels == ("ok", "worn", "fault")
    assert program.categories == {"fuel": ("diesel", "petrol")}


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ('zoo = "mlp"', 2),
        ('zoo = "mlp"\nloss = "binary_cross_entropy"', 1),
        ('zoo = "logistic_regression"', 1),
        ('zoo = "linear_svm"', 1),
        ('zoo = "softmax_regression"', 2),
        ('zoo = "mlp"\noutputs = 1', 1),
    ],
)
def test_two_labels_are_one_output_where_the_loss_is_over_two_classes(tmp_path: Path, model: str, outputs: int) -> None:
    program = program_of(tmp_path, f'{model}\ninputs = [3]\nlabels = ["ok", "fault"]\n')
    assert program.labels == ("ok", "fault")
    assert program.classes == (2 if outputs == 2 else 0)


def test_sizes_that_are_given_win_and_must_fit(tmp_path: Path) -> None:
    windows = program_of(tmp_path, 'zoo = "mlp"\ninputs = [60, 2]\noutputs = 2\nfeatures = ["rpm", "load"]\n')
    assert windows.inputs[0].shape == (None, 60, 2)
    with pytest.raises(CompileError, match=r"features: 3 features do not fit an input of \[4\] elements"):
        program_of(tmp_path, 'zoo = "mlp"\ninputs = [4]\nfeatures = ["a", "b", "c"]\n')
    with pytest.raises(CompileError, match="labels: 2 names, the model has 5 classes"):
        program_of(tmp_path, 'zoo = "mlp"\ninputs = [4]\noutputs = 5\nlabels = ["ok", "fault"]\n')


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('features = "rpm"', "model.features = 'rpm': must be a list of names"),
        ("features = [1]", "model.features[0] = 1: must be a list of names"),
        ('features = [""]', "model.features[0] = '': must be a list of names"),
        ('categories = {fuel = "diesel"}', "model.categories.fuel = 'diesel': must be"),
        ("labels = [true]", "model.labels[0] = true: must be a list of names"),
    ],
)
def test_a_name_that_is_none_is_said_with_its_key(tmp_path: Path, keys: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        program_of(tmp_path, f'zoo = "mlp"\n{keys}\n')
    assert words in str(caught.value)


def test_a_bundle_fixes_its_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.features: is fixed by model\.bundle"):
        program_of(tmp_path, 'bundle = "m.bundle"\nfeatures = ["a"]\n')


def test_an_onnx_model_gets_names_by_configuration_and_by_command(tmp_path: Path) -> None:
    onnx.save(build_zoo_model("mlp", inputs=(4,), hidden=(5,), outputs=3, seed=0), tmp_path / "m.onnx")
    by_file = program_of(tmp_path, f'onnx = "m.onnx"\nloss = "softmax_cross_entropy"\n{NAMED}')
    names = [f"--feature={name}" for name in ("load", "fuel", "rpm")]
    names += ["--category=fuel=diesel,petrol", *(f"--label={name}" for name in ("ok", "worn", "fault"))]
    out = str(tmp_path / "m.bundle")
    done = CliRunner().invoke(app, ["compile", str(tmp_path / "m.onnx"), "--out", out, "--no-loop", *names])
    assert done.exit_code == 0, done.output
    assert "features: load, fuel (diesel or petrol), rpm" in done.output
    assert "labels: ok, worn, fault" in done.output
    by_command = Bundle.load(out).program
    for program in (by_file, by_command):
        assert (program.features, program.labels) == (("load", "fuel", "rpm"), ("ok", "worn", "fault"))
        assert program.categories == {"fuel": ("diesel", "petrol")}
    told = json.loads(CliRunner().invoke(app, ["inspect", out, "--json"]).output)
    assert told["features"] == ["load", "fuel", "rpm"] and told["categories"] == {"fuel": ["diesel", "petrol"]}


@pytest.mark.parametrize("text", ["fuel", "fuel=", "=diesel,petrol", "fuel=diesel"])
def test_a_category_on_the_command_line_needs_a_name_and_values(text: str) -> None:
    with pytest.raises(CompileError, match="write it as NAME=VALUE,VALUE"):
        ColumnNames.parse((), (text,), ())


def test_other_names_are_another_model(tmp_path: Path) -> None:
    before = program_of(tmp_path, 'zoo = "mlp"\nfeatures = ["a", "b"]\nlabels = ["ok", "fault"]\n')
    after = program_of(tmp_path, 'zoo = "mlp"\nfeatures = ["b", "a"]\nlabels = ["fault", "ok"]\n')
    assert differences(after, before) == ["features b, a, not a, b", "labels fault, ok, not ok, fault"]

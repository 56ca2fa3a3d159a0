"""Which initializers are trained, by what the exporter says, by place, name and looks; and how it is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_graphs import model_of
from typer.testing import CliRunner

from coordinator.__main__ import app
from coordinator.cli.check import run_checks
from coordinator.compile import compile_model, describe, export_onnx, load_onnx, merge_into_source
from coordinator.compile.import_ import import_model
from coordinator.compile.notes import notes_of
from coordinator.compile.tables import look_of
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

DATA = Path(__file__).parents[1] / "data" / "onnx"
RNG = np.random.default_rng(6)
W = RNG.standard_normal((4, 6))


def compiled(model: onnx.ModelProto, **options: Any) -> Bundle:
    return compile_model(model, name="model", loop=False, **{"loss": "softmax_cross_entropy", **options})


def names(bundle: Bundle) -> set[str]:
    return {t.name for t in bundle.program.spec if t.kind == "trainable"}


def why(model: onnx.ModelProto) -> dict[str, str]:
    return {name: f"{role.kind}: {role.why}" for name, role in import_model(model, name="model").roles.items()}


def operand(text: str, **constants: Any) -> onnx.ModelProto:
    """A dense layer h of six units, ``text`` that makes t of it, and another dense layer."""
    weights = {"w": W, "v": RNG.standard_normal((6, 3)), **constants}
    return model_of(f"h = MatMul(x, w); {text}; y = MatMul(t, v)", weights, inputs={"x": ["n", 4]})


def renamed(model: onnx.ModelProto, **new: str) -> onnx.ModelProto:
    """Some initializers by names that ONNX's own notation cannot write."""
    for tensor in model.graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = new.get(name, name)
    return model


# Factors and tables


def test_a_factor_and_a_table_are_not_trained_and_stay_what_they_are() -> None:
    source = load_onnx(DATA / "cases" / "r5_scale.onnx")
    bundle = compiled(source)
    assert names(bundle) == {"A", "a", "W", "b"}
    engine = make_engine(bundle.program, "numpy")
    handle = engine.load(bundle.parameters)
    for _ in range(10):
        x = RNG.standard_normal((8, 6)).astype(np.float32)
        engine.step(handle, {"x": x, "target": RNG.integers(0, 2, 8)}, {"lr": 0.1})
    exported = export_onnx(bundle.program, engine.read(handle))
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (source, exported))
    for name in ("scale", "table"):
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["A"], before["A"])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
def test_one_element_in_arithmetic_is_a_factor(op: str, shape: tuple[int, ...]) -> None:
    text = f"s = {op}(h, f); t = Reshape(s, rows)" if len(shape) == 3 else f"t = {op}(h, f)"
    model = operand(text, f=np.full(shape, 0.7), rows=np.array([-1, 6]))
    assert names(compiled(model)) == {"w", "v"}
    assert why(model)["f"] == f"constant: a factor of shape {list(shape)}"


@pytest.mark.parametrize(
    "text",
    [
        "h = MatMul(x, w); y = Add(h, b)",
        "h = MatMul(x, w); y = Add(b, h)",
        "h = Gemm(x, w, b); y = Sigmoid(h)",
        "r = Reshape(x, cube); h = Conv(r, k); c = Add(h, b); y = Reshape(c, rows)",
    ],
)
def test_the_bias_of_a_layer_with_one_output_is_trained(text: str) -> None:
    constants = {"w": W[:, :1], "k": RNG.standard_normal((1, 1, 4)), "b": np.zeros(1)}
    constants |= {"cube": np.array([0, 1, 4]), "rows": np.array([-1, 1])}
    bundle = compiled(model_of(text, constants, inputs={"x": ["n", 4]}), loss="binary_cross_entropy")
    assert "b" in names(bundle)


def test_the_weights_and_slopes_of_layers_with_one_element_are_trained() -> None:
    model = operand(
        "p = PRelu(h, slope); t = LayerNormalization(p, g, c)", slope=np.ones(1), g=np.ones(6), c=np.zeros(6)
    )
    assert names(compiled(model)) == {"w", "v", "slope", "g", "c"}


TABLES = {
    "sines": np.sin(np.arange(6) + 0.3),
    "cosines": np.cos(0.5 * np.arange(6)),
    "evenly spaced": np.linspace(-1, 1, 6),
    "from 0 on": np.arange(6.0),
    "geometric": 10_000.0 ** (-np.arange(6) / 6),
    "a mask": np.array([1.0, 1, 1, 1, 0, 0]),
    "a large negative mask": np.array([0, 0, 0, -1e9, -1e9, -1e9]),
    "infinite": np.array([0, 0, 0, 0, 0, -math.inf]),
}


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_in_arithmetic_is_not_trained_unless_it_is_asked_for_by_its_name(
    table: str, shape: tuple[int, ...]
) -> None:
    text = "s = Add(h, f); t = Softmax(s)"
    model = operand(text, f=TABLES[table].reshape(shape))
    assert names(compiled(model)) == {"w", "v"}
    assert names(compiled(model, train=["*"])) == {"w", "v"}, "a pattern asks for no constant"
    if table != "infinite":
        assert names(compiled(model, train=["*", "f"], verify=False)) == {"w", "v", "f"}
        assert names(compiled(model, train=["f"], verify=False)) == {"f"}


@pytest.mark.parametrize("value", [np.zeros(6), np.ones(6), 0.02 * RNG.standard_normal(6), RNG.uniform(-1, 1, (1, 6))])
def test_biases_scales_and_learned_positions_are_trained(value: Any) -> None:
    for op in ("Add", "Mul"):
        assert names(compiled(operand(f"t = {op}(h, f)", f=value))) == {"w", "v", "f"}


def test_a_name_of_a_weight_counts_more_than_its_looks_and_one_of_a_table_too() -> None:
    model = operand("s = Mul(h, f); t = Add(s, g)", f=np.arange(6.0), g=RNG.standard_normal(6))
    model = renamed(model, f="norm.weight", g="encoder.pe")
    assert names(compiled(model)) == {"w", "v", "norm.weight"}


def test_a_sinusoidal_table_that_positions_are_looked_up_in_is_not_trained() -> None:
    table = np.sin(np.arange(10)[:, None] * np.array([1.0, 0.3, 0.1, 0.03, 0.01, 0.003]))
    text = "p = Gather(table, one); t = Add(h, p)"
    assert names(compiled(operand(text, table=table, one=np.array(3)))) == {"w", "v"}
    assert names(compiled(operand(text, table=RNG.standard_normal((10, 6)), one=np.array(3)))) == {"w", "v", "table"}


def test_a_weight_is_found_behind_what_turns_and_reshapes_it() -> None:
    text = "u = Transpose(k); r = Reshape(u, square); t = MatMul(h, r)"
    assert "k" in names(compiled(operand(text, k=np.arange(36.0).reshape(6, 6), square=np.array([6, 6]))))


# Constant nodes


def in_nodes(model: onnx.ModelProto, *moved: str) -> onnx.ModelProto:
    """Some initializers in Constant nodes instead."""
    for tensor in [t for t in model.graph.initializer if t.name in moved]:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    return model


def test_a_constant_node_is_no_parameter_unless_it_is_asked_for_by_its_name() -> None:
    model = in_nodes(operand("s = Mul(h, f); t = MatMul(s, m)", f=RNG.standard_normal(6), m=np.eye(6)), "f", "m")
    assert names(compiled(model)) == {"w", "v"}
    assert names(compiled(model, train=["*", "m"])) == {"w", "v", "m"}
    assert why(model)["m"] == "constant: a Constant node"


def test_a_model_whose_weights_are_constant_nodes_is_told_how_to_train_them() -> None:
    model = in_nodes(operand("t = Relu(h)"), "w", "v")
    with pytest.raises(
        CompileError, match=r"no parameters to train; constant are 'w' \(a Constant node\).*its full name"
    ):
        compiled(model)
    assert names(compiled(model, train=["w", "v"])) == {"w", "v"}


def test_what_an_exporter_gathered_from_constant_nodes_is_one_too() -> None:
    model = renamed(operand("t = Mul(h, f)", f=RNG.standard_normal(6)), f="/block/Constant_3_output_0")
    assert names(compiled(model)) == {"w", "v"}


def test_a_pattern_that_fits_constants_alone_is_refused_with_the_reason() -> None:
    model = operand("t = Mul(h, factor)", factor=np.full(1, 0.7))
    with pytest.raises(
        CompileError, match=r"train 'fac\*': fits none .*'factor' is a constant: a factor of shape \[1\]"
    ):
        compiled(model, train=["fac*"])


# What PyTorch says


@pytest.mark.parametrize("exporter", ["dynamo", "optimised", "script"])
def test_of_an_attention_exported_by_pytorch_parameters_are_trained_and_buffers_are_not(exporter: str) -> None:
    bundle = compiled(load_onnx(DATA / "roles" / f"attention.{exporter}.onnx"))
    shapes = sorted(t.shape for t in bundle.program.spec)
    learned = [(30, 8), (1, 10, 8), (8, 8), (8,), (8, 8), (8,), (2, 8), (2,)]
    assert shapes == sorted(learned), "embedding, positions, query, key, out; no table, frequencies, mask"


def test_a_learned_factor_of_one_element_is_trained_where_pytorch_says_that_it_is_a_parameter() -> None:
    bundle = compiled(load_onnx(DATA / "roles" / "normalised.dynamo.onnx"))
    assert "learned" in names(bundle) and "factor" not in names(bundle)
    roles = why(load_onnx(DATA / "roles" / "normalised.dynamo.onnx"))
    assert (
        roles["learned"] == "parameter: a parameter in PyTorch" and roles["factor"] == "constant: a buffer in PyTorch"
    )
    assert roles["bn1.running_mean"].startswith("statistics: running statistics of BatchNormalization")


def test_a_scalar_that_pytorch_calls_a_parameter_is_trained_as_one() -> None:
    model = operand("t = Mul(h, temperature)", temperature=np.float32(1.5))
    signature = "# inputs\np_temperature: PARAMETER target='temperature'\nb_v: BUFFER target='v'\nx: USER_INPUT\n"
    entry = model.graph.metadata_props.add()
    entry.key, entry.value = "pkg.torch.export.ExportedProgram.graph_signature", signature
    bundle = compiled(model)  # verified against differences of the loss
    assert names(bundle) == {"w", "temperature"} and bundle.program.spec["temperature"].size == 1
    merged = merge_into_source(bundle.program, 2 * bundle.parameters, model)
    arrays = {t.name: numpy_helper.to_array(t) for t in merged.graph.initializer}
    assert arrays["temperature"].shape == () and arrays["temperature"] == 3.0
    assert names(compiled(operand("t = Mul(h, temperature)", temperature=np.float32(1.5)))) == {"w", "v"}


# What is said


def notes(file: str) -> list[str]:
    source = load_onnx(DATA / file)
    return notes_of(source, import_model(source, name="model").roles)


def test_batchnorm_that_the_newer_exporter_folded_away_is_said_with_the_option_that_keeps_it() -> None:
    (note,) = notes("roles/normalised.optimised.onnx")
    assert "has folded BatchNorm (bn1, bn2)" in note and "optimize=False" in note
    assert notes("roles/normalised.dynamo.onnx") == []


def test_batchnorm_that_the_older_exporter_folded_away_is_said_with_the_option_that_keeps_it() -> None:
    note = notes("roles/normalised.script.onnx")[0]
    assert "if BatchNorm follows" in note and "TrainingMode.PRESERVE" in note and "/conv1/Conv, /conv2/Conv" in note
    assert not any(
        "BatchNorm" in note
        for file in ("resnet.script", "cnn1d.script", "mlp.script")
        for note in notes(f"{file}.onnx")
    )


def test_convolutions_with_biases_and_no_norm_are_asked_about_where_nothing_tells_more() -> None:
    (note,) = notes("cnn1d.dynamo.onnx")  # what the exporter said of its tensors was taken out of this file
    assert note.startswith("if your model has BatchNorm") and "optimize=False" in note
    assert notes("resnet.dynamo.onnx") == [] and notes("mlp.dynamo.onnx") == [] and notes("keras_mlp.onnx") == []


def test_check_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    source = DATA / "roles" / "normalised.optimised.onnx"
    model = f'[model]\nonnx = "{source}"\nloss = "softmax_cross_entropy"\n'
    path.write_text(f'[federation]\nname = "plant"\n{model}[broker]\nurl = "mqtt://127.0.0.1:9"\n')
    (outcome,) = (o for o in run_checks(path) if o.name == "model")
    assert outcome.state == "ok" and "has folded BatchNorm (bn1, bn2)" in outcome.detail


def test_compile_prints_what_each_initializer_is_and_why(tmp_path: Path) -> None:
    path = DATA / "roles" / "attention.script.onnx"
    done = CliRunner().invoke(app, ["compile", str(path), "-o", str(tmp_path / "b"), "--no-loop"])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    for expected in (
        "embedding.weight [30, 8]: weights of a Gather",
        "positions [1, 10, 8]: an operand of Add '/Add'",
        "out.bias [2]: weights of a Gemm",
        "rotary [4]: a table: a geometric series",
        "table [1, 10, 8]: a table: sines and cosines of positions",
        "causal [10, 10]: a mask: it holds infinity",
    ):
        assert expected in lines, done.output
    assert any(line.startswith("note: not trained, since it looks like a constant: ") for line in lines)
    facts = describe(Bundle.load(tmp_path / "b"))
    told = {t["name"] for key in ("parameters", "frozen", "initializers") for t in facts[key]}
    assert {t.name for t in load_onnx(path).graph.initializer} <= told


def test_what_was_asked_for_is_told_as_that(tmp_path: Path) -> None:
    onnx.save(load_onnx(DATA / "cases" / "r5_scale.onnx"), tmp_path / "m.onnx")
    command = ["compile", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "b"), "--train", "*", "--train", "scale"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "scale [1]: asked for by its name" in done.output, done.output


# Looks


def sinusoids(length: int, width: int, halves: bool = False) -> Any:
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    if halves:
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)


def in_two_dimensions(side: int, width: int) -> Any:
    """Positions in a picture, a quarter of the width each for sines and cosines of rows and columns, behind a token."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    grid = [place.reshape(-1, 1) * frequencies for place in np.meshgrid(np.arange(side), np.arange(side))]
    parts = [part for angles in grid for part in (np.sin(angles), np.cos(angles))]
    return np.concatenate([np.zeros((1, width)), np.concatenate(parts, axis=1)])


LOOKS = {
    "sines and cosines of positions": [
        sinusoids(512, 64),
        sinusoids(10, 8)[None],
        sinusoids(7, 6, halves=True),
        0.02 * sinusoids(20, 8),
        in_two_dimensions(4, 16),
        np.cos(np.arange(9.0)),
    ],
    "evenly spaced numbers": [np.linspace(0.1, 0.9, 7), np.stack(np.meshgrid(np.linspace(-1, 1, 6), np.arange(6)))],
    "a geometric series": [10_000.0 ** (-np.arange(0, 32, 2) / 32), 0.5 ** np.arange(1, 9)],
    "whole multiples of one number, as a mask or positions": [
        np.tril(np.ones((6, 6))),
        -0.1 * np.abs(np.arange(9)[:, None] - np.arange(9)),
        np.eye(8),
        np.triu(np.full((5, 5), -1e9), 1),
    ],
}


@pytest.mark.parametrize(("look", "table"), [(look, table) for look, tables in LOOKS.items() for table in tables])
def test_tables_that_somebody_computed_are_known_by_their_structure(look: str, table: Any) -> None:
    assert look_of(np.asarray(table, np.float32)) == look


def test_weights_look_like_no_table() -> None:
    rng = np.random.default_rng(0)
    for shape in [(4,), (5,), (8,), (2, 4), (3, 5), (6, 2), (5, 1), (1, 10, 8), (64, 64)]:
        for _ in range(200):
            drawn = rng.standard_normal(shape)
            for weights in (drawn, np.clip(0.02 * drawn, -0.04, 0.04), rng.uniform(-1, 1, shape)):
                assert look_of(weights.astype(np.float32)) == ""
    half = rng.standard_normal((32, 32)).astype(np.float16)
    trimmed = (rng.standard_normal(64).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    rows = np.tile(rng.standard_normal(8), (10, 1))
    for weights in (np.zeros(9), np.ones((3, 4)), half, trimmed, rows, rows.T, np.array([0.5, 1.5])):
        assert look_of(np.asarray(weights, np.float32)) == ""

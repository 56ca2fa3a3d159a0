"""The configuration says no with the file, the key, the value and what is allowed; its documents are true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from coordinator.compile.losses import LOSSES
from coordinator.compile.optimizers import OPTIMIZERS
from coordinator.compile.zoo import ACTIVATIONS, ZOO, build_zoo_model, zoo_loss
from coordinator.config import FederationConfig, Model, check_files, config_reference, load_config, load_tasks
from coordinator.config.fields import default_text, toml_text
from coordinator.config.loading import sections
from coordinator.config.sections import CLIENT_SCALARS, OPTIMIZER_KEYS
from coordinator.config.settings import (
    broker_settings,
    codec_settings,
    database_path,
    piece_bytes_max,
    plan,
    round_settings,
    server_optimizer,
    stopping_rule,
    store_limits,
    training_plan,
    validation_bounds,
)
from coordinator.server_optimizers import SERVER_OPTIMIZERS, FedAdam, FedAvg, server_settings
from coordinator.store import Store
from edge_sdk.codecs import CODECS, CodecSettings, settings_of
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.settings import ExamplesFile, Window

DOCS = Path(__file__).parents[2] / "docs"
SMALL = '[federation]\nname = "demo"\n[model]\nzoo = "mlp"\n'


def load(tmp_path: Path, text: str) -> FederationConfig:
    path = tmp_path / "federation.toml"
    path.write_text(text)
    return load_config(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def literals(section: str, name: str) -> set[str]:
    annotation = sections()[section].model_fields[name].annotation
    choices: set[str] = set()
    for part in get_args(annotation):
        choices |= {part} if isinstance(part, str) else set(get_args(part))
    return choices


# -- what is read ------------------------------------------------------------------------------------------------------


def test_two_keys_are_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.federation.task == "default" and config.selection.goal_count == 20
    assert config.federation.state_dir == tmp_path / "state"
    assert config.model.hidden_widths == (64, 32) and config.model.metric == "accuracy"


def test_relative_paths_start_at_the_files_directory_and_absolute_ones_stay(tmp_path: Path) -> None:
    text = SMALL.replace("[model]", 'state_dir = "/var/lib/x"\n[evaluation]\ndata = "sub/heldout.npz"\n[model]')
    config = load(tmp_path, text)
    assert config.evaluation.data == ExamplesFile(tmp_path / "sub" / "heldout.npz")
    assert config.federation.state_dir == Path("/var/lib/x")


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    with pytest.raises(Exception, match="frozen"):
        config.selection.goal_count = 3  # type: ignore[misc]


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    text = '[federation]\nname = "demo"\n[model]\nbundle = "m.bundle"\n[evaluation]\ndata = "h.npz"\n'
    config = load(tmp_path, text)
    with pytest.raises(ConfigurationError, match=r"model\.bundle: there is no file .*\n.*evaluation\.data"):
        check_files(config)
    (tmp_path / "m.bundle").write_bytes(b"")
    (tmp_path / "h.npz").write_bytes(b"")
    check_files(config)


# -- what is refused, and how it says so -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[selection]\ngoal_cuont = 3", "selection.goal_cuont: unknown key; did you mean selection.goal_count?"),
        ("[training]\ngoal_count = 3", "training.goal_count: unknown key; did you mean selection.goal_count?"),
        ("[store]\nzzz = 3", "store.zzz: unknown key; [store] has checkpoints_kept, tombstone_days"),
        ("[selecton]\ngoal_count = 3", "selecton: unknown key; did you mean [selection]?"),
        ('[broker]\npassword = "hunter2"', "broker.password: unknown key; did you mean broker.password_file?"),
        (
            "[selection]\nover_selection = 0.5",
            "selection.over_selection = 0.5: must be a number at least 1, at most 10. Devices invited",
        ),
        ('[selection]\ngoal_count = "3"', "selection.goal_count = '3': must be a whole number at least 1"),
        ("[selection]\ngoal_count = true", "selection.goal_count = true: must be a whole number at least 1"),
        ("[selection]\ngoal_count = 2.5", "selection.goal_count = 2.5: must be a whole number"),
        ("[selection]\nfraction = 1.5", 'selection.fraction = 1.5: must be "auto" or a number above 0, at most 1'),
        ("[selection]\njitter = nan", "selection.jitter = nan: must be a number at least 0, below 1"),
        ('[codec]\nname = "zip"', "codec.name = 'zip': must be one of auto, sparse, sparse_rows, eden"),
        ("[training]\nscalars = { beta1 = true }", "training.scalars.beta1 = true: must be a number"),
        ("training = 3", "training: must be a table, [training]"),
        ('[broker]\nca_file = ""\nurl = "mqtts://x"', "broker.ca_file = '': must be a path"),
        ("[evaluation]\nheld_out = 0.95", "evaluation.held_out = 0.95: must be a number at least 0, at most 0.9"),
        ("[evaluation]\ndata = 5", "evaluation.data = 5: must be a path, or a table as [data] of device.toml"),
        ('[evaluation]\ndata = { path = "x.csv", labels = "y" }', "evaluation.data.labels: unknown key; did you mean"),
        ('[evaluation]\ndata = { path = "x.jpg" }', "evaluation.data.path: ends in '.jpg'; a file of examples ends in"),
        ("[evaluation]\nheld_out = { last = 1.5 }", "evaluation.held_out = {last = 1.5}: must be a number at least 0"),
        ("[evaluation]\nheld_out = { first = 0.2 }", "evaluation.held_out = {first = 0.2}: must be a number"),
        ("[evaluation]\nheld_out = true", "evaluation.held_out = true: must be a number at least 0, at most 0.9"),
        (
            '[evaluation]\ndata = "x.npz"\nheld_out = { last = 0.1 }',
            "evaluation.data and evaluation.held_out: give one of them",
        ),
        ("[selection]\nminimum_count = 30", "selection.minimum_count = 30: is above selection.goal_count = 20"),
        ("[selection]\nwindow_seconds = 700.0", "selection.window_seconds = 700: is above selection.selection_seconds"),
        ("[training]\nseconds_max = 1200", "training.seconds_max = 1200: leaves no time to send the update before"),
        ("[stopping]\ntarget_metric = 0.9", "stopping.target_metric: nothing is evaluated; set evaluation.data"),
        ("[stopping]\npatience = 3", "stopping.patience: nothing is evaluated"),
        (
            "[evaluation]\nheld_out = 0.1\n[stopping]\ntarget_metric = 95",
            "stopping.target_metric = 95: an accuracy is above 0 and at most 1",
        ),
        ('[evaluation]\ndata = "x.npz"\nheld_out = 0.1', "evaluation.data and evaluation.held_out: give one of them"),
        ("[aggregation]\nmomentum = 0.9", "aggregation.momentum: fedavg has only learning_rate"),
        (
            '[aggregation]\nserver_optimizer = "sgd"',
            "aggregation.server_optimizer = 'sgd': must be one of fedavg, fedavgm, fedadagrad, fedadam, fedyogi, or",
        ),
        (
            '[aggregation]\nserver_optimizer = "mine:Own"\nmomentum = 0.9',
            "aggregation.momentum: mine:Own is your own; use [aggregation.server_options]",
        ),
        (
            "[aggregation]\nserver_options = { eta = 0.1 }",
            "aggregation.server_options: are for a server optimiser of your own; fedavg has keys in [aggregation]",
        ),
        ("[[aggregation.step]]\nnorm = 1.0", "aggregation.step[0].name: is missing; give "),
        (
            '[codec]\nname = "int8"\ndensity = 0.1',
            "codec.density: is not read by int8, which reads block_size, rounding",
        ),
        (
            "[training]\nmomentum = 0.9",
            'training.momentum: needs model.optimizer = "momentum" or "nesterov", not "sgd"',
        ),
        ("[training]\nproximal_mu = 0.1", "model.proximal and training.proximal_mu: go together"),
        ("[training]\nscalars = { lr = 0.1 }", "training.scalars.lr: is set by training.learning_rate"),
        ("[training]\nscalars = { beta1 = 0.1 }", "training.scalars.beta1: a model with optimizer sgd has no further"),
        (
            "[transfer]\npartial_bytes_max = 65536",
            "transfer.partial_bytes_per_device_max = 33554432: is above transfer.partial_bytes_max = 65536",
        ),
        ('[broker]\nurl = "http://x"', "broker.url: broker address: it must begin with mqtt:// or mqtts://"),
        ('[broker]\nurl = "mqtt://x"\nhost = "y"', "broker.url and broker.host: give one of them"),
        ("[broker]\nport = 1883", "broker.port: goes with broker.host"),
        ('[broker]\npassword_file = "p"', "broker.password_file: needs broker.username too"),
        ('[broker]\ncert_file = "c"\nurl = "mqtts://x"', "broker.cert_file and broker.key_file: give both or neither"),
        ('[broker]\nca_file = "c"', "broker.url: is plain mqtt://, but certificates are given; use mqtts://"),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    # A bare key must stand before the first table.
    said = refusal(tmp_path, f"{text}\n{SMALL}" if not text.startswith("[") else f"{SMALL}{text}\n")
    assert said.startswith(f"{tmp_path / 'federation.toml'}: {message}"), said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "model.zoo, model.onnx and model.bundle: give exactly one of them"),
        ('zoo = "mlp"\nbundle = "x"', "model.zoo, model.onnx and model.bundle: give exactly one of them"),
        ('onnx = "x"', 'model.loss: model.onnx needs it, for example loss = "softmax_cross_entropy"'),
        ('onnx = "x"\nloss = "hinge"\ninputs = [3]', "model.inputs: is fixed by model.onnx"),
        ('zoo = "mlp"\ntrain = ["fc*"]', "model.train: goes with model.onnx, not with model.zoo"),
        ('onnx = "x"\nloss = "hinge"\ntrain = "fc*"', "model.train = 'fc*': must be a list of names"),
        ('bundle = "x"\noptimizer = "adam"', "model.optimizer: is fixed by model.bundle"),
        ('zoo = "linear_svm"\nhidden = [3]', "model.hidden = [3]: linear_svm has no hidden layers; use mlp"),
        ('zoo = "softmax_regression"\noutputs = 1', "model.outputs = 1: softmax_regression needs at least 2"),
        ('zoo = "cnn"', "model.inputs = [64]: cnn takes [channels, height, width]"),
        ('zoo = "mlp"\ninputs = [0]', "model.inputs[0] = 0: must be a list of whole numbers, each at least 1"),
        ('zoo = "mlp"\ninputs = []', "model.inputs = (): must be a list of whole numbers, each at least 1"),
        ('zoo = "mlp"\nnormalise = "global"', "model.normalise = 'global': must be one of \"federated\""),
        ('zoo = "mlp"\nnormalise = "none"\nmissing = "mean"', 'model.missing: needs model.normalise = "federated"'),
        ('onnx = "x"\nloss = "hinge"\nnormalise_axis = 2', "model.normalise_axis: needs model.normalise ="),
        ('bundle = "x"\nnormalise = "local"', "model.normalise: is fixed by model.bundle"),
        (
            'onnx = "x"\nloss = "hinge"\nnormalise = "local"\nmissing = "mean"\nmissing_indicator = true',
            "model.missing_indicator: goes with model.zoo",
        ),
        (
            'zoo = "mlp"\nnormalise = "local"\nmissing_indicator = true',
            'model.missing_indicator: needs model.missing = "mean"',
        ),
        ('zoo = "mlp"\nnormalise = "local"\nnormalise_axis = 2', "model.normalise_axis = 2: model.inputs = [64]"),
        ('zoo = "mlp"\nnormalise = "local"\nnormalise_clip = 0.0', "model.normalise_clip = 0.0: must be"),
        ('zoo = "mlp"\nnormalise = "local"\nnormalise_minimum = 0', "model.normalise_minimum = 0: must be"),
        ('zoo = "perceptron"', "model.zoo = 'perceptron': must be one of \"linear_regression\""),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(tmp_path: Path, model: str, message: str) -> None:
    said = refusal(tmp_path, f'[federation]\nname = "demo"\n[model]\n{model}\n')
    assert message in said, said


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    said = refusal(
        tmp_path, '[federation]\nname = "no slash/please"\n[model]\nzoo = "mlp"\nhiden = [3]\n[store]\nx = 1\n'
    )
    assert [line.split(": ")[1].split(" ")[0] for line in said.splitlines()] == [
        "federation.name",
        "model.hiden",
        "store.x",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "0",
        "1.5",
        '""',
        '"x"',
        "true",
        "[]",
        '["x"]',
        "{}",
        "{ x = 1 }",
        "1979-05-27",
        "inf",
        "nan",
        "9" * 400,
        "1e300",
    ],
)
def test_any_value_anywhere_loads_or_is_refused_in_our_words(tmp_path: Path, value: str) -> None:
    for name, section in sections().items():
        for key_name in section.model_fields:
            tables: dict[str, str] = {"federation": 'name = "demo"', "model": 'zoo = "mlp"'}
            if f"{name}.{key_name}" in ("federation.name", "model.zoo"):
                tables[name] = ""
            tables[name] = f"{tables.get(name, '')}\n{key_name} = {value}"
            try:
                load(tmp_path, "".join(f"[{table}]\n{lines}\n" for table, lines in tables.items()))
            except ConfigurationError as error:
                assert str(error).startswith(f"{tmp_path / 'federation.toml'}: "), error
                assert len(str(error)) < 600


def test_missing_tables_and_keys_are_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[federation]\n")
    assert "federation.name: is missing; give 1 to 64 characters" in said
    assert "[model]: this table is missing" in said


def test_a_login_in_the_url_is_refused_and_never_repeated(tmp_path: Path) -> None:
    said = refusal(tmp_path, SMALL + '[broker]\nurl = "mqtt://me:hunter2@host"\n')
    assert "broker.url: holds a login; use broker.username and broker.password_file" in said and "hunter2" not in said


def test_a_file_that_is_not_toml_or_not_there_is_refused(tmp_path: Path) -> None:
    assert "is not valid TOML" in refusal(tmp_path, "[federation\n") and "line 1" in refusal(tmp_path, "[federation\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is not valid TOML"):
        load_config(tmp_path / "binary.toml")
    with pytest.raises(ConfigurationError, match=r"cannot be read .*docs/federation\.toml"):
        load_config(tmp_path / "none.toml")


# -- what it becomes ---------------------------------------------------------------------------------------------------


def test_held_out_data_are_described_as_a_device_describes_its_own(tmp_path: Path) -> None:
    table = '{ path = "log.csv", label = "state", where = "rpm > 0", window = { length = 5, horizon = 2 } }'
    config = load(tmp_path, SMALL + f"[evaluation]\ndata = {table}\n")
    window = Window(length=5, horizon=2)
    assert config.evaluation.data == ExamplesFile(
        tmp_path / "log.csv", label=("state",), where="rpm > 0", window=window
    )
    with pytest.raises(ConfigurationError, match=r"evaluation\.data: there is no file .*log\.csv"):
        check_files(config)


def test_devices_hold_out_a_share_or_the_newest_of_their_examples(tmp_path: Path) -> None:
    for written, expected in (("0.2", (0.2, False)), ("{ last = 0.25 }", (0.25, True)), ("0", (0.0, False))):
        config = load(tmp_path, SMALL + f"[evaluation]\nheld_out = {written}\n")
        asked = training_plan(config, {"lr": 0.1})
        assert (asked.held_out, asked.held_out_last) == expected


def test_tables_become_the_settings_of_the_machines(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        SMALL
        + '[training]\nlearning_rate = 0.5\nepochs = 3\n[aggregation]\nserver_optimizer = "fedadam"\nbeta1 = 0.8\n'
        '[selection]\ngoal_count = 7\nminimum_count = 3\n[codec]\nname = "int4"\nblock_size = 64\n'
        "bytes_per_update_max = 20000\n[transfer]\nbytes_per_device_per_day_max = 3000000\n"
        "[evaluation]\nheld_out = 0.2\n[stopping]\ntarget_metric = 0.9\n[validation]\nnorm_max = 5\n",
    )
    asked = plan(config, {"lr": 0.1})
    assert asked.training == training_plan(config, {"lr": 0.1})
    assert (asked.training.scalars, asked.training.epochs, asked.training.held_out) == ({"lr": 0.5}, 3, 0.2)
    assert asked.codec == codec_settings(config) == CodecSettings("int4", block_size=64)
    assert (asked.bytes_per_update_max, asked.bytes_per_device_per_day_max) == (20_000, 3_000_000)
    assert server_optimizer(config.aggregation) == FedAdam(beta1=0.8)
    assert (round_settings(config.selection).goal_count, round_settings(config.selection).minimum_count) == (7, 3)
    assert stopping_rule(config, "accuracy").target == 0.9
    assert validation_bounds(config.validation, size=10, examples_max=100).norm_max == 5.0
    assert piece_bytes_max(config.transfer) == 59_400
    assert database_path(config) == tmp_path / "state" / "demo-default.db"
    Store(database_path(config), wall=lambda: 0.0, new_id=bytes, **store_limits(config)).close()


def test_what_is_left_open_is_the_optimisers_own(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert training_plan(config, {"lr": 0.001, "beta1": 0.9}).scalars == {"lr": 0.001, "beta1": 0.9}
    assert server_optimizer(config.aggregation) == FedAvg()


def test_a_scalar_that_the_program_lacks_is_refused(tmp_path: Path) -> None:
    text = '[federation]\nname = "demo"\n[model]\nbundle = "m"\n[training]\nmomentum = 0.9\n'
    with pytest.raises(ConfigurationError, match=r"training\.momentum: the model has no scalar 'momentum'.*are lr"):
        training_plan(load(tmp_path, text), {"lr": 0.1})


def test_the_broker_is_reached_as_the_file_says(tmp_path: Path) -> None:
    plain = broker_settings(load(tmp_path, SMALL).broker, client_id="c")
    assert (plain.host, plain.port, plain.tls, plain.client_id, plain.password) == ("localhost", 1883, None, "c", None)
    (tmp_path / "secret").write_text("hunter2\r\nanother line")
    text = SMALL + '[broker]\nhost = "b"\nca_file = "ca.pem"\nusername = "u"\npassword_file = "secret"\n'
    secure = broker_settings(load(tmp_path, text).broker)
    assert (secure.host, secure.port, secure.username, secure.password) == ("b", 8883, "u", "hunter2")
    assert secure.tls is not None and secure.tls.ca_file == str(tmp_path / "ca.pem")
    assert broker_settings(load(tmp_path, SMALL + '[broker]\nurl = "mqtts://b"\n').broker).port == 8883
    for content in (None, "", "\nx"):
        (tmp_path / "secret").unlink() if content is None else (tmp_path / "secret").write_text(content)
        with pytest.raises(ConfigurationError, match=r"broker\.password_file"):
            broker_settings(load(tmp_path, text).broker)


@pytest.mark.parametrize("zoo", ZOO)
def test_every_model_of_the_zoo_can_be_built_from_its_configuration(zoo: str) -> None:
    inputs: Any = [1, 8, 8] if zoo == "cnn" else [64]
    model = Model.model_validate({"zoo": zoo, "inputs": inputs})
    build_zoo_model(
        zoo,
        inputs=model.inputs,
        outputs=model.outputs,
        hidden=model.hidden_widths,
        activation=model.activation,
        channels=model.channels,
        seed=1,
    )
    assert model.metric == LOSSES[zoo_loss(zoo, model.outputs)].metric


def test_the_choices_are_those_of_the_code() -> None:
    assert literals("model", "zoo") == set(ZOO)
    assert literals("model", "activation") == set(ACTIVATIONS)
    assert literals("model", "loss") == set(LOSSES)
    assert literals("model", "optimizer") == set(OPTIMIZERS) == set(CLIENT_SCALARS)
    for name, optimizer in OPTIMIZERS.items():
        assert set(optimizer.scalars) - {"lr", "momentum"} == set(CLIENT_SCALARS[name])
    for name in SERVER_OPTIMIZERS:
        assert set(server_settings(name)) <= set(OPTIMIZER_KEYS.values()), "each has its key in [aggregation]"


# -- the documents -----------------------------------------------------------------------------------------------------


def test_the_reference_is_the_one_that_the_code_makes() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "coordinator.config"], capture_output=True, text=True, check=True
    ).stdout
    assert made == config_reference()
    assert (DOCS / "configuration.md").read_text() == made, "run: python -m coordinator.config > docs/configuration.md"


def test_every_key_is_described() -> None:
    for name, section in sections().items():
        for key_name, field in section.model_fields.items():
            assert field.description and field.description.endswith("."), f"{name}.{key_name}"


def test_the_example_loads_and_shows_every_key_with_its_default() -> None:
    load_config(DOCS / "federation.toml")
    text = (DOCS / "federation.toml").read_text()
    section, shown = "", {}
    for line in text.splitlines():
        if table := re.match(r"\[(\w+)\]", line):
            section = table[1]
        elif line_key := re.match(r"(# )?(\w+) = (.*?)(\s+#.*)?$", line):
            shown[section, line_key[2]] = (line_key[1] is not None, line_key[3])
    keys = {
        (name, key_name): field for name, model in sections().items() for key_name, field in model.model_fields.items()
    }
    own = {
        field.name: field.default for codec in CODECS.values() for field in settings_of(codec) if field.metadata["key"]
    }
    assert {key_name: shown.pop(("codec", key_name)) for key_name in own} == {
        key_name: (True, toml_text(default)) for key_name, default in own.items()
    }
    assert list(shown) == list(keys)
    for where, (commented, value) in shown.items():
        assert tomllib.loads(f"x = {value}"), where
        if commented and default_text(keys[where]).startswith("`"):
            assert value == toml_text(keys[where].get_default()), where


# --- several tasks ----------------------------------------------------------------------------------------------------

TWO_TASKS = """
[federation]
name = "farm"

[broker]
url = "mqtt://localhost"

[training]
epochs = 3
learning_rate = 0.2

[[task]]
name = "pumps"
[task.model]
zoo = "mlp"
inputs = [8]
outputs = 2

[[task]]
name = "fans"
[task.model]
zoo = "softmax_regression"
inputs = [4]
outputs = 3
[task.training]
learning_rate = 0.05
"""


def test_each_task_has_its_own_tables_in_front_of_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(TWO_TASKS)
    pumps, fans = load_tasks(path)
    assert (pumps.federation.task, fans.federation.task) == ("pumps", "fans")
    assert (pumps.model.zoo, fans.model.zoo) == ("mlp", "softmax_regression")
    assert (pumps.training.epochs, fans.training.epochs) == (3, 3)
    assert (pumps.training.learning_rate, fans.training.learning_rate) == (0.2, 0.05)
    assert load_config(path, "fans") == fans
    assert database_path(pumps) == database_path(fans) == tmp_path / "state" / "farm.db", "one for all tasks"
    with pytest.raises(ConfigurationError, match="has the tasks pumps, fans; say which with --task"):
        load_config(path)
    with pytest.raises(ConfigurationError, match=r"--task valves: .* has pumps, fans"):
        load_config(path, "valves")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "fans"', 'name = "pumps"', "task pumps: there are two of this name"),
        ('name = "fans"\n', "", "task 2: name is missing; give each"),
        ('name = "farm"', 'name = "farm"\ntask = "x"', "federation.task: the tasks are named in"),
        ("[task.training]", "[task.broker]", r"task fans: \[broker\] belongs to all tasks; write it once"),
        ("learning_rate = 0.05", "learning_rat = 0.05", "task fans: training.learning_rat: unknown key; did you mean"),
        ('name = "fans"', 'name = "a/b"', "task a/b: federation.task"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_with_its_name(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = tmp_path / "federation.toml"
    assert before in TWO_TASKS
    path.write_text(TWO_TASKS.replace(before, after))
    with pytest.raises(ConfigurationError, match=message):
        load_tasks(path)

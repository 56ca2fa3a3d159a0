"""The tables of ``federation.toml`` and all their keys. Defaults suit forty Raspberry Pis on LTE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, model_validator

from coordinator.config.fields import (
    ExamplesIn,
    HeldOut,
    LocalPath,
    Names,
    Patterns,
    Section,
    Segment,
    Share,
    Sizes,
    Switch,
    Weights,
    WhichHeldOut,
    key,
    named,
    to_tuple,
)
from coordinator.pipeline.step import STEPS
from coordinator.schedules.selection import RULES
from coordinator.server_optimizers import SERVER_OPTIMIZERS, server_settings
from edge_sdk.aggregation.algorithm import ALGORITHMS
from edge_sdk.codecs import CODECS, CodecSettings, find_codec, settings_of
from edge_sdk.device.limits import BYTES_PER_DAY_MIN
from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import is_dotted
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.training.names import LABELS_OF_TWO, NAMES_MAX, features_width

__all__ = [
    "Aggregation",
    "Broker",
    "Codec",
    "DownlinkSection",
    "Evaluation",
    "Federation",
    "FederationConfig",
    "Model",
    "Selection",
    "Stopping",
    "StoreSection",
    "Training",
    "Transfer",
    "Validation",
]

LINEAR: Final = ("linear_regression", "logistic_regression", "softmax_regression", "linear_svm")

BINARY: Final = ("logistic_regression", "linear_svm")
"""Models of the zoo that have one output for two classes."""

OPTIMIZER_KEYS: Final = {"learning_rate": "eta", **{name: name for name in ("momentum", "beta1", "beta2", "tau")}}
"""Keys of [aggregation], and the settings of server optimisers that they set."""

DOWNLINK_CODECS: Final = ("auto", "sparse", "none")

OF_THE_ZOO: Final = ("activation", "channels", "hidden", "inputs", "outputs", "seed")
OF_ONNX: Final = (
    *("class_axis", "class_weights", "freeze", "ignore_index", "label_smoothing"),
    *("lora", "lora_rank", "mask", "output", "train"),
)
"""Keys of [model] that go with one source of it alone."""

OF_ANY_SOURCE: Final = ("normalise_minimum",)
"""Keys of [model] that no bundle fixes."""

NAMES: Final = 'a list of names: ["rpm", "temperature"]'

PATTERNS: Final = 'a list of names, with * for anything: ["fc*"]'

CLIENT_SCALARS: Final = {
    "sgd": (),
    "momentum": (),
    "nesterov": (),
    "adam": ("beta1", "beta2", "epsilon"),
    "adamw": ("beta1", "beta2", "epsilon", "weight_decay"),
    "rmsprop": ("rho", "epsilon"),
}

METRICS: Final = {
    "mean_squared_error": "mean_squared_error",
    "mean_absolute_error": "mean_absolute_error",
    "huber": "mean_absolute_error",
    "reconstruction": "mean_squared_error",
}
"""What a loss is judged by, where that is not accuracy."""


Options = dict[str, bool | int | float | str]
"""Settings of a class, by its own names."""


class Federation(Section):
    """Who this is."""

    name: Segment = key(
        "Name of the federation: the part of every topic that keeps federations on one broker apart.",
        allowed="1 to 64 characters out of A-Z a-z 0-9 _ and -",
    )
    task: Segment = key(
        "Name of the task; another model under the same federation is another task.",
        "default",
        allowed="1 to 64 characters out of A-Z a-z 0-9 _ and -",
    )
    seed: int = key("Seed of everything drawn: cohorts, initial weights.", 0, ge=0, le=2**63 - 1)
    state_dir: LocalPath = key(
        "Directory of the database; a relative path starts at this file.", Path("state"), validate_default=True
    )
    database: Segment | None = key(
        "Name of the database there, without .db; the tasks of one file share it.",
        None,
        shown="the names of federation and task; with [[task]], of the federation",
        allowed="1 to 64 characters out of A-Z a-z 0-9 _ and -",
    )


class Broker(Section):
    """How to reach the MQTT broker: ``url``, or ``host`` and ``port``."""

    url: str = key(
        "Address of the broker; mqtts:// for TLS.",
        "mqtt://localhost:1883",
        allowed="text: mqtt://host:port, or mqtts://host:port",
    )
    host: str | None = key("Name or address of the broker, in place of url.", None, shown="none", min_length=1)
    port: int | None = key("Port, with host.", None, shown="1883, or 8883 with a ca_file or cert_file", ge=1, le=65_535)
    username: str | None = key("Name to log in with.", None, shown="none", min_length=1)
    password_file: LocalPath | None = key(
        "File whose first line is the password (under systemd: a credential).", None, shown="none"
    )
    ca_file: LocalPath | None = key("PEM file of the authorities to trust.", None, shown="the system's")
    cert_file: LocalPath | None = key("PEM file of the coordinator's own certificate.", None, shown="none")
    key_file: LocalPath | None = key("PEM file of its private key.", None, shown="none")
    keepalive_seconds: int = key("A ping is sent after so much silence.", 30, ge=5, le=65_535)
    protocol: Literal["auto", "5", "3.1.1"] = key("MQTT version; auto tries 5 and falls back to 3.1.1.", "auto")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.host is not None and "url" in self.model_fields_set:
            raise ValueError("broker.url and broker.host: give one of them")
        if self.port is not None and self.host is None:
            raise ValueError("broker.port: goes with broker.host; with broker.url, write it into the url")
        if "@" in self.url:
            raise ValueError("broker.url: holds a login; use broker.username and broker.password_file")
        try:
            plain = BrokerSettings.parse(self.url).tls is None
        except ConfigurationError as error:
            raise ValueError(f"broker.url: {error}") from None
        if self.host is None and plain and (self.ca_file or self.cert_file):
            raise ValueError("broker.url: is plain mqtt://, but certificates are given; use mqtts://")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("broker.cert_file and broker.key_file: give both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("broker.password_file: needs broker.username too")
        return self


class Model(Section):
    """The model: one of the zoo, an ONNX file, or a compiled bundle."""

    zoo: (
        Literal["linear_regression", "logistic_regression", "softmax_regression", "linear_svm", "mlp", "cnn"] | None
    ) = key("A model of the zoo.", None, shown="none: give zoo, onnx or bundle")
    bundle: LocalPath | None = key(
        "A bundle made by `edge-coordinator compile`; it fixes all other keys of this table.",
        None,
        shown="none: give zoo, onnx or bundle",
    )
    onnx: LocalPath | None = key(
        "An inference model as ONNX, exported from PyTorch, Keras, scikit-learn; needs loss.",
        None,
        shown="none: give zoo, onnx or bundle",
    )
    inputs: Sizes = key(
        "Shape of one example; [channels, height, width] for cnn.",
        (64,),
        unit="elements",
        shown="as many as features and categories name, or [64]",
        min_length=1,
        max_length=8,
    )
    outputs: int = key(
        "Number of classes or of predicted values; 1 for a yes/no model.",
        10,
        unit="values",
        shown="as many as labels names, or 10",
        ge=1,
        le=1_000_000,
    )
    features: Names = key(
        "Names of the input's columns, in order: devices find the columns of their files by them.",
        (),
        allowed=NAMES,
        shown="none: devices take columns as they come",
        max_length=NAMES_MAX,
    )
    categories: dict[str, Names] = key(
        "Features that are texts, and what they may be: each becomes as many columns as it has names, 1 for the name "
        "that stands there. An integer input of the name of a category gets the position in the list.",
        {},
        allowed='a table: {fuel = ["diesel", "petrol"]}',
    )
    labels: Names = key(
        "Names of the classes, in order; devices may give labels by them.",
        (),
        allowed='a list of names: ["ok", "fault"]',
        shown="none: labels are numbers",
        max_length=NAMES_MAX,
    )
    hidden: Sizes | None = key(
        "Widths of the hidden layers of mlp and cnn.", None, unit="units", shown="[64, 32] for mlp, [] for cnn"
    )
    activation: Literal["relu", "tanh", "sigmoid"] = key("Activation of the hidden layers of mlp and cnn.", "relu")
    channels: Sizes = key(
        "Output channels of the two convolutions of cnn.", (16, 32), unit="channels", min_length=2, max_length=2
    )
    loss: (
        Literal[
            "softmax_cross_entropy",
            "binary_cross_entropy",
            "mean_squared_error",
            "mean_absolute_error",
            "huber",
            "hinge",
            "reconstruction",
        ]
        | None
    ) = key("What is minimised.", None, shown="the model's own")
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"] = key(
        "Optimiser on the devices.", "sgd"
    )
    proximal: bool = key("Compile FedProx's proximal term in; training.proximal_mu sets its weight.", False)
    weight_decay: bool = key("Compile weight decay in; training.scalars.weight_decay sets it (default 0).", False)
    clip_gradients: bool = key(
        "Scale each step's gradients down to the norm training.scalars.gradient_norm_max (default 1).", False
    )
    output: str | None = key("With onnx: the output that the loss is computed on.", None, shown="the first one")
    train: Patterns = key(
        "With onnx: only parameters whose names fit are trained and travel; a full name also asks for a constant.",
        (),
        allowed=PATTERNS,
        shown="[] for all",
    )
    freeze: Patterns = key("With onnx: parameters whose names fit are not trained.", (), allowed=PATTERNS)
    lora: Patterns = key(
        "With onnx: weights that get low-rank adapters; only these, and what train names, are trained.",
        (),
        allowed=PATTERNS,
    )
    lora_rank: int = key("Rank of the adapters.", 8, unit="columns", ge=1, le=99_999)
    class_weights: Weights = key(
        "With onnx and softmax_cross_entropy: one factor for each class.", (), allowed="a list of numbers, at least 0"
    )
    label_smoothing: bool = key(
        "With onnx and softmax_cross_entropy: compile in training.scalars.label_smoothing (default 0.1).", False
    )
    ignore_index: int | None = key(
        "With onnx and softmax_cross_entropy: a label that is not counted.", None, unit="label", shown="none"
    )
    class_axis: int | None = key(
        "With onnx and softmax_cross_entropy: the output's axis of classes.",
        None,
        unit="axis",
        shown="1 for [batch, classes, height, width], else the last",
    )
    mask: str | None = key(
        "With onnx: an input, of the model or a new one, that is 0 at positions that do not count in the loss.",
        None,
        shown="none",
        min_length=1,
    )
    loop: Switch = key(
        "Compile a graph in that makes many steps in one run; auto measures at the task's start if it is faster.",
        "auto",
        allowed='"auto", true or false',
    )
    seed: int | None = key("Seed of the initial weights.", None, shown="federation.seed", ge=0, le=2**63 - 1)
    normalise: Literal["federated", "local", "none"] | None = key(
        "Let the model take raw units: it begins by normalising its one float32 input, with mean and scale of the "
        "examples of the first cohort's devices (federated) or of each device's own (local).",
        None,
        shown="federated with zoo, none with onnx",
    )
    normalise_axis: int | None = key(
        "The input's dimension that counts features, where 0 is the batch.",
        None,
        unit="axis",
        shown="1 before convolutions and for images, else the last",
        ge=1,
        le=7,
    )
    normalise_clip: float = key(
        "Raw values count in the sums of features as if they were within plus and minus this; a feature of which most "
        "values are beyond it is refused.",
        1e6,
        unit="the features' units",
        gt=0,
        le=1e30,
    )
    normalise_target: Switch = key(
        "Normalise the target in training, too; the model gives raw units, and evaluations are in them. auto: with the "
        "losses mean_squared_error, mean_absolute_error and huber.",
        "auto",
        allowed='"auto", true or false',
    )
    normalise_minimum: int | None = key(
        "Devices whose sums of features are needed before the first round; one device's sums tell its averages.",
        None,
        unit="devices",
        shown="selection.minimum_count",
        ge=1,
        le=1_000_000,
    )
    missing: Literal["refuse", "mean"] = key(
        "What becomes of NaN in the normalised input: the device refuses its examples, or the model takes the mean of "
        "the feature.",
        "refuse",
    )
    missing_indicator: bool = key(
        'With zoo and missing = "mean": give the model one more input for each feature, 1 where it is missing.', False
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_names(cls, given: Any) -> Any:
        """A model of the zoo is as wide as its columns, and has as many classes as there are labels."""
        if not isinstance(given, dict) or "zoo" not in given:
            return given
        sizes: dict[str, Any] = {}
        features, labels = _names(given.get("features")), _names(given.get("labels"))
        categories = given.get("categories")
        if features:
            texts = categories.items() if isinstance(categories, dict) else ()
            sizes["inputs"] = [features_width(features, {name: _names(listed) for name, listed in texts})]
        if labels:
            binary = given["zoo"] in BINARY or given.get("loss") in LABELS_OF_TWO
            sizes["outputs"] = 1 if binary and len(labels) == 2 else len(labels)
        return {**sizes, **given}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(source is not None for source in (self.zoo, self.onnx, self.bundle)) != 1:
            raise ValueError("model.zoo, model.onnx and model.bundle: give exactly one of them")
        given = sorted(self.model_fields_set - {"bundle", "zoo", "onnx"} - set(OF_ANY_SOURCE))
        if self.bundle is not None and given:
            raise ValueError(f"model.{given[0]}: is fixed by model.bundle; leave it out, or compile another bundle")
        fixed = [name for name in given if name in OF_THE_ZOO]
        if self.onnx is not None and fixed:
            raise ValueError(f"model.{fixed[0]}: is fixed by model.onnx; leave it out")
        foreign = [name for name in given if name in OF_ONNX]
        if self.zoo is not None and foreign:
            raise ValueError(f"model.{foreign[0]}: goes with model.onnx, not with model.zoo")
        if self.onnx is not None and self.loss is None:
            raise ValueError('model.loss: model.onnx needs it, for example loss = "softmax_cross_entropy"')
        if self.zoo in LINEAR and self.hidden:
            raise ValueError(f"model.hidden = {list(self.hidden)}: {self.zoo} has no hidden layers; use mlp")
        if self.zoo == "softmax_regression" and self.outputs < 2:
            raise ValueError("model.outputs = 1: softmax_regression needs at least 2; use logistic_regression")
        if self.zoo == "cnn" and len(self.inputs) != 3:
            raise ValueError(f"model.inputs = {list(self.inputs)}: cnn takes [channels, height, width]")
        self._check_normalise(given)
        return self

    def _check_normalise(self, given: Sequence[str]) -> None:
        if self.normalise_mode == "none":
            useless = [name for name in given if name.startswith(("normalise_", "missing"))]
            if useless:
                raise ValueError(f'model.{useless[0]}: needs model.normalise = "federated" or "local"')
        if self.missing_indicator and self.zoo is None:
            raise ValueError("model.missing_indicator: goes with model.zoo; an ONNX model has the inputs that it has")
        if self.missing_indicator and self.missing != "mean":
            raise ValueError('model.missing_indicator: needs model.missing = "mean"; NaN is refused otherwise')
        if self.normalise_axis is not None and self.zoo is not None and self.normalise_axis > len(self.inputs):
            raise ValueError(
                f"model.normalise_axis = {self.normalise_axis}: model.inputs = {list(self.inputs)} has the dimensions "
                f"1 to {len(self.inputs)}"
            )

    @property
    def normalise_mode(self) -> str:
        """Where mean and scale come from, with the default of the model's source."""
        return self.normalise or ("none" if self.zoo is None else "federated")

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """The widths of the hidden layers, with the default of the model."""
        if self.hidden is not None:
            return self.hidden
        return (64, 32) if self.zoo == "mlp" else ()

    @property
    def metric(self) -> str | None:
        """What the model is judged by; None: its bundle says."""
        if self.bundle is not None:
            return None
        loss = self.loss or ("mean_squared_error" if self.zoo == "linear_regression" else "")
        return METRICS.get(loss, "accuracy")


def _names(value: object) -> list[str]:
    """The names, where it is a list of such; what else it may be is refused elsewhere."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else []


class Training(Section):
    """What a device does in one round."""

    epochs: int = key("Passes over the local examples.", 1, unit="passes", ge=1, le=10_000)
    batch_size: int = key("Examples a step.", 32, unit="examples", ge=1, le=1 << 20)
    learning_rate: float | None = key(
        "Learning rate on the devices.",
        None,
        shown="the optimiser's: 0.1, or 0.001 for adam, adamw, rmsprop",
        gt=0,
        le=1000,
    )
    momentum: float | None = key("Momentum, with optimizer momentum.", None, shown="0.9", ge=0, lt=1)
    steps_max: int = key("Steps after which a device stops; 0 for no limit.", 0, unit="steps", ge=0, le=1 << 31)
    seconds_max: float = key("Time after which a device stops and reports what it has.", 600.0, gt=0, le=1e6)
    proximal_mu: float | None = key(
        "Weight of FedProx's proximal term, with model.proximal; usual: 0.001 to 1.", None, shown="none", ge=0, le=1e6
    )
    clip_norm: float = key("L2 norm to which a device scales its delta down; 0 for no clipping.", 0.0, ge=0, le=1e9)
    scalars: dict[str, float] = key(
        "Further scalar inputs of the training graph by name (adam: beta1, beta2, epsilon; a bundle: its own).",
        {},
        max_length=29,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = {"lr": "learning_rate", "momentum": "momentum", "mu": "proximal_mu"}
        for name in self.scalars.keys() & own.keys():
            raise ValueError(f"training.scalars.{name}: is set by training.{own[name]}")
        return self


class Selection(Section):
    """Who takes part in a round, and how long it may take.

    `rule` may be the user's own class, named `package.module:Class` (see extend.md).
    """

    goal_count: int = key("Updates after which a round closes.", 20, unit="devices", ge=1, le=1_000_000)
    minimum_count: int = key(
        "Updates below which a round is abandoned and the model stays as it is.", 10, unit="devices", ge=1, le=1_000_000
    )
    rule: str = key("Who takes part, out of those who ask.", "uniform", allowed=named(RULES))
    rule_options: Options = key(
        "Settings of a selection rule of one's own.", {}, shown="its own defaults", allowed="a table of its settings"
    )
    over_selection: float = key("Devices invited / goal_count: some drop out.", 1.3, ge=1, le=10)
    window_seconds: float = key("Check-ins are spread over this time; nobody is chosen before.", 30.0, ge=0, le=86_400)
    gather_seconds: float = key(
        "Least time that check-ins are waited for, unless all devices that are known to be free have come; with less, "
        "those that answer first are chosen in every round.",
        2.0,
        ge=0,
        le=86_400,
    )
    fraction: Share = key(
        "Share of all devices asked to check in; auto goes by how many were seen lately.",
        "auto",
        allowed='"auto", or a number above 0, at most 1',
    )
    selection_seconds_max: float = key("Time to find enough devices.", 600.0, gt=0, le=1e6)
    configuration_seconds_max: float = key("Time for the invited to accept or decline.", 60.0, gt=0, le=1e6)
    reporting_seconds_max: float = key("Time for them to train and to send their updates.", 1200.0, gt=0, le=1e6)
    come_back_seconds: float = key(
        "When a device that was turned away asks again, unless a round is announced before.", 900.0, gt=0, le=1e6
    )
    jitter: float = key("Share by which come_back_seconds varies either way.", 0.2, ge=0, lt=1)
    pause_seconds: float = key("Time between the end of a round and the next one.", 10.0, ge=0, le=1e7)
    retry_seconds: float = key("Time between an abandoned round and the next attempt.", 60.0, ge=0, le=1e7)
    retry_seconds_max: float = key(
        "Longest such time: it doubles with each attempt that fails because most devices were refused, or declined.",
        3600.0,
        ge=0,
        le=1e7,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.minimum_count > self.goal_count:
            raise ValueError(
                f"selection.minimum_count = {self.minimum_count}: is above selection.goal_count = {self.goal_count}"
            )
        if self.rule not in RULES and not is_dotted(self.rule):
            raise ValueError(f"selection.rule = {self.rule!r}: must be {named(RULES)}")
        if self.rule_options and not is_dotted(self.rule):
            raise ValueError(f"selection.rule_options: are for a rule of your own; {self.rule} has none")
        if self.window_seconds > self.selection_seconds_max:
            raise ValueError(
                f"selection.window_seconds = {self.window_seconds:g}: is above selection.selection_seconds_max = "
                f"{self.selection_seconds_max:g}, so that a round would end before anybody was chosen"
            )
        return self


class StepTable(Section):
    """One step of the pipeline: its name, and its own settings beside."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    name: str = key("Which step.", min_length=1)

    @property
    def settings(self) -> dict[str, object]:
        """The step's own settings."""
        return dict(self.model_extra or {})


Steps = Annotated[tuple[StepTable, ...], BeforeValidator(to_tuple)]


class Aggregation(Section):
    """How updates become the next model.

    `algorithm` makes one delta out of all updates, and `server_optimizer` moves the model by it. Either may be the
    user's own class, named `package.module:Class`. Each `[[aggregation.step]]` is a step that updates pass before they
    are added, in order. [algorithms.md](algorithms.md) says which to choose.
    """

    algorithm: str = key(
        "How updates become one delta: their mean, or a rule that bears some hostile ones (median, trimmed_mean), or "
        "one for devices that do unequal numbers of steps (fednova).",
        "mean",
        allowed=named(ALGORITHMS),
    )
    options: Options = key(
        "The algorithm's own settings.", {}, shown="its own defaults", allowed="a table of the algorithm's settings"
    )
    step: Steps = key(
        "Steps that updates pass, each a table `[[aggregation.step]]` with its name and its settings.",
        (),
        shown="none",
        allowed=f"tables with a name, {named(STEPS)}",
        max_length=16,
    )
    server_optimizer: str = key(
        "Server optimiser.",
        "fedavg",
        allowed=named(SERVER_OPTIMIZERS),
    )
    server_options: Options = key(
        "Settings of a server optimiser of one's own.", {}, shown="its own defaults", allowed="a table of its settings"
    )
    learning_rate: float | None = key(
        "Learning rate of the server.", None, shown="fedavg, fedavgm 1.0; fedadagrad 0.1; others 0.01", gt=0, le=1000
    )
    momentum: float | None = key("Momentum of fedavgm.", None, shown="0.9", ge=0, lt=1)
    beta1: float | None = key("Decay of the mean, adaptive optimisers.", None, shown="0.9; fedadagrad 0.0", ge=0, lt=1)
    beta2: float | None = key("Decay of the square, fedadam and fedyogi.", None, shown="0.99", ge=0, lt=1)
    tau: float | None = key("Degree of adaptivity, adaptive optimisers.", None, shown="0.001", gt=0, le=1000)
    weighting: Literal["examples", "uniform"] = key(
        "Weight of an update: its number of examples, or 1 for all.", "examples"
    )
    examples_max: int = key(
        "Largest number of examples that an update may claim as its weight.", 100_000, unit="examples", ge=1, le=1 << 27
    )

    @property
    def server_settings(self) -> dict[str, Any]:
        """The settings of the server optimiser, by its own names."""
        given = {own: getattr(self, written) for written, own in OPTIMIZER_KEYS.items()}
        return {**{name: value for name, value in given.items() if value is not None}, **self.server_options}

    @model_validator(mode="after")
    def _check(self) -> Self:
        name = self.server_optimizer
        if is_dotted(name):
            for written in OPTIMIZER_KEYS:
                if getattr(self, written) is not None:
                    raise ValueError(f"aggregation.{written}: {name} is your own; use [aggregation.server_options]")
            return self
        if name not in SERVER_OPTIMIZERS:
            raise ValueError(
                f"aggregation.server_optimizer = {name!r}: must be one of {', '.join(SERVER_OPTIMIZERS)}, or the name "
                'of your own class, "package.module:Class"'
            )
        if self.server_options:
            raise ValueError(
                f"aggregation.server_options: are for a server optimiser of your own; {name} has keys in [aggregation]"
            )
        allowed = [written for written, own in OPTIMIZER_KEYS.items() if own in server_settings(name)]
        for written in OPTIMIZER_KEYS:
            if getattr(self, written) is not None and written not in allowed:
                raise ValueError(f"aggregation.{written}: {name} has only {', '.join(allowed)}")
        return self


class CodecOfTensors(Section):
    """How tensors whose names match a pattern are compressed."""

    model_config = ConfigDict(extra="allow")
    name: str = key("As in [codec].", allowed=named(CODECS))

    @model_validator(mode="after")
    def _check(self) -> Self:
        _checked_codec("codec.tensors", self.name, self.own)
        return self

    @property
    def own(self) -> dict[str, Any]:
        """The keys of the codec itself."""
        return self.model_extra or {}


class Codec(Section):
    """How updates are compressed.

    Beside these keys the table takes those of the codec, which stand below. `name` may be your own class
    (see extend.md), with the keys that it declares; the devices must have it too.
    """

    model_config = ConfigDict(extra="allow")
    name: str = key(
        "auto: eden, sparse_rows, sparse or int8, chosen for each update; sparse: largest coordinates with error "
        "feedback; sparse_rows: rows of tables that are not zero, the rest as eden; eden: rotated coordinates in few "
        "bits, unbiased; int8, int4, int2: all coordinates, quantised; float16, dense: as they are.",
        "auto",
        allowed=named(CODECS),
    )
    bytes_per_update_max: int = key(
        "Bytes on the wire that bringing one update may take, with topics, headers and acknowledgements; sparse, eden "
        "and auto are made smaller to fit, with another codec a device declines. 0 for no limit.",
        0,
        ge=0,
        le=1 << 50,
    )
    tensors: dict[str, CodecOfTensors] = key(
        'Tensors that are compressed apart, by patterns of their names: `"*.bias" = { name = "dense" }`; the first '
        "pattern that matches decides.",
        {},
        max_length=16,
        allowed="a table of patterns, each with a name and keys of that codec",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _checked_codec("codec", self.name, self.own)
        return self

    @property
    def own(self) -> dict[str, Any]:
        """The keys of the codec itself."""
        return self.model_extra or {}


def _checked_codec(where: str, name: str, own: Mapping[str, Any]) -> CodecSettings:
    """The codec with its keys; what is wrong is said as for other keys."""
    try:
        kind = find_codec(name, f"{where}.name")
        filled = [field.name for field in settings_of(kind) if not field.metadata["key"] and field.name in own]
        if filled:
            raise ConfigurationError(f"codec.{filled[0]}: is filled in by the coordinator; leave it out")
        return CodecSettings(kind.name, **own)
    except ConfigurationError as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else said.replace("codec", where, 1)) from None


class DownlinkSection(Section):
    """How the model travels to devices that hold an earlier one; newcomers fetch it whole."""

    codec: str = key(
        "auto: as many of the largest changes as hold enough of their energy (a tenth with fedavg, six tenths with "
        "other server optimisers), the rest with later rounds; sparse: a fixed share of them; none: whole models. "
        "Models below 512 bytes always travel whole.",
        "auto",
        allowed="one of " + ", ".join(f'"{name}"' for name in DOWNLINK_CODECS),
    )
    density: float = key(
        "Share of the coordinates that sparse sends; 0.02 costs fedavg nothing, and optimisers with momentum rounds.",
        0.1,
        ge=1e-6,
        le=1,
    )
    deltas_max: int = key(
        "Rounds that a device may have missed and still get only what has changed.", 64, unit="rounds", ge=1, le=128
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.codec not in DOWNLINK_CODECS:
            raise ValueError(f"downlink.codec = {self.codec!r}: must be one of {', '.join(DOWNLINK_CODECS)}")
        if "density" in self.model_fields_set and self.codec != "sparse":
            raise ValueError(
                f"downlink.density: is not read by {self.codec}; leave it out, or choose another downlink.codec"
            )
        return self


class Validation(Section):
    """What an update must satisfy to be counted."""

    loss_max: float = key(
        "Largest absolute value of the training loss, and of loss and metric of one example in an evaluation.",
        1e12,
        gt=0,
        le=1e30,
    )
    norm_max: float | None = key("Largest L2 norm of an update.", None, shown="none", gt=0, le=1e12)
    norm_median_factor: float | None = key(
        "Largest norm of an update as a multiple of the median of recent ones; usual: 3 to 10.",
        None,
        shown="none",
        gt=1,
        le=1e6,
    )
    value_max: float = key("Largest absolute value of one element of an update.", 32.0, gt=0, le=1e6)


class Evaluation(Section):
    """How the model is judged."""

    data: ExamplesIn | None = key(
        "Held-out examples on the coordinator, in any file that a device takes; as a table also which columns and rows "
        'of it: `{ path = "log.csv", label = "state" }`. Where some are marked `is_test`, only these count.',
        None,
        shown="none",
        allowed="a path, or a table as [data] of device.toml",
    )
    held_out: WhichHeldOut = key(
        "Share of its examples that each device keeps from training, for federated evaluation; without data. A number "
        "draws them; `{ last = 0.2 }` takes the last ones in their order, which is that of time where the device's "
        "data name a time.",
        HeldOut(),
        shown="`0.0`",
        allowed="a number at least 0, at most 0.9, or { last = such a number }",
    )
    every_rounds: int = key("Evaluate after every so many rounds.", 1, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is not None and self.held_out.share:
            raise ValueError("evaluation.data and evaluation.held_out: give one of them")
        return self


class Stopping(Section):
    """When the federation ends."""

    rounds_max: int = key("Rounds after which it ends; 0 for no limit.", 100, ge=0, le=1 << 30)
    target_metric: float | None = key(
        "Value to reach: at least this accuracy, or at most this mean squared error.", None, shown="none"
    )
    patience: int = key(
        "Evaluations without an improvement after which it ends; 0 for never.", 0, unit="evaluations", ge=0, le=1 << 30
    )
    min_delta: float = key("Smallest change of the metric that is an improvement.", 0.001, ge=0, le=1e6)
    divergence_rounds: int = key(
        "Rounds in a row, or attempts at one, that must look diverged before it ends; 0 for never.",
        3,
        unit="rounds",
        ge=0,
        le=1 << 30,
    )
    divergence_factor: float = key(
        "A round looks diverged whose loss is not a number, or so many times as large as the first one while the "
        "metric is no better than then.",
        100.0,
        gt=1,
        le=1e30,
    )


class Transfer(Section):
    """How bytes travel, and how many are held."""

    chunk_bytes_max: int = key(
        "Largest payload of one message; models and updates travel in pieces of this size.",
        60_000,
        ge=4096,
        le=250_000,
    )
    retained_blobs: Literal["auto", "always", "never"] = key(
        "Whether models are also put on the broker as retained messages, which serve many devices at once.", "auto"
    )
    bytes_per_device_per_day_max: int = key(
        "Bytes that one device may send and receive in a day (UTC), with everything that MQTT adds and an estimate for "
        "TLS; a device at the limit stays away until the next day. At least 16384, or 0 for no limit.",
        0,
        ge=0,
        le=1 << 50,
    )
    partial_bytes_max: int = key("Unfinished uploads held of all devices.", 256 << 20, ge=1 << 16, le=1 << 40)
    partial_bytes_per_device_max: int = key(
        "Unfinished uploads held of one device; no larger update can arrive.", 32 << 20, ge=1 << 16, le=1 << 34
    )
    journal_bytes_max: int = key("Whole updates held for the open round.", 512 << 20, ge=1 << 16, le=1 << 40)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 0 < self.bytes_per_device_per_day_max < BYTES_PER_DAY_MIN:
            raise ValueError(
                f"transfer.bytes_per_device_per_day_max = {self.bytes_per_device_per_day_max}: is too little for a "
                f"connection; use at least {BYTES_PER_DAY_MIN}, or 0 for no limit"
            )
        if self.partial_bytes_per_device_max > self.partial_bytes_max:
            raise ValueError(
                f"transfer.partial_bytes_per_device_max = {self.partial_bytes_per_device_max}: is above "
                f"transfer.partial_bytes_max = {self.partial_bytes_max}"
            )
        return self


class StoreSection(Section):
    """What the database keeps."""

    checkpoints_kept: int = key("Newest checkpoints kept.", 5, unit="checkpoints", ge=1, le=100_000)
    tombstone_days: int = key("Time for which the verdict on a ticket is remembered.", 30, ge=1, le=3650)


class FederationConfig(Section):
    """The whole file."""

    federation: Federation
    broker: Broker = Broker()
    model: Model
    training: Training = Training()
    selection: Selection = Selection()
    aggregation: Aggregation = Aggregation()
    codec: Codec = Codec()
    downlink: DownlinkSection = DownlinkSection()
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    stopping: Stopping = Stopping()
    transfer: Transfer = Transfer()
    store: StoreSection = StoreSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_training()
        self._check_stopping()
        if self.training.seconds_max >= self.selection.reporting_seconds_max:
            raise ValueError(
                f"training.seconds_max = {self.training.seconds_max:g}: leaves no time to send the update before "
                f"selection.reporting_seconds_max = {self.selection.reporting_seconds_max:g}"
            )
        return self

    def _check_training(self) -> None:
        model, training = self.model, self.training
        if model.bundle is not None:
            return
        if training.momentum is not None and model.optimizer not in ("momentum", "nesterov"):
            raise ValueError(
                f'training.momentum: needs model.optimizer = "momentum" or "nesterov", not "{model.optimizer}"'
            )
        if model.proximal != (training.proximal_mu is not None):
            raise ValueError("model.proximal and training.proximal_mu: go together; give both or neither")
        if model.onnx is not None:
            return  # its scalars are known once it is compiled
        allowed = (
            *CLIENT_SCALARS[model.optimizer],
            *(("weight_decay",) if model.weight_decay else ()),
            *(("gradient_norm_max",) if model.clip_gradients else ()),
            *(("huber_delta",) if model.loss == "huber" else ()),
        )
        for name in training.scalars:
            if name not in allowed:
                known = ", ".join(allowed) or "no further scalars"
                raise ValueError(f"training.scalars.{name}: a model with optimizer {model.optimizer} has {known}")

    def _check_stopping(self) -> None:
        stopping, evaluated = self.stopping, self.evaluation.data is not None or self.evaluation.held_out.share > 0
        for name, wanted in (
            ("target_metric", stopping.target_metric is not None),
            ("patience", stopping.patience > 0),
        ):
            if wanted and not evaluated:
                raise ValueError(f"stopping.{name}: nothing is evaluated; set evaluation.data or evaluation.held_out")
        target = stopping.target_metric
        if target is None:
            return
        if self.model.metric == "accuracy" and not 0 < target <= 1:
            raise ValueError(f"stopping.target_metric = {target:g}: an accuracy is above 0 and at most 1")
        if target < 0:
            raise ValueError(f"stopping.target_metric = {target:g}: no metric is below 0")

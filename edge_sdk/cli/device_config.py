"""``device.toml``: a device's configuration for people who write no code, read with the standard library alone.

What is wrong is said with the file, the key, the value and what is allowed; all of it at once, one line each.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from edge_sdk.device.eligibility import Rules
from edge_sdk.device.limits import MAY_BE_ZERO, Limits
from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import is_dotted
from edge_sdk.mqtt import BrokerSettings, TlsSettings
from edge_sdk.training.data.opening import DATABASES, SUFFIXES
from edge_sdk.training.data.row_filter import parse_filter
from edge_sdk.training.data.settings import ExamplesFile, Window
from edge_sdk.wire.topics import is_segment

__all__ = ["CREDENTIAL", "KEYS", "DeviceConfig", "Key", "load_data_table", "load_device_config"]

CREDENTIAL: Final = "mqtt-password"
"""Name of the systemd credential that holds the broker's password."""

VALUE_CHARACTERS_MAX: Final = 60
TEXT_CHARACTERS_MAX: Final = 1_000
BYTES_MAX: Final = 1 << 50
ROWS_MAX: Final = 1 << 40
WINDOW_ROWS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file.

    Attributes:
        kind: ``name`` (part of a topic), ``text``, ``path``, ``file`` (must exist), ``whole``, ``number``, ``switch``,
            ``dotted`` (``package.module:Name``), ``dotted by name`` (a table of such), ``names`` (a list of texts),
            ``name or names``, ``window`` (a table of numbers).
        default: Where the file says nothing; ``REQUIRED`` where it must say something.
        low, high: Limits of a number.
        choices: Of a text, what it may be.
    """

    kind: str
    default: Any = None
    low: float = 0
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def allowed(self) -> str:
        """What may be written, in words."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        words = {
            "name": "1 to 64 characters out of A-Z a-z 0-9 _ and -",
            "text": "text",
            "path": "a path, as text",
            "file": "a path, as text",
            "whole": "a whole number",
            "number": "a number",
            "switch": "true or false",
            "dotted": 'the name of your own class, such as "mypackage.mymodule:MyClass"',
            "dotted list": 'a list of your own classes, such as ["mypackage.mymodule:MyClass"]',
            "names": 'a list of names, such as ["rpm", "temperature"]',
            "name or names": 'a name, or a list of names such as ["left", "right"]',
            "window": "a table such as {length = 60, step = 10, horizon = 5, gap = 2.5}",
            "dotted by name": 'your own classes by name, such as {mine = "mypackage.mymodule:MyClass"}',
        }[self.kind]
        if self.kind not in ("whole", "number"):
            return words
        return f"{words} from {self.low:g}" + ("" if self.high in (math.inf, BYTES_MAX) else f" to {self.high:g}")

    def accepts(self, value: object) -> bool:
        """Whether the value is of the kind and within the limits; nothing is converted."""
        match self.kind:
            case "switch":
                return isinstance(value, bool)
            case "whole" | "number":
                kinds = int if self.kind == "whole" else int | float
                return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
            case "name":
                return isinstance(value, str) and is_segment(value)
            case "dotted":
                return isinstance(value, str) and is_dotted(value)
            case "dotted list":
                return isinstance(value, list) and all(isinstance(v, str) and is_dotted(v) for v in value)
            case "names":
                return _are_names(value)
            case "name or names":
                return _are_names([value] if isinstance(value, str) else value)
            case "window":
                return isinstance(value, dict) and "length" in value and all(map(_fits_window, value, value.values()))
            case "dotted by name":
                return isinstance(value, dict) and all(isinstance(v, str) and is_dotted(v) for v in value.values())
            case _:
                return _is_text(value) and (not self.choices or value in self.choices)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX and value.isprintable()


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)


WINDOW: Final = {
    "length": Key("whole", low=1, high=WINDOW_ROWS_MAX),
    "step": Key("whole", low=1, high=WINDOW_ROWS_MAX),
    "horizon": Key("whole", low=0, high=WINDOW_ROWS_MAX),
    "gap": Key("number", low=0, high=1e18),
}


def _fits_window(name: str, value: object) -> bool:
    return name in WINDOW and WINDOW[name].accepts(value)


REQUIRED: Final = object()


def _limit(name: str) -> Key:
    low = 0 if name in MAY_BE_ZERO else 1
    return Key("whole", getattr(Limits(), name), low, BYTES_MAX if "bytes" in name else 1 << 30)


KEYS: Final[dict[str, dict[str, Key]]] = {
    "device": {
        "id": Key("name", REQUIRED),
        "federation": Key("name", REQUIRED),
        "task": Key("name", "default"),
        "engine": Key("text", "auto", choices=("auto", "onnxruntime", "numpy")),
        "state_dir": Key("path"),
    },
    "broker": {
        "url": Key("text"),
        "host": Key("text"),
        "port": Key("whole", None, 1, 65_535),
        "username": Key("text"),
        "password_file": Key("file"),
        "ca_file": Key("file"),
        "cert_file": Key("file"),
        "key_file": Key("file"),
        "client_id": Key("text"),
        "keepalive_seconds": Key("whole", 30, 5, 65_535),
        "protocol": Key("text", "auto", choices=("auto", "5", "3.1.1")),
    },
    "data": {
        "path": Key("file", REQUIRED),
        "features": Key("names"),
        "label": Key("name or names"),
        "where": Key("text"),
        "window": Key("window"),
        "time": Key("text"),
        "group": Key("text"),
        "rows_max": Key("whole", 0, 0, ROWS_MAX),
        "table": Key("text"),
        "query": Key("text"),
    },
    "limits": {field.name: _limit(field.name) for field in fields(Limits)},
    "eligibility": {
        "charging": Key("switch", False),
        "unmetered": Key("switch", False),
        "temperature_celsius_max": Key("number", None, -40, 150),
        "load_max": Key("number", None, 0, 10_000),
        "memory_available_bytes_min": Key("whole", None, 0, BYTES_MAX),
    },
    "extend": {"trainer": Key("dotted"), "algorithms": Key("dotted by name"), "codecs": Key("dotted list")},
    "status": {"publish": Key("switch", True)},
}


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device, as its file describes it.

    Attributes:
        path: The file.
        device: Name of the device.
        federation: Name of the federation.
        task: Name of the task.
        engine: ``auto``, ``onnxruntime`` or ``numpy``.
        state_dir: Where the device keeps what must survive a power cut.
        broker: How to reach the broker.
        password_file: Where the password was read, None without one.
        data: The examples.
        limits: How far the device may go.
        rules: When it may work.
        publish_status: Whether its status is published for people.
        trainer: Dotted name of the class that trains in place of the engine, None for none.
        algorithms: Dotted names of local algorithms, by the name that a plan asks for.
        codecs: Dotted names of codecs.
    """

    path: Path
    device: str
    federation: str
    task: str
    engine: str
    state_dir: Path
    broker: BrokerSettings
    password_file: Path | None
    data: ExamplesFile
    limits: Limits
    rules: Rules
    publish_status: bool
    trainer: str | None = None
    algorithms: Mapping[str, str] = field(default_factory=dict)
    codecs: tuple[str, ...] = ()


def load_device_config(path: Path, environment: Mapping[str, str]) -> DeviceConfig:
    """Read and check a device's configuration.

    Args:
        path: The TOML file; relative paths inside start at its directory.
        environment: Of systemd: ``STATE_DIRECTORY`` is the default of ``device.state_dir``, and
            ``CREDENTIALS_DIRECTORY`` may hold the broker's password under ``CREDENTIAL``.

    Raises:
        ConfigurationError: The file cannot be read, or holds an unknown key, a wrong value or a contradiction.
    """
    try:
        with path.open("rb") as file:
            source = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); docs/device.toml is an example to begin with"
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number with too many digits
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from error
    directory = path.absolute().parent
    values, problems = _values(source, directory)
    if not problems:
        problems = _contradictions(values)
    if problems:
        raise ConfigurationError("\n".join(f"{path}: {problem}" for problem in problems))
    try:
        return _config(path, directory, values, environment)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def load_data_table(given: object, directory: Path) -> ExamplesFile:
    """The table ``[data]`` of a ``device.toml`` alone, for others who read what a device reads.

    Args:
        given: The table, as TOML has it; the file that it names need not be there yet.
        directory: Where relative paths start.

    Raises:
        ConfigurationError: A key is unknown or has a wrong value; all are listed, each with its name.
    """
    values, problems = _table_values("data", {**KEYS["data"], "path": Key("path", REQUIRED)}, given, directory)
    problems = problems or _of_data(values)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return _data(values)


def _values(source: dict[str, Any], directory: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """All keys with their values or defaults, and what is wrong."""
    problems = [f"{_shown_key(name)}: unknown table{_nearest_table(name)}" for name in source if name not in KEYS]
    values: dict[str, dict[str, Any]] = {}
    for table, keys in KEYS.items():
        values[table], wrong = _table_values(table, keys, source.get(table, {}), directory)
        problems += wrong
    return values, problems


def _table_values(
    table: str, keys: Mapping[str, Key], given: object, directory: Path
) -> tuple[dict[str, Any], list[str]]:
    problems = []
    if not isinstance(given, dict):
        problems.append(f"{table}: must be a table, [{table}]")
        given = {}
    problems += [f"{table}.{name}: unknown key{_nearest_key(table, name)}" for name in given if name not in keys]
    values: dict[str, Any] = {}
    for name, key in keys.items():
        values[name], problem = _value(key, given, name, directory)
        if problem:
            problems.append(f"{table}.{name}{problem}")
    return values, problems


def _value(key: Key, given: dict[str, Any], name: str, directory: Path) -> tuple[Any, str]:
    if name not in given:
        return (None, f": is missing; give {key.allowed()}") if key.default is REQUIRED else (key.default, "")
    value = given[name]
    if not key.accepts(value):
        return None, f" = {_shown(value)}: must be {key.allowed()}"
    if key.kind not in ("path", "file"):
        return value, ""
    found = directory / value
    missing = key.kind == "file" and not _is_file(found)
    return found, f" = {_shown(value)}: there is no file {found}" if missing else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _contradictions(values: dict[str, dict[str, Any]]) -> list[str]:
    broker = values["broker"]
    given = {name for name, value in broker.items() if value is not None}
    problems = []
    if ("url" in given) == ("host" in given):
        problems.append('broker.url and broker.host: give one of them, such as url = "mqtt://broker.local:1883"')
    if "port" in given and "host" not in given:
        problems.append("broker.port: goes with broker.host; with broker.url, write it into the url")
    if "url" in given and "@" in broker["url"]:
        problems.append("broker.url: holds a login; use broker.username and broker.password_file")
    if "url" in given and not broker["url"].startswith("mqtts:") and given & {"ca_file", "cert_file"}:
        problems.append("broker.url: is plain mqtt://, but certificates are given; use mqtts://")
    if ("cert_file" in given) != ("key_file" in given):
        problems.append("broker.cert_file and broker.key_file: give both or neither")
    return problems + _of_data(values["data"])


def _of_data(data: dict[str, Any]) -> list[str]:
    suffix = data["path"].suffix.lower()
    if suffix not in SUFFIXES:
        return [
            f"data.path: ends in {suffix!r}; a file of examples ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        ]
    problems = []
    given = [name for name in data if name != "path" and data[name]]
    if suffix == ".npz" and given:
        problems.append(
            f'data.{given[0]}: goes with a file of rows; of an .npz the arrays are taken by name, the target is "y" or '
            '"target"'
        )
    if suffix in DATABASES and bool(data["table"]) == bool(data["query"]):
        problems.append('data.table and data.query: give one of them, such as table = "readings"')
    if suffix not in DATABASES and (data["table"] or data["query"]):
        problems.append(f"data.table and data.query: go with a database, not with a file that ends in {suffix!r}")
    if data["window"] and "gap" in data["window"] and not data["time"]:
        problems.append("data.window.gap: is a difference of times; name the column: data.time")
    try:
        if data["where"]:
            parse_filter(data["where"])
    except ConfigurationError as error:
        problems.append(f"data.where: {error}; write comparisons such as machine == 3 and rpm > 0")
    return problems


def _config(
    path: Path, directory: Path, values: dict[str, dict[str, Any]], environment: Mapping[str, str]
) -> DeviceConfig:
    device = values["device"]
    password_file = values["broker"]["password_file"] or _credential(environment)
    state_dir = device["state_dir"] or environment.get("STATE_DIRECTORY", "").split(":")[0] or "edgefed-state"
    return DeviceConfig(
        path=path,
        device=device["id"],
        federation=device["federation"],
        task=device["task"],
        engine=device["engine"],
        state_dir=directory / state_dir,
        broker=_broker(values["broker"], password_file, device["id"]),
        password_file=password_file,
        data=_data(values["data"]),
        limits=Limits(**values["limits"]),
        rules=Rules(**values["eligibility"]),
        publish_status=values["status"]["publish"],
        trainer=values["extend"]["trainer"],
        algorithms=values["extend"]["algorithms"] or {},
        codecs=tuple(values["extend"]["codecs"] or ()),
    )


def _data(data: dict[str, Any]) -> ExamplesFile:
    given = {name: value for name, value in data.items() if value is not None}
    for name in given.keys() & {"features", "label"}:
        given[name] = (given[name],) if isinstance(given[name], str) else tuple(given[name])
    if "window" in given:
        given["window"] = Window(**given["window"])
    return ExamplesFile(**given)


def _broker(broker: dict[str, Any], password_file: Path | None, device: str) -> BrokerSettings:
    given = {name: str(broker[name]) for name in ("ca_file", "cert_file", "key_file") if broker[name] is not None}
    settings: dict[str, Any] = {
        "username": broker["username"] or (device if password_file else None),
        "password": _password(password_file) if password_file else None,
        "client_id": broker["client_id"] or "",
        "keepalive_seconds": broker["keepalive_seconds"],
        "protocol": broker["protocol"],
    }
    if given:
        settings["tls"] = TlsSettings(**given)
    if broker["url"] is not None:
        return BrokerSettings.parse(broker["url"], **settings)
    return BrokerSettings(host=broker["host"], port=broker["port"] or (8883 if given else 1883), **settings)


def _credential(environment: Mapping[str, str]) -> Path | None:
    directory = environment.get("CREDENTIALS_DIRECTORY")
    found = Path(directory) / CREDENTIAL if directory else None
    return found if found is not None and found.is_file() else None


def _password(path: Path) -> str:
    try:
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"broker.password_file: {path} cannot be read ({error}); check its owner and mode"
        ) from None
    if not first:
        raise ConfigurationError(f"broker.password_file: the first line of {path} is empty; write the password there")
    return first


def _nearest_table(name: str) -> str:
    elsewhere = [table for table, keys in KEYS.items() if name in keys]
    near = elsewhere[:1] or difflib.get_close_matches(name, KEYS, n=1)
    if elsewhere:
        return f"; {name} belongs into [{elsewhere[0]}]"
    return f"; did you mean [{near[0]}]?" if near else f"; there are {', '.join(f'[{table}]' for table in KEYS)}"


def _nearest_key(table: str, name: str) -> str:
    near = difflib.get_close_matches(name, KEYS[table], n=1)
    elsewhere = [other for other, keys in KEYS.items() if name in keys]
    if near:
        return f"; did you mean {near[0]}?"
    if elsewhere:
        return f"; did you mean {elsewhere[0]}.{name}?"
    return f"; [{table}] has {', '.join(KEYS[table])}"


def _shown_key(name: str) -> str:
    return name if is_segment(name) else repr(name[:VALUE_CHARACTERS_MAX])


def _shown(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 3] + "..."

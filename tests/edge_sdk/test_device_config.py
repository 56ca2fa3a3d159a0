"""device.toml: the example is complete and true, and every mistake is said with file, key, value and remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.cli.device_config import CREDENTIAL, KEYS, REQUIRED, DeviceConfig, load_device_config
from edge_sdk.device.eligibility import Rules
from edge_sdk.device.limits import Limits
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.settings import ExamplesFile, Window

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "device.toml"
UNIT = EXAMPLE.with_name("edge-device.service")
SMALLEST = """
[device]
id = "pi-1"
federation = "plant"
[broker]
url = "mqtt://broker.local"
[data]
path = "x.csv"
"""
Load = Callable[..., DeviceConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a text, beside which all files lie that it may name."""
    for name in ("x.csv", "x.npz", "x.txt", "x.db", "examples.csv", "ca.pem", "device.pem", "device.key", "readable"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    (tmp_path / "password").write_text("s3cret\nsecond line\n")
    (tmp_path / "empty").write_text("\n")

    def make(text: str, **environment: str) -> DeviceConfig:
        path = tmp_path / "device.toml"
        path.write_text(text)
        return load_device_config(path, environment)

    return make


def uncommented(text: str) -> str:
    """The example with every key in force."""
    return re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)


def test_the_example_loads_as_it_is(load: Load, tmp_path: Path) -> None:
    config = load(EXAMPLE.read_text())
    assert (config.device, config.federation, config.task, config.engine) == ("pi-0001", "demo", "default", "auto")
    assert config.broker.address == "broker.local:1883" and config.broker.tls is None
    assert config.data == ExamplesFile(tmp_path / "examples.csv")
    assert config.state_dir == tmp_path / "edgefed-state"
    assert config.limits == Limits() and config.rules == Rules() and config.publish_status


def test_the_example_shows_every_key_and_its_true_default() -> None:
    shown = tomllib.loads(uncommented(EXAMPLE.read_text()))
    assert {table: set(keys) for table, keys in shown.items()} == {table: set(keys) for table, keys in KEYS.items()}
    commented = set(re.findall(r"^# (\w+) = ", EXAMPLE.read_text(), flags=re.MULTILINE))
    for table, keys in KEYS.items():
        for name, key in keys.items():
            assert key.accepts(shown[table][name]), f"{table}.{name}"
            if name in commented and key.default not in (None, REQUIRED, False):
                assert shown[table][name] == key.default, f"{table}.{name}"


def test_the_limits_of_the_file_are_the_limits_of_the_client() -> None:
    assert set(KEYS["limits"]) == {field.name for field in fields(Limits)}
    assert {name: key.default for name, key in KEYS["limits"].items()} == {
        field.name: field.default for field in fields(Limits)
    }


def test_every_key_reaches_its_place(load: Load, tmp_path: Path) -> None:
    config = load(
        """
        device = {id = "a", federation = "f", task = "t", engine = "numpy", state_dir = "/var/lib/x"}
        data = {path = "x.csv", label = "b"}
        status = {publish = false}
        [broker]
        host = "h"
        username = "u"
        password_file = "password"
        ca_file = "ca.pem"
        cert_file = "device.pem"
        key_file = "device.key"
        keepalive_seconds = 60
        protocol = "3.1.1"
        [extend]
        trainer = "mypackage:Mine"
        algorithms = {own = "mypackage.local:Own", "other" = "m:A.B"}
        codecs = ["mypackage.codec:Mine"]
        [limits]
        examples_min = 2
        program_bytes_max = 3
        parameters_bytes_max = 4
        cache_bytes_max = 0
        outbox_bytes_max = 6
        state_write_bytes_per_day_max = 7
        threads = 8
        [eligibility]
        charging = true
        unmetered = true
        temperature_celsius_max = 70
        load_max = 0.5
        memory_available_bytes_min = 9
        """
    )
    broker = config.broker
    assert config.trainer == "mypackage:Mine"
    assert config.algorithms == {"own": "mypackage.local:Own", "other": "m:A.B"}
    assert config.codecs == ("mypackage.codec:Mine",)
    assert (config.device, config.federation, config.task, config.engine) == ("a", "f", "t", "numpy")
    assert config.state_dir == Path("/var/lib/x") and config.data.label == ("b",) and not config.publish_status
    assert (broker.host, broker.port, broker.username, broker.password) == ("h", 8883, "u", "s3cret")
    assert broker.tls is not None
    assert (broker.tls.ca_file, broker.tls.cert_file, broker.tls.key_file) == tuple(
        str(tmp_path / name) for name in ("ca.pem", "device.pem", "device.key")
    )
    assert (broker.keepalive_seconds, broker.protocol) == (60, "3.1.1")
    assert config.limits == Limits(2, 3, 4, 0, 6, 7, 8)
    assert config.rules == Rules(True, True, 70, 0.5, 9)


def test_everything_that_may_be_said_of_the_data_reaches_the_reader(load: Load, tmp_path: Path) -> None:
    text = """
        path = "x.db"
        features = ["rpm", "load"]
        label = ["left", "right"]
        where = "rpm > 0"
        window = {length = 60, step = 10, horizon = 5, gap = 2.5}
        time = "at"
        group = "machine"
        rows_max = 1000
        query = "SELECT 1"
        """
    assert load(SMALLEST.replace('path = "x.csv"', text)).data == ExamplesFile(
        tmp_path / "x.db",
        features=("rpm", "load"),
        label=("left", "right"),
        where="rpm > 0",
        window=Window(60, 10, 5, 2.5),
        time="at",
        group="machine",
        rows_max=1000,
        query="SELECT 1",
    )
    assert load(SMALLEST.replace('"x.csv"', '"x.db"\ntable = "t"')).data == ExamplesFile(tmp_path / "x.db", table="t")


def test_systemd_brings_the_password_and_the_state_directory(load: Load, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL).write_text("from systemd\n")
    config = load(SMALLEST, CREDENTIALS_DIRECTORY=str(credentials), STATE_DIRECTORY="/var/lib/edgefed:/var/lib/second")
    assert (config.broker.username, config.broker.password) == ("pi-1", "from systemd")
    assert config.state_dir == Path("/var/lib/edgefed")
    text = SMALLEST.replace("[data]", 'password_file = "password"\n[data]')
    assert load(text, CREDENTIALS_DIRECTORY=str(credentials)).broker.password == "s3cret"
    assert load(SMALLEST, CREDENTIALS_DIRECTORY=str(tmp_path / "none")).broker.password is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "pi-1"\n', "", "device.id: is missing; give 1 to 64 characters out of A-Z a-z 0-9 _ and -"),
        ('"pi-1"', '"pi 1"', "device.id = 'pi 1': must be 1 to 64 characters out of A-Z a-z 0-9 _ and -"),
        ('"pi-1"', "7", "device.id = 7: must be 1 to 64 characters"),
        (
            "[data]",
            "keepalive_second = 5\n[data]",
            "broker.keepalive_second: unknown key; did you mean keepalive_seconds?",
        ),
        ("[data]", "charging = true\n[data]", "broker.charging: unknown key; did you mean eligibility.charging?"),
        ("[data]", "zzzz = 1\n[data]", "broker.zzzz: unknown key; [broker] has url, host, port"),
        ("[data]", "[brocker]\n[data]", "brocker: unknown table; did you mean [broker]?"),
        ("[device]", "engine = 1\n[device]", "engine: unknown table; engine belongs into [device]"),
        ("[device]", '"a b" = 1\n[device]', "'a b': unknown table; there are [device], [broker]"),
        (
            "[data]",
            "keepalive_seconds = 4\n[data]",
            "broker.keepalive_seconds = 4: must be a whole number from 5 to 65535",
        ),
        ("[data]", "keepalive_seconds = 5.5\n[data]", "broker.keepalive_seconds = 5.5: must be a whole number"),
        ("[data]", "keepalive_seconds = true\n[data]", "broker.keepalive_seconds = true: must be a whole number"),
        ("[data]", 'protocol = "4"\n[data]', """broker.protocol = '4': must be one of "auto", "5", "3.1.1\""""),
        ("[data]", 'username = ""\n[data]', "broker.username = '': must be text"),
        ("[data]", 'host = "h"\n[data]', "broker.url and broker.host: give one of them"),
        ('url = "mqtt://broker.local"', "", "broker.url and broker.host: give one of them"),
        ("[data]", "port = 1883\n[data]", "broker.port: goes with broker.host"),
        ("mqtt://broker", "mqtt://me:s3cret@broker", "broker.url: holds a login; use broker.username"),
        ("mqtt://broker", "http://broker", "broker address: it must begin with mqtt:// or mqtts://"),
        ("[data]", 'ca_file = "ca.pem"\n[data]', "broker.url: is plain mqtt://, but certificates are given"),
        ("[data]", 'cert_file = "nope.pem"\n[data]', "broker.cert_file = 'nope.pem': there is no file"),
        ("[data]", 'key_file = "device.key"\n[data]', "broker.cert_file and broker.key_file: give both or neither"),
        ("[data]", 'password_file = "empty"\n[data]', "broker.password_file: the first line of"),
        ('"x.csv"', '"none.csv"', "data.path = 'none.csv': there is no file"),
        ('"x.csv"', '"x.txt"', "data.path: ends in '.txt'; a file of examples ends in .npz, .csv, .parquet, "),
        ('"x.csv"', '"x.db"', "data.table and data.query: give one of them"),
        ('"x.csv"', '"x.db"\ntable = "t"\nquery = "SELECT 1"', "data.table and data.query: give one of them"),
        ('"x.csv"', '"x.csv"\ntable = "t"', "go with a database, not with a file that ends in '.csv'"),
        ('"x.csv"', '"x.csv"\nfeatures = []', "data.features = []: must be a list of names, such as"),
        ('"x.csv"', '"x.csv"\nfeatures = "a"', "data.features = 'a': must be a list of names"),
        ('"x.csv"', '"x.csv"\nfeatures = ["a", "a"]', "data.features = ['a', 'a']: must be a list of names"),
        ('"x.csv"', '"x.csv"\nlabel = [1]', "data.label = [1]: must be a name, or a list of names"),
        ('"x.csv"', '"x.csv"\nwhere = "a = 1"', "data.where: '= 1' is no number, 'text', column or comparison; write"),
        ('"x.csv"', '"x.csv"\nwindow = {step = 1}', "data.window = {'step': 1}: must be a table such as {length = 60"),
        ('"x.csv"', '"x.csv"\nwindow = {length = 0}', "data.window = {'length': 0}: must be a table"),
        ('"x.csv"', '"x.csv"\nwindow = {length = 5, stp = 1}', "must be a table such as"),
        ('"x.csv"', '"x.csv"\nwindow = {length = 5, gap = 1}', "data.window.gap: is a difference of times; name"),
        ('"x.csv"', '"x.csv"\nrows_max = -1', "data.rows_max = -1: must be a whole number from 0"),
        (
            '"x.csv"',
            '"x.npz"\nlabel = "b"',
            "data.label: goes with a file of rows; of an .npz the arrays are taken by name",
        ),
        ("[data]", "[limits]\nthreads = 0\n[data]", "limits.threads = 0: must be a whole number from 1"),
        (
            "[data]",
            "[limits]\ncache_bytes_max = -1\n[data]",
            "limits.cache_bytes_max = -1: must be a whole number from 0",
        ),
        ("[data]", "[eligibility]\ncharging = 1\n[data]", "eligibility.charging = 1: must be true or false"),
        (
            "[data]",
            "[eligibility]\nload_max = nan\n[data]",
            "eligibility.load_max = nan: must be a number from 0 to 10000",
        ),
        ("[data]", '[extend]\ntrainer = "mine"\n[data]', "extend.trainer = 'mine': must be the name of your own class"),
        ("[data]", '[extend]\nalgorithms = ["a:B"]\n[data]', "must be your own classes by name, such as {mine ="),
        ("[data]", '[extend]\ncodecs = "a:B"\n[data]', "must be a list of your own classes, such as"),
        ("[data]", "[extend]\nalgorithms = {a = 1}\n[data]", "must be your own classes by name"),
        ("[device]", "status = 5\n[device]", "status: must be a table, [status]"),
        ("[data]", "[[limits]]\n[data]", "limits: must be a table, [limits]"),
        ("[device]", "[device", "is not valid TOML"),
    ],
)
def test_a_mistake_names_file_key_value_and_remedy(load: Load, old: str, new: str, words: str) -> None:
    assert old in SMALLEST
    with pytest.raises(ConfigurationError) as caught:
        load(SMALLEST.replace(old, new, 1))
    message = str(caught.value)
    assert words in message and "device.toml: " in message
    assert "s3cret" not in message


def test_all_mistakes_are_said_at_once(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load('[device]\nid = "a b"\ntaks = "x"\n[limits]\nthreads = "two"\n')
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all("device.toml: " in line for line in lines)


def test_a_file_that_is_not_there_says_where_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read .* docs/device\.toml is an example to begin with"):
        load_device_config(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    (tmp_path / "digits.toml").write_text("x = " + "9" * 5_000)
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    for name in ("latin", "digits", "deep"):
        with pytest.raises(ConfigurationError, match="is not valid TOML"):
            load_device_config(tmp_path / f"{name}.toml", {})


@pytest.mark.parametrize(
    "value",
    ["{}", "[]", f'"{"x" * 5000}"', f'"{"x" * 999}"', r'"a\u0000b"', "1979-05-27", "1e400", "-9223372036854775808"],
)
def test_no_value_of_any_kind_makes_it_fail_in_another_way(load: Load, value: str) -> None:
    for table, keys in KEYS.items():
        for name in keys:
            tables: dict[str, Any] = dict.fromkeys(KEYS, "")
            tables[table] = f"{name} = {value}"
            with pytest.raises(ConfigurationError):
                load("\n".join(f"[{t}]\n{line}" for t, line in tables.items()))


def test_the_unit_file_uses_what_the_program_reads() -> None:
    text = UNIT.read_text()
    assert f"LoadCredential={CREDENTIAL}:" in text
    assert "Type=notify" in text and "WatchdogSec=" in text and "StateDirectory=" in text
    assert "edge-device run --config" in text

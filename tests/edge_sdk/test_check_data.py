"""``edge-device check`` compares the data with the model before any round, and says how long certificates last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeBroker
from numpy.typing import NDArray
from one_federation import Federation, wait
from table_programs import table_program

from coordinator.config import load_config
from coordinator.setup import build_bundle
from device_sim.broker import PrivateBroker
from edge_sdk.cli.certificates import validity
from edge_sdk.cli.check import checks
from edge_sdk.cli.device_config import load_device_config
from edge_sdk.cli.findings import EXIT_BROKER, Finding
from edge_sdk.cli.fit import far_features
from edge_sdk.cli.task_model import FETCH_BYTES_MAX, Served, Statistics, cached_model, fetch_model, served_of
from edge_sdk.errors import EdgeFedError
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.training.names import column_names
from edge_sdk.wire.messages import RangeData, RangeRequest, short

TLS = Path(__file__).resolve().parents[1] / "data" / "tls"
NAMES = ("rpm", "temperature", "pressure")
MODEL: dict[str, Any] = {
    "zoo": "mlp",
    "hidden": [4],
    "inputs": (3,),
    "outputs": 2,
    "features": NAMES,
    "labels": ("ok", "fault"),
    "loop": False,
}
CENTRES = np.array([1480.0, 62.0, 4.2])
SPREADS = np.array([40.0, 3.0, 0.3])


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


def readings(seed: int, count: int = 60) -> tuple[NDArray[np.float64], list[str]]:
    rng = np.random.default_rng(seed)
    x = CENTRES + SPREADS * rng.standard_normal((count, 3))
    return x, ["fault" if row[1] > 63 else "ok" for row in x]


def device_toml(
    path: Path, url: str, federation: str, *, header: Iterable[str] = NAMES, rows: Any = None, **tables: str
) -> Path:
    """A device's configuration and its file; further lines per table as keywords."""
    x, y = readings(1) if rows is None else rows
    lines = [
        ",".join([*header, "state"]),
        *(",".join([*map(repr, map(float, r)), s]) for r, s in zip(x, y, strict=True)),
    ]
    (path / "log.csv").write_text("\n".join(lines) + "\n")
    own = {
        "device": f'id = "pi"\nfederation = "{federation}"\nstate_dir = "state"\nengine = "numpy"',
        "broker": f'url = "{url}"',
        "data": 'path = "log.csv"',
    }
    text = "\n".join(f"[{name}]\n{own.get(name, '')}\n{tables.get(name, '')}" for name in {**own, **tables})
    (path / "device.toml").write_text(text)
    return path / "device.toml"


def found(path: Path, **changes: Any) -> dict[str, list[Finding]]:
    by_subject: dict[str, list[Finding]] = {}
    for finding in checks(replace(load_device_config(path, {}), **changes)):
        by_subject.setdefault(finding.subject, []).append(finding)
    return by_subject


# ---- with a coordinator


def test_data_are_compared_with_the_model_of_a_coordinator_that_runs(broker: PrivateBroker, tmp_path: Path) -> None:
    with Federation(tmp_path / "coordinator", broker.url, "compared", model=MODEL):
        path = device_toml(tmp_path, broker.url, "compared")
        (finding,) = found(path)["examples"]
        assert finding.level == "ok" and "60 examples fit the model 'mlp' (fetched, " in finding.text
        path = device_toml(tmp_path, broker.url, "compared", header=("pressure", "rpm", "temperature"))
        assert found(path)["examples"][0].level == "ok", "the names decide, not the order"
        for header, data, words in (
            (("rpm", "temp", "pressure"), "", r"features ['temperature'] are not among the columns"),
            (("rpm", "temperature", "pressure", "humidity"), "", "there are columns ['humidity']"),
            (NAMES, 'where = "rpm > 1e9"', "there are none"),
            (NAMES, 'label = "rpm"', "'rpm' is a feature of the model; name another one"),
        ):
            x, y = readings(1)
            x = np.column_stack([x, x[:, :1]])[:, : len(header)]
            path = device_toml(tmp_path, broker.url, "compared", header=header, rows=(x, y), data=data)
            (finding,) = found(path)["examples"]
            assert finding.level == "FAIL" and words in finding.text, finding
        x, _ = readings(1)
        path = device_toml(tmp_path, broker.url, "compared", rows=(x, ["ok"] * 59 + ["broken"]))
        (finding,) = found(path)["examples"]
        assert finding.level == "FAIL" and "line 61, column 'state': the cell is none of 'ok', 'fault'" in finding.text
        path = device_toml(tmp_path, broker.url, "compared", rows=(x, ["ok"] * 60))
        assert found(path)["labels"][0].text == "all are of class 0 (ok): is it the right column, data.label?"
        path = device_toml(tmp_path, broker.url, "compared", limits="examples_min = 61")
        (finding,) = found(path)["examples"]
        assert finding.level == "FAIL" and "limits.examples_min asks for 61" in finding.text
        path = device_toml(tmp_path, broker.url, "compared", limits="program_bytes_max = 100")
        all_found = found(path)
        assert "raise limits.program_bytes_max" in all_found["model"][0].text
        assert all_found["examples"][0].level == "warn" and "not compared" in all_found["examples"][0].text


def test_where_no_coordinator_runs_the_model_in_the_state_directory_is_compared(
    broker: PrivateBroker, tmp_path: Path
) -> None:
    path = device_toml(tmp_path, broker.url, "cached")
    assert found(path)["examples"][0].text.startswith("not compared with the model")
    with Federation(tmp_path / "coordinator", broker.url, "cached", model=MODEL) as plant:
        data = load_device_config(path, {}).data
        with plant.client(tmp_path / "state", load_examples=lambda: data):
            wait(lambda: list((tmp_path / "state").glob("program-*")))
            running = found(path)
        assert running["examples"][0].text.endswith("(the one in the state directory)"), "nothing was fetched"
        assert "in use by process" in running["state"][0].text
    (finding,) = found(path)["examples"]
    assert finding.level == "ok" and finding.text.endswith("(the newest one in the state directory)")
    path = device_toml(tmp_path, broker.url, "cached", header=("rpm", "temp", "pressure"))
    assert found(path)["examples"][0].level == "FAIL"


def test_a_device_whose_features_are_of_another_kind_is_told_so(broker: PrivateBroker, tmp_path: Path) -> None:
    model = {**MODEL, "normalise": "federated", "normalise_minimum": 2}
    others = {}
    with Federation(tmp_path / "coordinator", broker.url, "ranges", model=model) as plant:
        path = device_toml(tmp_path, broker.url, "ranges")
        assert "no statistics of the features yet" in found(path)["ranges"][0].text
        x, y = readings(1)
        path = device_toml(tmp_path, broker.url, "ranges", rows=(x * [1, 1, 1e6], y))
        beyond, _ = found(path)["ranges"]
        assert beyond.level == "warn"
        assert beyond.text.startswith(
            "values of pressure (100%) are beyond +-1e+06 (model.normalise_clip): another unit"
        )
        path = device_toml(tmp_path, broker.url, "ranges")
        for number in range(2):
            x, y = readings(number + 10)
            others[number] = {**dict(zip(NAMES, x.T, strict=True)), "y": y}
        clients = [
            plant.client(tmp_path / f"pi{i}", device_id=f"pi{i}", load_examples=lambda own=own: own)  # type: ignore[misc]
            for i, own in others.items()
        ]
        with clients[0], clients[1]:
            wait(lambda: any(record.number >= 1 for record in plant.rounds), plant.tickets)
        assert found(path)["ranges"][0].text == "the means of all 3 features are near the federation's"
        x, y = readings(1)
        path = device_toml(tmp_path, broker.url, "ranges", rows=(x[:, [1, 0, 2]], y))
        (finding,) = found(path)["ranges"]
        assert finding.level == "warn" and finding.text.startswith("rpm and temperature look exchanged: their means")
        path = device_toml(tmp_path, broker.url, "ranges", rows=(x * [1, 1.8, 1] + [0, 32, 0], y))
        (finding,) = found(path)["ranges"]
        assert finding.level == "warn" and finding.text.startswith("temperature: its mean is 14")
        assert finding.text.endswith("another unit, or another column?")


# ---- asking for it


def bundle(path: Path, model: str = "") -> Bundle:
    text = '[federation]\nname = "f"\n[model]\nzoo = "mlp"\nhidden = [40]\nloop = false\n'
    (path / "federation.toml").write_text(f'{text}features = ["a", "b", "c"]\nnormalise = "federated"\n{model}')
    return build_bundle(load_config(path / "federation.toml"), verify=False)


class Coordinator:
    """What is asked of a coordinator, and what it answers: every byte, or some less."""

    def __init__(self, *blobs: bytes, loses: Callable[[int], bool] = lambda number: False) -> None:
        self.blobs = {short(digest_of(blob)): blob for blob in blobs}
        self.asked: list[tuple[int, int]] = []
        self.sent = 0
        self._loses = loses
        self._number = 0

    def ask(self, request: RangeRequest, is_enough: Callable[[], bool]) -> Iterator[RangeData]:
        blob = self.blobs[request.digest]
        self.asked += request.ranges
        for start, stop in request.ranges:
            self._number += 1
            if not self._loses(self._number) and not is_enough():
                self.sent += stop - start
                yield RangeData(digest=request.digest, offset=start, data=blob[start:stop])


def served(made: Bundle) -> tuple[Served, bytes, bytes]:
    program = made.program.encode()
    vector = made.parameters.copy()
    told = made.program.normalise
    assert told is not None
    for name, values in ((told.mean, [1480, 62, 4]), (told.scale, [0.5, 0.25, 0])):
        tensor = made.program.spec[name]
        vector[tensor.offset : tensor.offset + tensor.size] = values
    parameters = encode_parameters(vector)
    return (
        Served(digest_of(program), len(program), digest_of(parameters), len(parameters)),
        program,
        parameters,
    )


def test_the_program_comes_whole_and_of_the_parameters_the_statistics_alone(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    told, program, parameters = served(made)
    for loses in (lambda number: False, lambda number: number == 1):
        asked = Coordinator(program, parameters, loses=loses)
        model = fetch_model(told, asked.ask, tmp_path / "none", 1 << 20)
        assert model.program == made.program and model.source == f"fetched, {len(program)} bytes"
        assert model.statistics is not None and model.statistics.mean.tolist() == [1480, 62, 4]
        assert model.statistics.scale.tolist() == [0.5, 0.25, 0]
        assert asked.sent == len(program) + 2 * 3 * 4


def test_a_program_in_the_state_directory_is_not_fetched(tmp_path: Path) -> None:
    told, program, parameters = served(bundle(tmp_path))
    (tmp_path / f"program-{told.program.hex()}").write_bytes(program)
    asked = Coordinator(parameters)
    assert fetch_model(told, asked.ask, tmp_path, 1 << 20).source == "the one in the state directory"
    (tmp_path / f"program-{told.program.hex()}").write_bytes(program + b"?")
    with pytest.raises(KeyError):  # an entry whose bytes are not those of its name counts for nothing
        fetch_model(told, asked.ask, tmp_path, 1 << 20)
    assert cached_model(tmp_path, 1 << 20) is None


def test_what_cannot_be_had_says_why(tmp_path: Path) -> None:
    told, program, parameters = served(bundle(tmp_path))
    silent = Coordinator(program, parameters, loses=lambda number: True)
    with pytest.raises(EdgeFedError, match=r"sent 0 of the .* bytes of the model's program, and then nothing"):
        fetch_model(told, silent.ask, tmp_path, 1 << 20)
    with pytest.raises(EdgeFedError, match=r"this device takes 10: raise limits\.program_bytes_max"):
        fetch_model(told, silent.ask, tmp_path, 10)
    with pytest.raises(EdgeFedError, match="not fetched only to look"):
        fetch_model(replace(told, program_bytes=FETCH_BYTES_MAX + 1), silent.ask, tmp_path, 1 << 30)
    wrong = Coordinator(parameters)
    wrong.blobs[short(told.program)] = bytes(len(program))
    with pytest.raises(EdgeFedError, match="SHA-256 is another one"):
        fetch_model(told, wrong.ask, tmp_path, 1 << 20)
    assert not silent.sent


def test_statistics_that_do_not_come_are_none_and_so_are_those_of_the_beginning(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    told, program, parameters = served(made)
    (tmp_path / f"program-{told.program.hex()}").write_bytes(program)
    assert fetch_model(told, Coordinator(parameters, loses=lambda n: n > 1).ask, tmp_path, 1 << 20).statistics is None
    first = encode_parameters(made.parameters)
    begun = replace(told, parameters=digest_of(first), parameters_bytes=len(first))
    assert fetch_model(begun, Coordinator(first).ask, tmp_path, 1 << 20).statistics is None
    short_ = replace(told, parameters_bytes=len(parameters) + 4)
    assert fetch_model(short_, Coordinator(parameters).ask, tmp_path, 1 << 20).statistics is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"model": null}',
        b'{"model": {"program": 1, "program_bytes": 1, "parameters": "", "parameters_bytes": 1}}',
        b'{"model": {"program": "zz", "program_bytes": 1, "parameters": "", "parameters_bytes": 1}}',
        b'{"model": {"program": "' + b"00" * 32 + b'", "program_bytes": -1, "parameters": "", "parameters_bytes": 1}}',
        b'{"model": {"program": "' + b"00" * 31 + b'", "program_bytes": 1, "parameters": "' + b"00" * 32 + b'"}}',
        b"[" * 100_000,
    ],
)
def test_nonsense_about_the_model_is_as_good_as_nothing(payload: bytes) -> None:
    assert served_of(payload) is None


# ---- what is far away


def told_of(means: list[float], mean: list[float], deviation: list[float], own: list[float] | None = None) -> list[str]:
    scale = np.array([0 if d == 0 else 1 / d for d in deviation], np.float32)
    statistics = Statistics(np.array(mean, np.float32), scale)
    names = [f"f{i}" for i in range(len(means))]
    return list(far_features(names, np.array(means), np.array(own or [1.0] * len(means)), statistics))


def test_means_near_the_federations_are_not_worth_a_word() -> None:
    assert told_of([1500, 60, 7], [1480, 62, 7], [50, 4, 0], [50, 4, 0]) == []


def test_one_of_six_devices_with_exchanged_columns_is_seen_although_it_is_in_the_statistics() -> None:
    """Five devices have 1480 and 62, the sixth has them the other way round."""
    rpm, temperature = np.array([1480.0] * 5 + [62]), np.array([62.0] * 5 + [1480])
    mean, deviation = [rpm.mean(), temperature.mean()], [rpm.std(), temperature.std()]
    assert told_of([62, 1480], mean, deviation)[0].startswith("f0 and f1 look exchanged")
    assert told_of([1480, 62], mean, deviation) == []


def test_one_of_six_devices_with_another_unit_is_seen_although_it_is_in_the_statistics() -> None:
    fahrenheit = np.array([62.0] * 5 + [143.6])
    (line,) = told_of([143.6], [fahrenheit.mean()], [fahrenheit.std()])
    assert line.startswith("f0: its mean is 143.6 here") and line.endswith("another unit, or another column?")


def test_a_feature_that_never_varies_elsewhere_and_one_that_is_never_there() -> None:
    assert told_of([8], [7], [0]) == ["f0: its mean is 8 here, and it is always 7 in the federation"]
    assert told_of([float("nan")], [7], [1]) == []


def test_a_feature_that_varies_here_and_nowhere_else_is_said_since_the_model_does_not_see_it() -> None:
    assert told_of([7], [7], [0], [0.5]) == [
        "f0: it varies here (deviation 0.5), and is always 7 in the federation, so the model does not see it"
    ]


def test_features_are_named_as_the_columns_and_values_that_they_are() -> None:
    program = table_program(4, features=("load", "fuel", "rpm"), categories={"fuel": ("diesel", "petrol")})
    assert column_names(program.features, program.categories, 4) == ["load", "fuel=diesel", "fuel=petrol", "rpm"]
    assert column_names((), {}, 4) == ["feature 0", "feature 1", "feature 2", "feature 3"]


# ---- certificates

DAY = 86_400
IN_2026 = 1_769_904_000.0


def findings(path: Path, wall: float, monkeypatch: pytest.MonkeyPatch, **files: str) -> dict[str, Finding]:
    for name, text in files.items():
        (path / f"{name}.pem").write_text(text)
    keys = "\n".join(f'{name} = "{name}.pem"' for name in files)
    made = device_toml(path, "mqtts://127.0.0.1:9", "f", broker=keys)
    monkeypatch.setattr(time, "time", lambda: wall)
    return {name: listed[0] for name, listed in found(made).items() if name in ("certificate", "authority")}


def pem(*names: str) -> str:
    return "".join((TLS / f"{name}.pem").read_text() for name in names)


def test_certificates_tell_when_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (TLS / "client.key").read_text()
    told = findings(tmp_path, IN_2026, monkeypatch, ca_file=pem("authority"), cert_file=pem("client"), key_file=key)
    assert {f.level for f in told.values()} == {"ok"} and set(told) == {"certificate", "authority"}
    assert all(f.text.endswith("is valid until 2120-01-01") for f in told.values())
    ends = 4_733_510_400.0  # 2120-01-01
    soon = findings(
        tmp_path, ends - 5.5 * DAY, monkeypatch, ca_file=pem("authority"), cert_file=pem("client"), key_file=key
    )
    assert {f.level for f in soon.values()} == {"warn"} and "in 5 days: put a new one there before" in str(soon)
    over = findings(tmp_path, ends + 1, monkeypatch, ca_file=pem("authority"), cert_file=pem("client"), key_file=key)
    assert [(f.level, f.code) for f in over.values()] == [("FAIL", EXIT_BROKER)] * 2
    assert "has expired on 2120-01-01: put a new one there" in over["certificate"].text


def test_one_authority_that_is_valid_suffices_but_every_certificate_of_the_chain_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (TLS / "client.key").read_text()
    chain = {"cert_file": pem("client", "broker-expired"), "key_file": key}
    told = findings(tmp_path, IN_2026, monkeypatch, ca_file=pem("broker-expired", "authority"), **chain)
    assert told["authority"].level == "ok" and told["certificate"].level == "FAIL"
    told = findings(tmp_path, IN_2026, monkeypatch, ca_file=pem("broker-expired", "broker-future"))
    assert told["authority"].level == "ok", "between them there is always one"
    told = findings(tmp_path, IN_2026, monkeypatch, ca_file=pem("broker-future"))
    assert told["authority"].level == "FAIL" and "not valid before 2100-01-01" in told["authority"].text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_file_without_a_certificate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    told = findings(tmp_path, IN_2026, monkeypatch, ca_file=text)
    assert (
        told["authority"].level == "FAIL" and "ca_file.pem cannot be read as PEM certificates" in told["authority"].text
    )


def test_dates_are_those_that_openssl_reads_and_damage_is_no_certificate() -> None:
    import ssl

    der = ssl.PEM_cert_to_DER_cert(pem("broker-expired"))
    since, until = validity(der)
    assert (since, until) == (
        ssl.cert_time_to_seconds("Jan  1 00:00:00 2020 GMT"),
        ssl.cert_time_to_seconds("Jan  1 00:00:00 2021 GMT"),
    )
    for end in range(200):
        with pytest.raises(ValueError):
            validity(der[:end])

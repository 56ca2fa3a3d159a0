"""Rules over /sys and /proc: what is unknown is never ok, and what is not asked is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.device.eligibility import Eligibility, Rules

ROUTES = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
DEFAULT = "{}\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
IPV6 = "0" * 32 + " 00 " + "0" * 32 + " 00 fe80 00000400 00000001 00000000 00000003 {}\n"


class Machine:
    """A made-up /sys and /proc."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metered: int | None = None
        self.asked = 0
        self.now = 0.0

    def put(self, name: str, text: str) -> Machine:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        return self

    def ask_metered(self) -> int | None:
        self.asked += 1
        return self.metered

    def judge(self, rules: Rules) -> Eligibility:
        return Eligibility(rules, root=self.root, metered=self.ask_metered, clock=lambda: self.now)

    def reading(self, rules: Rules) -> tuple[bool | None, str]:
        (reading,) = self.judge(rules).readings()
        return reading.ok, reading.text


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_rules_nothing_is_asked(machine: Machine) -> None:
    assert list(machine.judge(Rules()).readings()) == []
    assert machine.judge(Rules())()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(charging=True),
        Rules(unmetered=True),
        Rules(temperature_celsius_max=70.0),
        Rules(load_max=1.0),
        Rules(memory_available_bytes_min=1),
    ],
    ids=lambda rules: str(rules),
)
def test_what_is_unknown_is_never_ok(machine: Machine, rules: Rules) -> None:
    ok, text = machine.reading(rules)
    assert ok is None and "unknown" in text
    assert not machine.judge(rules)()


@pytest.mark.parametrize(
    ("supplies", "ok"),
    [
        ({"AC": {"type": "Mains", "online": "1"}}, True),
        ({"AC": {"type": "Mains", "online": "0"}}, False),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "status": "Discharging"}}, False),
        ({"AC": {"type": "USB", "online": "0"}, "BAT0": {"type": "Battery", "status": "Charging"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Not charging"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Unknown"}}, None),
        ({"mouse": {"type": "Battery", "status": "Charging", "scope": "Device"}}, None),
        ({"AC": {"type": "Mains"}}, None),
    ],
)
def test_charging(machine: Machine, supplies: dict[str, dict[str, str]], ok: bool | None) -> None:
    for name, files in supplies.items():
        for file, text in files.items():
            machine.put(f"sys/class/power_supply/{name}/{file}", text)
    assert machine.reading(Rules(charging=True))[0] is ok


@pytest.mark.parametrize(
    ("link", "files", "metered", "ok"),
    [
        ("eth0", {"type": "1"}, None, True),
        ("wlan0", {"type": "1", "uevent": "DEVTYPE=wlan"}, 0, True),
        ("wlan0", {"type": "1"}, 1, False),
        ("wlan0", {"type": "1"}, 3, False),
        ("wwan0", {"type": "1"}, 2, False),
        ("ppp0", {"type": "512"}, None, False),
        ("enx0", {"type": "1", "uevent": "DEVTYPE=wwan\nINTERFACE=enx0"}, None, False),
        ("wg0", {"type": "65534"}, None, None),
        ("wg0", {"type": "65534"}, 4, True),
    ],
)
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_unmetered(
    machine: Machine, link: str, files: dict[str, str], metered: int | None, ok: bool | None, family: str
) -> None:
    machine.put("proc/net/route", ROUTES + LOCAL + (DEFAULT.format(link) if family == "ipv4" else ""))
    machine.put("proc/net/ipv6_route", IPV6.format("lo") + (IPV6.format(link) if family == "ipv6" else ""))
    for file, text in files.items():
        machine.put(f"sys/class/net/{link}/{file}", text)
    machine.metered = metered
    assert machine.reading(Rules(unmetered=True))[0] is ok


def test_network_manager_is_asked_once_a_minute(machine: Machine) -> None:
    machine.put("proc/net/route", ROUTES + DEFAULT.format("eth0")).put("sys/class/net/eth0/type", "1")
    judge = machine.judge(Rules(unmetered=True))
    for machine.now in range(0, 121, 2):
        assert judge()
    assert machine.asked == 3


def test_the_warmest_zone_counts(machine: Machine) -> None:
    machine.put("sys/class/thermal/thermal_zone0/temp", "48312").put("sys/class/thermal/thermal_zone1/temp", "71000")
    assert machine.reading(Rules(temperature_celsius_max=70.0)) == (False, "temperature: 71 °C, at most 70")
    assert machine.reading(Rules(temperature_celsius_max=71.0))[0] is True
    machine.put("sys/class/thermal/thermal_zone2/temp", "sensor error")
    assert machine.reading(Rules(temperature_celsius_max=71.0))[0] is True


def test_our_own_training_is_no_load_to_wait_for(machine: Machine) -> None:
    machine.put("proc/loadavg", "1.25 0.80 0.40 2/300 1234")
    judge = machine.judge(Rules(load_max=1.0))
    assert not judge()
    judge.working = lambda: True
    assert judge()
    judge.working = lambda: False
    machine.put("proc/loadavg", "0.95 0.80 0.40 2/300 1234")
    assert judge()


def test_memory(machine: Machine) -> None:
    machine.put("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB")
    assert machine.reading(Rules(memory_available_bytes_min=512_000))[0] is True
    assert machine.reading(Rules(memory_available_bytes_min=512_001))[0] is False


def test_all_rules_must_be_kept_and_a_change_is_logged_with_its_cause(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    machine.put("proc/loadavg", "0.10 0 0 1/1 1").put("sys/class/thermal/thermal_zone0/temp", "80000")
    judge = machine.judge(Rules(load_max=1.0, temperature_celsius_max=75.0))
    assert not judge() and not judge()
    machine.put("sys/class/thermal/thermal_zone0/temp", "60000")
    assert judge() and judge()
    assert [record.getMessage() for record in caplog.records] == [
        "eligible: not now: temperature: 80 °C, at most 75",
        "eligible again",
    ]


def test_this_machines_own_files_can_be_read() -> None:
    rules = Rules(load_max=1e9, memory_available_bytes_min=1)
    assert [reading.ok for reading in Eligibility(rules).readings()] == [True, True]

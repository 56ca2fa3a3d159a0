"""Profiles of simulated devices: drawn, read from text, refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.profiles import DeviceProfile, FleetProfile, draw_profiles
from edge_sdk.errors import ConfigurationError


@given(st.integers(0, 60), st.integers(0, 2**40), st.floats(0, 1), st.floats(1, 50), st.floats(0, 1))
def test_drawn_devices_are_no_faster_than_the_fastest(
    n: int, seed: int, slow_share: float, slow_factor: float, dropout: float
) -> None:
    profiles = draw_profiles(n, seed, dropout=dropout, slow_share=slow_share, slow_factor=slow_factor, speed=0.5)
    assert len(profiles) == n
    assert all(0 < profile.speed <= 0.5 and profile.dropout == dropout for profile in profiles)
    assert profiles == draw_profiles(
        n, seed, dropout=dropout, slow_share=slow_share, slow_factor=slow_factor, speed=0.5
    )


def test_slowness_is_half_normal() -> None:
    excess = [1 / p.speed - 1 for p in draw_profiles(5000, 1, slow_share=0, slowness_spread=2)]
    assert min(excess) >= 0
    assert sum(excess) / 5000 == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.05)  # the mean of 2 |z|
    assert sum(e < 2 * 0.6745 for e in excess) / 5000 == pytest.approx(0.5, abs=0.03)  # its median


def test_stragglers_are_slower_in_compute_and_on_the_link() -> None:
    profiles = draw_profiles(100, 3, slow_share=0.2, slow_factor=10, slowness_spread=0, uplink_bytes_per_second=1000)
    assert sorted({profile.speed for profile in profiles}) == [0.1, 1.0]
    assert sum(profile.speed == 0.1 for profile in profiles) == 20
    assert {(p.speed, p.uplink_bytes_per_second) for p in profiles} == {(0.1, 100.0), (1.0, 1000.0)}
    assert all(profile.downlink_bytes_per_second == math.inf for profile in profiles)


def test_delays_spread_around_their_mean() -> None:
    delays = [p.delay_seconds for p in draw_profiles(500, 3, delay_seconds=0.2, delay_spread=0.5)]
    assert 0.1 <= min(delays) < 0.12
    assert 0.28 < max(delays) <= 0.3


def test_another_seed_draws_another_fleet() -> None:
    assert draw_profiles(5, 1) != draw_profiles(5, 2)


def test_a_profile_knows_its_link_and_its_training_time() -> None:
    profile = DeviceProfile(speed=0.25, delay_seconds=0.1, uplink_bytes_per_second=500)
    assert profile.training_seconds(3.0) == 12.0
    assert (profile.link.delay_seconds, profile.link.uplink_bytes_per_second) == (0.1, 500)


def test_text_tables_and_files_say_the_same(tmp_path: Path) -> None:
    expected = FleetProfile(dropout=0.2, slow_share=0.0, uplink_bytes_per_second=20_000.0)
    assert FleetProfile.parse("dropout=0.2, slow_share = 0,uplink_bytes_per_second=2e4") == expected
    path = tmp_path / "fleet.toml"
    path.write_text("[profile]\ndropout = 0.2\nslow_share = 0\nuplink_bytes_per_second = 20_000\n")
    assert FleetProfile.parse(str(path)) == expected
    assert FleetProfile.parse("") == FleetProfile()
    assert FleetProfile.parse("downlink_bytes_per_second=inf") == FleetProfile()
    assert DeviceProfile.parse("speed=0.1") == DeviceProfile(speed=0.1)
    assert DeviceProfile.from_table({"speed": 2}) == DeviceProfile(speed=2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speeed=1", "profile.speeed: no such field; known are speed, "),
        ("dropout", "'dropout' is not of the form field=value"),
        ("dropout=often", "profile.dropout: 'often' is not a number"),
        ("dropout=1.5", "profile.dropout: 1.5 must be in 0..1"),
        ("dropout=nan", "profile.dropout: nan must be in 0..1"),
        ("speed=0", "profile.speed: 0.0 must be more than 0"),
        ("speed=inf", "profile.speed: inf must be more than 0 and finite"),
        ("slow_factor=-1", "slow_factor: -1.0 must be more than 0"),
        ("delay_seconds=-1", "delay_seconds: -1.0 must be 0 or more"),
        ("uplink_bytes_per_second=0", "must be more than 0 [(]inf for no limit"),
        ("absent.toml", "absent.toml cannot be read as TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FleetProfile.parse(text)


def test_a_table_with_the_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dropout: True is not a number"):
        FleetProfile.from_table({"dropout": True})
    path = tmp_path / "fleet.toml"
    path.write_text("profile = 3\n")
    with pytest.raises(ConfigurationError, match="must hold a table"):
        FleetProfile.parse(str(path))
    with pytest.raises(ConfigurationError, match="no such field"):
        draw_profiles(1, 0, sped=1.0)
    with pytest.raises(ConfigurationError, match="seed: -1"):
        draw_profiles(1, -1)

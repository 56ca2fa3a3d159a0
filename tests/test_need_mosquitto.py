"""Where mosquitto is missing, the tests that need it skip and say how to get it; in CI they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import need_mosquitto


@pytest.mark.parametrize("environment", [{}, {"CI": ""}])
def test_without_mosquitto_a_test_is_skipped_with_the_remedy(environment: dict[str, str]) -> None:
    with pytest.raises(pytest.skip.Exception, match="mosquitto is missing: `make test` brings it"):
        need_mosquitto(None, environment)


def test_without_mosquitto_a_test_fails_in_ci() -> None:
    with pytest.raises(pytest.fail.Exception, match="mosquitto is missing"):
        need_mosquitto(None, {"CI": "true"})


def test_no_test_gets_past_the_rule() -> None:
    files = [path for path in Path(__file__).parent.rglob("*.py") if path != Path(__file__)]
    past = {path.name for path in files if 'PrivateBroker("mosquitto"' in path.read_text()}
    assert past == {"test_broker.py"}, "ask for the fixture `mosquitto`; test_broker.py shows the refusal without one"


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}])
def test_with_mosquitto_a_test_runs(environment: dict[str, str]) -> None:
    need_mosquitto("/usr/sbin/mosquitto", environment)

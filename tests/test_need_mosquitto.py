"""Where mosquitto is missing, the tests that need it skip and say how to get it; in CI they fail."""

from __future__ import annotations

import pytest
from conftest import need_mosquitto


@pytest.mark.parametrize("environment", [{}, {"CI": ""}])
def test_without_mosquitto_a_test_is_skipped_with_the_remedy(environment: dict[str, str]) -> None:
    with pytest.raises(pytest.skip.Exception, match="mosquitto is missing: `make test` brings it"):
        need_mosquitto(None, environment)


def test_without_mosquitto_a_test_fails_in_ci() -> None:
    with pytest.raises(pytest.fail.Exception, match="mosquitto is missing"):
        need_mosquitto(None, {"CI": "true"})


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}])
def test_with_mosquitto_a_test_runs(environment: dict[str, str]) -> None:
    need_mosquitto("/usr/sbin/mosquitto", environment)

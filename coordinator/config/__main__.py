"""Prints the reference of the configuration."""

from __future__ import annotations

import sys

from coordinator.config.reference import config_reference

sys.stdout.write(config_reference())

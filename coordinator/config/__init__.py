"""``federation.toml`` -> a checked, documented, frozen configuration.

``load_config`` reads it; ``coordinator.config.settings`` turns its tables into the settings of the machines.
"""

from __future__ import annotations

from coordinator.config.loading import check_files, load_config, load_tasks
from coordinator.config.reference import config_reference
from coordinator.config.sections import (
    Aggregation,
    Broker,
    Codec,
    DownlinkSection,
    Evaluation,
    Federation,
    FederationConfig,
    Model,
    Selection,
    Stopping,
    StoreSection,
    Training,
    Transfer,
    Validation,
)

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
    "check_files",
    "config_reference",
    "load_config",
    "load_tasks",
]

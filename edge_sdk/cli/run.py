"""``edge-device run``: a device from its configuration file, as a service."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Final, cast

from edge_sdk.cli.device_config import DeviceConfig
from edge_sdk.cli.sd_notify import sd_notify, watchdog_seconds
from edge_sdk.client import EdgeClient
from edge_sdk.device.eligibility import Eligibility, Rules
from edge_sdk.device.progress import Status
from edge_sdk.extension import make

if TYPE_CHECKING:  # the room of the engines, which is entered by the first job
    from edge_sdk.codecs import Codec
    from edge_sdk.training.algorithms import LocalAlgorithm
    from edge_sdk.training.local import Trainer

__all__ = ["find_codecs", "make_algorithms", "make_client", "make_trainer", "run"]

LOOK_SECONDS: Final = 1.0
STOP_SECONDS_MAX: Final = 40.0


def make_client(config: DeviceConfig) -> EdgeClient:
    """The client of a configuration.

    Raises:
        ConfigurationError, StateError: As of :class:`EdgeClient`.
    """
    eligibility = Eligibility(config.rules)
    client = EdgeClient(
        broker=config.broker,
        federation=config.federation,
        device_id=config.device,
        load_examples=lambda: config.data,
        eligible=None if config.rules == Rules() else eligibility,
        limits=config.limits,
        state_dir=config.state_dir,
        engine=config.engine,
        task=config.task,
        publish_status=config.publish_status,
        trainer=make_trainer(config),
        algorithms=make_algorithms(config),
        codecs=find_codecs(config),
    )
    eligibility.working = lambda: client.status.phase == "training"
    return client


def make_trainer(config: DeviceConfig) -> Trainer | None:
    """The device's own trainer.

    Raises:
        ConfigurationError: Its class cannot be imported or made, or has no ``fit``.
    """
    return None if config.trainer is None else cast("Trainer", make("extend.trainer", config.trainer, methods=("fit",)))


def make_algorithms(config: DeviceConfig) -> dict[str, LocalAlgorithm]:
    """The device's own local algorithms, by name.

    Raises:
        ConfigurationError: A class cannot be imported or made, or has no ``run``.
    """
    return {
        name: cast("LocalAlgorithm", make(f"extend.algorithms.{name}", dotted, methods=("run",)))
        for name, dotted in config.algorithms.items()
    }


def find_codecs(config: DeviceConfig) -> tuple[type[Codec], ...]:
    """The device's own codecs, made known to this process.

    Raises:
        ConfigurationError: A class cannot be imported, or is no codec.
    """
    from edge_sdk.codecs import find_codec

    return tuple(find_codec(dotted, "extend.codecs") for dotted in config.codecs)


def run(config: DeviceConfig, environment: Mapping[str, str]) -> None:
    """Works until SIGTERM or SIGINT; a second one ends at once.

    Args:
        config: The device.
        environment: Of systemd: where it listens, and how often it wants to hear of us.

    Raises:
        EdgeFedError: The client cannot go on.
    """
    client = make_client(config)
    asked = threading.Event()
    _ask_on_signals(asked)
    watchdog = watchdog_seconds(environment, os.getpid())
    period = LOOK_SECONDS if watchdog is None else min(LOOK_SECONDS, watchdog / 3)
    client.start()
    sd_notify("READY=1", environment)
    said = ""
    while not asked.wait(period) and client.running:
        # A network thread that hangs or is dead gets no word to systemd, which then starts us anew.
        if watchdog is not None and client.silent_seconds < watchdog:
            sd_notify("WATCHDOG=1", environment)
        if said != (said := _line(client.status)):
            sd_notify(f"STATUS={said}", environment)
    sd_notify("STOPPING=1", environment)
    client.stop(STOP_SECONDS_MAX)


def _ask_on_signals(asked: threading.Event) -> None:
    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, handler)


def _line(status: Status) -> str:
    state = "connected" if status.connected else "not connected"
    trouble = f"; {status.error}" if status.error else ""
    limit = status.bytes_per_day_max
    used = f", {status.bytes_today} of {limit} bytes used today" if limit else ""
    return f"{state}, {status.phase}, round {status.round}, {status.counted} updates counted{used}{trouble}"

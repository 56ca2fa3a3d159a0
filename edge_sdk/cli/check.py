"""``edge-device check``: everything that can be known before a device is left alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_sdk.cli.broker import check_broker
from edge_sdk.cli.certificates import check_certificates
from edge_sdk.cli.device_config import DeviceConfig
from edge_sdk.cli.findings import EXIT_STATE, Finding
from edge_sdk.cli.fit import check_fit
from edge_sdk.cli.run import find_codecs, make_algorithms, make_trainer
from edge_sdk.cli.speed import check_engines
from edge_sdk.cli.task_model import cached_model
from edge_sdk.device.eligibility import Eligibility
from edge_sdk.device.files import LOCK_NAME, DirectoryFiles, owner_of
from edge_sdk.errors import ConfigurationError, ExamplesError, StateError
from edge_sdk.training.examples import describe_file

__all__ = ["checks"]

FILES_MIN: Final = 64
PROBE: Final = "check"
PROBE_BYTES: Final = 4096
UNSYNCHRONISED: Final = 5  # TIME_ERROR, adjtimex(2)
TIMEX_BYTES: Final = 1024  # struct timex has 208, on 64 bits


def checks(config: DeviceConfig, *, root: Path = Path("/")) -> Iterator[Finding]:
    """All findings, the quick ones first, each as soon as it is known."""
    yield Finding("ok", "config", f"{config.path}: device {config.device} of {config.federation}/{config.task}")
    yield from _password(config)
    data = _data(config)
    yield data
    yield from _extensions(config)
    yield from _state(config)
    yield _files()
    yield _clock(config, time.time())
    yield from check_certificates(config, time.time())
    for reading in Eligibility(config.rules, root=root).readings():
        remedy = "" if reading.ok else "; the device waits while it is so"
        yield Finding("ok" if reading.ok else "warn", "eligibility", reading.text + remedy)
    yield from check_engines(config.engine, config.limits.threads)
    model = yield from check_broker(config)
    if data.level != "FAIL":  # it has been said what is wrong
        yield from check_fit(config, model or cached_model(config.state_dir, config.limits.program_bytes_max))


def _password(config: DeviceConfig) -> Iterator[Finding]:
    path = config.password_file
    if path is not None and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding("warn", "password", f"others may read {path}: chmod 600 {path}")


def _extensions(config: DeviceConfig) -> Iterator[Finding]:
    """The device's own classes, each made once as a run would."""
    own = [*filter(None, [config.trainer]), *config.algorithms.values(), *config.codecs]
    if not own:
        return
    try:
        make_trainer(config)
        make_algorithms(config)
        find_codecs(config)
    except ConfigurationError as error:
        yield Finding("FAIL", "extend", str(error))
        return
    yield Finding("ok", "extend", ", ".join(own))


def _data(config: DeviceConfig) -> Finding:
    try:
        return Finding("ok", "data", f"{config.data.path}: {describe_file(config.data)}")
    except ExamplesError as error:
        return Finding("FAIL", "data", str(error))


def _state(config: DeviceConfig) -> Iterator[Finding]:
    owner = owner_of(config.state_dir)
    if owner is not None:
        yield Finding("ok", "state", f"{config.state_dir} is in use by process {owner}: a device runs here")
        return
    existed = config.state_dir.exists()
    try:
        with DirectoryFiles(config.state_dir) as files:
            room = os.statvfs(config.state_dir)
            began = time.perf_counter()
            files.write(PROBE, [bytes(PROBE_BYTES)])
            milliseconds = (time.perf_counter() - began) * 1e3
            files.delete(PROBE)
    except StateError as error:
        yield Finding("FAIL", "state", str(error), EXIT_STATE)
        return
    yield Finding("ok", "state", f"{config.state_dir} is writable; a small file is safe after {milliseconds:.0f} ms")
    if not existed:  # it would belong to whoever runs the check, not to the service
        with contextlib.suppress(OSError):
            (config.state_dir / LOCK_NAME).unlink()
            config.state_dir.rmdir()
    free, wanted = room.f_bavail * room.f_frsize, config.limits.cache_bytes_max + config.limits.outbox_bytes_max
    if free < wanted:
        text = f"{free} bytes are free, the limits allow {wanted}: free some, or lower limits.cache_bytes_max"
        yield Finding("warn", "disk", text)
    else:
        yield Finding("ok", "disk", f"{free >> 20} MiB free")


def _files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        text = f"{soft} are allowed, {FILES_MIN} are needed: ulimit -n {FILES_MIN}, or LimitNOFILE= in the unit"
        return Finding("FAIL", "open files", text)
    return Finding("ok", "open files", f"up to {'any number' if soft == resource.RLIM_INFINITY else soft}")


def _clock(config: DeviceConfig, wall: float) -> Finding:
    """Only TLS needs the time; a Raspberry Pi without a clock of its own starts in the past."""
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(wall))
    remedy = "wait for the network's time, or set it: timedatectl set-ntp true"
    if wall < Path(__file__).stat().st_mtime:
        text = f"{shown} is before this software was installed, TLS will refuse every certificate: {remedy}"
        return Finding("FAIL" if config.broker.tls else "warn", "clock", text)
    if _unsynchronised():
        return Finding("warn", "clock", f"{shown}, not synchronised: {remedy}")
    return Finding("ok", "clock", shown)


def _unsynchronised() -> bool:
    """Whether the kernel says so; where it says nothing, the date was plausible."""
    try:
        return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)) == UNSYNCHRONISED)
    except (OSError, AttributeError):
        return False

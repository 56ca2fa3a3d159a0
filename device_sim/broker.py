"""A broker of one's own for a fleet, an example or a test: mosquitto where it is installed, else an embedded one.

``with PrivateBroker() as broker:`` starts one on a free port of this machine, with the configuration that the project
ships (``mosquitto.conf``), and stops it at the end. With ``users`` it is the secured flavour: passwords and the topic
rules of ``mosquitto-acl.conf``. The embedded one is rumqttd from the wheel ``iotcore``. It needs no installation beside
``pip`` and holds fleets of thousands; it speaks MQTT 3.1.1 only here, has no users, and keeps messages in memory after
their delivery (``rumqttd.toml`` says how many).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import hashlib
import importlib.util
import os
import resource
import secrets
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from device_sim.mosquitto import find_mosquitto
from edge_sdk.errors import ConfigurationError, ConnectionUnavailable
from edge_sdk.mqtt import BrokerSettings

__all__ = ["BrokerTls", "PrivateBroker", "password_line"]

_HERE: Final = Path(__file__).parent
_HOST: Final = "127.0.0.1"
_START_SECONDS_MAX: Final = 15.0
_STOP_SECONDS_MAX: Final = 5.0
_PORT_ATTEMPTS: Final = 5

BrokerKind = Literal["mosquitto", "iotcore"]


@dataclass(frozen=True, slots=True)
class BrokerTls:
    """PEM files for a TLS listener; with ``ca_file`` clients must show a certificate which that authority signed."""

    cert_file: Path
    key_file: Path
    ca_file: Path | None = None


class PrivateBroker:
    """A broker process on a free loopback port, from ``with`` (or ``start``) to ``stop``.

    kind:  "auto" takes mosquitto where it is installed
    directory:  for its configuration and log (default: a temporary one)
    users:  name -> password; makes it the secured flavour, where "coordinator" may do everything (mosquitto only)
    tls:  opens a second listener with TLS, at ``tls_port`` (mosquitto only)
    options:  mosquitto settings that replace or extend those of the shipped configuration (mosquitto only)

    Raises ConfigurationError when no such broker is installed or it cannot do what is asked.
    """

    host: Final = _HOST

    def __init__(
        self,
        kind: Literal["auto", "mosquitto", "iotcore"] = "auto",
        directory: Path | None = None,
        *,
        users: Mapping[str, str] | None = None,
        tls: BrokerTls | None = None,
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        self.kind: BrokerKind = _choose(kind)
        if self.kind == "iotcore" and (users is not None or tls is not None or options):
            raise ConfigurationError("broker kind: iotcore knows no users, tls or options here; use kind='mosquitto'")
        self.port = 0
        self.tls_port: int | None = None
        self._users = users
        self._tls = tls
        self._options = dict(options or {})
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="edgefed-broker-")
            directory = Path(self._temporary.name)
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def url(self) -> str:
        """The address for ``BrokerSettings.parse``."""
        return f"mqtt://{self.host}:{self.port}"

    def settings(self, **fields: Any) -> BrokerSettings:
        """How to reach it; for iotcore with its protocol, which costs a client a second connection to find out."""
        return BrokerSettings.parse(self.url, **(({"protocol": "3.1.1"} if self.kind == "iotcore" else {}) | fields))

    @property
    def tls_url(self) -> str:
        """The TLS listener's address (by the name ``localhost``, which certificates can carry)."""
        return f"mqtts://localhost:{self.tls_port}"

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def log_file(self) -> Path:
        """What the broker has written to its standard output and error."""
        return self.directory / "broker.log"

    def start(self) -> None:
        """Start and wait until it answers MQTT; raises ConnectionUnavailable with its last words if it does not."""
        if self._process is not None:
            return
        atexit.register(self.kill)
        if self.port:
            self._launch()
            return
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            # Another process may take a free port before the broker does; then the next one is tried.
            self.port = _free_port()
            self.tls_port = _free_port() if self._tls is not None else None
            try:
                self._launch()
                return
            except ConnectionUnavailable:
                if attempt == _PORT_ATTEMPTS or "in use" not in self._last_words():
                    self.port = 0
                    raise

    def check(self) -> None:
        """Raise ConnectionUnavailable with its last words if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            words = self._last_words() or "nothing"
            code = self._process.returncode
            raise ConnectionUnavailable(f"the private {self.kind} has ended (exit code {code}); it said: {words}")

    def stop(self) -> None:
        """Ask it to end, and end it if it does not within 5 s."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS_MAX)
        self.kill()

    def kill(self) -> None:
        """End it at once, without a chance to say goodbye (SIGKILL)."""
        process, self._process = self._process, None
        atexit.unregister(self.kill)
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def restart(self) -> None:
        """Start again on the same port; after ``kill`` that is what a crash looks like to clients."""
        self.stop()
        self.start()

    def _launch(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.directory, env=_environment()
            )
        _lift_file_limit(self._process.pid)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not _answers_mqtt(self.port):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                words = self._last_words()
                self.kill()
                what = "ended at once" if ended else f"did not answer within {_START_SECONDS_MAX:g} s"
                raise ConnectionUnavailable(f"the private {self.kind} {what}; it said: {words or 'nothing'}")
            time.sleep(0.01)

    def _last_words(self) -> str:
        return self.log_file.read_text(errors="replace")[-500:].strip()

    def _command(self) -> list[str]:
        if self.kind == "iotcore":
            settings = self.directory / "rumqttd.toml"
            shipped = string.Template((_HERE / "rumqttd.toml").read_text())
            settings.write_text(shipped.substitute(address=f"{self.host}:{self.port}"))
            return [sys.executable, "-m", "device_sim.broker_iotcore", str(settings)]
        program = find_mosquitto()
        assert program is not None
        settings = self.directory / "mosquitto.conf"
        settings.write_text(self._mosquitto_settings())
        # Linux can end the broker when we are killed. The tie is to the thread that starts it: only the main one holds.
        tie = shutil.which("setpriv") if threading.current_thread() is threading.main_thread() else None
        return [*([tie, "--pdeathsig", "TERM"] if tie else []), program, "-c", str(settings)]

    def _mosquitto_settings(self) -> str:
        shipped = (_HERE / "mosquitto.conf").read_text()
        lines = [line for line in _settings_in(shipped) if line.split()[0] not in self._options]
        lines += [f"{name} {value}" for name, value in self._options.items()]
        if os.geteuid() == 0:
            lines.append("user root")  # As root it would become a user who cannot read our directory.
        lines += ["persistence false", "log_dest stderr", "connection_messages false", "log_type error"]
        lines += ["log_type warning", "log_type notice"]
        lines += self._secured() if self._users is not None else ["allow_anonymous true"]
        lines.append(f"listener {self.port} {self.host}")
        if self._tls is not None:
            lines += [f"listener {self.tls_port} {self.host}"]
            lines += [f"certfile {self._tls.cert_file.resolve()}", f"keyfile {self._tls.key_file.resolve()}"]
            if self._tls.ca_file is not None:
                lines += [f"cafile {self._tls.ca_file.resolve()}", "require_certificate true"]
        return "\n".join(lines) + "\n"

    def _secured(self) -> list[str]:
        assert self._users is not None
        passwords = self.directory / "passwords"
        passwords.touch(mode=0o600)
        passwords.write_text("".join(password_line(*user) + "\n" for user in self._users.items()))
        rules = self.directory / "acl"
        shutil.copyfile(_HERE / "mosquitto-acl.conf", rules)
        rules.chmod(0o600)
        template = string.Template((_HERE / "mosquitto-secured.conf").read_text())
        return _settings_in(template.substitute(password_file=passwords, acl_file=rules))


def _settings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and line[0] != "#"]


def password_line(username: str, password: str) -> str:
    """One line of a mosquitto 2 password file, as ``mosquitto_passwd`` writes it (PBKDF2 with SHA-512)."""
    if not username or ":" in username or "\n" in username:
        raise ConfigurationError(
            f"users: {username!r} cannot be a name in a password file; leave out ':' and new lines"
        )
    salt, rounds = secrets.token_bytes(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"{username}:$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _choose(kind: str) -> BrokerKind:
    if kind not in ("auto", "mosquitto", "iotcore"):
        raise ConfigurationError(f"broker kind: {kind!r} is unknown; use 'auto', 'mosquitto' or 'iotcore'")
    if kind in ("auto", "mosquitto") and find_mosquitto() is not None:
        return "mosquitto"
    if kind in ("auto", "iotcore") and importlib.util.find_spec("iotcore") is not None:
        return "iotcore"
    remedy = "run `apt install mosquitto`" if kind == "mosquitto" else "run `pip install 'edgefed[sim]'`"
    raise ConfigurationError(f"broker kind: {kind!r} is not installed; {remedy}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Ours, with this checkout first on the path: the embedded broker runs a module of this package."""
    paths = [str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _lift_file_limit(pid: int) -> None:
    """A broker needs a file for every client; mosquitto keeps to the soft limit it is given."""
    with contextlib.suppress(OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def _answers_mqtt(port: int) -> bool:
    """Whether a CONNECT is answered by a CONNACK, be it a refusal (MQTT 3.1.1 sections 3.1 and 3.2)."""
    name = f"probe-{secrets.token_hex(4)}".encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x05" + len(name).to_bytes(2, "big") + name
    try:
        with socket.create_connection((_HOST, port), timeout=1.0) as probe:
            probe.sendall(bytes([0x10, len(body)]) + body)
            if probe.recv(4)[:1] != b"\x20":
                return False
            probe.sendall(b"\xe0\x00")
            return True
    except OSError:
        return False

"""Every topic string of the protocol, built and taken apart in one place.

    fl/v1/<federation>/tasks/<task>/announce      retained   coordinator -> all
    fl/v1/<federation>/blobs/<sha256>/<offset>    retained   coordinator -> all (a cache of downloads; rule 7)
    fl/v1/<federation>/to/<device>/<kind>                    coordinator -> one device
    fl/v1/<federation>/from/<device>/<kind>                  one device -> coordinator, control
    fl/v1/<federation>/up/<shard>/<device>                   one device -> coordinator, bulk
    fl/v1/<federation>/status/<device>            retained   JSON for people: availability, health, last round
    fl/v1/<federation>/tasks/<task>/round         retained   JSON for people: the round as it goes
    fl/v1/<federation>/coordinator/<lineage>/state  retained JSON: incarnation, online, tasks; every device hears it
    fl/v1/<federation>/coordinator/<lineage>/claim           JSON: coordinators among themselves

``<lineage>`` is the lineage of a coordinator's database in hexadecimal digits, so that coordinators of one federation
do not overwrite each other's state.

A device's identity is its segment of the topic, never the payload, so that a broker's ACL (``%u`` patterns) decides
who may speak as whom. Segments are ``[A-Za-z0-9_-]{1,64}``: no wildcard, no slash and no ``$`` can be smuggled in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import ConfigurationError

__all__ = ["DEFAULT_TASK", "PREFIX", "PROBE", "SHARD_CHARACTERS", "Topics", "check_segment", "client_id", "is_segment"]

PREFIX: Final = "fl/v1"
DEFAULT_TASK: Final = "default"
PROBE: Final = "probe"
"""A kind that says nothing: `edge-device check` publishes it to see whether the broker lets it."""
SHARD_CHARACTERS: Final = 8
"""Of the name that a coordinator gives its uplink inbox."""
_SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LONG = re.compile(r"(to|from|up|blobs|tasks|coordinator)/([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_-]{1,64})\Z")
_SHORT = re.compile(r"(status)/([A-Za-z0-9_-]{1,64})\Z")


def is_segment(value: str) -> bool:
    """Whether ``value`` may stand as one segment of a topic."""
    return _SEGMENT.match(value) is not None


def check_segment(value: str, field: str) -> str:
    """``value`` itself, or a ConfigurationError that names ``field`` and what is allowed."""
    if not is_segment(value):
        raise ConfigurationError(
            f"{field}: {value!r} cannot stand in a topic; use 1 to 64 characters out of A-Z a-z 0-9 _ and -"
        )
    return value


def client_id(federation: str, task: str, device: str) -> str:
    """The MQTT client identifier of a device.

    A broker cuts the older of two clients with one identifier, and a device may take part in several federations and
    tasks of one broker, each in a process of its own. A dot stands in no segment, so no two identifiers are equal.
    """
    return f"{federation}.{task}.{device}"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one federation (``federation`` is a checked segment)."""

    federation: str

    @property
    def root(self) -> str:
        return f"{PREFIX}/{self.federation}"

    @property
    def lineage_states(self) -> str:
        """The filter for the states of all coordinators."""
        return f"{self.root}/coordinator/+/state"

    def lineage_state(self, lineage: bytes) -> str:
        """The state of the coordinator whose database has this lineage."""
        return f"{self.root}/coordinator/{lineage.hex()}/state"

    def lineage_claim(self, lineage: bytes) -> str:
        """Where the coordinator of this lineage speaks to other coordinators."""
        return f"{self.root}/coordinator/{lineage.hex()}/claim"

    @property
    def lineage_claims(self) -> str:
        """The filter for what all coordinators say to each other."""
        return f"{self.root}/coordinator/+/claim"

    def task_round(self, task: str) -> str:
        return f"{self.root}/tasks/{task}/round"

    def announce(self, task: str) -> str:
        return f"{self.root}/tasks/{task}/announce"

    def blob(self, digest: bytes, offset: int) -> str:
        return f"{self.root}/blobs/{digest.hex()}/{offset}"

    def to_device(self, device: str, kind: str) -> str:
        return f"{self.root}/to/{device}/{kind}"

    def from_device(self, device: str, kind: str) -> str:
        return f"{self.root}/from/{device}/{kind}"

    def up(self, shard: str, device: str) -> str:
        return f"{self.root}/up/{shard}/{device}"

    def status(self, device: str) -> str:
        return f"{self.root}/status/{device}"

    def parse(self, topic: str) -> tuple[str, ...] | None:
        """The segments behind the federation's root, or None for a topic of something else.

        ``("to", device, kind)``, ``("from", device, kind)``, ``("up", shard, device)``, ``("blobs", hex, offset)``,
        ``("tasks", task, "announce")``, ``("tasks", task, "round")``, ``("status", device)``,
        ``("coordinator", lineage, "state")``, ``("coordinator", lineage, "claim")``.
        """
        root = f"{PREFIX}/{self.federation}/"
        if not topic.startswith(root):
            return None
        found = _LONG.match(topic, len(root)) or _SHORT.match(topic, len(root))
        return None if found is None else found.groups()

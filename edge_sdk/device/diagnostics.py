"""Words for a silence that has a cause: a wrong name, an ACL, a coordinator that is not there. PURE.

On MQTT a subscription to a name that nobody uses is as quiet as a federation at rest, and a broker of MQTT 3.1.1
swallows what its ACL forbids. Both are told after a while, with what to check.
"""

from __future__ import annotations

from typing import Final

from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import Notify
from edge_sdk.wire.topics import Topics

__all__ = ["Diagnostics"]

SILENT_SECONDS: Final = 30.0


class Diagnostics:
    """What one device should be told about its connection.

    ``deadline`` is when ``on_deadline`` is due; ``refusal`` is what was said of a message that the broker refused in
    this connection, or "".

    Args:
        topics: The federation's topics.
        task: The task that the device works for.
        device: The device.
    """

    def __init__(self, topics: Topics, task: str, device: str) -> None:
        self.deadline: float | None = None
        self.refusal = ""
        self._topics = topics
        self._task = task
        self._device = device
        self._announce = topics.announce(task)
        self._states = topics.lineage_states.split("+")[0]
        self._heard: set[str] = set()
        self._given = False

    def on_connected(self, now: float) -> None:
        """A new connection: what is retained should come soon."""
        self.deadline = now + SILENT_SECONDS
        self._heard.clear()
        self._given, self.refusal = False, ""

    def on_disconnected(self) -> None:
        """Silence is no riddle any more."""
        self.deadline = None
        self._given = False

    def on_message(self, topic: str) -> bool:
        """Notes that something was heard; returns whether a hint that was given has become untrue."""
        if self.deadline is None and not self._given:
            return False
        if topic == self._announce:
            self._heard.add("announce")
        elif topic.startswith(self._states) and topic.endswith("/state"):
            self._heard.add("state")
        else:
            return False
        if len(self._heard) == 2:
            self.deadline = None
        untrue, self._given = self._given, False
        return untrue

    def on_deadline(self, coordinator_known: bool, coordinator_online: bool) -> Notify:
        """What the silence means; call when ``deadline`` is due.

        Args:
            coordinator_known: Whether any coordinator has said that it serves this device's task.
            coordinator_online: Whether it is online.
        """
        self.deadline, self._given = None, True
        federation, state = self._topics.federation, self._topics.lineage_states
        if "state" not in self._heard:
            return Notify(
                ProgressKind.NO_COORDINATOR,
                f"connected, but no coordinator speaks in federation {federation!r}: check the name, that the "
                f"coordinator is running, and that the broker's ACL lets this device read {state}",
            )
        if coordinator_online or not coordinator_known:
            text = f"federation {federation!r} announces no task {self._task!r}: check its name"
            return Notify(ProgressKind.NO_TASK, text)
        return Notify(ProgressKind.COORDINATOR_OFFLINE, "the coordinator is offline; this device waits for it")

    def on_refused(self, reason: str) -> Notify | None:
        """The broker refused a message (only MQTT 5 says so); told once a connection."""
        if self.refusal:
            return None
        root, device = self._topics.root, self._device
        self.refusal = (
            f"the broker refused a message of this device ({reason}): its ACL must let the device write "
            f"{root}/from/{device}/#, {root}/up/+/{device} and {root}/status/{device} "
            "(with the ACL that we ship, the user name is the device id)"
        )
        return Notify(ProgressKind.PUBLISH_REFUSED, self.refusal)

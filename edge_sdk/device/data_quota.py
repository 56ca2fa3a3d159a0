"""What one device may put on the wire: bytes for one update, and bytes for one day. PURE but for the count on disk.

A budget is kept in two ways. Before work is taken on its cost is estimated, and work that does not fit is declined.
While it goes on every message is weighed before it leaves, together with the answer that it asks for; when one does not
fit any more, because much had to be sent again, the device leaves the broker until the next day. A reserve is kept for
the goodbye and for what arrives unasked until then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edge_sdk.codecs import CodecSettings, fitted, frame_bytes_max
from edge_sdk.device.daily_traffic import DailyTraffic
from edge_sdk.device.limits import BYTES_PER_DAY_MIN
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.download import PIECE_BYTES
from edge_sdk.mqtt import Meter
from edge_sdk.parameters import ELEMENTS_MAX
from edge_sdk.wire.messages import CheckIn
from edge_sdk.wire.plan import Plan
from edge_sdk.wire.terms import Terms
from edge_sdk.wire.wire_costs import UPDATE_HEAD_BYTES_MAX, Costs

__all__ = ["RESERVE_BYTES", "DataQuota"]

RESERVE_BYTES: Final = 4096
ANSWER_BYTES: Final = 2048
"""Of the answer to a check-in, what the reserve has no room for: an invite may bring small parameters, some 4 kB."""
SLACK_BYTES: Final = 2048
"""Of work: announcements, pings and status while it goes on."""
CONNECT_BYTES: Final = 1024
"""CONNECT, subscriptions, and the retained messages that they bring; a TLS handshake beside it."""
CONNECT_TLS_BYTES: Final = 5000
UNLIMITED_METER_BYTES: Final = 8192
"""Without a limit the count need not follow every message."""
PARAMETERS_HEAD_BYTES: Final = 16


class DataQuota:
    """The quotas of one device.

    Args:
        traffic: The count of today, with the daily limit.
        costs: What its messages cost.
        bytes_per_update_max: This device's own limit for bringing one update, 0 for none.
    """

    def __init__(self, traffic: DailyTraffic, costs: Costs, bytes_per_update_max: int = 0) -> None:
        self.traffic = traffic
        self._costs = costs
        self._bytes_per_update_max = bytes_per_update_max
        self._metered = 0
        self._expected = 0  # bytes that were asked for and have not arrived
        self._unfit: tuple[bytes, str, CodecSettings, int] | None = None

    # --- counting ---

    def meter(self, meter: Meter, now: float) -> bool:
        """Counts what has gone over the wire since the last call; returns whether today's limit is reached."""
        fresh = meter.total - self._metered
        limit = self.traffic.bytes_max
        if fresh < (1 if limit else UNLIMITED_METER_BYTES):
            return False
        if meter.tls and not self._costs.tls:
            self._costs = replace(self._costs, tls=True)
        self._metered += fresh
        self.traffic.count(fresh, now)
        return limit > 0 and self.traffic.bytes_today + RESERVE_BYTES >= limit

    def bytes_today(self, meter: Meter) -> int:
        """The count of today with what the meter is ahead of it."""
        return self.traffic.bytes_today + max(0, meter.total - self._metered)

    def expect(self, asked_bytes: int) -> None:
        """A message that leaves asks for so many bytes."""
        self._expected += asked_bytes

    def arrived(self, topic: str, payload_bytes: int) -> None:
        """A message came, perhaps one that was asked for."""
        if self._expected and (topic.endswith("/bytes") or "/blobs/" in topic):
            self._expected = max(0, self._expected - payload_bytes - PIECE_BYTES)

    def forget_expected(self) -> None:
        """Nothing is under way any more."""
        self._expected = 0

    # --- judging ---

    @property
    def limited(self) -> bool:
        """Whether there is a daily limit."""
        return self.traffic.bytes_max > 0

    def affords(self, cost_bytes: int, waiting_bytes: int = 0) -> bool:
        """Whether so many bytes more are within today's limit, beside what waits or was asked for, and the reserve."""
        limit = self.traffic.bytes_max
        planned = waiting_bytes + self._expected + cost_bytes + RESERVE_BYTES
        return not limit or self.traffic.bytes_today + planned <= limit

    def affords_connection(self) -> bool:
        """Whether a new connection is within today's limit."""
        return self.affords(CONNECT_BYTES + (CONNECT_TLS_BYTES if self._costs.tls else 0))

    def affords_message(self, topic: str, payload_bytes: int, waiting_bytes: int, asked_bytes: int) -> bool:
        """Whether a message, and what it asks for, is within today's limit."""
        if topic.endswith(f"/{CheckIn.kind}"):
            asked_bytes += ANSWER_BYTES
        return not self.limited or self.affords(self._costs.message(topic, payload_bytes) + asked_bytes, waiting_bytes)

    def frames_bytes_max(self, plan: Plan) -> int:
        """Bytes that the frames of one update may have, 0 for no limit; 1 where not even their envelope fits."""
        own, asked = self._bytes_per_update_max, plan.bytes_per_update_max
        limit = min(own or asked, asked or own)
        return max(1, self._costs.update_bytes_within(limit) - UPDATE_HEAD_BYTES_MAX) if limit else 0

    def note_unfit(self, program: bytes, plan: Plan) -> None:
        """With its program at hand an update was found to be too large, whatever the size of the model had promised."""
        self._unfit = (program, plan.local, plan.codec, self.frames_bytes_max(plan))

    def why_not(self, terms: Terms, downloads: tuple[int, ...]) -> tuple[ProgressKind, str] | None:
        """Code and explanation where the work of an invite is beyond a quota; None where it fits.

        Args:
            terms: The terms of the invite; their daily limit is in force from now on.
            downloads: Bytes of each blob that is not here yet.
        """
        plan = terms.plan
        asked = plan.bytes_per_device_per_day_max
        # A mistake there must not lock the device out: it hears of a better limit only in another invite.
        self.traffic.ask(max(asked, BYTES_PER_DAY_MIN) if asked else 0)
        frames_max = self.frames_bytes_max(plan)
        if not frames_max and not self.limited:
            return None
        frame_bytes = self._frame_bytes(terms, frames_max)
        if frame_bytes is None or self._unfit == (terms.program, plan.local, plan.codec, frames_max):
            return ProgressKind.BYTES_PER_UPDATE, (
                f"no update of this model with codec {plan.codec.name} fits into bytes_per_update_max: raise it, or "
                "have the coordinator use codec auto, sparse or eden"
            )
        piece_bytes = min(terms.blob_bytes or terms.chunk_bytes_max, terms.chunk_bytes_max)
        work = self._costs.accept() + SLACK_BYTES
        work += sum(self._costs.download(total, piece_bytes) for total in downloads)
        work += self._costs.upload(frame_bytes + UPDATE_HEAD_BYTES_MAX)
        if self.affords(work):
            return None
        used, limit = self.traffic.bytes_today, self.traffic.bytes_max
        return ProgressKind.BYTES_PER_DAY, (
            f"{used} of {limit} bytes are used today and this round may need {work} (a reserve of {RESERVE_BYTES} is "
            "kept): not before tomorrow, and never unless bytes_per_device_per_day_max is above both together"
        )

    @staticmethod
    def _frame_bytes(terms: Terms, bytes_max: int) -> int | None:
        """Bytes of the frame that is asked for, by the size of the model; None where none fits."""
        if terms.plan.without_parameters:
            return 0  # nothing is trained; how much is reported instead, only the program tells
        size = min(max(1, (terms.parameters_bytes - PARAMETERS_HEAD_BYTES) // 4), ELEMENTS_MAX)
        settings = fitted(terms.plan.codec, size, bytes_max)
        return None if settings is None else frame_bytes_max(size, settings)

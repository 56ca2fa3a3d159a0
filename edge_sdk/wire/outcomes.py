"""The states of a ticket and the verdicts on it, written down once for wire, machines, database and reports.

A ticket stands for one piece of work. It is ``OPEN`` until it gets one of the ``VERDICTS``, which is final::

    invited ──> accepted ──> admitted ──> journalled ──> counted | refused
       └────────────┴──> refused | declined | late | missing

``admitted`` means that all bytes of the update are here and the worker looks at them; it is never written to the
database. What a device is told about a ticket is one of the ``OUTCOMES``.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ABANDONED",
    "ACCEPTED",
    "ADMITTED",
    "BUSY",
    "COUNTED",
    "DECLINED",
    "FINAL_OUTCOMES",
    "INVITED",
    "JOURNALLED",
    "LATE",
    "MISSING",
    "NEXT_STATES",
    "OPEN",
    "OUTCOMES",
    "RECEIVED",
    "REFUSED",
    "UNKNOWN",
    "VERDICTS",
]

INVITED: Final = "invited"
ACCEPTED: Final = "accepted"
ADMITTED: Final = "admitted"
JOURNALLED: Final = "journalled"

COUNTED: Final = "counted"
REFUSED: Final = "refused"
DECLINED: Final = "declined"
LATE: Final = "late"
MISSING: Final = "missing"

RECEIVED: Final = "received"
"""The receipt: the update is in the coordinator's journal."""
BUSY: Final = "busy"
"""The update cannot be stored just now; the device offers it again later."""
ABANDONED: Final = "abandoned"
UNKNOWN: Final = "unknown"

OPEN: Final = (INVITED, ACCEPTED, ADMITTED, JOURNALLED)
VERDICTS: Final = (COUNTED, LATE, DECLINED, MISSING, REFUSED)
"""In the order in which people read them."""

NEXT_STATES: Final[dict[str, frozenset[str]]] = {
    INVITED: frozenset({ACCEPTED, ADMITTED, REFUSED, DECLINED, LATE, MISSING}),
    ACCEPTED: frozenset({ACCEPTED, ADMITTED, REFUSED, DECLINED, LATE, MISSING}),
    ADMITTED: frozenset({JOURNALLED, REFUSED, ACCEPTED}),  # accepted again: it could not be stored just now
    JOURNALLED: frozenset({COUNTED, REFUSED}),
    **{verdict: frozenset() for verdict in VERDICTS},
}
"""Which state of a ticket may follow which in a round that is open."""

FINAL_OUTCOMES: Final = (COUNTED, REFUSED, LATE, MISSING, ABANDONED, DECLINED, UNKNOWN)
OUTCOMES: Final = (RECEIVED, BUSY, *FINAL_OUTCOMES)
"""What a verdict message may say."""

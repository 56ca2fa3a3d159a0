"""Who is waited for in the next selection."""

from __future__ import annotations

from coordinator.attendance import Attendance
from coordinator.schedules.tickets import Ticket


def ticket(device: str, state: str, *, offered: bool = False, away: bool = False) -> Ticket:
    return Ticket(device.encode(), device, b"i" * 16, b"b" * 32, state, offered=offered, away=away)


def test_those_who_asked_and_are_free_again_are_waited_for_once() -> None:
    attendance = Attendance()
    for device in ("idle", "counted", "refused", "done", "working", "silent", "unwilling", "cut", "gone"):
        attendance.asked(device)
    attendance.round_ended(
        [
            ticket("counted", "counted"),
            ticket("refused", "refused"),
            ticket("done", "late", offered=True),
            ticket("working", "late"),
            ticket("silent", "missing"),
            ticket("unwilling", "declined"),
            ticket("cut", "counted", away=True),
        ]
    )
    attendance.went_away("gone")
    assert attendance.selection_begins() == {"idle", "counted", "refused", "done"}
    assert attendance.selection_begins() == frozenset(), "nobody has asked since"


def test_who_asks_again_with_all_that_is_required_is_able() -> None:
    attendance = Attendance()
    attendance.unable |= {"old", "upgraded"}
    attendance.asked("upgraded")
    assert attendance.unable == {"old"}

"""What ``edge-device check`` finds out, one line each: ``ok``, ``warn``, or ``FAIL`` with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["EXIT_BROKER", "EXIT_CONFIGURATION", "EXIT_FAILED", "EXIT_OK", "EXIT_STATE", "Finding", "exit_code"]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_BROKER: Final = 3
EXIT_STATE: Final = 4

SUBJECT_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``FAIL`` where a device could not work, ``warn`` where it could, but not as it should.
        subject: What was looked at, a word.
        text: What was found and, unless it is ok, what to do.
        code: Exit code of a failure.
    """

    level: Literal["ok", "warn", "FAIL"]
    subject: str
    text: str
    code: int = EXIT_FAILED

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.subject:<{SUBJECT_CHARACTERS}}  {self.text}"


def exit_code(findings: list[Finding]) -> int:
    """The code of the first failure, else 0."""
    return next((finding.code for finding in findings if finding.level == "FAIL"), EXIT_OK)

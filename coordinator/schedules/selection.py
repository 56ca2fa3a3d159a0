"""Who is asked to check in, who is chosen, and when the others are to come back. PURE.

Pace steering as in Bonawitz et al. 2019 ("Towards Federated Learning at Scale", section 2.3): a small fleet is gathered
so that enough devices meet in one round, a large one is spread so that they do not all answer at once. An announcement
carries the fraction of devices that should check in and the window to spread over; each device draws for itself, so the
check-ins of a large fleet are already a uniform sample of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import is_dotted, make

__all__ = [
    "RULES",
    "Candidate",
    "Choose",
    "SelectionRule",
    "Uniform",
    "announced_fraction",
    "choose",
    "come_back_seconds",
    "make_rule",
    "select",
    "wanted_count",
]

SHARE_MARGIN: Final = 2.0
"""Asked / wanted: some of those asked are off, not eligible, or drop out."""
ATTEMPTS_DOUBLED_MAX: Final = 30
KEY_BYTES: Final = 16
PLACE_BYTES: Final = 8
GATHER_BELOW: Final = 200
"""Up to this many known devices all are asked: the control traffic of one round is then below a megabyte."""


def wanted_count(goal_count: int, over_selection: float) -> int:
    """How many devices a round invites: the goal and a surplus for those that will drop out."""
    return max(goal_count, math.ceil(goal_count * over_selection))


def announced_fraction(population: int, wanted: int, setting: float | None, attempt: int) -> float:
    """The fraction of devices that should check in.

    Args:
        population: Devices seen recently, 0 if nobody knows.
        wanted: Devices that the round will invite.
        setting: A fraction fixed by the configuration, or None for ``auto``.
        attempt: How often this round was abandoned: each time, twice as many are asked.

    Returns:
        A number in 0..1.
    """
    if setting is not None:
        return setting
    if population <= GATHER_BELOW:
        return 1.0
    return min(1.0, SHARE_MARGIN * wanted / population * 2.0 ** min(attempt, ATTEMPTS_DOUBLED_MAX))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that asks to take part, and what is known of it.

    Attributes:
        device: Its name.
        capabilities: What it said of itself when it checked in: engines, memory, codecs.
        counted: Rounds in which its update counted.
        refused: Rounds in which its update was refused.
        declined: Rounds in which it declined.
        late: Rounds that ended while it was at work.
        missing: Rounds in which it was never heard of again.
    """

    device: str
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    counted: int = 0
    refused: int = 0
    declined: int = 0
    late: int = 0
    missing: int = 0


class SelectionRule(Protocol):
    """Who takes part. A rule is pure: what it gives follows from its arguments alone."""

    def choose(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> Sequence[str]:
        """The names of those who take part, ``count`` of them or fewer where there are not more candidates.

        Args:
            candidates: Everybody who asks, in the order of their names.
            count: How many are wanted.
            rng: The only source of chance.
        """


Choose: TypeAlias = Callable[[Sequence[str], int, np.random.Generator], tuple[list[str], list[str]]]
"""Out of names, how many, and chance: those who take part, and the others in random order as reserves."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """A uniform sample without replacement."""

    def choose(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> list[str]:
        """See :class:`SelectionRule`."""
        return choose([candidate.device for candidate in candidates], count, rng)[0]


RULES: Final[Mapping[str, Callable[[], SelectionRule]]] = {"uniform": Uniform}


def make_rule(name: str, options: Mapping[str, Any] | None = None) -> SelectionRule:
    """The rule of that name, or the user's own class by its dotted name.

    Args:
        name: A key of ``RULES`` or ``"package.module:Class"``.
        options: Keyword arguments of the user's class.

    Raises:
        ConfigurationError: The name is unknown, or the class cannot be made with these options.
    """
    if is_dotted(name):
        rule: SelectionRule = make("selection.rule", name, options, methods=("choose",))
        return rule
    if name not in RULES:
        raise ConfigurationError(
            f'selection.rule = {name!r}: choose one of {", ".join(RULES)}, or your own class, "package.module:Class"'
        )
    if options:
        raise ConfigurationError(f"selection.rule_options: {name} has none; they are for a rule of your own")
    return RULES[name]()


def select(
    rule: SelectionRule, candidates: Sequence[Candidate], count: int, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Those whom a rule chooses, and the others in random order as reserves.

    The outcome depends on the *set* of candidates and ``rng``, never on the order in which they came.

    Raises:
        ConfigurationError: The rule fails, names a device that is no candidate or one twice, or too many or too few.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.device)
    names = [candidate.device for candidate in ordered]
    if isinstance(rule, Uniform):
        return choose(names, count, rng)
    said = f"selection.rule: {type(rule).__name__}.choose"
    try:
        chosen = [str(name) for name in rule.choose(ordered, count, rng)]
    except Exception as error:  # somebody else's code
        raise ConfigurationError(f"{said} fails with {type(error).__name__}: {error}; correct it") from error
    strangers = set(chosen) - set(names)
    if strangers or len(set(chosen)) < len(chosen) or len(chosen) != min(count, len(names)):
        what = f"{min(strangers)!r}, who is no candidate" if strangers else f"{len(chosen)} names"
        raise ConfigurationError(
            f"{said} gives {what}; it must give {min(count, len(names))} different names out of {len(names)} candidates"
        )
    return chosen, choose([name for name in names if name not in set(chosen)], 0, rng)[1]


def choose(candidates: Sequence[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A uniform sample without replacement, and the others in random order as reserves.

    Each name has a place of its own: its keyed BLAKE2b (RFC 7693), under one key that ``rng`` draws for all. So the
    outcome depends on the *set* of candidates and ``rng``, never on the order in which they came; and where one
    candidate more or less is there, no more than one of those chosen is another.
    """
    key = rng.bytes(KEY_BYTES)
    ordered = sorted(candidates, key=lambda name: (_place(name, key), name))
    return ordered[:count], ordered[count:]


def _place(name: str, key: bytes) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=PLACE_BYTES, key=key).digest()


def come_back_seconds(seconds: float, jitter: float, rng: np.random.Generator) -> float:
    """``seconds`` with +- ``jitter`` (a share), so that those who were turned away do not return together."""
    return seconds * (1.0 + jitter * (2.0 * float(rng.random()) - 1.0))

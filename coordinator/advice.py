"""Why updates are refused and tickets given back, in words, and what helps: the one table of it. PURE.

A reason is a short code: refusals are counted by it, tickets keep it, and dashboards group by it. People get a sentence
made of code, words and remedy, bounded like every text on the wire. What a device says of itself is shown as a code
out of this table, or else cut short and without control characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from edge_sdk.wire.outcomes import DECLINED, REFUSED

__all__ = ["ADVICE", "DIVERGED_REASONS", "Advice", "Obstacle", "explain", "obstacle_of", "pause_seconds"]

TEXT_CHARACTERS_MAX: Final = 400
"""What the wire allows for a reason (``edge_sdk/wire/messages.py``)."""
CODE_CHARACTERS_MAX: Final = 64
GROWS_FROM_SECONDS: Final = 1.0
SHARE_MIN: Final = 3
"""An attempt fails for a reason that a third of all invited devices, or more, have in common."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a code means.

    Attributes:
        words: What has happened, a clause.
        remedy: What to do about it, a clause; empty where there is nothing to do.
        is_shared: Whether what was found in one device stands for all that have the reason in common.
    """

    words: str
    remedy: str = ""
    is_shared: bool = False


_SMALLER_STEPS: Final = (
    "normalise inputs and labels (model.normalise, normalise_target) or lower training.learning_rate"
)
_SAME_MODEL: Final = "upgrade edgefed on this device, so that both sides are of one version"
_DAMAGED: Final = Advice("the update's bytes are not what any device of this version sends", _SAME_MODEL)
_OTHER_MODEL: Final = Advice("the update is of another model or codec than the round's", _SAME_MODEL)

ADVICE: Final[Mapping[str, Advice]] = {
    # --- the gate: what an update says ---
    "value": Advice(
        "values of the update are above validation.value_max", f"{_SMALLER_STEPS}, or raise validation.value_max"
    ),
    "norm": Advice(
        "the update is longer than the round allows",
        f"{_SMALLER_STEPS}; where few devices are refused look at their data, where most are raise validation.norm_max "
        "or validation.norm_median_factor",
    ),
    "nan": Advice("values of the update are not finite", _SMALLER_STEPS),
    "loss": Advice(
        "the training loss is above validation.loss_max",
        "where the labels are large normalise (model.normalise_target) or scale them; else lower "
        "training.learning_rate",
    ),
    "evaluation": Advice(
        "the sums of the evaluation are not possible", "look at the device's examples, and at its trainer's evaluate"
    ),
    "examples": Advice("the number of examples is not possible", "look at the device's data and trainer"),
    "steps": Advice("the number of training steps is not possible", "look at the device's trainer"),
    "weight": Advice(
        "the round's sum of weights is full",
        "lower aggregation.examples_max or selection.goal_count of the coordinator",
    ),
    "clipped": Advice(
        "most values of a feature are beyond model.normalise_clip",
        "raise model.normalise_clip, or give the feature in a larger unit",
        is_shared=True,
    ),
    "feature_sums": Advice("the statistics of the features contradict themselves", _SAME_MODEL),
    # --- its form ---
    "shape": _OTHER_MODEL,
    "frames": _OTHER_MODEL,
    "vectors": _OTHER_MODEL,
    "numbers": _OTHER_MODEL,
    "codec": _OTHER_MODEL,
    "block_size": _OTHER_MODEL,
    "size": _OTHER_MODEL,
    "version": Advice("the update is of another version of edgefed", _SAME_MODEL),
    "oversize": Advice("the update is larger than any of this model and codec", _SAME_MODEL),
    **dict.fromkeys(
        (
            *("checksum", "count", "deflate", "digest", "incomplete", "indices", "length", "limit", "malformed"),
            *("protocol", "range", "rice", "scales", "spec", "values"),
        ),
        _DAMAGED,
    ),
    # --- the round ---
    "spent": Advice("another update has been taken for this ticket", "give each device its own state directory"),
    "closed": Advice("the round was over"),
    "went_offline": Advice("the device was gone when the round ended"),
    "abandoned": Advice("the round was given up, and with it all of its updates"),
    "restored": Advice("the coordinator's database was put back from a backup"),
    "aggregation": Advice(
        "the updates could not be put together", "the coordinator's log names the cause; correct [aggregation]"
    ),
    # --- why devices give tickets back ---
    "diverged": Advice("training gave NaN or infinity", f"{_SMALLER_STEPS}, or set training.clip_norm"),
    "no_examples": Advice(
        "the device's examples are missing, too few, or do not fit the model", "run `edge-device check` there"
    ),
    "training": Advice("training failed", "the device's log and status name the cause"),
    "error": Advice("the device's own code failed", "the device's log names the exception"),
    "state": Advice("the device cannot write its state directory", "look at the device's disk"),
    "unsupported": Advice("the device does not know what the plan requires", "upgrade edgefed on the device"),
    "too_large": Advice(
        "the model is larger than the device's limits", "raise limits in device.toml, or take a smaller model"
    ),
    "bytes_per_update": Advice(
        "an update would cost more bytes than the device may send", "compress more ([codec]), or raise the limit"
    ),
    "bytes_per_day": Advice("the device has used up its bytes of the day", "wait for the next day, or raise the limit"),
    "deadline": Advice("the time was too short", "raise selection.reporting_seconds_max, or train less in a round"),
    "not_eligible": Advice("the device's own rules do not let it work now", "look at [eligibility] in device.toml"),
    "gone": Advice("what was to be downloaded is gone", ""),
    "unsettled": Advice("the device waits for the outcome of an earlier update", ""),
    "leaving": Advice("the device was stopped", ""),
    "cancelled": Advice("the work was called off", ""),
}
DIVERGED_REASONS: Final = frozenset({"diverged", "nan", "loss"})
"""The model has no finite step left."""


def explain(code: str, detail: str = "") -> str:
    """A reason for people: ``value: values -61993..22942 exceed +-32; normalise inputs ...``.

    Args:
        code: The reason's code; whatever a device has said is allowed.
        detail: What was found in this case, in place of the table's words.

    Returns:
        At most 400 characters; empty for an empty code.
    """
    shown, advice = _shown(code), ADVICE.get(code, Advice(""))
    words, remedy = _printable(detail.removeprefix("update: ")) or advice.words, advice.remedy
    room = TEXT_CHARACTERS_MAX - len(shown) - len(remedy) - len(": ; ")
    parts = [part for part in (_cut(words, room), remedy) if part]
    return f"{shown}: {'; '.join(parts)}" if parts else shown


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an attempt at a round came to nothing, where its devices have a reason in common.

    Attributes:
        reason: Its code.
        state: ``refused`` or ``declined``.
        count: Tickets that ended so.
        invited: All tickets.
        failures: How many attempts in a row, this one included, have ended for some such reason.
        is_new: Whether the attempt before ended for another reason, or for none.
        detail: What was found in one of the devices, where that is of use for all.
    """

    reason: str
    state: str
    count: int
    invited: int
    failures: int = 1
    is_new: bool = True
    detail: str = ""

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Obstacle | None:
        """The one in a round's summary, where :attr:`record` was put."""
        found = summary.get("obstacle")
        return None if found is None else cls(**found)

    def after(self, before: Obstacle | None) -> Obstacle:
        """The same, as the one that follows ``before``."""
        if before is None:
            return self
        return replace(self, failures=before.failures + 1, is_new=before.reason != self.reason)

    def explained(self, details: Mapping[str, str]) -> Obstacle:
        """The same with what was found in a device: ``details`` by reason, as the updates' examination said it."""
        advice = ADVICE.get(self.reason)
        if advice is None or not advice.is_shared:
            return self
        return replace(self, detail=_cut(_printable(details.get(self.reason, "")), TEXT_CHARACTERS_MAX))

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for a round's summary."""
        return asdict(self)

    @property
    def brief(self) -> str:
        """``6 of 6 refused: value``."""
        return f"{self.count} of {self.invited} {self.state}: {_shown(self.reason)}"

    def sentence(self, number: int) -> str:
        """What is wrong and what to do, in at most 400 characters.

        Args:
            number: The round's number.
        """
        times = f"{self.failures} attempts have" if self.failures > 1 else "an attempt has"
        who = f"{self.count} of {self.invited} devices {'were refused' if self.state == REFUSED else 'declined'}"
        ending = ""
        if self.reason in ADVICE and "model." in ADVICE[self.reason].remedy:
            how = "needs a new federation.task" if number > 1 else "counts from the next start on"
            ending = f"; a changed [model] {how}"
        text = f"round {number}: {times} failed, {who} for {explain(self.reason, self.detail)}"
        return _cut(text, TEXT_CHARACTERS_MAX - len(ending)) + ending


def obstacle_of(tickets: Iterable[tuple[str, str]], good_reason: str = "abandoned") -> Obstacle | None:
    """What an abandoned attempt failed for.

    It is the most frequent reason for which tickets were refused or given back, where that stopped more of them than
    there were good updates, and a third of all that were given out, or more. So one sick device among many that are
    away is no obstacle.

    Args:
        tickets: State and reason of each ticket of the attempt.
        good_reason: The reason of those whose updates were good, and refused with the round alone.
    """
    ends = Counter(tickets)
    good, invited = ends.pop((REFUSED, good_reason), 0), ends.total()
    invited += good
    reasons = {(state, reason): count for (state, reason), count in ends.items() if state in (REFUSED, DECLINED)}
    if not reasons:
        return None
    (state, reason), count = min(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    if count <= good or SHARE_MIN * count < invited:
        return None
    return Obstacle(_shown(reason), state, count, invited)


def pause_seconds(failures: int, seconds: float, seconds_max: float) -> float:
    """How long to wait for the next attempt: twice as long after each failure, and from the second on some seconds.

    Args:
        failures: Attempts in a row that have failed, at least 1.
        seconds: The first pause.
        seconds_max: The longest one; a first pause that is longer stays as it is.
    """
    grown = max(seconds, GROWS_FROM_SECONDS) * 2.0 ** min(failures - 1, 60)
    return seconds if failures <= 1 else max(seconds, min(grown, seconds_max))


def _shown(code: str) -> str:
    return code if code in ADVICE else _cut(_printable(code), CODE_CHARACTERS_MAX)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else f"{text[: max(0, characters_max - 3)]}..."

"""What a round asks of a device: how to train, how to encode, what its update may weigh.

A plan travels inside the invite. It holds only values that may change from round to round without a new program
(rule 10 of the protocol: only parameters change between rounds); everything structural is in the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from edge_sdk.codecs.settings import CodecSettings
from edge_sdk.wire.fields import boolean, choice, integer, map_of, mapping, number, text
from edge_sdk.wire.records import from_map, on_wire, record, to_map

__all__ = ["PLAIN", "Plan", "TrainingPlan"]

SCALARS_MAX: Final = 32
LOCAL_SETTINGS_MAX: Final = 32
LOCAL_CHARACTERS_MAX: Final = 58  # with "local:" it is one of an invite's requirements, of at most 64
BYTE_LIMIT_MAX: Final = 1 << 50
PLAIN: Final = "plain"
"""The local algorithm that every device has: train, then send what has changed."""

_NAME: Final = text(64)
_NUMBER: Final = number(-1e9, 1e9)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a device trains in one round.

    Attributes:
        epochs: Passes over the local training examples.
        batch_size: Examples a step; the last batch of an epoch may be smaller.
        steps_max: Steps after which training ends, 0 for no such limit.
        seconds_max: Time budget in seconds; training ends at the first step boundary beyond it.
        scalars: The training graph's scalar inputs by name (``lr``, ``momentum``, ``mu``, ...).
        held_out: Share of the local examples kept from training for federated evaluation, 0 for none.
        held_out_last: Whether these are the last ones, in the order of the examples; otherwise they are drawn.
        clip_norm: L2 norm to which the whole delta is scaled down, 0 for no clipping.
    """

    kind: ClassVar[str] = "plan.training"
    epochs: int = on_wire(integer(1, 10_000), 1, required=True)
    batch_size: int = on_wire(integer(1, 1 << 20), 32, required=True)
    steps_max: int = on_wire(integer(0, 1 << 31), 0, required=True)
    seconds_max: float = on_wire(number(0.0, 1e7), 600.0, required=True)
    scalars: dict[str, float] = on_wire(
        map_of(_NUMBER, SCALARS_MAX, _NAME), default_factory=lambda: {"lr": 0.1}, required=True
    )
    held_out: float = on_wire(number(0.0, 0.9), 0.0, required=True)
    held_out_last: bool = on_wire(boolean, False, brief=True)
    clip_norm: float = on_wire(number(0.0, 1e9), 0.0, required=True)

    def to_wire(self) -> dict[str, Any]:
        """The plan as a msgpack map."""
        return to_map(self)

    @classmethod
    def from_wire(cls, value: object) -> TrainingPlan:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
        """
        return from_map(cls, mapping(value, cls.kind))


def _codec(value: object, where: str) -> CodecSettings:
    return CodecSettings.from_wire(value)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round asks of a device.

    Attributes:
        training: How to train.
        codec: How to encode the delta.
        examples_max: The largest weight, in examples, that one update may claim.
        weighting: ``examples`` (weight = number of examples) or ``uniform`` (weight 1).
        bytes_per_update_max: Bytes on the wire that bringing one update may take, 0 for no limit.
        bytes_per_device_per_day_max: Bytes on the wire that a device may send and receive in a day, 0 for no limit.
        local: Name of the local algorithm.
        local_settings: Its numbers, by name.
        without_parameters: Whether the local algorithm does without the parameters: devices fetch the program alone.
    """

    kind: ClassVar[str] = "plan"
    training: TrainingPlan = on_wire(record(TrainingPlan))
    codec: CodecSettings = on_wire(_codec)
    examples_max: int = on_wire(integer(1, 1 << 40), 100_000, required=True)
    weighting: str = on_wire(choice("examples", "uniform"), "examples", required=True)
    bytes_per_update_max: int = on_wire(integer(0, BYTE_LIMIT_MAX), 0, brief=True)
    bytes_per_device_per_day_max: int = on_wire(integer(0, BYTE_LIMIT_MAX), 0, brief=True)
    local: str = on_wire(text(LOCAL_CHARACTERS_MAX, 1), PLAIN, brief=True)
    local_settings: dict[str, float] = on_wire(
        map_of(_NUMBER, LOCAL_SETTINGS_MAX, _NAME), default_factory=dict, brief=True
    )
    without_parameters: bool = on_wire(boolean, False, brief=True)

    @property
    def requires(self) -> tuple[str, ...]:
        """What a device must understand to follow this plan, sorted: ``codec:<name>``, ``local:<name>``."""
        needed = {f"codec:{settings.name}" for settings in (self.codec, *(rule for _, rule in self.codec.tensors))}
        if self.local != PLAIN:
            needed.add(f"local:{self.local}")
        return tuple(sorted(needed))

    def to_wire(self) -> dict[str, Any]:
        """The plan as a msgpack map."""
        return {**to_map(self), "training": self.training.to_wire(), "codec": self.codec.to_wire()}

    @classmethod
    def from_wire(cls, value: object) -> Plan:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
            VersionError: The codec is one that this side does not know.
        """
        return from_map(cls, mapping(value, cls.kind))

"""Which codec an update is encoded with, and how: the same values on both sides, since a decoder needs them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.codecs.codecs import CODECS
from edge_sdk.codecs.eden import WIDTH_MAX
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError
from edge_sdk.wire import fields

__all__ = ["BITS", "ROUNDINGS", "TENSOR_RULES_MAX", "CodecSettings"]

DENSITY_MIN: Final = 1e-6
BLOCK_SIZE_MIN: Final = 8
BLOCK_SIZE_MAX: Final = 1 << 16
NAME_CHARACTERS_MAX: Final = 32
TENSOR_RULES_MAX: Final = 16
PATTERN_CHARACTERS_MAX: Final = 200
BITS: Final = 0.09
BITS_MIN: Final = 0.001
BITS_WANTED: Final = f"a share in {BITS_MIN:g}..1 or a whole number of bits in 1..{WIDTH_MAX}"

SHARES: Final = {"momentum": 0.999, "participation": 1.0}
"""Largest values of numbers that are 0 unless a plan says otherwise."""

ROUNDINGS: Final = ("nearest", "stochastic")
"""``nearest`` has the smaller error in one update; ``stochastic`` is unbiased, so errors average out over a cohort."""


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """How an update is encoded.

    Attributes:
        name: The codec: ``auto`` (chooses for each update), ``eden`` (rotated, a few levels, unbiased), ``sparse``
            (top-k with error feedback), ``int8``, ``int4``, ``int2``, ``float16`` or ``dense`` (float32).
        density: Share of the coordinates that ``sparse`` sends, 1e-6..1; other codecs do not read it.
        block_size: Elements that share one scale in the ``int`` codecs, 8..65536; other codecs do not read it.
        rounding: How the ``int`` codecs round, ``nearest`` or ``stochastic``; other codecs do not read it.
        bits: Bits per coordinate of ``eden``: 1, 2, .. 8, or below 1 (at least 0.001) the share of the coordinates that
            is sent, at one bit each; other codecs do not read it.
        momentum: Momentum correction of ``sparse``, 0 for none, below 1; other codecs do not read it.
        participation: For ``auto``: the share of the rounds in which a device is expected to take part; 0 if unknown.
        tensors: ``(pattern, settings)``: tensors whose name matches the pattern (as of a shell, with case) are encoded
            apart, with settings that name no tensors themselves; the first pattern that matches decides.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    name: str = "sparse"
    density: float = 0.01
    block_size: int = 1024
    rounding: str = "stochastic"
    bits: float = BITS
    momentum: float = 0.0
    participation: float = 0.0
    tensors: tuple[tuple[str, CodecSettings], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in CODECS:
            raise ConfigurationError(f"codec.name: {self.name!r} is not one of {', '.join(CODECS)}")
        density = self.density
        if isinstance(density, bool) or not isinstance(density, int | float) or not DENSITY_MIN <= density <= 1.0:
            raise ConfigurationError(f"codec.density: {density!r} is not a share in {DENSITY_MIN:g}..1")
        size = self.block_size
        if isinstance(size, bool) or not isinstance(size, int) or not BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX:
            raise ConfigurationError(
                f"codec.block_size: {size!r} is not a number of elements in {BLOCK_SIZE_MIN}..{BLOCK_SIZE_MAX}"
            )
        if self.rounding not in ROUNDINGS:
            raise ConfigurationError(f"codec.rounding: {self.rounding!r} is not one of {', '.join(ROUNDINGS)}")
        if not _are_bits(self.bits):
            raise ConfigurationError(f"codec.bits: {self.bits!r} is not {BITS_WANTED}")
        for name, below in SHARES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= below:
                raise ConfigurationError(f"codec.{name}: {value!r} is not a number in 0..{below:g}")
        if len(self.tensors) > TENSOR_RULES_MAX:
            raise ConfigurationError(
                f"codec.tensors: {len(self.tensors)} patterns, at most {TENSOR_RULES_MAX} are taken"
            )
        for pattern, rule in self.tensors:
            if not 0 < len(pattern) <= PATTERN_CHARACTERS_MAX or rule.tensors:
                raise ConfigurationError(
                    f"codec.tensors: {pattern[:40]!r} is not a pattern of 1..{PATTERN_CHARACTERS_MAX} characters with "
                    "settings that name no further tensors"
                )

    def to_wire(self) -> dict[str, Any]:
        """The settings as a msgpack map; what is as by default is left out where another codec reads it."""
        wire: dict[str, Any] = {
            "name": self.name,
            "density": float(self.density),
            "block_size": self.block_size,
            "rounding": self.rounding,
        }
        if self.bits != BITS:
            wire["bits"] = float(self.bits)
        for name in SHARES:
            if getattr(self, name):
                wire[name] = float(getattr(self, name))
        if self.tensors:
            wire["tensors"] = [[pattern, rule.to_wire()] for pattern, rule in self.tensors]
        return wire

    @classmethod
    def from_wire(cls, value: object) -> CodecSettings:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
            VersionError: The codec is one that this side does not know.
        """
        where = "plan.codec"
        source = fields.mapping(value, where)
        name = fields.text(NAME_CHARACTERS_MAX)(source.get("name"), f"{where}.name")
        if name not in CODECS:
            raise VersionError(
                f"{where}.name: this side knows {', '.join(CODECS)} and not {name!r}: upgrade this side, "
                "or configure one of these codecs on the other"
            )
        bits = source.get("bits", BITS)
        if not _are_bits(bits):
            raise DecodeError(f"{where}.bits: {str(bits)[:40]!r} is not {BITS_WANTED}")
        return cls(
            name=name,
            density=fields.number(DENSITY_MIN, 1.0)(source.get("density"), f"{where}.density"),
            block_size=fields.integer(BLOCK_SIZE_MIN, BLOCK_SIZE_MAX)(source.get("block_size"), f"{where}.block_size"),
            rounding=fields.choice(*ROUNDINGS)(source.get("rounding"), f"{where}.rounding"),
            bits=float(bits),
            momentum=fields.number(0.0, SHARES["momentum"])(source.get("momentum", 0.0), f"{where}.momentum"),
            participation=fields.number(0.0, SHARES["participation"])(
                source.get("participation", 0.0), f"{where}.participation"
            ),
            tensors=cls._rules_from_wire(source.get("tensors", []), where),
        )

    @classmethod
    def _rules_from_wire(cls, value: object, where: str) -> tuple[tuple[str, CodecSettings], ...]:
        if not isinstance(value, list) or len(value) > TENSOR_RULES_MAX:
            raise DecodeError(f"{where}.tensors: expected a list of at most {TENSOR_RULES_MAX} rules")
        rules = []
        for entry in value:
            if not isinstance(entry, list) or len(entry) != 2:
                raise DecodeError(f"{where}.tensors: expected [pattern, settings]")
            pattern = fields.text(PATTERN_CHARACTERS_MAX, 1)(entry[0], f"{where}.tensors")
            if isinstance(entry[1], dict) and entry[1].get("tensors"):
                raise DecodeError(f"{where}.tensors: rules inside of a rule")
            rules.append((pattern, cls.from_wire(entry[1])))
        return tuple(rules)


def _are_bits(value: object) -> bool:
    """Whether ``value`` is a share below 1, or a whole number of bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return BITS_MIN <= value < 1.0 or value in range(1, WIDTH_MAX + 1)

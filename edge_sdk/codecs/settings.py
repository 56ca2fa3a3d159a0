"""Which codec an update is encoded with, and how: the same values on both sides, since a decoder needs them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from edge_sdk.codecs.codec import Codec, settings_of
from edge_sdk.codecs.frame import HEADER_BYTES_MAX
from edge_sdk.codecs.table import CODECS, find_codec
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError
from edge_sdk.wire.fields import list_of, mapping, row_of, text

__all__ = ["TENSOR_RULES_MAX", "CodecSettings", "fitted"]

NAME_CHARACTERS_MAX: Final = 32
TENSOR_RULES_MAX: Final = 16
PATTERN_CHARACTERS_MAX: Final = 200
_NAME: Final = text(NAME_CHARACTERS_MAX)
_RULES: Final = list_of(row_of(pattern=text(PATTERN_CHARACTERS_MAX, 1), settings=mapping), TENSOR_RULES_MAX)


@dataclass(frozen=True, slots=True, init=False)
class CodecSettings:
    """How an update is encoded: ``CodecSettings("sparse", density=0.01)``.

    Attributes:
        codec: The codec with its own settings.
        tensors: ``(pattern, settings)``: tensors whose name matches the pattern (as of a shell, with case) are encoded
            apart, with settings that name no tensors themselves; the first pattern that matches decides.
    """

    codec: Codec
    tensors: tuple[tuple[str, CodecSettings], ...]

    def __init__(
        self, name: str | Codec, *, tensors: tuple[tuple[str, CodecSettings], ...] = (), **settings: Any
    ) -> None:
        """Checks everything.

        Args:
            name: The name of a codec in the table, or a dotted name, or a codec with its settings.
            tensors: See above.
            settings: With a name, the settings that the codec declares; its defaults for those that are missing.

        Raises:
            ConfigurationError: There is no such codec, it does not read one of ``settings``, or a value is not
                allowed.
        """
        if isinstance(name, Codec) and settings:
            raise ConfigurationError("codec: give a name with settings, or a codec that has them")
        made = name if isinstance(name, Codec) else _made(find_codec(name), settings)
        _check_rules(tensors)
        object.__setattr__(self, "codec", made)
        object.__setattr__(self, "tensors", tuple(tensors))

    @classmethod
    def of(cls, name: str, **settings: Any) -> CodecSettings:
        """As the constructor; ``settings`` that the codec does not read are left out."""
        codec = find_codec(name)
        reads = {field.name for field in settings_of(codec)}
        return cls(codec(**{key: value for key, value in settings.items() if key in reads}))

    @property
    def name(self) -> str:
        """The codec's name."""
        return self.codec.name

    @property
    def keeps(self) -> frozenset[str]:
        """Names of the vectors that a device keeps between updates for these settings."""
        return frozenset(self.codec.keeps).union(*(rule.codec.keeps for _, rule in self.tensors))

    def but(self, **settings: Any) -> CodecSettings:
        """The same with other settings of the codec."""
        return CodecSettings(_changed(self.codec, settings), tensors=self.tensors)

    def with_codec(self, codec: Codec) -> CodecSettings:
        """The same with another codec for what no pattern takes."""
        return CodecSettings(codec, tensors=self.tensors)

    def taking_part(self, participation: float) -> CodecSettings:
        """The same for rounds in each of which a device takes part with probability ``participation``; see the codec's
        method of this name."""
        return self.with_codec(self.codec.taking_part(participation))

    def to_wire(self) -> dict[str, Any]:
        """The settings as a msgpack map: the name, what plans tell of a codec, and ``tensors`` where there are any."""
        wire: dict[str, Any] = {"name": self.name}
        told = [field.name for field in settings_of(type(self.codec)) if field.metadata["told"]]
        wire.update((name, getattr(self.codec, name)) for name in told)
        if self.tensors:
            wire["tensors"] = [[pattern, rule.to_wire()] for pattern, rule in self.tensors]
        return wire

    @classmethod
    def from_wire(cls, value: object, where: str = "plan.codec") -> Self:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
            VersionError: The codec is one that this side does not know.
        """
        source = mapping(value, where)
        rules = _RULES(source.get("tensors", []), f"{where}.tensors")
        if any(rule.get("tensors") for _, rule in rules):
            raise DecodeError(f"{where}.tensors: rules inside of a rule")
        return cls(
            _codec_from(source, where),
            tensors=tuple((pattern, CodecSettings(_codec_from(rule, f"{where}.tensors"))) for pattern, rule in rules),
        )


def fitted(settings: CodecSettings, size: int, bytes_max: int) -> CodecSettings | None:
    """The settings nearest to ``settings`` with which no frame is above ``bytes_max``.

    ``sparse`` sends fewer coordinates (what it leaves out stays in the residual), ``eden`` fewer bits and below one bit
    a smaller share; others have one size. A decoder that was told ``settings`` takes what an encoder with the
    returned ones makes: only less is sent.

    Args:
        settings: What the plan asks for.
        size: Number of coordinates of the vector, 1..2^28.
        bytes_max: Bytes of the largest frame; 0 for no limit.

    Returns:
        ``settings`` themselves where they fit, else the largest that do; None where none do.
    """
    if not bytes_max:
        return settings
    codec = settings.codec.fitted(size, bytes_max - HEADER_BYTES_MAX)
    if codec is None:
        return None
    return settings if codec is settings.codec else settings.with_codec(codec)


def _made(codec: type[Codec], settings: dict[str, Any]) -> Codec:
    names = [field.name for field in settings_of(codec)]
    for name in settings:
        if name not in names:
            reads = f"reads {', '.join(names)}" if names else "has no settings"
            raise ConfigurationError(
                f"codec.{name}: is not read by {codec.name}, which {reads}; leave it out, or choose another codec.name"
            )
    return codec(**settings)


def _changed(codec: Codec, settings: dict[str, Any]) -> Codec:
    now = {field.name: getattr(codec, field.name) for field in settings_of(type(codec))}
    return _made(type(codec), now | settings)


def _check_rules(tensors: tuple[tuple[str, CodecSettings], ...]) -> None:
    if len(tensors) > TENSOR_RULES_MAX:
        raise ConfigurationError(f"codec.tensors: {len(tensors)} patterns, at most {TENSOR_RULES_MAX} are taken")
    for pattern, rule in tensors:
        if not 0 < len(pattern) <= PATTERN_CHARACTERS_MAX or rule.tensors:
            raise ConfigurationError(
                f"codec.tensors: {pattern[:40]!r} is not a pattern of 1..{PATTERN_CHARACTERS_MAX} characters with "
                "settings that name no further tensors"
            )


def _codec_from(source: dict[str, Any], where: str) -> Codec:
    name = _NAME(source.get("name"), f"{where}.name")
    codec = CODECS.get(name)
    if codec is None:
        raise VersionError(
            f"{where}.name: this side knows {', '.join(CODECS)} and not {name!r}: upgrade this side, register the "
            "codec here if it is one of your own, or configure one of these on the other"
        )
    settings = {}
    for field in settings_of(codec):
        if not field.metadata["told"]:
            continue
        if field.name not in source:
            raise DecodeError(f"{where}.{field.name}: missing")
        settings[field.name] = field.metadata["check"](source[field.name], f"{where}.{field.name}")
    try:
        return codec(**settings)
    except ConfigurationError as error:  # a codec of one's own may check more than single settings
        raise DecodeError(f"{where}: {error}") from None

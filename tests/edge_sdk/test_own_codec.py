"""A codec that does not come with the project: found by its dotted name, known from then on, and kept in its place."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from own_codec import Signs

from coordinator.config import load_config
from coordinator.config.settings import codec_settings
from device_sim.scenario import Scenario, run
from edge_sdk.client import EdgeClient
from edge_sdk.codecs import (
    CODECS,
    Codec,
    CodecSettings,
    decode_update,
    encode_update,
    find_codec,
    frame_codec,
    register_codec,
    setting,
    table,
)
from edge_sdk.codecs.frame import pack_frame
from edge_sdk.device.settings import AgentSettings, supported
from edge_sdk.errors import ConfigurationError, DecodeError, VersionError
from edge_sdk.wire.fields import integer
from edge_sdk.wire.plan import Plan, TrainingPlan

SIZE = 1000


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    before = dict(CODECS)
    yield
    for name in CODECS.keys() - before.keys():
        table._known.pop(name)


def vector(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def test_a_dotted_name_makes_a_codec_known_and_an_import_does_not() -> None:
    assert "signs" not in CODECS
    with pytest.raises(ConfigurationError, match=r"codec\.name = 'signs': must be one of auto, .*or \"package"):
        CodecSettings("signs")
    assert find_codec("own_codec:Signs") is Signs is CODECS["signs"] is register_codec(Signs)
    assert CodecSettings("signs", gain=2) == CodecSettings("own_codec:Signs", gain=2.0) == CodecSettings(Signs(2.0))


def test_its_frames_come_back_and_name_it() -> None:
    register_codec(Signs)
    codec = CodecSettings("signs")
    first = encode_update(vector(), None, codec, seed=0)
    assert frame_codec(first.frame) == "signs" and len(first.frame) < SIZE / 8 + 20
    sent = decode_update(first.frame, SIZE, codec).dense()
    assert first.residual is not None
    np.testing.assert_allclose(sent + first.residual, vector(), atol=1e-6)
    dense = encode_update(vector(1), first.kept, CodecSettings("dense"), seed=0)
    np.testing.assert_allclose(
        decode_update(dense.frame, SIZE, CodecSettings("dense")).dense(), vector(1) + first.residual, atol=1e-6
    )


def test_a_plan_names_it_and_a_device_without_it_says_so() -> None:
    wire = {"name": "signs", "gain": 1.0}
    with pytest.raises(VersionError, match="register the codec here if it is one of your own"):
        CodecSettings.from_wire(wire)
    register_codec(Signs)
    plan = Plan(TrainingPlan(), CodecSettings.from_wire(wire))
    assert plan.requires == ("codec:signs",) and Plan.from_wire(plan.to_wire()) == plan
    assert "codec:signs" in supported(AgentSettings("f", "d"))
    for gain in (-1.0, "1", None, float("nan")):
        with pytest.raises(DecodeError, match=r"plan\.codec\.gain"):
            CodecSettings.from_wire({**wire, "gain": gain})


def test_an_application_gives_it_to_its_client(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"broker": "mqtt://localhost", "federation": "f", "device_id": "d"}
    client = EdgeClient(**arguments, load_examples=lambda: None, state_dir=tmp_path, codecs=[Signs])
    client.stop()
    assert CODECS["signs"] is Signs
    with pytest.raises(ConfigurationError, match=r"codec dict: is no class derived from"):
        EdgeClient(**arguments, load_examples=lambda: None, state_dir=tmp_path / "b", codecs=[dict])  # type: ignore[list-item]


def test_the_configuration_names_it_and_sets_what_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    head = '[federation]\nname = "demo"\n[model]\nzoo = "logistic_regression"\ninputs = [4]\noutputs = 3\n[codec]\n'
    path.write_text(head + 'name = "own_codec:Signs"\ngain = 0.5\ntensors = { "b*" = { name = "own_codec:Signs" } }\n')
    assert tomllib.loads(path.read_text())
    settings = codec_settings(load_config(path))
    assert settings == CodecSettings("signs", gain=0.5, tensors=(("b*", CodecSettings("signs")),))
    for line, message in (
        ("gain = 11", r"codec\.gain = 11: must be a number from 0 to 10\. Factor of the mean magnitude\."),
        ("bits = 1", r"codec\.bits: is not read by signs, which reads gain"),
        (
            'tensors = { "b" = { name = "own_codec:Signs", gain = true } }',
            r"codec\.tensors\.gain = True: must be a ",
        ),
    ):
        path.write_text(f'{head}name = "own_codec:Signs"\n{line}\n')
        with pytest.raises(ConfigurationError, match=message):
            load_config(path)
    path.write_text(f'{head}name = "own_codec:Nothing"\n')
    with pytest.raises(ConfigurationError, match=r"codec\.name: 'own_codec:Nothing'"):
        load_config(path)


def test_rounds_run_with_it_from_coordinator_to_device_and_back() -> None:
    scenario = Scenario(devices=4, rounds=3, goal_count=3, minimum_count=2, codec=CodecSettings("own_codec:Signs"))
    outcome = run(scenario, 1)
    assert len(outcome.rounds) == 3 and all(verdicts["counted"] for verdicts in outcome.rounds)


# --- what is refused -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Broken(Codec):
    """Fails in every way that a decoder can."""

    name: ClassVar[str] = "broken"
    wire_id: ClassVar[int] = 201
    how: int = setting(integer(0, 3), 0, "How.", allowed="0 to 3")

    def encode(self, delta: Any, kept: Any, context: Any) -> Any:
        return b"x", {}

    def decode(self, body: memoryview, size: int) -> Any:
        return [lambda: body[99], lambda: 1 / 0, lambda: None, lambda: CODECS["dense"]().decode(body, 1)][self.how]()

    def body_bytes_max(self, size: int) -> int:
        return 8


@pytest.mark.parametrize("how", range(4))
def test_a_decoder_that_fails_costs_the_update_and_not_the_round(how: int) -> None:
    register_codec(Broken)
    codec = CodecSettings("broken", how=how)
    for frame in (encode_update(vector(), None, codec, seed=0).frame, pack_frame(bytes(4), SIZE, 201)):
        with pytest.raises(DecodeError):
            decode_update(frame, SIZE, codec)


def test_only_a_whole_codec_with_a_name_and_an_id_of_its_own_is_registered() -> None:
    def made(**changes: Any) -> type[Codec]:
        body = {"encode": Signs.encode, "decode": Signs.decode, "body_bytes_max": Signs.body_bytes_max}
        body |= {"name": "mine", "wire_id": 202, "__annotations__": {}} | changes
        codec = type("Mine", (Codec,), {name: value for name, value in body.items() if name != "frozen"})
        return dataclasses.dataclass(frozen=True)(codec) if body.get("frozen", True) else codec

    register_codec(Signs)
    loose = {"__annotations__": {"level": "int"}, "level": 3}
    for codec, message in (
        (object(), "is no class derived from"),
        (made(decode=Codec.decode), "does not define decode"),
        (made(frozen=False), "is no frozen dataclass"),
        (made(name="My Codec"), "name must be 1 to 32 characters"),
        (made(name="sparse"), "the name 'sparse' is taken by Sparse"),
        (made(name="signs"), "the name 'signs' is taken by Signs"),
        (made(wire_id=3), r"wire_id must be in 128\.\.254"),
        (made(wire_id=255), r"wire_id must be in 128\.\.254"),
        (made(wire_id=200), "wire_id 200 is taken by Signs"),
        (made(**loose), "level must be declared with edge_sdk.codecs.setting"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            register_codec(codec)
    assert "mine" not in CODECS and register_codec(made()) is CODECS["mine"]
    with pytest.raises(TypeError):
        CODECS["other"] = Signs  # type: ignore[index]

"""Whatever bytes come, decoding ends in a program or in one of our own errors, soon and in little memory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from hand_made import mlp_program, start
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import BundleError, DecodeError, TrainingError, VersionError
from edge_sdk.training.bundle import Bundle, Program, decode_parameters, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.engine.onnx_bytes import check_onnx

PROGRAM = mlp_program((3, 4, 2))
DATA = PROGRAM.encode()


def mangled(data: bytes, seed: int) -> bytes:
    """``data`` with a few bytes changed, cut out, put in or cut off."""
    rng = random.Random(seed)
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(result)) if result else 0
        kind = rng.randrange(4)
        if kind == 0 and result:
            result[place] = rng.randrange(256)
        elif kind == 1:
            del result[place : place + rng.randint(1, 9)]
        elif kind == 2:
            result[place:place] = rng.randbytes(rng.randint(1, 9))
        elif rng.random() < 0.2:
            del result[place:]
    return bytes(result)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_program_decode_of_noise(data: bytes) -> None:
    for candidate in (data, DATA[:8] + data):
        try:
            Program.decode(candidate)
        except (DecodeError, VersionError):
            pass


def test_program_decode_of_mangled_programs() -> None:
    survivors = 0
    for seed in range(1500):
        try:
            program = Program.decode(mangled(DATA, seed))
        except (DecodeError, VersionError):
            continue
        survivors += 1
        program.encode()
    assert survivors  # some changes hit the graphs' bytes: the mangling is not so coarse that it proves nothing


def test_engines_meet_mangled_programs_with_our_errors_only() -> None:
    x, target = np.ones((2, 3), np.float32), np.array([0, 1])
    for seed in range(400):
        try:
            program = Program.decode(mangled(DATA, seed))
            engine = make_engine(program, "numpy")
            handle = engine.load(np.ones(program.spec.size, np.float32))
            engine.step(handle, {"x": x, "target": target}, program.scalars)
            engine.read(handle)
        except (DecodeError, VersionError, BundleError, TrainingError):
            pass


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_check_onnx_of_noise(data: bytes, seed: int) -> None:
    for candidate in (data, mangled(PROGRAM.train, seed)):
        try:
            check_onnx(candidate, "fuzz")
        except BundleError:
            pass


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 2**32))
def test_decode_parameters_of_noise(data: bytes, seed: int) -> None:
    good = encode_parameters(start(PROGRAM))
    for candidate in (data, good[:16] + data, mangled(good, seed)):
        try:
            vector = decode_parameters(candidate, PROGRAM.spec)
        except (DecodeError, VersionError):
            continue
        assert vector.shape == (PROGRAM.spec.size,) and np.isfinite(vector).all()


def test_bundle_load_of_mangled_files(tmp_path: Path) -> None:
    path = tmp_path / "model.bundle"
    Bundle(PROGRAM, start(PROGRAM)).save(path)
    good = path.read_bytes()
    for seed in range(300):
        path.write_bytes(mangled(good, seed))
        try:
            Bundle.load(path)
        except (BundleError, VersionError):
            pass


def test_onnxruntime_meets_mangled_graphs_with_our_errors_only() -> None:
    x, target = np.ones((2, 3), np.float32), np.array([0, 1])
    for seed in range(300):
        try:
            engine = make_engine(replace(PROGRAM, train=mangled(PROGRAM.train, seed)), "onnxruntime")
            engine.step(engine.load(start(PROGRAM)), {"x": x, "target": target}, PROGRAM.scalars)
        except (DecodeError, BundleError, TrainingError):
            pass

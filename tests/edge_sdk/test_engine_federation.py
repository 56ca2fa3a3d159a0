"""What a federation learns does not depend on which of its devices trains on which engine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from hand_made import blobs
from numpy.typing import NDArray
from one_federation import Federation, wait

from device_sim.broker import PrivateBroker
from edge_sdk.training.bundle import decode_parameters
from edge_sdk.training.program import Program

ROUNDS = 4
EXAMPLES = (40, 64, 90)
FLEETS = {
    "numpy": ("numpy", "numpy", "numpy"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "onnxruntime"),
    "mixed": ("numpy", "onnxruntime", "numpy"),
    "mixed-otherwise": ("onnxruntime", "numpy", "onnxruntime"),
}
# A device shuffles by its ticket, which is random. So each step takes all of its examples, whose order is then no
# matter; and nothing is left out of an update, as which of two equal coordinates is the largest would be chance.
TABLES: dict[str, dict[str, Any]] = {
    "model": {"zoo": "mlp", "hidden": [16], "activation": "tanh", "optimizer": "momentum"},
    "training": {"epochs": 12, "batch_size": 128, "learning_rate": 0.05},
    "selection": {"goal_count": len(EXAMPLES), "minimum_count": len(EXAMPLES)},
    "codec": {"name": "dense", "density": None},
    "stopping": {"rounds_max": ROUNDS},
}


def checkpoints(plant: Federation) -> list[NDArray[np.float32]]:
    """The parameters before the first round and after each."""
    found = []
    for checkpoint in sorted(plant.store.checkpoints("default"), key=lambda each: each.round):
        program, parameters = (
            plant.store.get_blob(d) for d in (checkpoint.program_digest, checkpoint.parameters_digest)
        )
        assert program is not None and parameters is not None
        found.append(decode_parameters(parameters, Program.decode(program).spec).copy())
    return found


def test_the_outcome_of_a_federation_does_not_depend_on_its_devices_engines(
    mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    shards = [blobs(count, seed=3) for count in EXAMPLES]
    with ExitStack() as stack:
        plants = {}
        for name, engines in FLEETS.items():
            plant = Federation(tmp_path / name, mosquitto_broker.url, name, **TABLES)
            plants[name] = stack.enter_context(plant)
            for number, (engine, shard) in enumerate(zip(engines, shards, strict=True)):
                device = f"{name}-{number}"
                state = tmp_path / f"state-{device}"
                client = plant.client(state, device_id=device, engine=engine, load_examples=lambda own=shard: own)
                stack.enter_context(client)
        wait(lambda: all(len(plant.rounds) >= ROUNDS for plant in plants.values()), seconds=60.0)
        outcomes = {name: checkpoints(plant) for name, plant in plants.items()}
        for name, engines in FLEETS.items():
            known = {each.device: each.capabilities["engine"] for each in plants[name].store.devices()}
            assert tuple(known[device] for device in sorted(known)) == engines
            assert [record.summary["counted"] for record in plants[name].rounds] == [len(EXAMPLES)] * ROUNDS

    expected = outcomes["numpy"]
    assert np.abs(expected[-1] - expected[0]).max() > 0.3  # it did learn
    for name, vectors in outcomes.items():
        assert len(vectors) == ROUNDS + 1
        for vector, reference in zip(vectors, expected, strict=True):
            np.testing.assert_allclose(vector, reference, rtol=0, atol=1e-3, err_msg=name)

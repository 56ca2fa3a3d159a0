"""Tasks in which an update is sparse by nature: ratings by tables of users and items, each device some rows of them.

A rating is the product of a user's row and an item's, with noise. Devices are households: a few users, and the items that
they have rated, which are drawn so that a few are frequent and most are rare. Training goes on from tables that are
right up to a noise of their own, as after a first training on a server. With ``hidden`` a network of dense layers judges
both rows together, so that one model has tables and other tensors.

Everything is a function of the task and the seed; no data are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from device_sim.stable_random import StableRandom

__all__ = ["Ratings", "Tables", "ratings", "tables_model"]

OPSET: Final = 17
IR_VERSION: Final = 9
NOISE: Final = 0.5
WARM: Final = 0.7
RATINGS_EACH: Final = 4
TEST_RATINGS: Final = 8_000


@dataclass(frozen=True, slots=True)
class Tables:
    """The shape of such a task.

    Attributes:
        rows: Of both tables together, half of them users.
        width: Of a row.
        touched: Share of the rows that a device trains on.
        hidden: Width of a dense layer that judges both rows, 0 for their product.
    """

    rows: int
    width: int
    touched: float
    hidden: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """Who has rated what, and how.

    Attributes:
        users: int64[n].
        items: int64[n].
        values: float32[n, 1].
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """By the names of the model's inputs."""
        return {"user": self.users, "item": self.items}


def tables_model(tables: Tables, seed: int) -> onnx.ModelProto:
    """``(user, item) -> rating``, from the tables that training begins with."""
    users, items = _truth(tables, seed)
    draws = StableRandom(seed, "warm start")
    half = tables.rows // 2
    weights = {
        "users": users + WARM * _normal(draws, half, tables.width) / np.sqrt(tables.width),
        "items": items + WARM * _normal(draws, half, tables.width) / np.sqrt(tables.width),
    }
    nodes = [
        helper.make_node("Gather", ["users", "user"], ["u"]),
        helper.make_node("Gather", ["items", "item"], ["v"]),
        helper.make_node("Mul", ["u", "v"], ["product"]),
    ]
    if tables.hidden:
        bound = np.sqrt(6 / tables.width)
        weights["w1"] = bound * (2.0 * draws.uniforms(tables.width * tables.hidden) - 1.0).reshape(tables.width, -1)
        weights["b1"] = np.zeros(tables.hidden)
        weights["w2"] = np.sqrt(1 / tables.hidden) * (2.0 * draws.uniforms(tables.hidden) - 1.0).reshape(-1, 1)
        weights["b2"] = np.zeros(1)
        nodes += [
            helper.make_node("Gemm", ["product", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["active"]),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["rating"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceSum", ["product", "axis"], ["rating"], keepdims=1))
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    if not tables.hidden:
        initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "ratings",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch"]) for name in ("user", "item")],
        [helper.make_tensor_value_info("rating", onnx.TensorProto.FLOAT, ["batch", 1])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def ratings(tables: Tables, clients: int, seed: int) -> tuple[list[Ratings], Ratings]:
    """Each client's ratings, and some of the same users and items that nobody trains on."""
    truth, half = _truth(tables, seed), tables.rows // 2
    mine = max(1, round(tables.touched * half))
    dealt, kept = [], []
    for client in range(clients):
        draws = StableRandom(seed, f"household {client}")
        users = draws.permutation(half)[:mine]
        # Popular items are in many households: the rank is the square of a uniform number.
        items = np.unique((half * draws.uniforms(2 * mine) ** 2).astype(np.int64))
        items = items[draws.permutation(len(items))[:mine]]
        count = RATINGS_EACH * mine + max(1, TEST_RATINGS // clients)
        pairs = users[draws.permutation(count) % len(users)], items[(draws.uniforms(count) * len(items)).astype(int)]
        made = _rated(truth, *pairs, draws)
        dealt.append(_part(made, slice(RATINGS_EACH * mine)))
        kept.append(_part(made, slice(RATINGS_EACH * mine, None)))
    return dealt, Ratings(
        np.concatenate([part.users for part in kept]),
        np.concatenate([part.items for part in kept]),
        np.concatenate([part.values for part in kept]),
    )


def _truth(tables: Tables, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    draws, half = StableRandom(seed, "tables"), tables.rows // 2
    scale = (4.0 / tables.width) ** 0.25  # ratings have a standard deviation of 2
    return scale * _normal(draws, half, tables.width), scale * _normal(draws, half, tables.width)


def _rated(
    truth: tuple[NDArray[np.float64], NDArray[np.float64]],
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    draws: StableRandom,
) -> Ratings:
    exact = (truth[0][users] * truth[1][items]).sum(axis=1)
    values = exact + NOISE * _normal(draws, len(exact), 1)[:, 0]
    return Ratings(users.astype(np.int64), items.astype(np.int64), values.astype(np.float32)[:, None])


def _part(made: Ratings, rows: slice) -> Ratings:
    return Ratings(made.users[rows], made.items[rows], made.values[rows])


def _normal(draws: StableRandom, rows: int, columns: int) -> NDArray[np.float64]:
    """Standard normal numbers, by Box and Muller."""
    size = rows * columns
    radius = np.sqrt(-2.0 * np.log1p(-draws.uniforms(size)))
    return (radius * np.cos(2.0 * np.pi * draws.uniforms(size))).reshape(rows, columns)

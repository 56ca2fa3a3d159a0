"""Made-up federations whose updates are sparse by nature: a device trains the rows of few users, items or words.

``ratings``: each client has users of its own and rates items, the popular ones more often (a Zipf law). A rating is the
sum of the user's and the item's inclination, the inner product of their tastes, and noise. The model has a row for
each user and item in one table (factorisation, Koren et al., "Matrix factorization techniques for recommender systems",
2009), with inclinations in a second table of one column; judged by the RMSE on ratings that nobody trains on.

``deep``: the same ratings, from the rows of user and item by two dense layers.

``words``: texts of topics; a client writes about two of them, with words of its own. The model takes the mean of the
words' rows and classifies it; judged by the accuracy on texts that nobody trains on.

Rates and lengths were chosen with dense float32, and what ``auto`` does with the seeds 10 to 12, which are not among
those that are committed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.codec_models import table_model
from device_sim.stable_random import StableRandom

__all__ = ["Deal", "Tables"]

TASTES: Final = 4
TOPICS: Final = 8
WORDS_A_TEXT: Final = 12
NOISE: Final = 0.4
TEST_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Deal:
    """Examples: ``x`` int64[n, ...], ``y`` and whose they are, int64[n]."""

    x: NDArray[np.int64]
    y: NDArray[np.float32] | NDArray[np.int64]
    client: NDArray[np.int64]

    def part(self, chosen: NDArray[np.bool_]) -> Deal:
        """Those at which ``chosen`` is true."""
        return Deal(self.x[chosen], self.y[chosen], self.client[chosen])


@dataclass(frozen=True, slots=True)
class Tables:
    """What is made up.

    Attributes:
        kind: ``ratings``, ``deep`` or ``words``.
        rows: Of the table.
        columns: Of the table.
        touched: Share of the rows that one client touches, about.
        examples: Of each client, before some are held out.
        hidden: Width of the dense layer of ``deep``.
    """

    kind: str
    rows: int
    columns: int
    touched: float
    examples: int
    hidden: int = 0

    def model(self, seed: int) -> onnx.ModelProto:
        """The inference model with its initial weights."""
        classes = TOPICS if self.kind == "words" else 0
        return table_model(seed, rows=self.rows, columns=self.columns, hidden=self.hidden, classes=classes)

    @property
    def loss(self) -> str:
        """The loss that is trained."""
        return "softmax_cross_entropy" if self.kind == "words" else "mean_squared_error"

    def describe(self) -> str:
        """The data and the model as a row's heading."""
        what = {"ratings": "Ratings", "deep": "Ratings, dense layers too", "words": "Words"}[self.kind]
        return f"{what}, {self.rows:,} x {self.columns}, {100 * self.touched:g} % touched"

    def deal(self, seed: int, clients: int) -> tuple[Deal, Deal]:
        """What is trained on and what judges."""
        made = self._words(seed, clients) if self.kind == "words" else self._ratings(seed, clients)
        held_out = StableRandom(seed, "held out").uniforms(len(made.y)) < TEST_SHARE
        return made.part(~held_out), made.part(held_out)

    def _ratings(self, seed: int, clients: int) -> Deal:
        """Users come first among the rows: a third of them."""
        draws = StableRandom(seed, "ratings")
        touched = max(4, round(self.touched * self.rows))
        each = max(1, min(touched // 4, self.rows // (3 * clients)))
        users = clients * each
        items = self.rows - users
        tastes = _normal(draws, (self.rows, TASTES)) / math.sqrt(TASTES)
        inclinations = 0.5 * _normal(draws, (self.rows,))
        popularity = 1.0 / (10.0 + np.arange(items))
        x, y, client = [], [], []
        for number in range(clients):
            known = users + _drawn(draws, popularity, touched - each)
            # Every item that a client knows is rated as often as any other, or once less.
            rated = known[np.arange(self.examples) % known.size]
            raters = number * each + (draws.uniforms(self.examples) * each).astype(np.int64)
            pairs = np.stack((raters, rated), axis=1)
            told = inclinations[pairs].sum(axis=1) + 1.5 * (tastes[pairs[:, 0]] * tastes[pairs[:, 1]]).sum(axis=1)
            x.append(pairs)
            y.append(told + NOISE * _normal(draws, (self.examples,)))
            client.append(np.full(self.examples, number))
        return Deal(np.concatenate(x), np.concatenate(y).astype(np.float32), np.concatenate(client))

    def _words(self, seed: int, clients: int) -> Deal:
        draws = StableRandom(seed, "words")
        known_each = max(8, round(self.touched * self.rows))
        topic_of = (draws.uniforms(self.rows) * TOPICS).astype(np.int64)
        popularity = 1.0 / (10.0 + np.arange(self.rows))
        x, y, client = [], [], []
        for number in range(clients):
            topics = draws.permutation(TOPICS)[:2]
            known = _drawn(draws, popularity, known_each)
            labels = topics[(draws.uniforms(self.examples) * 2).astype(np.int64)]
            # A word of the text's topic is a few times as likely as one of another topic.
            texts = []
            for label in labels:
                weights = np.cumsum(np.where(topic_of[known] == label, 4.0, 1.0))
                texts.append(known[np.searchsorted(weights, draws.uniforms(WORDS_A_TEXT) * weights[-1], side="right")])
            x.append(np.stack(texts))
            y.append(labels)
            client.append(np.full(self.examples, number))
        return Deal(np.concatenate(x), np.concatenate(y), np.concatenate(client))


def _normal(draws: StableRandom, shape: tuple[int, ...]) -> NDArray[np.float64]:
    count = math.prod(shape)
    radius = np.sqrt(-2.0 * np.log(1.0 - draws.uniforms(count)))
    return (radius * np.cos(2.0 * np.pi * draws.uniforms(count))).reshape(shape)


def _drawn(draws: StableRandom, weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """int64[count]: different numbers, the likelier the larger their weight (Efraimidis and Spirakis, 2006)."""
    keys = np.log(1.0 - draws.uniforms(weights.size)) / weights
    return np.argsort(-keys, kind="stable")[:count]

"""Whether a difference of two results is one: a paired bootstrap over persons, draws and records.

Queries of one person, and the draws of one model, are no independent samples. What is drawn again is a person
with all queries, a draw of the gallery (or a split) with all queries, and a record (a seed) with all of its
scores; persons and draws are the same for both sides, which makes the difference a paired one.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

RESAMPLES, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class QueryScores:
    """Scores of N queries, those of each draw one after another: draws (N,), pids (N,), and two by feature.

    first_ranks (N,) int32: rank of the first match as CMC counts it, 0 without one. ap (N,) float32.
    """

    draws: np.ndarray
    pids: np.ndarray
    first_ranks: dict[str, np.ndarray]
    ap: dict[str, np.ndarray]

    def values(self, feature: str, measure: str) -> np.ndarray:
        """What is averaged, (N,) float64; measure: rank-1 or mAP."""
        values = self.first_ranks[feature] == 1 if measure == "rank-1" else self.ap[feature]
        return values.astype(np.float64)

    def sums(self, feature: str, measure: str) -> np.ndarray:
        """Sums of a measure and numbers of queries with a match, by draw and person, (2, T, P) float64."""
        draws, draw = np.unique(self.draws, return_inverse=True)
        persons, person = np.unique(self.pids, return_inverse=True)
        cells, counted = draw * len(persons) + person, (self.first_ranks[feature] > 0).astype(np.float64)
        size = len(draws) * len(persons)
        return np.stack([np.bincount(cells, weights, size).reshape(len(draws), -1)
                         for weights in (self.values(feature, measure) * counted, counted)])


class Difference(NamedTuple):
    """A paired difference, and the interval that holds it with a chance of LEVEL (NaN: none); fractions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f" [{100 * self.low:+.2f}, {100 * self.high:+.2f}]" if np.isfinite(self.low) else ""
        return f"{100 * self.value:+.2f}{interval}"


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> Difference:
    """The mean of the records in `second` less that of `first`, each as `QueryScores.sums` (2, T, P).

    Deviations of records are larger by the ratio of Student's quantile to the normal one: without that,
    intervals of three seeds on each side would hold 88 % where seeds are all that differs, not 95 %.
    """
    rng = np.random.default_rng(seed)
    _, draws, persons = first[0].shape
    person_weights, draw_weights = count_again(persons, rng), weigh_again(draws, rng)
    tail, freedom = (1 + LEVEL) / 2, len(first) + len(second) - 2
    student = stdtrit(freedom, tail) / ndtri(tail) if freedom else 1.0
    sides = [(np.stack(records, 1), weigh_again(len(records), rng, student)) for records in (first, second)]
    values = [mean_of_means(sums, np.ones((1, persons)), np.full((1, draws), 1 / draws),
                            np.full((1, sums.shape[1]), 1 / sums.shape[1]))[0] for sums, _ in sides]
    resampled = [mean_of_means(sums, person_weights, draw_weights, weights) for sums, weights in sides]
    low, high = np.quantile(resampled[1] - resampled[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(values[1] - values[0], float(low), float(high))


def mean_of_means(sums: np.ndarray, persons: np.ndarray, draws: np.ndarray,
                  records: np.ndarray) -> np.ndarray:
    """The weighted mean over records and draws of the mean over queries, (R,), for R sets of weights.

    sums (2, K, T, P): of the measure, and the number of queries; persons (R, P), draws (R, T), records (R,
    K). A draw none of whose persons were drawn has its mean over all of them.
    """
    totals, counts = np.einsum("rp,skp->srk", persons, sums.reshape(2, -1, sums.shape[3]), optimize=True)
    whole = np.broadcast_to(np.divide(*sums.sum(3)).reshape(-1), totals.shape).copy()
    means = np.divide(totals, counts, out=whole, where=counts > 0).reshape(-1, *sums.shape[1:3])
    return np.einsum("rkt,rt,rk->r", means, draws, records, optimize=True)


def count_again(count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` items is drawn with replacement, (RESAMPLES, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def weigh_again(count: int, rng: np.random.Generator, factor: float = 1.0) -> np.ndarray:
    """Weights of a mean of `count` items drawn with replacement, (RESAMPLES, count); each row sums to 1.

    Deviations are larger by `factor`, and by sqrt(count / (count - 1)), without which few items would seem to
    vary less than they do (Efron and Tibshirani, 1993); one item has a weight of 1.
    """
    even = 1 / count
    spread = factor * np.sqrt(count / max(count - 1, 1))
    return even + spread * (count_again(count, rng) / count - even)

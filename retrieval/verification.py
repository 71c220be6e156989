"""Yes or no: genuine and impostor pairs of a search, thresholds of their similarity at false accept rates.

A pair is accepted where its cosine similarity lies above the threshold. Imports no torch.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.types import DIRECTIONS, Search

RATES = (1e-2, 1e-3, 1e-4)  # false accept rates
PAIRS = 10  # impostor pairs that must be accepted at a rate, or its threshold is not told


@dataclass(frozen=True)
class Pairs:
    """Cosine similarities of a search's pairs, float32: of the same person (N,), of others (M,)."""

    genuine: np.ndarray
    impostor: np.ndarray

    @functools.cached_property
    def ascending(self) -> np.ndarray:
        """The impostors' similarities, sorted (M,)."""
        return np.sort(self.impostor)

    def threshold(self, rate: float) -> float | None:
        """The threshold that lets `floor(rate M)` impostors through, fewer where similarities tie.

        It lies midway between two of them, so that rounding turns none over. None for fewer than 10 / rate
        impostors, which say too little of that rate.
        """
        accepted = len(self.impostor) // round(1 / rate)
        return float(self.ascending[-accepted - 1:][:2].mean(dtype=np.float64)) if accepted >= PAIRS else None

    def accept_rates(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shares of impostors and of genuine pairs above each threshold (T,): two (T,) float64."""
        sides = (self.ascending, np.sort(self.genuine))
        return tuple(1 - np.searchsorted(side, thresholds, "right") / len(side) for side in sides)

    def equal_error(self) -> float:
        """Equal error rate, a fraction: as many impostors are accepted as genuine pairs are refused."""
        accepted, kept = self.accept_rates(np.unique(np.concatenate([self.genuine, self.impostor])))
        nearest = np.abs(accepted - (1 - kept)).argmin()
        return float((accepted[nearest] + 1 - kept[nearest]) / 2)


def make_pairs(similarity: np.ndarray, seen: np.ndarray, same: np.ndarray) -> Pairs:
    """The pairs among the similarities (Q, G) that a search sees; seen, same (Q, G) bool."""
    return Pairs(similarity[seen & same], similarity[seen & ~same])


def thresholds(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Threshold, true accept rate and number of impostor pairs by direction and false accept rate ("0.001").

    A pair has no direction, so that both have the same. Left out: rates with too few impostor pairs, and all
    of them where no pair is genuine.
    """
    found = {}
    for rate in RATES if len(pairs.genuine) else ():
        threshold = pairs.threshold(rate)
        if threshold is not None:
            accepted = float((pairs.genuine > threshold).mean())
            found[f"{rate:g}"] = {"threshold": threshold, "true_accept_rate": accepted,
                                  "impostor_pairs": len(pairs.impostor)}
    return {direction: found for direction in DIRECTIONS}


def roc(pairs: Pairs) -> dict[str, Any]:
    """Thresholds with the shares of impostors and of genuine pairs above them, 20 for each factor of ten.

    From half of the impostor pairs down to ten of them: empty for fewer, and where no pair is genuine.
    """
    count = len(pairs.impostor)
    if count < 2 * PAIRS or not len(pairs.genuine):
        return {}
    steps = 2 + int(20 * np.log10(count / 2 / PAIRS))
    accepted = np.unique(np.geomspace(PAIRS, count // 2, steps).astype(int))
    values = (pairs.ascending[-accepted].astype(np.float64) + pairs.ascending[-accepted - 1]) / 2
    rates = np.stack([values, *pairs.accept_rates(values)])
    rates = rates[:, rates[1] > 0]  # where the highest tie, none is above
    return {"impostor_pairs": count, **{name: row.tolist() for name, row in zip(
        ("thresholds", "false_accept_rates", "true_accept_rates"), rates)}}


def at_rate(curve: Mapping[str, Any], rate: float) -> tuple[float, float]:
    """Threshold and true accept rate at a false accept rate, between two of `roc`'s."""
    known = np.log(curve["false_accept_rates"])
    return tuple(float(np.interp(np.log(rate), known, curve[name]))
                 for name in ("thresholds", "true_accept_rates"))


def describe(search: Search, extras: Sequence[str]) -> str:
    """The calibration set in words, with what was done beyond the protocol."""
    persons = search.counts()["test persons"]
    return " + ".join([f"{search.name}, trial {search.trial}, {persons} persons", *extras])


def lines(record: dict[str, Any], pairs: dict[str, Pairs]) -> list[str]:
    """The thresholds of a record in words, with those that are left out."""
    rows = ["the same person? yes above a threshold of the similarity, calibrated on "
            f"{record['calibration']}"]
    for feature, directions in record["thresholds"].items():
        known, counted = next(iter(directions.values())), pairs[feature]
        rows += [f"false accept rate {rate:<7}{feature:<7}threshold {found['threshold']:.4f}, true accept "
                 f"rate {found['true_accept_rate']:.2%}, {found['impostor_pairs']:,} impostor pairs"
                 for rate, found in known.items()]
        if missing := [f"{rate:g}" for rate in RATES if f"{rate:g}" not in known]:
            rows.append(f"false accept rate {', '.join(missing)} {feature} left out: "
                        f"{len(counted.genuine):,} genuine and {len(counted.impostor):,} impostor pairs "
                        f"found, 1 and {PAIRS} / rate expected")
    return rows

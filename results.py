"""Results of a test: the record of every trial, its table, JSON and CSV, and the comparison of several."""
from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.types import Search
from utils import UserError, atomic_path, write_json

FORMAT = 1
COMPARABLE = ("name", "trials", "images")  # what records must share
FOLDER = "results"  # of records, below the current folder, unless --out names another
FEATURES = ("pool", "bnneck")  # after pooling, after BNNeck
RANKS = (1, 5, 10, 20)
MEASURES = (*(f"rank-{k}" for k in RANKS), "mAP", "mINP")


@dataclass(frozen=True)
class Scores:
    """The scores of one search, as fractions: Rank-k is cmc[k - 1]."""

    cmc: tuple[float, ...]
    mAP: float
    mINP: float

    def headline(self) -> dict[str, float]:
        """Rank-1/5/10/20, mAP and mINP by name."""
        return {**{f"rank-{k}": self.cmc[k - 1] for k in RANKS}, "mAP": self.mAP, "mINP": self.mINP}

    def record(self) -> dict[str, Any]:
        """What results.json holds of them."""
        return {"cmc": list(self.cmc), "mAP": self.mAP, "mINP": self.mINP}


def describe_protocol(searches: Sequence[Search], root: str) -> dict[str, Any]:
    """What makes two results comparable: the search in words, its trials, and a SHA-256 of its images and
    persons.
    """
    digest = hashlib.sha256()
    for search in searches:
        for side in (search.query, search.gallery):
            for path, pid, camid in zip(side.paths, side.pids, side.camids):
                digest.update(f"{Path(path).relative_to(root).as_posix()} {pid} "
                              f"{camid}\n".encode("utf-8", "surrogateescape"))
    return {"name": searches[0].name, "trials": [search.trial for search in searches], "images": digest.hexdigest()}


def count(search: Search) -> dict[str, int]:
    """Images and persons on either side of a search."""
    return {f"{side}_{what}": number for side, images in (("query", search.query), ("gallery", search.gallery))
            for what, number in (("images", len(images)), ("ids", len(set(images.pids.tolist()))))}


def summarise(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and (population) standard deviation over trials of each measure of each feature, fractions."""
    tables = {feature: np.array([list(headline(trial[feature]).values()) for trial in trials]) for feature in FEATURES}
    return {name: {feature: dict(zip(MEASURES, statistic(table, axis=0).tolist())) for feature, table in tables.items()}
            for name, statistic in (("mean", np.mean), ("std", np.std))}


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one feature of one trial of a record."""
    return Scores(**scores).headline()


def show_percent(values: Mapping[str, float]) -> str:
    """Named fractions as per cent on one line."""
    return " ".join(f"{name} {value:.2%}" for name, value in values.items())


def lines(record: dict[str, Any]) -> list[str]:
    """The table of a record: every trial of both features, then mean and deviation, in per cent."""
    extras = "".join(f" + {extra}" for extra in record["extras"])
    rows = [record["protocol"]["name"], " ".join([f"{'':<24}", *(f"{name:>15}" for name in MEASURES)])]
    for feature in FEATURES:
        for trial in record["trials"]:
            values = [f"{100 * headline(trial[feature])[name]:15.2f}" for name in MEASURES]
            rows.append(" ".join([f"{feature + ' trial ' + str(trial['trial']):<24}", *values]) + extras)
    for feature in FEATURES:
        values = [f"{show_spread(record, feature, name):>15}" for name in MEASURES]
        rows.append(" ".join([f"{feature + ' mean ± std':<24}", *values]) + extras)
    return rows


def gap_lines(record: dict[str, Any]) -> list[str]:
    """The gap between the modalities in words."""
    return [f"modality gap {feature:<7}centroids {gap['centroids']:.3f} apart; mean cosine distance within visible "
            f"{gap['visible']:.3f}, within infrared {gap['infrared']:.3f}, across {gap['across']:.3f}"
            for feature, gap in record["modality_gap"].items()]


def default_path(resume: str, record: dict[str, Any], named: bool = False) -> Path:
    """Where a record goes without --out: a file called after the checkpoint, the protocol and the extras.

    named: whether the user chose the trial, of which a checkpoint may see several.
    """
    trials = [f"trial {trial}" for trial in record["protocol"]["trials"]]
    words = [record["protocol"]["name"], *(trials if named and len(trials) == 1 else []), *record["extras"]]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return Path(FOLDER) / f"{Path(resume).stem.replace('{}', 'all')}_{slug}.json"


def write(record: dict[str, Any], folder: Path) -> None:
    """Write `results.json` and `results.csv`, each whole or not at all."""
    write_json(folder / "results.json", record)
    with atomic_path(folder / "results.csv") as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["protocol", "extras", "feature", "trial", *MEASURES])
            for feature in FEATURES:
                head = [record["protocol"]["name"], " + ".join(record["extras"]), feature]
                for trial in record["trials"]:
                    writer.writerow([*head, trial["trial"], *headline(trial[feature]).values()])
                for kind in ("mean", "std"):
                    writer.writerow([*head, kind, *record[kind][feature].values()])


@dataclass(frozen=True)
class Summary:
    """What `--compare` reads of a record."""

    path: str
    protocol: Mapping[str, Any]
    method: str
    files: str
    extras: str
    values: Mapping[str, Mapping[str, str]]  # by feature and measure: mean ± standard deviation


def read(path: str) -> Summary:
    """The summary of a `results.json`; raises `UserError` if it is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"--compare {path}: format {str(record['format'])[:20]} found, {FORMAT} "
                            "expected; test that checkpoint again")
        return Summary(path, {key: record["protocol"][key] for key in COMPARABLE}, record["checkpoint"]["method"],
                       ", ".join(record["checkpoint"]["files"]), "".join(" + "
                                                                         f"{extra}" for extra in record["extras"]),
                       {feature: {name: show_spread(record, feature, name) for name in MEASURES} for feature in FEATURES})
    except FileNotFoundError:
        raise UserError(f"--compare {path}: no such file; name a JSON file that test.py wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"[:100]
        raise UserError(f"--compare {path}: not a results.json of test.py ({what}); name one") from None


def show_spread(record: Mapping[str, Any], feature: str, name: str) -> str:
    """Mean ± standard deviation of one measure, in per cent."""
    return f"{100 * record['mean'][feature][name]:6.2f} ± {100 * record['std'][feature][name]:5.2f}"


def compare(paths: Sequence[str]) -> list[str]:
    """The means of several results side by side.

    Raises `UserError` unless all are of one protocol and one set of images.
    """
    summaries = [read(path) for path in paths]
    first = summaries[0]
    for other in summaries[1:]:
        for key in COMPARABLE:
            if first.protocol[key] != other.protocol[key]:
                mine, theirs = (str(side.protocol[key])[:40] for side in (first, other))
                raise UserError(f"--compare: {first.path} has {key} {mine}, {other.path} has {theirs}; "
                                "results of different protocols cannot be compared; test both in the same "
                                "way")
    rows = [first.protocol["name"]]
    rows += [f"[{number}] {each.path}: {each.method}{each.extras}, {each.files}"
             for number, each in enumerate(summaries, 1)]
    for feature in FEATURES:
        rows.append(" ".join([f"{feature:<8}", *(f"{f'[{number}]':>15}" for number in range(1, len(paths) + 1))]))
        rows += [" ".join([f"{name:<8}", *(f"{each.values[feature][name]:>15}" for each in summaries)])
                 for name in MEASURES]
    return rows

"""Results of a test: the record of every trial, its table, JSON and CSV, and the comparison of several."""
from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_manager import Protocol
from extraction import FEATURES, headline
from utils import UserError, atomic_path, write_json

FORMAT = 1
FOLDER = "results"  # of records, below the current folder, unless --out names another
MEASURES = ("rank-1", "rank-5", "rank-10", "rank-20", "mAP", "mINP")


def describe_protocol(protocols: Sequence[Protocol], root: str) -> dict[str, Any]:
    """What makes two results comparable: the search in words, its trials, and a SHA-256 of its images and persons."""
    digest = hashlib.sha256()
    for protocol in protocols:
        for side in (protocol.query, protocol.gallery):
            for path, pid, camid in zip(side.paths, side.pids, side.camids):
                digest.update(f"{Path(path).relative_to(root).as_posix()} {pid} {camid}\n".encode("utf-8", "surrogateescape"))
    return {"name": protocols[0].name, "trials": [protocol.trial for protocol in protocols], "images": digest.hexdigest()}


def count(protocol: Protocol) -> dict[str, int]:
    """Images and persons on either side of a search."""
    return {f"{side}_{what}": number for side, images in (("query", protocol.query), ("gallery", protocol.gallery))
            for what, number in (("images", len(images)), ("ids", len(set(images.pids.tolist()))))}


def summarise(trials: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and (population) standard deviation over trials of each measure of each feature, fractions."""
    table = {feature: np.array([[headline(trial[feature])[name] for name in MEASURES] for trial in trials]) for feature in FEATURES}
    return {kind: {feature: dict(zip(MEASURES, of(rows, axis=0).tolist())) for feature, rows in table.items()}
            for kind, of in (("mean", np.mean), ("std", np.std))}


def lines(record: dict[str, Any]) -> list[str]:
    """The table of a record: every trial of both features, then mean and deviation, in per cent."""
    extras = "".join(f" + {extra}" for extra in record["extras"])
    rows = [record["protocol"]["name"], " ".join([f"{'':<24}", *(f"{name:>15}" for name in MEASURES)])]
    for feature in FEATURES:
        for trial in record["trials"]:
            values = [f"{100 * headline(trial[feature])[name]:15.2f}" for name in MEASURES]
            rows.append(" ".join([f"{feature + ' trial ' + str(trial['trial']):<24}", *values]) + extras)
    for feature in FEATURES:
        values = [f"{100 * record['mean'][feature][name]:6.2f} ± {100 * record['std'][feature][name]:5.2f}" for name in MEASURES]
        rows.append(" ".join([f"{feature + ' mean ± std':<24}", *(f"{value:>15}" for value in values)]) + extras)
    return rows


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


def read(path: str) -> dict[str, Any]:
    """A `results.json`; raises `UserError` if it is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"--compare {path}: format {str(record['format'])[:20]} found, {FORMAT} expected; test that checkpoint "
                            "again")
        require_readable(record)
    except FileNotFoundError:
        raise UserError(f"--compare {path}: no such file; name a JSON file that test.py wrote") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"[:100]
        raise UserError(f"--compare {path}: not a results.json of test.py ({what}); name one") from None
    return record


def require_readable(record: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError unless what `compare` reads of a record is there and of its kind."""
    protocol, checkpoint = record["protocol"], record["checkpoint"]
    lists = [protocol["trials"], checkpoint["files"], record["extras"]]
    if not all(isinstance(value, list) for value in lists):
        raise TypeError("trials, files or extras are no list")
    numbers = [record[kind][feature][name] for kind in ("mean", "std") for feature in FEATURES for name in MEASURES]
    texts = [protocol["name"], protocol["images"], checkpoint["method"], *checkpoint["files"], *record["extras"]]
    for values, wanted in ((numbers, (int, float)), (protocol["trials"], int), (texts, str)):
        if odd := [value for value in values if not isinstance(value, wanted) or isinstance(value, bool)]:
            raise TypeError(f"{odd[0]!r} is of a wrong type")
    if odd := [value for value in numbers if not 0 <= value <= 1]:  # NaN is in no range; no deviation of fractions exceeds 1
        raise ValueError(f"{odd[0]!r} found, a fraction expected")


def compare(paths: Sequence[str]) -> list[str]:
    """The means of several results side by side; raises `UserError` unless all are of one protocol and one set of images."""
    records = [read(path) for path in paths]
    for path, record in zip(paths[1:], records[1:]):
        for key in ("name", "trials", "images"):
            one, other = records[0]["protocol"][key], record["protocol"][key]
            if one != other:
                one, other = (value[:12] if key == "images" else value for value in (one, other))
                raise UserError(f"--compare: {paths[0]} has {key} {one}, {path} has {other}; results of different protocols cannot "
                                "be compared; test both in the same way")
    rows = [records[0]["protocol"]["name"]]
    for number, (path, record) in enumerate(zip(paths, records), 1):
        extras = "".join(f" + {extra}" for extra in record["extras"])
        rows.append(f"[{number}] {path}: {record['checkpoint']['method']}{extras}, {', '.join(record['checkpoint']['files'])}")
    for feature in FEATURES:
        rows.append(" ".join([f"{feature:<8}", *(f"{f'[{number}]':>15}" for number in range(1, len(paths) + 1))]))
        for name in MEASURES:
            values = [f"{100 * r['mean'][feature][name]:6.2f} ± {100 * r['std'][feature][name]:5.2f}" for r in records]
            rows.append(" ".join([f"{name:<8}", *(f"{value:>15}" for value in values)]))
    return rows

"""Results of a test: the record of every trial, its table, JSON and CSV, and the comparison of several."""
from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bootstrap import LEVEL, RESAMPLES, QueryScores, paired_difference
from datasets.types import FEATURES, SUM, Search
from utils import UserError, atomic_path, warn, write_json

FORMAT = 1
COMPARABLE = ("name", "trials", "images")  # what records must share
FOLDER = "results"  # of records, below the current folder, unless --out names another
RERANKED = "k-reciprocal re-ranking"  # as records name it
RANKS = (1, 5, 10, 20)
DIFFERENCES = ("rank-1", "mAP")  # that `--compare` puts to the test
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
    """What makes two results comparable: the search, its trials, and a SHA-256 of its images and persons."""
    digest = hashlib.sha256()
    for search in searches:
        for side in (search.query, search.gallery):
            for path, pid, camid in zip(side.paths, side.pids, side.camids):
                digest.update(f"{Path(path).relative_to(root).as_posix()} {pid} "
                              f"{camid}\n".encode("utf-8", "surrogateescape"))
    return {"name": searches[0].name, "trials": [search.trial for search in searches],
            "images": digest.hexdigest()}


def count(search: Search) -> dict[str, int]:
    """Images and persons on either side of a search."""
    return {f"{side}_{what}": number
            for side, images in (("query", search.query), ("gallery", search.gallery))
            for what, number in (("images", len(images)), ("ids", len(set(images.pids.tolist()))))}


def unmatched_line(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many queries see no match and are not in the mean, over all trials; nothing if there are none."""
    lone = [f"{trial['queries_without_match']} of {trial['counts']['query_images']}"
            for trial in trials if trial.get("queries_without_match")]
    return ["queries that see no match, left out of the mean: "
            f"{', '.join(dict.fromkeys(lone))}"] if lone else []


def summarise(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and (population) standard deviation over trials of each measure of each feature, fractions."""
    tables = {feature: np.array([list(headline(trial[feature]).values()) for trial in trials])
              for feature in scored(trials)}
    return {name: {feature: dict(zip(MEASURES, statistic(table, axis=0).tolist()))
                   for feature, table in tables.items()}
            for name, statistic in (("mean", np.mean), ("std", np.std))}


def scored(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The features that the trials of a record were scored with."""
    return [feature for feature in (*FEATURES, SUM) if feature in trials[0]]


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one feature of one trial of a record."""
    return Scores(**scores).headline()


def show_percent(values: Mapping[str, float]) -> str:
    """Named fractions as per cent on one line."""
    return " ".join(f"{name} {value:.2%}" for name, value in values.items())


def lines(record: dict[str, Any]) -> list[str]:
    """The table of a record: every trial of both features, then mean and deviation, in per cent."""
    extras = "".join(f" + {extra}" for extra in record["extras"])
    rows = [record["protocol"]["name"], *unmatched_line(record["trials"]),
            " ".join([f"{'':<24}", *(f"{name:>15}" for name in MEASURES)])]
    features = scored(record["trials"])
    for feature in features:
        for trial in record["trials"]:
            values = [f"{100 * headline(trial[feature])[name]:15.2f}" for name in MEASURES]
            rows.append(" ".join([f"{feature + ' trial ' + str(trial['trial']):<24}", *values]) + extras)
    for feature in features:
        values = [f"{show_spread(record, feature, name):>15}" for name in MEASURES]
        rows.append(" ".join([f"{feature + ' mean ± std':<24}", *values]) + extras)
    return rows


def gap_lines(record: dict[str, Any]) -> list[str]:
    """The gap between the modalities in words, with what changes it beyond the protocol."""
    extras = "".join(f" + {extra}" for extra in record["extras"] if extra != RERANKED)
    return [f"modality gap {feature:<7}centroids {gap['centroids']:.3f} apart; mean cosine distance within "
            f"visible {gap['visible']:.3f}, within infrared {gap['infrared']:.3f}, across {gap['across']:.3f}"
            + extras
            for feature, gap in record["modality_gap"].items()]


def default_path(resume: str, record: dict[str, Any], named: bool = False) -> Path:
    """Where a record goes without --out: a file called after the checkpoint, the protocol and the extras, and
    numbered where that holds the record of another test.

    named: whether the user chose the trial, of which a checkpoint may see several.
    """
    trials = [f"trial {trial}" for trial in record["protocol"]["trials"]]
    words = [record["protocol"]["name"], *(trials if named and len(trials) == 1 else []), *record["extras"]]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    stem = f"{Path(resume).stem.replace('{}', 'all')}_{slug}"
    numbers = itertools.chain([""], map("_{}".format, itertools.count(2)))
    paths = (Path(FOLDER) / f"{stem}{number}.json" for number in numbers)
    return next(path for path in paths if not holds_another(path, record))


def holds_another(path: Path, record: dict[str, Any]) -> bool:
    """Whether a file is there and not the record of the same test: same checkpoint, images and extras."""
    try:
        other = json.loads(path.read_text(encoding="utf-8"))
        return any(other[key] != record[key] for key in ("protocol", "checkpoint", "extras"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True


def write(record: dict[str, Any], folder: Path) -> None:
    """Write `results.json` and `results.csv`, each whole or not at all."""
    write_json(folder / "results.json", record)
    with atomic_path(folder / "results.csv") as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["protocol", "extras", "feature", "trial", *MEASURES])
            for feature in scored(record["trials"]):
                head = [record["protocol"]["name"], " + ".join(record["extras"]), feature]
                for trial in record["trials"]:
                    writer.writerow([*head, trial["trial"], *headline(trial[feature]).values()])
                for kind in ("mean", "std"):
                    writer.writerow([*head, kind, *record[kind][feature].values()])


def queries_path(record: Path) -> Path:
    """The file of each query's scores that stands beside a record."""
    return record.with_suffix(".queries.npz")


def write_queries(queries: QueryScores, record: Path) -> None:
    """Write each query's scores beside a record, whole or not at all."""
    arrays = {"draws": queries.draws, "pids": queries.pids,
              **{f"first_rank_{feature}": ranks for feature, ranks in queries.first_ranks.items()},
              **{f"ap_{feature}": ap for feature, ap in queries.ap.items()}}
    with atomic_path(queries_path(record)) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)


def read_queries(record: Path) -> QueryScores | None:
    """Each query's scores beside a record, None where there are none; raises `UserError` for another file."""
    path = queries_path(record)
    try:
        with np.load(path) as arrays:
            features = [name.removeprefix("ap_") for name in arrays if name.startswith("ap_")]
            first_ranks, ap = ({feature: arrays[f"{name}_{feature}"] for feature in features}
                               for name in ("first_rank", "ap"))
            return QueryScores(arrays["draws"], arrays["pids"], first_ranks, ap)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive makes numpy and zipfile stumble in many ways
        raise UserError(f"--compare {path}: not the file that test.py writes beside a record "
                        f"({type(error).__name__}); test that checkpoint again") from None


@dataclass(frozen=True)
class Summary:
    """What `--compare` reads of a record; kind: what records of other seeds share; seed: None if unknown."""

    path: str
    protocol: Mapping[str, Any]
    method: str
    files: str
    extras: str
    kind: Any
    seed: int | None
    features: Sequence[str]
    values: Mapping[str, Mapping[str, str]]  # by feature and measure: mean ± standard deviation
    queries: QueryScores | None = None


def read(path: str) -> Summary:
    """The summary of a `results.json`; raises `UserError` if it is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"--compare {path}: format {str(record['format'])[:20]} found, {FORMAT} "
                            "expected; test that checkpoint again")
        features, made = scored(record["trials"]), record["checkpoint"]
        values = {feature: {name: show_spread(record, feature, name) for name in MEASURES}
                  for feature in features}
        queries = read_queries(Path(path))
        if queries is not None and not fits(queries, record):
            raise UserError(f"--compare {queries_path(Path(path))}: of another test than {path}, or damaged; "
                            "test that checkpoint again")
        seed = made.get("seed") if isinstance(made.get("seed"), int) else None
        kind = (made["method"], made.get("arch"), made.get("settings"), record["extras"])
        return Summary(path, {key: record["protocol"][key] for key in COMPARABLE}, made["method"],
                       ", ".join(made["files"]), "".join(f" + {extra}" for extra in record["extras"]),
                       kind, seed, features, values, queries)
    except FileNotFoundError:
        raise UserError(f"--compare {path}: no such file; name a JSON file that test.py wrote") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"[:100]
        raise UserError(f"--compare {path}: not a results.json of test.py ({what}); name one") from None


def fits(queries: QueryScores, record: Mapping[str, Any]) -> bool:
    """Whether the scores of the queries are those of the record."""
    arrays = (queries.draws, queries.pids, *queries.first_ranks.values(), *queries.ap.values())
    if queries.draws.ndim != 1 or len({array.shape for array in arrays}) > 1:
        return False
    for feature in scored(record["trials"]):
        if feature not in queries.ap:
            return False
        for trial in record["trials"]:
            mine = (queries.draws == trial["trial"]) & (queries.first_ranks[feature] > 0)
            told = {"mAP": trial[feature]["mAP"], "rank-1": trial[feature]["cmc"][0]}
            if not mine.any() or not all(abs(queries.values(feature, name)[mine].mean() - value) <= 1e-5
                                         for name, value in told.items()):
                return False
    return True


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
                                "results of different protocols cannot be compared; "
                                "test both in the same way")
    rows = [first.protocol["name"]]
    rows += [f"[{number}] {each.path}: {each.method}{each.extras}, {each.files}"
             for number, each in enumerate(summaries, 1)]
    for feature in (*FEATURES, SUM):
        if any(feature in each.features for each in summaries):
            heads = [f"{f'[{number}]':>15}" for number in range(1, len(paths) + 1)]
            rows.append(" ".join([f"{feature:<8}", *heads]))
            for name in MEASURES:
                cells = [each.values[feature][name] if feature in each.features else "-"
                         for each in summaries]
                rows.append(" ".join([f"{name:<8}", *(f"{cell:>15}" for cell in cells)]))
    return rows + differences(summaries)


def differences(summaries: Sequence[Summary]) -> list[str]:
    """The paired difference of each group of records to the first one, with an interval.

    A group is the records that differ by their seed alone; where all do, each is a group. Warns where a
    record has no file of its queries, and of a group of one beside others of several. Raises `UserError`
    where queries are not the same.
    """
    if lacking := [each.path for each in summaries if each.queries is None]:
        if len(summaries) > 1:
            warn(f"--compare: {queries_path(Path(lacking[0]))} is not there, so that no difference is "
                 "tested; test that checkpoint again")
        return []
    first = summaries[0]
    for other in summaries[1:]:
        if not all(np.array_equal(getattr(first.queries, name), getattr(other.queries, name))
                   for name in ("draws", "pids")):
            raise UserError(f"--compare {queries_path(Path(other.path))}: other queries than beside "
                            f"{first.path}; test both checkpoints again")
    groups = group_seeds(summaries)
    sizes = sorted(map(len, groups))
    if sizes[0] == 1 < sizes[-1]:
        warn("--compare: one record is set against several seeds, so that the interval leaves out how much "
             "its own seeds would differ; name as many of it")
    return [row for group in groups[1:] for row in difference_rows(summaries, groups[0], group)]


def group_seeds(summaries: Sequence[Summary]) -> list[list[int]]:
    """The places of records, those together that differ by a known seed alone; each by itself if all do."""
    groups: list[list[int]] = []
    for number, each in enumerate(summaries):
        for group in groups:
            seeds = {summaries[place].seed for place in group}
            known = None not in seeds | {each.seed}
            if known and each.seed not in seeds and summaries[group[0]].kind == each.kind:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups if len(groups) > 1 else [[number] for number in range(len(summaries))]


def difference_rows(summaries: Sequence[Summary], first: Sequence[int], second: Sequence[int]) -> list[str]:
    """The difference of one group of records to another, in words and per cent."""
    names = [" ".join(f"[{number + 1}]" for number in group) for group in (second, first)]
    rows = [f"{names[0]} less {names[1]}, with {100 * LEVEL:.0f} % intervals ({RESAMPLES:,} bootstrap "
            "samples of persons, draws and records)"]
    for feature in (*FEATURES, SUM):
        if not all(feature in summaries[number].features for number in (*first, *second)):
            continue
        for measure in DIFFERENCES:
            found = paired_difference(*([summaries[number].queries.sums(feature, measure) for number in group]
                                        for group in (first, second)))
            value, low, high = (f"{100 * part:+6.2f}" for part in (found.value, found.low, found.high))
            rows.append(f"{feature:<8}{measure:<7} {value}  [{low}, {high}]"
                        + ("" if found.told_apart else "  not told apart by this test"))
    return rows if rows[1:] else [f"{names[0]} and {names[1]} were scored with no feature in common"]

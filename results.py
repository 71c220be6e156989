"""Records of tests: what results.json and results.csv hold, and the scores of each query beside them."""
from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bootstrap import QueryScores
from datasets.types import FEATURES, SUM, Features, Images, ImageSpec, Search
from utils import UserError, as_user_error, atomic_path, write_json

FORMAT = 1
FOLDER = "results"  # of records, below the current folder, unless --out names another
RERANKED = "k-reciprocal re-ranking"  # as records name it
RANKS = (1, 5, 10, 20)
MEASURES = (*(f"rank-{k}" for k in RANKS), "mAP", "mINP")
WORDS = {"pool": "after pooling", "bnneck": "after BNNeck", "sum": "sum of both cosines"}  # of each feature


@dataclass(frozen=True)
class Scores:
    """The scores of one search, as fractions: Rank-k is cmc[k - 1]."""

    cmc: tuple[float, ...]
    mAP: float
    mINP: float

    def headline(self) -> dict[str, float]:
        """Rank-1/5/10/20, mAP and mINP by name."""
        return {**{f"rank-{k}": self.cmc[k - 1] for k in RANKS}, "mAP": self.mAP, "mINP": self.mINP}


@dataclass(frozen=True)
class Protocol:
    """What makes two results comparable: the search, its trials, and a SHA-256 of its images and persons."""

    name: str
    trials: tuple[int, ...]
    images: str


@dataclass(frozen=True)
class Trial:
    """The scores of one draw of the gallery, or one split, by feature, and what it was scored on."""

    number: int
    scores: Mapping[str, Scores]
    counts: Mapping[str, int] = field(default_factory=dict)
    unmatched: int = 0  # queries that see no match and are left out of the mean


@dataclass(frozen=True)
class Model:
    """The checkpoint of a test, or the ten of RegDB's splits; paths: as the command line named the files.

    settings: what its training shares with that of other seeds; seed: None where nothing says it.
    """

    method: str
    arch: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A test: how it was done, and the scores of every trial.

    extras: what was done beyond the protocol, in words; spec: how images were read; similarities:
    calibration, thresholds and modality gap, as results.json holds them.
    """

    protocol: Protocol
    extras: tuple[str, ...]
    model: Model
    spec: ImageSpec
    trials: tuple[Trial, ...]
    similarities: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> list[str]:
        """The features that were scored."""
        return [feature for feature in (*FEATURES, SUM) if feature in self.trials[0].scores]

    def values(self, feature: str, measure: str) -> np.ndarray:
        """A measure in each trial, (T,), fractions."""
        return np.array([trial.scores[feature].headline()[measure] for trial in self.trials])

    def cmc(self, feature: str) -> np.ndarray:
        """The CMC curve of each trial, (T, K), fractions."""
        return np.array([trial.scores[feature].cmc for trial in self.trials])

    def summary(self, statistic: str) -> dict[str, dict[str, float]]:
        """Mean or (population) standard deviation, "mean" or "std", over trials by feature and measure."""
        return {feature: {measure: float(getattr(self.values(feature, measure), statistic)())
                          for measure in MEASURES} for feature in self.features}

    def to_json(self) -> dict[str, Any]:
        """What results.json holds."""
        trials = [{"trial": trial.number, **{name: asdict(scores) for name, scores in trial.scores.items()},
                   "counts": dict(trial.counts), "queries_without_match": trial.unmatched}
                  for trial in self.trials]
        values = {} if self.spec.range is None else {"range": self.spec.range}
        return {"format": FORMAT, "protocol": asdict(self.protocol), "extras": self.extras,
                "checkpoint": asdict(self.model), "image_size": [self.spec.height, self.spec.width], **values,
                "trials": trials, "mean": self.summary("mean"), "std": self.summary("std"),
                **self.similarities}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Record:
        """The record that results.json holds; raises one of many errors where that is none."""
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} found, {FORMAT} expected")
        protocol, model = ({name: tuple(value) if isinstance(value, list) else value
                            for name, value in content[part].items() if value is not None}
                           for part in ("protocol", "checkpoint"))
        trials = [Trial(trial["trial"], {name: Scores(**{**trial[name], "cmc": tuple(trial[name]["cmc"])})
                                         for name in (*FEATURES, SUM) if name in trial},
                        trial.get("counts", {}), trial.get("queries_without_match", 0))
                  for trial in content["trials"]]
        spec = ImageSpec(*content["image_size"], tuple(content["range"]) if "range" in content else None)
        found = Record(Protocol(**protocol), tuple(content["extras"]), Model(**model), spec, tuple(trials),
                       {name: content[name] for name in ("calibration", "thresholds", "roc", "modality_gap")
                        if name in content})
        found.summary("mean")  # fails for values that are no numbers
        return found


def describe_protocol(searches: Sequence[Search], root: str) -> Protocol:
    """The protocol of some searches of one data set, whose folder is `root`."""
    digest = hashlib.sha256()
    for search in searches:
        for side in (search.query, search.gallery):
            for path, pid, camid in zip(side.paths, side.pids, side.camids):
                digest.update(f"{Path(path).relative_to(root).as_posix()} {pid} "
                              f"{camid}\n".encode("utf-8", "surrogateescape"))
    return Protocol(searches[0].name, tuple(search.trial for search in searches), digest.hexdigest())


def count(search: Search) -> dict[str, int]:
    """Images and persons on either side of a search."""
    return {f"{side}_{what}": number
            for side, images in (("query", search.query), ("gallery", search.gallery))
            for what, number in (("images", len(images)), ("ids", len(set(images.pids.tolist()))))}


def unmatched_line(unmatched: Sequence[tuple[int, int]]) -> list[str]:
    """How many queries of how many see no match, trial by trial; nothing if none of them does."""
    lone = dict.fromkeys(f"{lone} of {queries}" for lone, queries in unmatched if lone)
    return [f"queries that see no match, left out of the mean: {', '.join(lone)}"] if lone else []


def lines(record: Record) -> list[str]:
    """The table of a record: every trial of each feature, then mean and population deviation, in per cent."""
    def row(head: str, cells: Iterable[str]) -> str:
        return " ".join([f"{head:<24}", *(f"{cell:>15}" for cell in cells)])

    extras = "".join(f" + {extra}" for extra in record.extras)
    lone = [(trial.unmatched, trial.counts.get("query_images", 0)) for trial in record.trials]
    rows = [record.protocol.name, *unmatched_line(lone), row("", MEASURES)]
    for feature, trial in itertools.product(record.features, record.trials):
        cells = [f"{100 * value:.2f}" for value in trial.scores[feature].headline().values()]
        rows.append(row(f"{feature} trial {trial.number}", cells) + extras)
    for feature in record.features:
        values = [record.values(feature, name) for name in MEASURES]
        cells = [f"{100 * each.mean():.2f}" + (f" ± {100 * each.std():5.2f}" if np.ptp(each) else "")
                 for each in values]  # of equal values, the mean alone
        kind = "mean ± std" if "±" in "".join(cells) else "mean"
        rows.append(row(f"{feature} {kind}", cells) + extras)
    return rows


def gap_lines(record: Record) -> list[str]:
    """The gap between the modalities in words, with what changes it beyond the protocol."""
    extras = "".join(f" + {extra}" for extra in record.extras if extra != RERANKED)
    return [f"modality gap {feature:<7}centroids {gap['centroids']:.3f} apart; mean cosine distance within "
            f"visible {gap['visible']:.3f}, within infrared {gap['infrared']:.3f}, across {gap['across']:.3f}"
            + extras
            for feature, gap in record.similarities["modality_gap"].items()]


def default_path(resume: str, record: Record, named: bool = False) -> Path:
    """Where a record goes without --out: a file called after the checkpoint, the protocol and the extras, and
    numbered where that holds the record of another test.

    named: whether the user chose the trial, of which a checkpoint may see several.
    """
    trials = [f"trial {trial}" for trial in record.protocol.trials]
    words = [record.protocol.name, *(trials if named and len(trials) == 1 else []), *record.extras]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    stem = f"{Path(resume).stem.replace('{}', 'all')}_{slug}"
    numbers = itertools.chain([""], map("_{}".format, itertools.count(2)))
    paths = (Path(FOLDER) / f"{stem}{number}.json" for number in numbers)
    return next(path for path in paths if not holds_another(path, record))


def holds_another(path: Path, record: Record) -> bool:
    """Whether a file is there and not of the same test: same checkpoint, images, size and extras."""
    if not path.exists():
        return False
    try:
        other = read(path)
    except UserError:
        return True
    return ((other.protocol, other.extras, other.spec, other.model.sha256)
            != (record.protocol, record.extras, record.spec, record.model.sha256))


def write(record: Record, folder: Path) -> None:
    """Write `results.json` and `results.csv`, each whole or not at all."""
    write_json(folder / "results.json", record.to_json())
    with (atomic_path(folder / "results.csv") as temporary,
          open(temporary, "w", newline="", encoding="utf-8") as file):
        writer = csv.writer(file)
        writer.writerow(["protocol", "extras", "feature", "trial", *MEASURES])
        for feature in record.features:
            head = [record.protocol.name, " + ".join(record.extras), feature]
            for trial in record.trials:
                writer.writerow([*head, trial.number, *trial.scores[feature].headline().values()])
            for kind in ("mean", "std"):
                writer.writerow([*head, kind, *record.summary(kind)[feature].values()])


def read(path: str | Path) -> Record:
    """The record in a file; raises `UserError` that names it where there is none."""
    with as_user_error(f"{path}: not a results.json of test.py", "name one, or test that checkpoint again"):
        return Record.from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], save: Callable = np.savez) -> None:
    """Write arrays by name, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        save(file, **arrays)


def queries_path(record: str | Path) -> Path:
    """The file of each query's scores that stands beside a record."""
    return Path(record).with_suffix(".queries.npz")


def write_queries(queries: QueryScores, record: Path) -> None:
    """Write each query's scores beside a record, whole or not at all."""
    write_arrays(queries_path(record), {
        "draws": queries.draws, "pids": queries.pids,
        **{f"first_rank_{feature}": ranks for feature, ranks in queries.first_ranks.items()},
        **{f"ap_{feature}": ap for feature, ap in queries.ap.items()}}, np.savez_compressed)


def read_queries(path: str | Path, record: Record) -> QueryScores | None:
    """Each query's scores beside a record, None where there are none.

    Raises `UserError` for a damaged file, and for one of another test.
    """
    file = queries_path(path)
    if not file.exists():
        return None
    with as_user_error(f"{file}: not the scores of each query in that record", "test that checkpoint again"):
        with np.load(file) as arrays:
            first_ranks, ap = ({feature: arrays[f"{name}_{feature}"] for feature in record.features}
                               for name in ("first_rank", "ap"))
            queries = QueryScores(arrays["draws"], arrays["pids"], first_ranks, ap)
        shapes = {array.shape for array in (queries.draws, queries.pids, *first_ranks.values(), *ap.values())}
        for feature, trial in itertools.product(record.features, record.trials):
            chosen = (queries.draws == trial.number) & (first_ranks[feature] > 0)
            told = trial.scores[feature].headline()
            if len(shapes) > 1 or not chosen.any() or not all(
                    abs(queries.values(feature, name)[chosen].mean() - told[name]) <= 1e-5
                    for name in ("rank-1", "mAP")):
                raise ValueError(f"of another test than {path}")
    return queries


def features_path(record: str | Path) -> Path:
    """The file of the features of the first trial that stands beside a record."""
    return Path(record).with_suffix(".features.npz")


def write_features(path: Path, search: Search, features: Mapping[str, Features]) -> None:
    """Write both features of a search's images with all that its ranking needs, whole or not at all."""
    arrays = {"seen": search.seen(), "modalities": np.array([search.query.modality, search.gallery.modality])}
    for side, images in (("query", search.query), ("gallery", search.gallery)):
        found = features[images.modality]
        arrays |= {f"{side}_feats": found.take(images, "bnneck"),
                   f"{side}_feats_pool": found.take(images, "pool"), f"{side}_pids": images.pids,
                   f"{side}_camids": images.camids, f"{side}_paths": np.array(images.paths)}
    write_arrays(path, arrays)


def read_features(path: str | Path) -> tuple[Images, Images, np.ndarray, dict[str, Features]]:
    """Query, gallery, which images exist to each query (Q, G) bool, and features by modality.

    Raises `UserError` where the file is not there or another.
    """
    with as_user_error(f"{path}: not the features that test.py --out writes beside a record",
                 "test that checkpoint again, with --out"), np.load(path) as arrays:
        sides, features = [], {}
        for side, modality in zip(("query", "gallery"), arrays["modalities"].tolist()):
            paths = tuple(arrays[f"{side}_paths"].tolist())
            sides.append(Images(paths, arrays[f"{side}_pids"], arrays[f"{side}_camids"], modality))
            features[modality] = Features(paths, arrays[f"{side}_feats_pool"], arrays[f"{side}_feats"])
        return *sides, arrays["seen"], features

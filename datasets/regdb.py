"""RegDB: its layout, splits, searches, and the check of a copy."""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.check import FAULT, NOTE, SPLITS, Report, check_modalities, check_unlisted, has_bytes
from datasets.files import listed_files, parse_index
from datasets.types import (DIRECTIONS, EVERY, INFRARED, MODALITIES, TRIALS, VISIBLE, DataSet, Flag, Images,
                            Search, TrainSplit, make_train_split)
from utils import UserError, integer

NAMES = {VISIBLE: "visible", INFRARED: "thermal"}  # of the modalities, as its file names say them
CAMIDS = {VISIBLE: 1, INFRARED: 2}


def trial_number(text: str) -> int | str:
    """An argparse type: the number of a trial, or EVERY."""
    return text if text == EVERY else integer(1, TRIALS)(text)


class RegDB(DataSet):
    """RegDB (Nguyen et al., Sensors 2017): one visible and one thermal camera.

    Ten trials, each of which trains a model on 206 persons and tests it on 206 others, with ten visible and
    ten thermal images of each (2,060 of a modality and split); every test image is a query, nothing is
    excluded.
    """

    name, title, path, direction, splits = "regdb", "RegDB", "data/RegDB", "v2i", TRIALS
    folders = ("Visible", "Thermal", "idx")
    published = {"training persons": 206, "visible training images": 2060, "infrared training images": 2060,
                 "test persons": 206, "visible test images": 2060, "infrared test images": 2060}
    flags = (
        Flag("--trial",
             {"type": trial_number, "default": 1, "metavar": f"T|{EVERY}",
              "help": "RegDB: split, 1 to 10; all: train ten models, one after the other, and test them"},
             argument_to=("train_split",), fixed=True),
        Flag("--force-trial", {"action": "store_true",
                               "help": "RegDB: test on a split whose persons the model may know"},
             scripts=("test",)),
        Flag("--tvsearch", {"action": "store_true", "help": "RegDB: the old name of --direction i2v"}),
    )

    def train_split(self, root: str | Path, trial: int = 1) -> TrainSplit:
        """The training images of one of the ten splits."""
        sides = self.split_images(root, "train", trial)
        pids = np.union1d(sides[VISIBLE].pids, sides[INFRARED].pids)
        source = f"{root}: training lists of trial {trial}"
        return make_train_split(sides[VISIBLE], sides[INFRARED], pids, source)

    def split_images(self, root: str | Path, split: str, trial: int) -> dict[str, Images]:
        """One split's images of both modalities; `UserError` for a person who is in both splits of the trial.

        Labels count the persons of one split, so the same label in both splits means two persons.
        """
        root = self.require_layout(root)
        if not 1 <= trial <= TRIALS:
            raise ValueError(f"trial: {trial} found, 1 to {TRIALS} expected")
        for modality in MODALITIES:
            lists = [persons(parse_index(list_path(root, side, trial, modality))) for side in SPLITS]
            if both := set.intersection(*lists):
                raise UserError(f"{root / 'idx'}: {min(both)} is in the training and the test list of trial "
                                f"{trial} ({NAMES[modality]}); disjoint persons expected; restore the lists")
        return {modality: listed_images(root, split, trial, modality) for modality in MODALITIES}

    def searches(self, root: str | Path, *, direction: str = "v2i",
                 trials: Iterable[int] = (1,)) -> list[Search]:
        """One search for each split: every image of one modality in all of the other's."""
        query, gallery = DIRECTIONS[direction]
        published = {"queries": self.published[f"{query} test images"],
                     "gallery images": self.published[f"{gallery} test images"]}
        searches = []
        for trial in trials:
            sides = self.split_images(root, "test", trial)
            searches.append(Search(sides[query], sides[gallery], trial, f"{self.title}, {direction}",
                                   published=published))
            searches[-1].require_match(f"{Path(root) / 'idx'}: test lists of trial {trial}")
        return searches

    def persons(self, searches: Sequence[Search]) -> np.ndarray:
        """Labels count the persons of one split: over several, a person is known by his first image."""
        names = []
        for query in (search.query for search in searches):
            first: dict[int, str] = {}
            for path, pid in zip(query.paths, query.pids.tolist()):
                first[pid] = min(path, first.get(pid, path))
            names += [first[pid] for pid in query.pids.tolist()]
        return np.unique(names, return_inverse=True)[1]

    def trials(self, trial: int | str) -> list[int]:
        """A model is tested on the split that it was trained on; EVERY: all of them."""
        return list(range(1, TRIALS + 1)) if trial == EVERY else [trial]

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the other arguments; `UserError` where --tvsearch contradicts --direction."""
        if values["tvsearch"] and values["direction"] == "v2i":
            raise UserError("--tvsearch means --direction i2v, but --direction v2i was given; "
                            "leave one of them out")
        return super().resolve({**values, "direction": "i2v" if values["tvsearch"] else values["direction"]})

    def check(self, root: Path, report: Report) -> None:
        """Check the ten trials' lists, the images that they name, and those on disk that they do not."""
        named: dict[str, list[str]] = {}  # the lists that name an image
        held = [trial for trial in range(1, TRIALS + 1) if any(
            list_path(root, split, trial, modality).exists() for split in SPLITS for modality in MODALITIES)]
        for trial in sorted({*range(1, TRIALS + 1)} - {*held}) if held else ():
            report.add(NOTE, "trials without lists",
                       f"{root / 'idx'}: none of trial {trial}; others do without")
        held = held or [1]
        rows = [self.check_trial(root, trial, named, report) for trial in held]
        report.table.append("trial" + "".join(f"{f'{word} persons':>20}{'visible':>9}{'infrared':>10}"
                                              for word in SPLITS.values()))
        report.table += [f"{trial:<5}" + ("{:>20}{:>9}{:>10}" * 2).format(*row.values())
                         for trial, row in zip(held, rows)]
        for what in rows[0]:
            numbers = {row[what] for row in rows}
            spread = numbers.pop() if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
            report.counts.append((what, spread, self.published[what]))
        for image, lists in sorted(named.items()):
            more = f" and {len(lists) - 1} more" if len(lists) > 1 else ""
            if has_bytes(str(root / image), f", named by {lists[0]}{more}", report):
                report.images.append(str(root / image))
        for folder in sorted({Path(image).parts[0] for image in named} | {*self.folders[:2]}):
            check_unlisted(root, folder, named, report)

    def check_trial(self, root: Path, trial: int, named: dict[str, list[str]],
                    report: Report) -> dict[str, int]:
        """Check the lists of one trial, and add the images that they name; returns its counts."""
        row: dict[str, int] = {}
        for split, word in SPLITS.items():
            files = {modality: list_path(root, split, trial, modality) for modality in MODALITIES}
            lists = {modality: report.attempt(FAULT, "lists", "", parse_index, path) or []
                     for modality, path in files.items()}
            for modality, entries in lists.items():
                for image, _ in entries:
                    named.setdefault(image, []).append(files[modality].name)
            pids = {modality: {label for _, label in entries} for modality, entries in lists.items()}
            everyone = set().union(*pids.values())
            if all(pids.values()):
                check_modalities(f"{root / 'idx'}, trial {trial}", split, pids, everyone, report)
            row |= {f"{word} persons": len(everyone),
                    **{f"{modality} {word} images": len(lists[modality]) for modality in MODALITIES}}
        report.attempt(FAULT, "refused", f"train.py --trial {trial}: ", self.train_split, root, trial)
        report.attempt(FAULT, "refused", f"test.py --trial {trial}: ", self.searches, root, trials=[trial])
        return row


def list_path(root: Path, split: str, trial: int, modality: str) -> Path:
    """The file of one list."""
    return root / "idx" / f"{split}_{NAMES[modality]}_{trial}.txt"


def listed_images(root: Path, split: str, trial: int, modality: str) -> Images:
    """The images of one list."""
    others = {name for other, name in NAMES.items() if other != modality}
    entries = listed_files(list_path(root, split, trial, modality), root, others, NAMES[modality])
    pids = np.array([label for _, label in entries], np.int64)
    paths = tuple(path for path, _ in entries)
    return Images(paths, pids, np.full(len(pids), CAMIDS[modality]), modality)


def persons(entries: list[tuple[str, int]]) -> set[str]:
    """What tells the persons of a list apart: their folders, or their images where all lie in one folder."""
    folders = {os.path.dirname(name) for name, _ in entries}
    return folders if len(folders) > 1 else {name for name, _ in entries}

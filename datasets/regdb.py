"""RegDB: its layout, splits and searches."""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import Copy, parse_index
from datasets.types import (DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, DataSet, Images, Root, Search,
                            matched)
from command_line import Parser, number
from utils import UserError

NAMES = {VISIBLE: "visible", INFRARED: "thermal"}  # of the modalities, as its file names say them
CAMIDS = {VISIBLE: 1, INFRARED: 2}
SPLITS = ("train", "test")


class RegDB(DataSet):
    """RegDB (Nguyen et al., Sensors 2017): one visible and one thermal camera.

    Each of ten trials trains a model on half of the persons and tests it on the others; every test image is a
    query, nothing is excluded.
    """

    name, title, path, direction, splits = "regdb", "RegDB", "data/RegDB", "v2i", TRIALS
    folders, lists = ("Visible", "Thermal", "idx"), "idx"
    flags, arguments = ("trial", "force_trial", "tvsearch"), {"train_split": ("trial",)}
    published = {"training persons": 206, "visible training images": 2060, "infrared training images": 2060,
                 "test persons": 206, "visible test images": 2060, "infrared test images": 2060}

    def add_flags(self, parser: Parser, script: str) -> None:
        parser.add_argument("--trial", type=number(1, TRIALS), default=1, metavar="T",
                            help="RegDB: split, 1 to 10")
        parser.add_argument("--tvsearch", action="store_true", help="RegDB: the old name of --direction i2v")
        if script == "test":
            parser.add_argument("--force-trial", action="store_true",
                                help="RegDB: test on a split whose persons the model may know")

    def images(self, copy: Copy, split: str, trial: int) -> dict[str, Images]:
        """The images of both modalities of a split; a person in both splits of the trial is a fault."""
        sides = {}
        for modality in MODALITIES:
            lists = [copy.attempt("lists", parse_index, list_path(copy.root, side, trial, modality)) or ()
                     for side in SPLITS]
            if both := set.intersection(*map(persons, lists)):
                copy.refuse("lists", f"{copy.root / 'idx'}: {min(both)} is in the training and the test list "
                            f"of trial {trial} ({NAMES[modality]}); disjoint persons expected; restore the "
                            "lists")
            found = copy.listed_images(list_path(copy.root, split, trial, modality), NAMES, modality)
            sides[modality] = Images.of([(path, label, CAMIDS[modality]) for path, label in found], modality)
        return sides

    def source(self, split: str, trial: int) -> str:
        return f"idx: {'training' if split == 'train' else 'test'} lists of trial {trial}"

    def searches(self, root: Root, *, direction: str = "v2i", trials: Iterable[int] = (1,)) -> list[Search]:
        """One search for each split: every image of one modality in all of the other's."""
        copy, (query, gallery) = self.open(root), DIRECTIONS[direction]
        published = {"queries": self.published[f"{query} test images"],
                     "gallery images": self.published[f"{gallery} test images"]}
        searches = []
        for trial in trials:
            sides, source = self.test_images(copy, trial), f"{copy.root / self.source('test', trial)}"
            searches.append(matched(Search(sides[query], sides[gallery], trial, f"{self.title}, {direction}",
                                           published=published), source))
        return searches

    def persons(self, searches: Sequence[Search]) -> np.ndarray:
        """Labels count the persons of one split: over several, a person is known by his first image."""
        names = []
        for query in (search.query for search in searches):
            first = dict(sorted(zip(query.pids.tolist(), query.paths), reverse=True))  # the least path stays
            names += [first[pid] for pid in query.pids.tolist()]
        return np.unique(names, return_inverse=True)[1]

    def trials(self, trial: int) -> list[int]:
        """A model is tested on the split that it was trained on."""
        return [trial]

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the other arguments; `UserError` where --tvsearch contradicts --direction."""
        if values["tvsearch"] and values["direction"] == "v2i":
            raise UserError("--tvsearch means --direction i2v, but --direction v2i was given; leave one of "
                            "them out")
        return super().resolve({**values, "direction": "i2v" if values["tvsearch"] else values["direction"]})

    def trials_to_check(self, root: Path) -> list[int]:
        """The trials of which a copy has any list; the first if it has none."""
        trials = range(1, TRIALS + 1)
        return [trial for trial in trials if any((root / "idx").glob(f"t*_{trial}.txt"))] or [1]


def list_path(root: Path, split: str, trial: int, modality: str) -> Path:
    """The file of one list."""
    return root / "idx" / f"{split}_{NAMES[modality]}_{trial}.txt"


def persons(entries: Sequence[tuple[str, int]]) -> set[str]:
    """What tells the persons of a list apart: their folders, or their images where all lie in one folder."""
    folders = {os.path.dirname(name) for name, _ in entries}
    return folders if len(folders) > 1 else {name for name, _ in entries}

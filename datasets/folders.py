"""Folders of one's own images, in no benchmark's layout: DIR/{train,test}/{visible,infrared}/PERSON/IMAGE."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.cameras import check_person
from datasets.check import FAULT, NOTE, SPLITS, Report, check_lone, scan
from datasets.files import is_system_file, list_images
from datasets.types import (DIRECTIONS, MODALITIES, DataSet, Flag, Images, Search, TrainSplit,
                            make_train_split)
from utils import UserError, integer

Persons = dict[str, list[str]]  # image paths by the name of the person's folder


RANGE = Flag("--range", {"nargs": 2, "type": integer(0, 65535), "metavar": ("LOW", "HIGH"), "help":
                         "folders: raw values that become black and white in images of more than 8 bits"},
             fixed=True)


class CamerasApart(Search):
    """A search whose queries do not see images by a camera of their own number."""

    def seen(self) -> np.ndarray:
        """What the ranking of each query holds, (Q, G) bool."""
        return self.query.camids[:, None] != self.gallery.camids


class Folders(DataSet):
    """Any images in DIR/{train,test}/{visible,infrared}/PERSON; either of train and test may be missing.

    PERSON is any name. An image belongs to camera N if its name begins with cN_ or camN_, else to one camera
    that all such images of its modality share. Every test image of one modality is a query among all of the
    other's.
    """

    name, title, path, direction = "folders", "folders", "", "i2v"
    folders = ("train/visible", "train/infrared", "test/visible", "test/infrared")
    flags = (
        RANGE,
        Flag("--exclude-same-camera", {"action": "store_true",
                                       "help": "folders: leave out pairs of one camera number"},
             argument_to=("searches",)),
    )

    def train_split(self, root: str | Path, trial: int = 1) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        root = self.require_layout(root)
        persons = read_persons(root / "train")
        require_both_modalities(root / "train", persons)
        visible, infrared = make_images(persons)
        return make_train_split(visible, infrared, np.unique(visible.pids), f"{root / 'train'}")

    def can_test(self, root: str | Path) -> bool:
        """Whether there is a folder `test`."""
        return (Path(root) / "test").is_dir()

    def searches(self, root: str | Path, *, direction: str = "i2v", trials: Iterable[int] = (0,),
                 exclude_same_camera: bool = False) -> list[Search]:
        """One search: every image of one modality in all of the other's."""
        root = self.require_layout(root)
        sides = dict(zip(MODALITIES, make_images(read_persons(root / "test"))))
        query, gallery = DIRECTIONS[direction]
        paths = [path for side in sides.values() for path in side.paths]
        if exclude_same_camera and all(camera_of(path) is None for path in paths):
            raise UserError(f"--exclude-same-camera: no name of an image below {root / 'test'} begins with "
                            "its camera, as c1_ or cam1_; rename them, or leave the flag out")
        name = f"{self.title}, {'other cameras, ' if exclude_same_camera else ''}{direction}"
        searches = []
        for trial in trials:
            kind = CamerasApart if exclude_same_camera else Search
            searches.append(kind(sides[query], sides[gallery], trial, name))
            searches[-1].require_match(f"{root / 'test'}")
        return searches

    def trials(self, trial: int) -> list[int]:
        """There is one search, and nothing to draw."""
        return [0]

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the other arguments; `UserError` for no folder, and for a range that is none."""
        if values["data_path"] is None:
            raise UserError("--dataset folders: no --data-path given; "
                            "name the folder that holds train and test")
        require_range(values["range"])
        return super().resolve(values)

    def name_of_person(self, pid: int, sides: Iterable[Images]) -> str:
        """The name of a person's folder."""
        return next(Path(path).parent.name for images in sides
                    for path, other in zip(images.paths, images.pids)
                    if other == pid)

    def check(self, root: Path, report: Report) -> None:
        """Check the persons' folders of either split, and what else lies there."""
        report.takes_range = True
        report.table.append(f"{'':<16}" + "".join(f"{f'{side} persons':>18}{'images':>8}{'cameras':>9}"
                                                  for side in MODALITIES))
        present = [split for split in SPLITS if (root / split).is_dir()]
        names: dict[str, set[str]] = {}
        for split in present:
            sides = {modality: check_modality(root / split / modality, report) for modality in MODALITIES}
            names[split] = set().union(*sides.values())
            report.table.append(f"{SPLITS[split]:<16}" + "".join("{:>18}{:>8}{:>9}".format(*sizes(persons))
                                                                 for persons in sides.values()))
            check_lone(root / split, split, sides, sorted(names[split], key=natural), report)
        for split in SPLITS.keys() - present:
            report.add(NOTE, "nothing to " + ("train on" if split == "train" else "test on"),
                       f"{root / split}: no such folder")
        if both := sorted(set.intersection(*names.values())) if len(names) == 2 else []:
            report.add(NOTE, "names in train and test", f"{len(both)}, the first {both[0]}: if they are the "
                       "same persons, a test says nothing of persons that the model does not know")
        for split, script, method in (("train", "train.py", self.train_split),
                                      ("test", "test.py", self.searches)):
            if split in present:
                report.attempt(FAULT, "refused", f"{script}: ", method, root)


def require_range(limits: Sequence[int] | None) -> None:
    """Raise `UserError` for a range of raw values that is none."""
    if limits and limits[0] >= limits[1]:
        raise UserError(f"--range {limits[0]} {limits[1]}: a LOW below HIGH expected")


# ---------------------------------------------------------------------------------------- reading the folders
def read_persons(folder: Path) -> dict[str, Persons]:
    """The images of every person of one split, by modality and by the name of the person's folder.

    Raises `UserError` if a modality's folder is missing or holds no image, or if two names differ in case
    only, which other systems take for one.
    """
    persons = {}
    for modality in MODALITIES:
        if not (folder / modality).is_dir():
            raise UserError(f"{folder / modality}: no such folder; "
                            f"the images in {modality}/PERSON/IMAGE expected")
        entries = sorted(os.scandir(folder / modality), key=lambda entry: natural(entry.name))
        found = {entry.name: list_images(entry.path) for entry in entries
                 if entry.is_dir() and not is_system_file(entry.name)}
        persons[modality] = {name: paths for name, paths in found.items() if paths}
        if not persons[modality]:
            raise UserError(f"{folder / modality}: no image in a person's folder found; the images in "
                            f"{modality}/PERSON/IMAGE expected")
    if pair := alike_but_for_case(name for side in persons.values() for name in side):
        raise UserError(f"{folder}: persons {pair[0]} and {pair[1]} found, whose names differ in case only; "
                        "give each person one name, and rename the folder")
    return persons


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which 2 comes before 10, and p2 before p10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def alike_but_for_case(names: Iterable[str]) -> list[str]:
    """Two names, sorted, that differ in case only; none where there are no such."""
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(name.casefold(), name) != name:
            return sorted((known[name.casefold()], name))
    return []


def require_both_modalities(folder: Path, persons: Mapping[str, Persons]) -> None:
    """Raise `UserError` for a person who cannot be trained on."""
    for modality, other in (MODALITIES, MODALITIES[::-1]):
        if lone := sorted(persons[other].keys() - persons[modality].keys(), key=natural):
            if len(lone) == len(persons[other]):
                raise UserError(f"{folder}: no name of a person's folder is in both visible and infrared; "
                                "the same name in both expected for training; rename the folders")
            more = f" (and {len(lone) - 1} more)" if len(lone) > 1 else ""
            raise UserError(f"{folder}: person {lone[0]}{more} has no {modality} image; "
                            "both modalities expected for training; "
                            f"add images, or move {folder / other / lone[0]} elsewhere")


def make_images(persons: Mapping[str, Persons]) -> list[Images]:
    """Visible and infrared images; persons are numbered from 0 in the order of their names.

    Images that name no camera have the next number after all that are named (visible), or the one after
    (infrared).
    """
    names = sorted(set().union(*persons.values()), key=natural)
    numbers = {name: number for number, name in enumerate(names)}
    named = {path: camera_of(path) for side in persons.values() for paths in side.values() for path in paths}
    top = max((camera for camera in named.values() if camera is not None), default=0)
    sides = []
    for rest, modality in enumerate(MODALITIES, top + 1):
        paths = [path for images in persons[modality].values() for path in images]
        pids = [numbers[name] for name, images in persons[modality].items() for _ in images]
        camids = [rest if named[path] is None else named[path] for path in paths]
        sides.append(Images(tuple(paths), np.array(pids, np.int64), np.array(camids, np.int64), modality))
    return sides


def camera_of(path: str) -> int | None:
    """The number N of an image whose name begins with cN_ or camN_; None of any other."""
    found = re.match(r"(?:c|cam)(\d{1,9})_", Path(path).name, re.IGNORECASE)
    return int(found[1]) if found else None


# ---------------------------------------------------------------------------------------- the check of a copy
def check_modality(folder: Path, report: Report) -> Persons:
    """The images of every person of one modality; what else is in its folder is reported."""
    persons = {}
    for entry in scan(folder, report):
        if not os.path.isdir(entry.path):
            report.add(NOTE, "misnamed", f"{entry.path}: not used; a person's folder expected")
        elif images := check_person(entry.path, report, ".*", ""):
            persons[entry.name] = images
            report.images += images
    return persons


def sizes(persons: Persons) -> tuple[int, int, int]:
    """Persons, images and named cameras."""
    paths = [path for images in persons.values() for path in images]
    return len(persons), len(paths), len({camera_of(path) for path in paths} - {None})

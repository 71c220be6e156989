"""Folders of one's own images, in no benchmark's layout: DIR/{train,test}/{visible,infrared}/PERSON/IMAGE."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.check import NOTE, Report
from datasets.files import Copy, looks
from datasets.types import DIRECTIONS, MODALITIES, DataSet, Images, Root, Search, matched
from command_line import Parser, number
from utils import UserError

# How --range is declared, wherever images of more than 8 bits are read.
RANGE = {"nargs": 2, "type": number(0, 65535), "metavar": ("LOW", "HIGH")}


class CamerasApart(Search):
    """A search whose queries do not see images by a camera of their own number."""

    def seen(self) -> np.ndarray:
        return self.query.camids[:, None] != self.gallery.camids


class Folders(DataSet):
    """Any images in DIR/{train,test}/{visible,infrared}/PERSON; either of train and test may be missing.

    PERSON is any name. An image belongs to camera N if its name begins with cN_ or camN_, else to one camera
    that all such images of its modality share. Every test image of one modality is a query among all of the
    other's.
    """

    name, title, path, direction = "folders", "folders", "", "i2v"
    folders = ("train/visible", "train/infrared", "test/visible", "test/infrared")
    flags, arguments = ("range", "exclude_same_camera"), {"searches": ("exclude_same_camera",)}

    def add_flags(self, parser: Parser, script: str) -> None:
        parser.add_argument("--range", **RANGE, help="folders: raw values that become black and "
                            "white in images of more than 8 bits")
        parser.add_argument("--exclude-same-camera", action="store_true",
                            help="folders: leave out pairs of one camera number")

    def images(self, copy: Copy, split: str, trial: int) -> dict[str, Images]:
        """The images of both modalities of a split; two names of persons that look alike are a fault.

        A person's number is the place of the name in natural order. Images that name no camera have the next
        number after all that are named (visible), or the one after (infrared).
        """
        folder = copy.root / split
        persons = {modality: read_persons(copy, folder / modality) for modality in MODALITIES}
        names = sorted(set().union(*persons.values()), key=natural)
        alike: dict[str, str] = {}
        for name in names:
            if (other := alike.setdefault(looks(name), name)) != name:
                copy.refuse("names that look alike", f"{folder}: persons {ascii(other)} and {ascii(name)} "
                            "found, whose names differ only in case or in what cannot be seen; give each "
                            "person one name, and rename the folder")
        numbers = {name: number for number, name in enumerate(names)}
        found = {modality: [(path, numbers[name], camera_of(path)) for name, paths in side.items()
                            for path in paths] for modality, side in persons.items()}
        top = max((camera or 0 for side in found.values() for *_, camera in side), default=0)
        return {modality: Images.of([(path, pid, rest if camera is None else camera)
                                     for path, pid, camera in found[modality]], modality)
                for rest, modality in enumerate(MODALITIES, top + 1)}

    def source(self, split: str, trial: int) -> str:
        return split

    def searches(self, root: Root, *, direction: str = "i2v", trials: Iterable[int] = (0,),
                 exclude_same_camera: bool = False) -> list[Search]:
        """One search: every image of one modality in all of the other's."""
        copy, (query, gallery) = self.open(root), DIRECTIONS[direction]
        sides, test = self.test_images(copy), copy.root / "test"
        if exclude_same_camera and all(camera_of(path) is None for side in sides.values()
                                       for path in side.paths):
            raise UserError(f"--exclude-same-camera: no name of an image below {test} begins with its "
                            "camera, as c1_ or cam1_; rename them, or leave the flag out")
        kind = CamerasApart if exclude_same_camera else Search
        name = f"{self.title}, {'other cameras, ' if exclude_same_camera else ''}{direction}"
        return [matched(kind(sides[query], sides[gallery], trial, name, left_out=copy.left_out), f"{test}")
                for trial in trials]

    def trials(self, trial: int) -> list[int]:
        """There is one search, and nothing to draw."""
        return [0]

    def has(self, root: str | Path, split: str) -> bool:
        return (Path(root) / split).is_dir()

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the other arguments; `UserError` for no folder, and for a range that is none."""
        if values["data_path"] is None:
            raise UserError("--dataset folders: no --data-path given; "
                            "name the folder that holds train and test")
        require_range(values["range"])
        return super().resolve(values)

    def name_of_person(self, pid: int, sides: Iterable[Images]) -> str:
        return next(Path(path).parent.name for images in sides
                    for path, other in zip(images.paths, images.pids) if other == pid)

    def check_more(self, report: Report) -> None:
        """Report persons of one name in both splits."""
        names = [{looks(Path(path).parent.name) for path in report.images
                  if Path(path).is_relative_to(report.root / split)} for split in ("train", "test")]
        if both := sorted(set.intersection(*names), key=natural):
            report.add(NOTE, "names in train and test", f"{len(both)}, the first {both[0]}: if they are the "
                       "same persons, a test says nothing of persons that the model does not know")


def require_range(limits: Sequence[int] | None) -> None:
    """Raise `UserError` for a range of raw values that is none."""
    if limits and limits[0] >= limits[1]:
        raise UserError(f"--range {limits[0]} {limits[1]}: a LOW below HIGH expected")


def read_persons(copy: Copy, folder: Path) -> dict[str, list[str]]:
    """The image paths of every person of one modality, by name; that there is none is a fault."""
    entries = sorted(copy.entries(folder), key=lambda entry: natural(entry.name))
    found = {entry.name: copy.image_files(entry.path) for entry in entries if entry.is_dir()}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        copy.refuse("missing", f"{folder}: no image in a person's folder found; the images in "
                    f"{folder.name}/PERSON/IMAGE expected")
    return found


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key by which 2 comes before 10, and p2 before p10; no two names have the same."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)], name


def camera_of(path: str) -> int | None:
    """The number N of an image whose name begins with cN_ or camN_; None of any other."""
    found = re.match(r"(?:c|cam)(\d{1,9})_", Path(path).name, re.IGNORECASE)
    return int(found[1]) if found else None

"""SYSU-MM01: its layout, splits and searches."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.check import NOTE, Report
from datasets.exclusion import sysu_seen
from datasets.files import Copy, describe_entry, parse_id_list
from datasets.types import (DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet, Images, Root,
                            Search, draw, matched)
from command_line import Parser
from utils import UserError, one_line

CAMERAS = {"all": {VISIBLE: (1, 2, 4, 5), INFRARED: (3, 6)},  # searched, by mode
           "indoor": {VISIBLE: (1, 2), INFRARED: (3, 6)}}
PUBLISHED = {"all": 301, "indoor": 112}  # images of a single-shot gallery of the whole data set


class SysuSearch(Search):
    """A search without images of the query's room."""

    def seen(self) -> np.ndarray:
        if self.query.modality == INFRARED:
            return sysu_seen(self.query.camids, self.gallery.camids)
        return sysu_seen(self.gallery.camids, self.query.camids).T


class SysuMM01(DataSet):
    """SYSU-MM01 (Wu et al., ICCV 2017): four visible and two infrared cameras.

    The lists train and val are for training. Ten trials are ten draws of the gallery.
    """

    name, title, path, direction = "sysu", "SYSU-MM01", "data/SYSU-MM01", "i2v"
    folders, lists = ("cam1", "cam2", "cam3", "cam4", "cam5", "cam6", "exp"), "exp"
    flags = ("mode", "shot", "gallery", "arrays")
    arguments = {"searches": ("mode", "shot", "gallery")}
    arrays = Arrays({VISIBLE: "train_rgb_resized", INFRARED: "train_ir_resized"}, "pre_process_sysu.py")
    published = {"training persons": 395, "visible training images": 22258, "infrared training images": 11909,
                 "test persons": 96, "infrared test images": 3803}
    checked = ({"mode": "all"}, {"mode": "indoor"})

    def add_flags(self, parser: Parser, script: str) -> None:
        super().add_flags(parser, script)
        parser.add_argument("--mode", choices=tuple(CAMERAS), default="all",
                            help="SYSU-MM01: cameras searched")
        parser.add_argument("--shot", type=int, choices=(1, 10), default=1,
                            help="SYSU-MM01: gallery images a person and camera")
        parser.add_argument("--gallery", choices=tuple(GALLERIES), default="random",
                            help="SYSU-MM01: draw of the gallery (official: exp/rand_perm_cam.mat)")

    def images(self, copy: Copy, split: str, trial: int) -> dict[str, Images]:
        return {modality: self.side(copy, split, modality) for modality in MODALITIES}

    def side(self, root: Root, split: str, modality: str, mode: str = "all") -> Images:
        """The images of a modality's cameras; one without any is a fault: each has some of either split."""
        copy, cameras = self.open(root), CAMERAS[mode][modality]
        found = copy.camera_images({camera: copy.root / f"cam{camera}" for camera in cameras},
                                   read_ids(copy)[split])
        for camera in sorted(set(cameras) - {camera for _, _, camera in found}):
            copy.refuse("missing", f"{copy.root / f'cam{camera}'}: no image of the persons on the lists; the "
                        f"camera's images, in cam{camera}/NNNN/NNNN.jpg, expected; restore them")
        return Images.of(found, modality)

    def source(self, split: str, trial: int) -> str:
        return "exp/train_id.txt and exp/val_id.txt" if split == "train" else "exp/test_id.txt"

    def searches(self, root: Root, *, direction: str = "i2v", trials: Iterable[int] = range(TRIALS),
                 mode: str = "all", shot: int = 1, gallery: str = "random") -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        copy = self.open(root)
        query, images = (self.side(copy, "test", modality, mode) for modality in DIRECTIONS[direction])
        name = (f"{self.title} {mode}-search, {'single' if shot == 1 else 'multi'}-shot, {gallery} gallery, "
                f"{direction}")
        published = {"test persons": self.published["test persons"]}
        if direction == "i2v":  # every test person has at least ten images in a camera
            published |= {"queries": self.published["infrared test images"],
                          "gallery images": shot * PUBLISHED[mode]}
        source = f"{copy.root / self.source('test', 1)}, {mode}-search"
        return [matched(SysuSearch(query, GALLERIES[gallery](images, trial, shot), trial, name, True,
                                   published, mode == "indoor", copy.left_out), source) for trial in trials]

    def check_more(self, report: Report) -> None:
        """Note where the official galleries, which nothing else needs, cannot be drawn."""
        try:
            self.searches(report.root, shot=10, gallery="official")
        except UserError as error:
            if report.usable:
                report.add(NOTE, "only --gallery official needs it", error)


def read_ids(copy: Copy) -> dict[str, list[int]]:
    """Identities of the splits train (the lists train and val together) and test; these must not overlap."""
    lists = {name: copy.attempt("lists", parse_id_list, copy.root / "exp" / f"{name}_id.txt") or []
             for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if both := sorted(set(lists[name]) & set(lists["test"])):
            copy.refuse("lists", f"{copy.root / 'exp'}: identity {both[0]} is in {name}_id.txt and in "
                        "test_id.txt; disjoint lists expected; restore the files")
    return {"train": sorted({*lists["train"], *lists["val"]}), "test": lists["test"]}


def draw_official(images: Images, trial: int, shot: int) -> Images:
    """The draw of the data set's own evaluation: the first of row `trial` of each person's permutation.

    Raises `UserError` where `exp/rand_perm_cam.mat` does not give it, or names an image that is not there.
    """
    from scipy.io import loadmat
    root = Path(images.paths[0]).parents[2]  # of cam1/0001/0001.jpg
    mat, drawn = root / "exp" / "rand_perm_cam.mat", []
    try:
        if not mat.is_file():
            raise ValueError(describe_entry(mat))
        cells = loadmat(mat)["rand_perm_cam"]
        for (pid, camera), rows in images.by_person_and_camera().items():
            numbers = cells[camera - 1][0][pid - 1]
            while numbers.dtype == object:  # one level deeper in some copies
                numbers = numbers.flat[0]
            by_name = {Path(images.paths[row]).stem: row for row in rows}
            names = [f"{int(number):04d}" for number in numbers[trial, :shot]]  # saved as doubles by some
            if absent := [name for name in names if name not in by_name]:
                raise ValueError(f"image cam{camera}/{pid:04d}/{absent[0]}.jpg is not there")
            drawn += [by_name[name] for name in names]
    except Exception as error:  # SciPy raises whatever a malformed file makes it stumble over
        raise UserError(f"{mat}: does not give the gallery of trial {trial} ({one_line(error)}); restore it "
                        "and the images, or use --gallery random") from None
    return images.take(drawn)


GALLERIES = {"random": draw, "official": draw_official}

"""LLCM: its layout, split, searches, and the check of a copy."""
from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from datasets.cameras import check_camera, image_files
from datasets.check import FAULT, NOTE, SPLITS, Report, check_modalities, check_unlisted, has_bytes
from datasets.exclusion import llcm_seen
from datasets.files import listed_files, parse_id_list, parse_index
from datasets.types import (ARRAYS_FLAG, DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet,
                            Images, Search, TrainSplit, grouped, make_train_split)

NAMES = {VISIBLE: "vis", INFRARED: "nir"}  # of the modalities, as its folders and lists say them
CAMERAS = {VISIBLE: (1, 2, 3, 4, 5, 6, 7, 8, 9), INFRARED: (1, 2, 4, 5, 6, 7, 8, 9)}  # that see test persons


class LlcmSearch(Search):
    """A search without images of the query's person by the query's camera."""

    def seen(self) -> np.ndarray:
        """What the ranking of each query holds, (Q, G) bool."""
        return llcm_seen(self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)


class LLCM(DataSet):
    """LLCM (Zhang and Wang, CVPR 2023): nine cameras, each visible by low light and near-infrared.

    Training: 713 persons, 16,946 visible and 13,975 infrared images. Test: 351 persons, 8,680 visible and
    7,166 infrared images (none of camera 3). Every test image of one modality is a query; the gallery is one
    image of each person and camera of the other. Ten trials are ten draws of it, in both directions: the
    benchmark's own code draws the queries of VIS to IR instead, which is another search.
    """

    name, title, path, direction = "llcm", "LLCM", "data/LLCM", "i2v"
    folders = ("vis", "nir", "test_vis", "test_nir", "idx")
    arrays = Arrays({VISIBLE: "train_vis_resized", INFRARED: "train_nir_resized"}, "pre_process_llcm.py")
    flags = (ARRAYS_FLAG,)
    published = {"training persons": 713, "visible training images": 16946, "infrared training images": 13975,
                 "test persons": 351, "visible test images": 8680, "infrared test images": 7166}

    def train_split(self, root: str | Path, trial: int = 1) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        root = self.require_layout(root)
        visible, infrared = (self.train_images(root, modality) for modality in MODALITIES)
        pids = np.union1d(visible.pids, infrared.pids)
        return make_train_split(visible, infrared, pids, f"{root}: idx/train_vis.txt and idx/train_nir.txt",
                                self.arrays)

    def train_images(self, root: Path, modality: str) -> Images:
        """The images of one training list; the camera is that of the name, as in
        0351_c06_s200656_f4830_nir.jpg, else 0.
        """
        others = {name for other, name in NAMES.items() if other != modality}
        entries = listed_files(list_path(root, modality), root, others, NAMES[modality])
        cameras = [re.search(r"_c(\d+)_", Path(path).name) for path, _ in entries]
        pids = np.array([label for _, label in entries], np.int64)
        camids = np.array([int(camera[1]) if camera else 0 for camera in cameras], np.int64)
        return Images(tuple(path for path, _ in entries), pids, camids, modality)

    def query(self, root: str | Path, modality: str) -> Images:
        """Every test image of a modality, cameras within persons."""
        return grouped(self.test_files(root, modality), modality)

    def draw_gallery(self, root: str | Path, trial: int, modality: str) -> Images:
        """Draw one image of each test person and camera of a modality, as the benchmark's own code does.

        The global generator is left alone. Raises ValueError for a trial below 0.
        """
        if trial < 0:
            raise ValueError(f"trial: {trial} found, at least 0 expected")
        rng = random.Random(trial)
        return grouped({key: [rng.choice(paths)] for key, paths in self.test_files(root, modality).items()},
                       modality)

    def test_files(self, root: str | Path, modality: str) -> dict[tuple[int, int], list[str]]:
        """The test images of a modality by (pid, camera), cameras within persons."""
        root = self.require_layout(root)
        return image_files(test_cameras(root, modality), parse_id_list(root / "idx" / "test_id.txt"))

    def searches(self, root: str | Path, *, direction: str = "i2v",
                 trials: Iterable[int] = range(TRIALS)) -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        query_modality, gallery_modality = DIRECTIONS[direction]
        query = self.query(root, query_modality)
        published = {"test persons": self.published["test persons"],
                     "queries": self.published[f"{query_modality} test images"]}
        searches = []
        for trial in trials:
            gallery = self.draw_gallery(root, trial, gallery_modality)
            searches.append(LlcmSearch(query, gallery, trial, f"{self.title}, {direction}", True, published,
                                       partial=True))
            searches[-1].require_match(f"{Path(root) / 'idx' / 'test_id.txt'}")
        return searches

    def check(self, root: Path, report: Report) -> None:
        """Check the training lists and what they name, and the test persons of every camera."""
        named = {modality: self.check_list(root, modality, report) for modality in MODALITIES}
        tests = set(report.attempt(FAULT, "lists", "", parse_id_list, root / "idx" / "test_id.txt") or ())
        held = {modality: self.check_cameras(root, modality, tests, report) for modality in MODALITIES}
        trained = {modality: set(entries.values()) for modality, entries in named.items()}
        tested = {modality: {pid for pid, _ in counts} for modality, counts in held.items()}
        if all(trained.values()):
            check_modalities(f"{root / 'idx'}", "train", trained, set.union(*trained.values()), report)
        check_modalities(f"{root / 'idx' / 'test_id.txt'}", "test", tested, tests, report)
        self.count(named, tests, held, report)
        report.attempt(FAULT, "refused", "train.py: ", self.train_split, root)
        for direction in DIRECTIONS:
            report.attempt(FAULT, "refused", f"test.py --direction {direction}: ", self.searches, root,
                           direction=direction, trials=[0])

    def check_list(self, root: Path, modality: str, report: Report) -> dict[str, int]:
        """Check the images that a training list names, and those on disk that it does not; its lines."""
        path = list_path(root, modality)
        entries = dict(report.attempt(FAULT, "lists", "", parse_index, path) or ())
        for name in sorted(entries):
            if has_bytes(str(root / name), f", named by {path.name}", report):
                report.images.append(str(root / name))
        check_unlisted(root, NAMES[modality], entries, report)
        return entries

    def check_cameras(self, root: Path, modality: str, tests: set[int],
                      report: Report) -> dict[tuple[int, int], int]:
        """Check the test folders of one modality; returns the number of images by (pid, camera)."""
        held = {}
        for camera, folder in test_cameras(root, modality).items():
            if not folder.is_dir():
                report.add(NOTE, "missing cameras", f"{folder}: no such folder")
                continue
            for _, pid, images in check_camera(folder, {"test": tests}, report, ".*", ""):
                held[pid, camera] = len(images)
                report.images += images
        return held

    def count(self, named: Mapping[str, dict[str, int]], tests: set[int],
              held: Mapping[str, dict[tuple[int, int], int]], report: Report) -> None:
        """Fill table and counts of the report; named, held: what lists and test folders hold, by modality."""
        report.table.append(f"{'':<16}"
                            + "".join(f"{f'{side} persons':>18}{'images':>8}" for side in MODALITIES))

        def row(title: str, cells: Iterable[tuple[int, int]]) -> None:
            report.table.append(f"{title:<16}"
                                + "".join(f"{persons:>18}{images:>8}" for persons, images in cells))

        row("training", [(len(set(named[side].values())), len(named[side])) for side in MODALITIES])
        for camera in CAMERAS[VISIBLE]:
            counts = [[number for (_, other), number in held[side].items() if other == camera]
                      for side in MODALITIES]
            row(f"test cam{camera}", [(len(numbers), sum(numbers)) for numbers in counts])
        row("all test",
            [(len({pid for pid, _ in held[side]}), sum(held[side].values())) for side in MODALITIES])
        found = {"training persons": len(set().union(*(entries.values() for entries in named.values()))),
                 **{f"{side} training images": len(named[side]) for side in MODALITIES},
                 f"{SPLITS['test']} persons": len(tests),
                 **{f"{side} test images": sum(held[side].values()) for side in MODALITIES}}
        report.counts = [(what, number, self.published[what]) for what, number in found.items()]


def list_path(root: Path, modality: str) -> Path:
    """The file of one training list."""
    return root / "idx" / f"train_{NAMES[modality]}.txt"


def test_cameras(root: Path, modality: str) -> dict[int, Path]:
    """The folders of the cameras that see test persons."""
    return {camera: root / f"test_{NAMES[modality]}" / f"cam{camera}" for camera in CAMERAS[modality]}

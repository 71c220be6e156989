"""LLCM: its layout, split and searches."""
from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.exclusion import llcm_seen
from datasets.files import Scan, parse_id_list
from datasets.types import (DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet, Images,
                            Search, TrainSplit, add_arrays_flag, grouped, make_train_split)
from utils import Parser

NAMES = {VISIBLE: "vis", INFRARED: "nir"}  # of the modalities, as its folders and lists say them
CAMERAS = {VISIBLE: (1, 2, 3, 4, 5, 6, 7, 8, 9), INFRARED: (1, 2, 4, 5, 6, 7, 8, 9)}  # that see test persons
Files = dict[tuple[int, int], list[str]]  # image paths by (pid, camera)


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
    folders, lists = ("vis", "nir", "test_vis", "test_nir", "idx"), "idx"
    flags = ("arrays",)
    arrays = Arrays({VISIBLE: "train_vis_resized", INFRARED: "train_nir_resized"}, "pre_process_llcm.py")
    published = {"training persons": 713, "visible training images": 16946, "infrared training images": 13975,
                 "test persons": 351, "visible test images": 8680, "infrared test images": 7166}
    checked = ({"direction": "i2v"}, {"direction": "v2i"})

    def add_flags(self, parser: Parser, script: str) -> None:
        """Declare the flags that belong to this data set; script: "train" or "test"."""
        if script == "train":
            add_arrays_flag(parser)

    def train_split(self, root: str | Path, trial: int = 1, scan: Scan | None = None) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        root, scan = self.require_layout(root), scan or Scan()
        visible, infrared = (train_images(root, modality, scan) for modality in MODALITIES)
        pids = np.union1d(visible.pids, infrared.pids)
        return make_train_split(visible, infrared, pids, f"{root}: idx/train_vis.txt and idx/train_nir.txt",
                                scan, self.arrays)

    def test_files(self, root: str | Path, modality: str, scan: Scan | None = None) -> Files:
        """The test images of a modality by (pid, camera), cameras within persons."""
        root, scan = self.require_layout(root), scan or Scan()
        pids = scan.attempt("lists", parse_id_list, root / "idx" / "test_id.txt") or []
        return scan.camera_images({camera: root / f"test_{NAMES[modality]}" / f"cam{camera}"
                                   for camera in CAMERAS[modality]}, pids)

    def query(self, root: str | Path, modality: str, scan: Scan | None = None) -> Images:
        """Every test image of a modality, cameras within persons."""
        return grouped(self.test_files(root, modality, scan), modality)

    def test_images(self, root: str | Path, trial: int = 1, scan: Scan | None = None) -> dict[str, Images]:
        """All test images of either modality."""
        return {modality: self.query(root, modality, scan) for modality in MODALITIES}

    def draw_gallery(self, root: str | Path, trial: int, modality: str) -> Images:
        """Draw one image of each test person and camera of a modality, as the benchmark's own code does.

        The global generator is left alone. Raises ValueError for a trial below 0.
        """
        return draw(self.test_files(root, modality), trial, modality)

    def searches(self, root: str | Path, *, direction: str = "i2v", trials: Iterable[int] = range(TRIALS),
                 scan: Scan | None = None) -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        scan, (query_modality, gallery_modality) = scan or Scan(), DIRECTIONS[direction]
        query = self.query(root, query_modality, scan)
        files = self.test_files(root, gallery_modality, scan)
        published = {"test persons": self.published["test persons"],
                     "queries": self.published[f"{query_modality} test images"]}
        searches = []
        for trial in trials:
            searches.append(LlcmSearch(query, draw(files, trial, gallery_modality), trial,
                                       f"{self.title}, {direction}", True, published, True,
                                       tuple(scan.left_out)))
            searches[-1].require_match(f"{Path(root) / 'idx' / 'test_id.txt'}")
        return searches


def train_images(root: Path, modality: str, scan: Scan) -> Images:
    """The images of one training list; the camera is that of the name, as in
    0351_c06_s200656_f4830_nir.jpg, else 0.
    """
    others = {name for other, name in NAMES.items() if other != modality}
    entries = scan.listed_images(root / "idx" / f"train_{NAMES[modality]}.txt", root, others, NAMES[modality])
    cameras = [re.search(r"_c(\d+)_", Path(path).name) for path, _ in entries]
    return Images(tuple(path for path, _ in entries), np.array([label for _, label in entries], np.int64),
                  np.array([int(camera[1]) if camera else 0 for camera in cameras], np.int64), modality)


def draw(files: Files, trial: int, modality: str) -> Images:
    """Draw one of each person's images by each camera."""
    if trial < 0:
        raise ValueError(f"trial: {trial} found, at least 0 expected")
    rng = random.Random(trial)
    return grouped({key: [rng.choice(paths)] for key, paths in files.items()}, modality)

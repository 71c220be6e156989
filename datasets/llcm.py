"""LLCM: its layout, split and searches."""
from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.exclusion import llcm_seen
from datasets.files import Copy, parse_id_list
from datasets.types import (DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet, Images, Root,
                            Search, TrainSplit, add_arrays_flag, grouped, make_train_split, matched)
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

    def train_split(self, root: Root, trial: int = 1) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        copy = self.open(root)
        visible, infrared = (train_images(copy, modality) for modality in MODALITIES)
        return make_train_split(copy, visible, infrared, np.union1d(visible.pids, infrared.pids),
                                f"{copy.root}: idx/train_vis.txt and idx/train_nir.txt", self.arrays)

    def test_files(self, root: Root, modality: str) -> Files:
        """The test images of a modality by (pid, camera), cameras within persons."""
        copy = self.open(root)
        pids = copy.attempt("lists", parse_id_list, copy.root / "idx" / "test_id.txt") or []
        return copy.camera_images({camera: copy.root / f"test_{NAMES[modality]}" / f"cam{camera}"
                                   for camera in CAMERAS[modality]}, pids)

    def query(self, root: Root, modality: str) -> Images:
        """Every test image of a modality, cameras within persons."""
        return grouped(self.test_files(root, modality), modality)

    def test_images(self, root: Root, trial: int = 1) -> dict[str, Images]:
        """All test images of either modality."""
        return {modality: self.query(root, modality) for modality in MODALITIES}

    def draw_gallery(self, root: Root, trial: int, modality: str) -> Images:
        """Draw one image of each test person and camera of a modality, as the benchmark's own code does."""
        return draw(self.test_files(root, modality), trial, modality)

    def searches(self, root: Root, *, direction: str = "i2v",
                 trials: Iterable[int] = range(TRIALS)) -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        copy, (query_modality, gallery_modality) = self.open(root), DIRECTIONS[direction]
        query = self.query(copy, query_modality)
        files = self.test_files(copy, gallery_modality)
        published = {"test persons": self.published["test persons"],
                     "queries": self.published[f"{query_modality} test images"]}
        return matched([LlcmSearch(query, draw(files, trial, gallery_modality), trial,
                                   f"{self.title}, {direction}", True, published, True, copy.left_out)
                        for trial in trials], f"{copy.root / 'idx' / 'test_id.txt'}")


def train_images(copy: Copy, modality: str) -> Images:
    """The images of one training list; 0351_c06_s200656_f4830_nir.jpg is of camera 6, other names of 0."""
    entries = copy.listed_images(copy.root / "idx" / f"train_{NAMES[modality]}.txt", NAMES, modality)
    cameras = [re.search(r"_c(\d+)_", Path(path).name) for path, _ in entries]
    return Images(tuple(path for path, _ in entries), np.array([label for _, label in entries], np.int64),
                  np.array([int(camera[1]) if camera else 0 for camera in cameras], np.int64), modality)


def draw(files: Files, trial: int, modality: str) -> Images:
    """Draw one of each person's images by each camera; the global generator is left alone."""
    rng = random.Random(trial)
    return grouped({key: [rng.choice(paths)] for key, paths in files.items()}, modality)

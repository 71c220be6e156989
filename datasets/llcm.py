"""LLCM: its layout, split and searches."""
from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.exclusion import llcm_seen
from datasets.files import Copy, parse_id_list
from datasets.types import (DIRECTIONS, INFRARED, TRIALS, VISIBLE, Arrays, DataSet, Images, Root, Search,
                            draw, matched)

NAMES = {VISIBLE: "vis", INFRARED: "nir"}  # of the modalities, as its folders and lists say them
CAMERAS = {VISIBLE: (1, 2, 3, 4, 5, 6, 7, 8, 9), INFRARED: (1, 2, 4, 5, 6, 7, 8, 9)}  # that see test persons


class LlcmSearch(Search):
    """A search without images of the query's person by the query's camera."""

    def seen(self) -> np.ndarray:
        return llcm_seen(self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)


class LLCM(DataSet):
    """LLCM (Zhang and Wang, CVPR 2023): nine cameras, each visible by low light and near-infrared.

    Every test image of one modality is a query; the gallery is one image of each person and camera of the
    other. Ten trials are ten draws of it, in both directions: the benchmark's own code draws the queries of
    VIS to IR instead, which is another search.
    """

    name, title, path, direction = "llcm", "LLCM", "data/LLCM", "i2v"
    folders, lists = ("vis", "nir", "test_vis", "test_nir", "idx"), "idx"
    flags = ("arrays",)
    arrays = Arrays({VISIBLE: "train_vis_resized", INFRARED: "train_nir_resized"}, "pre_process_llcm.py")
    published = {"training persons": 713, "visible training images": 16946, "infrared training images": 13975,
                 "test persons": 351, "visible test images": 8680, "infrared test images": 7166}
    checked = ({"direction": "i2v"}, {"direction": "v2i"})

    def images(self, copy: Copy, split: str, trial: int = 1) -> dict[str, Images]:
        sides = {}
        for modality, name in NAMES.items():
            if split == "train":
                listed = copy.listed_images(copy.root / "idx" / f"train_{name}.txt", NAMES, modality)
                found = [(path, label, camera_of(path)) for path, label in listed]
            else:
                pids = copy.attempt("lists", parse_id_list, copy.root / "idx" / "test_id.txt") or []
                found = copy.camera_images({camera: copy.root / f"test_{name}" / f"cam{camera}"
                                            for camera in CAMERAS[modality]}, pids)
            sides[modality] = Images.of(found, modality)
        return sides

    def source(self, split: str, trial: int) -> str:
        return "idx/train_vis.txt and idx/train_nir.txt" if split == "train" else "idx/test_id.txt"

    def searches(self, root: Root, *, direction: str = "i2v",
                 trials: Iterable[int] = range(TRIALS)) -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        copy, (query, gallery) = self.open(root), DIRECTIONS[direction]
        sides, source = self.test_images(copy), f"{copy.root / self.source('test', 1)}"
        published = {"test persons": self.published["test persons"],
                     "queries": self.published[f"{query} test images"]}
        name = f"{self.title}, {direction}"
        return [matched(LlcmSearch(sides[query], draw(sides[gallery], trial), trial, name, True, published,
                                   True, copy.left_out), source) for trial in trials]


def camera_of(path: str) -> int:
    """The camera of a training image, as 6 of 0351_c06_s200656_f4830_nir.jpg; 0 of any other name."""
    found = re.search(r"_c(\d+)_", Path(path).name)
    return int(found[1]) if found else 0

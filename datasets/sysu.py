"""SYSU-MM01: its layout, splits and searches."""
from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.check import NOTE, Report
from datasets.exclusion import sysu_seen
from datasets.files import Scan, parse_id_list
from datasets.types import (DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet, Images,
                            Search, TrainSplit, add_arrays_flag, grouped, make_train_split)
from utils import Parser, UserError

CAMERAS = {VISIBLE: (1, 2, 4, 5), INFRARED: (3, 6)}
INDOOR = (1, 2)
GALLERY = {"all": 301, "indoor": 112}  # images of a single-shot gallery of the whole data set
Files = Mapping[tuple[int, int], list[str]]  # image paths by (pid, camera)


class SysuSearch(Search):
    """A search without images of the query's room."""

    def seen(self) -> np.ndarray:
        """What the ranking of each query holds, (Q, G) bool."""
        if self.query.modality == INFRARED:
            return sysu_seen(self.query.camids, self.gallery.camids)
        return sysu_seen(self.gallery.camids, self.query.camids).T


class SysuMM01(DataSet):
    """SYSU-MM01 (Wu et al., ICCV 2017): cameras 1, 2, 4, 5 visible, 3, 6 infrared.

    Training: 395 persons (lists train and val), 22,258 visible and 11,909 infrared images. Test: 96 persons,
    3,803 infrared queries; a single-shot gallery has 301 images in all-search, 112 in indoor-search (cameras
    1 and 2). Ten trials are ten draws of the gallery.
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
        """Declare the flags that belong to this data set; script: "train" or "test"."""
        parser.add_argument("--mode", choices=tuple(GALLERY), default="all",
                            help="SYSU-MM01: cameras searched")
        parser.add_argument("--shot", type=int, choices=(1, 10), default=1,
                            help="SYSU-MM01: gallery images a person and camera")
        parser.add_argument("--gallery", choices=("random", "official"), default="random",
                            help="SYSU-MM01: draw of the gallery (official: exp/rand_perm_cam.mat)")
        if script == "train":
            add_arrays_flag(parser)

    def train_split(self, root: str | Path, trial: int = 1, scan: Scan | None = None) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        root, scan = self.require_layout(root), scan or Scan()
        pids = read_ids(root, scan)["train"]
        sides = [grouped(camera_files(root, pids, CAMERAS[side], scan), side) for side in MODALITIES]
        return make_train_split(*sides, pids, f"{root}: exp/train_id.txt and exp/val_id.txt", scan,
                                self.arrays)

    def test_files(self, root: str | Path, mode: str, modality: str, scan: Scan | None = None) -> Files:
        """The test images of the modality's cameras by (pid, camera), cameras within persons."""
        root, scan = self.require_layout(root), scan or Scan()
        return camera_files(root, read_ids(root, scan)["test"], cameras_of(modality, mode), scan)

    def query(self, root: str | Path, mode: str, modality: str, scan: Scan | None = None) -> Images:
        """Every test image of the modality's cameras."""
        return grouped(self.test_files(root, mode, modality, scan), modality)

    def test_images(self, root: str | Path, trial: int = 1, scan: Scan | None = None) -> dict[str, Images]:
        """All test images of either modality."""
        return {modality: self.query(root, "all", modality, scan) for modality in MODALITIES}

    def draw_gallery(self, root: str | Path, mode: str, trial: int, shot: int, gallery: str, modality: str,
                     files: Files | None = None) -> Images:
        """Draw `shot` images of each test person and camera of the modality, all where there are fewer.

        `random` is the draw of the AGW line (Ye et al., TPAMI 2021) and leaves the global generator alone;
        `official` is that of the data set's own evaluation. files: `test_files`, where they are known. Raises
        ValueError for a mode, shot, trial or gallery that is none.
        """
        if shot < 1 or trial < 0 or gallery not in ("random", "official"):
            raise ValueError(f"shot: {shot}, trial: {trial}, gallery: {gallery!r} found; a shot of at least "
                             "1, a trial of at least 0, and 'random' or 'official' expected")
        files = self.test_files(root, mode, modality) if files is None else files
        if gallery == "official":
            return grouped(draw_official(Path(root), files, trial, shot), modality)
        rng = random.Random(trial)
        return grouped({key: [rng.choice(paths)] if shot == 1 else rng.sample(paths, min(shot, len(paths)))
                        for key, paths in files.items()}, modality)

    def searches(self, root: str | Path, *, direction: str = "i2v", trials: Iterable[int] = range(TRIALS),
                 mode: str = "all", shot: int = 1, gallery: str = "random",
                 scan: Scan | None = None) -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        root, scan = Path(root), scan or Scan()
        query_modality, gallery_modality = DIRECTIONS[direction]
        query = self.query(root, mode, query_modality, scan)
        files = self.test_files(root, mode, gallery_modality, scan)
        name = (f"{self.title} {mode}-search, {'single' if shot == 1 else 'multi'}-shot, {gallery} gallery, "
                f"{direction}")
        published = {"test persons": self.published["test persons"]}
        if direction == "i2v":
            published["queries"] = self.published["infrared test images"]
            if shot in (1, 10):  # every test person has at least ten images in a camera
                published["gallery images"] = shot * GALLERY[mode]
        searches = []
        for trial in trials:
            drawn = self.draw_gallery(root, mode, trial, shot, gallery, gallery_modality, files)
            searches.append(SysuSearch(query, drawn, trial, name, True, published, mode == "indoor",
                                       tuple(scan.left_out)))
            searches[-1].require_match(f"{root / 'exp' / 'test_id.txt'}, {mode}-search")
        return searches

    def check_more(self, root: Path, report: Report) -> None:
        """Report whether the official galleries can be drawn, which nothing else needs."""
        try:
            self.searches(root, shot=10, gallery="official")
        except UserError as error:
            if report.usable:
                report.add(NOTE, "only --gallery official needs it", error)


# -------------------------------------------------------------------------------------------- lists and files
def read_ids(root: Path, scan: Scan) -> dict[str, list[int]]:
    """Identities of the splits train (the lists train and val together) and test; these must not overlap."""
    lists = {name: scan.attempt("lists", parse_id_list, root / "exp" / f"{name}_id.txt") or []
             for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if both := sorted(set(lists[name]) & set(lists["test"])):
            scan.refuse("lists", f"{root / 'exp'}: identity {both[0]} is in {name}_id.txt and in "
                        "test_id.txt; disjoint lists expected; restore the files")
    return {"train": sorted({*lists["train"], *lists["val"]}), "test": lists["test"]}


def cameras_of(modality: str, mode: str) -> tuple[int, ...]:
    """The cameras of one modality in one mode: indoor-search leaves out the outdoor visible cameras."""
    if mode not in GALLERY:
        raise ValueError(f"mode: {mode!r} found, 'all' or 'indoor' expected")
    return tuple(c for c in CAMERAS[modality] if mode == "all" or modality == INFRARED or c in INDOOR)


def camera_files(root: Path, pids: Sequence[int], cameras: Sequence[int], scan: Scan) -> Files:
    """Image paths by (pid, camera), in the order of both; combinations without images are left out.

    A camera without any image is a fault: every camera of the data set has some of either split.
    """
    files = scan.camera_images({camera: root / f"cam{camera}" for camera in cameras}, pids)
    for camera in sorted(set(cameras) - {camera for _, camera in files}):
        folder = root / f"cam{camera}"
        what = "no image of the persons on the lists" if folder.is_dir() else "no such folder"
        scan.refuse("missing", f"{folder}: {what}; the camera's images, in {folder.name}/NNNN/NNNN.jpg, "
                    "expected; restore them")
    return files


def draw_official(root: Path, files: Files, trial: int, shot: int) -> Files:
    """The first `shot` images of row `trial` of each person's permutation, by `exp/rand_perm_cam.mat`.

    Raises `UserError` if the file is missing or no such thing, or names an image that is not there.
    """
    from scipy.io import loadmat
    mat, drawn = root / "exp" / "rand_perm_cam.mat", {}
    if not mat.is_file():
        raise UserError(f"{mat}: no such file, needed by --gallery official; restore it from the data set's "
                        "evaluation code, or use --gallery random")
    try:
        cells = loadmat(mat)["rand_perm_cam"]
        for pid, camera in files:
            rows = cells[camera - 1][0][pid - 1]
            while rows.dtype == object:  # one level deeper in some copies
                rows = rows.flat[0]
            drawn[pid, camera] = [int(number) for number in rows[trial, :shot]]  # saved as doubles by some
            if not drawn[pid, camera]:
                raise ValueError(f"no image of person {pid} in camera {camera}")
    except Exception as error:  # SciPy raises whatever a malformed file makes it stumble over
        raise UserError(f"{mat}: not the data set's rand_perm_cam.mat, or without trial {trial} ({error}); "
                        "restore it, or use --gallery random") from None
    for (pid, camera), numbers in drawn.items():
        by_name = {Path(path).stem: path for path in files[pid, camera]}
        if absent := [number for number in numbers if f"{number:04d}" not in by_name]:
            image = root / f"cam{camera}" / f"{pid:04d}" / f"{absent[0]:04d}.jpg"
            raise UserError(f"{mat}: names image {image}, which is not there; restore the image, or use "
                            "--gallery random")
        drawn[pid, camera] = [by_name[f"{number:04d}"] for number in numbers]
    return drawn

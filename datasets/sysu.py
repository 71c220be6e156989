"""SYSU-MM01: its layout, splits, searches, and the check of a copy."""
from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datasets.cameras import check_camera, image_files
from datasets.check import FAULT, NOTE, SPLITS, Report, check_modalities
from datasets.exclusion import sysu_seen
from datasets.files import parse_id_list
from datasets.types import (ARRAYS_FLAG, DIRECTIONS, INFRARED, MODALITIES, TRIALS, VISIBLE, Arrays, DataSet,
                            Flag, Images, Search, TrainSplit, grouped, make_train_split)
from utils import UserError

CAMERAS = {VISIBLE: (1, 2, 4, 5), INFRARED: (3, 6)}
INDOOR = (1, 2)
GALLERY = {"all": 301, "indoor": 112}  # images of a single-shot gallery of the whole data set


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
    folders = ("cam1", "cam2", "cam3", "cam4", "cam5", "cam6", "exp")
    arrays = Arrays({VISIBLE: "train_rgb_resized", INFRARED: "train_ir_resized"}, "pre_process_sysu.py")
    published = {"training persons": 395, "test persons": 96, "visible training images": 22258,
                 "infrared training images": 11909, "infrared test images": 3803,
                 **{f"{mode}-search gallery": size for mode, size in GALLERY.items()}}
    flags = (
        Flag("--mode",
             {"choices": ("all", "indoor"), "default": "all", "help": "SYSU-MM01: cameras searched"},
             argument_to=("searches",)),
        Flag("--shot", {"type": int, "choices": (1, 10), "default": 1,
                        "help": "SYSU-MM01: gallery images a person and camera"}, argument_to=("searches",)),
        Flag("--gallery", {"choices": ("random", "official"), "default": "random",
                           "help": "SYSU-MM01: draw of the gallery (official: exp/rand_perm_cam.mat)"},
             argument_to=("searches",)),
        ARRAYS_FLAG,
    )

    def train_split(self, root: str | Path, trial: int = 1) -> TrainSplit:
        """The training images; there is one split, `trial` is not read."""
        root = self.require_layout(root)
        pids = read_ids(root)["train"]
        sides = [grouped(camera_files(root, pids, CAMERAS[modality]), modality) for modality in MODALITIES]
        return make_train_split(*sides, pids, f"{root}: exp/train_id.txt and exp/val_id.txt", self.arrays)

    def query(self, root: str | Path, mode: str, modality: str) -> Images:
        """Every test image of the modality's cameras, cameras within persons."""
        root = self.require_layout(root)
        return grouped(camera_files(root, read_ids(root)["test"], cameras_of(modality, mode)), modality)

    def draw_gallery(self, root: str | Path, mode: str, trial: int, shot: int, gallery: str,
                     modality: str) -> Images:
        """Draw `shot` images of each test person and camera of the modality.

        `random` is the draw of the AGW line (Ye et al., TPAMI 2021) and leaves the global generator alone;
        `official` is that of the data set's own evaluation. Where there are fewer images than `shot`, all are
        taken.

        Raises ValueError for fewer than one shot, and for a trial below 0 or, of the ten official ones, above
        9.
        """
        if shot < 1:
            raise ValueError(f"shot: {shot} found, at least 1 expected")
        if trial < 0 or (gallery == "official" and trial >= TRIALS):
            wanted = f"0 to {TRIALS - 1}" if gallery == "official" else "at least 0"
            raise ValueError(f"trial: {trial} found, {wanted} expected")
        root = self.require_layout(root)
        files = camera_files(root, read_ids(root)["test"], cameras_of(modality, mode))
        if gallery == "official":
            permutations = read_permutations(root / "exp" / "rand_perm_cam.mat")
            drawn = {key: draw_official(root, permutations, *key, trial, shot, paths)
                     for key, paths in files.items()}
        elif gallery == "random":
            rng = random.Random(trial)
            drawn = {key: [rng.choice(paths)] if shot == 1 else rng.sample(paths, min(shot, len(paths)))
                     for key, paths in files.items()}
        else:
            raise ValueError(f"gallery: {gallery!r} found, 'random' or 'official' expected")
        return grouped(drawn, modality)

    def searches(self, root: str | Path, *, direction: str = "i2v", trials: Iterable[int] = range(TRIALS),
                 mode: str = "all", shot: int = 1, gallery: str = "random") -> list[Search]:
        """One search for each gallery draw; the query side takes every image, the gallery side is drawn."""
        query_modality, gallery_modality = DIRECTIONS[direction]
        query = self.query(root, mode, query_modality)
        shots = "single" if shot == 1 else "multi"
        name = f"{self.title} {mode}-search, {shots}-shot, {gallery} gallery, {direction}"
        searches = []
        for trial in trials:
            drawn = self.draw_gallery(root, mode, trial, shot, gallery, gallery_modality)
            searches.append(SysuSearch(query, drawn, trial, name, True,
                                       self.published_of_search(direction, mode, shot),
                                       partial=mode == "indoor"))
            searches[-1].require_match(f"{Path(root) / 'exp' / 'test_id.txt'}, {mode}-search")
        return searches

    def published_of_search(self, direction: str, mode: str, shot: int) -> dict[str, int]:
        """The published counts of a search; those of v2i are not known, but for the persons."""
        counts = {"test persons": self.published["test persons"]}
        if direction == "i2v":
            counts["queries"] = self.published["infrared test images"]
            if shot in (1, 10):  # every test person has at least ten images in a camera
                counts["gallery images"] = shot * GALLERY[mode]
        return counts

    def check(self, root: Path, report: Report) -> None:
        """Check the id lists, cameras and persons' folders."""
        lists = {name: set(report.attempt(FAULT, "lists", "", parse_id_list, root / "exp" / f"{name}_id.txt")
                           or ())
                 for name in ("train", "val", "test")}
        pids = {"train": lists["train"] | lists["val"], "test": lists["test"]}
        cameras = sorted(CAMERAS[VISIBLE] + CAMERAS[INFRARED])
        held: dict[tuple[str, int], dict[int, int]] = {(split, camera): {} for split in SPLITS
                                                       for camera in cameras}
        for camera in cameras:
            if not (root / f"cam{camera}").is_dir():
                report.add(FAULT, "missing", f"{root / f'cam{camera}'}: no such folder")
                continue
            for split, pid, images in check_camera(root / f"cam{camera}", pids, report, r"[0-9]{4}\.jpg",
                                                   "NNNN.jpg, a number in four digits,"):
                held[split, camera][pid] = len(images)
                report.images += images
        self.count(pids, held, report)
        for split in SPLITS:
            sides = {modality: set().union(*(held[split, camera] for camera in CAMERAS[modality]))
                     for modality in MODALITIES}
            check_modalities(f"{root / 'exp'}", split, sides, pids[split], report)
        report.attempt(FAULT, "refused", "train.py: ", self.train_split, root)
        for mode in GALLERY:
            report.attempt(FAULT, "refused", f"test.py --mode {mode}: ", self.searches, root, mode=mode,
                           trials=[0])
        if report.usable or not (root / "exp" / "rand_perm_cam.mat").exists():
            report.attempt(NOTE, "only --gallery official needs it", "", self.searches, root, shot=10,
                           gallery="official")

    def count(self, pids: dict[str, set[int]], held: dict[tuple[str, int], dict[int, int]],
              report: Report) -> None:
        """Fill table and counts of the report; held: images of each person by split and camera."""

        def size(split: str, cameras: Sequence[int]) -> tuple[int, int]:
            counts = [held[split, camera] for camera in cameras]
            return len(set().union(*counts)), sum(sum(count.values()) for count in counts)

        report.table.append(f"{'':<16}"
                            + "".join(f"{f'{word} persons':>18}{'images':>8}" for word in SPLITS.values()))
        for modality, cameras in CAMERAS.items():
            rows = [(f"cam{camera} {modality}", (camera,))
                    for camera in cameras] + [(f"all {modality}", cameras)]
            for row, chosen in rows:
                report.table.append(f"{row:<16}"
                                    + "".join("{:>18}{:>8}".format(*size(split, chosen)) for split in SPLITS))
        found = {"training persons": len(pids["train"]), "test persons": len(pids["test"]),
                 "visible training images": size("train", CAMERAS[VISIBLE])[1],
                 "infrared training images": size("train", CAMERAS[INFRARED])[1],
                 "infrared test images": size("test", CAMERAS[INFRARED])[1],
                 **{f"{mode}-search gallery": sum(len(held["test", camera])
                                                  for camera in cameras_of(VISIBLE, mode))
                    for mode in GALLERY}}
        report.counts = [(what, number, self.published[what]) for what, number in found.items()]


# -------------------------------------------------------------------------------------------- lists and files
def read_ids(root: Path) -> dict[str, list[int]]:
    """Identities of the splits train (the lists train and val together) and test; these must not overlap."""
    lists = {name: parse_id_list(root / "exp" / f"{name}_id.txt") for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if both := sorted(set(lists[name]) & set(lists["test"])):
            raise UserError(f"{root / 'exp'}: identity {both[0]} is in {name}_id.txt and in test_id.txt; "
                            "disjoint lists expected; restore the files")
    return {"train": sorted({*lists["train"], *lists["val"]}), "test": lists["test"]}


def cameras_of(modality: str, mode: str) -> tuple[int, ...]:
    """The cameras of one modality in one mode: indoor-search leaves out the outdoor visible cameras."""
    if mode not in GALLERY:
        raise ValueError(f"mode: {mode!r} found, 'all' or 'indoor' expected")
    return tuple(c for c in CAMERAS[modality] if mode == "all" or modality == INFRARED or c in INDOOR)


def camera_files(root: Path, pids: Sequence[int], cameras: Sequence[int]) -> dict[tuple[int, int], list[str]]:
    """Image paths by (pid, camera), in the order of both; combinations without images are left out.

    Raises `UserError` for a camera without any image: every camera of the data set has some of either split.
    """
    files = image_files({camera: root / f"cam{camera}" for camera in cameras}, pids)
    for camera in sorted(set(cameras) - {camera for _, camera in files}):
        folder = root / f"cam{camera}"
        what = "no image of the persons on the lists" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; the camera's images, in {folder.name}/NNNN/NNNN.jpg, "
                        "expected; restore them")
    return files


# --------------------------------------------------------------------------------------- the official gallery
def read_permutations(path: Path) -> np.ndarray:
    """The cell array of `rand_perm_cam.mat`; raises `UserError` if the file is missing or no such thing."""
    from scipy.io import loadmat
    if not path.is_file():
        raise UserError(f"{path}: no such file, needed by --gallery official; restore it from the data "
                        "set's evaluation code, or use --gallery random")
    try:
        cells = loadmat(path)["rand_perm_cam"]
        cells[5][0][0]
        return cells
    except Exception as error:  # SciPy raises whatever a malformed file makes it stumble over
        raise UserError(f"{path}: not the data set's rand_perm_cam.mat ({error}); restore it") from None


def draw_official(root: Path, cells: np.ndarray, pid: int, camera: int, trial: int, shot: int,
                  paths: list[str]) -> list[str]:
    """The first `shot` images of row `trial` of one person's permutation; `UserError` if one is not there."""
    mat = root / "exp" / "rand_perm_cam.mat"
    rows = cells[camera - 1][0][pid - 1] if pid <= len(cells[camera - 1][0]) else np.empty(0)
    while rows.dtype == object and rows.size == 1:
        rows = rows.flat[0]
    if rows.ndim != 2 or rows.shape[0] <= trial or rows.shape[1] == 0:
        raise UserError(f"{mat}: no trial {trial} for person {pid} in camera {camera}, which has "
                        f"{len(paths)} images; restore the file, or use --gallery random")
    by_number = {Path(path).stem: path for path in paths}
    names = [f"{int(number):04d}" for number in rows[trial, :shot].tolist()]  # MATLAB may have saved doubles
    absent = [name for name in names if name not in by_number]
    if absent:
        raise UserError(f"{mat}: names image {root / f'cam{camera}' / f'{pid:04d}' / absent[0]}.jpg, which "
                        "is not there; restore the image, or use --gallery random")
    return [by_number[name] for name in names]

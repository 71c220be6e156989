"""Which images: folder layouts, splits, query / gallery protocols and their checks. Knows nothing of pixels.

    python data_manager.py DIR [--all]    checks a copy of SYSU-MM01 or RegDB
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils import UserError, run

VISIBLE, INFRARED = "visible", "infrared"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db")
SYSU_CAMERAS = {VISIBLE: (1, 2, 4, 5), INFRARED: (3, 6)}
SYSU_INDOOR = (1, 2)
SYSU_SAME_ROOM = (3, 2)  # infrared and visible camera in one room
SYSU_TEST_PERSONS, SYSU_GALLERY = 96, {"all": 301, "indoor": 112}  # as published; images of a single-shot gallery
REGDB_NAMES = {VISIBLE: "visible", INFRARED: "thermal"}  # as its file names say it
REGDB_CAMIDS = {VISIBLE: 1, INFRARED: 2}
TRIALS = 10


@dataclass(frozen=True)
class Images:
    """Images of one modality: N paths, pids (N,) int64, camids (N,) int64."""

    paths: tuple[str, ...]
    pids: np.ndarray
    camids: np.ndarray
    modality: str

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Protocol:
    """One search: query, gallery, and the rules that score it.

    `exclude` lists (query camera, gallery camera) pairs of one room, whose images are dropped from the ranking;
    `count_persons` makes CMC count each gallery person once; `trial` is a gallery draw or a split; `name` is the
    protocol in words, the same for all trials; `published` holds the counts of the whole data set, as far as they are
    known; `partial` tells that even there some persons are on one side only.
    """

    query: Images
    gallery: Images
    exclude: tuple[tuple[int, int], ...]
    count_persons: bool
    trial: int
    name: str
    published: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False


@dataclass(frozen=True)
class TrainSplit:
    """Training images of both modalities; labels are positions in `pids`, the sorted identities."""

    visible: Images
    infrared: Images
    pids: np.ndarray

    def labels(self, modality: str) -> np.ndarray:
        """Labels 0..C-1 of one modality's images, (N,) int64."""
        return np.searchsorted(self.pids, getattr(self, modality).pids)

    @functools.cached_property
    def marks(self) -> dict[str, list[str]]:
        """What tells the file of every image from another, by modality, read once (see `mark`)."""
        return {side.modality: [mark(path) for path in side.paths] for side in (self.visible, self.infrared)}

    def listing(self, root: str | Path) -> dict[str, list[str]]:
        """'relative/path mark' of every image, by modality."""
        return {side.modality: [f"{Path(path).relative_to(root).as_posix()} {of}" for path, of in
                                zip(side.paths, self.marks[side.modality])] for side in (self.visible, self.infrared)}

    def fingerprint(self, root: str | Path) -> str:
        """SHA-256 over modality, relative path, mark and pid of every training image."""
        digest, listing = hashlib.sha256(), self.listing(root)
        for side in (self.visible, self.infrared):
            for line, pid in zip(listing[side.modality], side.pids):
                digest.update(f"{side.modality} {line} {pid}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def mark(path: str) -> str:
    """A file's size in bytes and the CRC-32 of its beginning, middle and end, 4 KiB each: 'bytes-checksum'."""
    with open(path, "rb") as file:
        size, checksum = os.fstat(file.fileno()).st_size, 0
        for place in (0, size // 2, max(0, size - 4096)):
            file.seek(place)
            checksum = zlib.crc32(file.read(4096), checksum)
    return f"{size}-{checksum:08x}"


@dataclass(frozen=True)
class DataSet:
    """What the scripts need to know of a data set; `DATASETS` is the one place where they are told apart."""

    title: str
    path: str
    direction: str
    splits: int  # trained models that one result is the mean of
    folders: tuple[str, ...]
    train_split: Callable[[str, int], TrainSplit]
    protocols: Callable[..., list[Protocol]]
    published: tuple[int, int, int, int]  # training persons, visible and infrared training images, queries


def require_layout(data_path: str | Path, dataset: str) -> Path:
    """The data set's folder; raises `UserError` if it is missing or holds another data set."""
    root, wanted = Path(data_path), DATASETS[dataset]
    if not root.is_dir():
        raise UserError(f"--data-path {root}: {'a file' if root.exists() else 'no such folder'}; put {wanted.title} there "
                        "(README, Data) or name its folder")
    found = recognise(root)
    if found != dataset:
        what = f"{DATASETS[found].title} ({', '.join(DATASETS[found].folders)})" if found else "neither data set"
        raise UserError(f"--data-path {root}: {what} found, {wanted.title} ({', '.join(wanted.folders)}) expected; "
                        "name the data set's folder, or change --dataset")
    return root


def recognise(root: Path) -> str | None:
    """The name of the data set whose layout a folder has, by its sub-folders; None if it has neither."""
    present = {name: sum((root / folder).is_dir() for folder in data.folders) for name, data in DATASETS.items()}
    best = max(present, key=present.get)
    return best if present[best] >= 2 or (root / DATASETS[best].folders[0]).is_dir() else None


def list_images(folder: Path) -> list[str]:
    """Sorted image paths of one folder; hidden and system files are left out, anything else is a `UserError`."""
    paths = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_system_file(entry.name):
            continue
        if not entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.is_dir():
            raise UserError(f"{entry.path}: found among the images of a person, only {', '.join(IMAGE_SUFFIXES)} files "
                            "expected; move it elsewhere")
        if not entry.is_file():
            raise UserError(f"{entry.path}: a link that points nowhere found, an image expected; restore or remove it")
        paths.append(entry.path)
    return paths


def is_system_file(name: str) -> bool:
    """True for what operating systems leave in folders: hidden files, AppleDouble files, thumbnail caches."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file (any line ending, with or without a byte order mark)."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it from the data set") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); restore it from the data set") from None


# ---------------------------------------------------------------------------------------------------- SYSU-MM01
def parse_id_list(path: Path) -> list[int]:
    """The identity numbers of an id list: one line, separated by commas (spaces and a trailing comma are harmless).

    Raises `UserError` naming the file if it is missing or empty, or holds anything but distinct positive numbers.
    """
    pids = []
    for word in ",".join(read_lines(path)).split(","):
        word = word.strip()
        if not word:
            continue
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0):
            raise UserError(f"{path}: {word[:40]!r} found, positive identity numbers separated by commas expected; "
                            "restore the file")
        pids.append(int(word))
    if not pids:
        raise UserError(f"{path}: empty; one line of identity numbers separated by commas expected; restore the file")
    repeated = [pid for pid, count in Counter(pids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: identity {repeated[0]} is listed more than once; each once expected; restore the file")
    return sorted(pids)


def sysu_ids(root: Path) -> dict[str, list[int]]:
    """Identities of the splits train (the lists train and val together) and test; they must not overlap."""
    lists = {name: parse_id_list(root / "exp" / f"{name}_id.txt") for name in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(set(lists[one]) & set(lists[other]))
        if both:
            raise UserError(f"{root / 'exp'}: identity {both[0]} is in {one}_id.txt and in {other}_id.txt; disjoint lists "
                            "expected; restore the files")
    return {"train": sorted(lists["train"] + lists["val"]), "test": lists["test"]}


def person_folder(entry: os.DirEntry) -> Path:
    """What has a person's number for a name; raises `UserError` unless it is a folder, and the number has four digits."""
    pid, name = int(entry.name), f"{int(entry.name):04d}"
    if entry.name != name:
        raise UserError(f"{entry.path}: found for person {pid}, a folder of the name {name} expected; rename it, or move it "
                        "elsewhere")
    if not entry.is_dir():
        what = "a file" if os.path.exists(entry.path) else "a link that points nowhere"
        raise UserError(f"{entry.path}: {what} found, a folder with the images of person {pid} expected; restore the folder, or "
                        "remove this if the camera has none")
    return Path(entry.path)


def person_folders(root: Path, camera: int, pids: Iterable[int]) -> dict[int, Path]:
    """The folders that one camera has of these persons, by pid; raises `UserError` for a link, file or name in their place."""
    wanted, camera_folder, folders = set(pids), root / f"cam{camera}", {}
    if camera_folder.is_dir():
        for entry in sorted(os.scandir(camera_folder), key=lambda entry: entry.name):
            if entry.name.isdecimal() and int(entry.name) in wanted:
                folders[int(entry.name)] = person_folder(entry)
    return folders


def sysu_files(root: Path, pids: Sequence[int], cameras: Sequence[int]) -> dict[tuple[int, int], list[str]]:
    """Image paths by (pid, camera), in that order; combinations without images are left out.

    Raises `UserError` for a camera without any image: every camera of the data set has some of either split.
    """
    folders, files = {camera: person_folders(root, camera, pids) for camera in cameras}, {}
    for pid in pids:
        for camera in cameras:
            if pid in folders[camera] and (found := list_images(folders[camera][pid])):
                files[pid, camera] = found
    for camera in sorted(set(cameras) - {camera for _, camera in files}):
        folder = root / f"cam{camera}"
        what = "no image of the persons on the lists" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; the camera's images, in {folder.name}/NNNN/NNNN.jpg, expected; restore them")
    return files


def sysu_test_ids(root: Path) -> list[int]:
    """The test identities; raises `UserError` if one has no image in any camera."""
    pids = sysu_ids(root)["test"]
    cameras = [person_folders(root, camera, pids) for side in SYSU_CAMERAS.values() for camera in side]
    for pid in pids:
        if not any(pid in folders and list_images(folders[pid]) for folders in cameras):
            raise UserError(f"{root / 'exp' / 'test_id.txt'}: person {pid} has no image in any camera; restore the images "
                            f"({root / 'cam1' / f'{pid:04d}'} and so on), or take the person off the list")
    return pids


def as_images(files: dict[tuple[int, int], list[str]], modality: str) -> Images:
    """Put image paths by (pid, camera) into one list, in the order of the dict."""
    keys = [key for key, paths in files.items() for _ in paths]
    pids, camids = np.array(keys, np.int64).reshape(-1, 2).T
    return Images(tuple(path for paths in files.values() for path in paths), pids, camids, modality)


def sysu_train_split(data_path: str, trial: int = 1) -> TrainSplit:
    """The training images of SYSU-MM01 (lists train and val); there is one split, `trial` is not used."""
    root = require_layout(data_path, "sysu")
    pids = sysu_ids(root)["train"]
    sides = {modality: as_images(sysu_files(root, pids, cameras), modality)
             for modality, cameras in SYSU_CAMERAS.items()}
    return make_train_split(sides, pids, f"{root}: exp/train_id.txt and exp/val_id.txt")


def make_train_split(sides: dict[str, Images], pids: Iterable[int], source: str) -> TrainSplit:
    """Put a split together; raises `UserError` unless every person has images in both modalities."""
    for modality, images in sides.items():
        lacking = sorted(set(pids) - set(images.pids.tolist()))
        if lacking:
            raise UserError(f"{source}: person {lacking[0]}{f' (and {len(lacking) - 1} more)' * (len(lacking) > 1)} has no "
                            f"{modality} image; both modalities expected for training; restore the images, or take the "
                            "person off the list")
    return TrainSplit(sides[VISIBLE], sides[INFRARED], np.array(sorted(pids), np.int64))


def sysu_cameras(modality: str, mode: str) -> tuple[int, ...]:
    """The cameras of one modality in one mode: indoor-search leaves out the outdoor visible cameras."""
    if mode not in ("all", "indoor"):
        raise ValueError(f"mode: {mode!r} found, 'all' or 'indoor' expected")
    return tuple(c for c in SYSU_CAMERAS[modality] if mode == "all" or modality == INFRARED or c in SYSU_INDOOR)


def sysu_query(data_path: str, mode: str, modality: str) -> Images:
    """Every test image of the modality's cameras, cameras within persons."""
    root = require_layout(data_path, "sysu")
    return as_images(sysu_files(root, sysu_test_ids(root), sysu_cameras(modality, mode)), modality)


def sysu_gallery(data_path: str, mode: str, trial: int, shot: int, gallery: str, modality: str) -> Images:
    """Draw `shot` images of each test person and camera of the modality.

    `random` is the draw of the AGW line (Ye et al., TPAMI 2021) and leaves the global generator alone; `official` that
    of the data set's own evaluation. Where there are fewer images than `shot`, all are taken.

    Raises ValueError for fewer than one shot, and for a trial below 0 or, of the ten official ones, above 9.
    """
    if shot < 1:
        raise ValueError(f"shot: {shot} found, at least 1 expected")
    if trial < 0 or (gallery == "official" and trial >= TRIALS):
        raise ValueError(f"trial: {trial} found, {f'0 to {TRIALS - 1}' if gallery == 'official' else 'at least 0'} expected")
    root = require_layout(data_path, "sysu")
    files = sysu_files(root, sysu_test_ids(root), sysu_cameras(modality, mode))
    if gallery == "official":
        permutations = read_permutations(root / "exp" / "rand_perm_cam.mat")
        drawn = {key: official_draw(root, permutations, *key, trial, shot, paths) for key, paths in files.items()}
    elif gallery == "random":
        rng = random.Random(trial)
        drawn = {key: [rng.choice(paths)] if shot == 1 else rng.sample(paths, min(shot, len(paths)))
                 for key, paths in files.items()}
    else:
        raise ValueError(f"gallery: {gallery!r} found, 'random' or 'official' expected")
    return as_images(drawn, modality)


def read_permutations(path: Path) -> np.ndarray:
    """The cell array of `rand_perm_cam.mat`; raises `UserError` if the file is missing or no such thing."""
    from scipy.io import loadmat
    if not path.is_file():
        raise UserError(f"{path}: no such file, needed by --gallery official; restore it from the data set's evaluation "
                        "code, or use --gallery random")
    try:
        cells = loadmat(path)["rand_perm_cam"]
        cells[5][0][0]
        return cells
    except Exception as error:  # SciPy raises whatever a malformed file makes it stumble over
        raise UserError(f"{path}: not the data set's rand_perm_cam.mat ({error}); restore it") from None


def official_draw(root: Path, cells: np.ndarray, pid: int, camera: int, trial: int, shot: int,
                  paths: list[str]) -> list[str]:
    """The first `shot` images of row `trial` of one person's permutation; `UserError` if one is not there."""
    mat = root / "exp" / "rand_perm_cam.mat"
    rows = cells[camera - 1][0][pid - 1] if pid <= len(cells[camera - 1][0]) else np.empty(0)
    while rows.dtype == object and rows.size == 1:
        rows = rows.flat[0]
    if rows.ndim != 2 or rows.shape[0] <= trial or rows.shape[1] == 0:
        raise UserError(f"{mat}: no trial {trial} for person {pid} in camera {camera}, which has {len(paths)} images; "
                        "restore the file, or use --gallery random")
    if rows.dtype.kind not in "iuf" or not (np.isfinite(rows).all() and (rows % 1 == 0).all()):
        raise UserError(f"{mat}: image numbers that are not whole found for person {pid} in camera {camera}, whole numbers "
                        "expected; restore the file, or use --gallery random")
    by_number = {Path(path).stem: path for path in paths}
    names = [f"{int(number):04d}" for number in rows[trial, :shot].tolist()]  # MATLAB saves doubles unless told otherwise
    absent = [name for name in names if name not in by_number]
    if absent:
        raise UserError(f"{mat}: names image {root / f'cam{camera}' / f'{pid:04d}' / absent[0]}.jpg, which is not there; "
                        "restore the image, or use --gallery random")
    if len(set(names)) < len(names):
        raise UserError(f"{mat}: names an image of person {pid} in camera {camera} twice in trial {trial}, a permutation "
                        "expected; restore the file, or use --gallery random")
    return [by_number[name] for name in names]


def process_query_sysu(data_path: str, mode: str = "all") -> tuple[list[str], np.ndarray, np.ndarray]:
    """The infrared queries of SYSU-MM01: N paths, pids (N,), camids (N,)."""
    images = sysu_query(data_path, mode, INFRARED)
    return list(images.paths), images.pids, images.camids


def process_gallery_sysu(data_path: str, mode: str = "all", trial: int = 0, shot: int = 1,
                         gallery: str = "random") -> tuple[list[str], np.ndarray, np.ndarray]:
    """One visible gallery of SYSU-MM01: N paths, pids (N,), camids (N,). Trials count from 0."""
    images = sysu_gallery(data_path, mode, trial, shot, gallery, VISIBLE)
    return list(images.paths), images.pids, images.camids


def sysu_protocols(data_path: str, *, direction: str = "i2v", mode: str = "all", shot: int = 1, gallery: str = "random",
                   trials: Iterable[int] = range(TRIALS), **_: object) -> list[Protocol]:
    """One search for each gallery draw; the query side takes every image, the gallery side is drawn.

    In v2i the sides, the modalities and the pair of cameras in one room turn together.
    """
    query_modality, gallery_modality = modalities(direction)
    query = sysu_query(data_path, mode, query_modality)
    same_room = SYSU_SAME_ROOM if direction == "i2v" else SYSU_SAME_ROOM[::-1]
    name = f"SYSU-MM01 {mode}-search, {'single' if shot == 1 else 'multi'}-shot, {gallery} gallery, {direction}"
    published, searches = sysu_published(direction, mode, shot), []
    for trial in trials:
        drawn = sysu_gallery(data_path, mode, trial, shot, gallery, gallery_modality)
        searches.append(Protocol(query, drawn, (same_room,), True, trial, name, published, mode == "indoor"))
        require_match(searches[-1], f"{Path(data_path) / 'exp' / 'test_id.txt'}, {mode}-search")
    return searches


def sysu_published(direction: str, mode: str, shot: int) -> dict[str, int]:
    """The published counts of a search; those of v2i are not known, but for the persons."""
    counts = {"test persons": SYSU_TEST_PERSONS}
    if direction == "i2v":
        counts["queries"] = DATASETS["sysu"].published[3]
        if shot in (1, 10):  # every test person has at least ten images in a camera
            counts["gallery images"] = shot * SYSU_GALLERY[mode]
    return counts


def require_match(search: Protocol, source: str) -> None:
    """Raise `UserError` if no query has a match in the gallery that it sees."""
    query, gallery = search.query, search.gallery
    for camera in np.unique(query.camids).tolist():
        hidden = np.isin(gallery.camids, [other for one, other in search.exclude if one == camera])
        if np.isin(query.pids[query.camids == camera], gallery.pids[~hidden]).any():
            return
    why = " but in cameras of one room, which are not compared" if np.isin(query.pids, gallery.pids).any() else ""
    raise UserError(f"{source}: no query has a match in the gallery: no person is in both the {len(query)} {query.modality} "
                    f"queries and the {len(gallery)} {gallery.modality} gallery images{why}; a person in both expected; restore "
                    "the images")


def modalities(direction: str) -> tuple[str, str]:
    """Modality of the query and of the gallery."""
    return {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}[direction]


# -------------------------------------------------------------------------------------------------------- RegDB
def parse_index(path: Path) -> list[tuple[str, int]]:
    """The (relative path, label) lines of a RegDB list; blank lines, CRLF and tabs are harmless.

    Raises `UserError` naming file and line if the list is empty, or a line is malformed, leaves the data set's folder,
    has a negative label or repeats an image.
    """
    entries: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = name.strip()
        if not name or not (label.isascii() and label.isdigit() and len(label) < 10):
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} found, 'relative/path.bmp label' with a label of "
                            "at least 0 expected; restore the file")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number}: {name!r} leaves the data set's folder; a path inside it expected; restore "
                            "the file")
        name = Path(name).as_posix()
        if name in entries:
            raise UserError(f"{path}, line {number}: {name!r} is listed twice; each image once expected; restore the file")
        entries[name] = int(label)
    if not entries:
        raise UserError(f"{path}: empty; lines 'relative/path.bmp label' expected; restore the file")
    return list(entries.items())


def regdb_list(root: Path, split: str, trial: int, modality: str) -> Path:
    """The file of one list of RegDB."""
    return root / "idx" / f"{split}_{REGDB_NAMES[modality]}_{trial}.txt"


def regdb_images(root: Path, split: str, trial: int, modality: str) -> Images:
    """The images of one list of RegDB; raises `UserError` for one that is not there, or in the other modality's folder."""
    path = regdb_list(root, split, trial, modality)
    entries = parse_index(path)
    others = {name for other, name in REGDB_NAMES.items() if other != modality}
    for name, _ in entries:
        if name.split("/")[0].lower() in others:
            raise UserError(f"{path}: names {name}, which is not a {REGDB_NAMES[modality]} image by its folder; a list of "
                            f"{REGDB_NAMES[modality]} images expected; restore the list")
        if not (root / name).is_file():
            raise UserError(f"{path}: names {root / name}, which is not there; restore the image")
    pids = np.array([label for _, label in entries], np.int64)
    return Images(tuple(str(root / name) for name, _ in entries), pids, np.full(len(pids), REGDB_CAMIDS[modality]), modality)


def regdb_split(data_path: str, split: str, trial: int) -> dict[str, Images]:
    """One split's images of both modalities, checked against each other and against the other split of the trial.

    Labels count the persons of one split, so the same label in both splits means two persons; what must not be in both
    is an image, or a person's folder. Raises `UserError` for that, for an image in the lists of both modalities, and where
    a label stands for two persons.
    """
    root = require_layout(data_path, "regdb")
    if not 1 <= trial <= TRIALS:
        raise ValueError(f"trial: {trial} found, 1 to {TRIALS} expected")
    sides = {modality: regdb_images(root, split, trial, modality) for modality in (VISIBLE, INFRARED)}
    if both := set(sides[VISIBLE].paths) & set(sides[INFRARED].paths):
        raise UserError(f"{regdb_list(root, split, trial, INFRARED)}: names {min(both)}, as does "
                        f"{regdb_list(root, split, trial, VISIBLE).name}; images of one modality expected; restore the lists")
    other = "test" if split == "train" else "train"
    mine = {modality: [Path(path).relative_to(root).as_posix() for path in images.paths] for modality, images in sides.items()}
    theirs = {modality: [name for name, _ in parse_index(regdb_list(root, other, trial, modality))] for modality in sides}
    alike = named_alike(*(mine[modality] + theirs[modality] for modality in sides))
    require_one_person_a_label(root, split, trial, sides, alike)
    require_disjoint_persons(root, trial, mine, theirs, alike)
    return sides


def require_disjoint_persons(root: Path, trial: int, mine: dict[str, list[str]], theirs: dict[str, list[str]],
                             alike: bool) -> None:
    """Raise `UserError` for a person in both splits: in two lists of one modality, or of any where folders are named alike."""
    for modality, names in mine.items():
        if both := person_keys(names) & person_keys(theirs[modality]):
            raise UserError(f"{root / 'idx'}: {min(both)} is in the training and the test list of trial {trial} "
                            f"({REGDB_NAMES[modality]}); disjoint persons expected; restore the lists")
    persons = [{os.path.basename(os.path.dirname(name)) for names in lists.values() for name in names} for lists in (mine, theirs)]
    if alike and (both := persons[0] & persons[1]):
        raise UserError(f"{root / 'idx'}: person {min(both)} is in the training list of one modality and the test list of the "
                        f"other of trial {trial}; disjoint persons expected; restore the lists")


def named_alike(visible: Iterable[str], infrared: Iterable[str]) -> bool:
    """True if the persons' folders have the same names in both modalities, and these tell persons apart."""
    folders = [{os.path.dirname(name) for name in names} for names in (visible, infrared)]
    one, other = ({os.path.basename(folder) for folder in side} for side in folders)
    return min(len(one), len(other)) > 1 and [len(one), len(other)] == list(map(len, folders)) and (one <= other or other <= one)


def person_keys(names: Iterable[str]) -> set[str]:
    """What tells persons apart across lists: the images, and their folders where there are several."""
    folders = {os.path.dirname(name) for name in names}
    return set(names) | (folders if len(folders) > 1 else set())


def require_one_person_a_label(root: Path, split: str, trial: int, sides: dict[str, Images], alike: bool) -> None:
    """Raise `UserError` unless labels and persons' folders stand for each other, in each list and across the modalities.

    Lists whose images lie in one folder tell less and pass; so do, across the modalities, lists whose folders have other
    names than numbers and are not named alike.
    """
    numbers: dict[int, tuple[str, str]] = {}  # label -> the person, as the folder says it, and its list
    for modality, images in sides.items():
        source = regdb_list(root, split, trial, modality)
        pairs = {(os.path.dirname(path), label) for path, label in zip(images.paths, images.pids.tolist())}
        if len({folder for folder, _ in pairs}) == 1:
            continue
        for position, what in ((1, "label"), (0, "folder")):
            value, count = Counter(pair[position] for pair in pairs).most_common(1)[0]
            if count > 1:
                others = sorted(str(pair[1 - position]) for pair in pairs if pair[position] == value)
                raise UserError(f"{source}: {what} {value} goes with {others[0]} and {others[1]}; one label for each person's "
                                "folder expected; restore the file")
        for folder, label in sorted(pairs):
            number = os.path.basename(folder)
            known, listed = numbers.setdefault(label, (number, str(source)))
            if known != number and (alike or (known.isdecimal() and number.isdecimal())):
                raise UserError(f"{source}: label {label} is person {number}, but person {known} in {listed}; the same person in "
                                "both modalities expected; restore the files")


def regdb_train_split(data_path: str, trial: int) -> TrainSplit:
    """The training images of one of RegDB's ten splits."""
    sides = regdb_split(data_path, "train", trial)
    pids = set(sides[VISIBLE].pids.tolist()) | set(sides[INFRARED].pids.tolist())
    return make_train_split(sides, pids, f"{data_path}: training lists of trial {trial}")


def process_test_regdb(data_path: str, trial: int = 1, modal: str = "visible") -> tuple[list[str], np.ndarray]:
    """The test images of one modality ('visible' or 'thermal') of one split of RegDB: N paths, labels (N,)."""
    names = {name: modality for modality, name in REGDB_NAMES.items()}
    if modal not in names:
        raise ValueError(f"modal: {modal!r} found, 'visible' or 'thermal' expected")
    images = regdb_split(data_path, "test", trial)[names[modal]]
    return list(images.paths), images.pids


def regdb_protocols(data_path: str, *, direction: str = "v2i", trials: Iterable[int] = (1,), **_: object) -> list[Protocol]:
    """One search for each split: every image of one modality in all of the other's."""
    query, gallery = modalities(direction)
    published = dict.fromkeys(("queries", "gallery images"), DATASETS["regdb"].published[3])
    searches = []
    for trial in trials:
        sides = regdb_split(data_path, "test", trial)
        searches.append(Protocol(sides[query], sides[gallery], (), False, trial, f"RegDB, {direction}", published))
        require_match(searches[-1], f"{Path(data_path) / 'idx'}: test lists of trial {trial}")
    return searches


DATASETS = {
    "sysu": DataSet("SYSU-MM01", "data/SYSU-MM01", "i2v", 1, ("cam1", "cam2", "cam3", "cam4", "cam5", "cam6", "exp"),
                    sysu_train_split, sysu_protocols, (395, 22258, 11909, 3803)),
    "regdb": DataSet("RegDB", "data/RegDB", "v2i", TRIALS, ("idx", "Visible", "Thermal"),
                     regdb_train_split, regdb_protocols, (206, 2060, 2060, 2060)),
}


def surprises(dataset: str, data_path: str, split: TrainSplit | None = None, search: Protocol | None = None) -> list[str]:
    """What is legal but surely unintended of a split and of a search, a line each.

    Counts that are not the published ones, with both numbers, and test persons who have images in one modality only,
    where the whole data set has none.
    """
    persons, visible, infrared, _ = DATASETS[dataset].published
    counts, lines = [], []
    if split is not None:
        counts += [("training persons", len(split.pids), persons), ("visible training images", len(split.visible), visible),
                   ("infrared training images", len(split.infrared), infrared)]
    lone = []
    if search is not None:
        query, gallery = (set(side.pids.tolist()) for side in (search.query, search.gallery))
        found = {"queries": len(search.query), "gallery images": len(search.gallery), "test persons": len(query | gallery)}
        counts += [(what, number, search.published[what]) for what, number in found.items() if what in search.published]
        lone = [] if search.partial else sorted(query ^ gallery)
    differing = [f"{found} {what} found, {published} published" for what, found, published in counts if found != published]
    if differing:
        lines.append(f"--data-path {data_path}: {'; '.join(differing)}: not the whole data set")
    if lone:
        lines.append(f"--data-path {data_path}: {len(lone)} test person(s), the first {lone[0]}, with images in one modality only: "
                     "their queries are left out of the mean")
    return lines


def resolve_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the data set (data path, direction) and refuse flags that contradict each other.

    Raises `UserError` naming both flags.
    """
    if args.dataset == "regdb":
        for flag, value, default in (("--mode", args.mode, "all"), ("--shot", args.shot, 1),
                                     ("--gallery", args.gallery, "random")):
            if value != default:
                raise UserError(f"{flag} {value} belongs to SYSU-MM01, but the data set is regdb; leave it out")
    elif args.tvsearch:
        raise UserError("--tvsearch is RegDB's infrared-to-visible search, but the data set is sysu; use --direction")
    elif args.trial != 1:
        raise UserError(f"--trial {args.trial} chooses a split of RegDB, but the data set is sysu, which has one; leave "
                        "--trial out")
    if args.tvsearch and args.direction == "v2i":
        raise UserError("--tvsearch means --direction i2v, but --direction v2i was given; leave one of them out")
    args.direction = args.direction or ("i2v" if args.tvsearch else DATASETS[args.dataset].direction)
    args.data_path = DATASETS[args.dataset].path if args.data_path is None else args.data_path
    return args


if __name__ == "__main__":
    from datasets.check import main
    run(main)

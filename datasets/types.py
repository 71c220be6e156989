"""What crosses rooms: images, a search, a training split, and what every data set tells of itself."""
from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.files import Copy, describe_entry
from command_line import Parser, filled
from utils import UserError

if TYPE_CHECKING:
    from datasets.check import Report

VISIBLE, INFRARED = "visible", "infrared"
MODALITIES = (VISIBLE, INFRARED)
# modality of the query, and of the gallery
DIRECTIONS = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}
TRIALS = 10  # of a data set that has several
Root = str | Path | Copy  # a copy of a data set by its folder, or as it was opened
FEATURES, SUM = ("pool", "bnneck"), "sum"  # after pooling, after BNNeck; and the sum of both cosines


@dataclass(frozen=True)
class View:
    """One input of a network: a modality's images, augmented in one way (names of AUGMENTATIONS)."""

    modality: str
    augment: tuple[str, ...] = ("standard",)


@dataclass(frozen=True)
class ImageSpec:
    """The form in which image files are read: size in pixels, and the raw values that become black and white.

    range: of greyscale images of more than 8 bits; None: such images are refused.
    """

    height: int = 288
    width: int = 144
    range: tuple[int, int] | None = None

    @classmethod
    def from_arguments(cls, values: Mapping[str, Any]) -> ImageSpec:
        """The form that arguments say: img_h, img_w, and range where there is one."""
        pair = values.get("range")
        return cls(values.get("img_h", cls.height), values.get("img_w", cls.width), pair and tuple(pair))


@dataclass(frozen=True)
class Images:
    """Images of one modality: N paths, pids (N,) int64, camids (N,) int64."""

    paths: tuple[str, ...]
    pids: np.ndarray
    camids: np.ndarray
    modality: str

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of(cls, found: Sequence[tuple[str, int, int]], modality: str) -> Images:
        """Images by path, pid and camera of each."""
        paths, pids, camids = zip(*found) if found else ((), (), ())
        return cls(paths, np.array(pids, np.int64), np.array(camids, np.int64), modality)

    def take(self, rows: Sequence[int]) -> Images:
        """Some of the images, in the order of their numbers."""
        paths = tuple(self.paths[row] for row in rows)
        return Images(paths, self.pids[rows], self.camids[rows], self.modality)

    def by_person_and_camera(self) -> dict[tuple[int, int], list[int]]:
        """The numbers of the images by (pid, camera), in the order of the images."""
        groups = defaultdict(list)
        for row, key in enumerate(zip(self.pids.tolist(), self.camids.tolist())):
            groups[key].append(row)
        return groups


@dataclass(frozen=True)
class Features:
    """L2-normalised features of N images of one modality: paths, and (N, D) float32 for each of FEATURES."""

    paths: tuple[str, ...]
    pool: np.ndarray
    bnneck: np.ndarray

    def take(self, images: Images, kind: str) -> np.ndarray:
        """The features (M, D) of some of the images, in their order; kind: one of FEATURES, or SUM."""
        if kind == SUM:  # the cosine of both side by side is the mean of their cosines
            return np.hstack([self.take(images, each) for each in FEATURES]) * np.float32(0.5 ** 0.5)
        rows = {path: row for row, path in enumerate(self.paths)}
        return getattr(self, kind)[[rows[path] for path in images.paths]]


@dataclass(frozen=True)
class Search:
    """One search: a query in a gallery, and the rules that score it.

    trial: a gallery draw or a split; name: the search in words, the same for all trials; count_persons: CMC
    counts each gallery person once; published: known counts of the whole data set; partial: even there, some
    persons are on one side only; left_out: hidden and system files among the images.
    """

    query: Images
    gallery: Images
    trial: int
    name: str
    count_persons: bool = False
    published: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False
    left_out: Iterable[str] = ()

    def seen(self) -> np.ndarray:
        """What each query's ranking holds, (Q, G) bool; a data set that excludes images overrides this."""
        return np.ones((len(self.query), len(self.gallery)), bool)

    def unmatched(self) -> int:
        """How many queries see no image of their person; they are left out of the mean."""
        return int((~((self.query.pids[:, None] == self.gallery.pids) & self.seen()).any(1)).sum())

    def counts(self) -> dict[str, int]:
        """How many images and persons there are."""
        persons = set(self.query.pids.tolist()) | set(self.gallery.pids.tolist())
        return {"queries": len(self.query), "gallery images": len(self.gallery), "test persons": len(persons)}


@dataclass(frozen=True)
class Arrays:
    """The arrays that pre-processing makes of training images: names by modality, and the script."""

    names: Mapping[str, str]
    script: str


@dataclass(frozen=True)
class TrainSplit:
    """Training images of both modalities; labels are positions in `pids`, the sorted identities."""

    visible: Images
    infrared: Images
    pids: np.ndarray
    arrays: Arrays | None = None
    left_out: Iterable[str] = ()

    @property
    def sides(self) -> tuple[Images, Images]:
        """The images of both modalities, in the order of `MODALITIES`."""
        return self.visible, self.infrared

    def labels(self, modality: str) -> np.ndarray:
        """Labels 0..C-1 of one modality's images, (N,) int64."""
        return np.searchsorted(self.pids, getattr(self, modality).pids)

    def counts(self) -> dict[str, int]:
        """How many images and persons there are."""
        return {"training persons": len(self.pids), "visible training images": len(self.visible),
                "infrared training images": len(self.infrared)}


class DataSet:
    """What the scripts need to know of a data set; one subclass, in one file, tells it from the others.

    name: as `--dataset` says it; title: as people say it; path, direction: the defaults of `--data-path` and
    `--direction`; splits: trained models that one result is the mean of; folders: the layout, by which a copy
    is known; lists: the one of them that holds no images; flags: names of the arguments that belong to it;
    arguments: those of them that a method takes as keywords, by the method's name; published: its counts;
    checked: keywords of the searches that the check of a copy tries; arrays: of the training images.
    """

    name: str
    title: str
    path: str
    direction: str
    splits: int = 1
    folders: tuple[str, ...]
    lists: str = ""
    flags: tuple[str, ...] = ()
    arguments: Mapping[str, tuple[str, ...]] = {}
    published: Mapping[str, int] = {}
    checked: tuple[Mapping[str, Any], ...] = ({},)
    arrays: Arrays | None = None

    # -------------------------------------------------------------------------------- what each data set says
    def images(self, copy: Copy, split: str, trial: int) -> dict[str, Images]:
        """The images of both modalities of a split, "train" or "test", of one of the trials."""
        raise NotImplementedError

    def source(self, split: str, trial: int) -> str:
        """The lists or folder that name the images of a split, below the data set's folder."""
        raise NotImplementedError

    def searches(self, root: Root, *, direction: str, trials: Iterable[int]) -> list[Search]:
        """One search for each trial; those of its flags that `arguments` says are further keywords."""
        raise NotImplementedError

    # --------------------------------------------------------------------------- what a data set may say anew
    def add_flags(self, parser: Parser, script: str) -> None:
        """Declare the flags that belong to this data set; script: "train" or "test"."""
        if self.arrays and script == "train":
            parser.add_argument("--arrays", type=filled, metavar="DIR", help="SYSU-MM01, LLCM: folder of the "
                                "pre-processed arrays (default: that of the data set)")

    def trials(self, trial: int) -> list[int]:
        """The trials that a test of one model runs; training evaluates on the first of them."""
        return list(range(TRIALS))

    def has(self, root: str | Path, split: str) -> bool:
        """Whether a copy has images of a split, "train" or "test"; it may have those of one alone."""
        return True

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that follow from the others; raises `UserError` where these contradict each other."""
        return {"data_path": values["data_path"] or self.path,
                "direction": values["direction"] or self.direction}

    def persons(self, searches: Sequence[Search]) -> np.ndarray:
        """Numbers that tell the persons of all queries apart, search after search, (N,)."""
        return np.concatenate([search.query.pids for search in searches])

    def trials_to_check(self, root: Path) -> list[int]:
        """The trials whose lists the check of a copy reads."""
        return [1]

    def name_of_person(self, pid: int, sides: Iterable[Images]) -> str:
        """What people call a person; sides: where the person's images are."""
        return str(pid)

    def check_more(self, report: Report) -> None:
        """Report what is particular to this data set."""

    # --------------------------------------------------------------------------------------- the same for all
    def train_split(self, root: Root, trial: int = 1) -> TrainSplit:
        """The training images; a person without images in one of the modalities is a fault."""
        copy = self.open(root)
        sides = self.images(copy, "train", trial)
        pids = np.union1d(*(images.pids for images in sides.values()))
        for modality, images in sides.items():
            lacking = np.setdiff1d(pids, images.pids).tolist()
            for pid in lacking:
                copy.refuse("one modality only", f"{copy.root / self.source('train', trial)}: person "
                            f"{self.name_of_person(pid, sides.values())} has no {modality} image "
                            f"({len(lacking)} of {len(pids)} persons have none); both modalities expected "
                            "for training; restore the images, or take the person off the list")
        return TrainSplit(*sides.values(), pids, self.arrays, copy.left_out)

    def test_images(self, root: Root, trial: int = 1) -> dict[str, Images]:
        """All test images of both modalities."""
        return self.images(self.open(root), "test", trial)

    def keywords(self, method: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the parsed arguments that a method takes as keywords."""
        return {name: values[name] for name in self.arguments.get(method, ())}

    def present(self, root: Path) -> int:
        """How many folders of the layout a folder has; 0 if they are too few to know the data set by."""
        count = sum((root / folder).is_dir() for folder in self.folders)
        return count if count >= 2 or (root / self.folders[0]).is_dir() else 0

    def open(self, root: Root) -> Copy:
        """The copy in a folder; raises `UserError` where the layout is another."""
        if isinstance(root, Copy):
            return root
        copy = Copy(root)
        if not self.present(copy.root):
            found = describe_entry(copy.root)
            if copy.root.is_dir():
                inside = sorted(path.name for path in copy.root.iterdir() if path.is_dir())[:9]
                found = f"the folders {', '.join(inside)}" if inside else "no folder in it"
            raise UserError(f"--data-path {root}: {found} found, {self.title} ({', '.join(self.folders)}) "
                            "expected; put it there (README, Data), name its folder, or change --dataset")
        return copy

    def surprises(self, data_path: str | Path, split: TrainSplit | None = None,
                  search: Search | None = None) -> list[str]:
        """What is legal but surely unintended of a split and of a search, a line each.

        Counts that are not the published ones; test persons who have images in one modality only, where the
        whole data set has none; hidden and system files.
        """
        known = [(read.counts(), published) for read, published in
                 ((split, self.published), (search, search and search.published)) if read]
        differing = [f"{found} {what} found, {published[what]} published" for counts, published in known
                     for what, found in counts.items() if found != published.get(what, found)]
        lines = [f"{'; '.join(differing)}: not the whole data set"] if differing else []
        lone = set(search.query.pids.tolist()) ^ set(search.gallery.pids.tolist()) if search else set()
        if lone and not search.partial:
            first = self.name_of_person(min(lone), (search.query, search.gallery))
            lines.append(f"{len(lone)} test person(s), the first {first}, with images in one modality only: "
                         "their queries are left out of the mean")
        if left_out := {path for read in (split, search) if read for path in read.left_out}:
            lines.append(f"{len(left_out)} hidden or system files or folders left out, the first "
                         f"{min(left_out)}")
        return [f"--data-path {data_path}: {line}" for line in lines]


def draw(images: Images, trial: int, shot: int = 1) -> Images:
    """Draw `shot` images of each person and camera, all where there are fewer.

    This is the draw of the AGW line (Ye et al., TPAMI 2021); the global generator is left alone.
    """
    rng = random.Random(trial)
    groups = images.by_person_and_camera().values()
    return images.take([row for rows in groups for row in (
        [rng.choice(rows)] if shot == 1 else rng.sample(rows, min(shot, len(rows))))])


def matched(search: Search, source: str) -> Search:
    """The search of the lists or folder `source`; `UserError` if no query has a match."""
    query, gallery = search.query, search.gallery
    if search.unmatched() == len(query):
        raise UserError(f"{source}: no query has a match in the gallery: none of the {len(query)} "
                        f"{query.modality} queries is compared with an image of the same person among the "
                        f"{len(gallery)} {gallery.modality} ones; restore the images")
    return search

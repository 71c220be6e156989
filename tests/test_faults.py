"""What the world throws at the scripts: faults on the real command line, their line, what is left on disk."""
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
from conftest import ROOT, SMALL, make_regdb, make_sysu
from PIL import Image

from data_manager import DATASETS
from utils import UserError

PRE = "pre_process_sysu.py --data-path {sysu} --img_w 16 --img_h 32 --workers 1"
TRAIN_SYSU = "train.py --data-path {sysu} --epochs 1 {small}"
TRAIN_REGDB = "train.py --dataset regdb --data-path {regdb} --epochs 1 {small}"
TEST = "test.py --data-path {regdb} --gpu cpu --amp off --out found --resume"
RUN = "regdb_base_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_pretrained_none_trial_1"


# ----------------------------------------------------------------------------------------------------- a case
@dataclass(frozen=True)
class Case:
    """A command line, what is done before to fresh copies of the data, and a regular expression of its line.

    `logs`: the fault shows only after the text log of the run was begun. `file_size`: the largest file that
    the system lets the command write, which is how a full disk is had.
    """

    name: str
    command: str
    expected: str
    change: Callable[[Path, SimpleNamespace], object] | None = None
    logs: bool = False
    status: int = 2
    file_size: int | None = None

    @property
    def script(self) -> str:
        """The script that it runs."""
        return self.command.split()[0]


@dataclass
class Outcome:
    """What a command left."""

    case: Case
    place: Path
    status: int
    stdout: str
    stderr: str
    before: dict[str, tuple] = field(default_factory=dict)
    after: dict[str, tuple] = field(default_factory=dict)

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are no warnings."""
        return [line for line in self.stderr.splitlines() if not line.startswith("warning: ")]

    @property
    def written(self) -> list[str]:
        """The files that the command made, changed or removed."""
        return sorted(name for name in self.before.keys() | self.after.keys()
                      if self.before.get(name) != self.after.get(name))


def files_of(place: Path) -> dict[str, tuple]:
    """Every file below a folder, with what changes when it is written; files of locks stay where they are."""
    stats = {path: path.lstat() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()
             and path.suffix != ".lock"}
    return {path.relative_to(place).as_posix(): (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            for path, stat in stats.items()}


def run(command: list[object], cwd: Path, file_size: int | None = None,
        **env: str) -> subprocess.CompletedProcess:
    """A script as a user runs it."""
    return scripts.run([ROOT / str(command[0]), *command[1:]], cwd, file_size=file_size, env=env)


def attempt(case: Case, world: SimpleNamespace, place: Path) -> Outcome:
    """Copy the data that a case names, do to it what the case says, run its command."""
    (place / "cwd").mkdir(parents=True)
    words = {"place": place, "small": shlex.join(SMALL), "last": world.last, "best": world.best,
             "t": place / "x.t"}
    for name, folder in (("sysu", world.sysu), ("arrays", world.arrays), ("regdb", world.regdb)):
        words[name] = place / folder.name
        if f"{{{name}}}" in case.command:
            shutil.copytree(folder, words[name], symlinks=True)
    if case.change is not None:
        case.change(place, world)
    before = files_of(place)
    done = run(shlex.split(case.command.format(**words)), place / "cwd", case.file_size)
    outcome = Outcome(case, place, done.returncode, done.stdout, done.stderr, before, files_of(place))
    shutil.rmtree(place)
    return outcome


@pytest.fixture(scope="session")
def world(once):
    """Small data sets, arrays, and a run of one epoch, made once and only read."""
    folder = once("world", make_world)
    last, best = (folder / "save_model" / f"{RUN}_{kind}.t" for kind in ("last", "best"))
    whole, content = (torch.load(path, weights_only=True) for path in (last, best))
    return SimpleNamespace(sysu=folder / "SYSU-MM01", regdb=folder / "RegDB", arrays=folder / "arrays",
                           last=last, best=best, whole=whole, content=content)


def make_world(folder: Path) -> None:
    """The data sets, and what the scripts make of them."""
    sysu = make_sysu(folder / "SYSU-MM01", train=3, val=1, test=2, images=2)
    regdb = make_regdb(folder / "RegDB")
    arrays = shutil.copytree(sysu, folder / "arrays")
    done = run([*shlex.split(PRE.format(sysu=arrays))], folder)
    assert done.returncode == 0, done.stderr
    train = shlex.split(TRAIN_REGDB.format(regdb=regdb, small=shlex.join(SMALL)))
    done = run([*train, "--method", "base"], folder)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ the changes
def write(name: str, content: bytes | str) -> Callable:
    """Put other bytes into a file."""
    whole = content.encode() if isinstance(content, str) else content
    return lambda place, world: (place / name).write_bytes(whole)


def remove(*names: str) -> Callable:
    """Take files or folders away."""
    def change(place: Path, world: SimpleNamespace) -> None:
        for name in names:
            shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    return change


def empty(name: str) -> Callable:
    """A new, empty folder in the place of a file or folder."""
    return lambda place, world: (remove(name)(place, world), (place / name).mkdir())


def link(name: str, target: str) -> Callable:
    """A symbolic link in the place of a file or folder."""
    return lambda place, world: (remove(name)(place, world), (place / name).symlink_to(target))


def line(name: str, old: str, new: str) -> Callable:
    """Replace one piece of a text file."""
    def change(place: Path, world: SimpleNamespace) -> None:
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new, 1))
    return change


def truncate(name: str, keep: float = 0.5) -> Callable:
    """Cut a file short."""
    return lambda place, world: os.truncate(place / name, int(keep * (place / name).stat().st_size))


def image(name: str, mode: str = "RGB", size: tuple[int, int] = (24, 48), **options) -> Callable:
    """Another image in the place of one, in the format that its name says unless told otherwise."""
    return lambda place, world: Image.new(mode, size).save(place / name, **options)


def checkpoint(**changes: object) -> Callable:
    """The weights of a run with some of the file's keys changed (None: taken out)."""
    def change(place: Path, world: SimpleNamespace) -> None:
        torch.save({name: value for name, value in {**world.content, **changes}.items() if value is not None},
                   place / "x.t")
    return change


def weights(**changes: object) -> Callable:
    """The weights of a run with some of them changed (None: taken out)."""
    def change(place: Path, world: SimpleNamespace) -> None:
        changed = {**world.content["net"],
                   **{name.replace("__", "."): value for name, value in changes.items()}}
        checkpoint(net={name: value for name, value in changed.items() if value is not None})(place, world)
    return change


def arguments(**changes: object) -> Callable:
    """The weights of a run with some of the arguments that its file records changed."""
    return lambda place, world: checkpoint(args={**world.content["args"], **changes})(place, world)


def whole(**changes: object) -> Callable:
    """All of a run with some of its file's keys changed."""
    return lambda place, world: torch.save({**world.whole, **changes}, place / "x.t")


def saved(content: Callable[[SimpleNamespace], object]) -> Callable:
    """A file of torch.save."""
    return lambda place, world: torch.save(content(world), place / "x.t")


class Bomb:
    """Makes a file in the folder of the command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def png_16_bit(name: str) -> Callable:
    """A PNG of 16 bits in each of three channels, which Pillow reads as if it had 8."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress((b"\0" + bytes(range(6)) * 20) * 40)
    return write(name, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 40, 16, 2, 0, 0, 0))
                 + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def array(name: str, content: Callable[[np.ndarray], object]) -> Callable:
    """Another array in the place of one that pre-processing wrote."""
    def change(place: Path, world: SimpleNamespace) -> None:
        with open(place / "arrays" / name, "rb+") as file:
            old = np.load(file)
            file.seek(0)
            file.truncate()
            np.save(file, content(old), allow_pickle=True)
    return change


def permutations(number: int) -> Callable:
    """A rand_perm_cam.mat in which one image has another number."""
    def change(place: Path, world: SimpleNamespace) -> None:
        from scipy.io import loadmat, savemat
        path = place / "SYSU-MM01/exp/rand_perm_cam.mat"
        cells = loadmat(path)["rand_perm_cam"]
        cells[0][0][5 - 1, 0][:] = number
        savemat(path, {"rand_perm_cam": cells})
    return change


def sysu_checkpoint(place: Path, world: SimpleNamespace) -> None:
    """A checkpoint that says that it was trained on SYSU-MM01."""
    arguments(dataset="sysu")(place, world)


def both(*changes: Callable) -> Callable:
    """One change after the other."""
    return lambda place, world: [change(place, world) for change in changes]


# -------------------------------------------------------------------------------------------------- the table
FIRST = "SYSU-MM01/cam1/0001/0001.jpg"
LIST, OTHER = "RegDB/idx/train_visible_1.txt", "RegDB/idx/train_thermal_1.txt"
EVIL = (r"refused, it refers to \w+\.system, which could run code when loaded; .* expected; "
        "use a file from a source you trust")

FOLDERS = [
    Case("pre: no such folder", "pre_process_sysu.py --data-path {place}/nowhere",
         r"--data-path \S*nowhere: no such folder; put SYSU"),
    Case("pre: a file", "pre_process_sysu.py --data-path {place}/f",
         r"--data-path \S*/f: a file; put SYSU-MM01", write("f", "")),
    Case("pre: an empty folder", "pre_process_sysu.py --data-path {place}/cwd",
         "--data-path .*no folder in it found, SYSU-MM01 .cam1"),
    Case("pre: the other data set", "pre_process_sysu.py --data-path {regdb}",
         r"the folders Thermal, Visible, idx found, SYSU-MM01 .*exp"),
    Case("pre: an empty name", "pre_process_sysu.py --data-path ''", "--data-path: an empty name found"),
    Case("pre: not to be written to", "pre_process_sysu.py --data-path /proc/self/root{place}/x",
         "no such folder"),
    Case("train: no folder named", "train.py",
         "--data-path data/SYSU-MM01: no such folder; put SYSU-MM01 there"),
    Case("train: the other data set", "train.py --dataset regdb --data-path {sysu}",
         "--data-path .*: the folders cam1, .*, exp found, RegDB .*"
         "expected; name the data set's folder, or change --dataset"),
    Case("test: the other data set", TEST.replace("{regdb}", "{sysu}") + " {last}",
         "--data-path .*: the folders cam1, .*, exp found, RegDB .* expected"),
    Case("check: no folder", "data_manager.py", "the following arguments are required: DIR"),
    Case("check: no such folder", "data_manager.py nowhere", "DIR nowhere: no such folder"),
    Case("check: unknown flag", "data_manager.py {sysu} --al", "unrecognized arguments: --al"),
]

CAMERAS = [
    Case("pre: no camera 5", PRE,
         "SYSU-MM01/cam5: no such folder; the camera's images, .*, expected; restore them",
         remove("SYSU-MM01/cam5")),
    Case("pre: camera 3 without persons of the lists", PRE,
         "SYSU-MM01/cam3: no image of the persons on the lists; ", empty("SYSU-MM01/cam3")),
    Case("train: no camera 6", TRAIN_SYSU, "SYSU-MM01/cam6: no such folder", remove("SYSU-MM01/cam6")),
    Case("test: no camera 4", "test.py --gpu cpu --data-path {sysu} --resume {t} --out found",
         "SYSU-MM01/cam4: no such folder", both(sysu_checkpoint, remove("SYSU-MM01/cam4"))),
    Case("pre: no infrared image of a person", PRE,
         "exp/train_id.txt and exp/val_id.txt: person 2 has no infrared image "
         r"\(1 of 4 persons have none\); both modalities expected for training; restore",
         remove("SYSU-MM01/cam3/0002", "SYSU-MM01/cam6/0002")),
    Case("pre: no visible image of a person", PRE, "person 4 has no visible image",
         both(remove(*(f"SYSU-MM01/cam{c}/0004" for c in (1, 2, 4))), empty("SYSU-MM01/cam5/0004"))),
    Case("train: fewer persons than the batch", TRAIN_SYSU + " --batch-size 5",
         "--batch-size 5: 4 training persons found, .*give --batch-size 4 or less"),
    Case("test: official gallery without its file",
         "test.py --gpu cpu --data-path {sysu} --resume {t} --out found --gallery official",
         "exp/rand_perm_cam.mat: no such file, needed by --gallery official; "
         "restore it .*, or use --gallery random",
         both(sysu_checkpoint, remove("SYSU-MM01/exp/rand_perm_cam.mat"))),
    Case("train: official gallery of images not there", TRAIN_SYSU + " --gallery official",
         r"rand_perm_cam.mat: names image \S*cam1/0005/0007.jpg, which is not there; restore the image",
         permutations(7)),
    Case("train: official gallery out of a damaged file", TRAIN_SYSU + " --gallery official",
         "rand_perm_cam.mat: not the data set's rand_perm_cam.mat",
         truncate("SYSU-MM01/exp/rand_perm_cam.mat")),
    Case("pre: a link in place of a person's folder", PRE, "SYSU-MM01/cam2/0002: a link that points "
         "nowhere found, a folder with the images of person 2 expected; restore the folder",
         link("SYSU-MM01/cam2/0002", "/gone")),
    Case("pre: a person's folder of another name", PRE,
         "SYSU-MM01/cam2/2: found for person 2, a folder of the name 0002 expected; rename it",
         lambda place, world: (place / "SYSU-MM01/cam2/0002").rename(place / "SYSU-MM01/cam2/2")),
    Case("check: a file in place of a person's folder",
         "data_manager.py {sysu}", r"FAULT, persons' folders: 1\s+\S*cam2/0005: a file found",
         both(remove("SYSU-MM01/cam2/0005"), write("SYSU-MM01/cam2/0005", b"")), status=1),
    Case("check: an empty folder of a person", "data_manager.py {sysu}",
         r"note, empty folders: 1\s+\S*cam2/0002\n",
         empty("SYSU-MM01/cam2/0002"), status=0),
    Case("train: no query with a match", TRAIN_SYSU, "exp/test_id.txt, all-search: "
         r"no query has a match in the gallery: no person is in both the \d+ infrared queries and "
         r"the \d+ visible gallery images; a person in both expected; restore the images",
         remove(*(f"SYSU-MM01/cam{c}/0005" for c in (3, 6)),
                *(f"SYSU-MM01/cam{c}/0006" for c in (1, 2, 4, 5)))),
    Case("test: no query with a match but in one room",
         "test.py --gpu cpu --data-path {sysu} --resume {t} --out found --mode indoor",
         "indoor-search: no query has a match in the gallery: .* but in cameras that are not compared",
         both(sysu_checkpoint, remove("SYSU-MM01/cam6/0005", "SYSU-MM01/cam1/0006", "SYSU-MM01/cam2/0006"),
              write("SYSU-MM01/exp/test_id.txt", "5,6,7"),
              lambda place, world: (place / "SYSU-MM01/cam1/0005").rename(place / "SYSU-MM01/cam1/0007"))),
]

ID_LISTS = [Case(f"pre: id list: {what}", PRE, expected, change) for what, expected, change in (
    ("missing", r"exp/train_id.txt: no such file; restore it", remove("SYSU-MM01/exp/train_id.txt")),
    ("a folder", r"exp/val_id.txt: a folder found, a list expected", empty("SYSU-MM01/exp/val_id.txt")),
    ("empty", "exp/test_id.txt: empty; one line of identity numbers .*expected; restore",
     write("SYSU-MM01/exp/test_id.txt", "")),
    ("blank", r"exp/val_id.txt: empty; one line", write("SYSU-MM01/exp/val_id.txt", "\r\n , ,\n")),
    ("a word", "exp/train_id.txt: 'two' found, positive identity numbers",
     write("SYSU-MM01/exp/train_id.txt", "1,two,3")),
    ("spaces", r"exp/train_id.txt: '1 2 3' found", write("SYSU-MM01/exp/train_id.txt", "1 2 3")),
    ("negative", r"exp/train_id.txt: '-2' found", write("SYSU-MM01/exp/train_id.txt", "1,-2,3")),
    ("zero", r"exp/train_id.txt: '0' found", write("SYSU-MM01/exp/train_id.txt", "0,2,3")),
    ("a fraction", r"exp/train_id.txt: '2.0' found", write("SYSU-MM01/exp/train_id.txt", "1,2.0")),
    ("endless digits", r"exp/train_id.txt: '9{40}' found", write("SYSU-MM01/exp/train_id.txt", "9" * 5000)),
    ("not text", "exp/train_id.txt: cannot be read as text",
     write("SYSU-MM01/exp/train_id.txt", b"1,\xff\xfe,3")),
    ("control characters", r"exp/train_id.txt: '\\x1b\[2J' found",
     write("SYSU-MM01/exp/train_id.txt", "\x1b[2J,1")),
    ("training and test", "exp: identity 5 is in train_id.txt and in test_id.txt; disjoint",
     write("SYSU-MM01/exp/train_id.txt", "5,1")),
    ("a person without a folder", "person 77 has no visible image",
     write("SYSU-MM01/exp/train_id.txt", "1,2,3,77")),
)]

# Person 1 of trial 1 has label 0 and person 8 label 3 in the training lists.
LISTED = {"train": (TRAIN_REGDB, 2), "check": ("data_manager.py {regdb}", 1)}  # commands, exit statuses
INDEX = [Case(f"{script}: list: {what}", LISTED[script][0], expected, change, status=LISTED[script][1])
         for script, what, expected, change in (
    ("train", "missing", r"idx/train_thermal_1.txt: no such file; restore it", remove(OTHER)),
    ("train", "empty", "idx/train_visible_1.txt: empty; lines 'relative/path label' expected",
     write(LIST, "")),
    ("train", "no label", r"train_visible_1.txt, line 1: '\S*v_\d_1.bmp' found, .* expected",
     line(LIST, " 0", "")),
    ("train", "an image that is not there", r"train_visible_1.txt: names \S*/v_\d_9.bmp, which is not there",
     line(LIST, "_1.bmp", "_9.bmp")),
    ("train", "one image twice", r"train_visible_1.txt, line 2: '\S*_1.bmp' is listed twice",
     line(LIST, "_2.bmp", "_1.bmp")),
    ("train", "a person in both splits",
     r"idx: Visible/\d is in the training and the test list of trial 1 \(visible\); disjoint",
     lambda place, world: shutil.copy(place / "RegDB/idx/test_visible_1.txt", place / LIST)),
    ("train", "no infrared image of a person", "training lists of trial 1: person 0 has no infrared image",
     lambda place, world: (place / OTHER).write_text(
         "".join(x for x in (place / OTHER).open() if not x.endswith(" 0\n")))),
    ("train", "the lists of two trials", r"is in the training and the test list of trial 1 \(thermal\)",
     lambda place, world: shutil.copy(place / "RegDB/idx/train_thermal_2.txt", place / OTHER)),
    ("check", "blank", r"FAULT, lists: 1\s+\S*train_visible_1.txt: empty", write(LIST, "\r\n\n \t\n")),
    ("check", "negative label",
     "train_visible_1.txt, line 1: '.* -1' found, .* a label of at least 0 expected",
     line(LIST, " 0", " -1")),
    ("check", "a word for a label", r"train_visible_1.txt, line 1: '.* x' found", line(LIST, " 0", " x")),
    ("check", "an absolute path", "train_visible_1.txt, line 1: '/Visible/.*' found",
     line(LIST, "Visible", "/Visible")),
    ("check", "the same image by another path", r"train_visible_1.txt, line 2: '\S*_1.bmp' is listed twice",
     both(line(LIST, "_2.bmp", "_1.bmp"), line(LIST, "Visible/", "Visible/./"))),
    ("check", "not text", "train_visible_1.txt: cannot be read as text",
     write(LIST, b"Visible/1/\xff.bmp 0\n")),
    ("train", "that of the other modality", r"idx/train_thermal_1.txt: names Visible/\S+, "
     "which is not a thermal image by its folder; a list of thermal images expected; restore the list",
     lambda place, world: shutil.copy(place / LIST, place / OTHER)),
    ("check", "that of the other modality",
     r"FAULT, lists: \d+\s+\S+train_thermal_1.txt: names Visible/",
     lambda place, world: shutil.copy(place / LIST, place / OTHER)),
    ("train", "no query with a match", "idx: test lists of trial 1: no query has a match in the gallery: "
     "no person is in both the 8 visible queries and the 8 infrared gallery images; ",
     lambda place, world: [(place / "RegDB/idx" / f"test_{name}_1.txt").write_text("".join(
         x for x in (place / "RegDB/idx" / f"test_{name}_1.txt").open() if int(x.split()[1]) % 2 == odd))
                           for name, odd in (("visible", 0), ("thermal", 1))]),
)]

IMAGES = [Case(f"pre: image: {what}", PRE, "SYSU-MM01/cam1/0001/" + expected, change)
          for what, expected, change in (
    ("truncated", r"0001.jpg: cannot be decoded as an image \(.*[Tt]runcated.*\); remove or replace the file",
     truncate(FIRST, 0.9)),
    ("zero bytes", r"0001.jpg: an empty file found, an image expected; remove or replace", write(FIRST, b"")),
    ("16-bit grey",
     r"0001.png: an image of mode I;16 \(more than 8 bits a channel\) found, 8 bits expected; convert",
     image("SYSU-MM01/cam1/0001/0001.png", "I;16")),
    ("16-bit colour", r"0001.png: an image of mode RGB \(more than 8 bits",
     png_16_bit("SYSU-MM01/cam1/0001/0001.png")),
    ("a text", "0001.jpg: a file of 5 bytes in no known image format found, an image expected",
     write(FIRST, "hello")),
    ("a folder", "0003.jpg: a folder found, an image file expected; restore it, or move it elsewhere",
     lambda place, world: (place / "SYSU-MM01/cam1/0001/0003.jpg").mkdir()),
    ("another format", r"0003.gif: found among", image("SYSU-MM01/cam1/0001/0003.gif")),
    ("a link to nowhere", r"0001.jpg: a link that points nowhere found", link(FIRST, "/nowhere")),
)] + [
    Case("train: a truncated image",
         TRAIN_REGDB, r"RegDB/Visible/\d/v_\d_1.bmp: cannot be decoded as an image",
         lambda place, world: [truncate(f"RegDB/Visible/{pid}/v_{pid}_1.bmp")(place, world)
                               for pid in range(1, 9)], logs=True),
    Case("test: an empty image", TEST + " {last}", r"RegDB/Thermal/\d/t_\d_2.bmp: an empty file found",
         lambda place, world: [write(f"RegDB/Thermal/{pid}/t_{pid}_2.bmp", b"")(place, world)
                               for pid in range(1, 9)]),
    Case("check: an empty image", "data_manager.py {sysu}",
         r"FAULT, empty: 1\s+\S*cam1/0001/0001.jpg: 0 bytes", write(FIRST, b""),
         status=1),
    Case("check: a truncated image", "data_manager.py {sysu} --all",
         r"FAULT, unreadable: 1\s+\S*cam1/0001/0001.jpg: cannot be decoded",
         truncate(FIRST), status=1),
]

ARRAYS = [Case(f"train: array: {what}", TRAIN_SYSU.replace("sysu", "arrays"), "arrays/" + expected, change,
               logs=True) for what, expected, change in (
    ("truncated", "train_rgb_resized_img.npy: not a whole .npy of plain numbers .*; run: "
     r"python pre_process_sysu.py --data-path \S+ --img_w 16 --img_h 32",
     truncate("arrays/train_rgb_resized_img.npy")),
    ("empty", r"train_ir_resized_img.npy: not a whole .npy", write("arrays/train_ir_resized_img.npy", b"")),
    ("another shape", r"train_rgb_resized_img.npy: uint8 \(32, 32, 16, 1\) found, uint8 \(32, 32, 16, 3\) "
     "expected; run", array("train_rgb_resized_img.npy", lambda old: old[..., :1])),
    ("another type", "train_rgb_resized_img.npy: float32 .* found, uint8",
     array("train_rgb_resized_img.npy", np.float32)),
    ("objects", r"train_rgb_resized_img.npy: not a whole .npy of plain numbers \(.*[Oo]bject",
     array("train_rgb_resized_img.npy", lambda old: np.array([Bomb()], object))),
    ("a pickle", "train_ir_resized_label.npy: not a whole .npy",
     write("arrays/train_ir_resized_label.npy", pickle.dumps(Bomb()))),
    ("an archive", r"train_ir_resized_label.npy: an archive found, int64 \(16,\) expected",
     lambda place, world: np.savez((place / "arrays/train_ir_resized_label.npy").open("wb"), np.arange(16))),
    ("other labels", r"train_ir_resized_label.npy: labels found that are not those of the lists; run",
     array("train_ir_resized_label.npy", lambda old: old[::-1])),
    ("missing", r"train_ir_resized_img.npy: no such file; run", remove("arrays/train_ir_resized_img.npy")),
    ("no manifest", "train_rgb_resized_img.npy: found without train_resized_img.json",
     remove("arrays/train_resized_img.json")),
    ("a damaged manifest", "train_resized_img.json: not the record of pre-processing",
     truncate("arrays/train_resized_img.json")),
    ("another manifest", "train_resized_img.json: not the record",
     write("arrays/train_resized_img.json", "[1]")),
    ("another size", r"train_resized_img.json: arrays of height x width 64 x 16 found, 32 x 16 expected; run",
     line("arrays/train_resized_img.json", '"height": 32', '"height": 64')),
    ("another image since", "train_resized_img.json: the arrays were made from 32 visible images, "
     r"the training lists now give 32 that are not the same \(cam1/0001/0001.jpg differs\); run",
     image(FIRST.replace("SYSU-MM01", "arrays"))),
)]

CHECKPOINTS = [Case(f"test: checkpoint: {what}", f"{TEST} {{t}}", r"--resume \S*/x.t: " + expected, change)
               for what, expected, change in (
    ("missing", "no such file; name a checkpoint", None),
    ("a folder", "no such file|a folder found", lambda place, world: (place / "x.t").mkdir()),
    ("empty", r"0 bytes that begin with b'' found, a whole checkpoint .* expected", write("x.t", b"")),
    ("truncated", r"\d+ bytes that begin with b'PK.* found, a whole checkpoint .* expected",
     lambda place, world: (shutil.copy(world.best, place / "x.t"), truncate("x.t")(place, world))),
    ("a text", "15 bytes that begin with b'<!doctype html>' found", write("x.t", "<!doctype html>")),
    ("one that runs code", EVIL, checkpoint(bomb=Bomb())),
    ("a pickle that runs code", r"\d+ bytes that begin with .* found, a whole checkpoint",
     write("x.t", pickle.dumps({"net": Bomb()}))),
    ("a pickled module", "refused, it refers to torch.nn.modules.linear.Linear,",
     saved(lambda world: torch.nn.Linear(2, 2))),
    ("a number", "a int found, a checkpoint of train.py expected", saved(lambda world: 3)),
    ("a bare state dict", r"a bare state dict of \d+ tensors found, a checkpoint of train.py expected; use",
     saved(lambda world: world.content["net"])),
    ("of a later version", "format 2 found, a checkpoint of train.py expected",
     checkpoint(format=2)),
    ("NaN", "bottleneck.running_var holds NaN or infinite values", weights(
        bottleneck__running_var=torch.full((512,), float("nan")))),
    ("infinite", "classifier.weight holds NaN or infinite values",
     weights(classifier__weight=torch.full((4, 512), float("inf")))),
    ("a list for a weight", "bottleneck.weight is a list, a tensor expected",
     weights(bottleneck__weight=[1.0])),
    ("a weight missing", r"lacks bottleneck.weight \(1 such\)", weights(bottleneck__weight=None)),
    ("a weight too many", r"has an unexpected more \(1 such\)", weights(more=torch.ones(1))),
    ("a weight of another shape", r"bottleneck.weight has shape \(3,\), \(512,\) expected",
     weights(bottleneck__weight=torch.ones(3))),
    ("other classes", r"classifier.weight has shape \(4, 512\), \(5, 512\) expected",
     checkpoint(num_classes=5)),
    ("of another method than it says",
     r"(lacks|has an unexpected) \S+ \(\d+ such\); the weights of agw on", arguments(method="agw")),
    ("of an unknown method", "method 'nonsense' found in it, one of base, agw, cgrnet, .* expected",
     arguments(method="nonsense")),
)] + [
    Case("test: another method", TEST + " {last} --method agw",
         "--method agw: the checkpoint .* was trained with --method base; leave the flag out"),
    Case("test: another size", TEST + " {last} --img_w 32",
         "--img_w 32: the checkpoint .* was trained with --img_w 16"),
    Case("test: another trial", TEST + " {last} --trial 2",
         "--trial 2: the checkpoint .* was trained on trial 1, .*--force-trial"),
    Case("train: goes on with a best file", TRAIN_REGDB + " --method base --resume {best}",
         r"--resume \S*best.t: weights only found"),
    Case("train: goes on with another method", TRAIN_REGDB + " --method agw --resume {last}",
         r"--method agw: the checkpoint \S+ was trained with --method base; "
         "leave the flag out, or use another checkpoint"),
    Case("train: goes on with code", TRAIN_REGDB + " --resume {t}", r"--resume \S*x.t: " + EVIL,
         checkpoint(bomb=Bomb())),
    Case("train: goes on with another optimiser", TRAIN_REGDB + " --method base --resume {t}",
         r"--resume \S*x.t: its optimiser does not fit this run",
         whole(optimiser={"state": {},
                          "param_groups": []})),
    Case("train: goes on to an earlier epoch",
         "train.py --gpu cpu --data-path {regdb} --resume {t} --epochs 1",
         r"--epochs 1: the checkpoint \S*x.t has 3 epochs behind it; give at least as many", whole(epoch=3)),
    Case("train: begins with nothing that fits", TRAIN_REGDB + " --init {t}",
         r"--init \S*x.t: a dict with the keys conv, "
         r"other lacks \S+ \(\d+ such\); the whole backbone",
         saved(lambda world: {"conv": torch.ones(1), "other": 1})),
    Case("train: begins with code", TRAIN_REGDB + " --init {t}", r"--init \S*x.t: " + EVIL,
         checkpoint(bomb=Bomb())),
    Case("train: backbone missing", TRAIN_REGDB + " --pretrained {t}", r"--pretrained \S*x.t: no such file"),
    Case("train: backbone of another kind", TRAIN_REGDB + " --pretrained {t}",
         r"--pretrained \S*x.t.* lacks conv1.weight; torchvision's state dict",
         saved(lambda world: world.content["net"])),
]

FLAGS = [
    *(Case(f"{script.split('.')[0]}: unknown flag", f"{script} --colour 1",
           r"unrecognized arguments: --colour 1 \(see \S+ --help\)")
      for script in ("pre_process_sysu.py", "train.py", "test.py", "demo.py")),
    *(Case(f"{script.split('.')[0]}: {flag} {value}", f"{script} {flag} {value}",
           rf"argument {flag}: '{value}' found, .* expected")
      for script, flag, value in (
          ("pre_process_sysu.py", "--workers", "-1"), ("pre_process_sysu.py", "--img_w", "0"),
          ("pre_process_sysu.py", "--img_h", "-288"), ("pre_process_sysu.py", "--img_h", "1e3"),
          ("demo.py", "--ids", "0"), ("demo.py", "--ids", "11"), ("demo.py", "--images", "0"),
          ("demo.py", "--seed", "-1"), ("demo.py", "--data-seed", "-1"), ("train.py", "--lr", "nan"),
          ("train.py", "--batch-size", "0"), ("train.py", "--batch-size", "1"), ("train.py", "--epochs", "0"),
          ("train.py", "--trial", "11"), ("test.py", "--workers", "-1"), ("test.py", "--trial", "11"))),
    Case("train: abbreviated flag", "train.py --epoch 1", "unrecognized arguments: --epoch 1"),
    Case("train: a split of SYSU-MM01", "train.py --trial 2",
         "--trial 2 belongs to RegDB, but the data set is sysu"),
    Case("train: a mode of RegDB", "train.py --dataset regdb --mode indoor",
         "--mode indoor belongs to SYSU-MM01, but .* regdb"),
    Case("train: a direction of RegDB", "train.py --tvsearch",
         "--tvsearch belongs to RegDB, but the data set is sysu; leave it out"),
    Case("train: two directions", "train.py --dataset regdb --tvsearch --direction v2i",
         "--tvsearch means --direction i2v, but"),
    Case("train: two beginnings", "train.py --resume {last} --init b.t",
         "--init b.t: the checkpoint .* was trained with --init None"),
    Case("train: two first weights", "train.py --pretrained a.t --init b.t",
         "--pretrained a.t and --init b.t both say"),
    Case("train: an empty name", "train.py --resume ''",
         "--resume/-r: an empty name found; name one, or leave the flag out"),
    Case("train: no such device", "train.py --gpu 0,1",
         "--gpu 0,1: N or cuda:N .*, mps or cpu expected; for several GPUs: torchrun --nproc-per-node"),
    Case("test: nothing to test", "test.py", "--resume: no checkpoint given; name one"),
    Case("test: nothing to compare", "test.py --compare a.json", "a.json: not a results.json of test.py"),
    Case("test: compares and tests", "test.py --compare a.json --resume b.t",
         "--resume: --compare reads results and tests nothing"),
    Case("test: features under another name", "test.py --resume {last} --save-features f.npy",
         "--save-features f.npy: .*ends in .npz"),
    Case("test: nine of ten trials", "test.py --resume {place}/_{{}}.t",
         r"--resume \S*_1.t: no such file; name a checkpoint for every"),
]

OUTPUT = [
    Case("pre: disk full", PRE, r"--data-path \S*: .*File too large; free space", file_size=20_000),
    Case("pre: disk full, with arrays there", PRE.replace("sysu}", "arrays}"),
         r"--data-path \S*: .*File too large",
         file_size=20_000),
    Case("train: checkpoints into a file", TRAIN_REGDB + " --model_path {place}/f",
         r"--model_path \S*/f: cannot be written",
         write("f", "")),
    Case("train: logs below a file", TRAIN_REGDB + " --log_path {place}/f/log",
         r"--log_path \S*f/log/\S+: cannot be written \(Not a dir.*; "
         "choose a folder that can", write("f", "")),
    Case("train: TensorBoard into /proc", TRAIN_REGDB + " --vis_log_path /proc/none",
         r"--vis_log_path /proc/none\S*: cannot be written"),
    Case("train: no room for a log", TRAIN_REGDB + " --log_path {place}/log",
         r"\S*log/regdb_log/\S+.txt: No space left on device; free",
         lambda place, world: ((place / "log/regdb_log").mkdir(parents=True), (
             place / "log/regdb_log" / f"{RUN.replace('base', 'cgrnet')}.txt").symlink_to("/dev/full")),
         logs=True),
    Case("train: disk full", TRAIN_REGDB + " --method base --model_path {place} --overwrite",
         rf"{RUN}_(best|last).t: cannot be written \(.*\); the previous checkpoint, if any, is intact",
         lambda place, world: [shutil.copy(path, place) for path in (world.last, world.best)],
         logs=True, file_size=5_000_000),
    Case("test: results into a file", TEST.replace("found", "{place}/f") + " {last}",
         r"--out \S*/f: cannot be written", write("f", "")),
    Case("test: features below a file", TEST + " {last} --save-features {place}/f/x.npz",
         r"--save-features \S*: cannot be written", write("f", "")),
    Case("demo: into a file", "demo.py --data-only --out {place}/f", r"--out \S*/f: cannot be written",
         write("f", "")),
    Case("demo: onto other data", "demo.py --data-only --out {place}",
         r"--out \S*: data of other settings found there; remove that folder",
         lambda place, world: shutil.copytree(world.sysu / "exp", place / "SYSU-MM01/exp")),
]

TABLE = [*FOLDERS, *CAMERAS, *ID_LISTS, *INDEX, *IMAGES, *ARRAYS, *CHECKPOINTS, *FLAGS, *OUTPUT]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in TABLE])
def test_a_fault_is_one_line(case, world, tmp_path):
    found = attempt(case, world, tmp_path / "place")
    assert found.status == case.status, (found.stdout, found.stderr)
    if case.status == 2:
        assert len(found.errors) == 1 and found.errors[0].startswith(f"{case.script}: error: "), found.stderr
        assert re.search(case.expected, found.errors[0]), found.errors[0]
    else:  # data_manager.py reports what it finds
        assert not found.errors and re.search(case.expected, found.stdout), found.stdout + found.stderr
    logs = re.compile(r"(cwd/)?log/regdb_log/\w[\w.]*\.(txt|jsonl)|cwd/log/sysu_log/\w[\w.]*\.txt|"
                      "cwd/log/vis_log/.*tfevents.*")
    kept = [name for name in found.written if not name.endswith(".lock")]
    assert [name for name in kept if not (case.logs and logs.fullmatch(name))] == []


# ------------------------------------------------------------------------- what is odd, and used all the same
def test_odd_id_lists_and_images_are_used_exactly(world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    (root / "exp/train_id.txt").write_bytes(b"\xef\xbb\xbf3, 1,\t2,\r\n\r\n")
    (root / "exp/val_id.txt").write_bytes(b"\n0004,")
    for name in ("Thumbs.db", ".DS_Store", "._0001.jpg", "desktop.ini"):
        for folder in (root, root / "cam1", root / "cam1/0001", root / "cam3/0002"):
            (folder / name).write_bytes(b"x")
    folder, picture = root / "cam1/0001", Image.open(root / "cam2/0001/0001.jpg")
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: the picture is upright after a quarter turn to the right
    picture.save(folder / "0001.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "0002.JPG")
    picture.quantize(8).save(folder / "0003 (copy).png", transparency=bytes([0, 100, 255]))
    picture.convert("LA").save(folder / "0004.png")
    picture.convert("L").save(folder / "0005.jpeg")
    translucent = picture.convert("RGBA")
    translucent.putalpha(7)
    translucent.save(folder / "0006.png")
    (folder / "0002.jpg").unlink()

    done = run(shlex.split(PRE.format(sysu=root)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"warning: --data-path {root}: 4 training persons found, "
                                        "395 published; 36 visible training images found, 22258 published; "
                                        "16 infrared training images found, 11909 published: "
                                        "not the whole data set",
                                        f"warning: --data-path {root}: 12 hidden or system files or folders "
                                        f"left out, the first {root}/cam1/.DS_Store"]
    found = np.load(root / "train_rgb_resized_img.npy")
    names = [path for pid in (1, 2, 3, 4) for camera in (1, 2, 4, 5)
             for path in sorted((root / f"cam{camera}/{pid:04d}").iterdir())
             if not path.name.startswith(".") and path.suffix not in (".db", ".ini")]
    assert len(names) == len(found) and [path.name for path in names[:2]] == ["0001.jpg", "0002.JPG"]
    for path, pixels in zip(names, found):
        opened = Image.open(path)
        upright = opened.transpose(Image.Transpose.ROTATE_270) if path == names[0] else opened
        flat = upright.convert("RGBA").convert("RGB") if opened.mode == "P" else upright.convert("RGB")
        np.testing.assert_array_equal(pixels, np.asarray(flat.resize((16, 32), Image.Resampling.LANCZOS)),
                                      err_msg=str(path))
    np.testing.assert_array_equal(np.load(root / "train_rgb_resized_label.npy"),
                                  [int(path.parent.name) - 1 for path in names])


def test_odd_index_files_are_used_exactly_and_surprises_are_warned_of(world, tmp_path):
    root = shutil.copytree(world.regdb, tmp_path / "RegDB")
    before = DATASETS["regdb"].train_split(str(root), 1)
    name, label = (root / LIST[6:]).read_text().splitlines()[0].split()
    (root / name).rename(root / name.replace("_1.bmp", "_ 1 of 4.bmp"))
    text = (root / LIST[6:]).read_text().replace("_1.bmp " + label, "_ 1 of 4.bmp\t" + label, 1)
    (root / LIST[6:]).write_bytes(b"\xef\xbb\xbf\r\n" + text.replace("\n", " \r\n\r\n").encode() + b"\t\r\n")
    infrared = [line for line in (root / OTHER[6:]).read_text().splitlines()
                if not re.search("_[234].bmp 1$", line)]
    (root / OTHER[6:]).write_text("\n".join(infrared))  # one infrared image is left of the person of label 1
    tests = [line for line in (root / "idx/test_thermal_1.txt").read_text().splitlines()
             if not line.endswith(" 2")]
    (root / "idx/test_thermal_1.txt").write_text("\n".join(tests))
    (root / "Visible/1/Thumbs.db").write_bytes(b"x")

    after = DATASETS["regdb"].train_split(str(root), 1)
    assert [path.replace("_ 1 of 4.bmp",
                         "_1.bmp") for path in after.visible.paths] == list(before.visible.paths)
    assert after.visible.pids.tolist() == before.visible.pids.tolist()
    assert len(after.infrared) == len(before.infrared) - 3
    done = run([*shlex.split(TRAIN_REGDB.format(regdb=root, small=shlex.join(SMALL))), "--method", "base",
                "--lr", "0.1", "--margin", "1e6", "--gpu", "1"], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train visible +4 +16\ntrain infrared +4 +13\nquery visible +4 +16\ngallery infrared "
                     r"+3 +12\n", done.stdout)
    assert done.stdout.count("best is chosen on the test images that it is reported on") == 1
    expected = [r"--gpu 1: no CUDA device here, running on the CPU \(--gpu cpu asks for that\)",
                r"--data-path \S+: 4 training persons found, 206 published; "
                "16 visible training images found, 2060 published; "
                "13 infrared training images found, 2060 published; 16 queries found, 2060 published; "
                "12 gallery images found, 2060 published: not the whole data set",
                r"--data-path \S+: 1 test person\(s\), the first 2, with images in one modality only: "
                "their queries are left out of the mean",
                "--epochs 1: --schedule step first lowers the rate in epoch 20, after the end of this run; "
                ".*",
                r"1 time\(s\) a person has fewer than --num_pos 2 images of a modality: "
                "its images repeat in a batch",
                r"epoch 1: the triplet loss stayed at its margin \(\S+\): features do not differ; "
                "lower --lr or use pretrained weights"]
    lines = done.stderr.splitlines()
    assert len([line for line in lines if "nearly identical" in line]) <= 1  # as they may be after two steps
    lines = [line for line in lines if "nearly identical" not in line]
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected):
        assert re.fullmatch("warning: " + pattern, line), line


def test_features_that_do_not_differ_and_a_best_file_are_warned_of(world, tmp_path):
    weights(bottleneck__running_mean=torch.full((512,), -1e4))(tmp_path, world)
    done = run([*shlex.split(TEST.format(regdb=world.regdb)), tmp_path / "x.t"], tmp_path)
    assert done.returncode == 0, done.stderr
    best, alike, counts = done.stderr.splitlines()
    assert re.fullmatch(r"warning: --resume \S+x.t: "
                        "a best file, chosen on the test images that it is reported on, .*", best)
    assert re.fullmatch(r"warning: all features are nearly identical \(.*\): "
                        r".*bnneck of visible images \(\d\.\d+\).*; .*", alike)
    assert counts == (f"warning: --data-path {world.regdb}: 16 queries found, 2060 published; "
                      "16 gallery images found, 2060 published: not the whole data set")


def test_features_that_differ_are_not_warned_of(capsys):
    from datasets.types import Features
    from features import require_finite, warn_of_alike
    rng = np.random.default_rng(0)
    feats = rng.normal(size=(20, 32)).astype(np.float32)
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    paths = tuple(f"{number}.jpg" for number in range(20))
    warn_of_alike({"visible": Features(paths, feats, feats)})
    warn_of_alike({"visible": Features(("1.jpg",), feats[:1], feats[:1])})
    assert capsys.readouterr().err == ""
    feats[3] = np.nan
    with pytest.raises(UserError, match="^3.jpg: its pool feature is not finite"):
        require_finite(Features(paths, feats, feats))


def test_an_indoor_search_needs_no_outdoor_camera(world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    remove("SYSU-MM01/cam4", "SYSU-MM01/cam5")(tmp_path, world)
    searches = DATASETS["sysu"].searches
    assert len(searches(str(root), mode="indoor", trials=[0])[0].gallery) == 4
    with pytest.raises(UserError, match="cam4: no such folder"):
        searches(str(root), mode="all", trials=[0])

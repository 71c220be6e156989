"""What the world throws at the scripts: each fault is one line on the real command line, no file changes."""
import os
import re
import shlex
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
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
CHECK = "data_manager.py"
RUN = "regdb_base_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_pretrained_none_trial_1"


@dataclass(frozen=True)
class Case:
    """A command line, a regular expression of its line, and what is done before to fresh copies of the data.

    logs: the fault shows only after the text log of the run was begun. file_size: the largest file that the
    system lets the command write, which is how a full disk is had.
    """

    name: str
    command: str
    expected: str
    change: Callable[[Path, SimpleNamespace], object] | None = None
    logs: bool = False
    file_size: int | None = None


def files_of(place: Path) -> dict[str, tuple]:
    """Every file below a folder, with what changes when it is written."""
    stats = {path: path.lstat() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {path.relative_to(place).as_posix(): (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            for path, stat in stats.items()}


def run(command: str, cwd: Path, file_size: int | None = None, **env: str):
    """A script as a user runs it."""
    words = shlex.split(command)
    return scripts.run([ROOT / words[0], *words[1:]], cwd, file_size=file_size, env=env)


@pytest.fixture(scope="session")
def world(once):
    """Small data sets, arrays, and a run of one epoch, made once and only read."""
    folder = once("world", make_world)
    last, best = (folder / "save_model" / f"{RUN}_{kind}.t" for kind in ("last", "best"))
    return SimpleNamespace(sysu=folder / "SYSU-MM01", regdb=folder / "RegDB", arrays=folder / "arrays",
                           last=last, best=best, content=torch.load(best, weights_only=True))


def make_world(folder: Path) -> None:
    """The data sets, and what the scripts make of them."""
    sysu = make_sysu(folder / "SYSU-MM01", train=3, val=1, test=2, images=2)
    regdb = make_regdb(folder / "RegDB")
    arrays = shutil.copytree(sysu, folder / "arrays")
    for command in (PRE.format(sysu=arrays),
                    TRAIN_REGDB.format(regdb=regdb, small=shlex.join(SMALL)) + " --method base"):
        done = run(command, folder)
        assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ the changes
def write(name: str, content: bytes | str) -> Callable:
    """Put other bytes into a file."""
    whole = content.encode() if isinstance(content, str) else content
    return lambda place, world: (place / name).write_bytes(whole)


def remove(*names: str) -> Callable:
    """Take files or folders away."""
    return lambda place, world: [shutil.rmtree(place / name) if (place / name).is_dir()
                                 else (place / name).unlink() for name in names]


def line(name: str, old: str, new: str) -> Callable:
    """Replace one piece of a text file."""
    def change(place: Path, world: SimpleNamespace) -> None:
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new, 1))
    return change


def keep_lines(name: str, end: str) -> Callable:
    """Keep the lines of a text file that end so."""
    return lambda place, world: (place / name).write_text(
        "".join(line for line in (place / name).read_text().splitlines(True) if line.endswith(f"{end}\n")))


def truncate(name: str, keep: float = 0.5) -> Callable:
    """Cut a file short."""
    return lambda place, world: os.truncate(place / name, int(keep * (place / name).stat().st_size))


def gif(name: str) -> Callable:
    """A GIF in the place of an image."""
    return lambda place, world: Image.new("RGB", (24, 48)).save(place / name, "GIF")


def checkpoint(**changes: object) -> Callable:
    """The weights of a run with some of the file's keys changed."""
    return lambda place, world: torch.save({**world.content, **changes}, place / "x.t")


def weights(**changes: object) -> Callable:
    """The weights of a run with some of them changed."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda place, world: checkpoint(net=world.content["net"] | changed)(place, world)


def arguments(**changes: object) -> Callable:
    """The weights of a run with some of the arguments that its file records changed."""
    return lambda place, world: checkpoint(args={**world.content["args"], **changes})(place, world)


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
    return lambda place, world: np.save(place / "arrays" / name, content(np.load(place / "arrays" / name)))


def both(*changes: Callable) -> Callable:
    """One change after the other."""
    return lambda place, world: [change(place, world) for change in changes]


# -------------------------------------------------------------------------------------------------- the table
FIRST = "SYSU-MM01/cam1/0001/0001.jpg"
LIST, OTHER = "RegDB/idx/train_visible_1.txt", "RegDB/idx/train_thermal_1.txt"
EVIL = (r"refused, it refers to \w+\.system, which could run code when loaded; .* expected; "
        "use a file from a source you trust")
TEST_SYSU = "test.py --gpu cpu --data-path {sysu} --resume {t} --out found"

DATA = [
    Case("pre: no such folder", "pre_process_sysu.py --data-path {place}/nowhere",
         r"--data-path \S*nowhere: no such file or folder found, SYSU-MM01 \(cam1, .*\) expected; put it"),
    Case("pre: an empty name", "pre_process_sysu.py --data-path ''", "--data-path: an empty name found"),
    Case("train: the other data set", "train.py --dataset regdb --data-path {sysu}",
         "--data-path .*: the folders cam1, .*, exp found, RegDB .* expected; .*, or change --dataset"),
    Case("train: no camera 6", TRAIN_SYSU, "cam6: no image of the persons on the lists; .*; restore them",
         remove("SYSU-MM01/cam6")),
    Case("pre: no infrared image of a person", PRE,
         "exp/train_id.txt and exp/val_id.txt: person 2 has no infrared image "
         r"\(1 of 4 persons have none\); both modalities expected for training; restore",
         remove("SYSU-MM01/cam3/0002", "SYSU-MM01/cam6/0002")),
    Case("pre: a person's folder of another name", PRE,
         "SYSU-MM01/cam2/2: a folder found for person 2, a folder of the name 0002 expected; rename",
         lambda place, world: (place / "SYSU-MM01/cam2/0002").rename(place / "SYSU-MM01/cam2/2")),
    Case("train: fewer persons than the batch", TRAIN_SYSU + " --batch-size 5",
         "--batch-size 5: 4 training persons found, .*give --batch-size 4 or less"),
    Case("train: one person", TRAIN_REGDB, "--batch-size 2: 1 training persons found, .*; add persons to "
         "the training lists, as a triplet needs two", both(keep_lines(LIST, " 0"), keep_lines(OTHER, " 0"))),
    Case("test: official gallery without its file", TEST_SYSU + " --gallery official",
         r"rand_perm_cam.mat: does not give the gallery of trial 0 \(no such file.*, or use --gallery random",
         both(arguments(dataset="sysu"), remove("SYSU-MM01/exp/rand_perm_cam.mat"))),
    Case("train: no query with a match", TRAIN_SYSU, "exp/test_id.txt, all-search: no query has a match in "
         r"the gallery: none of the \d+ infrared queries is compared with an image of the same person",
         remove(*(f"SYSU-MM01/cam{c}/0005" for c in (3, 6)),
                *(f"SYSU-MM01/cam{c}/0006" for c in (1, 2, 4, 5)))),
]

ID_LISTS = [Case(f"pre: id list: {what}", PRE, "exp/train_id.txt: " + expected, change)
            for what, expected, change in (
    ("missing", "no such file or folder, a text file expected", remove("SYSU-MM01/exp/train_id.txt")),
    ("blank", "nothing found, positive identity numbers separated by commas expected; restore the file",
     write("SYSU-MM01/exp/train_id.txt", "\r\n , ,\n")),
    ("zero", "'0' found", write("SYSU-MM01/exp/train_id.txt", "0,2,3")),
    ("control characters", r"'\\x1b\[2J' found", write("SYSU-MM01/exp/train_id.txt", "\x1b[2J,1")),
)] + [Case("pre: id list: training and test", PRE, "exp: identity 5 is in train_id.txt and in test_id.txt",
           write("SYSU-MM01/exp/train_id.txt", "5,1"))]

INDEX = [Case(f"train: list: {what}", TRAIN_REGDB, expected, change) for what, expected, change in (
    ("missing", "idx/train_thermal_1.txt: no such file or folder, a text file expected", remove(OTHER)),
    ("no label", r"train_visible_1.txt, line 1: '\S*v_\d_1.bmp' found, .* expected", line(LIST, " 0", "")),
    ("one image twice", r"train_visible_1.txt, line 2: '\S*_1.bmp 0' found, .*each image once",
     both(line(LIST, "_2.bmp", "_1.bmp"), line(LIST, "Visible/", "Visible/./"))),
    ("an absolute path", "train_visible_1.txt, line 1: '/Visible/.*' found", line(LIST, "Vis", "/Vis")),
    ("an image that is not there", r"train_visible_1.txt: names \S*/v_\d_9.bmp: no such file",
     line(LIST, "_1.bmp", "_9.bmp")),
    ("no infrared image of a person", "training lists of trial 1: person 0 has no infrared image",
     keep_lines(OTHER, " 1")),
)]

IMAGES = [Case(f"pre: image: {what}", PRE, "SYSU-MM01/cam1/0001/" + expected, change)
          for what, expected, change in (
    ("truncated", r"0001.jpg: cannot be decoded as an image \(.*[Tt]runcated.*\); remove or replace the file",
     truncate(FIRST, 0.9)),
    ("a GIF", r"0001.jpg: .*JPEG, PNG, BMP, TIFF, WEBP expected, \d+ bytes that begin with b'GIF8",
     gif(FIRST)),
    ("16-bit colour", r"0001.png: an image of mode RGB \(more than 8 bits",
     png_16_bit("SYSU-MM01/cam1/0001/0001.png")),
    ("a folder", "0003.jpg: a folder found among the images of a person, only .jpg, .*; restore it, convert",
     lambda place, world: (place / "SYSU-MM01/cam1/0001/0003.jpg").mkdir()),
    ("another suffix", "0003.gif: a file found among", gif("SYSU-MM01/cam1/0001/0003.gif")),
)] + [
    Case("train: a truncated image", TRAIN_REGDB, r"RegDB/Visible/\d/v_\d_1.bmp: cannot be decoded as an ima",
         both(*(truncate(f"RegDB/Visible/{pid}/v_{pid}_1.bmp") for pid in range(1, 9))), logs=True),
]

ARRAYS = [Case(f"train: array: {what}", TRAIN_SYSU.replace("sysu", "arrays"), "arrays/" + expected, change,
               logs=True) for what, expected, change in (
    ("truncated", r"train_rgb_resized_img.npy: not the expected array of uint8 \(32, 32, 16, 3\) .*; run: "
     r"python pre_process_sysu.py --data-path \S+ --img_w 16 --img_h 32",
     truncate("arrays/train_rgb_resized_img.npy")),
    ("objects", r"train_rgb_resized_img.npy: not the expected array .*[Oo]bject",
     array("train_rgb_resized_img.npy", lambda old: np.array([Bomb()], object))),
    ("other labels", "train_ir_resized_label.npy: labels found that are not those of the lists; run",
     array("train_ir_resized_label.npy", lambda old: old[::-1])),
    ("no manifest", "train_rgb_resized_img.npy: no train_resized_img.json with it",
     remove("arrays/train_resized_img.json")),
    ("another size", "train_resized_img.json: arrays of height 64 found, 32 expected; run",
     line("arrays/train_resized_img.json", '"height": 32', '"height": 64')),
)]

CHECKPOINTS = [Case(f"test: checkpoint: {what}", f"{TEST} {{t}}", r"--resume \S*/x.t: " + expected, change)
               for what, expected, change in (
    ("missing", "no such file; name a checkpoint", None),
    ("one that runs code", EVIL, checkpoint(bomb=Bomb())),
    ("a bare state dict", r"a bare state dict of \d+ tensors found, a checkpoint of train.py expected; use",
     lambda place, world: torch.save(world.content["net"], place / "x.t")),
    ("of a later version", "format 2 found, a checkpoint of train.py expected", checkpoint(format=2)),
    ("NaN", "bottleneck.running_var holds NaN or infinite values",
     weights(bottleneck__running_var=torch.full((512,), float("nan")))),
    ("other classes", r"classifier.weight has shape \(4, 512\), \(5, 512\)", checkpoint(num_classes=5)),
    ("of another method than it says", r"(lacks|has an unexpected) \S+ \(\d+ such\); the weights of agw on",
     arguments(method="agw")),
    ("of an unknown method", "method 'nonsense' found in it, one of base, agw, cgrnet, .* expected",
     arguments(method="nonsense")),
)] + [
    Case("test: another size", TEST + " {last} --img_w 32",
         "--img_w 32: the checkpoint .* was trained with --img_w 16; leave the flag out"),
    Case("test: another trial", TEST + " {last} --trial 2",
         "--trial 2: the checkpoint .* was trained on trial 1, .*--force-trial"),
    Case("train: begins with nothing that fits", TRAIN_REGDB + " --init {t}",
         r"--init \S*x.t: a dict with the keys conv, other lacks \S+ \(\d+ such\); the whole backbone",
         lambda place, world: torch.save({"conv": torch.ones(1), "other": 1}, place / "x.t")),
    Case("train: backbone of another kind", TRAIN_REGDB + " --pretrained {t}",
         r"--pretrained \S*x.t.* lacks conv1.weight; torchvision's state dict",
         lambda place, world: torch.save(world.content["net"], place / "x.t")),
]

FLAGS = [
    Case("demo: unknown flag", "demo.py --colour 1", r"unrecognized arguments: --colour 1 \(see \S+ --h"),
    *(Case(f"{script}: {flag} {value}", f"{script} {flag} {value}",
           rf"argument {flag}: '{value}' found, .* expected")
      for script, flag, value in (("demo.py", "--ids", "11"), ("train.py", "--lr", "nan"),
                                  ("test.py", "--trial", "11"))),
    Case("train: a flag of another data set", "train.py --trial 2",
         "--trial 2 belongs to RegDB, but the data set is sysu; leave it out"),
    Case("train: folders without a path", "train.py --dataset folders",
         "--dataset folders: no --data-path given; name the folder that holds train and test"),
    Case("train: arrays of RegDB", "train.py --dataset regdb --arrays x",
         "--arrays x belongs to SYSU-MM01 and LLCM, but the data set is regdb"),
    Case("train: two directions", "train.py --dataset regdb --tvsearch --direction v2i",
         "--tvsearch means --direction i2v, but"),
    Case("train: two beginnings", "train.py --resume {last} --init b.t",
         "--init b.t: the checkpoint .* was trained with --init None"),
    Case("train: two first weights", "train.py --pretrained a.t --init b.t",
         "--pretrained a.t and --init b.t both say"),
    Case("test: nothing to test", "test.py", "--resume: no checkpoint given; name one"),
    Case("test: features under another name", "test.py --resume {last} --save-features f.npy",
         "--save-features f.npy: .*ends in .npz"),
    Case("test: nine of ten trials", "test.py --resume {place}/_{{}}.t",
         r"--resume \S*_1.t: no such file; name a checkpoint for every"),
]

OUTPUT = [
    Case("pre: disk full, with arrays there", PRE.replace("sysu}", "arrays}"),
         r"--data-path \S*: .*File too large", file_size=20_000),
    Case("train: checkpoints into a file", TRAIN_REGDB + " --model_path {place}/f",
         r"--model_path \S*/f: cannot be written", write("f", "")),
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
    Case("demo: onto other data", "demo.py --data-only --out {place}",
         r"--out \S*: data of other settings found there; remove that folder",
         lambda place, world: shutil.copytree(world.sysu / "exp", place / "SYSU-MM01/exp")),
]

TABLE = [*DATA, *ID_LISTS, *INDEX, *IMAGES, *ARRAYS, *CHECKPOINTS, *FLAGS, *OUTPUT]
LOGS = re.compile(r"(cwd/)?log/regdb_log/\w[\w.]*\.(txt|jsonl)|cwd/log/sysu_log/\w[\w.]*\.txt|"
                  r"cwd/log/vis_log/.*tfevents.*")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in TABLE])
def test_a_fault_is_one_line_and_leaves_every_file_as_it_was(case, world, tmp_path):
    place = tmp_path / "place"
    (place / "cwd").mkdir(parents=True)
    words = {"place": place, "small": shlex.join(SMALL), "last": world.last, "t": place / "x.t"}
    for name, folder in (("sysu", world.sysu), ("arrays", world.arrays), ("regdb", world.regdb)):
        words[name] = place / folder.name
        if f"{{{name}}}" in case.command:
            shutil.copytree(folder, words[name], symlinks=True)
    if case.change is not None:
        case.change(place, world)
    before = files_of(place)
    done = run(case.command.format(**words), place / "cwd", case.file_size)
    after = files_of(place)
    shutil.rmtree(place)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(errors) == 1, (done.stdout, done.stderr)
    assert errors[0].startswith(f"{case.command.split()[0]}: error: "), errors
    assert re.search(case.expected, errors[0]), errors[0]
    written = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert [name for name in written if not (case.logs and LOGS.fullmatch(name))] == []


# ------------------------------------------------------------------------- what is odd, and used all the same
def test_odd_id_lists_and_images_are_used_exactly(world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    (root / "exp/train_id.txt").write_bytes(b"\xef\xbb\xbf3, 1,\t2,\r\n\r\n")
    (root / "exp/val_id.txt").write_bytes(b"\n0004,")
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

    done = run(PRE.format(sysu=root), tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.load(root / "train_rgb_resized_img.npy")
    names = [path for pid in (1, 2, 3, 4) for camera in (1, 2, 4, 5)
             for path in sorted((root / f"cam{camera}/{pid:04d}").iterdir())]
    assert len(names) == len(found) and [path.name for path in names[:2]] == ["0001.jpg", "0002.JPG"]
    for path, pixels in zip(names, found):
        opened = Image.open(path)
        upright = opened.transpose(Image.Transpose.ROTATE_270) if path == names[0] else opened
        flat = upright.convert("RGBA").convert("RGB") if opened.mode == "P" else upright.convert("RGB")
        np.testing.assert_array_equal(pixels, np.asarray(flat.resize((16, 32), Image.Resampling.LANCZOS)),
                                      err_msg=str(path))
    np.testing.assert_array_equal(np.load(root / "train_rgb_resized_label.npy"),
                                  [int(path.parent.name) - 1 for path in names])


def test_odd_index_files_are_used_exactly(world, tmp_path):
    root = shutil.copytree(world.regdb, tmp_path / "RegDB")
    before = DATASETS["regdb"].train_split(str(root), 1)
    name, label = (root / LIST[6:]).read_text().splitlines()[0].split()
    (root / name).rename(root / name.replace("_1.bmp", "_ 1 of 4.bmp"))
    text = (root / LIST[6:]).read_text().replace("_1.bmp " + label, "_ 1 of 4.bmp\t" + label, 1)
    (root / LIST[6:]).write_bytes(b"\xef\xbb\xbf\r\n" + text.replace("\n", " \r\n\r\n").encode() + b"\t\r\n")
    after = DATASETS["regdb"].train_split(str(root), 1)
    names = [path.replace("_ 1 of 4.bmp", "_1.bmp") for path in after.visible.paths]
    assert names == list(before.visible.paths)
    assert after.visible.pids.tolist() == before.visible.pids.tolist()


def test_features_that_do_not_differ_and_a_best_file_are_warned_of(world, tmp_path):
    weights(bottleneck__running_mean=torch.full((512,), -1e4))(tmp_path, world)
    done = run(f"{TEST.format(regdb=world.regdb)} {tmp_path}/x.t", tmp_path)
    assert done.returncode == 0, done.stderr
    best, alike, counts = done.stderr.splitlines()
    assert re.fullmatch(r"warning: --resume \S+x.t: "
                        "a best file, chosen on the test images that it is reported on, .*", best)
    assert re.fullmatch(r"warning: all features are nearly identical \(.*\): "
                        r".*bnneck of visible images \(\d\.\d+\).*; .*", alike)
    assert counts == (f"warning: --data-path {world.regdb}: 16 queries found, 2060 published; "
                      "16 gallery images found, 2060 published: not the whole data set")


def test_a_broken_matplotlib_is_found_before_a_test_and_out_stays_away(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (f"{TEST.format(regdb=world.regdb)} {world.last}", "search.py a.npz b.npz --out found"):
        done = run(command, tmp_path)
        assert done.returncode == 2 and not (tmp_path / "found").exists()
        assert "Matplotlib, which draws the figures, does not load" in done.stderr


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

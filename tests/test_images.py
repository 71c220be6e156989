"""What folders and files hold in real life: pipes, damaged metadata, drives that fail, thumbnails, lists."""
import errno
import io
import os
import shutil
import sys
import unicodedata
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import SMALL, save_image
from PIL import Image, ImageOps, PngImagePlugin

from data_manager import DATASETS
from datasets import images
from datasets.images import TooManyBits, read_image
from datasets.types import ImageSpec
from utils import UserError

SPEC = ImageSpec(24, 12)
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)


def expected(image):
    return np.asarray(image.convert("RGB").resize((12, 24), Image.Resampling.LANCZOS))


# ------------------------------------------------------------------------------------------ PNGs and metadata
def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


def png(*chunks, behind=False):
    """A PNG with more chunks behind its header, or behind its pixels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    data = file.getvalue()
    place = len(data) - 12 if behind else 33
    return data[:place] + b"".join(chunks) + data[place:]


LARGE = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("bad", [
    chunk(b"tEXt", b"Comment\0x", crc=1), chunk(b"zTXt", b"Comment\0\0not zlib"),
    chunk(b"zTXt", b"Comment\0\0" + LARGE), chunk(b"iCCP", b"x\0\0" + LARGE), chunk(b"gAMA", b""),
    chunk(b"eXIf", b"no tags"), chunk(b"tRNS", b"1", crc=2), chunk(b"caBX", b"x", crc=5)])
def test_a_png_of_whole_pixels_is_read_whatever_its_metadata(tmp_path, bad, behind):
    (tmp_path / "a.png").write_bytes(png(bad, behind=behind))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", SPEC), expected(Image.fromarray(PIXELS)))


def test_a_png_with_damaged_metadata_is_still_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(png(chunk(b"eXIf", exif.tobytes()[6:]), chunk(b"tEXt", b"x\0y", crc=1)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", SPEC),
                                  expected(Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.97])
def test_a_png_whose_pixels_are_not_whole_is_refused(tmp_path, cut):
    whole = png(chunk(b"tEXt", b"Comment\0x", crc=1))
    (tmp_path / "a.png").write_bytes(whole[:int(cut * len(whole))])
    with pytest.raises(UserError, match="a.png: cannot be decoded"):
        read_image(tmp_path / "a.png", SPEC)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("turn", range(10))
def test_images_are_turned_upright(tmp_path, kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(PIXELS).save(tmp_path / f"a.{kind}", exif=exif)
    with Image.open(tmp_path / f"a.{kind}") as image:
        found = expected(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{kind}", SPEC), found)


def test_a_jpeg_with_damaged_exif_is_read(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", SPEC), read_image(tmp_path / "b.jpg", SPEC))


# -------------------------------------------------------------- what was not read, what is no regular file
@pytest.mark.parametrize("error, said", [
    (OSError(errno.EIO, "Input/output error"), r"cannot be read \(Input/output error\); it may be sound"),
    (PermissionError(errno.EACCES, "Permission denied"), r"cannot be read \(Permission denied\)"),
    (MemoryError(), "too large for the free memory .*; use a smaller copy of the image, or fewer --workers"),
    (Image.DecompressionBombError("Image size (200000000 pixels) exceeds"), "exceeds.*; use a smaller copy")])
def test_nobody_is_told_to_remove_what_was_not_read(tmp_path, monkeypatch, error, said):
    (tmp_path / "a.png").write_bytes(png())
    for owner, name in ((images.Image, "open"), (PngImagePlugin.PngImageFile, "load")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, Mock(side_effect=error))
            with pytest.raises(UserError, match=said) as found:
                read_image(tmp_path / "a.png", SPEC)
        assert "remove or" not in str(found.value) and "decoded" not in str(found.value)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that the system fails to read")
def test_an_image_that_the_drive_does_not_give_stops_training_with_its_name(folders, script):
    image = folders / "train/visible/Ann/0.png"
    image.unlink()
    image.symlink_to("/proc/self/mem")  # a regular file whose first bytes are an input/output error
    done = script("train.py", "--dataset", "folders", "--data-path", folders, *SMALL)
    assert done.returncode == 2 and "remove or" not in done.stderr
    assert "Ann/0.png: cannot be read (Input/output error); it may be sound" in done.stderr


@pytest.mark.parametrize("put, said", [(os.mkfifo, "a named pipe"),
                                       (lambda path: path.symlink_to("/dev/zero"), "a device")])
def test_what_is_no_regular_file_is_named_and_never_waited_for(folders, script, put, said):
    image = folders / "train/visible/Ann/9.png"
    put(image)
    for name in (image, f"{image}#xywh=0,0,5,5"):
        with pytest.raises(UserError, match=f"9.png: {said}, an image file expected"):
            read_image(name, SPEC)
    done = script("train.py", "--dataset", "folders", "--data-path", folders, *SMALL)
    assert done.returncode == 2 and f"9.png: {said} found" in done.stderr
    assert script("data_manager.py", folders).returncode == 1
    image.rename(folders / "train/visible/Bob")  # in the place of a person, where it is only not used
    done = script("data_manager.py", folders)
    assert done.returncode == 0 and "visible: 1 file(s), the first Bob" in done.stdout


@pytest.mark.parametrize("name", ["exp/train_id.txt", "exp/rand_perm_cam.mat"])
def test_a_pipe_in_the_place_of_a_list_is_named(sysu, script, name):
    (sysu / name).unlink()
    os.mkfifo(sysu / name)
    done = script("test.py", "--resume", "x.t", "--dataset", "sysu", "--data-path", sysu)
    assert done.returncode == 2
    done = script("data_manager.py", sysu)
    assert done.returncode == (1 if name.endswith("id.txt") else 0) and Path(name).name in done.stdout


# ------------------------------------------------------------------------ what systems leave, lists, names
CLUTTER = ("@eaDir", "#recycle", "$RECYCLE.BIN", ".Trash-1000", "__MACOSX", "System Volume Information")


def test_thumbnails_and_recycle_bins_are_no_persons_and_no_images(folders, sysu, script):
    train = ("train.py", "--dataset", "folders", "--data-path", folders, *SMALL, "--epochs", 1)
    names = [split.sides[0].paths for split in [DATASETS["folders"].train_split(folders)]]
    for place in ("train/visible", "train/infrared", "test/visible", "train/visible/Ann"):
        for name in CLUTTER:
            save_image(folders / place / name / "Ann.png", [1])
            save_image(folders / place / name / "deep/0.png", [1])
        (folders / place / "._0.png").write_bytes(b"Mac")
    split = DATASETS["folders"].train_split(folders)
    assert [split.visible.paths] == names and len(list(split.left_out)) == 3 * 7
    done = script(*train)
    assert done.returncode == 0, done.stderr
    assert f"--data-path {folders}: 28 hidden or system files or folders left out, the first " in done.stderr
    for name in CLUTTER:
        for place in ("cam1", "cam3/0002", "cam2/0006"):
            save_image(sysu / place / name / "0001.jpg", [1])
    done = script("pre_process_sysu.py", "--data-path", sysu, "--img_w", 16, "--img_h", 32)
    assert done.returncode == 0 and "12 hidden or system files or folders left out" in done.stderr
    assert "80 visible and 40 infrared images of 5 persons" in done.stdout
    done = script("data_manager.py", sysu, "--all")
    assert done.returncode == 0 and "\n18 hidden or system files ignored\n" in done.stdout
    assert "FAULT" not in done.stdout and "not used" not in done.stdout


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_lists_are_read_by_their_byte_order_mark(regdb, sysu, encoding):
    before = DATASETS["regdb"].train_split(regdb), DATASETS["sysu"].train_split(sysu)
    for path in (*(regdb / "idx").glob("*.txt"), *(sysu / "exp").glob("*.txt")):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        path.write_bytes((mark + path.read_text().replace("\n", "\r\n")).encode(encoding))
    after = DATASETS["regdb"].train_split(regdb), DATASETS["sysu"].train_split(sysu)
    for old, new in zip(before, after):
        assert old.visible.paths == new.visible.paths and old.pids.tolist() == new.pids.tolist()


def test_a_list_in_another_encoding_is_refused_by_its_name(regdb):
    path = regdb / "idx/train_visible_1.txt"
    path.write_bytes(path.read_text().encode("utf-16-le"))  # no mark
    with pytest.raises(UserError, match=r"visible_1.txt: cannot be read as text \(zero bytes, as in UTF-16 "):
        DATASETS["regdb"].train_split(regdb)


@pytest.mark.parametrize("other", [unicodedata.normalize("NFD", "Bé"), "Bé ", "Bé\u200b", "B\u00adé",
                                   "\ufeffBé", "BÉ", "Bé\u00a0", "Bé\ufe01", "B\u3164é"])
def test_names_that_look_alike_are_not_two_persons(folders, script, other):
    shutil.copytree(folders / "train/visible/Ann", folders / "train/visible" / other)
    done = script("train.py", "--dataset", "folders", "--data-path", folders, *SMALL)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for name in ("Bé", other):
        assert ascii(name).replace("\\", "\\\\") in done.stderr.replace("\\", "\\\\")
    assert "names that look alike" in script("data_manager.py", folders).stdout


@pytest.mark.parametrize("name", ["0002 ", "0002\u200b", "2"])
def test_a_numbered_folder_that_looks_like_a_persons_is_refused(sysu, name):
    os.rename(sysu / "cam2/0002", sysu / "cam2" / name)
    with pytest.raises(UserError, match="a folder found for person 2, a folder of the name 0002 expected"):
        DATASETS["sysu"].train_split(sysu)


def test_persons_have_one_order_whatever_the_hash_seed(folders):
    for name in ("7", "07", "007"):
        for side in ("visible", "infrared"):
            shutil.copytree(folders / "train/visible/Ann", folders / "train" / side / name)
    split = DATASETS["folders"].train_split(folders)
    names = list(dict.fromkeys(Path(path).parent.name for path in split.visible.paths))
    assert names[:3] == ["007", "07", "7"]


# ---------------------------------------------------------------------------------------- more than 8 bits
def test_raw_values_become_8_bits_by_one_range(tmp_path):
    values = np.tile(np.array([0, 7000, 7100, 8000, 8999, 9000, 65535]), (14, 1))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(TooManyBits,
                       match=r"a.png: an image of mode I\S* \(more than 8 bits a channel\) found, 8 bits "
                       r"expected; .* give --range LOW HIGH, .* \(this one has 0 to 65535\)") as error:
        read_image(tmp_path / "a.png", ImageSpec(14, 7))
    assert (error.value.low, error.value.high) == (0, 65535)
    found = read_image(tmp_path / "a.png", ImageSpec(14, 7, (7000, 9000)))
    expected = np.clip(np.rint((values - 7000.0) * 255 / 2000), 0, 255)
    assert found.dtype == np.uint8 and np.array_equal(found, np.repeat(expected[..., None], 3, 2))
    assert found[0, :, 0].tolist() == [0, 0, 13, 128, 255, 255, 255]
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png", ImageSpec(9, 9, (7000, 9000))) == 7).all()  # of 8 bits already

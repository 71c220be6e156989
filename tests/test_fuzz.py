"""Parsers of what strangers hand over: any bytes give a valid result or one line, and never run code."""
import io
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from checkpoint import load_file
from datasets.arrays import load_npy
from datasets.files import parse_id_list, parse_index
from datasets.images import read_image
from datasets.types import ImageSpec
from utils import UserError

quick = settings(max_examples=150, deadline=None, database=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
# What a parser may stumble over: digits of other scripts, signs, separators of lines and words, zero bytes.
pieces = st.sampled_from(["1", "22", "0", "-1", "+2", "1e3", "2.0", "٣", "²", "1_0", ",", ",,", " ", "\t",
                          "\n", "\r\n", "\r", "\x00", "\x0b", "\u2028", "\ufeff", "a.bmp", "Visible/1/a.bmp",
                          "../", "/", "\\", "\x1b[2J", "9" * 12, "9" * 5000])
text = st.one_of(st.lists(pieces, max_size=20).map("".join), st.text(max_size=60))
content = st.one_of(text.map(lambda s: s.encode("utf-8", "surrogatepass")), st.binary(max_size=60))


def parsed(parse, path, data):
    """What a parser makes of these bytes: its result, or None after an error of one line naming the file."""
    path.write_bytes(data)
    try:
        return parse(path)
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return None


@st.composite
def mutations(draw, data):
    """Some bytes of which a few are replaced, taken out, put in or cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=8))
    return bytes(data[:draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@quick
@given(st.one_of(content, mutations(b"1, 22,333\r\n,")))
@example(b"\xef\xbb\xbf1,2\r\n")
@example(b"9" * 5000)
def test_any_id_list_gives_its_numbers_or_one_line(tmp_path, data):
    found = parsed(parse_id_list, tmp_path / "train_id.txt", data)
    if found is not None:
        assert found and found == sorted(set(found)) and all(0 < pid < 10 ** 9 for pid in found)
        numbers = [int(word) for word in data.decode("utf-8-sig").replace("\n", ",").split(",")
                   if word.strip().isdecimal()]
        assert set(numbers) <= set(found)  # nothing is lost


@quick
@given(st.one_of(content, mutations(b"Visible/1/a b.bmp\t0\r\n\nVisible/2/c.bmp 11\n")))
@example(b"a.bmp 1\na.bmp 2\n")
@example(b"/etc/passwd 1\n")
def test_any_list_of_images_gives_its_entries_or_one_line(tmp_path, data):
    found = parsed(parse_index, tmp_path / "train_visible_1.txt", data)
    if found is not None:
        assert found and len({path for path, _ in found}) == len(found)
        assert all(0 <= label < 10 ** 9 and not os.path.isabs(path) for path, label in found)
        lines = data.decode("utf-8-sig").splitlines()
        assert len(found) == sum(bool(line.strip()) for line in lines)  # nothing is lost


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@quick
@given(mutations(npy(np.arange(6).reshape(3, 2))))
@example(b"PK\x03\x04")
@example(npy(np.arange(6, dtype=np.float64).reshape(3, 2)))
@example(npy(np.arange(5)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_npy_gives_its_numbers_or_one_line(tmp_path, data):
    found = parsed(lambda path: load_npy(path, (3, 2), np.int64, "run: it again"), tmp_path / "x.npy", data)
    assert found is None or (type(found), found.shape, found.dtype) == (np.ndarray, (3, 2), np.int64)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("make", [lambda bomb: npy(np.array([[bomb, 1]] * 3, object), allow_pickle=True),
                                  pickle.dumps], ids=["objects", "pickle"])
def test_a_npy_is_never_unpickled(tmp_path, make):
    data = make(Bomb(tmp_path / "ran"))
    assert parsed(lambda path: load_npy(path, (3, 2), np.int64, ""), tmp_path / "x.npy", data) is None
    assert not (tmp_path / "ran").exists()


def checkpoint_bytes(zipped):
    file = io.BytesIO()
    torch.save({"net": {"a": torch.arange(3.0)}, "mAP": np.float64(0.5), "cmc": np.arange(2.0)}, file,
               _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@quick
@given(st.one_of(*(mutations(checkpoint_bytes(zipped)) for zipped in (False, True))))
def test_any_checkpoint_gives_its_content_or_one_line(tmp_path, data):
    parsed(lambda path: load_file(path, "--resume"), tmp_path / "x.t", data)


def picture(kind):
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation
    image.save(file, kind, **({"exif": exif} if kind in ("jpeg", "png") else {}))
    return file.getvalue()


@quick
@given(st.one_of(*(mutations(picture(kind)) for kind in ("jpeg", "png", "bmp"))))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_image_gives_pixels_or_one_line(tmp_path, data):
    found = parsed(lambda path: read_image(path, ImageSpec(16, 8)), tmp_path / "0001.jpg", data)
    assert found is None or (found.shape, found.dtype) == ((16, 8, 3), np.uint8)

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
pids = st.lists(st.integers(1, 10 ** 9 - 1), min_size=1, max_size=30, unique=True)
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
def mutations(draw, valid):
    """Valid bytes with a few of them replaced, taken out, put in or cut off."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=8))
    return bytes(data[:draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


# --------------------------------------------------------------------------------------------------- id lists
@quick
@given(st.one_of(content, mutations(pids.map(lambda ids: ",".join(map(str, ids)).encode()))))
@example(b"")
@example(b"\xef\xbb\xbf1,2\r\n")
@example(b"9" * 5000)
def test_any_id_list_gives_numbers_or_one_line(tmp_path, data):
    found = parsed(parse_id_list, tmp_path / "train_id.txt", data)
    if found is not None:
        assert found and found == sorted(set(found))
        assert all(type(pid) is int and 0 < pid < 10 ** 9 for pid in found)
        numbers = [int(word) for word in data.decode("utf-8-sig").replace("\n", ",").split(",")
                   if word.strip().isdecimal()]
        assert set(numbers) <= set(found)  # nothing is lost


@quick
@given(pids, st.sampled_from([",", ", ", " ,", ",\n", ",\r\n", "\n"]),
       st.sampled_from(["", "\n", ",", ",\r\n", "\n\n"]), st.booleans())
def test_id_lists_come_back(tmp_path, ids, separator, end, mark):
    data = (separator.join(map(str, ids)) + end).encode("utf-8-sig" if mark else "utf-8")
    assert parsed(parse_id_list, tmp_path / "train_id.txt", data) == sorted(ids)


# -------------------------------------------------------------------------------------------------- idx files
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\"),
                min_size=1,
                max_size=8).filter(
                    lambda name: name.strip(".") == name)
paths = st.lists(names, min_size=1, max_size=3).map("/".join).map(lambda path: path + " of.bmp")
entries = st.lists(st.tuples(paths, st.integers(0, 10 ** 9 - 1)), min_size=1, max_size=10,
                   unique_by=lambda entry: entry[0])


def as_text(listed, separator=" ", end="\n"):
    return "".join(f"{path}{separator}{label}{end}" for path, label in listed).encode()


@quick
@given(st.one_of(content, mutations(entries.map(as_text))))
@example(b"a.bmp 1\na.bmp 2\n")
@example(b"/etc/passwd 1\n")
@example(b"a/../../b 1\n")
def test_any_index_gives_entries_or_one_line(tmp_path, data):
    found = parsed(parse_index, tmp_path / "train_visible_1.txt", data)
    if found is not None:
        assert found and len({path for path, _ in found}) == len(found)
        for path, label in found:
            assert type(label) is int and 0 <= label < 10 ** 9
            assert not os.path.isabs(path)
        lines = data.decode("utf-8-sig").splitlines()
        assert len(found) == sum(bool(line.strip()) for line in lines)  # nothing is lost


@quick
@given(entries, st.sampled_from([" ", "\t", "  ", " \t"]),
       st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\t\r\n"]))
def test_indices_come_back(tmp_path, listed, separator, end):
    assert parsed(parse_index, tmp_path / "train_visible_1.txt", as_text(listed, separator, end)) == listed


# ------------------------------------------------------------------------------------------------- .npy files
SHAPE = (3, 2)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text):
    """A .npy with this text for a header, and the numbers of an array behind it."""
    body = text.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY" + bytes((1, 0)) + len(body).to_bytes(2, "little") + body + bytes(48)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def load(path):
    return load_npy(path, SHAPE, np.int64, "run: it again")


wild = st.sampled_from(["{'descr': '<i8', 'fortran_order': False, 'shape': (3, 2), }",
                        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 2), }",
                        "{'descr': '<i8', 'fortran_order': False, 'shape': (-3, -2), }",
                        "{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999, 99999), }",
                        "{'descr': [('a', '|O')], 'fortran_order': 0, 'shape': ()}", "[" * 3000, "lambda: 0"])


@quick
@given(st.one_of(mutations(st.just(npy(np.arange(6).reshape(SHAPE)))), mutations(wild.map(header)),
                 wild.map(header), st.binary(max_size=20).map(lambda data: b"PK\x03\x04" + data)))
@example(npy(np.arange(6, dtype=np.float64).reshape(SHAPE)))
@example(npy(np.arange(5)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_npy_gives_its_numbers_or_one_line(tmp_path, data):
    found = parsed(load, tmp_path / "x.npy", data)
    if found is not None:
        assert type(found) is np.ndarray and found.shape == SHAPE and found.dtype == np.int64
        found.sum()


@pytest.mark.parametrize("make", [lambda bomb: npy(np.array([[bomb, 1]] * 3, object), allow_pickle=True),
                                  pickle.dumps,
                                  lambda bomb: npy(np.array([(bomb,)], [("a", "O")]), allow_pickle=True)],
                         ids=["objects", "pickle", "fields"])
def test_a_npy_is_never_unpickled(tmp_path, make):
    assert parsed(load, tmp_path / "x.npy", make(Bomb(tmp_path / "ran"))) is None
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ checkpoints
def checkpoint_bytes(zipped):
    file = io.BytesIO()
    torch.save({"net": {"a": torch.arange(3.0)}, "mAP": np.float64(0.5), "cmc": np.arange(2.0)}, file,
               _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@quick
@given(st.booleans().flatmap(lambda zipped: mutations(st.just(checkpoint_bytes(zipped)))))
def test_any_checkpoint_gives_its_content_or_one_line(tmp_path, data):
    parsed(lambda path: load_file(path, "--resume"), tmp_path / "x.t", data)


# ----------------------------------------------------------------------------------------------------- images
def picture(kind):
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation
    image.save(file, kind, **({"exif": exif} if kind in ("jpeg", "png") else {}))
    return file.getvalue()


@quick
@given(st.sampled_from(["jpeg", "png", "bmp"]).flatmap(lambda kind: mutations(st.just(picture(kind)))))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_image_gives_pixels_or_one_line(tmp_path, data):
    found = parsed(lambda path: read_image(path, ImageSpec(16, 8)), tmp_path / "0001.jpg", data)
    assert found is None or (found.shape, found.dtype) == ((16, 8, 3), np.uint8)

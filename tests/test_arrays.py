"""The manifest of pre-processed arrays speaks for the files that they were made from."""
import builtins
import json
import os

import numpy as np
import pytest

from data_manager import DATASETS
from datasets import arrays
from utils import UserError

COMMAND = ("pre_process_sysu.py", "--img_w", 16, "--img_h", 32, "--workers", 1, "--data-path")


@pytest.fixture
def opened(monkeypatch):
    """The images that are opened from now on."""
    names, plain_open = [], builtins.open

    def watched(file, *args, **kwargs):
        if str(file).endswith(".jpg"):
            names.append(str(file))
        return plain_open(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", watched)
    return names


def split_of(root):
    return DATASETS["sysu"].train_split(root)


def load(root):
    """What a start of training does with arrays: their pixels, and the fingerprint of the data."""
    split = split_of(root)
    marks = arrays.marks(split, root)
    return arrays.open_arrays(split, root, 32, 16, marks), arrays.fingerprint(split, root, marks)


def test_unchanged_files_are_not_opened(sysu, script, opened):
    split = split_of(sysu)
    before = arrays.fingerprint(split, sysu, arrays.marks(split, sysu))
    assert len(opened) == len(set(opened)) == 5 * 6 * 4  # no manifest yet: each once
    assert script(*COMMAND, sysu).returncode == 0
    opened.clear()
    _, after = load(sysu)
    assert opened == [] and after == before


def test_a_file_of_another_time_is_read_again(sysu, script, opened):
    assert script(*COMMAND, sysu).returncode == 0
    _, before = load(sysu)
    image = sysu / "cam1/0001/0002.jpg"
    os.utime(image, ns=(0, 1_600_000_000_000_000_000))
    _, after = load(sysu)
    assert opened == [str(image)] and after == before  # the same bytes: still the same data


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file_is_found_out(sysu, script, same_size):
    assert script(*COMMAND, sysu).returncode == 0
    _, before = load(sysu)
    image = sysu / "cam3/0002/0001.jpg"
    content, status = image.read_bytes(), image.stat()
    image.write_bytes(content[:-9] + b"\0" * (9 if same_size else 10))
    if not same_size:  # as copies that keep times leave it
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="cam3/0002/0001.jpg differs.*run: python pre_process_sysu.py"):
        load(sysu)
    split = split_of(sysu)
    assert arrays.fingerprint(split, sysu, arrays.marks(split, sysu)) != before


def test_a_manifest_without_times_is_used_as_before(sysu, script, opened):
    assert script(*COMMAND, sysu).returncode == 0
    path = sysu / arrays.MANIFEST
    content = json.loads(path.read_text())
    assert {len(times) for times in content.pop("modified").values()} == {80, 40}
    path.write_text(json.dumps(content, indent=1))
    found, _ = load(sysu)
    assert len(opened) == 5 * 6 * 4 and found["visible"][0].shape == (80, 32, 16, 3)


@pytest.mark.parametrize("modified",
                         [None, [], {"visible": None}, {"visible": ["x"] * 80}, {"other": [1]}, 7])
def test_times_that_are_none_are_not_believed(sysu, script, opened, modified):
    assert script(*COMMAND, sysu).returncode == 0
    path = sysu / arrays.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "modified": modified}))
    assert load(sysu)[0] and len(opened) == 5 * 6 * 4


def test_the_fingerprint_is_that_of_earlier_checkpoints(tmp_path):
    """Of modality, path, size, checksum and pid, as every checkpoint holds it."""
    from datasets.types import Images, TrainSplit
    paths = [tmp_path / name for name in ("a b.jpg", "é.jpg")]
    paths[0].write_bytes(bytes(range(256)) * 50)
    paths[1].write_bytes(b"x")
    split = TrainSplit(*(Images((str(path),), np.array([7]), np.array([1]), modality)
                         for path, modality in zip(paths, ("visible", "infrared"))), np.array([7]))
    marks = arrays.marks(split, tmp_path)
    assert arrays.listing(split, tmp_path, marks) == {"visible": ["a b.jpg 12800-3f962478"],
                                                      "infrared": ["é.jpg 1-1c9bea0a"]}
    assert arrays.fingerprint(split, tmp_path, marks) == (
        "814c49da9bb76f0119fc728664e03de7d3aeac60f3d9764349485e53f9ebc54a")

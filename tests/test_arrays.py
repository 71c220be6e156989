"""Pre-processing, and how its arrays are known: by settings, and by names and sizes of the images."""
import builtins
import json
import os
import platform
import signal

import numpy as np
import pytest

from data_manager import DATASETS
from datasets import arrays, preprocess
from datasets.images import read_image
from datasets.types import Images, ImageSpec, TrainSplit
from utils import UserError

SPEC = ImageSpec(32, 16)
COMMAND = ("pre_process_sysu.py", "--img_w", 16, "--img_h", 32, "--data-path")
WHOLE = {arrays.MANIFEST, *(f"train_{side}_resized_{kind}.npy" for side in ("rgb", "ir")
                            for kind in ("img", "label"))}


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


def written(root):
    """What pre-processing leaves in a folder."""
    return {path.name for path in root.iterdir() if path.is_file()}


def require_whole(root):
    assert written(root) == WHOLE
    split = split_of(root)
    for modality, pixels in arrays.open_arrays(split, root, SPEC).items():
        expected = [read_image(path, SPEC) for path in getattr(split, modality).paths]
        np.testing.assert_array_equal(pixels, np.stack(expected))


def test_a_start_with_arrays_opens_no_image_and_knows_the_same_data(sysu, script, opened):
    before = arrays.fingerprint(split_of(sysu), sysu)
    assert len(opened) == len(set(opened)) == 5 * 6 * 4  # without arrays, each once
    assert script(*COMMAND, sysu, "--workers", 3).returncode == 0
    opened.clear()
    assert arrays.fingerprint(split_of(sysu), sysu) == before
    arrays.open_arrays(split_of(sysu), sysu, SPEC)
    assert opened == []
    require_whole(sysu)


def test_the_fingerprint_is_that_of_earlier_checkpoints(tmp_path):
    """Of modality, path, size, checksum and pid, as every checkpoint holds it."""
    paths = [tmp_path / name for name in ("a b.jpg", "é.jpg")]
    paths[0].write_bytes(bytes(range(256)) * 50)
    paths[1].write_bytes(b"x")
    split = TrainSplit(*(Images((str(path),), np.array([7]), np.array([1]), modality)
                         for path, modality in zip(paths, ("visible", "infrared"))), np.array([7]))
    assert arrays.list_checksums(split, tmp_path) == {"visible": ["a b.jpg 12800-3f962478"],
                                                      "infrared": ["é.jpg 1-1c9bea0a"]}
    assert arrays.fingerprint(split, tmp_path) == (
        "814c49da9bb76f0119fc728664e03de7d3aeac60f3d9764349485e53f9ebc54a")


def grow(root):
    with open(root / "cam3/0002/0001.jpg", "ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("change, said", [
    (grow, "cam3/0002/0001.jpg differs"),
    (lambda root: os.rename(root / "cam3/0002/0001.jpg", root / "cam3/0002/0011.jpg"),
     "cam3/0002/00.1.jpg differs"),
    (lambda root: os.remove(root / "cam3/0002/0001.jpg"), "from 40 infrared images, .* now give 39")])
def test_other_images_than_the_arrays_are_refused_by_name(sysu, script, change, said):
    assert script(*COMMAND, sysu, "--workers", 0).returncode == 0
    before = arrays.fingerprint(split_of(sysu), sysu)
    change(sysu)
    assert arrays.fingerprint(split_of(sysu), sysu) != before
    with pytest.raises(UserError, match=f"(?s){said}.*; run: python pre_process_sysu.py"):
        arrays.open_arrays(split_of(sysu), sysu, SPEC)


def test_arrays_of_earlier_versions_are_used(sysu, script, opened):
    """Their manifest also had the time of each image."""
    assert script(*COMMAND, sysu).returncode == 0
    path = sysu / arrays.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "modified": {"visible": [1]}}))
    opened.clear()
    assert arrays.open_arrays(split_of(sysu), sysu, SPEC)["visible"].shape == (80, 32, 16, 3)
    assert arrays.fingerprint(split_of(sysu), sysu) and opened == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_pre_processing_leaves_nothing_behind(sysu, script, monkeypatch, there, signum):
    if there:
        assert script(*COMMAND, sysu).returncode == 0
    plain_read = preprocess.read_images

    def read(*args, **kwargs):
        plain_read(*args, **kwargs)
        signal.raise_signal(signum)

    monkeypatch.setattr(preprocess, "read_images", read)
    assert script(*COMMAND, sysu).returncode == 128 + signum
    assert written(sysu) == (WHOLE if there else set())
    if there:
        require_whole(sysu)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, nothing says whether a process is alive")
def test_what_a_killed_pre_processing_left_is_removed_and_a_living_ones_stays(sysu, script):
    node = platform.node()
    for name in (f"rgb_resized_img.{node}-{2 ** 22 + 1}", "ir_resized_img"):  # dead, and of earlier versions
        (sysu / f".train_{name}.part").touch()
    kept = {f".train_rgb_resized_img.{node}-1.part", ".train_rgb_resized_img.another-host-7.part"}
    for name in kept:
        (sysu / name).touch()
    assert script(*COMMAND, sysu).returncode == 0
    assert written(sysu) == WHOLE | kept


@pytest.mark.parametrize("number", [1, 3, 5])
def test_arrays_half_renamed_are_never_used(sysu, script, monkeypatch, number):
    assert script(*COMMAND, sysu, "--img_h", 64).returncode == 0
    calls, plain_replace = [], os.replace

    def replace(*paths):
        calls.append(paths)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        plain_replace(*paths)

    monkeypatch.setattr(os, "replace", replace)
    assert script(*COMMAND, sysu).returncode == 130
    monkeypatch.setattr(os, "replace", plain_replace)
    with pytest.raises(UserError,
                       match="found without train_resized_img.json, .*; run: python pre_process_sysu.py"):
        arrays.open_arrays(split_of(sysu), sysu, SPEC)
    assert script(*COMMAND, sysu).returncode == 0
    require_whole(sysu)


@pytest.mark.parametrize("name", [arrays.MANIFEST, "train_rgb_resized_img.npy"])
def test_a_pipe_in_the_place_of_an_array_is_not_waited_for(sysu, script, name):
    assert script(*COMMAND, sysu).returncode == 0
    (sysu / name).unlink()
    os.mkfifo(sysu / name)
    assert arrays.fingerprint(split_of(sysu), sysu)
    with pytest.raises(UserError, match="run: python pre_process_sysu.py"):
        arrays.open_arrays(split_of(sysu), sysu, SPEC)


def test_each_script_of_pre_processing_is_called_after_its_data_set():
    for name, data in DATASETS.items():
        assert data.arrays is None or data.arrays.script == f"pre_process_{name}.py"

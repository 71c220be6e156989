"""Pre-processing, and how its arrays are known: by settings, and by names and sizes of the images."""
import builtins
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from conftest import SMALL, make_llcm

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
    path = sysu / arrays.MANIFEST  # that of earlier versions also had the time of each image
    path.write_text(json.dumps({**json.loads(path.read_text()), "modified": {"visible": [1]}}))
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
    assert arrays.manifest(split, tmp_path, SPEC)["images"] == {"visible": ["a b.jpg 12800-3f962478"],
                                                                "infrared": ["é.jpg 1-1c9bea0a"]}
    assert arrays.fingerprint(split, tmp_path) == (
        "814c49da9bb76f0119fc728664e03de7d3aeac60f3d9764349485e53f9ebc54a")


@pytest.mark.parametrize("change, said", [
    (lambda root: os.truncate(root / "cam3/0002/0001.jpg", 9), "cam3/0002/0001.jpg differs"),
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
    assert written(sysu) == (WHOLE if there else set()) and not list(sysu.glob(".*"))
    if there:
        require_whole(sysu)


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
    with pytest.raises(UserError, match="no train_resized_img.json with it, .*; run: python pre_process_"):
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


def test_what_pre_processing_replaces_and_what_a_killed_one_left_is_said(script, sysu):
    np.save(sysu / "train_rgb_resized_img.npy", np.zeros(3))  # as other code of this field does
    (sysu / ".pre_process_x").mkdir()
    done = script(*COMMAND, sysu)
    assert done.returncode == 0
    assert re.search("train_rgb_resized_img.npy: without .*, so made by other code or cut short; "
                     r"will be replaced \(--arrays DIR", done.stderr)
    assert ".pre_process_x: of a pre-processing that runs, or that was killed; if none " in done.stderr
    assert "will be replaced" not in script(*COMMAND, sysu).stderr


def test_arrays_in_a_folder_of_their_own(script, sysu, tmp_path):
    train = ("train.py", "--data-path", sysu, "--epochs", 1, *SMALL, "--arrays", tmp_path / "arrays")
    lacking = script(*train)
    command = re.search(r"--arrays \S+: no train_resized_img.json .*; run: python (.*)", lacking.stderr)[1]
    assert lacking.returncode == 2 and script(*command.split()).returncode == 0
    assert not list(sysu.glob("*.npy")) and len(list((tmp_path / "arrays").glob("*.npy"))) == 4
    other = make_llcm(tmp_path / "LLCM")
    mixed = script("pre_process_llcm.py", "--data-path", other, "--arrays", tmp_path / "arrays")
    assert mixed.returncode == 2 and "of another data set found" in mixed.stderr
    for folder in sysu.glob("cam*/0001"):  # training reads none of its images
        for image in folder.iterdir():
            image.write_bytes(bytes(image.stat().st_size))
    assert script(*train).returncode == 0
    shutil.rmtree(tmp_path / "arrays")

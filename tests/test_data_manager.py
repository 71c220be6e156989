"""Splits and protocols against the rules as the field states them."""
import os
import random

import numpy as np
import pytest
from conftest import make_sysu

from data_manager import (DATASETS, process_gallery_sysu, process_query_sysu, process_test_regdb, recognise, sysu_protocols)
from utils import UserError


def test_sysu_training_split(sysu):
    split = DATASETS["sysu"].train_split(str(sysu), 1)
    assert split.pids.tolist() == [1, 2, 3, 4, 5]
    assert (len(split.visible), len(split.infrared)) == (5 * 4 * 4, 5 * 2 * 4)
    assert set(split.visible.camids.tolist()) == {1, 2, 4, 5} and set(split.infrared.camids.tolist()) == {3, 6}
    for side in (split.visible, split.infrared):
        for path, pid, camid, label in zip(side.paths, side.pids, side.camids, split.labels(side.modality)):
            assert f"cam{camid}{os.sep}{pid:04d}{os.sep}" in path and split.pids[label] == pid


@pytest.mark.parametrize("mode, cameras", [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
@pytest.mark.parametrize("trial", [0, 3])
def test_random_gallery_is_the_draw_of_the_global_generator(sysu, mode, cameras, trial):
    before = random.getstate()
    paths, pids, camids = process_gallery_sysu(str(sysu), mode, trial)
    assert random.getstate() == before
    random.seed(trial)
    expected = []
    for pid in (6, 7, 8):
        for camera in cameras:
            folder = sysu / f"cam{camera}" / f"{pid:04d}"
            expected.append(random.choice([str(folder / name) for name in sorted(os.listdir(folder))]))
    random.setstate(before)
    assert paths == expected
    assert pids.tolist() == np.repeat([6, 7, 8], len(cameras)).tolist() and camids.tolist() == list(cameras) * 3


def test_multi_shot_takes_ten_or_all(tmp_path):
    root = str(make_sysu(tmp_path / "few", images=4))
    assert len(process_gallery_sysu(root, shot=10)[0]) == len(set(process_gallery_sysu(root, shot=10)[0])) == 3 * 4 * 4
    root = str(make_sysu(tmp_path / "many", train=1, val=1, test=1, images=12))
    paths = process_gallery_sysu(root, shot=10)[0]
    assert len(paths) == len(set(paths)) == 4 * 10
    assert process_gallery_sysu(root, shot=10, trial=1)[0] != paths


@pytest.mark.parametrize("shot", [1, 10])
@pytest.mark.parametrize("trial", [0, 9])
def test_official_gallery_follows_the_permutations(sysu, shot, trial):
    paths, _, _ = process_gallery_sysu(str(sysu), "all", trial, shot, "official")
    expected = []
    for pid in (6, 7, 8):
        for camera in (1, 2, 4, 5):
            rng = np.random.default_rng([camera - 1, pid - 1])
            numbers = [rng.permutation(4) + 1 for _ in range(10)][trial][:shot]
            expected += [str(sysu / f"cam{camera}" / f"{pid:04d}" / f"{n:04d}.jpg") for n in numbers]
    assert paths == expected


def test_official_gallery_without_its_file_or_image(sysu):
    numbers = process_gallery_sysu(str(sysu), gallery="official")[0]
    os.rename(numbers[0], numbers[0].replace(os.path.basename(numbers[0]), "0099.jpg"))
    with pytest.raises(UserError, match="names image .*, which is not there"):
        process_gallery_sysu(str(sysu), gallery="official")
    (sysu / "exp/rand_perm_cam.mat").write_bytes(b"not a matrix")
    with pytest.raises(UserError, match="not the data set's rand_perm_cam.mat"):
        process_gallery_sysu(str(sysu), gallery="official")
    (sysu / "exp/rand_perm_cam.mat").unlink()
    with pytest.raises(UserError, match="no such file, needed by --gallery official"):
        process_gallery_sysu(str(sysu), gallery="official")


def test_queries(sysu):
    paths, pids, camids = process_query_sysu(str(sysu), "all")
    assert len(paths) == 3 * 2 * 4 and set(camids.tolist()) == {3, 6} and set(pids.tolist()) == {6, 7, 8}
    assert paths == process_query_sysu(str(sysu), "indoor")[0]


def test_directions_turn_everything_together(sysu):
    there, back = (sysu_protocols(str(sysu), direction=d, trials=[0])[0] for d in ("i2v", "v2i"))
    assert (there.query.modality, there.gallery.modality, there.exclude) == ("infrared", "visible", ((3, 2),))
    assert (back.query.modality, back.gallery.modality, back.exclude) == ("visible", "infrared", ((2, 3),))
    assert set(back.query.camids.tolist()) == {1, 2, 4, 5} and len(back.query) == 3 * 4 * 4
    assert set(back.gallery.camids.tolist()) == {3, 6} and len(back.gallery) == 3 * 2
    indoor = sysu_protocols(str(sysu), direction="v2i", mode="indoor", trials=[0])[0]
    assert set(indoor.query.camids.tolist()) == {1, 2}


def test_regdb_protocols(regdb):
    for trial in (1, 10):
        search = DATASETS["regdb"].protocols(str(regdb), direction="v2i", trials=[trial])[0]
        assert (search.query.modality, search.gallery.modality, search.exclude) == ("visible", "infrared", ())
        assert len(search.query) == len(search.gallery) == 16
        names, labels = process_test_regdb(str(regdb), trial, "thermal")
        assert tuple(names) == search.gallery.paths and labels.tolist() == search.gallery.pids.tolist()
        train = DATASETS["regdb"].train_split(str(regdb), trial)
        assert not set(train.visible.paths) & set(search.query.paths)


def test_layouts_are_told_apart(sysu, regdb, tmp_path):
    assert (recognise(sysu), recognise(regdb), recognise(tmp_path)) == ("sysu", "regdb", None)
    with pytest.raises(UserError, match=r"RegDB .* found, SYSU-MM01 .* expected"):
        DATASETS["sysu"].train_split(str(regdb), 1)
    with pytest.raises(UserError, match="no such folder"):
        DATASETS["regdb"].train_split(str(tmp_path / "nowhere"), 1)


def test_paths_may_hold_anything(tmp_path):
    root = make_sysu(tmp_path / "cam9 0001 prüfung 行人" / "cam1")
    split = DATASETS["sysu"].train_split(str(root), 1)
    assert set(split.visible.camids.tolist()) == {1, 2, 4, 5} and split.pids.tolist() == [1, 2, 3, 4, 5]
    assert process_query_sysu(str(root))[2].tolist() == ([3] * 4 + [6] * 4) * 3


def test_system_files_are_no_images(sysu):
    for name in ("Thumbs.db", ".DS_Store", "._0001.jpg"):
        (sysu / "cam1/0001" / name).write_bytes(b"x")
    assert len(DATASETS["sysu"].train_split(str(sysu), 1).visible) == 80


def test_a_person_without_one_modality_is_named(sysu):
    for camera in (3, 6):
        os.rename(sysu / f"cam{camera}/0002", sysu / f"cam{camera}/9999")
    with pytest.raises(UserError, match="person 2 has no infrared image"):
        DATASETS["sysu"].train_split(str(sysu), 1)

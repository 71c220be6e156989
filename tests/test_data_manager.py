"""Splits and protocols against the rules as the field states them."""
import os
import random
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, make_sysu, published_draw

from data_manager import (DATASETS, process_gallery_sysu, process_query_llcm, process_query_sysu,
                          process_test_regdb)
from eval_metrics import eval_sysu
from utils import UserError

SYSU, REGDB = DATASETS["sysu"], DATASETS["regdb"]
GEOMETRY = ROOT.parent / "shared" / "sysu_mm01"  # the data set's lists and permutations, without images


def test_sysu_training_split(sysu):
    split = SYSU.train_split(str(sysu), 1)
    assert split.pids.tolist() == [1, 2, 3, 4, 5]
    assert (len(split.visible), len(split.infrared)) == (5 * 4 * 4, 5 * 2 * 4)
    assert set(split.visible.camids.tolist()) == {1, 2, 4, 5}
    assert set(split.infrared.camids.tolist()) == {3, 6}
    for side in (split.visible, split.infrared):
        for path, pid, camid, label in zip(side.paths, side.pids, side.camids, split.labels(side.modality)):
            assert f"cam{camid}{os.sep}{pid:04d}{os.sep}" in path and split.pids[label] == pid


@pytest.mark.parametrize("mode, cameras", [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
@pytest.mark.parametrize("trial", [0, 3])
def test_random_gallery_is_the_draw_of_the_global_generator(sysu, mode, cameras, trial):
    before = random.getstate()
    paths, pids, camids = process_gallery_sysu(str(sysu), mode, trial)
    assert random.getstate() == before
    assert paths == published_draw(trial, [sysu / f"cam{camera}/{pid:04d}"
                                           for pid in (6, 7, 8) for camera in cameras])
    assert pids.tolist() == np.repeat([6, 7, 8], len(cameras)).tolist()
    assert camids.tolist() == list(cameras) * 3


def test_multi_shot_takes_ten_or_all(tmp_path):
    root = str(make_sysu(tmp_path / "few", images=4))
    paths = process_gallery_sysu(root, shot=10)[0]
    assert len(paths) == len(set(paths)) == 3 * 4 * 4
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


def test_queries(sysu):
    paths, pids, camids = process_query_sysu(str(sysu), "all")
    assert len(paths) == 3 * 2 * 4 and set(camids.tolist()) == {3, 6} and set(pids.tolist()) == {6, 7, 8}
    assert paths == process_query_sysu(str(sysu), "indoor")[0]


def test_directions_turn_everything_together(sysu):
    there, back = (SYSU.searches(str(sysu), direction=d, trials=[0])[0] for d in ("i2v", "v2i"))
    assert (there.query.modality, there.gallery.modality) == ("infrared", "visible")
    assert (back.query.modality, back.gallery.modality) == ("visible", "infrared")
    assert set(back.query.camids.tolist()) == {1, 2, 4, 5} and len(back.query) == 3 * 4 * 4
    assert set(back.gallery.camids.tolist()) == {3, 6} and len(back.gallery) == 3 * 2
    for search, apart in ((there, (3, 2)), (back, (2, 3))):
        assert search.seen().tolist() == [[(query, gallery) != apart for gallery in search.gallery.camids]
                                          for query in search.query.camids]
        assert not search.seen().all()
    indoor = SYSU.searches(str(sysu), direction="v2i", mode="indoor", trials=[0])[0]
    assert set(indoor.query.camids.tolist()) == {1, 2}


def test_regdb_searches(regdb):
    for trial in (1, 10):
        search = REGDB.searches(str(regdb), direction="v2i", trials=[trial])[0]
        assert (search.query.modality, search.gallery.modality) == ("visible", "infrared")
        assert search.seen().shape == (16, 16) and search.seen().all()
        assert len(search.query) == len(search.gallery) == 16
        names, labels = process_test_regdb(str(regdb), trial, "thermal")
        assert tuple(names) == search.gallery.paths and labels.tolist() == search.gallery.pids.tolist()
        train = REGDB.train_split(str(regdb), trial)
        assert not set(train.visible.paths) & set(search.query.paths)


def test_paths_may_hold_anything(tmp_path):
    root = make_sysu(tmp_path / "cam9 0001 prüfung 行人" / "cam1")
    split = SYSU.train_split(str(root), 1)
    assert set(split.visible.camids.tolist()) == {1, 2, 4, 5} and split.pids.tolist() == [1, 2, 3, 4, 5]
    assert process_query_sysu(str(root))[2].tolist() == ([3] * 4 + [6] * 4) * 3


@pytest.mark.parametrize("call", [
    lambda root: process_gallery_sysu(root, gallery="offical"),
    lambda root: process_gallery_sysu(root, "indor"), lambda root: process_query_llcm(root, 0),
    lambda root: process_test_regdb(root, 1, "infrared")])
def test_a_word_that_the_agw_lines_functions_do_not_know_is_never_another(sysu, call):
    with pytest.raises(KeyError):
        call(str(sysu))


def test_whole_numbers_that_matlab_saved_as_doubles_are_taken(sysu):
    from scipy.io import loadmat, savemat
    before = process_gallery_sysu(str(sysu), trial=2, shot=2, gallery="official")[0]
    cells = loadmat(sysu / "exp/rand_perm_cam.mat")["rand_perm_cam"]
    for camera in range(6):
        for rows in cells[camera, 0]:
            rows[0] = np.float64(rows[0])
    savemat(sysu / "exp/rand_perm_cam.mat", {"rand_perm_cam": cells})
    assert process_gallery_sysu(str(sysu), trial=2, shot=2, gallery="official")[0] == before


def test_a_persons_folder_may_be_missing_empty_or_a_link(sysu):
    before = process_query_sysu(str(sysu))[0]
    shutil.rmtree(sysu / "cam3/0006")
    for path in (sysu / "cam6/0007").iterdir():
        path.unlink()
    (sysu / "cam3/0008").rename(sysu / "elsewhere")
    (sysu / "cam3/0008").symlink_to(sysu / "elsewhere")
    after = process_query_sysu(str(sysu))[0]
    assert after == [path for path in before if "cam3/0006" not in path and "cam6/0007" not in path]


def test_an_indoor_search_needs_no_outdoor_camera(sysu):
    for camera in (4, 5):
        shutil.rmtree(sysu / f"cam{camera}")
    assert len(SYSU.searches(str(sysu), mode="indoor", trials=[0])[0].gallery) == 3 * 2
    with pytest.raises(UserError, match="cam4: no image of the persons on the lists"):
        SYSU.searches(str(sysu), mode="all", trials=[0])


@pytest.mark.parametrize("direction", ["i2v", "v2i"])
def test_a_search_in_which_no_query_has_a_match_is_refused(sysu, direction):
    for pid, cameras in ((6, (1, 2, 4, 5)), (7, (3, 6)), (8, (1, 4, 5))):
        for camera in cameras:
            shutil.rmtree(sysu / f"cam{camera}/{pid:04d}")
    assert len(SYSU.searches(str(sysu), direction=direction)) == 10  # person 8: camera 6 and camera 2
    shutil.rmtree(sysu / "cam6/0008")  # 8 is left in cameras 2 and 3, of one room
    with pytest.raises(UserError, match=r"exp/test_id.txt, all-search: no query has a match in the gallery: "
                       r"none of the \d+ \w+ queries is compared with an image of the same person among the "
                       r"\d+ \w+ ones; restore the images"):
        SYSU.searches(str(sysu), direction=direction)


# --------------------------------------------------------------------------------------------- lists of RegDB
def refused(root, trial):
    """What both uses of a trial say, which must be refused."""
    said = []
    for use in (lambda: REGDB.train_split(str(root), trial),
                lambda: REGDB.searches(str(root), trials=[trial])):
        with pytest.raises(UserError) as error:
            use()
        said.append(str(error.value))
    return said


def test_lists_of_the_other_modality_are_refused_in_any_case(regdb):
    (regdb / "THERMAL").symlink_to(regdb / "Thermal")
    for split in ("train", "test"):
        shutil.copy(regdb / f"idx/{split}_visible_1.txt", regdb / f"idx/{split}_thermal_1.txt")
        text = (regdb / f"idx/{split}_thermal_2.txt").read_text()
        (regdb / f"idx/{split}_visible_2.txt").write_text(text.replace("Thermal", "THERMAL"))
    for trial, wrong, folder in ((1, "thermal", "Visible"), (2, "visible", "THERMAL")):
        for split, said in zip(("train", "test"), refused(regdb, trial)):
            assert f"{split}_{wrong}_{trial}.txt: names {folder}/" in said
            assert f"a list of {wrong} images expected; restore the list" in said


def test_images_of_all_persons_in_one_folder_pass(regdb):
    for modality in ("Visible", "Thermal"):
        for path in (regdb / modality).glob("*/*"):
            path.rename(regdb / modality / path.name)
    for path in (regdb / "idx").iterdir():
        path.write_text(re.sub(r"/\d+/", "/", path.read_text()))
    assert len(REGDB.train_split(str(regdb), 1).visible) == len(REGDB.searches(str(regdb))[0].query) == 16
    shutil.copy(regdb / "idx/train_visible_1.txt", regdb / "idx/test_visible_1.txt")
    assert all("in the training and the test list of trial 1 (visible)" in said for said in refused(regdb, 1))


# ----------------------------------------------------------------------------- surprises, and the true counts
@pytest.mark.parametrize("direction, mode, shot, expected", [
    ("i2v", "all", 1, "24 queries found, 3803 published; 12 gallery images found, 301 published; 3 test"),
    ("i2v", "all", 10, "24 queries found, 3803 published; 48 gallery images found, 3010 published; 3 test"),
    ("i2v", "indoor", 1, "24 queries found, 3803 published; 6 gallery images found, 112 published; 3 test"),
    ("v2i", "all", 1, "3 test")])
def test_counts_of_a_search_that_are_not_the_published_ones_are_told(sysu, direction, mode, shot, expected):
    search = SYSU.searches(str(sysu), direction=direction, mode=mode, shot=shot, trials=[0])[0]
    assert SYSU.surprises("of", search=search) == [
        f"--data-path of: {expected} persons found, 96 published: not the whole data set"]


@pytest.mark.parametrize("direction", ["i2v", "v2i"])
def test_counts_of_regdb_are_told_in_both_directions(regdb, direction):
    search = REGDB.searches(str(regdb), direction=direction)[0]
    assert REGDB.surprises("of", search=search) == ["--data-path of: 16 queries found, 2060 published; "
                                                    "16 gallery images found, 2060 published: "
                                                    "not the whole data set"]


def test_persons_of_one_modality_are_told_but_in_an_indoor_search(sysu):
    for camera in (1, 2):
        shutil.rmtree(sysu / f"cam{camera}/0006")
    assert len(SYSU.surprises("of", search=SYSU.searches(str(sysu), mode="indoor")[0])) == 1
    for camera in (4, 5):
        shutil.rmtree(sysu / f"cam{camera}/0006")
    assert "1 test person(s), the first 6, with images in one modality only" in SYSU.surprises(
        "of", search=SYSU.searches(str(sysu))[0])[1]


def true_counts(cells, camera, pid):
    """One person's permutations in one camera, (10, n); n is 0 where there are no images."""
    rows = cells[camera - 1, 0]
    return rows[pid - 1, 0] if pid <= len(rows) else np.zeros((10, 0), int)


@pytest.fixture(scope="module")
def true_sysu(tmp_path_factory):
    """The test images of SYSU-MM01 by their true names, but empty; its permutations; its test persons."""
    if not GEOMETRY.is_dir():
        pytest.skip(f"{GEOMETRY} is not there")
    from scipy.io import loadmat
    root = tmp_path_factory.mktemp("true") / "SYSU-MM01"
    cells = loadmat(GEOMETRY / "rand_perm_cam.mat")["rand_perm_cam"]
    test, train = (loadmat(GEOMETRY / f"{split}_id.mat")["id"].ravel().tolist()
                   for split in ("test", "train"))
    for camera in range(1, 7):
        for pid in test:
            folder = root / f"cam{camera}" / f"{pid:04d}"
            folder.mkdir(parents=True)
            for number in range(1, true_counts(cells, camera, pid).shape[1] + 1):
                (folder / f"{number:04d}.jpg").touch()
    (root / "exp").mkdir()
    for split, pids in (("test", test), ("train", train), ("val", [534])):
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, pids)))
    shutil.copy(GEOMETRY / "rand_perm_cam.mat", root / "exp")
    yield root, cells, test
    shutil.rmtree(root)


def matlab_scores(dist_mat, q_pids, q_camids, g_pids, g_camids):
    """CMC and mAP as the data set's own evaluation has them, by query: cameras 2 and 3 are one place."""
    place = np.array([0, 1, 2, 2, 4, 5, 6])
    first, precisions = np.zeros(len(np.unique(g_pids))), []
    for row, pid, camera in zip(dist_mat, q_pids, q_camids):
        order = np.argsort(row, kind="stable")
        ranked = g_pids[order][place[g_camids[order]] != place[camera]].tolist()
        if pid in ranked:
            first[list(dict.fromkeys(ranked)).index(pid)] += 1  # among persons, each where it appears first
            ranks = [rank for rank, other in enumerate(ranked, 1) if other == pid]
            precisions.append(np.mean([number / rank for number, rank in enumerate(ranks, 1)]))
    return first.cumsum() / len(precisions), np.mean(precisions)


@pytest.mark.parametrize("mode, shot, trial, size",
                         [("all", 1, 0, 301), ("all", 10, 9, 3010), ("indoor", 1, 4, 112),
                          ("indoor", 10, 7, 1120)])
def test_the_official_search_of_the_true_data_set_scores_as_its_own_does(true_sysu, mode, shot, trial, size):
    root, cells, test = true_sysu
    search = SYSU.searches(str(root), mode=mode, shot=shot, gallery="official", trials=[trial])[0]
    assert (len(search.query), len(search.gallery)) == (3803, size)
    assert SYSU.surprises(str(root), search=search) == []
    keys = [(camera, pid, number) for camera in ((1, 2, 4, 5) if mode == "all" else (1, 2)) for pid in test
            for number in true_counts(cells, camera, pid)[trial, :shot].tolist()]
    column = {path: index for index, path in enumerate(search.gallery.paths)}
    columns = [column[str(root / f"cam{camera}" / f"{pid:04d}" / f"{number:04d}.jpg")]
               for camera, pid, number in keys]
    assert sorted(columns) == list(range(size))

    rng = np.random.default_rng(trial)
    dist_mat = rng.random((3803, size)) - 0.3 * (search.query.pids[:, None] == search.gallery.pids)
    found, mean_ap, _ = eval_sysu(dist_mat, search.query.pids, search.gallery.pids, search.query.camids,
                                  search.gallery.camids)
    g_camids, g_pids, _ = np.array(keys).T
    cmc, expected = matlab_scores(dist_mat[:, columns], search.query.pids, search.query.camids,
                                  g_pids, g_camids)
    np.testing.assert_allclose(found, cmc[:20], rtol=0, atol=1e-6)
    assert abs(mean_ap - expected) < 1e-6 and 0.05 < mean_ap < 0.95

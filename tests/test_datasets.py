"""LLCM, and folders of one's own: splits, searches, rules, checks, and runs from images to results."""
from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLCM_SIDES as SIDES
from conftest import SMALL, deepen, make_checkpoint, published_draw, save_image
from PIL import Image

from data_manager import DATASETS, process_gallery_llcm, process_query_llcm
from datasets.images import read_image
from datasets.types import Images, ImageSpec, Search
from eval_metrics import eval_llcm
from utils import UserError

LLCM, FOLDERS = DATASETS["llcm"], DATASETS["folders"]


def well(script, *words):
    """Run a script that must end well."""
    done = script(*words)
    assert done.returncode == 0, done.stderr
    return done


def last_of(script, name):
    """The checkpoint of the only run on a data set."""
    path, = (script.cwd / "save_model").glob(f"{name}_*_last.t")
    return path


def record_of(script, folder):
    return json.loads((script.cwd / folder / "results.json").read_text())


# -------------------------------------------------------------------------------------------- LLCM: the split
def test_llcm_labels_count_sorted_persons_whatever_numbers_the_lists_use(llcm):
    split = LLCM.train_split(llcm)
    assert split.pids.tolist() == [0, 1, 2, 3] and (len(split.visible), len(split.infrared)) == (16, 24)
    assert split.labels("infrared").tolist() == np.repeat(range(4), 6).tolist()
    assert split.visible.camids.tolist() == [1, 1, 3, 3] * 4
    assert split.infrared.camids.tolist() == [1, 1, 3, 3, 6, 6] * 4
    for name in ("vis", "nir"):  # as in copies whose lists hold the persons' own numbers, in no order
        path = llcm / "idx" / f"train_{name}.txt"
        lines = [line.rsplit(" ", 1)[0] for line in path.read_text().splitlines()][::-1]
        path.write_text("".join(f"{line} {700 + int(line.split('/')[1])}\n" for line in lines))
    split = LLCM.train_split(llcm)
    assert split.pids.tolist() == [701, 703, 705, 707]
    assert split.labels("infrared").tolist() == np.repeat([3, 2, 1, 0], 6).tolist()


@pytest.mark.parametrize("change, said", [
    (lambda root: shutil.copy(root / "idx/train_vis.txt", root / "idx/train_nir.txt"),
     "train_nir.txt: names vis/0001/\\S+, which is not a nir image"),
    (lambda root: (root / "idx/train_nir.txt").write_text(
        re.sub(r".* 2\n", "", (root / "idx/train_nir.txt").read_text())),
     "train_vis.txt and idx/train_nir.txt: person 2 has no infrared image")])
def test_faults_of_llcms_training_lists_are_named(llcm, change, said):
    change(llcm)
    with pytest.raises(UserError, match=said):
        LLCM.train_split(llcm)


# ----------------------------------------------------------------------------------------- LLCM: the searches
@pytest.mark.parametrize("mode, name, cameras", [(1, "vis", SIDES[0][1]), (2, "nir", SIDES[1][1])])
@pytest.mark.parametrize("trial", [0, 7])
def test_llcms_gallery_is_the_draw_of_the_global_generator(llcm, mode, name, cameras, trial):
    shutil.rmtree(llcm / f"test_{name}/cam5/0004")
    before = random.getstate()
    paths, pids, camids = process_gallery_llcm(str(llcm), mode, trial)
    assert random.getstate() == before
    folders = {llcm / f"test_{name}/cam{camera}/{pid:04d}": (pid, camera)
               for pid in (2, 4, 6) for camera in cameras}
    there = [folder for folder in folders if folder.is_dir()]
    expected = [(path, *folders[folder]) for path, folder in zip(published_draw(trial, there), there)]
    assert list(zip(paths, pids.tolist(), camids.tolist())) == expected
    queries = process_query_llcm(str(llcm), mode)
    assert len(queries[0]) == 2 * len(expected) and set(paths) <= set(queries[0])


@pytest.mark.parametrize("direction, queries, gallery",
                         [("i2v", 3 * 8 * 2, 3 * 9), ("v2i", 3 * 9 * 2, 3 * 8)])
def test_llcms_two_directions_draw_their_galleries(llcm, direction, queries, gallery):
    searches = LLCM.searches(llcm, direction=direction)
    assert len(searches) == 10 and {search.name for search in searches} == {f"LLCM, {direction}"}
    assert len({search.gallery.paths for search in searches}) > 1
    assert all(search.count_persons for search in searches)
    for search in searches:
        assert (len(search.query), len(search.gallery)) == (queries, gallery)
        hidden = [[(p, c) == (q, d) for q, d in zip(search.gallery.pids, search.gallery.camids)]
                  for p, c in zip(search.query.pids, search.query.camids)]
        assert (~search.seen()).tolist() == hidden
    assert 3 not in (searches[0].query if direction == "i2v" else searches[0].gallery).camids


def by_definition(dist_mat, q_pids, g_pids, q_camids, g_camids):
    """LLCM's scores, one query after the other, one image after the other."""
    curves, precisions, penalties = [], [], []
    for row, pid, camera in zip(dist_mat, q_pids, q_camids):
        images = [g for g in range(len(g_pids)) if not (g_pids[g] == pid and g_camids[g] == camera)]
        ranked = [g_pids[g] for g in sorted(images, key=lambda g: (row[g], g))]
        if pid in ranked:
            ranks = [rank for rank, other in enumerate(ranked, 1) if other == pid]
            precisions.append(np.mean([number / rank for number, rank in enumerate(ranks, 1)]))
            penalties.append(len(ranks) / ranks[-1])
            curves.append([pid in list(dict.fromkeys(ranked))[:k] for k in range(1, 21)])
    return np.mean(curves, axis=0), np.mean(precisions), np.mean(penalties)


@pytest.mark.parametrize("persons, cameras, steps", [(3, 2, 4), (12, 9, 9), (25, 9, 1 << 20)])
def test_eval_llcm_is_its_definition(persons, cameras, steps):
    rng = np.random.default_rng(persons)
    q_pids, g_pids = rng.integers(0, persons, 40), rng.integers(0, persons, 60)
    q_camids, g_camids = rng.integers(1, cameras + 1, 40), rng.integers(1, cameras + 1, 60)
    dist_mat = (rng.integers(0, steps, (40, 60)) / steps).astype(np.float32)
    search = (dist_mat, q_pids, g_pids, q_camids, g_camids)
    for found, expected in zip(eval_llcm(*search), by_definition(*search), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_eval_llcm_on_cases_made_by_hand():
    # The nearest image is the query's own person by its own camera: it does not exist. Then 8, 8, 7 in camera
    # 2.
    g_pids, g_camids = [7, 8, 8, 7, 9], [1, 1, 2, 2, 1]
    cmc, mean_ap, mean_inp = eval_llcm([[0.1, 0.2, 0.3, 0.4, 0.5]], [7], g_pids, [1], g_camids, max_rank=3)
    assert cmc.tolist() == [0, 1, 1] and mean_ap == mean_inp == 1 / 3
    # Another person by the query's camera is seen: 9 comes first.
    assert eval_llcm([[0.1, 0.5, 0.5, 0.4, 0.3]], [7], g_pids, [1], g_camids)[1] == 1 / 2
    # Equal distances rank in gallery order: 8, 8, 7, 9, of which the second 8 is no new person.
    cmc, mean_ap, _ = eval_llcm(np.ones((1, 5)), [7], g_pids, [1], g_camids, max_rank=3)
    assert cmc.tolist() == [0, 1, 1] and mean_ap == 1 / 3
    # A query whose only match is by its own camera is left out of the means; one person in one camera is such
    # a query.
    both = eval_llcm([[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]], [7, 9], g_pids, [1, 1], g_camids)
    assert both[1] == 1 / 3
    with pytest.raises(ValueError, match="no query with a match among the 1 gallery images it sees"):
        eval_llcm([[0.5]], [9], [9], [1], [1])
    assert eval_llcm([[0.5]], [9], [9], [1], [2])[1] == 1


def test_a_test_person_of_llcm_without_infrared_images_is_legal(llcm):
    for camera in SIDES[1][1]:
        shutil.rmtree(llcm / f"test_nir/cam{camera}/0004")
    search = LLCM.searches(llcm, direction="v2i", trials=[0])[0]
    assert set(search.gallery.pids.tolist()) == {2, 6} and set(search.query.pids.tolist()) == {2, 4, 6}
    assert not any("one modality only" in line for line in LLCM.surprises(llcm, search=search))


# ------------------------------------------------------------------------------------ folders: what they hold
def test_persons_are_numbered_by_their_names(folders):
    split = FOLDERS.train_split(folders)
    names = [Path(split.visible.paths[split.visible.pids.tolist().index(pid)]).parent.name
             for pid in range(4)]
    assert names == ["Ann", "Bé", "p2", "p10"] and split.pids.tolist() == [0, 1, 2, 3]
    for side in split.sides:
        assert len(side) == 12 and all(f"/train/{side.modality}/{names[pid]}/" in path
                                       for path, pid in zip(side.paths, side.pids))
    for direction, sides in (("i2v", ("infrared", "visible")), ("v2i", ("visible", "infrared"))):
        search, = FOLDERS.searches(folders, direction=direction)
        assert (search.query.modality,
                search.gallery.modality) == sides and len(search.query) == len(search.gallery) == 9
        assert search.seen().all() and not search.count_persons and search.name == f"folders, {direction}"


@pytest.mark.parametrize("names, numbers", [
    (("c3_1.png", "cam12_b.png", "C3_2.png"), ([3, 3, 12], [3, 3, 12])),
    (("c3_1.png", "x.png", "c_4.png"), ([3, 4, 4], [3, 5, 5])),
    (("c3.png", "cat3_1.png", "acam2_1.png"), ([1, 1, 1], [2, 2, 2])), (("cam1_1.png",), ([1], [1]))])
def test_a_camera_stands_before_the_first_underscore(tmp_path, names, numbers):
    for side in ("visible", "infrared"):
        for name in names:
            save_image(tmp_path / "c7_ cam8_/test" / side / "c9_p" / name, [1])
    search, = FOLDERS.searches(tmp_path / "c7_ cam8_", direction="v2i")
    assert sorted(search.query.camids.tolist()) == numbers[0]
    assert sorted(search.gallery.camids.tolist()) == numbers[1]


def test_pairs_of_one_camera_are_left_out_where_asked(tmp_path):
    for side, cameras in (("visible", (1, 2)), ("infrared", (2, 3))):
        for person in ("a", "b"):
            for camera in cameras:
                save_image(tmp_path / "test" / side / person / f"c{camera}_0.png", [camera])
    search, = FOLDERS.searches(tmp_path, direction="i2v", exclude_same_camera=True)
    assert search.seen().tolist() == [[query != gallery for gallery in (1, 2, 1, 2)]
                                      for query in (2, 3, 2, 3)]
    assert search.name == "folders, other cameras, i2v"


def rename_persons(root):
    """No name of a test person is in both modalities."""
    for path in (root / "test/infrared").iterdir():
        path.rename(path.with_name(f"x {path.name}"))


def remove(folder):
    return lambda root: shutil.rmtree(root / folder)


@pytest.mark.parametrize("change, train, test", [
    (remove("train/infrared/Bé"), r"train: person Bé has no infrared image \(1 of 4 persons", None),
    (lambda root: shutil.copytree(root / "test/visible/Di", root / "test/visible/DI"), None,
     "test: persons 'DI' and 'Di' found, whose names differ only in case or in what cannot be seen"),
    (rename_persons, None, "test: no query has a match in the gallery: none of the 9 infrared queries is "
     "compared with an image of the same person among the 9 visible ones; restore the images"),
    (remove("test/visible"), None, "test/visible: no image in a person's folder found; ")])
def test_faults_of_folders_are_named(folders, change, train, test):
    change(folders)
    for said, use in ((train, FOLDERS.train_split), (test, FOLDERS.searches)):
        if said is None:
            use(folders)
        else:
            with pytest.raises(UserError, match=said):
                use(folders)


def test_persons_of_one_modality_are_told_by_name(folders):
    shutil.rmtree(folders / "test/visible/Di")
    line, = FOLDERS.surprises(folders, FOLDERS.train_split(folders), FOLDERS.searches(folders)[0])
    assert line.startswith(f"--data-path {folders}: 1 test person(s), the first Di, "
                           "with images in one modality only")


# ---------------------------------------------------------------------------------- folders: more than 8 bits
@pytest.mark.parametrize("flags, said", [
    ((),
     r"infrared/\S.*: an image of mode I\S* .* give --range LOW HIGH, .* \(this one has \d+ to \d+\)"),
    (("--range", 9, 9), "--range 9 9: a LOW below HIGH expected"),
    (("--range", 9), "argument --range: expected 2 arguments"),
    (("--dataset", "regdb", "--range", 1, 2),
     "--range 1 2 belongs to folders, but the data set is regdb; leave it out"),
    (("--dataset", "llcm", "--exclude-same-camera"),
     "--exclude-same-camera belongs to folders, but the data set is llcm"),
])
def test_training_refuses(folders, script, flags, said):
    deepen(folders)
    done = script("train.py", "--dataset", "folders", "--data-path", folders, *SMALL, "--epochs", 1, *flags)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(errors) == 1 and re.search(said, errors[0]), done.stderr


def test_a_range_is_kept_by_the_checkpoint_and_used_again(folders, script):
    deepen(folders)
    well(script, "train.py", "--dataset", "folders", "--data-path", folders, *SMALL, "--epochs", 1,
         "--range", 30000, 32550)
    last = last_of(script, "folders")
    assert torch.load(last, weights_only=True)["args"]["range"] == [30000, 32550]
    test = ("test.py", "--resume", last, "--data-path", folders, "--gpu", "cpu")
    well(script, *test, "--out", "found")
    assert (script.cwd / "found/ranking.png").is_file()
    embed = ("embed.py", "--resume", last, "--gpu", "cpu", "--modality")
    for side in ("infrared", "visible"):
        well(script, *embed, side, folders / "test" / side, "--out", f"{side}.npz")
    done = script(*embed, "infrared", folders / "test/infrared", "--out", "other.npz", "--range", 1, 2)
    assert done.returncode == 2 and "was trained with --range 30000 32550; leave the flag out" in done.stderr
    done = well(script, "search.py", "infrared.npz", "visible.npz", "--resume", last, "--out", "hits")
    assert "could not be read" not in done.stderr
    # The same pixels, stored in 8 bits, give the same figures.
    for path in folders.glob("*/infrared/*/*.png"):
        values = (np.asarray(Image.open(path)).astype(int) - 30000) // 10
        Image.fromarray(values.astype(np.uint8)).save(path)
    well(script, *test, "--out", "again")
    again, before = (record_of(script, folder) for folder in ("again", "found"))
    assert again["trials"] == before["trials"] and again["mean"] == before["mean"]
    well(script, *embed, "infrared", folders / "test/infrared", "--out", "again.npz")
    again, before = (np.load(script.cwd / f"{name}.npz")["bnneck"] for name in ("again", "infrared"))
    assert np.array_equal(again, before)
    done = script(*test, "--range", 1, 2)
    assert done.returncode == 2 and re.search("--range 1 2: the checkpoint .* 30000 32550", done.stderr)


def test_a_model_of_another_data_set_takes_a_range(folders, script):
    deepen(folders)
    model = make_checkpoint(script.cwd / "regdb_trial_1_last.t")
    there = ("--dataset", "folders", "--data-path", folders, "--gpu", "cpu")
    done = well(script, "test.py", "--resume", model, *there, "--range", 30000, 32550, "--out", "found")
    assert "trained on RegDB" in done.stdout
    assert "give --range LOW HIGH" in script("test.py", "--resume", model, *there).stderr
    embed = ("embed.py", folders / "test/infrared", "--resume", model, "--gpu", "cpu",
             "--modality", "infrared", "--out", "a.npz", "--strict")
    assert "in embed.py, give --range LOW HIGH" in script(*embed).stderr
    assert "--range 9 9: a LOW below HIGH expected" in script(*embed, "--range", 9, 9).stderr


# ------------------------------------------------------------------------------------- from images to results
def test_folders_give_the_figures_of_the_same_images_in_regdbs_layout(regdb, tmp_path, script):
    root = tmp_path / "own"
    for split in ("train", "test"):
        for word, side in (("visible", "visible"), ("thermal", "infrared")):
            for line in (regdb / f"idx/{split}_{word}_1.txt").read_text().splitlines():
                path = Path(line.split()[0])
                (root / split / side / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(regdb / path, root / split / side / path.parent.name)
    trials = []
    for name, folder in (("regdb", regdb), ("folders", root)):
        there = ("--data-path", folder, "--direction", "v2i")
        well(script, "train.py", "--dataset", name, *there, *SMALL, "--epochs", 1)
        well(script, "test.py", "--resume", last_of(script, name), *there, "--gpu", "cpu", "--out", name)
        trials.append([{**trial, "trial": 0} for trial in record_of(script, name)["trials"]])
    assert trials[0] == trials[1]


def test_a_folder_without_train_tests_and_one_without_test_trains(folders, script):
    train = ("train.py", "--dataset", "folders", "--data-path", folders, *SMALL, "--epochs", 1)
    model = make_checkpoint(script.cwd / "model_last.t")
    test = ("test.py", "--resume", model, "--dataset", "folders", "--data-path", folders, "--gpu", "cpu")
    (folders / "train").rename(folders / "elsewhere")
    well(script, *test)
    assert "train/visible: no image" in script(*train).stderr
    (folders / "elsewhere").rename(folders / "train")
    shutil.rmtree(folders / "test")
    assert "test/visible: no image" in script(*test).stderr
    assert "no test images: nothing is evaluated" in well(script, *train).stdout
    assert not list(last_of(script, "folders").parent.glob("*_best.t"))


def test_llcm_from_images_to_results(llcm, script):
    done = script("pre_process_llcm.py", "--data-path", llcm, "--img_w", 16, "--img_h", 32, "--workers", 1,
                  fresh=True)
    assert done.returncode == 0, done.stderr
    split = LLCM.train_split(llcm)
    for side, name in zip(split.sides, ("vis", "nir")):
        pixels = np.load(llcm / f"train_{name}_resized_img.npy")
        assert np.array_equal(pixels, np.stack([read_image(path, ImageSpec(32, 16)) for path in side.paths]))
        assert np.array_equal(np.load(llcm / f"train_{name}_resized_label.npy"), split.labels(side.modality))
    done = well(script, "train.py", "--dataset", "llcm", "--data-path", llcm, *SMALL, "--epochs", 1)
    assert re.search(r"gallery visible +3 +27\n", done.stdout)
    assert "visible training images found, 16946 published" in done.stderr
    for direction in ("i2v", "v2i"):
        well(script, "test.py", "--resume", last_of(script, "llcm"), "--data-path", llcm, "--gpu", "cpu",
             "--direction", direction, "--out", direction)
        protocol = record_of(script, direction)["protocol"]
        assert (protocol["name"], protocol["trials"]) == (f"LLCM, {direction}", list(range(10)))
    (llcm / "vis/0001/0001_c01_s000000_f0000_vis.jpg").write_bytes(b"other")
    done = script("train.py", "--dataset", "llcm", "--data-path", llcm, *SMALL, "--epochs", 1, "--overwrite")
    assert done.returncode == 2 and "run: python pre_process_llcm.py --data-path" in done.stderr


def test_a_person_of_regdb_is_one_person_in_every_split_whatever_the_label():
    def search(persons: dict[int, int]) -> Search:
        images = Images(tuple(f"Visible/{person}/{number}.bmp" for person in persons for number in (2, 1)),
                        np.repeat(list(persons.values()), 2), np.ones(2 * len(persons), int), "visible")
        return Search(images, images, 1, "RegDB, v2i")

    found = DATASETS["regdb"].persons([search({7: 0, 30: 1}), search({30: 0, 9: 1, 7: 2})])
    seven, thirty, nine = found[0], found[2], found[6]
    assert found.tolist() == [seven] * 2 + [thirty] * 4 + [nine] * 2 + [seven] * 2
    assert len({seven, thirty, nine}) == 3
    labels = DATASETS["sysu"].persons([search({7: 7, 30: 30}), search({7: 7})])
    assert labels.tolist() == [7, 7, 30, 30, 7, 7]


def test_folders_exclude_no_camera_that_no_name_tells(tmp_path):
    for modality in ("visible", "infrared"):
        for split in ("train", "test"):
            save_image(tmp_path / split / modality / "anna" / "x0001_c1_.png", 0)
    with pytest.raises(UserError, match="^--exclude-same-camera: no name of an image below .*test begins "):
        DATASETS["folders"].searches(tmp_path, exclude_same_camera=True)
    assert len(DATASETS["folders"].searches(tmp_path)) == 1

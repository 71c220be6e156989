"""The check of a copy: what it counts, what it finds, and the exit status that scripts rely on."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, deepen, save_image
from PIL import Image

import data_manager
from data_manager import DATASETS
from datasets import check as data_check
from datasets.check import FAULT, NOTE


def findings(root, every=True):
    return {key: list(lines) for key, lines in data_manager.check(root, every)[1].found.items()}


def faults(found):
    return {kind for severity, kind in found if severity == FAULT}


def rows(text):
    return [line.split() for line in text.splitlines()]


# ------------------------------------------------------------------------------------------- the command line
def test_a_sound_set_is_usable_and_differences_from_the_published_counts_are_told(script, sysu):
    done = script("data_manager.py", sysu)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith(f"SYSU-MM01 in {sysu}\n")
    for line in ("training cam1 5 20 0 0", "test 3 48 3 24", "visible training images 80 22258 differs",
                 "gallery images (all) 12 301 differs", "gallery images (indoor) 6 112 differs"):
        assert line.split() in rows(done.stdout)
    assert done.stdout.endswith("usable; 7 of 7 counts differ from the published ones\n")
    _, report = data_manager.check(sysu, False)
    report.counts = {(what, published): {published} for what, published in report.counts}
    text = "\n".join(data_check.describe("SYSU-MM01", report))
    assert text.endswith("\nusable") and "differs" not in text


@pytest.mark.parametrize("name, opened, lines", [
    ("sysu", 6 * 8 * 4, ("training 5 80 5 40", "test cam3 0 0 3 12")),
    ("regdb", 8 * 2 * 4, ("trial 1 training 4 16 4 16", "trial 10 test 4 16 4 16")),
    ("llcm", 16 + 24 + 3 * (9 + 8) * 2, ("training 4 16 4 24", "test cam3 3 6 0 0", "test 3 54 3 48")),
    ("folders", 2 * 7 * 3, ("training 4 12 4 12", "test 3 9 3 9"))])
def test_a_sound_copy(name, opened, lines, request):
    data, report = data_manager.check(request.getfixturevalue(name), True)
    assert data is DATASETS[name] and report.found == {}
    assert report.opened == len(report.images) == opened
    text = "\n".join(data_check.describe(data.title, report))
    assert all(line.split() in rows(text) for line in lines)
    assert ("published" in text) == (name != "folders")


def test_an_unusable_set_is_told_by_the_exit_status(script, regdb):
    os.truncate(regdb / "Thermal/3/t_3_1.bmp", 700)
    done = script("data_manager.py", regdb, "--all")
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT, unreadable: 1\n" in done.stdout
    assert f"  {regdb}/Thermal/3/t_3_1.bmp: cannot be decoded" in done.stdout
    assert "not usable: mend the faults above" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words, said", [
    (["gone"], "DIR gone: no such folder"), ([".", "--every"], "arguments: --every"),
    ([ROOT / "README.md"], "README.md: a file; name the folder")])
def test_mistakes_in_the_command_are_one_line_and_status_2(script, words, said):
    done = script("data_manager.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_names_that_cannot_be_shown_are_written_as_escapes(script, sysu):
    with open(os.fsencode(sysu) + b"/cam1/\xff\x1b[31m\n0001", "w"):
        done = script("data_manager.py", sysu)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cam1: 1 file(s), the first \\udcff\\x1b[31m 0001" in done.stdout


def test_checking_needs_no_torch():
    code = "import sys, data_manager, datasets.arrays; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_folder_of_no_layout(script, sysu, tmp_path):
    done = script("data_manager.py", sysu.parent)
    assert done.returncode == 1 and "no data set found" in done.stdout and f"check {sysu}" in done.stdout
    (tmp_path / "empty").mkdir()
    assert "name the folder that holds these" in script("data_manager.py", tmp_path / "empty").stdout


def test_a_sample_is_evenly_spread_and_all_is_all(sysu, monkeypatch):
    opened = []
    monkeypatch.setattr(data_check, "SAMPLE", 10)
    monkeypatch.setattr(data_check, "read_image", lambda path, spec: opened.append(path))
    (sysu / "cam6/0006/0002.jpg").write_bytes(b"")
    _, report = data_manager.check(sysu, False)
    assert report.opened == len(opened) == 10 and len({Path(path).parts[-3] for path in opened}) >= 5
    text = "\n".join(data_check.describe("SYSU-MM01", report))
    assert "10 images opened (a sample, evenly spread; --all opens all)" in text
    assert [*report.found[FAULT, "empty"]] == [f"{sysu}/cam6/0006/0002.jpg: 0 bytes"]  # of all
    assert data_manager.check(sysu, True)[1].opened == 6 * 8 * 4 - 1


def test_long_lists_are_cut_and_say_so(script, sysu):
    for number in range(25):
        (sysu / f"cam1/0001/9{number:03d}.jpg").touch()
    text = script("data_manager.py", sysu).stdout
    assert "FAULT, empty: 25\n" in text and "  ... and 5 more" in text and text.count(": 0 bytes") == 20


# -------------------------------------------------------------------------------------------------- SYSU-MM01
def test_every_bad_image_is_listed(sysu):
    for pid in (1, 6):
        person = sysu / f"cam3/{pid:04d}"
        (person / "0001.jpg").write_bytes(b"")
        os.truncate(person / "0002.jpg", 300)
        (person / "0003.jpg").write_text("not an image, whatever its name says")
        (person / "0007.jpg").symlink_to("/gone/0004.jpg")
        (person / "list.txt").write_text("x")
        (person / "0005.jpg").mkdir()
        os.mkfifo(person / "0008.jpg")
        Image.new("I;16", (16, 32)).save(person / "0006.png")
    found = findings(sysu)
    assert faults(found) == {"empty", "unreadable", "not images"}
    assert len(found[FAULT, "empty"]) == 2 and len(found[FAULT, "unreadable"]) == 6
    words = {line.split(": ")[1].partition(" found")[0] for line in found[FAULT, "not images"]}
    assert words == {"a link that points nowhere", "a file", "a folder", "a named pipe"}
    assert len(found[FAULT, "not images"]) == 8


def test_unlisted_and_empty_things_are_told_but_harmless(sysu):
    save_image(sysu / "cam1/0099/0001.jpg", [1])
    save_image(sysu / "cam1/0001.jpg", [1])
    shutil.rmtree(sysu / "cam6/0003")
    (sysu / "cam6/0003").mkdir()
    assert findings(sysu) == {(NOTE, "not used"): [f"{sysu}/cam1: 1 file(s), the first 0001.jpg",
                                                   f"{sysu}/cam1/0099: 1 file(s), the first 0001.jpg"],
                              (NOTE, "empty folders"): [f"{sysu}/cam6/0003"]}


def test_missing_persons_cameras_and_permutations_of_sysu_are_told(sysu):
    (sysu / "cam2/0002").rename(sysu / "cam2/2")
    shutil.rmtree(sysu / "cam4")
    for camera in (3, 6):
        shutil.rmtree(sysu / f"cam{camera}/0001")
    for camera in (1, 2, 5):
        shutil.rmtree(sysu / f"cam{camera}/0006")
    (sysu / "cam5/0006").symlink_to("/gone/0006")
    found = findings(sysu)
    assert faults(found) == {"persons' folders", "missing", "one modality only"}
    wrong, gone = found[FAULT, "persons' folders"]
    assert "cam2/2: a folder found for person 2, a folder of the name 0002 expected; rename or" in wrong
    assert "cam5/0006: a link that points nowhere found for person 6, a folder of the name 0006" in gone
    assert "cam4: no image of the persons on the lists; " in found[FAULT, "missing"][0]
    assert "person 1 has no infrared image" in found[FAULT, "one modality only"][0]
    assert found[NOTE, "test persons of one modality only"] == [f"{sysu}: person 6 has no visible image"]


def test_the_official_permutations_are_tried(sysu):
    assert findings(sysu) == {}
    os.rename(sysu / "cam1/0006/0001.jpg", sysu / "cam1/0006/0009.jpg")
    line, = findings(sysu)[NOTE, "only --gallery official needs it"]
    assert "rand_perm_cam.mat: does not give the gallery of trial 0 (image cam1/0006/0001.jpg is not" in line
    (sysu / "exp/rand_perm_cam.mat").write_bytes(b"no mat file")
    assert not faults(findings(sysu))


# ------------------------------------------------------------------------------------------------------ RegDB
def test_regdb_files_that_are_missing_empty_or_of_no_use(regdb):
    (regdb / "Visible/1/v_1_1.bmp").unlink()
    (regdb / "Visible/1/v_1_2.bmp").write_bytes(b"")
    (regdb / "Thermal/2/t_2_1.bmp").unlink()
    (regdb / "Thermal/2/t_2_1.bmp").symlink_to("/gone/0")
    save_image(regdb / "Thermal/1/extra.bmp", [1])
    (regdb / "Thermal/notes.txt").write_text("x")
    found = findings(regdb)
    assert faults(found) == {"missing", "empty"}
    assert len(found[FAULT, "missing"]) == 20 and len(found[FAULT, "empty"]) == 1  # each list's line
    text = "\n".join(found[FAULT, "missing"])
    assert "t_2_1.bmp: a link that points nowhere" in text and "v_1_1.bmp: no such file" in text
    assert [line.rpartition(" ")[2] for line in found[NOTE, "not used"]] == ["notes.txt", "extra.bmp",
                                                                              "t_2_1.bmp"]


def test_bad_regdb_lists(script, regdb):
    idx = regdb / "idx"
    (idx / "train_visible_3.txt").unlink()
    (idx / "test_thermal_4.txt").write_text("\r\n")
    (idx / "test_visible_5.txt").write_text("Visible/2/v_0.bmp minus\n")
    shutil.copy(idx / "train_visible_6.txt", idx / "test_visible_6.txt")
    for trial in range(7, 11):
        for path in idx.glob(f"*_{trial}.txt"):
            path.unlink()
    found = findings(regdb)
    lists = "\n".join(found[FAULT, "lists"])
    assert len(found[FAULT, "lists"]) == 4
    for said in ("train_visible_3.txt: no such file", "test_thermal_4.txt: nothing found, lines",
                 "test_visible_5.txt, line 1", "in the training and the test list of trial 6 (visible)"):
        assert said in lists
    assert found[NOTE, "trials without lists"] == ["7, 8, 9, 10: others do without"]
    done = script("data_manager.py", regdb)
    assert done.returncode == 1
    assert "visible training images 0 to 16 2060 differs".split() in rows(done.stdout)


# ------------------------------------------------------------------------------------------------------- LLCM
def test_what_no_list_of_llcm_names(llcm):
    save_image(llcm / "test_vis/cam2/0351/0351_c02_s1_f2_vis.jpg", [1])
    (llcm / "test_nir/cam4/readme.txt").write_text("x")
    assert [*findings(llcm)] == [(NOTE, "not used")]
    Image.fromarray(np.full((9, 9), 777, np.uint16)).save(llcm / "test_nir/cam1/0002/more.png")
    line, = findings(llcm)[FAULT, "unreadable"]
    assert "cam1/0002/more.png: an image of mode I" in line and "(this one has 777 to 777)" in line


# ---------------------------------------------------------------------------------------------------- folders
def test_the_check_of_folders(folders):
    shutil.rmtree(folders / "test/infrared/Cy")
    shutil.rmtree(folders / "train/visible/Bé")
    shutil.copytree(folders / "test/visible/Di", folders / "train/visible/Di")
    shutil.copytree(folders / "test/visible/Di", folders / "train/infrared/Di")
    (folders / "train/visible/stray.png").write_bytes(b"x")
    (folders / "test/visible/Di/1.png").write_bytes(b"not an image")
    found = findings(folders)
    assert faults(found) == {"one modality only", "unreadable"}
    assert "person Bé has no visible image" in found[FAULT, "one modality only"][0]
    assert found[NOTE, "test persons of one modality only"][0].endswith("person Cy has no infrared image")
    assert found[NOTE, "not used"] == [f"{folders}/train/visible: 1 file(s), the first stray.png"]
    assert found[NOTE, "names in train and test"][0].startswith("1, the first di: if they are the same")
    shutil.rmtree(folders / "train")
    assert data_manager.recognise(folders) is DATASETS["folders"]
    assert findings(folders)[NOTE, "nothing to train on"][0].endswith("train: no such folder")


def test_the_check_says_which_range_raw_values_have(folders):
    deepen(folders)
    _, report = data_manager.check(folders, True)
    line, = report.found[NOTE, "more than 8 bits a channel"]
    low, high = map(int, re.search(r"^21 of the 42 images opened, raw values (\d+) to (\d+): .* need "
                                   r"--range LOW HIGH", line).groups())
    assert report.usable and 30000 <= low < 30500 < high <= 32550

"""The check of a copy: what it counts, what it finds, and the exit status that scripts rely on."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_image
from PIL import Image

import data_manager
from datasets import check as data_check
from datasets.check import FAULT, NOTE


def findings(root, every=True):
    return {key: list(lines) for key, lines in data_manager.check(root, every)[1].found.items()}


def faults(found):
    return {kind for severity, kind in found if severity == FAULT}


def only(found, *key):
    line, = found[key]
    return line


# ------------------------------------------------------------------------------------------- the command line
def test_a_sound_set_is_usable_and_differences_from_the_published_counts_are_told(script, sysu):
    done = script("data_manager.py", sysu)
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith(f"SYSU-MM01 in {sysu}\n")
    assert "training cam1 5 20 0 0".split() in lines and "test 3 48 3 24".split() in lines
    assert "visible training images 80 22258 differs".split() in lines
    assert "gallery images (all) 12 301 differs".split() in lines
    assert "gallery images (indoor) 6 112 differs".split() in lines
    assert done.stdout.endswith("usable; 7 of 7 counts differ from the published ones\n")


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
    _, report = data_manager.check(sysu, False)
    assert report.opened == len(opened) == 10 and len({Path(path).parts[-3] for path in opened}) >= 5
    assert "(a sample, evenly spread; --all opens all)" in "\n".join(
        data_check.describe(sysu, "SYSU-MM01", report, False))
    assert data_manager.check(sysu, True)[1].opened == 6 * 8 * 4


def test_long_lists_are_cut_and_say_so(script, sysu):
    for number in range(25):
        (sysu / f"cam1/0001/9{number:03d}.jpg").touch()
    text = script("data_manager.py", sysu).stdout
    assert "FAULT, empty: 25\n" in text and "  ... and 5 more" in text and text.count(": 0 bytes") == 20


def test_hidden_and_system_files_are_ignored_and_counted(script, sysu, regdb):
    for folder in (sysu / "cam2/0001", sysu / "cam2", regdb / "Visible/1"):
        for name in ("Thumbs.db", ".DS_Store", "._0001.jpg"):
            (folder / name).write_bytes(b"x")
    save_image(sysu / "cam2/0001/@eaDir/0001.jpg/SYNOPHOTO_THUMB_M.jpg", [1])
    for root, ignored in ((sysu, 7), (regdb, 3)):
        done = script("data_manager.py", root, "--all")
        assert done.returncode == 0 and f"\n{ignored} hidden or system files ignored\n" in done.stdout
        assert "FAULT" not in done.stdout and "not used" not in done.stdout


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
    words = {line.split(": ")[1].partition("found")[0] for line in found[FAULT, "not images"]}
    assert words == {"a link that points nowhere ", "", "a folder ", "a named pipe "}
    assert len(found[FAULT, "not images"]) == 8


def test_zero_bytes_are_found_without_opening_all(sysu, monkeypatch):
    monkeypatch.setattr(data_check, "SAMPLE", 1)
    (sysu / "cam6/0006/0002.jpg").write_bytes(b"")
    assert only(findings(sysu, every=False), FAULT, "empty").endswith("cam6/0006/0002.jpg: 0 bytes")


def test_unlisted_and_empty_things_are_told_but_harmless(sysu):
    save_image(sysu / "cam1/0099/0001.jpg", [1])
    save_image(sysu / "cam1/0001.jpg", [1])
    shutil.rmtree(sysu / "cam6/0003")
    (sysu / "cam6/0003").mkdir()
    found = findings(sysu)
    assert not faults(found)
    assert found[NOTE, "not used"] == [f"{sysu}/cam1: 1 file(s), the first 0001.jpg",
                                       f"{sysu}/cam1/0099: 1 file(s), the first 0001.jpg"]
    assert only(found, NOTE, "empty folders") == f"{sysu}/cam6/0003"


def test_what_stands_for_a_persons_folder_is_a_fault(sysu):
    (sysu / "cam2/0002").rename(sysu / "cam2/2")
    shutil.rmtree(sysu / "cam4/0005")
    (sysu / "cam4/0005").symlink_to("/gone/0005")
    wrong, gone = findings(sysu)[FAULT, "persons' folders"]
    assert "cam2/2: found for person 2, a folder of the name 0002 expected; rename it" in wrong
    assert "cam4/0005: a link that points nowhere found, a folder with the images of person 5" in gone


def test_persons_without_a_modality(sysu):
    for camera, pid in ((3, 1), (6, 1), (3, 2), (6, 2), (1, 6), (2, 6), (4, 6), (5, 6)):
        shutil.rmtree(sysu / f"cam{camera}/{pid:04d}")
    found = findings(sysu)
    assert [line.split(": ")[2].split(" (")[0] for line in found[FAULT, "one modality only"]] == [
        "person 1 has no infrared image", "person 2 has no infrared image"]
    assert only(found, NOTE, "test persons of one modality only").endswith("person 6 has no visible image")


def test_cameras_that_are_missing(sysu):
    for camera in (1, 4):
        shutil.rmtree(sysu / f"cam{camera}")
    assert [line.split(";")[0].rsplit("/")[-1] for line in findings(sysu)[FAULT, "missing"]] == [
        "cam1: no such folder", "cam4: no such folder"]


def test_no_person_to_search_for(sysu):
    for pid, cameras in ((6, (3, 6)), (7, (1, 2, 4, 5)), (8, (1, 4, 5, 6))):  # 8: only in one room
        for camera in cameras:
            shutil.rmtree(sysu / f"cam{camera}/{pid:04d}")
    for mode, line in zip(("all", "indoor"), findings(sysu)[FAULT, "refused"], strict=True):
        assert f"test_id.txt, {mode}-search: no query has a match in the gallery" in line


def test_the_official_permutations_are_tried(sysu):
    assert findings(sysu) == {}
    os.rename(sysu / "cam1/0006/0001.jpg", sysu / "cam1/0006/0009.jpg")
    assert "names image" in only(findings(sysu), NOTE, "only --gallery official needs it")
    (sysu / "exp/rand_perm_cam.mat").write_bytes(b"no mat file")
    found = findings(sysu)
    assert not faults(found)
    assert "not the data set's rand_perm_cam.mat" in only(found, NOTE, "only --gallery official needs it")


def test_counts_that_are_the_published_ones_do_not_differ(sysu):
    _, report = data_manager.check(sysu, False)
    report.counts = {(what, published): {published} for what, published in report.counts}
    lines = list(data_check.describe(sysu, "SYSU-MM01", report, False))
    assert lines[-1] == "usable" and not any("differs" in line for line in lines)


# ------------------------------------------------------------------------------------------------------ RegDB
def test_a_sound_regdb(regdb):
    data, report = data_manager.check(regdb, True)
    assert data.name == "regdb" and report.found == {} and report.opened == 8 * 2 * 4
    assert len(report.table) == 1 + 2 * 10
    assert report.table[1].split() == "trial 1 training 4 16 4 16".split()
    assert report.counts["infrared test images", 2060] == {16}


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
    assert any("t_2_1.bmp, which is a link that points nowhere" in line for line in found[FAULT, "missing"])
    assert any("v_1_1.bmp, which is not there" in line for line in found[FAULT, "missing"])
    assert [line.rpartition(" ")[2] for line in found[NOTE, "not used"]] == ["notes.txt", "extra.bmp",
                                                                              "t_2_1.bmp"]


def test_bad_regdb_lists(regdb):
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
    assert faults(found) >= {"lists"} and len(found[FAULT, "lists"]) == 4
    for name in ("train_visible_3.txt: no such", "test_thermal_4.txt: empty", "test_visible_5.txt, line 1"):
        assert name in lists
    assert "in the training and the test list of trial 6 (visible); disjoint persons" in lists
    assert only(found, NOTE, "trials without lists") == "7, 8, 9, 10: others do without"


def test_regdb_lists_of_the_other_modality(script, regdb):
    for split in ("train", "test"):
        shutil.copy(regdb / f"idx/{split}_visible_3.txt", regdb / f"idx/{split}_thermal_3.txt")
    assert all("_thermal_3.txt: names Visible/" in line for line in findings(regdb)[FAULT, "lists"])
    assert script("data_manager.py", regdb).returncode == 1


def test_regdb_counts_that_vary_with_the_trial_are_a_range(script, regdb):
    path = regdb / "idx/train_visible_2.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    done = script("data_manager.py", regdb)
    assert done.returncode == 0
    assert "visible training images 15 to 16 2060 differs".split() in [
        line.split() for line in done.stdout.splitlines()]

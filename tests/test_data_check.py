"""The check of a data set: what it counts, what it finds, and the exit status that scripts rely on."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_manager
from datasets import check as data_check
from datasets.check import FAULT, NOTE
from utils import UserError

ROOT = Path(data_manager.__file__).parent
SHOTS = 3


def save_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 16, 3), np.uint8)).save(path)


def make_sysu(root):
    """Persons 1-4 for training, 5 and 6 for testing, each with three images in every camera."""
    (root / "exp").mkdir(parents=True)
    for name, ids in (("train", "1,2,3"), ("val", "4"), ("test", "5,6")):
        (root / "exp" / f"{name}_id.txt").write_text(ids + "\n")
    for camera in range(1, 7):
        for pid in range(1, 7):
            for shot in range(1, SHOTS + 1):
                save_image(root / f"cam{camera}" / f"{pid:04d}" / f"{shot:04d}.jpg", pid)
    return root


def make_permutations(root, shots=SHOTS):
    from scipy.io import savemat
    cells = np.empty((6, 1), object)
    for camera in range(6):
        cells[camera, 0] = np.empty((6, 1), object)
        for pid in range(6):
            cells[camera, 0][pid, 0] = np.array([np.arange(1, shots + 1)] * 10, np.uint8)
    savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})


def make_regdb(root):
    """Four persons with three images a modality; odd trials train on the first two, even ones on others."""
    (root / "idx").mkdir(parents=True)
    names = {pid: {folder: [f"{folder}/{pid}/{folder[0].lower()}_{shot}.bmp" for shot in range(SHOTS)]
                   for folder in ("Visible", "Thermal")} for pid in range(4)}
    for folders in names.values():
        for name in (*folders["Visible"], *folders["Thermal"]):
            save_image(root / name)
    for trial in range(1, 11):
        halves = ((0, 1), (2, 3)) if trial % 2 else ((2, 3), (0, 1))
        for split, pids in zip(("train", "test"), halves):
            for folder in ("Visible", "Thermal"):
                lines = [f"{name} {label}\n" for label, pid in enumerate(pids) for name in names[pid][folder]]
                (root / "idx" / f"{split}_{folder.lower()}_{trial}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """One sound copy of either data set."""
    folder = tmp_path_factory.mktemp("sound")
    return {"sysu": make_sysu(folder / "sysu"), "regdb": make_regdb(folder / "regdb")}


@pytest.fixture
def sysu(pristine, tmp_path):
    return Path(shutil.copytree(pristine["sysu"], tmp_path / "cam3 7 größe 数"))


@pytest.fixture
def regdb(pristine, tmp_path):
    return Path(shutil.copytree(pristine["regdb"], tmp_path / "cam1 Visible été"))


def findings(root, every=True):
    _, report = data_manager.check(root, every)
    return report.found


def only(found, severity, kind):
    """The single line of a kind, of which there must be one."""
    assert len(found[severity, kind]) == 1, found
    return found[severity, kind][0]


def faults(found):
    return {kind for severity, kind in found if severity == FAULT}


def run(*words, **options):
    return subprocess.run([sys.executable, str(ROOT / "data_manager.py"), *map(str, words)],
                          capture_output=True, text=True,
                          encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"}, **options)


# ------------------------------------------------------------------------------------------- the command line
def test_a_sound_set_is_usable_and_differences_from_the_published_counts_are_told(sysu):
    done = run(sysu)
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0] == f"SYSU-MM01 in {sysu}"
    assert "cam1 visible 4 12 2 6".split() in [line.split() for line in lines]
    assert "all infrared 4 24 2 12".split() in [line.split() for line in lines]
    assert "visible training images 48 22258 differs".split() in [line.split() for line in lines]
    assert "all-search gallery 8 301 differs".split() in [line.split() for line in lines]
    assert "rand_perm_cam.mat: no such file" in done.stdout
    assert lines[-1] == "usable; 7 of 7 counts differ from the published ones"


def test_an_unusable_set_is_told_by_the_exit_status(regdb):
    os.truncate(regdb / "Thermal/3/t_1.bmp", 700)
    done = run(regdb, "--all")
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT, unreadable: 1\n" in done.stdout
    assert f"  {regdb}/Thermal/3/t_1.bmp: cannot be decoded" in done.stdout
    assert "not usable: mend the faults above" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words, said",
                         [(["gone"], "DIR gone: no such folder"), ([".", "--every"], "arguments: --every")])
def test_mistakes_in_the_command_are_one_line_and_status_2(tmp_path, words, said):
    done = run(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_names_that_cannot_be_shown_are_written_as_escapes(sysu):
    with open(os.fsencode(sysu) + b"/cam1/\xff\x1b[31m\n0001", "w"):
        done = run(sysu)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cam1/\\udcff\\x1b[31m 0001: not used" in done.stdout


def test_checking_needs_no_torch():
    code = "import sys, data_manager, datasets.arrays; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# -------------------------------------------------------------------------------------------------- both sets
def test_a_folder_of_neither_layout(tmp_path, sysu):
    found = findings(tmp_path)
    assert "no data set found" in only(found, FAULT, "layout")
    assert f"check {sysu}" in only(found, FAULT, "layout")
    (tmp_path / "empty").mkdir()
    assert "name the folder that holds these" in only(findings(tmp_path / "empty"), FAULT, "layout")


def test_a_sample_is_evenly_spread_and_all_is_all(sysu, monkeypatch):
    monkeypatch.setattr(data_check, "SAMPLE", 10)
    _, report = data_manager.check(sysu, False)
    assert len(report.images) == 10 and "cam1" in report.images[0] and "cam6" in report.images[-1]
    assert len({Path(path).parts[-3] for path in report.images}) >= 5
    _, report = data_manager.check(sysu, True)
    assert len(report.images) == 6 * 6 * SHOTS


def test_long_lists_are_cut_and_say_so(sysu, capsys, monkeypatch):
    for number in range(25):
        (sysu / "cam1" / "0001" / f"9{number:03d}.jpg").touch()
    monkeypatch.setattr(sys, "argv", ["data_manager.py", str(sysu)])
    with pytest.raises(SystemExit) as stop:
        data_manager.main()
    text = capsys.readouterr().out
    assert stop.value.code == 1
    assert "FAULT, empty: 25\n" in text and "  ... and 5 more" in text and text.count(": 0 bytes") == 20


def test_hidden_and_system_files_are_ignored_and_counted(sysu, regdb):
    for folder in (sysu / "cam2" / "0001", sysu / "cam2", regdb / "Visible" / "0"):
        for name in ("Thumbs.db", ".DS_Store", "._0001.jpg"):
            (folder / name).write_bytes(b"x")
    for root, ignored in ((sysu, 6), (regdb, 3)):
        _, report = data_manager.check(root, True)
        assert report.usable and report.ignored == ignored
        assert all(kind == "only --gallery official needs it" for _, kind in report.found)


# -------------------------------------------------------------------------------------------------- SYSU-MM01
def test_every_bad_image_is_listed(sysu):
    for pid in (1, 5):
        person = sysu / "cam3" / f"{pid:04d}"
        (person / "0001.jpg").write_bytes(b"")
        os.truncate(person / "0002.jpg", 300)
        (person / "0003.jpg").write_text("not an image, whatever its name says")
        (person / "0004.jpg").symlink_to("/gone/0004.jpg")
        (person / "list.txt").write_text("x")
        (person / "0005.jpg").mkdir()
        Image.new("I;16", (16, 32)).save(person / "0006.png")
    found = findings(sysu)
    assert faults(found) == {"empty", "unreadable", "missing", "not images", "refused"}
    assert len(found[FAULT, "empty"]) == 2 and len(found[FAULT, "unreadable"]) == 6
    assert all("a link that points nowhere" in line for line in found[FAULT, "missing"])
    assert len(found[FAULT, "missing"]) == 2
    assert len(found[FAULT, "not images"]) == 4
    assert [line.split(":")[0] for line in found[FAULT, "refused"]] == [
        "train.py", "test.py --mode all", "test.py --mode indoor"]
    assert len(found[NOTE, "misnamed"]) == 2  # 0006.png


def test_zero_bytes_are_found_without_opening_all(sysu, monkeypatch):
    monkeypatch.setattr(data_check, "SAMPLE", 1)
    (sysu / "cam6" / "0006" / "0002.jpg").write_bytes(b"")
    assert only(findings(sysu, every=False), FAULT, "empty").endswith("cam6/0006/0002.jpg: 0 bytes")


def test_misnamed_and_unlisted_things_are_told_but_harmless(sysu):
    save_image(sysu / "cam1" / "0001" / "img1.jpg")
    save_image(sysu / "cam1" / "98" / "0001.jpg")
    save_image(sysu / "cam1" / "0099" / "0001.jpg")
    save_image(sysu / "cam1" / "0001.jpg")
    found = findings(sysu)
    assert not faults(found)
    assert [line.split(":")[0].split("cam1/")[1] for line in found[NOTE, "misnamed"]] == [
        "0001/img1.jpg", "0001.jpg", "98"]
    assert only(found, NOTE, "persons that no list names").endswith("cam1/0099")


def test_what_stands_for_a_persons_folder_is_a_fault_and_an_empty_folder_is_told(sysu):
    (sysu / "cam2" / "0002").rename(sysu / "cam2" / "2")
    shutil.rmtree(sysu / "cam4" / "0005")
    (sysu / "cam4" / "0005").symlink_to("/gone/0005")
    for shot in range(1, SHOTS + 1):
        (sysu / "cam6" / "0003" / f"{shot:04d}.jpg").unlink()
    found = findings(sysu)
    wrong, gone = found[FAULT, "persons' folders"]
    assert wrong.endswith("cam2/2: found for person 2, a folder of the name 0002 expected; "
                          "rename it, or move it elsewhere")
    assert ("cam4/0005: a link that points nowhere found, "
            "a folder with the images of person 5 expected") in gone
    assert only(found, NOTE, "empty folders").endswith("cam6/0003: no image in it")
    assert [line.split(":")[0] for line in found[FAULT, "refused"]] == ["train.py", "test.py --mode all"]
    (sysu / "cam2" / "2").rename(sysu / "cam2" / "0002")
    (sysu / "cam4" / "0005").unlink()
    assert not faults(findings(sysu))


@pytest.mark.parametrize("name, text, said", [
    ("train", None, "train_id.txt: no such file"), ("val", "", "val_id.txt: empty"),
    ("test", "5,6,x", "'x' found"),
    ("test", "5,-6", "'-6' found"),
    ("val", "\xff\xfe", "cannot be read as text")])
def test_bad_id_lists(sysu, name, text, said):
    path = sysu / "exp" / f"{name}_id.txt"
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    found = findings(sysu)
    assert said in only(found, FAULT, "lists") and (FAULT, "refused") in found


def test_harmless_spellings_of_id_lists(sysu):
    (sysu / "exp" / "train_id.txt").write_bytes(b"\xef\xbb\xbf1, 2 ,3,2,\r\n\r\n")
    assert not faults(findings(sysu))


def test_overlapping_splits(sysu):
    (sysu / "exp" / "test_id.txt").write_text("4,5,6")
    assert "identity 4 is in val_id.txt and in test_id.txt" in findings(sysu)[FAULT, "refused"][0]


def test_persons_without_a_modality(sysu):
    for camera, pid in ((3, 1), (6, 1), (3, 2), (6, 2), (1, 5), (2, 5), (4, 5), (5, 5)):
        shutil.rmtree(sysu / f"cam{camera}" / f"{pid:04d}")
    found = findings(sysu)
    lines = found[FAULT, "training persons without a modality"]
    assert [line.split(": ")[1] for line in lines] == ["person 1 has no infrared image",
                                                       "person 2 has no infrared image"]
    assert only(found, NOTE, "test persons without a modality").endswith("person 5 has no visible image")
    assert only(found, FAULT, "refused").startswith("train.py: ")


def test_cameras_that_are_missing(sysu):
    for camera in (1, 4):
        shutil.rmtree(sysu / f"cam{camera}")
    found = findings(sysu)
    assert [line.rsplit("/")[-1] for line in found[FAULT, "missing"]] == [
        "cam1: no such folder", "cam4: no such folder"]
    assert len(found[FAULT, "refused"]) == 3


def test_no_person_to_search_for(sysu):
    for camera, pid in ((3, 5), (6, 5), (1, 6), (2, 6), (4, 6), (5, 6)):
        shutil.rmtree(sysu / f"cam{camera}" / f"{pid:04d}")
    found = findings(sysu)
    assert "no test person has images in both modalities" in only(found, FAULT, "no search")
    assert len(found[NOTE, "test persons without a modality"]) == 2


def test_no_person_to_search_for_but_in_one_room(sysu):
    for pid in (5, 6):
        for camera in (1, 4, 5, 6):
            shutil.rmtree(sysu / f"cam{camera}" / f"{pid:04d}")
    for camera in (1, 4, 5, 6):  # cameras that see a test person of one modality only
        save_image(sysu / f"cam{camera}" / "0007" / "0001.jpg")
    (sysu / "cam6" / "0007").rename(sysu / "cam6" / "0008")
    (sysu / "exp" / "test_id.txt").write_text("5,6,7,8")
    found = findings(sysu)
    assert faults(found) == {"refused"}
    assert len(found[FAULT, "refused"]) == 2
    assert all("no query has a match in the gallery" in line for line in found[FAULT, "refused"])


def test_the_official_permutations_are_tried(sysu):
    make_permutations(sysu)
    assert findings(sysu) == {}
    make_permutations(sysu, SHOTS + 1)
    assert "names image" in only(findings(sysu), NOTE, "only --gallery official needs it")
    (sysu / "exp" / "rand_perm_cam.mat").write_bytes(b"no mat file")
    found = findings(sysu)
    assert not faults(found)
    assert "not the data set's rand_perm_cam.mat" in only(found, NOTE, "only --gallery official needs it")


def test_counts_that_are_the_published_ones_do_not_differ(sysu, monkeypatch):
    _, report = data_manager.check(sysu, False)
    report.counts = [(what, published, published) for what, _, published in report.counts]
    lines = list(data_check.describe(sysu, "SYSU-MM01", report, False))
    assert lines[-1] == "usable" and not any("differs" in line for line in lines)


# ------------------------------------------------------------------------------------------------------ RegDB
def test_a_sound_regdb(regdb):
    data, report = data_manager.check(regdb, True)
    assert data.name == "regdb" and report.found == {} and len(report.images) == 4 * 2 * SHOTS
    assert report.table[1].split() == "1 2 6 6 2 6 6".split() and len(report.table) == 11
    assert ("training persons", 2, 206) in report.counts
    assert ("infrared test images", 6, 2060) in report.counts


def test_regdb_files_that_are_missing_empty_or_of_no_use(regdb):
    (regdb / "Visible/0/v_0.bmp").unlink()
    (regdb / "Visible/0/v_1.bmp").write_bytes(b"")
    (regdb / "Thermal/1/t_0.bmp").unlink()
    (regdb / "Thermal/1/t_0.bmp").symlink_to("/gone/0")
    save_image(regdb / "Thermal/1/extra.bmp")
    (regdb / "Thermal/notes.txt").write_text("x")
    (regdb / "Thermal/1/more.bmp").symlink_to("/gone/1")
    found = findings(regdb)
    assert faults(found) == {"missing", "empty", "refused"}
    link, gone = found[FAULT, "missing"]
    assert link.endswith("t_0.bmp: a link that points nowhere, named by train_thermal_1.txt and 9 more")
    assert gone.endswith("v_0.bmp: no such file, named by train_visible_1.txt and 9 more")
    assert "v_1.bmp: 0 bytes" in only(found, FAULT, "empty")
    assert len(found[FAULT, "refused"]) == 10  # training in odd trials, testing in even ones
    assert [line.rsplit("/")[-1] for line in found[NOTE, "images that no list names"]] == [
        "extra.bmp", "more.bmp: a link that points nowhere"]
    assert only(found, NOTE, "files that are not images").endswith("notes.txt")


def test_bad_regdb_lists(regdb):
    idx = regdb / "idx"
    (idx / "train_visible_3.txt").unlink()
    (idx / "test_thermal_4.txt").write_text("\r\n")
    (idx / "test_visible_5.txt").write_text("Visible/2/v_0.bmp minus\n")
    shutil.copy(idx / "train_visible_6.txt", idx / "test_visible_6.txt")
    with open(idx / "train_thermal_7.txt", "a") as file:
        file.write("Thermal/0/t_0.bmp 0\n")
    found = findings(regdb)
    assert [line.split(":")[0].split(",")[0].rsplit("/")[-1] for line in found[FAULT, "lists"]] == [
        "train_visible_3.txt", "test_thermal_4.txt", "test_visible_5.txt", "train_thermal_7.txt"]
    refused = {line.split(": ")[0]: line for line in found[FAULT, "refused"]}
    assert {int(key.split()[-1]) for key in refused} == {3, 4, 5, 6, 7}
    assert "disjoint persons expected" in refused["train.py --trial 6"]


def test_regdb_lists_of_the_other_modality(regdb):
    for split in ("train", "test"):
        shutil.copy(regdb / f"idx/{split}_visible_3.txt", regdb / f"idx/{split}_thermal_3.txt")
    found = findings(regdb)
    assert faults(found) == {"refused"}
    for line, script in zip(found[FAULT, "refused"], ("train", "test")):
        assert line.startswith(f"{script}.py --trial 3: ")
        assert f"{script}_thermal_3.txt: names Visible/" in line
    assert run(regdb).returncode == 1


def test_regdb_counts_that_vary_with_the_trial_are_a_range(regdb):
    path = regdb / "idx" / "train_visible_2.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    _, report = data_manager.check(regdb, True)
    assert ("visible training images", "5 to 6", 2060) in report.counts and report.usable


def test_regdb_persons_without_a_modality(regdb):
    path = regdb / "idx" / "train_thermal_2.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:SHOTS]))
    found = findings(regdb)
    assert only(found, FAULT, "training persons without a modality").endswith(
        "trial 2: person 1 has no infrared image")


def test_a_file_is_no_folder(monkeypatch, tmp_path):
    (tmp_path / "set.zip").touch()
    monkeypatch.setattr(sys, "argv", ["data_manager.py", str(tmp_path / "set.zip")])
    with pytest.raises(UserError, match="set.zip: a file; name the folder"):
        data_manager.main()

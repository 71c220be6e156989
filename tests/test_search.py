"""search.py: the order of a full sort, verdicts, hits.csv, the page in a browser, the hand-over to Qdrant."""
import csv
import json
import os
import re
import shutil
import textwrap
import threading
import time
import tracemalloc
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_checkpoint, save_image
from PIL import Image
from scipy.stats import binom

import embedding
from checkpoint import load_network
from datasets.types import ImageSpec
from retrieval import gallery as galleries
from retrieval import hits
from retrieval.evidence import find_evidence
from retrieval.gallery import (Gallery, Hits, Record, camera_of, find_nearest, read_gallery, time_of,
                               write_gallery)
from retrieval.verification import make_pairs, roc
from utils import UserError, sha256

RECORD = Record("a" * 64, "base", 32, 16, False, "visible")
NIGHT = replace(RECORD, modality="infrared")
ODD = 'a <script>document.title = "run"</script> & "b".png'


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def full_sort(query, gallery, top, seen=None):
    """Rows by a full stable sort of every similarity, each computed by itself in float64."""
    wide = gallery.astype(np.float64)
    similarity = np.stack([(wide * row).sum(1) for row in query.astype(np.float64)])
    order = np.argsort(-np.where(True if seen is None else seen, similarity, -np.inf), axis=1,
                       kind="stable")[:, :top]
    return order, np.take_along_axis(similarity, order, 1)


def make_gallery(feats, record=RECORD, names=None):
    feats = np.asarray(feats)
    names = names or [f"{number}.png" for number in range(len(feats))]
    return Gallery(names, names, feats[:, ::-1].copy(), feats, record)


# -------------------------------------------------------------------------------------------------- the order
@pytest.mark.parametrize("seed", range(6))
def test_order_is_that_of_a_full_stable_sort(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    count, top, width = int(rng.integers(1, 3000)), int(rng.integers(1, 40)), int(rng.integers(2, 70))
    monkeypatch.setattr(galleries, "BLOCK", int(rng.integers(1, 800)))
    monkeypatch.setattr(galleries, "QUERIES", int(rng.integers(1, 20)))
    values = rng.integers(-1, 2, (count, width)) if seed % 2 else rng.standard_normal((count, width))
    gallery = unit(values + 1e-3 * (values == 0).all(1, keepdims=True))
    # images that are there twice
    gallery[rng.integers(0, count, count // 2)] = gallery[rng.integers(0, count, count // 2)]
    query = np.concatenate([gallery[rng.integers(0, count, 17)], unit(rng.standard_normal((17, width)))])
    found = find_nearest(query, gallery, top)
    rows, similarities = full_sort(query, gallery, top)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-12)


def test_rounding_of_the_product_does_not_decide():
    rng = np.random.default_rng(0)
    gallery = unit(1 + 1e-4 * rng.standard_normal((20000, 64)))  # an untrained network's: all nearly the same
    query = unit(1 + 1e-4 * rng.standard_normal((3, 64)))
    found, (rows, _) = find_nearest(query, gallery, 10), full_sort(query, gallery, 10)
    np.testing.assert_array_equal(found.rows, rows)
    float32 = np.argsort(-(query @ gallery.T), axis=1, kind="stable")[:, :10]
    assert not np.array_equal(float32, rows)  # which alone fails


def test_float16_and_the_files_on_disk(tmp_path):
    rng = np.random.default_rng(1)
    feats = unit(rng.standard_normal((5000, 32))).astype(np.float16)
    write_gallery(tmp_path / "g.npz", make_gallery(feats))
    gallery = read_gallery(tmp_path / "g.npz")
    assert gallery.bnneck.dtype == np.float16 and isinstance(gallery.bnneck, np.memmap)
    query = unit(rng.standard_normal((5, 32)))
    np.testing.assert_array_equal(find_nearest(query, gallery.bnneck, 7).rows,
                                  full_sort(query, feats.astype(np.float32), 7)[0])


def test_memory_beyond_the_gallery_is_a_few_blocks(tmp_path):
    rng = np.random.default_rng(2)
    mapped = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float32, (60000, 256))
    for start in range(0, len(mapped), 5000):
        mapped[start:start + 5000] = unit(rng.standard_normal((5000, 256)))
    query = unit(rng.standard_normal((64, 256)))
    tracemalloc.start()
    find_nearest(query, mapped, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e7 < mapped.nbytes / 2, peak  # similarities at once, whatever the gallery


def test_the_same_camera_is_left_out():
    rng = np.random.default_rng(3)
    gallery, query = unit(rng.standard_normal((300, 8))), unit(rng.standard_normal((20, 8)))
    q_camids, g_camids = rng.integers(-1, 4, 20), rng.integers(-1, 4, 300)
    seen = (q_camids[:, None] != g_camids) | (q_camids[:, None] < 0)
    found = find_nearest(query, gallery, 12, [(q_camids, g_camids)])
    np.testing.assert_array_equal(found.rows, full_sort(query, gallery, 12, seen)[0])
    few = find_nearest(query[:1], gallery[:4], 4, [(np.array([1]), np.array([1, 1, 2, 1]))])
    assert few.rows.tolist() == [[2, -1, -1, -1]]


def test_features_that_are_not_finite_are_refused():
    feats = unit(np.random.default_rng(0).standard_normal((10, 4)))
    for value in (np.nan, np.inf):
        damaged = feats.copy()
        damaged[6, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            find_nearest(feats, damaged, 3)


@pytest.mark.parametrize("name, camera, moment", [
    ("data/cam3/0001/0007.jpg", 3, None), ("cam1/x/cam6_b.png", 6, None),
    ("0002_c1s1_000451_03.jpg", 1, None), ("nir/0351/0351_c06_s200656_f4830_nir.jpg", 6, None),
    ("camera-12/a.png", 12, None), ("Visible/1/v_1_2.bmp", -1, None), ("cameras3/a.jpg", -1, None),
    ("pic3.jpg", -1, None), ("C04/20260131_235958.jpg", 4, "2026-01-31T23:59:58"),
    ("gate/2026-01-31T10:20:30.png", -1, "2026-01-31T10:20:30"), ("cam2/f.jpg#xywh=1,2,3,4", 2, None),
    ("a/1234567.jpg", -1, None)])
def test_what_a_name_tells(name, camera, moment):
    assert (camera_of(name), time_of(name)) == (camera, moment)


# ----------------------------------------------------------------------------------------------- the verdicts
def calibrated(path, record=RECORD, **changes):
    content = {"checkpoint": {"sha256": [record.checkpoint]}, "image_size": [32, 16], "extras": [],
               "calibration": "a test set", "thresholds": {"bnneck": {
                   "i2v": {"0.001": {"threshold": 0.5, "true_accept_rate": 0.9, "impostor_pairs": 99999},
                           "0.01": {"threshold": 0.25, "true_accept_rate": 0.9, "impostor_pairs": 99999}}}}}
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_verdicts():
    names = make_gallery(unit(np.eye(4)))
    found = Hits(np.array([[0, 1, 2], [3, 2, 1], [2, 1, -1]]),
                 np.array([[0.9, 0.6, 0.2], [0.5, 0.4, 0.3], [0.7, 0.1, -np.inf]]))
    for size, word in ((100, "match"), (101, "candidate")):  # from 0.1 false accepts a query on
        threshold = hits.Threshold(0.5, 1e-3, 0.13, "a test set", size)
        answers = hits.judge(names, names, found, threshold, None)
        assert [[hit.verdict for hit in answer.hits] for answer in answers] == [
            [word, word, "no match"], ["no match"] * 3, [word, "no match"]]
        assert [answer.verdict for answer in answers] == [word, "no match", word]
        said = " ".join(threshold.expectations())
        assert "misses about 87 of 100 true pairs" in said
        assert ("is a candidate, not a match" in said) == (word == "candidate")
    answers = hits.judge(names, names, found, None, 0.65)
    assert [[hit.name for hit in answer.hits] for answer in answers] == [["0.png"], [], ["2.png"]]
    assert [answer.verdict for answer in answers] == ["", "no match", ""]


def test_a_threshold_is_read_with_its_calibration(tmp_path):
    calibrated(tmp_path / "results.json")
    for path in (tmp_path / "results.json", tmp_path):
        found = hits.read_threshold(str(path), "--far", 1e-3, "bnneck", NIGHT, RECORD, 2000)
        assert found == hits.Threshold(0.5, 1e-3, 0.9, "a test set", 2000)
        assert "calibrated on a test set" in str(found)
        assert found.expectations()[0].startswith("expect 2 false")


@pytest.mark.parametrize("changes, far, sides, words", [
    ({}, 1e-4, (NIGHT, RECORD), "--far 0.0001: .* has no threshold for it .* only for rates 0.001, 0.01"),
    ({}, 1e-3, (NIGHT, NIGHT), "--far 0.001: infrared images in infrared ones"),
    ({}, 1e-3, (RECORD, NIGHT), "not a results.json of test.py with thresholds"),
    ({"checkpoint": {"sha256": ["b"]}}, 1e-3, (NIGHT, RECORD), "its checkpoint is not that of the features"),
    ({"image_size": [64, 16]}, 1e-3, (NIGHT, RECORD), "its image_size is not"),
    ({"extras": ["flip"]}, 1e-3, (NIGHT, RECORD), "its flip is not"),
    ({"extras": ["bfloat16"]}, 1e-3, (NIGHT, RECORD), "its precision is not"),
    ({"range": [0, 4095]}, 1e-3, (NIGHT, RECORD), "its range is not"),
    ({"thresholds": []}, 1e-3, (NIGHT, RECORD), "not a results.json")])
def test_a_threshold_that_does_not_fit_is_refused(changes, far, sides, words, tmp_path):
    path = str(calibrated(tmp_path / "r.json", **changes))
    with pytest.raises(UserError, match=words):
        hits.read_threshold(path, "--far", far, "bnneck", *sides, 100)


def draw_persons(count, seed):
    """Unit features of one visible and one infrared image of each person, (count, 128) float32 each."""
    rng = np.random.default_rng(seed)
    return [unit(side) for side in rng.standard_normal((count, 128))
            + 0.8 * rng.standard_normal((2, count, 128))]


def test_the_rate_of_a_search_is_that_of_its_false_answers(script, tmp_path):
    visible, infrared = draw_persons(800, 1)
    pairs = make_pairs(infrared @ visible.T, np.ones((800, 800), bool), np.eye(800, dtype=bool))
    calibrated(tmp_path / "results.json", roc={"bnneck": roc(pairs)})
    visible, infrared = draw_persons(800, 2)
    for name, feats, record in (("q", infrared, NIGHT), ("g", visible, RECORD)):
        write_gallery(script.cwd / f"{name}.npz", make_gallery(feats, record))
    words = ("search.py", "q.npz", "g.npz", "--calibration", tmp_path, "--far-search")
    for rate in (0.05, 0.2):
        done = script(*words, rate, "--shown", 1)
        assert done.returncode == 0, done.stderr
        assert f"at most {100 * rate:.2g} of 100 searches" in done.stdout.splitlines()[0]
        lines = rows_of(script.cwd / "hits/hits.csv")
        said = {"match", "candidate"} & {line["verdict"] for line in lines}
        assert said == {"match" if rate == 0.05 else "candidate"}
        false = {line["query"] for line in lines if {line["verdict"]} & said and line["hit"] != line["query"]}
        low, high = binom.interval(0.99, 800, rate)
        assert low <= len(false) <= high, (rate, len(false))
    done = script(*words, 0.001)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.search("--far-search 0.001: asks for 1.3e-06 a pair in 800 images, but .* only for "
                     "639,200 impostor pairs", done.stderr), done.stderr


# ------------------------------------------------------------------------------------------- the command line
@pytest.fixture(scope="module")
def world(once):
    """Two galleries with images, one under an odd name, a calibration and the checkpoint; only read."""
    def make(folder):
        os.chdir(folder)
        make_checkpoint(folder / "a.t")
        for number in range(5):
            save_image(folder / f"night/cam3/{number}.png", [number])
            grey = Image.open(folder / f"night/cam3/{number}.png").convert("L")
            grey.save(folder / f"night/cam3/{number}.png")
        for number in range(30):
            save_image(folder / f"day/cam{number % 3 + 1}/{number}.png", [100 + number])
        os.rename(folder / "day/cam1/0.png", folder / "day/cam1" / ODD.replace("/", "∕"))
        net, _ = load_network(folder / "a.t")
        for side, modality in (("night", "infrared"), ("day", "visible")):
            found = embedding.embed(net, embedding.find_images([str(folder / side)]), modality, 32, 16)
            record = replace(RECORD, checkpoint=sha256(folder / "a.t"), modality=modality)
            rows = {path: [path] for path in found.paths}
            shows = list(embedding.digests(rows).values())
            write_gallery(folder / f"{side}.npz",
                          Gallery(found.paths, found.paths, found.pool, found.bnneck, record, shows))
        similarity = read_gallery(folder / "night.npz").bnneck @ read_gallery(folder / "day.npz").bnneck.T
        best = np.sort(similarity.max(1))
        threshold = {"threshold": float(best[1:3].mean()), "true_accept_rate": 0.5, "impostor_pairs": 99999}
        calibrated(folder / "results.json", record, thresholds={"bnneck": {"i2v": {"0.001": threshold}}})

    here = os.getcwd()
    try:
        return once("searched", make)
    finally:
        os.chdir(here)


@pytest.fixture
def search(script, world):
    call = lambda *words, **options: script("search.py", *words, **options)  # noqa: E731
    call.cwd = script.cwd
    return call


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("feature", ["bnneck", "pool"])
def test_hits_csv_is_the_full_sort(search, world, feature):
    done = search(world / "night.npz", world / "day.npz", "--top", 7, "--out", "hits", "--feature", feature)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in (search.cwd / "hits").iterdir()) == [
        "hits.csv", "hits.html", "hits.png"]
    night, day = read_gallery(world / "night.npz"), read_gallery(world / "day.npz")
    rows, similarities = full_sort(getattr(night, feature), getattr(day, feature), 7)
    lines = rows_of(search.cwd / "hits/hits.csv")
    assert list(lines[0]) == ["query", "rank", "hit", "similarity", "verdict"] and len(lines) == 35
    for line, (query, rank) in zip(lines, np.ndindex(5, 7)):
        assert (line["query"], line["rank"]) == (night.paths[query], str(rank + 1))
        assert line["hit"] == day.paths[rows[query, rank]]
        assert abs(float(line["similarity"]) - similarities[query, rank]) < 1e-6 and line["verdict"] == ""


def test_search_needs_no_torch(search, world, tmp_path):
    (tmp_path / "none/torch").mkdir(parents=True)
    (tmp_path / "none/torch/__init__.py").write_text("raise ImportError('there is none')\n")
    done = search(world / "night.npz", world / "day.npz", "--out", "hits",
                  env={"PYTHONPATH": str(tmp_path / "none")}, fresh=True)
    assert done.returncode == 0, done.stderr


def test_the_calibration_is_named_once_in_every_output(search, world):
    done = search(world / "night.npz", world / "day.npz", "--top", 3, "--out", "hits", "--far", "1e-3",
                  "--calibration", world, "--min-similarity", -1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("expect 0.03 false accepts a query (0.001 of 30 pairs)")
    lines = rows_of(search.cwd / "hits/hits.csv")
    thresholds = json.loads((world / "results.json").read_text())["thresholds"]
    threshold = thresholds["bnneck"]["i2v"]["0.001"]["threshold"]
    assert [line["verdict"] for line in lines] == [
        "match" if float(line["similarity"]) > threshold else "no match" for line in lines]
    assert {line["verdict"] for line in lines} == {"match", "no match"}
    files = [(search.cwd / f"hits/hits.{kind}").read_text("utf-8") for kind in ("csv", "html")]
    assert [text.count("calibrated on a test set") for text in (done.stdout, *files)] == [1, 1, 1]


def test_one_image_a_folder_and_a_list(search, world):
    image = world / "night/cam3/2.png"
    (search.cwd / "list.txt").write_text(f"{image}\n")
    expected = None
    for query in (image, world / "night/cam3", search.cwd / "list.txt"):
        done = search(query, world / "day.npz", "--modality", "ir", "--resume", world / "a.t", "--gpu", "cpu")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        told = done.stdout[done.stdout.index(f"{image}\n"):].splitlines()[1:6]
        assert [line.split()[0] for line in told] == list("12345")
        expected = expected or told
        assert told == expected
    lines = [line for line in rows_of(search.cwd / "hits/hits.csv") if line["query"] == str(image)]
    assert [line["hit"] for line in lines[:5]] == [line.split(maxsplit=2)[2] for line in told]
    done = search(image, world / "day.npz")
    assert done.returncode == 2 and "--modality: missing" in done.stderr


def test_cameras_on_the_command_line(search, world):
    done = search(world / "day.npz", world / "day.npz", "--out", "hits", "--exclude-same-camera")
    assert done.returncode == 0, done.stderr
    assert all(camera_of(line["query"]) != camera_of(line["hit"])
               for line in rows_of(search.cwd / "hits/hits.csv"))
    write_gallery(search.cwd / "plain.npz", make_gallery(unit(np.eye(4))))
    done = search("plain.npz", "plain.npz", "--out", "none", "--exclude-same-camera")
    assert done.returncode == 2 and "no name in plain.npz tells a camera" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (search.cwd / "none").exists()


def test_the_own_image_is_left_out_by_its_content(search, world):
    day = read_gallery(world / "day.npz")
    renamed = replace(day, paths=[f"copy {number}" for number in range(len(day))], images=day.images)
    write_gallery(search.cwd / "copy.npz", renamed)
    for words, own in (((), 30), (("--exclude-self",), 0)):
        done = search("copy.npz", world / "day.npz", "--out", "hits", *words)
        assert done.returncode == 0, done.stderr
        lines = rows_of(search.cwd / "hits/hits.csv")
        names = dict(zip(renamed.paths, day.paths))
        assert sum(names[line["query"]] == line["hit"] for line in lines) == own and len(lines) == 300
    write_gallery(search.cwd / "old.npz", replace(day, shows=()))
    done = search("old.npz", world / "day.npz", "--exclude-self")
    assert done.returncode == 2 and "old.npz does not say what its rows show" in done.stderr


@pytest.mark.parametrize("change, words",
                         [({"checkpoint": "b" * 64},
                           "checkpoint aaaaaaaaaaaaaaaa and bbbbbbbbbbbbbbbb found"),
                          ({"height": 64}, "height 32 and 64 found"), ({"flip": True}, "flip False and True"),
                          ({"range": (0, 9)}, "range None and (0, 9)"),
                          ({"precision": "half"}, "precision float32 and half")])
def test_sides_of_different_models_are_refused(search, change, words):
    feats = unit(np.eye(4))
    write_gallery(search.cwd / "q.npz", make_gallery(feats, NIGHT))
    write_gallery(search.cwd / "g.npz", make_gallery(feats, replace(RECORD, **change)))
    done = search("q.npz", "g.npz", "--out", "hits")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("search.py: error: q.npz and g.npz: " + words), done.stderr
    assert done.stderr.count("\n") == 1 and not (search.cwd / "hits").exists()


@pytest.mark.parametrize("words, said", [
    (("no.npz", "day.npz", "--out", "hits"), "no.npz: no such file"),
    (("day.npz", ".", "--out", "hits"), ".: a folder found"),
    (("a.t", "day.npz", "--out", "hits"), "a.t: not a whole gallery file"),
    (("night.npz", "day.npz", "--out", "a.t"), "--out a.t: cannot be written"),
    (("night.npz", "day.npz", "--out", "hits", "--far", "1e-3"), "--calibration: missing"),
    (("night.npz", "day.npz", "--out", "hits", "--min-similarity", "nan"), "a number from -1 to 1 expected"),
    (("night.npz", "day.npz", "--out", "hits", "--far", "1e-3", "--calibration", "a.t"),
     "--calibration a.t: not a results.json"),
    (("night.npz", "day.npz", "--out", "hits", "--resume", "night.npz"),
     "--resume night.npz: not the checkpoint of night.npz")])
def test_mistakes_are_one_line(search, world, words, said):
    for name in ("night.npz", "day.npz", "a.t"):
        shutil.copy(world / name, search.cwd)
    done = search(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (search.cwd / "hits").exists()


def test_images_that_have_gone_are_empty_frames_and_found_below_a_root(search, world):
    write_gallery(search.cwd / "g.npz", make_gallery(unit(np.eye(4))))
    done = search("g.npz", "g.npz", "--out", "hits")
    assert done.returncode == 0 and "4 images could not be read any more; --root names" in done.stderr
    assert content_of(search.cwd / "hits/hits.html")["images"] == [""] * 4
    shutil.copytree(world / "day", search.cwd / "moved/day")
    day = read_gallery(world / "day.npz")
    gone = [path.replace(str(world), "/nowhere") for path in map(str, day.paths)]
    write_gallery(search.cwd / "g.npz", replace(day, paths=gone, images=gone))
    done = search("g.npz", "g.npz", "--out", "hits", "--root", search.cwd / "moved")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert all(content_of(search.cwd / "hits/hits.html")["images"])


def test_results_open_from_another_folder(search, world, tmp_path):
    names, record = ["day/cam2/1.png", "day/cam3/2.png"], replace(RECORD, folder=str(world))
    write_gallery(search.cwd / "g.npz", make_gallery(unit(np.eye(2)), record, names))
    done = search("g.npz", "g.npz", "--out", "hits")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert rows_of(search.cwd / "hits/hits.csv")[0]["hit"] == "day/cam2/1.png"


# --------------------------------------------------------------------------------------------------- the page
def content_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search('id="content">(.*?)</script>', text)[1])


def test_a_page_of_a_thousand_queries_holds_each_thumbnail_once(search, tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(400)]
    for number, name in enumerate(names):
        save_image(Path(name), [number], (60 + 40 * (number == 0), 120))
    feats = unit(np.random.default_rng(0).standard_normal((1000, 16)))
    write_gallery(search.cwd / "q.npz", replace(make_gallery(
        feats, replace(RECORD, rows="tracklets")), images=(3 * names)[:1000]))
    write_gallery(search.cwd / "g.npz", make_gallery(feats[:400], names=names))
    done = search("q.npz", "g.npz", "--out", "hits")
    assert done.returncode == 0, done.stderr
    content = content_of(search.cwd / "hits/hits.html")
    assert len(content["queries"]) == 1000 and len(content["images"]) == 400
    import base64
    import io
    sizes = {Image.open(io.BytesIO(base64.b64decode(image))).size for image in content["images"]}
    assert sizes == {(60, 120), (100, 120)}  # in their own aspect
    assert (search.cwd / "hits/hits.html").stat().st_size < 15e6


def test_thumbnails_shrink_to_the_room_of_the_page(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", [0], (200, 400))
    large = hits.thumbnails([str(tmp_path / "a.png")], ImageSpec())
    monkeypatch.setattr(hits, "ROOM", 0.5 * len(large[0]))
    (small,) = hits.thumbnails([str(tmp_path / "a.png")], ImageSpec())
    assert 0 < len(small) < len(large[0])


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that notes every request."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1300,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, search, world):
    """The page of a search with verdicts and evidence, open."""
    done = search(world / "night.npz", world / "day.npz", "--top", 4, "--out", "hits", "--far", "1e-3",
                  "--calibration", world / "results.json", "--resume", world / "a.t")
    assert done.returncode == 0, done.stderr
    browser.get_log("performance")
    browser.get((search.cwd / "hits/hits.html").as_uri())
    return browser


def shown(page, selector):
    return [element for element in page.find_elements("css selector", selector) if element.is_displayed()]


def test_the_page_makes_no_request_and_has_no_error(page, search):
    time.sleep(0.3)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"]
    own = (search.cwd / "hits/hits.html").as_uri()
    assert own in asked and all(url == own or url.startswith("data:") for url in asked)
    assert page.get_log("browser") == []
    assert all(page.execute_script("return arguments[0].naturalWidth", image) == 24
               for image in shown(page, "section img"))
    assert len(shown(page, ".hit")) == 20 and len(shown(page, ".query")) == 5


def test_a_click_shows_the_maps_and_escape_closes_them(page):
    assert not shown(page, "dialog")
    page.find_elements("css selector", ".hit button")[5].click()
    pictures = shown(page, "#pair img, #pair canvas")
    assert len(pictures) == 4 and "blue speaks for the pair" in page.find_element("id", "legend").text
    captions = [element.text for element in shown(page, "#pair figcaption")]
    assert captions[1:3] == ["evidence on the query", "evidence on the hit"]
    assert captions[0].startswith("query ") and captions[0].endswith("night/cam3/1.png")
    assert captions[3].startswith("hit ")
    titles = [page.find_element("id", "detail-title").text]
    for step in ("next", "next", "previous"):
        page.find_element("id", step).click()
        titles.append(page.find_element("id", "detail-title").text)
    page.find_element("css selector", "dialog").send_keys("\ue014")  # right: the next pair
    titles.append(page.find_element("id", "detail-title").text)
    assert titles[3] == titles[1] and titles[4] == titles[2] and len(set(titles)) == 3
    page.switch_to.active_element.send_keys("\ue00c")
    assert not shown(page, "dialog")
    page.find_elements("css selector", ".hit button")[0].click()
    page.find_element("id", "close").click()
    assert not shown(page, "dialog")


def test_the_map_is_the_evidence_of_the_pair(page, search, world):
    line = rows_of(search.cwd / "hits/hits.csv")[0]
    pair = line["query"], line["hit"]
    found = find_evidence(load_network(world / "a.t")[0], pair, ("infrared", "visible"), ImageSpec(32, 16))
    assert abs(float(line["similarity"]) - found.similarity) < 1e-5
    content = content_of(search.cwd / "hits/hits.html")
    limit, rows = max(abs(values).max() for values in found.maps), content["evidence"]["shape"][0]
    expected = np.rint(127 * np.stack(found.maps) / limit) + 127
    import base64
    packed = np.frombuffer(base64.b64decode(content["queries"][0][3][0][4]), np.uint8)
    assert np.abs(packed.reshape(2, rows, -1) - expected).max() <= 1
    page.find_elements("css selector", ".hit button")[0].click()
    time.sleep(0.3)
    pixels = page.execute_script(
        "return [...document.querySelectorAll('#pair canvas')].map((canvas) => "
        "[...canvas.getContext('2d').getImageData(12, 24, 1, 1).data])")
    for (red, _, blue, _), values in zip(pixels, found.maps):
        assert (blue > red) == (values.mean() > 0)


def test_the_filters_filter(page, search):
    from selenium.webdriver.support.ui import Select
    lines = rows_of(search.cwd / "hits/hits.csv")
    select = Select(page.find_element("id", "verdict"))
    for verdict in ("match", "no match"):
        select.select_by_visible_text(verdict)
        hits_shown = shown(page, ".hit")
        assert len(hits_shown) == sum(line["verdict"] == verdict for line in lines)
        assert {hit.get_attribute("data-verdict") for hit in hits_shown} == {verdict}
    select.select_by_visible_text("all")
    words = page.find_element("id", "words")
    words.send_keys("CAM2/")
    matching = [line for line in lines if "cam2/" in line["hit"]]
    assert len(shown(page, ".hit")) == len(matching) > 0
    assert page.find_element("id", "count").text.startswith(f"{len(matching)} of 20 hits")
    words.send_keys("\ue00c")
    assert len(shown(page, ".hit")) == 20
    words.send_keys("night/cam3/4")
    assert len(shown(page, "section")) == 1 and len(shown(page, ".hit")) == 4
    words.clear()
    words.send_keys("no such path")
    assert not shown(page, "section")


def test_the_keyboard_moves(page):
    body = page.find_element("css selector", "body")
    buttons = page.find_elements("css selector", ".hit button")
    body.send_keys("\ue014")
    assert page.switch_to.active_element == buttons[0]
    for key, place in (("\ue014", 1), ("\ue015", 5), ("\ue012", 4), ("\ue012", 3), ("\ue013", 3)):
        page.switch_to.active_element.send_keys(key)
        assert page.switch_to.active_element == buttons[place], (key, place)
    page.switch_to.active_element.send_keys("\ue007")
    assert shown(page, "dialog")
    page.switch_to.active_element.send_keys("\ue00c")
    page.switch_to.active_element.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "words"
    assert page.find_element("id", "words").get_attribute("value") == ""


def test_a_name_is_shown_and_not_run(browser, search, world):
    day = read_gallery(world / "day.npz")
    names = [ODD, "</script><script>document.title='run'</script>",
             '"><img src=x onerror="document.title=1">', "{{rows}}", "a\nb\x1b[31m",
             "\udce9.png", "javascript:alert(1)"]
    write_gallery(search.cwd / "g.npz", make_gallery(day.bnneck[:7], day.record, names))
    assert search("g.npz", "g.npz", "--out", "hits").returncode == 0
    browser.get((search.cwd / "hits/hits.html").as_uri())
    assert browser.title == "g.npz in g.npz"
    seen = [element.text for element in browser.find_elements("css selector", ".query .path")]
    assert seen == [ODD, *names[1:4], "a b\\x1b[31m", "\\udce9.png", names[6]]
    assert len(browser.find_elements("css selector", "script")) == 2 and browser.get_log("browser") == []
    browser.find_element("css selector", ".hit button").click()
    assert browser.title == "g.npz in g.npz"


def test_pages_of_fifty_in_every_order(browser, search):
    rng = np.random.default_rng(0)
    feats, others = unit(rng.standard_normal((120, 8))), unit(rng.standard_normal((30, 8)))
    backwards = [f"{119 - number}.png" for number in range(120)]
    write_gallery(search.cwd / "q.npz", make_gallery(feats, names=backwards))
    write_gallery(search.cwd / "g.npz", make_gallery(others))
    assert search("q.npz", "g.npz", "--out", "hits", "--top", 2).returncode == 0
    browser.get((search.cwd / "hits/hits.html").as_uri())
    def names():
        return [element.text for element in browser.find_elements("css selector", ".query .path")]
    from selenium.webdriver.support.ui import Select
    order = Select(browser.find_element("id", "order"))
    assert names() == backwards[:50]
    order.select_by_visible_text("name")
    browser.find_element("id", "on").click()
    browser.find_element("id", "on").click()
    assert names() == [f"{number}.png" for number in range(100, 120)]
    assert not browser.find_element("id", "on").is_enabled()
    order.select_by_visible_text("best similarity")
    best = np.argsort(-(feats @ others.T).max(1), kind="stable")
    assert names() == [backwards[number] for number in best[:50]]
    assert "here 1 to 50" in browser.find_element("id", "count").text


def test_one_column_on_a_telephone(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True})
    try:
        page.find_elements("css selector", ".hit button")[0].click()
        lefts = {element.rect["x"] for element in shown(page, "#pair figure")}
        assert len(lefts) == 1
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page):
    def background(scheme):
        page.execute_cdp_cmd("Emulation.setEmulatedMedia",
                             {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return [sum(map(int, colour[4:-1].split(","))) / 765 for colour in page.execute_script(script)]

    (light, ink), (dark, chalk) = background("light"), background("dark")
    assert light > 0.95 and ink < 0.2 and dark < 0.2 and chalk > 0.85


# ----------------------------------------------------------------------------------------------------- Qdrant
def test_qdrant_finds_the_same(tmp_path, capsys):
    client = pytest.importorskip("qdrant_client")
    from tools import qdrant
    rng = np.random.default_rng(0)
    feats, query = unit(rng.standard_normal((400, 32))), unit(rng.standard_normal((6, 32)))
    names = [f"cam{number % 4}/20260131_{number // 60:02d}{number % 60:02d}00.png" for number in range(400)]
    gallery = make_gallery(feats, names=names)
    write_gallery(tmp_path / "day.npz", gallery)
    words = [tmp_path / "day.npz", "--collection", "day", "--path", tmp_path / "engine", "--batch", 64]
    for sent in (400, 0):  # again: the same points, which are there
        qdrant.main(words)
        assert f"day: {sent} points from" in capsys.readouterr().out
    store = client.QdrantClient(path=str(tmp_path / "engine"))
    assert store.count("day").count == 400
    expected = find_nearest(query, feats, 10)
    for row, similarities, vector in zip(expected.rows, expected.similarities, query):
        points = store.query_points("day", query=vector.tolist(), limit=10).points
        assert [point.payload["row"] for point in points] == row.tolist()
        np.testing.assert_allclose([point.score for point in points], similarities, atol=1e-5)
    assert points[0].payload == {"path": names[row[0]], "row": int(row[0]), "camera": int(row[0]) % 4,
                                 "time": time_of(names[row[0]]), "modality": "visible",
                                 "checkpoint": "a" * 64, "feature": "bnneck", "shows": ""}
    assert time_of(names[row[0]]) is not None
    for other in (make_gallery(feats, replace(RECORD, checkpoint="b" * 64)), make_gallery(feats[:, :16])):
        with pytest.raises(UserError, match="--collection day: .* found, .* expected"):
            qdrant.hand_over(store, "day", other)
    store.close()


class Slow:
    """A client of Qdrant whose upsert fails a few times, and of which the rest is in memory."""

    def __init__(self, client, failures):
        self.client, self.failures = client, failures

    def __getattr__(self, name):
        return getattr(self.client, name)

    def upsert(self, *args, **options):
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("timed out")
        return self.client.upsert(*args, **options)


def test_a_slow_answer_is_waited_for_and_a_hand_over_goes_on(monkeypatch, capsys):
    client = pytest.importorskip("qdrant_client")
    from tools import qdrant
    waits, store = [], client.QdrantClient(":memory:")
    monkeypatch.setattr(qdrant.time, "sleep", waits.append)
    names = [f"{number}.png" for number in range(9)] + ["\udce9.png"]  # a name that is no UTF-8
    gallery = make_gallery(unit(np.eye(10)), names=names)
    assert qdrant.hand_over(Slow(store, 3), "day", gallery, batch=4) == 10 and waits == [1, 2, 4]
    assert capsys.readouterr().err.count("trying again in") == 3
    assert {point.payload["path"] for point in store.scroll("day", limit=20)[0]} == {*names[:9], "\\xe9.png"}
    grown = make_gallery(unit(np.eye(10)), names=[*names[1:], "new.png"])
    with pytest.raises(ConnectionError):
        qdrant.hand_over(Slow(store, 99), "day", grown, batch=4)
    assert qdrant.hand_over(store, "day", grown, batch=4) == 1 and store.count("day").count == 11


def test_equal_names_of_two_galleries_are_two_points():
    client = pytest.importorskip("qdrant_client")
    from tools import qdrant
    store = client.QdrantClient(":memory:")
    gallery = make_gallery(unit(np.eye(3)))
    for number, other in enumerate((replace(gallery, record=replace(RECORD, folder="/data/a")),
                                    replace(gallery, record=replace(RECORD, folder="/data/b")),
                                    replace(gallery, shows=["1" * 32, "2" * 32, "3" * 32])), 1):
        assert qdrant.hand_over(store, "day", other) == 3 and store.count("day").count == 3 * number


# ---------------------------------------------------------------------------------------------------- service
def test_the_service_of_the_documents_answers_as_search_does(search, world):
    text = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    code = textwrap.dedent(re.search(r"\n(    import io, json\n.*?serve_forever\(\))\n", text, re.DOTALL)[1])
    for old, new in (("day.npz", str(world / "day.npz")), ("save_model/..._last.t", str(world / "a.t")),
                     ('HTTPServer(("127.0.0.1", 8000), Search).serve_forever()',
                      'server = HTTPServer(("127.0.0.1", 0), Search)')):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names = {"__name__": "service"}
    exec(code, names)
    image = world / "night/cam3/2.png"
    serving = threading.Thread(target=names["server"].handle_request)
    serving.start()
    url = f"http://127.0.0.1:{names['server'].server_port}"
    found = json.loads(urllib.request.urlopen(url, image.read_bytes(), timeout=60).read())
    serving.join()
    names["server"].server_close()
    assert search(world / "night.npz", world / "day.npz", "--out", "hits").returncode == 0
    lines = [line for line in rows_of(search.cwd / "hits/hits.csv") if line["query"] == str(image)]
    assert [name for name, _ in found] == [line["hit"] for line in lines]
    np.testing.assert_allclose([value for _, value in found], [float(line["similarity"]) for line in lines],
                               atol=1e-5)

"""search.py: the order of a full sort, verdicts, hits.csv, the page in a browser, the hand-over to Qdrant."""
import base64
import csv
import functools
import io
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
from unittest import mock

import numpy as np
import pytest
import scripts
from conftest import ROOT, draw_persons, make_checkpoint, save_image
from PIL import Image
from scipy.stats import binom

from checkpoint import load_network
from datasets.types import ImageSpec
from retrieval import gallery as galleries
from retrieval import hits
from retrieval.evidence import find_evidence
from retrieval.gallery import (Gallery, Hits, Record, camera_of, find_nearest, read_gallery, time_of,
                               write_gallery)
from retrieval.verification import make_pairs, roc
from utils import UserError

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
@pytest.mark.parametrize("seed", range(4))
def test_order_is_that_of_a_full_stable_sort(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    count, top, width = int(rng.integers(1, 900)), int(rng.integers(1, 40)), int(rng.integers(2, 70))
    monkeypatch.setattr(galleries, "BLOCK", int(rng.integers(1, 300)))
    monkeypatch.setattr(galleries, "QUERIES", int(rng.integers(1, 20)))
    values = rng.integers(-1, 2, (count, width)) if seed % 2 else rng.standard_normal((count, width))
    gallery = unit(values + 1e-3 * (values == 0).all(1, keepdims=True))
    # images that are there twice
    gallery[rng.integers(0, count, count // 2)] = gallery[rng.integers(0, count, count // 2)]
    query = np.concatenate([gallery[rng.integers(0, count, 9)], unit(rng.standard_normal((9, width)))])
    found = find_nearest(query, gallery, top)
    rows, similarities = full_sort(query, gallery, top)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-12)


def test_rounding_of_the_product_does_not_decide():
    rng = np.random.default_rng(0)
    gallery = unit(1 + 1e-4 * rng.standard_normal((3000, 64)))  # an untrained network's: all nearly the same
    query = unit(1 + 1e-4 * rng.standard_normal((3, 64)))
    found, (rows, _) = find_nearest(query, gallery, 10), full_sort(query, gallery, 10)
    np.testing.assert_array_equal(found.rows, rows)
    float32 = np.argsort(-(query @ gallery.T), axis=1, kind="stable")[:, :10]
    assert not np.array_equal(float32, rows)  # which alone fails


def test_a_float16_file_is_searched_in_a_few_blocks_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(galleries, "BLOCK", 100)
    feats = unit(np.random.default_rng(2).standard_normal((10_000, 64))).astype(np.float16)
    write_gallery(tmp_path / "g.npz", make_gallery(feats))
    mapped, query = read_gallery(tmp_path / "g.npz").bnneck, feats[:16].astype(np.float32)
    assert mapped.dtype == np.float16 and isinstance(mapped, np.memmap)
    tracemalloc.start()
    found = find_nearest(query, mapped, 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found.rows, full_sort(query, feats.astype(np.float32), 7)[0])
    assert peak < mapped.nbytes / 5, peak


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
    damaged = np.eye(10, dtype=np.float32)
    damaged[6, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        find_nearest(np.eye(10, dtype=np.float32), damaged, 3)


@pytest.mark.parametrize("name, camera, moment", [
    ("cam1/x/cam6_b.png", 6, None), ("0002_c1s1_000451_03.jpg", 1, None), ("camera-12/a.png", 12, None),
    ("nir/0351/0351_c06_s200656_f4830_nir.jpg", 6, None), ("Visible/1/v_1_2.bmp", -1, None),
    ("cameras3/pic3.jpg", -1, None), ("C04/20260131_235958.jpg#xywh=1,2,3,4", 4, "2026-01-31T23:59:58"),
    ("gate/2026-01-31T10:20:30.png", -1, "2026-01-31T10:20:30")])
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


@pytest.mark.parametrize("changes, far, sides, words", [
    ({}, 1e-4, (NIGHT, RECORD), "--far 0.0001: .* has no threshold for it .* only for rates 0.001, 0.01"),
    ({}, 1e-3, (NIGHT, NIGHT), "--far 0.001: infrared images in infrared ones"),
    ({"checkpoint": {"sha256": ["b"]}}, 1e-3, (NIGHT, RECORD), "the features: checkpoint b and aaa"),
    ({"image_size": [64, 16]}, 1e-3, (NIGHT, RECORD), "height 64 and 32 found"),
    ({"extras": ["bfloat16"]}, 1e-3, (NIGHT, RECORD), "precision bf16 and float32"),
    ({"range": [0, 4095]}, 1e-3, (NIGHT, RECORD), r"range \(0, 4095\) and None"),
    ({"thresholds": []}, 1e-3, (NIGHT, RECORD), "not a results.json")])
def test_a_threshold_that_does_not_fit_is_refused(changes, far, sides, words, tmp_path):
    path = str(calibrated(tmp_path / "r.json", **changes))
    with pytest.raises(UserError, match=words):
        hits.read_threshold(path, "--far", far, "bnneck", *sides, 100)


def test_the_rate_of_a_search_is_that_of_its_false_answers(script, tmp_path):
    visible, infrared = draw_persons(800, 1)
    pairs = make_pairs(infrared @ visible.T, np.ones((800, 800), bool), np.eye(800, dtype=bool))
    calibrated(tmp_path / "results.json", roc={"bnneck": roc(pairs)})
    visible, infrared = draw_persons(800, 2)
    for name, feats, record in (("q", infrared, NIGHT), ("g", visible, RECORD)):
        write_gallery(script.cwd / f"{name}.npz", make_gallery(feats, record))
    words = ("search.py", "q.npz", "g.npz", "--calibration", tmp_path, "--far-search")
    for rate in (0.05, 0.2):
        done = script(*words, rate, "--shown", 1, "--top", 3)
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
    """Two galleries with images, one under an odd name, a calibration, the checkpoint, and what a search
    with verdicts and evidence wrote and said; only read.
    """
    def make(folder):
        make_checkpoint(folder / "a.t")
        for number in range(5):
            save_image(folder / f"night/cam3/{number}.png", [number], mode="L")
        for number in range(12):
            save_image(folder / f"day/cam{number % 3 + 1}/{number}.png", [100 + number])
        os.rename(folder / "day/cam1/0.png", folder / "day/cam1" / ODD.replace("/", "∕"))
        for side, modality in (("night", "ir"), ("day", "rgb")):
            done = scripts.run([ROOT / "embed.py", folder / side, "--modality", modality, "--resume", "a.t",
                                "--gpu", "cpu", "--workers", 1, "--out", f"{side}.npz"], folder)
            assert done.returncode == 0, done.stderr
        night, day = (read_gallery(folder / f"{side}.npz") for side in ("night", "day"))
        similarity = night.bnneck @ day.bnneck.T
        best = np.sort(similarity.max(1))
        found = {"threshold": float(best[1:3].mean()), "true_accept_rate": 0.5, "impostor_pairs": 99999}
        calibrated(folder / "results.json", night.record, thresholds={"bnneck": {"i2v": {"0.001": found}}})
        done = scripts.run([ROOT / "search.py", "night.npz", "day.npz", "--top", 4, "--far", "1e-3",
                            "--calibration", ".", "--resume", "a.t", "--gpu", "cpu"], folder)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        (folder / "hits/stdout").write_text(done.stdout, encoding="utf-8")

    return once("searched", make)


@pytest.fixture
def search(script):
    """Run search.py in an empty folder."""
    call = functools.partial(script, "search.py")
    call.cwd = script.cwd
    return call


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content_of(path):
    return json.loads(re.search('id="content">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


def check_rows(lines, night, day, feature, top):
    rows, similarities = full_sort(getattr(night, feature), getattr(day, feature), top)
    assert list(lines[0])[:5] == ["query", "rank", "hit", "similarity", "verdict"] and len(lines) == 5 * top
    for line, (query, rank) in zip(lines, np.ndindex(5, top)):
        assert (line["query"], line["rank"]) == (night.paths[query], str(rank + 1))
        assert line["hit"] == day.paths[rows[query, rank]]
        assert abs(float(line["similarity"]) - similarities[query, rank]) < 1e-6


def test_hits_csv_is_the_full_sort_and_names_the_calibration_once(search, world):
    sides = [read_gallery(world / f"{side}.npz") for side in ("night", "day")]
    lines, said = rows_of(world / "hits/hits.csv"), (world / "hits/stdout").read_text("utf-8")
    check_rows(lines, *sides, "bnneck", 4)
    thresholds = json.loads((world / "results.json").read_text())["thresholds"]
    threshold = thresholds["bnneck"]["i2v"]["0.001"]["threshold"]
    assert [line["verdict"] for line in lines] == [
        "match" if float(line["similarity"]) > threshold else "no match" for line in lines]
    assert {line["verdict"] for line in lines} == {"match", "no match"}
    assert said.startswith("expect 0.012 false accepts a query (0.001 of 12 pairs)")
    files = [(world / f"hits/hits.{kind}").read_text("utf-8") for kind in ("csv", "html")]
    assert [text.count("calibrated on a test set") for text in (said, *files)] == [1, 1, 1]
    done = search(world / "night.npz", world / "day.npz", "--top", 2, "--feature", "pool")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in (search.cwd / "hits").iterdir()) == [
        "hits.csv", "hits.html", "hits.png"]
    lines = rows_of(search.cwd / "hits/hits.csv")
    check_rows(lines, *sides, "pool", 2)
    assert {line["verdict"] for line in lines} == {""}


def test_an_image_is_embedded_as_the_gallery_was(search, world):
    image = world / "night/cam3/2.png"
    done = search(image, world / "day.npz", "--modality", "ir", "--resume", world / "a.t", "--gpu", "cpu",
                  "--top", 4)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    expected = [line for line in rows_of(world / "hits/hits.csv") if line["query"] == str(image)]
    lines = rows_of(search.cwd / "hits/hits.csv")
    assert [(line["query"], line["hit"]) for line in lines] == [
        (line["query"], line["hit"]) for line in expected]
    told = done.stdout[done.stdout.index(f"{image}\n"):].splitlines()[1:5]
    assert [line.split(maxsplit=2)[2] for line in told] == [line["hit"] for line in lines]
    done = search(image, world / "day.npz")
    assert done.returncode == 2 and "--modality: missing" in done.stderr


def test_the_own_camera_and_the_own_image_are_left_out(search, world):
    day = read_gallery(world / "day.npz")
    renamed = replace(day, paths=[f"copy {path}" for path in day.paths], images=day.images)
    write_gallery(search.cwd / "copy.npz", renamed)
    for flag, seen in (("--exclude-self", lambda query, hit: query == f"copy {hit}"),
                       ("--exclude-same-camera", lambda query, hit: camera_of(query) == camera_of(hit))):
        done = search("copy.npz", world / "day.npz", "--top", 2, flag)
        assert done.returncode == 0, done.stderr
        lines = rows_of(search.cwd / "hits/hits.csv")
        assert len(lines) == 24 and not any(seen(line["query"], line["hit"]) for line in lines)
    write_gallery(search.cwd / "old.npz", make_gallery(unit(np.eye(512)), day.record))
    for flag, said in (("--exclude-self", "no row of old.npz tells its content"),
                       ("--exclude-same-camera", "no row of old.npz tells its camera")):
        done = search("old.npz", world / "day.npz", "--out", "none", flag)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (search.cwd / "none").exists()


@pytest.mark.parametrize("change, words", [
    ({"checkpoint": "b" * 64}, "checkpoint aaaaaaaaaaaaaaaa and bbbbbbbbbbbbbbbb found"),
    ({"range": (0, 9)}, "range None and (0, 9)"), ({"precision": "half"}, "precision float32 and half")])
def test_sides_of_different_models_are_refused(search, change, words):
    for name, record in (("q.npz", NIGHT), ("g.npz", replace(RECORD, **change))):
        write_gallery(search.cwd / name, make_gallery(unit(np.eye(4)), record))
    done = search("q.npz", "g.npz", "--out", "hits")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("search.py: error: q.npz and g.npz: " + words), done.stderr
    assert done.stderr.count("\n") == 1 and not (search.cwd / "hits").exists()


@pytest.mark.parametrize("words, said", [
    (("no.npz", "day.npz"), "no.npz: no such file"),
    (("day.npz", "."), ".: a folder, a file that embed.py wrote expected"),
    (("results.json", "day.npz"), "results.json: not a whole gallery file"),
    (("night.npz", "day.npz", "--out", "results.json"), "--out results.json: cannot be written"),
    (("night.npz", "day.npz", "--far", "1e-3"), "--calibration: missing"),
    (("night.npz", "day.npz", "--min-similarity", "nan"), "a number from -1 to 1 expected"),
    (("night.npz", "day.npz", "--far", "1e-3", "--calibration", "day.npz"),
     "--calibration day.npz: not a results.json"),
    (("night.npz", "day.npz", "--resume", "night.npz"),
     "--resume night.npz and night.npz: checkpoint")])
def test_mistakes_are_one_line(search, world, words, said):
    for name in ("night.npz", "day.npz", "results.json"):
        shutil.copy(world / name, search.cwd)
    done = search(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (search.cwd / "hits").exists()


def test_images_are_found_from_another_folder_and_below_a_root_or_are_empty_frames(search, world):
    names = ["day/cam2/1.png", "gone.png"]
    for folder, words in ((world, ()), ("/nowhere", ("--root", world))):
        record = replace(RECORD, folder=str(folder))
        write_gallery(search.cwd / "g.npz", make_gallery(unit(np.eye(2)), record, names))
        done = search("g.npz", "g.npz", *words)
        assert done.returncode == 0 and "1 images could not be read any more; --root names" in done.stderr
        assert rows_of(search.cwd / "hits/hits.csv")[0]["hit"] == names[0]
        assert list(map(bool, content_of(search.cwd / "hits/hits.html")["images"])) == [True, False]


# --------------------------------------------------------------------------------------------------- the page
def test_a_page_holds_each_thumbnail_once_in_its_own_aspect(search, tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(8)]
    for number, name in enumerate(names):
        save_image(Path(name), [number], (60 + 40 * (number == 0), 120))
    feats = unit(np.random.default_rng(0).standard_normal((20, 16)))
    write_gallery(search.cwd / "q.npz", replace(make_gallery(
        feats, replace(RECORD, rows="tracklets")), images=(3 * names)[:20]))
    write_gallery(search.cwd / "g.npz", make_gallery(feats[:8], names=names))
    assert search("q.npz", "g.npz", "--top", 2).returncode == 0
    content = content_of(search.cwd / "hits/hits.html")
    assert len(content["queries"]) == 20 and len(content["images"]) == 8
    sizes = {Image.open(io.BytesIO(base64.b64decode(image))).size for image in content["images"]}
    assert sizes == {(60, 120), (100, 120)}


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
def page(browser, world):
    """The page of a search with verdicts and evidence, open."""
    browser.get_log("performance")
    browser.get((world / "hits/hits.html").as_uri())
    return browser


def shown(page, selector):
    return [element for element in page.find_elements("css selector", selector) if element.is_displayed()]


def test_the_page_asks_no_network_and_shows_maps_at_a_click_or_a_key(page, world):
    time.sleep(0.3)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"]
    own = (world / "hits/hits.html").as_uri()
    assert own in asked and all(url == own or url.startswith("data:") for url in asked)
    assert page.get_log("browser") == []
    assert len(shown(page, ".hit")) == 20 and len(shown(page, ".query")) == 5 and not shown(page, "dialog")
    page.find_elements("css selector", ".hit button")[5].click()
    assert len(shown(page, "#pair img, #pair canvas")) == 4
    captions = [element.text for element in shown(page, "#pair figcaption")]
    assert captions[0].endswith("night/cam3/1.png") and captions[3].startswith("hit ")
    assert captions[1:3] == ["evidence on the query", "evidence on the hit"]
    titles = [page.find_element("id", "detail-title").text]
    for step in ("next", "next", "previous"):
        page.find_element("id", step).click()
        titles.append(page.find_element("id", "detail-title").text)
    assert titles[3] == titles[1] and len(set(titles)) == 3
    page.switch_to.active_element.send_keys("\ue00c")  # escape
    assert not shown(page, "dialog")
    buttons = page.find_elements("css selector", ".hit button")
    buttons[0].send_keys("")
    for key, place in (("\ue014", 1), ("\ue015", 5), ("\ue012", 4), ("\ue013", 0)):  # right, down, left, up
        page.switch_to.active_element.send_keys(key)
        assert page.switch_to.active_element == buttons[place], (key, place)
    page.switch_to.active_element.send_keys("\ue007")  # enter
    assert shown(page, "dialog")


@pytest.mark.parametrize("chosen, drawn", [("2", [0, 1]), ("2-3", [1, 2]), ("0", [])])
def test_evidence_is_that_of_the_chosen_queries(world, search, chosen, drawn):
    done = search(*(world / name for name in ("night.npz", "day.npz")), "--resume", world / "a.t", "--gpu",
                  "cpu", "--evidence", chosen)
    assert done.returncode == 0, done.stderr
    queries = content_of(search.cwd / "hits/hits.html")["queries"]
    assert [number for number, query in enumerate(queries) if len(query[3][0]) == 5] == drawn


def test_the_map_is_the_evidence_of_the_pair(world):
    line = rows_of(world / "hits/hits.csv")[0]
    pair = line["query"], line["hit"]
    found = find_evidence(load_network(world / "a.t")[0], pair, ("infrared", "visible"), ImageSpec(32, 16))
    assert abs(float(line["similarity"]) - found.similarity) < 1e-5
    content = content_of(world / "hits/hits.html")
    limit, rows = max(abs(values).max() for values in found.maps), content["evidence"]["shape"][0]
    packed = np.frombuffer(base64.b64decode(content["queries"][0][3][0][4]), np.uint8)
    expected = np.rint(127 * np.stack(found.maps) / limit) + 127
    assert np.abs(packed.reshape(2, rows, -1) - expected).max() <= 1


def test_the_filters_filter(page, world):
    from selenium.webdriver.support.ui import Select
    lines = rows_of(world / "hits/hits.csv")
    select = Select(page.find_element("id", "verdict"))
    for verdict in ("match", "no match"):
        select.select_by_visible_text(verdict)
        assert len(shown(page, ".hit")) == sum(line["verdict"] == verdict for line in lines)
    select.select_by_visible_text("all")
    page.find_element("id", "words").send_keys("CAM2/")
    matching = sum("cam2/" in line["hit"] for line in lines)
    assert len(shown(page, ".hit")) == matching > 0
    assert page.find_element("id", "count").text.startswith(f"{matching} of 20 hits")


def test_a_name_is_shown_and_not_run(browser, search):
    names = [ODD, "</script><script>document.title='run'</script>",
             '"><img src=x onerror="document.title=1">', "{{rows}}", "a\nb\x1b[31m",
             "\udce9.png", "javascript:alert(1)"]
    write_gallery(search.cwd / "g.npz", make_gallery(unit(np.eye(7)), names=names))
    assert search("g.npz", "g.npz", "--top", 1).returncode == 0
    browser.get((search.cwd / "hits/hits.html").as_uri())
    seen = [element.text for element in browser.find_elements("css selector", ".query .path")]
    assert seen == [ODD, *names[1:4], "a b\\x1b[31m", "\\udce9.png", names[6]]
    browser.find_element("css selector", ".hit button").click()
    assert browser.title == "g.npz in g.npz"
    assert len(browser.find_elements("css selector", "script")) == 2 and browser.get_log("browser") == []


# ----------------------------------------------------------------------------------------------------- Qdrant
def test_qdrant_finds_the_same(tmp_path, capsys):
    client = pytest.importorskip("qdrant_client")
    from tools import qdrant
    rng = np.random.default_rng(0)
    feats, query = unit(rng.standard_normal((40, 32))), unit(rng.standard_normal((3, 32)))
    names = [f"cam{number % 4}/20260131_0000{number:02d}.png" for number in range(40)]
    write_gallery(tmp_path / "day.npz", make_gallery(feats, names=names))
    words = [tmp_path / "day.npz", "--collection", "day", "--path", tmp_path / "engine", "--batch", 16]
    for sent in (40, 0):  # again: the same points, which are there
        qdrant.main(words)
        assert f"day: {sent} points from" in capsys.readouterr().out
    store = client.QdrantClient(path=str(tmp_path / "engine"))
    assert store.count("day").count == 40
    expected = find_nearest(query, feats, 10)
    for row, similarities, vector in zip(expected.rows, expected.similarities, query):
        points = store.query_points("day", query=vector.tolist(), limit=10).points
        assert [point.payload["row"] for point in points] == row.tolist()
        np.testing.assert_allclose([point.score for point in points], similarities, atol=1e-5)
    assert points[0].payload == {"path": names[row[0]], "row": int(row[0]), "camera": int(row[0]) % 4,
                                 "time": f"2026-01-31T00:00:{row[0]:02d}", "modality": "visible",
                                 "checkpoint": "a" * 64, "feature": "bnneck", "shows": ""}
    for other in (make_gallery(feats, replace(RECORD, checkpoint="b" * 64)), make_gallery(feats[:, :16])):
        with pytest.raises(UserError, match="--collection day: .* found, .* expected"):
            qdrant.hand_over(store, "day", other)
    store.close()


def test_a_slow_answer_is_waited_for_and_a_hand_over_goes_on(monkeypatch, capsys):
    client = pytest.importorskip("qdrant_client")
    from tools import qdrant
    waits, store = [], client.QdrantClient(":memory:")
    monkeypatch.setattr(qdrant.time, "sleep", waits.append)

    def fail(times):
        slow = mock.Mock(wraps=store)
        slow.upsert.side_effect = [ConnectionError("timed out")] * times + [mock.DEFAULT] * 9
        return slow

    names = [f"{number}.png" for number in range(9)] + ["\udce9.png"]  # a name that is no UTF-8
    gallery = make_gallery(unit(np.eye(10)), names=names)
    assert qdrant.hand_over(fail(3), "day", gallery, batch=4) == 10 and waits == [1, 2, 4]
    assert capsys.readouterr().err.count("trying again in") == 3
    assert {point.payload["path"] for point in store.scroll("day", limit=20)[0]} == {*names[:9], "\\xe9.png"}
    grown = make_gallery(unit(np.eye(10)), names=[*names[1:], "new.png"])
    with pytest.raises(ConnectionError):
        qdrant.hand_over(fail(99), "day", grown, batch=4)
    assert qdrant.hand_over(store, "day", grown, batch=4) == 1 and store.count("day").count == 11
    for number in (1, 2):  # equal names of two folders are two points
        other = replace(gallery, record=replace(RECORD, folder=f"/data/{number}"))
        assert qdrant.hand_over(store, "day", other) == 10 and store.count("day").count == 11 + 10 * number


# ---------------------------------------------------------------------------------------------------- service
def test_the_service_of_the_documents_answers_as_search_does(world):
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
    lines = [line for line in rows_of(world / "hits/hits.csv") if line["query"] == str(image)]
    assert [name for name, _ in found[:4]] == [line["hit"] for line in lines]
    np.testing.assert_allclose([value for _, value in found[:4]],
                               [float(line["similarity"]) for line in lines], atol=1e-5)

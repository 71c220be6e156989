"""embed.py and embedding.py: features of folders, lists, tracklets and boxes, and the file they grow in."""
import functools
import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from conftest import ROOT, make_checkpoint, make_regdb, save_image
from PIL import Image

import datasets.images
import embedding
import features
from checkpoint import load_network
from datasets.images import read_image
from datasets.types import Features, ImageSpec
from retrieval.embedder import open_embedder
from retrieval.gallery import Gallery, Record, read_gallery
from utils import UserError

HEIGHT, WIDTH = 32, 16
SPEC = ImageSpec(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def world(once):
    """A checkpoint, another of the same kind, folders of images, and day.npz of one of them; only read."""
    def make(folder):
        make_checkpoint(folder / "a.t")
        make_checkpoint(folder / "b.t", seed=1)
        make_regdb(folder / "RegDB", persons=4, images=2)
        for number in range(8):
            save_image(folder / f"night/cam{number % 2}/{number // 4}/{number}.png", [number], mode="L")
            save_image(folder / f"day/{number}.png", [100 + number])
        done = scripts.run([ROOT / "embed.py", folder / "day", "--modality", "rgb", "--resume", "a.t",
                            "--gpu", "cpu", "--workers", 1, "--out", "day.npz"], folder)
        assert done.returncode == 0, done.stderr

    return once("embedding", make)


@pytest.fixture
def embed(script, world):
    """Run embed.py in an empty folder."""
    def call(*words, resume="a.t", **options):
        return script("embed.py", *words, "--resume", world / resume, "--gpu", "cpu",
                      "--workers", 1, **options)
    call.cwd = script.cwd
    return call


@functools.cache
def load_once(path):
    return load_network(path)[0].eval()


def oracle(world, paths, modality, flip=False):
    """Features one image at a time, in plain steps."""
    net = load_once(world / "a.t")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for path in paths:
        pixels = read_image(path, ImageSpec(HEIGHT, WIDTH)) if isinstance(path, (str, Path)) else path
        image = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.no_grad():
            outputs = [net(**{modality: view}) for view in ((image, image.flip(3)) if flip else (image,))]
        unit = torch.nn.functional.normalize
        found.append([unit(sum(unit(getattr(output, name)) for output in outputs))[0]
                      for name in ("feats", "neck")])
    pool, bnneck = (np.stack([pair[kind].numpy() for pair in found]) for kind in (0, 1))
    return pool, bnneck


def agree(gallery, expected, tolerance=1e-5):
    pool, bnneck = (expected.pool, expected.bnneck) if isinstance(expected, Gallery) else expected
    assert np.abs(gallery.pool - pool).max() < tolerance and np.abs(gallery.bnneck - bnneck).max() < tolerance
    assert np.ptp(bnneck @ bnneck.T) > 0.01  # else the check would be blind


def plain_network(images):
    """Features of the first pixels, as a function instead of a network."""
    feats = images.reshape(len(images), -1)[:, :8].astype(np.float32) + 1
    return (feats / np.linalg.norm(feats, axis=1, keepdims=True),) * 2


def files(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


# --------------------------------------------------------------------------------------------------- features
def test_a_folder_of_any_depth_in_half_precision_and_mirrored(embed, world):
    done = embed(world / "night", "--modality", "thermal", "--out", "night.npz", "--flip", "--float16")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    gallery = read_gallery(embed.cwd / "night.npz")
    assert sorted(gallery.paths) == files(world / "night") and gallery.bnneck.dtype == np.float16
    agree(gallery, oracle(world, gallery.paths, "infrared", flip=True), 5e-4)
    digest = hashlib.sha256((world / "a.t").read_bytes()).hexdigest()
    assert gallery.record == Record(digest, "base", HEIGHT, WIDTH, True, "infrared", folder=str(embed.cwd))


def test_features_are_those_of_test_py(embed, script, world):
    done = script("test.py", "--resume", world / "a.t", "--data-path", world / "RegDB", "--gpu", "cpu",
                  "--save-features", "f.npz")
    assert done.returncode == 0, done.stderr
    saved = np.load(script.cwd / "f.npz")
    for side, modality in (("query", "visible"), ("gallery", "infrared")):
        Path(script.cwd / "list.txt").write_text("\n".join(saved[f"{side}_paths"]) + "\n")
        assert embed("list.txt", "--modality", modality, "--out", f"{side}.npz").returncode == 0
        gallery = read_gallery(script.cwd / f"{side}.npz")
        assert list(gallery.paths) == [os.path.normpath(path) for path in saved[f"{side}_paths"]]
        np.testing.assert_allclose(gallery.bnneck, saved[f"{side}_feats"], atol=2e-6)
        np.testing.assert_allclose(gallery.pool, saved[f"{side}_feats_pool"], atol=2e-6)


def test_numpy_reads_the_file_and_rows_are_aligned(world):
    plain, mapped = np.load(world / "day.npz", allow_pickle=False), read_gallery(world / "day.npz")
    assert json.loads(str(plain["record"]))["modality"] == "visible" and plain["bnneck"].dtype == np.float32
    np.testing.assert_array_equal(plain["bnneck"], mapped.bnneck)
    for feats in (mapped.bnneck, mapped.pool):
        assert isinstance(feats, np.memmap) and feats.flags.aligned
    agree(mapped, oracle(world, mapped.paths, "visible"))


def test_a_function_is_a_network_too(world):
    paths = files(world / "day")
    found = embedding.embed(plain_network, paths, "visible", HEIGHT, WIDTH, batch_size=5, flip=True)
    images = np.stack([read_image(path, SPEC) for path in paths])
    both = plain_network(images)[0] + plain_network(images[:, :, ::-1])[0]
    assert isinstance(found, Features) and found.paths == tuple(paths) and found.pool.dtype == np.float32
    np.testing.assert_allclose(found.pool, both / np.linalg.norm(both, axis=1, keepdims=True), rtol=1e-5)
    with pytest.raises(ValueError, match="modality: 'thermal' found"):
        embedding.embed(plain_network, paths, "thermal")
    with pytest.raises(UserError, match=r"0\.png: its pool feature is not finite"):
        embedding.embed(lambda images: (np.full((len(images), 2), np.nan),) * 2, paths, "visible")


@pytest.mark.parametrize("name, value", [("gpu", "0"), ("amp", "bf16")])
def test_a_flag_that_onnxruntime_does_not_heed_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name}: no effect"):
        open_embedder("model/visible.onnx", "visible", **{name: value})


# ---------------------------------------------------------------------------------------------- what to embed
def test_each_image_once_however_it_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "shots/deep/er").mkdir(parents=True)
    (tmp_path / "shots/@eaDir").mkdir()
    for name in ("b.png", "deep/er/a.JPG", "deep/c.webp", ".hidden.png", "@eaDir/b.png", "._b.png"):
        save_image(tmp_path / "image.png", [0])
        (tmp_path / "shots" / name).write_bytes((tmp_path / "image.png").read_bytes())
    (tmp_path / "shots/notes.doc").write_text("no image")
    (tmp_path / "shots/deep/up").symlink_to(tmp_path / "shots")
    monkeypatch.chdir(tmp_path)
    for encoding in ("utf-8", "utf-16"):  # with its mark, as Windows writes it
        (tmp_path / "list.txt").write_text("shots/b.png\r\n\nother näme.png\n", encoding=encoding)
        assert embedding.find_images(["shots/", "list.txt", "./shots/b.png"]) == [
            "shots/b.png", "shots/deep/c.webp", "shots/deep/er/a.JPG", "other näme.png"]
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("warning: 1 files that are not .jpg")
        assert second.startswith("warning: 3 hidden and system files and folders left out")
    with pytest.raises(UserError, match="shots/b.png: an image beside the tracklet shots/deep"):
        embedding.find_tracklets(["shots"])


def test_tracklets_are_normalised_means(embed, world):
    done = embed(world / "night", "--tracklets", "--modality", "infrared", "--out", "t.npz")
    assert done.returncode == 0, done.stderr
    gallery = read_gallery(embed.cwd / "t.npz")
    folders = sorted({str(Path(path).parent) for path in files(world / "night")})
    assert sorted(gallery.paths) == folders and gallery.record.rows == "tracklets"
    for row, folder in enumerate(gallery.paths):
        assert str(Path(gallery.images[row]).parent) == folder
        for kind, feats in zip(("pool", "bnneck"), oracle(world, files(Path(folder)), "infrared")):
            mean = feats.mean(0) / np.linalg.norm(feats.mean(0))
            np.testing.assert_allclose(getattr(gallery, kind)[row], mean, atol=1e-5)


def test_boxes_are_crops_and_tracks_are_means(embed, world, tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    for number, frame in enumerate(frames):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / f"frames/{number}.png")
    boxes = [("0.png", 3, 4, 20, 40, 7), ("1.png", 10, 0, 16, 32, 7), ("1.png", 70, 50, 40, 40, 8)]
    crops = [frames[int(name[0])][max(y, 0):y + h, max(x, 0):x + w] for name, x, y, w, h, _ in boxes]
    crops = [np.array(Image.fromarray(crop).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
             for crop in crops]
    pool, bnneck = oracle(world, crops, "visible")
    lines = [",".join(map(str, box[:5])) for box in boxes]
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\n" + "\n".join(lines) + "\n")
    done = embed(tmp_path / "frames", "--boxes", tmp_path / "boxes.csv", "--modality", "visible",
                 "--out", "b.npz")
    assert done.returncode == 0, done.stderr
    gallery = read_gallery(embed.cwd / "b.npz")
    assert list(gallery.paths) == [f"{tmp_path}/frames/{name}#xywh={x},{y},{w},{h}"
                                   for name, x, y, w, h, _ in boxes]
    agree(gallery, (pool, bnneck))
    lines = [f"frames/{','.join(map(str, box))}" for box in boxes]  # beside the CSV file
    (tmp_path / "boxes.csv").write_text("path, x, y, w, h, track\n" + "\n".join(lines) + "\n")
    assert embed("--boxes", tmp_path / "boxes.csv", "--modality", "visible", "--out", "t.npz").returncode == 0
    gallery = read_gallery(embed.cwd / "t.npz")
    assert list(gallery.paths) == [f"{tmp_path}/frames#track={track}" for track in (7, 8)]
    assert gallery.record.rows == "tracks"
    mean = bnneck[:2].mean(0)
    np.testing.assert_allclose(gallery.bnneck, np.stack([mean / np.linalg.norm(mean), bnneck[2]]), atol=1e-5)


def tracks(tmp_path, text):
    (tmp_path / "boxes.csv").write_text(text)
    rows = embedding.read_boxes(str(tmp_path / "boxes.csv"), [])
    return {name: [image.rpartition("/")[2] for image in images] for name, images in rows.items()}


def test_boxes_as_trackers_write_them(tmp_path):
    found = tracks(tmp_path, "Track, H,W,Y,X,Path\n-1,9,8,2.4,1.6,a.png\n,9,8,2,1,b.png\n7.0,9,8,0,0,a.png\n"
                             "7,9,8,0,0,b.png\nx7,9,8,5,5,a.png\n-1.0,9,8,5,5,b.png\n")
    single = ("a.png#xywh=2,2,8,9", "b.png#xywh=1,2,8,9", "b.png#xywh=5,5,8,9")
    assert found == {".#track=7": ["a.png#xywh=0,0,8,9", "b.png#xywh=0,0,8,9"],
                     ".#track=x7": ["a.png#xywh=5,5,8,9"], **{box: [box] for box in single}}
    zero = "path,x,y,w,h,track\na.png,0,0,9,9,0\nb.png,0,0,9,9,0\n"
    assert list(tracks(tmp_path, zero)) == [".#track=0"]  # one box in each frame: a track
    assert len(tracks(tmp_path, zero + "b.png,5,5,9,9,0\n")) == 3  # two in one: no track


def test_a_frame_is_decoded_once_a_cut_box_is_said_and_one_outside_left_out(embed, tmp_path, monkeypatch):
    for number in range(2):
        save_image(tmp_path / f"{number}.png", [number], (80, 60))
    boxes = [(number, 7 * place, 5, 20, 30) for place in range(11) for number in range(2)]
    boxes.append((0, 90, 0, 9, 9))
    lines = [f"{number}.png,{x},{y},{w},{h}" for number, x, y, w, h in boxes]
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\n" + "\n".join(lines) + "\n")
    decoded, decode = [], datasets.images.decode
    monkeypatch.setattr(datasets.images, "decode", lambda path, _: decoded.append(path) or decode(path, None))
    done = embed("--boxes", tmp_path / "boxes.csv", "--modality", "visible", "--out", "t.npz",
                 "--test-batch", 4)
    assert done.returncode == 3 and "0.png#xywh=90,0,9,9: nothing of this box lies within" in done.stderr
    assert len(read_gallery(embed.cwd / "t.npz")) == 22 and len(decoded) == 2
    assert "4 boxes lie partly outside their images" in done.stderr


@pytest.mark.parametrize("line, words", [("0.png,1,2,x,4", "line 2: path=0.png,x=1,y=2,w=x,h=4 found"),
                                         ("0.png,1,2,0,4", "w and h at least 1"), ("0.png,1", "line 2"),
                                         ("", "no box found"), ("0.png,1e300,2,3,4", "line 2")])
def test_a_malformed_box_names_its_line(tmp_path, line, words):
    with pytest.raises(UserError, match=words):
        tracks(tmp_path, f"path,x,y,w,h\n{line}\n")


# --------------------------------------------------------------------------------------------------- warnings
@pytest.mark.parametrize("folder, modality, warned",
                         [("night", "visible", "given as visible have no colour"), ("day", "visible", None),
                          ("day", "infrared", "given as infrared have colour"), ("night", "infrared", None)])
def test_colour_tells_the_wrong_modality(folder, modality, warned, world, capsys):
    embedding.embed(plain_network, files(world / folder), modality, HEIGHT, WIDTH)
    said = capsys.readouterr().err
    assert said == "" if warned is None else (f"8 of 8 images {warned}" in said and said.count("\n") == 1)


def test_grey_jpegs_have_no_colour_and_whole_photographs_are_warned_of(tmp_path, capsys):
    for quality in (30, 90):
        save_image(tmp_path / "x.png", [quality], mode="L")
        Image.open(tmp_path / "x.png").convert("RGB").save(tmp_path / "x.jpg", quality=quality)
        assert not embedding.have_colour(read_image(tmp_path / "x.jpg", SPEC)[None]).any()
    save_image(tmp_path / "wide.png", [0], (40, 30))
    paths = [str(tmp_path / name) for name in ("wide.png", "wide.png", "x.png")]
    embedding.warn_of_shapes(paths)
    assert "most images are wider than tall" in capsys.readouterr().err
    embedding.warn_of_shapes([f"{path}#xywh=0,0,10,20" for path in paths])
    assert "wider" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- what cannot be read
@pytest.fixture
def broken(world, tmp_path):
    """A folder of three images and of files that are none, a named pipe among them."""
    for number in range(3):
        save_image(tmp_path / f"mixed/{number}.png", [number])
    (tmp_path / "mixed/1b.png").write_bytes(b"")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "mixed/2c.png")
    (tmp_path / "mixed/2b.jpg").write_bytes((tmp_path / "mixed/1.png").read_bytes()[:200])
    return tmp_path / "mixed"


def test_unreadable_files_are_named_and_left_out_unless_strict(embed, world, broken):
    words = ("--modality", "visible", "--out", "m.npz")
    for inputs, said in (([broken, "--strict"], "1b.png: cannot be decoded as an image"),
                         ([broken / "1b.png"], "no image was read")):
        done = embed(*inputs, *words)
        assert done.returncode == 2 and said in done.stderr and list(embed.cwd.iterdir()) == [], done.stderr
    done = embed(broken, *words, "--test-batch", 2)
    assert done.returncode == 3
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        str(path) for path in sorted(broken.iterdir()) if len(path.stem) > 1]
    gallery = read_gallery(embed.cwd / "m.npz")
    assert [Path(path).name for path in gallery.paths] == ["0.png", "1.png", "2.png"]
    agree(gallery, oracle(world, gallery.paths, "visible"))


# ---------------------------------------------------------------------------------------------------- growing
def test_append_adds_what_is_not_there(embed, world):
    some = [world / f"day/{number}.png" for number in (3, 5)]
    for words in (some, [world / "day"], [world / "day"]):
        done = embed(*words, "--modality", "visible", "--out", "day.npz", "--append")
        assert done.returncode == 0, done.stderr
    assert "8 images, nothing to add" in done.stdout
    grown, expected = read_gallery(embed.cwd / "day.npz"), read_gallery(world / "day.npz")
    assert list(grown.paths[:2]) == list(map(str, some)) and sorted(grown.paths) == sorted(expected.paths)
    rows = [list(expected.paths).index(path) for path in grown.paths]
    np.testing.assert_allclose(grown.bnneck, expected.bnneck[rows], atol=2e-6)
    assert grown.record == replace(expected.record, folder=str(embed.cwd))


def test_a_row_is_its_name_and_what_it_shows(world, tmp_path):
    def grow(folder, *inputs):
        done = scripts.run([ROOT / "embed.py", *inputs, "--modality", "visible", "--resume", world / "a.t",
                            "--gpu", "cpu", "--workers", "1", "--out", "../g.npz", "--append"], folder)
        gallery = read_gallery(tmp_path / "g.npz")
        return dict(zip(gallery.paths, gallery.bnneck)), done.stderr

    for camera in "ab":
        for number in range(2):
            save_image(tmp_path / camera / f"{number}.png", [ord(camera), number])
    before, _ = grow(tmp_path / "a", ".")
    save_image(tmp_path / "a/0.png", [99])
    rows, said = grow(tmp_path / "b", "../a", ".")  # and the same relative names elsewhere
    assert set(rows) == {"0.png", "1.png", "../b/0.png", "../b/1.png"}
    assert "1 images have changed and are embedded again, the first ../a/0.png" in said
    assert np.abs(rows["0.png"] - before["0.png"]).max() > 1e-3


def test_the_tracks_of_a_second_file_are_refused_by_name(embed, world, tmp_path):
    for number in range(3):
        save_image(tmp_path / f"{number}.png", [number], (60, 60))
    def csv(*lines):
        (tmp_path / "b.csv").write_text("path,x,y,w,h,track\n" + "\n".join(lines) + "\n")
        return embed("--boxes", tmp_path / "b.csv", "--modality", "visible", "--out", "t.npz", "--append")
    assert csv("0.png,0,0,20,40,1").returncode == 0
    assert "1 tracks have changed" in csv("0.png,0,0,20,40,1", "1.png,0,0,20,40,1").stderr  # it has grown
    done = csv("2.png,5,5,20,40,1")
    assert done.returncode == 2 and "#track=1: another track than that of this name" in done.stderr
    assert len(read_gallery(embed.cwd / "t.npz")) == 1


def test_a_file_of_an_earlier_version_grows(embed, world):
    content = dict(np.load(world / "day.npz"))
    record = json.loads(str(content["record"]))
    del content["shows"], record["folder"]
    for feats, status, said in ((content["bnneck"], 0, "8 of them again"),
                                (-content["bnneck"], 2, "is not what the row of this name shows")):
        np.savez(embed.cwd / "old.npz",
                 **{**content, "bnneck": feats, "record": np.array(json.dumps(record))})
        done = embed(world / "day", "--modality", "visible", "--out", "old.npz", "--append")
        assert done.returncode == status and said in done.stdout + done.stderr, done.stderr
    assert len(read_gallery(embed.cwd / "old.npz")) == 8


def test_two_writers_lose_nothing(embed, world, monkeypatch):
    original = embedding.as_gallery

    def other_first(*args):
        monkeypatch.setattr(embedding, "as_gallery", original)
        assert embed(world / "day/1.png", *words).returncode == 0
        return original(*args)

    words = ("--modality", "visible", "--out", "g.npz", "--append")
    monkeypatch.setattr(embedding, "as_gallery", other_first)
    assert embed(world / "day/0.png", *words).returncode == 0
    assert {Path(path).name for path in read_gallery(embed.cwd / "g.npz").paths} == {"0.png", "1.png"}


@pytest.mark.parametrize("words, resume, said", [
    ("visible", "b.t", ": checkpoint "), ("infrared", "a.t", ": modality "),
    ("visible --tracklets", "a.t", ": rows "), ("visible --img_h 64", "a.t", "--img_h 64: the checkpoint")])
def test_append_refuses_another_kind(embed, world, words, resume, said):
    shutil.copy(world / "day.npz", embed.cwd)
    done = embed(world / "night", "--modality", *words.split(), "--out", "day.npz", "--append", resume=resume)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert (embed.cwd / "day.npz").read_bytes() == (world / "day.npz").read_bytes()
    assert len(list(embed.cwd.iterdir())) == 1


def test_a_signal_keeps_what_is_done(embed, world, monkeypatch):
    original = features.read_batches

    def interrupted(*args):
        for number, batch in enumerate(original(*args)):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    words = [world / "day", "--modality", "visible", "--out", "day.npz", "--test-batch", "1"]
    monkeypatch.setattr(features, "read_batches", interrupted)
    done = embed(*words)
    assert done.returncode == 143 and done.stderr.endswith("--append goes on\n"), done.stderr
    assert len(read_gallery(embed.cwd / "day.npz")) == 5 and "stopped with 5 of 8 images" in done.stderr
    monkeypatch.setattr(features, "read_batches", original)
    assert embed(*words, "--append").returncode == 0
    gallery = read_gallery(embed.cwd / "day.npz")
    assert list(gallery.paths) == files(world / "day")
    agree(gallery, read_gallery(world / "day.npz"))


# -------------------------------------------------------------------------------------------- a mistaken file
@pytest.mark.parametrize("change, said", [
    (lambda content: content.update(pool=content["pool"][:3]), "pool float32"),
    (lambda content: content.update(paths=content["paths"].astype(object)), "paths.npy: object"),
    (lambda content: content.update(record=np.array('{"format": 2}')), "another format than 1"),
    (lambda content: content.pop("record"), "KeyError")])
def test_what_is_no_gallery_is_refused(world, tmp_path, change, said):
    content = dict(np.load(world / "day.npz"))
    change(content)
    np.savez(tmp_path / "g.npz", **content)
    with pytest.raises(UserError, match=f"not a whole gallery file .*{said}"):
        read_gallery(tmp_path / "g.npz")


def test_a_compressed_and_a_cut_gallery_and_a_pipe_are_refused(world, tmp_path):
    path, whole = tmp_path / "g.npz", (world / "day.npz").read_bytes()
    np.savez_compressed(path, **np.load(world / "day.npz"))
    with pytest.raises(UserError, match="is compressed"):
        read_gallery(path)
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="not a whole gallery file"):
            read_gallery(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="a named pipe, a file that embed.py wrote expected"):
        read_gallery(path)


@pytest.mark.parametrize("words, said",
                         [(("--out", "x.npy"), "--out x.npy: the name of a file that ends in .npz"),
                          ((), "INPUT: no image found"), (("nowhere",), "nowhere: no such file or folder"),
                          (("--boxes", "b.csv"), "b.csv: no such file"),
                          (("--boxes", "b.csv", "--tracklets"), "--tracklets: not allowed with")])
def test_mistakes_are_one_line(embed, words, said):
    out = () if "--out" in words else ("--out", "x.npz")
    done = embed(*words, "--modality", "visible", *out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert list(embed.cwd.iterdir()) == []

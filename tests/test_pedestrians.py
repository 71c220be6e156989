"""The synthetic stand-ins: reproducible, complete, and not to be solved by comparing pixels or colours."""
from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scripts
from PIL import Image
from scipy.io import loadmat

import data_manager
from datasets.llcm import LLCM
from synthetic import pedestrians

ROOT = Path(pedestrians.__file__).parents[1]
VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
IDS, SYSU_IMAGES, REGDB_IMAGES, LLCM_IMAGES = 24, 2, 3, 1


@pytest.fixture(scope="module")
def sysu(once: Callable) -> Path:
    render = partial(pedestrians.render_sysu, ids=IDS, images=SYSU_IMAGES, seed=0, workers=2)
    return once("rendered_sysu", render)


@pytest.fixture(scope="module")
def regdb(once: Callable) -> Path:
    render = partial(pedestrians.render_regdb, ids=IDS, images=REGDB_IMAGES, seed=0, workers=2)
    return once("rendered_regdb", render)


@pytest.fixture(scope="module")
def llcm(once: Callable) -> Path:
    render = partial(pedestrians.render_llcm, ids=IDS, images=LLCM_IMAGES, seed=0, workers=2)
    return once("rendered_llcm", render)


def digests(root: Path) -> dict[str, str]:
    """File name → hash of the bytes."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("render, workers", [(pedestrians.render_sysu, 1), (pedestrians.render_regdb, 2)])
def test_the_seed_decides_every_byte(render, workers, tmp_path):
    calls = []
    render(tmp_path / "a", 3, 1, seed=5, progress=lambda *call: calls.append(call))
    render(tmp_path / "b", 3, 1, seed=5, workers=workers)
    render(tmp_path / "c", 3, 1, seed=6)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    images = [name for name in first if name.endswith(("jpg", "bmp"))]
    assert images and all(first[name] != other.get(name) for name in images)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing temporary stays


def test_full_folders_are_refused(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        pedestrians.render_sysu(tmp_path, 3, 1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_interrupted_rendering_leaves_nothing(tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pedestrians.render_regdb(tmp_path / "new", 3, 1, seed=0, progress=stop)
    assert not list(tmp_path.iterdir())


DRIVER = """
import time
from synthetic import pedestrians
from command_line import run

def render(pid):
    time.sleep(300 * (pid - 1))

def main():
    pedestrians.for_each(render, 2, 2, lambda done, total: print(done, flush=True))

if __name__ == "__main__":
    run(main)
"""


@pytest.fixture
def rendering(tmp_path):
    """A script that renders in two processes, one idle and one at work for minutes, and their numbers."""
    (tmp_path / "driver.py").write_text(DRIVER)
    script = subprocess.Popen([sys.executable, tmp_path / "driver.py"], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              start_new_session=True, preexec_fn=scripts.hear_signals)
    assert script.stdout.readline() == "1\n"
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    workers = [int(pid) for pid in children
               if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    yield script, workers
    script.kill()


def ended(pid: int) -> bool:
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("signum, all_of_them", [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_an_interruption_ends_all_processes_with_one_line(rendering, signum, all_of_them):
    script, workers = rendering
    (os.killpg if all_of_them else os.kill)(script.pid, signum)
    _, said = script.communicate(timeout=30)
    assert all(map(ended, workers))
    if signum != signal.SIGKILL:
        assert script.returncode == 128 + signum and said.count("\n") == 1 and "error" not in said, said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_is_said_in_one_line_and_ends_the_others(rendering, number):
    script, workers = rendering
    os.kill(workers[number], signal.SIGKILL)
    _, said = script.communicate(timeout=30)
    assert script.returncode == 2 and all(map(ended, workers))
    assert said == "driver.py: error: a process that renders persons was ended; free memory, and run again\n"


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm"])
def test_the_check_of_a_copy_finds_no_fault(layout, request, capsys):
    with pytest.raises(SystemExit) as ended:
        data_manager.main([str(request.getfixturevalue(layout))])
    assert ended.value.code == 0 and "FAULT" not in capsys.readouterr().out


def test_sysu_permutations(sysu):
    cells = loadmat(sysu / "exp" / "rand_perm_cam.mat")["rand_perm_cam"]
    assert cells.shape == (6, 1)
    met, varied = {pid: [] for pid in range(1, IDS + 1)}, False
    for cam in range(1, 7):
        assert cells[cam - 1][0].shape == (IDS, 1)
        for pid in met:
            files = sorted(path.name for path in (sysu / f"cam{cam}" / f"{pid:04d}").glob("*"))
            rows = cells[cam - 1][0][pid - 1][0]
            assert rows.shape == (10, len(files)) and rows.dtype == np.uint8
            assert all(sorted(row) == list(range(1, len(files) + 1)) for row in rows.tolist())
            met[pid] += [cam] * bool(files)
            varied |= len(np.unique(rows, axis=0)) > 1
    assert varied and len(set(map(tuple, met.values()))) > 3  # not everybody was everywhere


def test_sysu_images(sysu):
    shapes = set()
    for path in sysu.glob("cam*/*/*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB" and 80 <= image.width <= 160 and 200 <= image.height <= 380
            shapes.add(image.size)
            pixels = np.asarray(image, np.int16)
        coloured = bool(np.ptp(pixels, axis=2).max() > 16)
        assert coloured == (int(path.parts[-3][3:]) in VISIBLE)
    assert len(shapes) > IDS


def test_regdb_images_and_splits(regdb):
    tests = {(regdb / f"idx/test_visible_{trial}.txt").read_text() for trial in range(1, 11)}
    assert len(tests) == 10
    for path in regdb.glob("*/*/*.bmp"):
        with Image.open(path) as image:
            assert image.size == (64, 128) and image.mode == "RGB"
            grey = not np.ptp(np.asarray(image), axis=2).any()
        assert grey == ("Thermal" in path.parts)


def test_llcm_is_by_night_and_has_cameras_of_the_same_place(llcm):
    split, search = LLCM().train_split(llcm), LLCM().searches(llcm, trials=[0])[0]
    visible, infrared = (np.mean([np.asarray(Image.open(path)).mean() for path in side.paths])
                         for side in split.sides)
    assert visible < 80 < infrared and not search.seen().all()


def test_a_person_looks_different_to_every_camera(sysu):
    name = next(path.name for path in sorted(sysu.glob("cam1/*"))
                if len(list(sysu.glob(f"cam*/{path.name}"))) == 6)
    thumbs = [thumb(sysu / f"cam{cam}" / name / "0001.jpg").mean(axis=2) for cam in range(1, 7)]
    for i, one in enumerate(thumbs):
        for other in thumbs[:i]:
            assert np.abs(one - other).mean() > 0.04


def thumb(path: Path) -> np.ndarray:
    """An image shrunk to (48, 24, 3), 0..1."""
    with Image.open(path) as image:
        return np.asarray(image.resize((24, 48), Image.Resampling.BILINEAR), np.float32) / 255


def histogram(path: Path, colours: bool) -> np.ndarray:
    """The share of pixels in each of 8 x 8 x 8 colours, or 32 intensities."""
    with Image.open(path) as image:
        pixels = np.asarray(image).reshape(-1, 3)
    bins, pixels = (8, pixels) if colours else (32, pixels.mean(axis=1, keepdims=True))
    counts, _ = np.histogramdd(pixels, (bins,) * pixels.shape[1], ((0, 256),) * pixels.shape[1])
    return counts.ravel() / len(pixels)


FEATURES = {
    "grey pixels": lambda path: thumb(path).mean(axis=2).ravel(),
    "colour pixels": lambda path: thumb(path).ravel(),
    "intensity histogram": lambda path: histogram(path, colours=False),
    "colour histogram": lambda path: histogram(path, colours=True),
}


def times_chance(feats: np.ndarray, pids: np.ndarray, camids: np.ndarray, draws: int = 10) -> float:
    """Rank-1 of infrared queries by nearest neighbour, an image a person and visible camera, over chance."""
    query, hits, guesses = np.isin(camids, INFRARED), 0.0, 0.0
    groups = [np.flatnonzero((pids == pid) & (camids == cam)) for cam in VISIBLE for pid in np.unique(pids)]
    rng = np.random.default_rng(0)
    for _ in range(draws):
        gallery = np.array([rng.choice(group) for group in groups if len(group)])
        # up to a term per query
        dist_mat = (feats[gallery] ** 2).sum(axis=1) - 2 * feats[query] @ feats[gallery].T
        match = pids[query, None] == pids[None, gallery]
        usable = ~((camids[query, None] == 3) & (camids[None, gallery] == 2))  # the protocol: same room
        valid = (match & usable).any(axis=1)
        nearest = np.where(usable, dist_mat, np.inf).argmin(axis=1)
        hits += match[np.arange(len(match)), nearest][valid].mean()
        guesses += ((match & usable).sum(axis=1) / usable.sum(axis=1))[valid].mean()
    return hits / guesses


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm"])
def test_nearest_neighbours_stay_near_chance(layout, feature, request):
    root = request.getfixturevalue(layout)
    if layout == "sysu":
        paths = sorted(root.glob("cam*/*/*.jpg"))
        camids = np.array([int(path.parts[-3][3:]) for path in paths])
    elif layout == "llcm":
        paths = sorted(root.rglob("*.jpg"))
        camids = np.array([6 if path.stem.endswith("nir") else 1 for path in paths])
    else:
        paths = sorted(root.glob("*/*/*.bmp"))
        camids = np.array([6 if "Thermal" in path.parts else 1 for path in paths])
    pids = np.array([int(path.parent.name) for path in paths])
    feats = np.stack([FEATURES[feature](path) for path in paths]).astype(np.float32)
    assert times_chance(feats, pids, camids) < 3

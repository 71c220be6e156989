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

import data_manager
from data_manager import DATASETS
from synthetic import pedestrians

ROOT = Path(pedestrians.__file__).parents[1]
VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
IDS, IMAGES = 24, {"sysu": 2, "regdb": 3, "llcm": 1}


@pytest.fixture(scope="module")
def rendered(once: Callable) -> Callable[[str], Path]:
    """Render a layout once: rendered("sysu")."""
    def call(layout: str) -> Path:
        render = getattr(pedestrians, f"render_{layout}")
        return once(f"rendered_{layout}", partial(render, ids=IDS, images=IMAGES[layout], seed=0, workers=2))

    return call


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


@pytest.mark.parametrize("layout", IMAGES)
def test_the_check_of_a_copy_finds_nothing(layout, rendered):
    """Nor of the official draws, which --gallery official makes."""
    assert data_manager.check(rendered(layout), False)[1].found == {}


def test_sysu_images(rendered):
    shapes = set()
    for path in rendered("sysu").glob("cam*/*/*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB" and 80 <= image.width <= 160 and 200 <= image.height <= 380
            shapes.add(image.size)
            pixels = np.asarray(image, np.int16)
        coloured = bool(np.ptp(pixels, axis=2).max() > 16)
        assert coloured == (int(path.parts[-3][3:]) in VISIBLE)
    assert len(shapes) > IDS


def test_regdb_images_and_splits(rendered):
    assert len({path.read_text() for path in rendered("regdb").glob("idx/test_visible_*.txt")}) == 10
    for path in rendered("regdb").glob("*/*/*.bmp"):
        with Image.open(path) as image:
            assert image.size == (64, 128) and image.mode == "RGB"
            grey = not np.ptp(np.asarray(image), axis=2).any()
        assert grey == ("Thermal" in path.parts)


def test_llcm_is_by_night_and_has_cameras_of_the_same_place(rendered):
    root, data = rendered("llcm"), DATASETS["llcm"]
    split, search = data.train_split(root), data.searches(root, trials=[0])[0]
    visible, infrared = (np.mean([np.asarray(Image.open(path)).mean() for path in side.paths])
                         for side in split.sides)
    assert visible < 80 < infrared and not search.seen().all()


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
@pytest.mark.parametrize("layout", IMAGES)
def test_nearest_neighbours_stay_near_chance(layout, feature, rendered):
    root, data = rendered(layout), DATASETS[layout]
    sides = [*data.train_split(root).sides, *data.test_images(root).values()]
    camids = np.concatenate([side.camids if layout == "sysu" else np.full(len(side), INFRARED[-1] if
                             side.modality == "infrared" else VISIBLE[0]) for side in sides])
    paths = [Path(path) for side in sides for path in side.paths]
    pids = np.array([int(path.parent.name) for path in paths])
    feats = np.stack([FEATURES[feature](path) for path in paths]).astype(np.float32)
    assert times_chance(feats, pids, camids) < 3

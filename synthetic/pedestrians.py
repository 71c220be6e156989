"""Procedural pedestrians, seen by visible and infrared cameras, in the layouts of SYSU-MM01, RegDB and LLCM.

`persons.py` draws who they are, `painting.py` paints them, `scenes.py` what stands behind them; here a camera
takes its shots, which are stored as the data sets store theirs.
"""
from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from synthetic.painting import Canvas, paint_person
from synthetic.persons import PERSON, SHOT, SPLIT, Camera, Person, draw_person
from synthetic.scenes import backdrop, clouds
from command_line import SIGNALS
from utils import UserError

SYSU_CAMERAS = {
    1: Camera("visible", "office", 1, (-0.6, -0.7, 0.5), 0.45, 1.05, (1.08, 1.0, 0.86),
              slope=0.15, blur=0.0022),
    2: Camera("visible", "corridor", 2, (0.1, -0.9, 0.4), 0.38, 0.82, (0.94, 1.04, 0.96),
              0.66, -0.25, 0.2, noise=0.03),
    3: Camera("near", "corridor", 2, (0.0, -0.15, 1.0), 0.22, vignette=0.45, blur=0.0032, noise=0.03),
    4: Camera("visible", "garden", 4, (0.8, -0.5, 0.35), 0.38, 1.15, (1.0, 1.0, 0.96),
              0.6, 0.1, 0.0, noise=0.012),
    5: Camera("visible", "street", 5, (-0.7, -0.7, 0.1), 0.5, 0.9, (0.88, 0.98, 1.14),
              0.58, -0.1, blur=0.004),
    6: Camera("near", "street", 6, (0.25, -0.2, 0.95), 0.15, 1.1,
              gamma=0.7, vignette=0.5, blur=0.004, noise=0.035),
}
REGDB_CAMERAS = {
    "Visible": Camera("visible", "street", 7, (0.5, -0.7, 0.4), 0.5, 0.95, (1.0, 1.0, 1.04),
                      slope=0.1, blur=0.004),
    "Thermal": Camera("thermal", "street", 7, (0.0, -0.3, 0.95), 0.8, gamma=1.0, blur=0.006, noise=0.015),
}
# scene, room and light of nine places by night
LLCM_PLACES = {
    1: ("street", 11, (-0.5, -0.6, 0.4)), 2: ("garden", 12, (0.3, -0.8, 0.3)),
    3: ("office", 13, (0.6, -0.6, 0.3)), 4: ("corridor", 14, (0.0, -0.9, 0.3)),
    5: ("street", 15, (0.7, -0.5, 0.2)), 6: ("garden", 16, (-0.7, -0.5, 0.2)),
    7: ("corridor", 17, (-0.2, -0.8, 0.5)), 8: ("street", 18, (0.1, -0.9, 0.4)),
    9: ("office", 19, (-0.4, -0.7, 0.4)),
}
LLCM_MODALITIES = ("vis", "nir")
NOT_IN_TEST = ("nir", 3)  # LLCM's camera 3 has no infrared test images
EVERYWHERE = (1, 2, 3, 4, 5, 6)
# which SYSU-MM01 cameras met a person; dealt in turn, so that even a handful of persons fills every camera
PRESENCE = EVERYWHERE, (4, 5, 6), (1, 2, 3), EVERYWHERE, (1, 3, 4, 5, 6), EVERYWHERE, (2, 3, 4, 6)
LLCM_PRESENCE = ((1, 2, 3, 4, 5), (5, 6, 7, 8, 9), (1, 3, 5, 7, 9), (2, 4, 6, 8), (1, 4, 7), (2, 5, 8),
                 (3, 6, 9))


def render_shot(person: Person, camera: Camera, seed: int, key: list[int],
                size: tuple[int, int] | None = None, scale: float = 1.0) -> Image.Image:
    """A camera's crop of a person, RGB, of `size` (height, width) or, if None, as large as a detector's box.

    `seed` chooses the scene, `key` the moment; the same arguments give the same pixels. scale: of the size
    and of the noise of a pixel, as if a larger crop were resized.
    """
    rng = np.random.default_rng(key)
    if size is None:
        tall = int(rng.integers(200, 381))
        size = tall, min(max(int(tall * rng.uniform(0.37, 0.46)), 80), 160)
    height, width = (int(scale * side) for side in size)
    size, camera = (height, width), replace(camera, noise=scale * camera.noise)
    image = backdrop(camera, seed, size, rng)
    scale = height * 0.88 * person.stature * (1 + rng.normal(0, camera.framing))
    left = rng.normal(0.5, 1.5 * camera.framing) * width
    upper = (height - scale) / 2 + rng.normal(0, camera.framing) * height
    yaw = float(rng.choice((0, 0, 0, 0.5, -0.5, np.pi))) + rng.normal(0, 0.25)  # most come towards the camera
    folds = 0.3 * clouds(rng, size, scale / 22, 0.55) + 0.25 * clouds(rng, size, scale / 12, 2.0)
    planes = np.zeros((image.shape[2] + 1, height, width), np.float32)  # so that rows are painted whole
    canvas = Canvas(planes.transpose(1, 2, 0), folds, scale, (left, upper), camera, yaw)
    paint_person(person, canvas, rng)

    if camera.spectrum != "thermal":  # the shadow on the ground falls away from the light
        x = (np.arange(width, dtype=np.float32) - left) / scale + 0.12 * camera.light[0]
        y = (np.arange(height, dtype=np.float32) - upper) / scale - 0.985
        image = image * (1 - 0.6 * np.exp(-((x[None] / 0.2) ** 2) - (y[:, None] / 0.045) ** 2))[..., None]
    return develop(image * (1 - canvas.rgba[..., -1:]) + canvas.rgba[..., :-1], camera, rng)


def develop(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Turn linear tones (height, width, channels) into a camera's RGB, 8 bits: light, cast, lens, sensor."""
    height, width, channels = image.shape
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    gain = camera.gain * math.exp(rng.normal(0, 0.2))
    light = gain * (1 + camera.slope * x) * (1 - camera.vignette * (0.4 * x * x + 0.6 * y * y))
    cast = np.float32(camera.cast[:channels]) * np.float32(1 + rng.normal(0, 0.06, channels))
    image = np.clip(image * light[..., None] * cast, 0, 1) ** camera.gamma
    radius = camera.blur * height * rng.uniform(0.7, 1.4)
    focus = Image.fromarray((image * 255).astype(np.uint8).squeeze()).filter(ImageFilter.GaussianBlur(radius))
    grain = rng.standard_normal((height, width, 1), np.float32)
    if channels > 1:
        grain = grain + 0.5 * rng.standard_normal(image.shape, np.float32)
    image = np.asarray(focus, np.float32).reshape(image.shape) + 255 * camera.noise * grain
    return Image.fromarray(np.repeat(np.clip(image, 0, 255).astype(np.uint8), 3 // channels, axis=2))


@contextlib.contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """A temporary folder that becomes `root` in the end; FileExistsError if `root` is not empty."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not empty: remove it, or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def for_each(task: Callable[[int], None], ids: int, workers: int,
             progress: Callable[[int, int], None] | None) -> None:
    """Call a picklable task for persons 1..ids, in `workers` processes if more than one; reports (done, ids).

    Raises `UserError` if one of the processes is killed, as the system does where memory runs out.
    """
    report = progress or (lambda done, total: None)
    if workers <= 1:
        for pid in range(1, ids + 1):
            task(pid)
            report(pid, ids)
        return
    with signals_ignored():  # as all processes start
        pool = ProcessPoolExecutor(min(workers, ids), multiprocessing.get_context("spawn"), follow_parent)
        jobs = [pool.submit(task, pid) for pid in range(1, ids + 1)]
    try:
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            report(done, ids)
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.kill()  # a killed process may have held a lock that the others would wait for
        if isinstance(error, BrokenProcessPool):
            raise UserError("a process that renders persons was ended; free memory, and run again") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore the signals that end a script; processes that start meanwhile leave them to their parent."""
    before = [signal.signal(number, signal.SIG_IGN) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before):
            signal.signal(number, handler)


def follow_parent() -> None:
    """Have this process end with its parent, even if that is killed."""
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def render_sysu_person(root: Path, cameras: dict[int, tuple[int, ...]], images: int, seed: int, scale: float,
                       pid: int) -> None:
    """Write one person's crops, `images` in each of the cameras that met the person."""
    person = draw_person([seed, PERSON, 1, pid])
    for cam in cameras[pid]:
        folder = root / f"cam{cam}" / f"{pid:04d}"
        folder.mkdir(parents=True)
        for shot in range(1, images + 1):
            image = render_shot(person, SYSU_CAMERAS[cam], seed, [seed, SHOT, 1, pid, cam, shot], scale=scale)
            image.save(folder / f"{shot:04d}.jpg", quality=SYSU_CAMERAS[cam].quality)


def render_sysu(root: Path, ids: int, images: int, seed: int,
                progress: Callable[[int, int], None] | None = None, workers: int = 1,
                tests: int | None = None, scale: float = 1.0) -> None:
    """Render persons with `images` crops a camera in SYSU-MM01's layout; the same seed gives the same bytes.

    A third of the persons, or `tests` of them if fewer, is for testing, a seventh of the others in
    val_id.txt. scale: see `render_shot`. Raises FileExistsError if `root` is not empty.
    """
    from scipy.io import savemat

    rng = np.random.default_rng([seed, SPLIT, 1])
    order = [int(pid) for pid in rng.permutation(ids) + 1]
    cameras = {pid: PRESENCE[place % len(PRESENCE)] for place, pid in enumerate(order)}
    tests = min(tests or ids, max(1, round(ids / 3)))
    vals = tests + max(1, (ids - tests) // 7)
    splits = {"test": order[:tests], "val": order[tests:vals], "train": order[vals:]}
    permutations = np.empty((len(SYSU_CAMERAS), 1), object)
    for cam in SYSU_CAMERAS:
        cells = np.empty((ids, 1), object)
        for pid in range(1, ids + 1):
            shots = images if cam in cameras[pid] else 0
            cells[pid - 1, 0] = np.uint8([rng.permutation(shots) + 1 for _ in range(10)])
        permutations[cam - 1, 0] = cells
    with whole_folder(Path(root)) as folder:
        (folder / "exp").mkdir()
        for split, pids in splits.items():
            (folder / "exp" / f"{split}_id.txt").write_text(",".join(map(str, sorted(pids))) + "\n")
        mat = io.BytesIO()
        savemat(mat, {"rand_perm_cam": permutations}, do_compression=True)
        header = b"MATLAB 5.0 MAT-file, synthetic".ljust(116)  # in place of scipy's, which tells the time
        (folder / "exp" / "rand_perm_cam.mat").write_bytes(header + mat.getvalue()[len(header) :])
        for_each(partial(render_sysu_person, folder, cameras, images, seed, scale), ids, workers, progress)


def render_regdb_person(root: Path, images: int, seed: int, pid: int) -> None:
    """Write one person's visible and thermal crops of 128 x 64 pixels (height x width)."""
    person = draw_person([seed, PERSON, 2, pid])
    for number, (modality, camera) in enumerate(REGDB_CAMERAS.items(), 1):
        folder = root / modality / str(pid)
        folder.mkdir(parents=True)
        for shot in range(1, images + 1):
            image = render_shot(person, camera, seed, [seed, SHOT, 2, pid, number, shot], (256, 128))
            image.reduce(2).save(folder / f"{modality[0].lower()}_{pid:03d}_{shot:02d}.bmp")


def render_regdb(root: Path, ids: int, images: int, seed: int,
                 progress: Callable[[int, int], None] | None = None, workers: int = 1) -> None:
    """Render persons with `images` crops a modality in RegDB's layout; the same seed gives the same bytes.

    Ten trials each split the persons in half at random, with labels counted in the order of the pids. Raises
    FileExistsError if `root` is not empty.
    """
    with whole_folder(Path(root)) as folder:
        (folder / "idx").mkdir()
        for trial in range(1, 11):
            order = np.random.default_rng([seed, SPLIT, 2, trial]).permutation(ids) + 1
            for split, pids in (("train", sorted(order[: ids // 2])), ("test", sorted(order[ids // 2 :]))):
                for modality in REGDB_CAMERAS:
                    lines = [f"{modality}/{pid}/{modality[0].lower()}_{pid:03d}_{shot:02d}.bmp {label}\n"
                             for label, pid in enumerate(pids) for shot in range(1, images + 1)]
                    (folder / "idx" / f"{split}_{modality.lower()}_{trial}.txt").write_text("".join(lines))
        for_each(partial(render_regdb_person, folder, images, seed), ids, workers, progress)


def render_llcm_person(root: Path, places: dict[int, tuple[int, ...]], tests: frozenset[int], images: int,
                       seed: int, pid: int) -> None:
    """Write one person's crops, `images` by either camera of each place that met the person."""
    person = draw_person([seed, PERSON, 1, pid])  # the persons of SYSU-MM01's layout
    for modality, place in itertools.product(LLCM_MODALITIES, places[pid]):
        if pid in tests and (modality, place) == NOT_IN_TEST:
            continue
        camera = llcm_camera(modality, place)
        folder = root / (f"test_{modality}/cam{place}" if pid in tests else modality) / f"{pid:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        for shot in range(images):
            key = [seed, SHOT, 3, pid, LLCM_MODALITIES.index(modality), place, shot]
            image = render_shot(person, camera, seed, key)
            image.save(folder / llcm_name(seed, pid, modality, place, shot), quality=camera.quality)


def llcm_camera(modality: str, place: int) -> Camera:
    """One of the two cameras of a place: colour with too little light, or near-infrared with a lamp."""
    scene, room, light = LLCM_PLACES[place]
    blur = 0.003 + 0.0003 * (place % 5)
    if modality == "vis":
        return Camera("visible", scene, room, light, 0.3, 0.22 + 0.03 * (place % 4), (1.12, 0.98, 0.78), 0.7,
                      vignette=0.2, blur=blur, noise=0.045)
    return Camera("near", scene, room, (0.1, -0.2, 0.97), 0.2, 1.0 + 0.05 * (place % 3), gamma=0.66,
                  vignette=0.45, blur=blur, noise=0.03)


def llcm_name(seed: int, pid: int, modality: str, place: int, shot: int) -> str:
    """An image's name as published: 0351_c06_s200656_f4830_nir.jpg tells person, camera, time, frame."""
    rng = np.random.default_rng([seed, SPLIT, 3, pid, place, modality == "nir"])
    hour, minute, second, frame = rng.integers((18, 0, 0, 100), (24, 60, 60, 900)).tolist()
    return f"{pid:04d}_c{place:02d}_s{hour:02d}{minute:02d}{second:02d}_f{frame + 30 * shot}_{modality}.jpg"


def render_llcm(root: Path, ids: int, images: int, seed: int,
                progress: Callable[[int, int], None] | None = None, workers: int = 1) -> None:
    """Render persons with `images` crops a camera in LLCM's layout; the same seed gives the same bytes.

    The persons are those of `render_sysu`, by night; a third of them is for testing. Raises FileExistsError
    if `root` is not empty.
    """
    order = [int(pid) for pid in np.random.default_rng([seed, SPLIT, 3]).permutation(ids) + 1]
    places = {pid: LLCM_PRESENCE[number % len(LLCM_PRESENCE)] for number, pid in enumerate(order)}
    count = max(1, round(ids / 3))
    tests, trained = sorted(order[:count]), sorted(order[count:])
    with whole_folder(Path(root)) as folder:
        (folder / "idx").mkdir()
        (folder / "idx" / "test_id.txt").write_text(",".join(map(str, tests)) + "\n")
        for modality in LLCM_MODALITIES:
            lines = [f"{modality}/{pid:04d}/{llcm_name(seed, pid, modality, place, shot)} {label}\n"
                     for label, pid in enumerate(trained) for place in places[pid] for shot in range(images)]
            (folder / "idx" / f"train_{modality}.txt").write_text("".join(lines))
        for_each(partial(render_llcm_person, folder, places, frozenset(tests), images, seed), ids,
                 workers, progress)

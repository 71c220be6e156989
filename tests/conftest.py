"""Puts the repository's flat modules on the path of every test; small data sets; the real command line."""
from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scripts
from ending import short_resnet
from filelock import FileLock
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: pytest has two workers already


def save_image(path: Path, seed: list[int], size: tuple[int, int] = (24, 48), mode: str = "RGB") -> None:
    """A random image (width, height) with large structures; mode: L for one without colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 3, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BILINEAR).convert(mode).save(path)


def published_draw(trial: int, folders: Iterable[Path]) -> list[str]:
    """An image of each folder as published code draws it, from the global generator, which is put back."""
    before = random.getstate()
    random.seed(trial)
    drawn = [random.choice([str(folder / name) for name in sorted(os.listdir(folder))]) for folder in folders]
    random.setstate(before)
    return drawn


def make_sysu(root: Path, train: int = 4, val: int = 1, test: int = 3, images: int = 4) -> Path:
    """SYSU-MM01's layout; every person in all six cameras, `images` in each."""
    from scipy.io import savemat
    persons = train + val + test
    for camera in range(1, 7):
        for pid in range(1, persons + 1):
            for number in range(1, images + 1):
                save_image(root / f"cam{camera}" / f"{pid:04d}" / f"{number:04d}.jpg", [camera, pid, number])
    (root / "exp").mkdir(parents=True)
    for name, first, count in (("train", 1, train), ("val", train + 1, val), ("test", train + val + 1, test)):
        (root / "exp" / f"{name}_id.txt").write_text(",".join(map(str, range(first, first + count))) + "\n")
    cells = np.empty((6, 1), object)
    for camera in range(6):
        rows = np.empty((persons, 1), object)
        for pid in range(persons):
            rng = np.random.default_rng([camera, pid])
            rows[pid, 0] = np.stack([rng.permutation(images) + 1 for _ in range(10)])
        cells[camera, 0] = rows
    savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    return root


def make_regdb(root: Path, persons: int = 8, images: int = 4) -> Path:
    """RegDB's layout with ten splits in halves."""
    for modality, letter in (("Visible", "v"), ("Thermal", "t")):
        for pid in range(1, persons + 1):
            for number in range(1, images + 1):
                save_image(root / modality / str(pid) / f"{letter}_{pid}_{number}.bmp",
                           [ord(letter), pid, number])
    (root / "idx").mkdir(parents=True)
    for trial in range(1, 11):
        order = np.random.default_rng(trial).permutation(persons) + 1
        for split, pids in (("train", sorted(order[:persons // 2])), ("test", sorted(order[persons // 2:]))):
            for modality, letter in (("Visible", "v"), ("Thermal", "t")):
                lines = [f"{modality}/{pid}/{letter}_{pid}_{number}.bmp {label}\n"
                         for label, pid in enumerate(pids) for number in range(1, images + 1)]
                (root / "idx" / f"{split}_{modality.lower()}_{trial}.txt").write_text("".join(lines))
    return root


LLCM_SIDES = (("vis", range(1, 10)), ("nir", (1, 2, 4, 5, 6, 7, 8, 9)))  # and their test images' cameras


def make_llcm(root: Path, train: int = 4, test: int = 3, images: int = 2) -> Path:
    """LLCM's layout: training persons 1, 3, 5 ... with labels from 0, test persons 2, 4 ... everywhere."""
    (root / "idx").mkdir(parents=True)
    for number, (name, cameras) in enumerate(LLCM_SIDES):
        lines = []
        for label in range(train):
            pid = 2 * label + 1
            for camera in (1, 3, 6)[:2 + number]:
                for shot in range(images):
                    file = f"{name}/{pid:04d}/{pid:04d}_c{camera:02d}_s{shot:06d}_f{7 * shot:04d}_{name}.jpg"
                    save_image(root / file, [number, pid, camera, shot])
                    lines.append(f"{file} {label}\n")
        (root / "idx" / f"train_{name}.txt").write_text("".join(lines))
        for pid in range(2, 2 * test + 1, 2):
            for camera in cameras:
                for shot in range(images):
                    file = f"{pid:04d}_c{camera:02d}_s{shot:06d}_f{7 * shot:04d}_{name}.jpg"
                    save_image(root / f"test_{name}/cam{camera}/{pid:04d}/{file}",
                               [number, pid, camera, shot])
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, range(2, 2 * test + 1, 2))) + "\n")
    return root


def make_folders(root: Path, images: int = 3) -> Path:
    """Folders of one's own images; four persons to train on, three to test with."""
    for split, names in (("train", ("Ann", "Bé", "p2", "p10")), ("test", ("Cy", "Di", "Eé x"))):
        for number, side in enumerate(("visible", "infrared")):
            for person, name in enumerate(names):
                for shot in range(images):
                    save_image(root / split / side / name / f"{shot}.png", [number, person, shot, len(split)])
    return root


def deepen(root: Path) -> None:
    """Store the infrared images of one's own in 16 bits, as thermal cameras do: 30000 and upwards."""
    for path in root.glob("*/infrared/*/*.png"):
        values = 30000 + 10 * np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(values).save(path)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder that all of pytest's workers read and the first that needs it makes: once("name", make)."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def call(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with FileLock(base / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return call


def layout(make: Callable[[Path], Path], where: str) -> Callable:
    """A fixture: a small copy of a data set, made once, in a folder of this name below the test's own."""
    @pytest.fixture
    def copy(once: Callable, tmp_path: Path) -> Path:
        made = once(make.__name__, lambda folder: make(folder / "data"))
        return shutil.copytree(made / "data", tmp_path / where)

    return copy


sysu, regdb = layout(make_sysu, "SYSU-MM01"), layout(make_regdb, "RegDB")
llcm, folders = layout(make_llcm, "cam3 7 größe 数/LLCM"), layout(make_folders, "cam1 c2_ größe 数")


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run one of the scripts in an empty folder, as a user would: script("train.py", "--dataset", "regdb").

    `fresh`: in an interpreter of its own; otherwise by its `main` in this process (see scripts.py).
    """
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)

    def call(*words: object, timeout: int = 300, env: dict[str, str] | None = None,
             fresh: bool = False) -> subprocess.CompletedProcess:
        return scripts.run([ROOT / str(words[0]), *words[1:]], cwd, timeout, env=env, fresh=fresh)

    call.cwd = cwd
    return call


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    """ResNets of few blocks in all of a module's tests, unless they start a fresh interpreter."""
    with short_resnet():
        yield


def draw_persons(count: int, seed: int = 0, width: int = 128) -> np.ndarray:
    """Unit features of a visible and an infrared image of each person, (2, count, width) float32."""
    rng = np.random.default_rng(seed)
    sides = rng.standard_normal((count, width)) + 0.8 * rng.standard_normal((2, count, width))
    return (sides / np.linalg.norm(sides, axis=2, keepdims=True)).astype(np.float32)


# Flags of a run that takes seconds.
SMALL = ("--arch", "resnet18", "--img_w", "16", "--img_h", "32", "--pretrained", "none", "--lr", "0.02",
         "--gpu", "cpu", "--batch-size", "2", "--num_pos", "2", "--workers", "1")


def make_network(method: str, arch: str = "resnet18"):
    """A network as if trained: streams that differ, gammas that act, BatchNorms that know its activations."""
    import torch

    from model import build_network
    torch.manual_seed(0)
    net = build_network(method, arch, 4)
    for name, value in net.named_parameters():
        noise = torch.empty_like(value).uniform_(0.8, 1.2)
        value.data = 0.5 * noise if name.endswith("gamma") else value.data * noise
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 32), torch.randn(4, 3, 64, 32))
    return net.eval()


def make_checkpoint(path: Path, seed: int = 0, best: bool = False, noise: float = 0.1,
                    **facts: object) -> Path:
    """A file as train.py writes it, of an untrained network whose BatchNorms tell images apart; its path."""
    import torch

    from model import build_network
    facts = {"dataset": "regdb", "method": "base", "arch": "resnet18", "img_w": 16, "img_h": 32, "trial": 1,
             "seed": seed, **facts}
    torch.manual_seed(seed)
    net = build_network(facts["method"], facts["arch"], 4)
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, noise)
    content = {"format": 1, "net": net.state_dict(), "num_classes": 4, "epoch": 1, "trial": facts["trial"],
               "args": facts}
    torch.save(content if best else {**content, "optimiser": {}}, path)
    return path

"""The whole pipeline on synthetic pedestrians: render, pre-process, train, test, and show.

    python demo.py                 everything, a few minutes on two CPU cores
    python demo.py --data-only     only data/demo/SYSU-MM01 and data/demo/RegDB
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_manager import DATASETS
from datasets.images import read_image
from datasets.types import Search
from eval_metrics import evaluate
from synthetic.pedestrians import render_regdb, render_sysu
from utils import Parser, UserError, atomic_path, filled, integer, make_folder, run, write_json

HERE = Path(__file__).resolve().parent
HEIGHT, WIDTH = 64, 32
# What is trained, one from the weights of the other, the first from scratch: data set, method, epochs, learning rate (of which a
# backbone that is not from scratch takes a tenth).
COURSE = (("sysu", "base", 5, 0.001), ("sysu", "cgrnet", 3, 0.004), ("regdb", "cgrnet", 6, 0.004))
# A few minutes from scratch ask for many small steps; the paper's schedule is made for hours and ImageNet weights.
RECIPE = ("--optim", "adam", "--schedule", "cosine", "--num_pos", 2)
RENDERERS = {"sysu": render_sysu, "regdb": render_regdb}


def build_parser() -> Parser:
    """The arguments of the demonstration."""
    parser = Parser(description="Render synthetic pedestrians in the layouts of SYSU-MM01 and RegDB; train and test on them.")
    parser.add_argument("--out", type=filled, default="data/demo", metavar="DIR", help="folder for data, models and figures")
    parser.add_argument("--ids", type=integer(12, 999), default=216, metavar="N",
                        help="persons in SYSU-MM01's layout; RegDB's has a third of them, and at least 16")
    parser.add_argument("--images", type=integer(1, 99), default=2, metavar="N",
                        help="images of a person in each camera (RegDB: 10 in each modality)")
    parser.add_argument("--seed", type=integer(0, 2 ** 31 - 1), default=0, help="the same seed gives the same bytes")
    parser.add_argument("--data-only", action="store_true", help="stop after rendering")
    return parser


def main() -> None:
    """Run the demonstration."""
    args = build_parser().parse_args()
    begun = time.perf_counter()
    out = make_folder(args.out, "--out")
    roots = {name: out / Path(data.path).name for name, data in DATASETS.items()}
    render(out, roots, args)
    if args.data_only:
        return
    script("pre_process_sysu.py", "--data-path", roots["sysu"], "--img_h", HEIGHT, "--img_w", WIDTH)
    rows, start = {name: baselines(roots[name], name) for name in DATASETS}, None
    for name, method, epochs, rate in COURSE:
        begun_from = f"from {start.parent.name}" if start else "from scratch"
        start, record = train_and_test(name, method, ("--epochs", epochs, "--lr", rate), start, roots[name], out)
        rows[name].append((f"{method}, {begun_from}", record["mean"]["bnneck"]))
    print(f"\n{'':<40}{'Rank-1':>8}{'Rank-10':>9}{'mAP':>8}   (per cent)")
    for name, data in DATASETS.items():
        for what, values in rows[name]:
            print(f"{data.title + ', ' + what:<40}" + "".join(f"{100 * values[k]:>{w}.1f}" for k, w in
                                                          (("rank-1", 8), ("rank-10", 9), ("mAP", 8))))
    print(f"\nfigures: {out / 'pedestrians.png'}, and ranking.png, cmc.png and distances.png in {out / 'sysu_cgrnet'} and others")
    print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")


def render(out: Path, roots: dict[str, Path], args: argparse.Namespace) -> None:
    """Render what is missing of both data sets from the same settings; `UserError` if others are in the way."""
    wanted = {"ids": args.ids, "images": args.images, "seed": args.seed}
    record, sheet = out / "demo.json", out / "pedestrians.png"
    known = read_record(record, out) == wanted
    there = [name for name, root in roots.items() if root.exists() and any(root.iterdir())]
    if there and not known:
        raise UserError(f"--out {out}: {roots[there[0]].name} of other settings, or of an interrupted run, found there; remove the "
                        "folder, or choose another --out")
    if len(there) == len(roots) and sheet.exists():
        print(f"{out}: rendered before with the same settings")
        return
    for name, root in roots.items():
        if name not in there:
            render_one(name, root, args)
    with atomic_path(sheet) as temporary:
        contact_sheet(roots).save(temporary, format="png")
    write_json(record, wanted)


def read_record(path: Path, out: Path) -> object:
    """The settings of an earlier rendering, or None; `UserError` if the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--out {out}: {path.name} there holds no settings of this script ({type(error).__name__}); remove it and "
                        "the data beside it, or choose another --out") from None


def render_one(name: str, root: Path, args: argparse.Namespace) -> None:
    """Render one data set."""
    images = args.images if name == "sysu" else 10
    ids = args.ids if name == "sysu" else max(16, args.ids // 3)
    with tqdm(desc=f"rendering {root.name}", unit="person", total=ids, disable=None) as bar:
        RENDERERS[name](root, ids, images, args.seed, lambda done, total, bar=bar: bar.update(done - bar.n),
                        workers=os.cpu_count() or 1)
    print(f"{root}: {sum(1 for path in root.rglob('*') if path.suffix in ('.jpg', '.bmp'))} images of {ids} persons")


def contact_sheet(roots: dict[str, Path], persons: int = 10) -> Image.Image:
    """A picture of some persons of each data set, one a column: two visible and two infrared images each, with captions."""
    width, height, gap, line = 84, 168, 4, 18
    sheet = Image.new("RGB", (persons * (width + gap) + gap, 2 * (2 * (line + 2 * (height + gap)) + gap)), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for name, root in roots.items():
        split = DATASETS[name].train_split(str(root), 1)
        for side in (split.visible, split.infrared):
            draw.text((gap, top + 3), f"{DATASETS[name].title}, {side.modality}: one person a column, two images each", "black")
            top += line
            for column, pid in enumerate(split.pids[:persons]):
                paths = [path for path, other in zip(side.paths, side.pids) if other == pid]
                for row, path in enumerate((paths[0], paths[-1])):
                    tile = Image.fromarray(read_image(path, height, width, side.levels))
                    sheet.paste(tile, (gap + column * (width + gap), top + row * (height + gap)))
            top += 2 * (height + gap)
        top += gap
    return sheet


def train_and_test(name: str, method: str, length: tuple, start: Path | None, root: Path, out: Path) -> tuple[Path, dict]:
    """Train and test with the real scripts, from a checkpoint's weights or from scratch; the new checkpoint and its record.

    `cgrnet` begins from a trained `base`: two copies of a random stage 1 drift apart, those of a trained one do not.
    """
    models, figures = out / "models" / f"{name}_{method}", out / f"{name}_{method}"
    begin = ("--init", start) if start else ("--pretrained", "none")
    script("train.py", "--dataset", name, "--data-path", root, "--method", method, *length, *begin, *RECIPE,
           "--arch", "resnet18", "--img_h", HEIGHT, "--img_w", WIDTH, "--gpu", "cpu", "--workers", 2, "--eval-every", 100,
           "--print-freq", 1000, "--model_path", models, "--log_path", out / "log", "--vis_log_path", out / "log" / "vis_log")
    trained = max(models.glob("*_last.t"), key=os.path.getmtime)
    script("test.py", "--resume", trained, "--data-path", root, "--gpu", "cpu", "--workers", 2, "--out", figures)
    return trained, json.loads((figures / "results.json").read_text(encoding="utf-8"))


def script(name: str, *words: object) -> None:
    """Run one of the scripts as a user would; `UserError` if it fails (it has said why)."""
    command = [sys.executable, str(HERE / name), *map(str, words)]
    print("\n$ python " + " ".join([name, *map(str, words)]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        raise UserError(f"{name} ended with status {status}; its last lines say why")


def baselines(root: Path, name: str) -> list[tuple[str, dict[str, float]]]:
    """Scores of chance and of nearest neighbours by pixels and by colour histograms, in a data set's first search."""
    data = DATASETS[name]
    search = data.searches(root, direction=data.direction, trials=data.trials(1)[:1])[0]
    views: dict[str, Callable[[np.ndarray], np.ndarray]] = {"raw pixels": pixels, "colour histograms": histograms}
    rng = np.random.default_rng(0)
    chance = np.mean([list(scores(rng.random((len(search.query), len(search.gallery))), search).values()) for _ in range(20)], 0)
    rows = [("chance", dict(zip(("rank-1", "rank-10", "mAP"), chance)))]
    images = [np.stack([read_image(path, 48, 24, side.levels) for path in side.paths]) for side in (search.query, search.gallery)]
    for title, view in views.items():
        query, gallery = map(view, images)
        distances = np.linalg.norm(query[:, None] - gallery[None], axis=2)
        rows.append((title, scores(distances, search)))
    return rows


def scores(distances: np.ndarray, search: Search) -> dict[str, float]:
    """Rank-1, Rank-10 and mAP of a distance matrix."""
    cmc, mean_ap, _ = evaluate(distances, search.query.pids, search.gallery.pids, search.seen(), count_persons=search.count_persons)
    return {"rank-1": cmc[0], "rank-10": cmc[9], "mAP": mean_ap}


def pixels(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> grey values (N, H W) float32."""
    return images.mean(3, dtype=np.float32).reshape(len(images), -1)


def histograms(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> histograms of three horizontal stripes and three channels (N, 144) float32."""
    stripes = np.array_split(images, 3, axis=1)
    return np.concatenate([np.stack([np.bincount(image.ravel() // 16, minlength=16) for image in stripe[..., channel]])
                           for stripe in stripes for channel in range(3)], 1).astype(np.float32)


if __name__ == "__main__":
    run(main)

"""The whole pipeline on synthetic pedestrians: render, pre-process, train, test, search, and show.

    python demo.py                 everything, five to twenty minutes on two CPU cores
    python demo.py --data-only     only data/demo/SYSU-MM01, data/demo/RegDB and data/demo/LLCM
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.spatial.distance import cdist
from tqdm import tqdm

from data_manager import DATASETS
from datasets.images import read_image, read_images
from datasets.types import ImageSpec, Search
from eval_metrics import evaluate
from synthetic.pedestrians import render_llcm, render_regdb, render_sysu
from utils import GPU, Parser, UserError, atomic_path, filled, integer, make_folder, run, write_json

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Course:
    """What is trained: on how many persons of SYSU-MM01's layout, image size in pixels, flags of every
    training, and (data set, method, epochs, rate) of each.

    chained: each training begins with the weights of the one before, the first with none.
    """

    ids: int
    images: int  # of a person in each camera
    height: int
    width: int
    identities: int  # in a batch, or as many as there are
    flags: tuple
    trainings: tuple[tuple[str, str, int, float], ...]
    chained: bool = False


# A few minutes ask for many persons, in a step and in all, for larger images and a high rate rather than for
# more epochs, and for another schedule than the paper's, made for hours (docs/experiments.md).
RECIPE = ("--optim", "adam", "--schedule", "cosine", "--num_pos", 2)
PRETRAINED = Course(
    1500, 1, 160, 80, 16, ("--arch", "mobilenet_v2", *RECIPE),
    (("sysu", "base", 2, 0.01), ("sysu", "cgrnet", 2, 0.01), ("regdb", "cgrnet", 3, 0.01),
     ("llcm", "cgrnet", 6, 0.01)))
# `cgrnet` begins from a trained `base`: two copies of a random stage 1 drift apart, of a trained one not.
FROM_SCRATCH = Course(
    216, 2, 64, 32, 8, ("--arch", "resnet18", *RECIPE),
    (("sysu", "base", 5, 0.001), ("sysu", "cgrnet", 3, 0.004), ("regdb", "cgrnet", 6, 0.004),
     ("llcm", "cgrnet", 6, 0.004)), chained=True)
RENDERERS = {"sysu": render_sysu, "regdb": render_regdb, "llcm": render_llcm}
MEASURES = {"rank-1": "Rank-1", "rank-10": "Rank-10", "mAP": "mAP"}


def build_parser() -> Parser:
    """The arguments of the demonstration."""
    parser = Parser(description="Render synthetic pedestrians in the layouts of SYSU-MM01, RegDB and LLCM; "
                                "train and test on them.")
    parser.add_argument("--out", type=filled, default="data/demo", metavar="DIR",
                        help="folder for data, models and figures")
    parser.add_argument("--ids", type=integer(12, 9999), metavar="N", help="persons in SYSU-MM01's layout; "
                        "the others have a third of them, at least 16 and at most 64 (default: "
                        f"{PRETRAINED.ids}, or {FROM_SCRATCH.ids} without first weights)")
    parser.add_argument("--images", type=integer(1, 99), metavar="N", help="images of a person in each "
                        f"camera; RegDB: 10 in each modality (default: {PRETRAINED.images}, or "
                        f"{FROM_SCRATCH.images} without first weights)")
    parser.add_argument("--seed", type=integer(0, 2 ** 31 - 1), default=0, help="seed of training")
    parser.add_argument("--data-seed", type=integer(0, 2 ** 31 - 1), default=0,
                        help="seed of the data; the same gives the same bytes")
    parser.add_argument("--gpu", **{**GPU, "default": None,
                                    "help": f"{GPU['help']} (default: 0 where there is CUDA, else cpu)"})
    parser.add_argument("--data-only", action="store_true", help="stop after rendering")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    begun = time.perf_counter()
    args = build_parser().parse_args(words)
    out = make_folder(args.out, "--out")
    roots = {name: out / Path(DATASETS[name].path).name for name in RENDERERS}
    course = PRETRAINED if args.data_only else choose_course()
    args.ids, args.images = args.ids or course.ids, args.images or course.images
    titles = ", ".join(DATASETS[name].title for name in RENDERERS)
    print(f"Renders {args.ids} pedestrians and more in the layouts of {titles}: "
          "one to three minutes on two CPU cores.", flush=True)
    if args.data_only:
        return render(out, roots, args)
    models = ", ".join(f"{method} on {DATASETS[name].title}" for name, method, *_ in course.trainings)
    print(f"Then trains and tests {models}: five to twenty minutes on two CPU cores in all. "
          f"Everything goes to {out}.\n", flush=True)
    render(out, roots, args)
    for name, root in roots.items():
        if data := DATASETS[name].arrays:
            script(data.script, "--data-path", root, "--img_h", course.height, "--img_w", course.width)
    table, start = {name: baselines(root, name) for name, root in roots.items()}, None
    args.gpu = args.gpu or default_device()
    for name, method, epochs, rate in course.trainings:
        length = ("--epochs", epochs, "--lr", rate, "--seed", args.seed)
        trained, record = train_and_test(name, method, course, length, start, roots[name], out, args.gpu)
        source = start.parent.name if start else "scratch" if course.chained else "ImageNet"
        table[name][f"{method}, from {source}"] = record["mean"]["pool"]
        start = trained if course.chained else None
    page = search_page(roots["sysu"], out / "models" / "sysu_cgrnet", out / "sysu_cgrnet" / "results.json",
                       out / "search")
    show(table, out, course)
    print(f"a search to open in a browser: {page}")
    print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")


def default_device() -> str:
    """The first CUDA device, or cpu where there is none."""
    import torch  # not above: each process that renders imports this file too

    return "0" if torch.cuda.is_available() else "cpu"


def choose_course() -> Course:
    """The course from ImageNet weights where they are within reach, else from scratch; says which."""
    from backbones import fetch_imagenet  # not above: it imports torch

    try:
        print(f"First weights: {fetch_imagenet('mobilenet_v2')}")
        return PRETRAINED
    except UserError as error:
        print(f"No first weights, so all is trained from scratch, to a fraction of the accuracy ({error}).")
        return FROM_SCRATCH


def lines(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """A table, in per cent, of what was scored on each data set: one row a method, one column a data set."""
    rows = [f"{'per cent':<28}" + "".join(f"{DATASETS[name].title:>27}" for name in table),
            f"{'':<28}" + "".join(f"{title:>9}" for _ in table for title in MEASURES.values())]
    for method in dict.fromkeys(method for scored in table.values() for method in scored):
        cells = [f"{100 * scored[method][name]:>9.1f}" if method in scored else f"{'':>9}"
                 for scored in table.values() for name in MEASURES]
        rows.append(f"{method:<28}{''.join(cells)}".rstrip())
    return rows


def show(table: dict[str, dict[str, dict[str, float]]], out: Path, course: Course) -> None:
    """Print the table of all scores, and where to look."""
    print("\n" + "\n".join(lines(table)))
    print(f"\nLook at {out / 'pedestrians.png'}: some of the persons; and of each model at")
    for name, method, *_ in course.trainings:
        print(f"  {out / f'{name}_{method}' / 'ranking.png'}: queries and what they found; beside it "
              "cmc.png, distances.png and results.json")


def render(out: Path, roots: dict[str, Path], args: argparse.Namespace) -> None:
    """Render what is missing of the data sets; `UserError` if some of other settings are in the way."""
    wanted = {"ids": args.ids, "images": args.images, "seed": args.data_seed}
    record, sheet = out / "demo.json", out / "pedestrians.png"
    known = read_record(record, out) == wanted
    there = [name for name, root in roots.items() if root.exists() and any(root.iterdir())]
    if there and not known:
        raise UserError(f"--out {out}: {roots[there[0]].name} of other settings, or of an interrupted run, "
                        "found there; remove the folder, or choose another --out")
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
        raise UserError(f"--out {out}: {path.name} there holds no settings of this script "
                        f"({type(error).__name__}); remove it and the data beside it, or choose another "
                        "--out") from None


def render_one(name: str, root: Path, args: argparse.Namespace) -> None:
    """Render one data set."""
    images = 10 if name == "regdb" else args.images
    ids = args.ids if name == "sysu" else max(16, min(64, args.ids // 3))
    with tqdm(desc=f"rendering {root.name}", unit="person", total=ids, disable=None) as bar:
        RENDERERS[name](root, ids, images, args.data_seed, workers=os.cpu_count() or 1,
                        progress=lambda done, total, bar=bar: bar.update(done - bar.n))
    print(f"{root}: {sum(1 for path in root.rglob('*') if path.suffix in ('.jpg', '.bmp'))} images of "
          f"{ids} persons")


def contact_sheet(roots: dict[str, Path], persons: int = 10) -> Image.Image:
    """A picture of some persons of each data set, one a column: two images of either modality, captioned."""
    width, height, gap, line = 84, 168, 4, 18
    tall = len(roots) * (2 * (line + 2 * (height + gap)) + gap)
    sheet = Image.new("RGB", (persons * (width + gap) + gap, tall), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for name, root in roots.items():
        split = DATASETS[name].train_split(str(root), 1)
        sides = (split.visible, split.infrared)
        shown = [pid for pid in split.pids if all(np.count_nonzero(side.pids == pid) > 1 for side in sides)]
        for side in sides:
            draw.text((gap, top + 3), f"{DATASETS[name].title}, {side.modality}: one person a column, two "
                                      "images each", "black")
            top += line
            for column, pid in enumerate(shown[:persons]):
                paths = [path for path, other in zip(side.paths, side.pids) if other == pid]
                for row, path in enumerate((paths[0], paths[-1])):
                    tile = Image.fromarray(read_image(path, ImageSpec(height, width)))
                    sheet.paste(tile, (gap + column * (width + gap), top + row * (height + gap)))
            top += 2 * (height + gap)
        top += gap
    return sheet


def train_and_test(name: str, method: str, course: Course, length: tuple, start: Path | None, root: Path,
                   out: Path, gpu: str) -> tuple[Path, dict]:
    """Train and test with the real scripts, from a checkpoint or from the start; checkpoint and record."""
    models, figures = out / "models" / f"{name}_{method}", out / f"{name}_{method}"
    begin = ("--init", start) if start else ("--pretrained", "none" if course.chained else "imagenet")
    where = ("--data-path", root, "--gpu", gpu, "--workers", 2)
    identities = min(course.identities, len(DATASETS[name].train_split(str(root), 1).pids))
    script("train.py", "--dataset", name, "--method", method, *length, *begin, *course.flags, *where,
           "--batch-size", identities, "--img_h", course.height, "--img_w", course.width, "--amp", "off",
           "--eval-every", 100, "--print-freq", 1000, "--model_path", models, "--log_path", out / "log",
           "--vis_log_path", out / "log" / "vis_log")
    trained = max(models.glob("*_last.t"), key=os.path.getmtime)
    script("test.py", "--resume", trained, *where, "--out", figures)
    return trained, json.loads((figures / "results.json").read_text(encoding="utf-8"))


def search_page(root: Path, models: Path, results: Path, out: Path) -> Path:
    """Embed the test images of SYSU-MM01's first search and search one side in the other; the page of it."""
    trained = max(models.glob("*_last.t"), key=os.path.getmtime)
    search = DATASETS["sysu"].searches(root, direction="i2v", trials=[0])[0]
    out.mkdir(exist_ok=True)
    for side in (search.query, search.gallery):
        names = out / f"{side.modality}.txt"
        names.write_text("\n".join(side.paths) + "\n", encoding="utf-8")
        script("embed.py", names, "--modality", side.modality, "--resume", trained,
               "--out", names.with_suffix(".npz"), "--gpu", "cpu", "--workers", 2)
    # no threshold comes from too few pairs
    known = json.loads(results.read_text(encoding="utf-8"))["thresholds"]["bnneck"]["i2v"]
    verdicts = ("--far", "0.01", "--calibration", results) if "0.01" in known else ()
    script("search.py", out / "infrared.npz", out / "visible.npz", "--resume", trained, "--out", out,
           *verdicts)
    return out / "hits.html"


def script(name: str, *words: object) -> None:
    """Run one of the scripts as a user would; `UserError` if it fails (it has said why)."""
    command = [sys.executable, str(HERE / name), *map(str, words)]
    print("\n$ python " + " ".join([name, *map(str, words)]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        raise UserError(f"{name} ended with status {status}; its last lines say why")


def baselines(root: Path, name: str) -> dict[str, dict[str, float]]:
    """Scores of chance, and of nearest neighbours by pixels and by colours, in a data set's first search."""
    data = DATASETS[name]
    search = data.searches(root, direction=data.direction, trials=data.trials(1)[:1])[0]
    views: dict[str, Callable[[np.ndarray], np.ndarray]] = {"raw pixels": pixels,
                                                            "colour histograms": histograms}
    rng = np.random.default_rng(0)
    chance = np.mean([list(scores(rng.random((len(search.query), len(search.gallery))), search).values())
                      for _ in range(20)], 0)
    rows = {"chance": dict(zip(MEASURES, chance))}
    images = [read_images(side.paths, ImageSpec(48, 24)) for side in (search.query, search.gallery)]
    for title, view in views.items():
        query, gallery = map(view, images)
        rows[title] = scores(cdist(query, gallery), search)
    return rows


def scores(distances: np.ndarray, search: Search) -> dict[str, float]:
    """Rank-1, Rank-10 and mAP of a distance matrix."""
    cmc, mean_ap, _ = evaluate(distances, search.query.pids, search.gallery.pids, search.seen(),
                               count_persons=search.count_persons)
    return {"rank-1": cmc[0], "rank-10": cmc[9], "mAP": mean_ap}


def pixels(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> grey values (N, H W) float32."""
    return images.mean(3, dtype=np.float32).reshape(len(images), -1)


def histograms(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> histograms of three horizontal stripes and three channels (N, 144) float32."""
    stripes = np.array_split(images, 3, axis=1)
    return np.concatenate([np.stack([np.bincount(image.ravel() // 16, minlength=16)
                                     for image in stripe[..., channel]])
                           for stripe in stripes for channel in range(3)], 1).astype(np.float32)


if __name__ == "__main__":
    run(main)

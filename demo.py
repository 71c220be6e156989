"""The whole pipeline on rendered pedestrians: render, pre-process, train, test, search, and show.

    python demo.py                 cgrnet in SYSU-MM01's layout, two to three minutes on two CPU cores
    python demo.py --full          base beside it, RegDB's and LLCM's layouts too: five to twenty minutes
    python demo.py --data-only     only the data
"""
from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_manager import DATASETS
from datasets.images import read_image
from datasets.types import ImageSpec
from eval_metrics import evaluate
from synthetic.pedestrians import (SYSU_CAMERAS, draw_person, render_llcm, render_regdb, render_shot,
                                   render_sysu)
from command_line import GPU, Parser, filled, number, run
from utils import UserError, atomic_path, make_folder, write_json


@dataclass(frozen=True)
class Course:
    """What is rendered and trained."""

    ids: int  # persons in SYSU-MM01's layout
    tests: int  # of them for testing, at most
    images: int  # of each person in a camera
    scale: float  # of the size of rendered images
    spec: ImageSpec
    arch: str
    identities: int  # in a batch
    flags: tuple  # of every training
    trainings: tuple[tuple[str, str, int, float], ...]  # data set, method, epochs and rate of each
    crops: int  # rendered in all, to estimate the time
    steps: int  # trained in all
    chained: bool = False  # a training begins with the weights of the one before, the first with random ones


# docs/experiments.md says how the recipes came to be. From random weights `base` goes first: two copies of a
# random stage 1 drift apart, two of a trained one do not.
RECIPE = ("--optim", "adam", "--schedule", "cosine", "--num_pos", 2, "--amp", "off")
SHORT = Course(900, 150, 1, 0.5, ImageSpec(128, 64), "mobilenet_v2", 16,
               (*RECIPE, "--augment", "standard,exchange"), (("sysu", "cgrnet", 2, 0.01),), 4240, 142)
FULL = Course(1500, 500, 1, 1.0, ImageSpec(160, 80), "mobilenet_v2", 16, RECIPE,
              (("sysu", "base", 2, 0.01), ("sysu", "cgrnet", 2, 0.01), ("regdb", "cgrnet", 3, 0.01),
               ("llcm", "cgrnet", 6, 0.01)), 8830, 442)
SHORT_RANDOM = Course(216, 72, 2, 0.5, ImageSpec(64, 32), "resnet18", 8, RECIPE,
                      (("sysu", "base", 4, 0.001), ("sysu", "cgrnet", 3, 0.004)), 2040, 378, chained=True)
FULL_RANDOM = replace(SHORT_RANDOM, scale=1.0, crops=4320, steps=624, trainings=(
    *SHORT_RANDOM.trainings, ("regdb", "cgrnet", 6, 0.004), ("llcm", "cgrnet", 6, 0.004)))
RENDERERS = {"sysu": render_sysu, "regdb": render_regdb, "llcm": render_llcm}


def build_parser() -> Parser:
    """The arguments of the demonstration."""
    parser = Parser(description="Render pedestrians, train and test on them, and search among them.")
    parser.add_argument("--full", action="store_true",
                        help="the layouts of SYSU-MM01, RegDB and LLCM, and base beside cgrnet")
    parser.add_argument("--out", type=filled, metavar="DIR", help="folder for data, models and figures "
                        "(default: data/demo, or data/demo_full with --full)")
    parser.add_argument("--ids", type=number(12, 9999), metavar="N", help="persons in SYSU-MM01's layout "
                        f"(default: {SHORT.ids}, {FULL.ids} with --full, {SHORT_RANDOM.ids} without first "
                        "weights)")
    parser.add_argument("--images", type=number(1, 99), metavar="N", help="images of a person in each "
                        f"camera (default: {SHORT.images}, {SHORT_RANDOM.images} without first weights)")
    parser.add_argument("--seed", type=number(0, 2 ** 31 - 1), default=0, help="seed of training")
    parser.add_argument("--data-seed", type=number(0, 2 ** 31 - 1), default=0,
                        help="seed of the data; the same gives the same bytes")
    parser.add_argument("--gpu", **{**GPU, "default": None,
                                    "help": f"{GPU['help']} (default: 0 where there is CUDA, else cpu)"})
    parser.add_argument("--data-only", action="store_true", help="stop after rendering")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    begun = time.perf_counter()
    args = build_parser().parse_args(words)
    out = make_folder(args.out or ("data/demo_full" if args.full else "data/demo"), "--out")
    course = choose_course(args)
    roots = {name: out / Path(DATASETS[name].path).name for name, *_ in course.trainings}
    announce(course, args, out)
    render(course, args.data_seed, roots, out)
    if args.data_only:
        return
    size = ("--img_h", course.spec.height, "--img_w", course.spec.width)
    for name, root in roots.items():
        if data := DATASETS[name].arrays:
            script(data.script, "--data-path", root, *size)
    rows = [(name, "chance", chance(name, root)) for name, root in roots.items()]
    checkpoints: dict[str, Path] = {}  # the newest of each data set
    start = ("--pretrained", "none" if course.chained else "imagenet")
    for name, method, epochs, lr in course.trainings:
        flags = (*course.flags, *size, "--epochs", epochs, "--lr", lr, "--seed", args.seed, *start)
        checkpoints[name], scores = train_and_test(name, method, course, flags, roots[name], out, args.gpu)
        rows.append((name, method, scores))
        start = ("--init", checkpoints[name]) if course.chained else start
    page = search_page(roots["sysu"], checkpoints["sysu"], out)
    show(rows, out, page, checkpoints["sysu"], roots["sysu"])
    print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")


def choose_course(args: argparse.Namespace) -> Course:
    """The course from ImageNet weights, or from random ones where those are not within reach; says which."""
    course = FULL if args.full else SHORT
    if not args.data_only:
        import torch  # not above: each process that renders imports this file too

        from backbones import fetch_imagenet
        args.gpu = args.gpu or ("0" if torch.cuda.is_available() else "cpu")
        try:
            print(f"First weights: {fetch_imagenet(course.arch)}")
        except UserError as error:
            print("No first weights, so all is trained from random ones, to a fraction of the accuracy "
                  f"({error})")
            course = FULL_RANDOM if args.full else SHORT_RANDOM
    ids, images = args.ids or course.ids, args.images or course.images
    share = ids * images / (course.ids * course.images)
    return replace(course, ids=ids, images=images, crops=round(course.crops * share),
                   steps=round(course.steps * share))


def announce(course: Course, args: argparse.Namespace, out: Path) -> None:
    """Say what is to be done and, by a measurement of this machine, how long it takes."""
    models = ", ".join(f"{method} in {DATASETS[name].title}'s layout"
                       for name, method, *_ in course.trainings)
    print(f"Renders {course.ids} persons into {out}"
          + ("." if args.data_only else f", trains {models}, tests, and searches."), flush=True)
    if args.data_only:
        return
    image, step = seconds_of_an_image(course), seconds_of_a_step(course, args.gpu)
    total = course.crops * image / (os.cpu_count() or 1) + 1.15 * course.steps * step + 30
    print(f"This machine takes {1000 * image:.0f} ms to render an image and {step:.2f} s for each of "
          f"{course.steps} steps of training: about {total / 60:.1f} minutes in all.", flush=True)


def seconds_of_an_image(course: Course) -> float:
    """How long this machine takes to render an image on one core."""
    for shot in range(4):  # the first also draws what stands behind persons, which is kept
        begun = time.perf_counter()
        render_shot(draw_person([0]), SYSU_CAMERAS[1], 0, [0, shot], scale=course.scale)
    return time.perf_counter() - begun


def seconds_of_a_step(course: Course, gpu: str) -> float:
    """How long this machine takes for a step of training, but for its input and its losses."""
    import torch

    from devices import choose_device
    from model import build_network
    device = choose_device(gpu)
    net = build_network(course.trainings[-1][1], course.arch, course.ids).to(device)
    images = torch.zeros(2 * course.identities, 3, course.spec.height, course.spec.width,
                         device=device).contiguous(memory_format=torch.channels_last)
    for _ in range(3):  # the first are slower
        begun = time.perf_counter()
        net(visible=images, infrared=images).logits.sum().backward()
        next(net.parameters()).grad.sum().item()  # waits for the device
    return time.perf_counter() - begun


def render(course: Course, seed: int, roots: dict[str, Path], out: Path) -> None:
    """Render what is missing of the data sets; `UserError` if some of other settings are in the way."""
    wanted = {"ids": course.ids, "images": course.images, "scale": course.scale, "seed": seed}
    settings = out / "demo.json"
    if any(root.exists() for root in roots.values()) and not (settings.exists() and read(settings) == wanted):
        raise UserError(f"--out {out}: data of other settings found there; remove that folder, or choose "
                        "another one")
    write_json(settings, wanted)
    for name, root in roots.items():
        if not root.exists():
            ids = course.ids if name == "sysu" else max(16, min(64, course.ids // 3))
            images = 10 if name == "regdb" else course.images
            less = {"tests": course.tests, "scale": course.scale} if name == "sysu" else {}
            with tqdm(desc=f"rendering {root.name}", unit="person", total=ids) as bar:
                RENDERERS[name](root, ids, images, seed, workers=os.cpu_count() or 1, **less,
                                progress=lambda done, total, bar=bar: bar.update(done - bar.n))
    with atomic_path(out / "pedestrians.png") as temporary:
        contact_sheet(roots).save(temporary, format="png")


def contact_sheet(roots: dict[str, Path], persons: int = 10) -> Image.Image:
    """Some persons of each data set, one a column: two visible images above two infrared ones."""
    spec, gap, top = ImageSpec(168, 84), 4, 0
    sheet = Image.new("RGB", (persons * (spec.width + gap), len(roots) * 4 * (spec.height + gap)), "white")
    for name, root in roots.items():
        split = DATASETS[name].train_split(root)
        shown = [pid for pid in split.pids if all((side.pids == pid).sum() > 1 for side in split.sides)]
        for side, place in itertools.product(split.sides, (0, -1)):
            for column, pid in enumerate(shown[:persons]):
                path = side.paths[np.flatnonzero(side.pids == pid)[place]]
                sheet.paste(Image.fromarray(read_image(path, spec)), (column * (spec.width + gap), top))
            top += spec.height + gap
    return sheet


def chance(name: str, root: Path) -> dict[str, float]:
    """Scores of random distances in a data set's first search, the mean of twenty draws."""
    data, rng = DATASETS[name], np.random.default_rng(0)
    search = data.searches(root, direction=data.direction, trials=data.trials(1)[:1])[0]
    cmcs, mean_aps, _ = zip(*(evaluate(
        rng.random((len(search.query), len(search.gallery))), search.query.pids, search.gallery.pids,
        search.seen(), count_persons=search.count_persons) for _ in range(20)))
    cmc = np.mean(cmcs, 0)
    return {"rank-1": cmc[0], "rank-10": cmc[9], "mAP": np.mean(mean_aps)}


def script(name: str, *words: object) -> None:
    """Run one of the scripts in this process, which has torch loaded."""
    words = list(map(str, words))
    print("\n$ python " + " ".join([name, *words]), flush=True)
    importlib.import_module(name.removesuffix(".py")).main(words)


def train_and_test(name: str, method: str, course: Course, flags: tuple, root: Path, out: Path,
                   gpu: str) -> tuple[Path, dict[str, float]]:
    """Train and test a method on a data set; the checkpoint, and its scores after pooling."""
    where, models = ("--data-path", root, "--gpu", gpu, "--workers", 2), out / "models" / f"{name}_{method}"
    identities = min(course.identities, len(DATASETS[name].train_split(root).pids))
    script("train.py", "--dataset", name, "--method", method, "--arch", course.arch, *flags, *where,
           "--batch-size", identities, "--eval-every", 100, "--resume", "auto", "--model_path", models,
           "--log_path", out / "log", "--vis_log_path", out / "log" / "vis_log")
    checkpoint = max(models.glob("*_last.t"), key=os.path.getmtime)
    results = out / f"{name}_{method}"
    script("test.py", "--resume", checkpoint, *where, "--out", results)
    return checkpoint, read(results / "results.json")["mean"]["pool"]


def search_page(root: Path, checkpoint: Path, out: Path) -> Path:
    """Embed the test images of SYSU-MM01's first search and search one side in the other; the page of it."""
    search, folder = DATASETS["sysu"].searches(root, trials=[0])[0], out / "search"
    folder.mkdir(exist_ok=True)
    for side in (search.query, search.gallery):
        names = folder / f"{side.modality}.txt"
        names.write_text("\n".join(side.paths) + "\n", encoding="utf-8")
        script("embed.py", names, "--modality", side.modality, "--resume", checkpoint,
               "--out", names.with_suffix(".npz"), "--gpu", "cpu", "--workers", 2)
    record = out / "sysu_cgrnet" / "results.json"
    rates = read(record)["roc"]["pool"].get("false_accept_rates", [1])  # few pairs know no low ones
    enough = min(rates) < 0.05 / len(search.gallery)
    verdicts = ("--far-search", 0.05, "--calibration", record) if enough else ()
    script("search.py", folder / "infrared.npz", folder / "visible.npz", "--feature", "pool", "--out", folder,
           *verdicts)
    with open(folder / "hits.csv", encoding="utf-8", newline="") as file:
        right = [Path(row["query"]).parent.name == Path(row["hit"]).parent.name
                 for row in csv.DictReader(file) if row["verdict"] == "match"]
    if right:
        print(f"of {len(right)} hits that are called a match, {np.mean(right):.0%} are the same person")
    return folder / "hits.html"


def read(path: Path) -> dict:
    """The content of a JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))


def show(rows: Sequence[tuple[str, str, dict[str, float]]], out: Path, page: Path, checkpoint: Path,
         root: Path) -> None:
    """Print the table of all scores, where to look, and what to try next."""
    print(f"\n{'per cent, after pooling':<28}{'Rank-1':>8}{'Rank-10':>8}{'mAP':>8}")
    for name, method, scores in rows:
        figures = "".join(f"{100 * scores[measure]:8.1f}" for measure in ("rank-1", "rank-10", "mAP"))
        print(f"{DATASETS[name].title + ' layout, ' + method:<28}{figures}")
    print(f"\nthe persons: {out / 'pedestrians.png'}")
    records = [out / f"{name}_{method}" / "results.json" for name, method, _ in rows if method != "chance"]
    for record in records:
        print(f"queries and what was found: {record.with_name('ranking.png')}")
    print(f"a search to open in a browser: {page}\n\nNext:\n"
          f"  python test.py --resume {checkpoint} --data-path {root} --gpu cpu --direction v2i\n"
          f"  python export.py {checkpoint} --out {out / 'onnx'}")
    print(f"  python test.py --compare {records[0]} {records[1]}" if records[1:] else
          "  python demo.py --full")


if __name__ == "__main__":
    run(main)

"""Times this repository's ways against the plain ones, the two alternately in one process.

    python -m tools.bench step input extract onnx metrics search preprocess graph [--gpu 0|cpu] [--json FILE]
    python -m tools.bench params --arch mobilenet_v2          parameters and arithmetic of each method

The step that it times is train.py's own.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from backbones import BACKBONES
from checkpoint import Checkpoint, save_checkpoint
from data_loader import IdentitySampler, TrainBatches, TrainImages, single_names
from datasets.types import ImageSpec
from devices import choose_device, has_bf16, keep_freed_memory, precision, prepare
from engine import Meters, build_optimiser, train_steps
from eval_metrics import eval_sysu
from features import Extraction, extract, torch_network
from loss import Criterion
from model import METHODS, MODALITIES, Method, TwoStream, View, build_network
from retrieval import onnx_model
from retrieval.gallery import BLOCK, find_nearest
from tools import plain
from utils import GPU, Parser, add_data_arguments, choices, integer, run, versions, write_json

CLASSES = 395  # training persons of SYSU-MM01
STEPS = {"cpu": 1, "cuda": 30}  # in one timed piece of `step`
BATCHES = {"cpu": 20, "cuda": 60}  # in one timed piece of `input`
TEST_IMAGES = {"cpu": 256, "cuda": 4096}
PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows of the matrices that the peak is measured on
COPY = 1 << 28  # bytes of the copy that the bandwidth is measured on
QUERIES, GALLERY, PERSONS = 3803, 301, 96  # SYSU-MM01's test, all-search
ROWS, WIDTH, TOP = 1_000_000, 2048, 10  # of the gallery that is searched
PREPROCESSED = 4000  # images; SYSU-MM01 has 34,167
DISTINCT = 64  # image files that differ; the others are links to them
CPU = torch.device("cpu")
LR, TEST_BATCH = 0.001, 64
Result = dict[str, Any]


# -------------------------------------------------------------------------------------------------- measuring
def compare(name: str, baseline: Callable[[], Any], variant: Callable[[], Any], repeats: int, warmup: int,
            device: torch.device, images: int = 0, plain_memory: bool = False) -> Result:
    """Run both alternately: median, least and most seconds, images a second, ratios of neighbouring runs.

    plain_memory: on the CPU, the baseline runs as scripts do that leave the C library its own ways with
    memory.
    """
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(piece: Callable[[], Any]) -> float:
        if plain_memory and device.type == "cpu":
            keep_freed_memory(piece is variant)
            if piece is variant:
                piece()  # it has the memory of a run that is under way then
        synchronise()
        begun = time.perf_counter()
        piece()
        synchronise()
        return time.perf_counter() - begun

    for _ in range(warmup):
        seconds(baseline), seconds(variant)
    times = np.array([(seconds(baseline), seconds(variant)) for _ in range(repeats)])
    ratios = times[:, 0] / times[:, 1]
    sides = {side: {"seconds": float(np.median(seconds)), "min": float(seconds.min()),
                    "max": float(seconds.max()), "images_per_s": images / float(np.median(seconds))}
             for side, seconds in zip(("baseline", "variant"), times.T)}
    return {"name": name, "ratio": float(np.median(ratios)), "ratio_min": float(ratios.min()),
            "ratio_max": float(ratios.max()), "repeats": repeats, **sides, "note": ""}


def with_floor(result: Result, amount: int, unit: str, device: torch.device, bf16: bool = False) -> Result:
    """Add the time of the variant's FLOP in one large product, or of its bytes (B) in one large copy."""
    if unit == "FLOP":
        size = PRODUCT[device.type]
        one, other = torch.randn(2, size, size, device=device).to(torch.bfloat16 if bf16 else torch.float32)
        work, piece = 2 * size ** 3, lambda: one @ other
    else:
        one, other = torch.ones(2, COPY, dtype=torch.uint8, device=device)
        work, piece = 2 * one.numel(), lambda: one.copy_(other)
    rate = work / compare("", piece, piece, 3, 1, device)["variant"]["min"]
    share = amount / rate / result["variant"]["seconds"]
    floor = f"floor {amount / 1e9:.2f} G{unit} at {rate / 1e9:.1f} G{unit}/s, {share:.1%} of our time"
    return {**result, unit: amount, f"{unit}/s": rate, "floor_s": amount / rate, "share_of_floor": share,
            "note": f"{result['note']}; {floor}" if result["note"] else floor}


def count_flops(piece: Callable[[], Any]) -> int:
    """Floating-point operations (two for a multiply-add) of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        piece()
    return counter.get_total_flops()


# --------------------------------------------------------------------------------------------- the benchmarks
def bench_step(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Training steps with all their input: train.py's epoch against the plain recipe's."""
    images, sampler = made_training(args, STEPS[device.type])
    names = {modality: METHODS[args.method].views[modality].augment for modality in MODALITIES}
    loader = plain.training_loader(images, sampler, args.workers, names)
    net, criterion = made_network(METHODS[args.method], args.arch, device)
    optimiser = torch.optim.SGD(net.parameter_groups(LR, True), momentum=0.9, nesterov=True,
                                weight_decay=5e-4)
    baseline = functools.partial(plain.train_epoch, net, criterion, loader, optimiser, device)
    flops = count_flops(forward_and_backward(METHODS[args.method], 2, args, device, False))
    flops = flops * args.batch_size // 2
    for name, bf16 in precisions(device):
        net, criterion = made_network(METHODS[args.method], args.arch, device, torch.channels_last)
        batches = TrainBatches(images, sampler, net.method.views, device, device.type == "cuda", 0)
        optimiser = build_optimiser(net, criterion, LR, True, "sgd")

        def ours(net=net, criterion=criterion, batches=batches, optimiser=optimiser, bf16=bf16) -> None:
            meters = Meters()
            for values in train_steps(net, criterion, batches, optimiser, 0, 0, bf16):
                meters.add(values)
            meters.read()

        result = compare(f"step {args.arch} {name}", baseline, ours, args.repeats, args.warmup, device,
                         sampler.steps * args.step_images, plain_memory=True)
        yield with_floor({**result, "steps": sampler.steps}, flops * sampler.steps, "FLOP", device, bf16)


def bench_input(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Training batches on the device and nothing else: `TrainBatches` against the plain recipe's."""
    images, sampler = made_training(args, BATCHES[device.type])
    names = single_names(("standard", *args.augment.split(",")))
    loader = plain.training_loader(images, sampler, args.workers, dict.fromkeys(MODALITIES, names))
    count = sampler.steps * args.step_images
    views = {modality: View(modality, names) for modality in MODALITIES}
    ours = TrainBatches(images, sampler, views, device, device.type == "cuda", 0)
    result = compare("input" if args.augment == "standard" else f"input {args.augment}",
                     lambda: [all(part.to(device) is not None for part in batch) for batch in loader],
                     lambda: sum(1 for _ in ours.epoch(0)), args.repeats, args.warmup, device, count,
                     plain_memory=True)
    moved = count * args.img_h * args.img_w * 3 * (1 + 4)  # uint8 read, float32 written
    yield with_floor(result, moved, "B", device)


def bench_extract(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Features of image files: `features.extract` against PIL transforms and a contiguous float32 network."""
    count = TEST_IMAGES[device.type]
    plain_net, net = (made_network(METHODS[args.method], args.arch, device, form)[0]
                      for form in (torch.contiguous_format, torch.channels_last))
    with tempfile.TemporaryDirectory() as folder:
        paths = made_files(Path(folder), [f"{number}.jpg" for number in range(count)])
        loader = plain.file_loader(paths, args.img_h, args.img_w, TEST_BATCH, args.workers)
        for name, bf16 in precisions(device):
            spec = ImageSpec(args.img_h, args.img_w)
            settings = Extraction(spec, TEST_BATCH, args.workers, bf16)
            sides = (functools.partial(plain.features, plain_net, loader, device),
                     lambda bf16=bf16, settings=settings: extract(
                         torch_network(net, "visible", bf16), paths, settings))
            result = compare(f"extract {args.arch} {name}", *sides, args.repeats, args.warmup, device, count,
                             plain_memory=True)
            yield with_floor(result, count * flops_of_pair(net, args, device) // 2, "FLOP", device, bf16)


def bench_onnx(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Features of image files on the CPU: export.py's networks in onnxruntime against torch's own."""
    count, script = TEST_IMAGES["cpu"], Path(__file__).parents[1] / "export.py"
    net, _ = made_network(METHODS[args.method], args.arch, CPU, torch.channels_last)
    for module in net.modules():
        module.momentum = 1.0  # of BatchNorms: they learn one batch's statistics, else all features are alike
    with torch.no_grad():
        net.train()(*torch.randn(2, 8, 3, args.img_h, args.img_w))
    facts = {name: getattr(args, name) for name in ("method", "arch", "img_h", "img_w")}
    settings = Extraction(ImageSpec(args.img_h, args.img_w), TEST_BATCH, args.workers)
    with tempfile.TemporaryDirectory() as folder:
        paths = made_files(Path(folder) / "images", [f"{number}.jpg" for number in range(count)])
        save_checkpoint(Path(folder) / "x.t", Checkpoint(net.state_dict(), facts, CLASSES))
        for name, flags in (("float32", []), ("half", ["--half"])):
            command = [sys.executable, str(script), f"{folder}/x.t", "--out", f"{folder}/{name}", *flags]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:  # of random weights, 8 bits may leave too little
                print(f"onnx {name}: left out, {done.stderr.splitlines()[-1]}")
                continue
            model = onnx_model.load(f"{folder}/{name}/visible.onnx", args.threads or 0)
            sides = (lambda: extract(torch_network(net, "visible"), paths, settings),
                     functools.partial(extract, model.features, paths, settings))
            result = compare(f"onnx {name}", *sides, args.repeats, args.warmup, CPU, count)
            size = Path(f"{folder}/{name}/visible.onnx").stat().st_size
            yield {**result, "note": f"{size / 1e6:.0f} MB a file"}


def bench_metrics(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """`eval_sysu` against both plain loops on the geometry of SYSU-MM01's test, and the memory it adds."""
    rng = np.random.default_rng(0)
    cells = np.sort(rng.permutation(4 * PERSONS)[:GALLERY])  # (person, visible camera)
    q_pids, q_camids = rng.choice(cells // 4, QUERIES), rng.choice((3, 6), QUERIES)
    for shots in (1, 10):
        g_pids, g_camids = np.repeat(cells // 4, shots), np.repeat(np.array((1, 2, 4, 5))[cells % 4], shots)
        dist_mat = rng.normal(1, 0.1, (QUERIES, len(g_pids))).astype(np.float32)
        dist_mat -= np.float32(0.2) * (q_pids[:, None] == g_pids)
        search = (dist_mat, q_pids, g_pids, q_camids, g_camids)
        tracemalloc.start()
        scores = eval_sysu(*search)
        memory = tracemalloc.get_traced_memory()[1] / dist_mat.nbytes
        tracemalloc.stop()
        for found, expected in zip(scores, plain.scores(*search, arrays=True)):
            # their sorts part where distances are equal
            np.testing.assert_allclose(found, expected, rtol=1e-3)
        for loop, arrays in (("", False), (" of arrays", True)):
            sides = (lambda search=search, arrays=arrays: plain.scores(*search, arrays),
                     lambda search=search: eval_sysu(*search))
            result = {**compare(f"metrics {shots}-shot{loop}", *sides, args.repeats, args.warmup, CPU),
                      "memory": memory, "note": f"{dist_mat.shape}, {memory:.2f} times its memory on top"}
            yield with_floor(result, dist_mat.nbytes, "B", CPU)


def bench_search(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """`find_nearest` in a mapped gallery against a product and a full stable sort, and the memory it adds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        gallery = np.lib.format.open_memmap(Path(folder) / "gallery.npy", "w+", np.float32, (ROWS, WIDTH))
        for start in range(0, ROWS, BLOCK):
            gallery[start:start + BLOCK] = unit_rows(rng, len(gallery[start:start + BLOCK]))
        for count in (1, 64):
            query = unit_rows(rng, count)
            sides = (lambda query=query: np.argsort(-(query @ gallery.T), 1, "stable")[:, :TOP],
                     lambda query=query: find_nearest(query, gallery, TOP).rows)
            tracemalloc.start()
            found = sides[1]()
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            np.testing.assert_array_equal(found, sides[0]())
            result = {**compare(f"search {count}", *sides, args.repeats, args.warmup, CPU), "memory": memory,
                      "note": f"in {ROWS:,} x {WIDTH:,}, {memory / 1e6:.0f} MB beyond the gallery"}
            amount = (gallery.nbytes, "B") if count == 1 else (2 * count * gallery.size, "FLOP")
            yield with_floor(result, *amount, CPU)


def bench_preprocess(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """pre_process_sysu.py, its start included, with a worker on each core against one worker."""
    script, cores = Path(__file__).parents[1] / "pre_process_sysu.py", os.cpu_count() or 1
    persons = -(-PREPROCESSED // 24)
    with tempfile.TemporaryDirectory() as folder:
        paths = made_files(Path(folder), [f"cam{camera}/{pid:04d}/{number:04d}.jpg" for camera in range(1, 7)
                                          for pid in range(1, persons + 1) for number in range(1, 5)])
        (Path(folder) / "exp").mkdir()
        for name, pids in (("train", range(1, persons)), ("val", [persons]), ("test", [persons + 1])):
            (Path(folder) / "exp" / f"{name}_id.txt").write_text(",".join(map(str, pids)))

        def pre_process(workers: int) -> None:
            flags = ("--data-path", folder, "--workers", workers,
                     "--img_h", args.img_h, "--img_w", args.img_w)
            subprocess.run([sys.executable, str(script), *map(str, flags)], check=True, capture_output=True)

        one, all_cores = (functools.partial(pre_process, workers) for workers in (1, cores))
        result = compare("preprocess", one, all_cores, args.repeats, args.warmup, CPU, len(paths))
    yield {**result, "workers": cores, "floor_s": result["baseline"]["seconds"] / cores,
           "note": f"{cores} workers against 1, of a ratio of {cores} that decoding on every core at once "
                   "could reach"}


def bench_graph(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Forward, loss and backward of cgrnet with and without graph reasoning and similarity module."""
    without = dataclasses.replace(METHODS["base"], own_stages=METHODS["cgrnet"].own_stages)
    for name, bf16 in precisions(device):
        pieces = [forward_and_backward(method, args.batch_size, args, device, bf16)
                  for method in (without, METHODS["cgrnet"])]
        result = compare(f"graph {args.arch} {name}", *pieces, args.repeats, args.warmup, device,
                         args.step_images)
        extra = 100 / result["ratio"] - 100
        result = {**result, "extra_per_cent": extra, "note": f"both modules add {extra:.1f} % to a step"}
        yield with_floor(result, count_flops(pieces[1]), "FLOP", device, bf16)


def bench_params(args: argparse.Namespace, device: torch.device) -> Iterator[Result]:
    """Parameters without classifier, and the arithmetic of a forward pass of one image of either modality."""
    for method in METHODS:
        net = build_network(method, args.arch, CLASSES).to(device).eval()
        parameters = sum(p.numel() for p in net.parameters()) - net.classifier.weight.numel()
        flops = flops_of_pair(net, args, device)
        yield {"name": f"params {args.arch} {method}", "parameters": parameters, "flops_pair": flops,
               "note": f"{parameters / 1e6:.2f} M parameters, {flops / 1e9:.1f} GFLOP a pair of images"}


# ----------------------------------------------------------------------------------------------------- pieces
def unit_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random features of unit length (count, WIDTH) float32."""
    rows = rng.standard_normal((count, WIDTH), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def precisions(device: torch.device) -> list[tuple[str, bool]]:
    """The precisions to report: float32 and, where the device has it natively, bf16."""
    if not has_bf16(device):
        print("bf16: left out, the device does not have it natively")
    return [("float32", False), ("bf16", True)][:1 + has_bf16(device)]


def made_training(args: argparse.Namespace, steps: int) -> tuple[dict[str, TrainImages], IdentitySampler]:
    """Noise in the form of training images, and a sampler whose epoch has this many steps."""
    labels = np.repeat(np.arange(steps * args.batch_size), args.num_pos)
    shape = (len(labels), args.img_h, args.img_w, 3)
    images = {modality: TrainImages(torch.randint(256, shape, dtype=torch.uint8), labels)
              for modality in MODALITIES}
    return images, IdentitySampler(dict.fromkeys(MODALITIES, labels), args.batch_size, args.num_pos, 0)


def made_files(root: Path, names: list[str]) -> list[str]:
    """JPEG files of smooth noise, 300 x 120 pixels, under these names: a few, and links to them."""
    rng = np.random.default_rng(0)
    paths = [root / name for name in names]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < DISTINCT:
            small = Image.fromarray(rng.integers(256, size=(30, 12, 3), dtype=np.uint8))
            small.resize((120, 300), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(paths[index % DISTINCT], path)
    return list(map(str, paths))


def made_network(method: Method, arch: str, device: torch.device,
                 memory_format: torch.memory_format = torch.contiguous_format) -> tuple[TwoStream, Criterion]:
    """A network with random weights, and its losses."""
    net = build_network(method, arch, CLASSES).to(device, memory_format=memory_format)
    return net, Criterion(method.losses, CLASSES, net.dim).to(device)


def forward_and_backward(method: Method, persons: int, args: argparse.Namespace, device: torch.device,
                         bf16: bool) -> Callable[[], None]:
    """A step without input and optimiser, on noise."""
    net, criterion = made_network(method, args.arch, device, torch.channels_last)
    shape = (2, persons * args.num_pos, 3, args.img_h, args.img_w)
    images = [half.contiguous(memory_format=torch.channels_last)
              for half in torch.randn(shape, device=device)]
    labels = torch.arange(persons, device=device).repeat_interleave(args.num_pos)

    def piece() -> None:
        with precision(device, bf16):
            output = net.train()(*images)
        net.zero_grad()
        criterion(output, labels)[0].backward()

    return piece


@torch.inference_mode()
def flops_of_pair(net: TwoStream, args: argparse.Namespace, device: torch.device) -> int:
    """Operations of one visible and one infrared image's forward pass."""
    images = torch.zeros(1, 3, args.img_h, args.img_w, device=device)
    return count_flops(lambda: net(images, images))


# ----------------------------------------------------------------------------------------------- command line
BENCHMARKS = {"step": bench_step, "input": bench_input, "extract": bench_extract, "onnx": bench_onnx,
              "metrics": bench_metrics, "search": bench_search, "preprocess": bench_preprocess,
              "graph": bench_graph, "params": bench_params}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, and what the pieces of a run read beside them."""
    parser = Parser(description="Time this repository's ways against the plain ones.")
    parser.add_argument("benchmarks", nargs="+", choices=(*BENCHMARKS, "all"), help="what to time")
    add_data_arguments(parser)
    parser.add_argument("--gpu", **GPU)
    parser.add_argument("--arch", choices=BACKBONES, default="resnet50", help="backbone")
    parser.add_argument("--method", choices=METHODS, default="cgrnet", help="network and losses")
    parser.add_argument("--augment", type=choices(("strong", *plain.AUGMENTATIONS, "standard")),
                        default="standard", metavar="NAME[,NAME...]", help="augmentations of `input`")
    parser.add_argument("--batch-size", type=integer(2), default=8, metavar="N", help="identities a batch")
    parser.add_argument("--num_pos", type=integer(1), default=4, metavar="P",
                        help="images of each identity and modality")
    parser.add_argument("--repeats", type=integer(1), default=5, metavar="N", help="timed runs of each side")
    parser.add_argument("--warmup", type=integer(0), default=1, metavar="N",
                        help="runs of each side before those")
    parser.add_argument("--threads", type=integer(1), metavar="N",
                        help="torch's threads on the CPU (default: its own choice)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    args = parser.parse_args(words)
    args.workers = min(args.workers, os.cpu_count() or 1)
    args.step_images = 2 * args.batch_size * args.num_pos
    return args


def device_name(device: torch.device) -> str:
    """The device in its maker's words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def show(result: Result) -> str:
    """One result on one line."""
    if "ratio" not in result:
        return f"{result['name']:<32} {result['note']}"
    times, speeds = ([result[side][what] for side in ("baseline", "variant")]
                     for what in ("seconds", "images_per_s"))
    speed = f"{speeds[0]:7.0f} -> {speeds[1]:7.0f} images/s" if speeds[0] else " " * 27
    return (f"{result['name']:<32} {times[0]:8.3f} -> {times[1]:8.3f} s {speed}  ratio "
            f"{result['ratio']:6.2f} ({result['ratio_min']:.2f} to {result['ratio_max']:.2f})  "
            f"{result['note']}")


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmarks asked for, print a line for each result, and write them all where asked."""
    args = parse_arguments(words)
    device = choose_device(args.gpu)
    prepare(device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    report = {"command": "python -m tools.bench " + shlex.join(words or sys.argv[1:]),
              "device": device_name(device), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
              "versions": versions(), "results": []}
    print(f"{report['device']}, {report['threads']} threads, torch {report['versions']['torch']}; "
          "baseline -> variant")
    for name in BENCHMARKS if "all" in args.benchmarks else args.benchmarks:
        for result in BENCHMARKS[name](args, device):
            print(show(result), flush=True)
            report["results"].append(result)
    if args.json:
        write_json(Path(args.json), report)


if __name__ == "__main__":
    run(main)

"""Times this repository's ways against the plain ones, the two alternately in one process.

    python -m tools.bench step input extract onnx metrics search preprocess method [--gpu 0|cpu] [--json FILE]
    python -m tools.bench params --arch mobilenet_v2          parameters and arithmetic of each method

The step that it times is train.py's own.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import export
import pre_process_sysu
from backbones import BACKBONES
from checkpoint import Checkpoint, save_checkpoint
from data_loader import IdentitySampler, TrainBatches, TrainImages, single_names
from datasets.types import MODALITIES, VISIBLE, ImageSpec, View
from devices import choose_device, has_bf16, keep_freed_memory, precision, prepare
from engine import build_optimiser, train_steps
from eval_metrics import eval_sysu
from features import Extraction, extract, torch_network
from loss import Criterion
from model import METHODS, Method, TwoStream, build_network
from retrieval import onnx_model
from retrieval.gallery import BLOCK, find_nearest
from tools import plain
from command_line import GPU, Parser, add_data_arguments, choices, number, run
from utils import versions, write_json

CLASSES = 395  # training persons of SYSU-MM01
STEPS = {"cpu": 1, "cuda": 30}  # in one timed piece of `step`
BATCHES = {"cpu": 20, "cuda": 60}  # in one timed piece of `input`
TEST_IMAGES = {"cpu": 256, "cuda": 4096}
PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows of the matrices whose product tells the peak
QUERIES, GALLERY, PERSONS = 3803, 301, 96  # SYSU-MM01's test, all-search
ROWS, WIDTH, TOP = 1_000_000, 2048, 10  # of the gallery that is searched
PREPROCESSED = 4000  # images; SYSU-MM01 has 34,167
LR, TEST_BATCH = 0.001, 64
Piece = Callable[[], Any]  # what is timed


# --------------------------------------------------------------------------------------------- the benchmarks
def bench_step(args: argparse.Namespace) -> None:
    """Training steps with all their input: train.py's epoch against the plain recipe's."""
    images, sampler = make_training(args, STEPS[args.device.type])
    method = METHODS[args.method]
    loader = plain.training_loader(images, sampler, args.workers,
                                   {name: method.views[name].augment for name in MODALITIES})
    net, criterion = make_network(method, args, torch.contiguous_format)
    optimiser = torch.optim.SGD(net.parameter_groups(LR, True), momentum=0.9, nesterov=True,
                                weight_decay=5e-4)
    baseline = partial(plain.train_epoch, net, criterion, loader, optimiser, args.device)
    flops = count_flops(forward_and_backward(method, args, False)) * sampler.steps

    def ours(*state: Any, bf16: bool) -> None:
        figures = list(train_steps(*state, epoch=0, bf16=bf16))  # read at the end, as train.py does
        torch.stack([value for values in figures for value in values.values()]).tolist()

    for name, bf16 in args.precisions:
        net, criterion = make_network(method, args)
        batches = TrainBatches(images, sampler, method.views, args.device, args.device.type == "cuda", 0)
        optimiser = build_optimiser(net, criterion, LR, True, "sgd")
        measure(args, f"step {args.arch} {name}", baseline,
                partial(ours, net, criterion, batches, optimiser, bf16=bf16),
                sampler.steps * args.step_images, flops, bf16, plain_memory=True)


def bench_input(args: argparse.Namespace) -> None:
    """Training batches on the device and nothing else: `TrainBatches` against the plain recipe's."""
    images, sampler = make_training(args, BATCHES[args.device.type])
    names = single_names(("standard", *args.augment.split(",")))
    loader = plain.training_loader(images, sampler, args.workers, dict.fromkeys(MODALITIES, names))
    views = {modality: View(modality, names) for modality in MODALITIES}
    ours = TrainBatches(images, sampler, views, args.device, args.device.type == "cuda", 0)
    measure(args, "input" if args.augment == "standard" else f"input {args.augment}",
            lambda: sum(part.to(args.device).ndim for batch in loader for part in batch),
            lambda: sum(1 for _ in ours.epoch(0)), sampler.steps * args.step_images, plain_memory=True)


def bench_extract(args: argparse.Namespace) -> None:
    """Features of image files: `features.extract` against PIL transforms and a contiguous float32 network."""
    method, paths = METHODS[args.method], make_files(args, range(TEST_IMAGES[args.device.type]))
    plain_net, net = make_network(method, args, torch.contiguous_format)[0], make_network(method, args)[0]
    flops = len(paths) * flops_of_pair(net, args) // 2
    loader = plain.file_loader(paths, args.img_h, args.img_w, TEST_BATCH, args.workers)
    for name, bf16 in args.precisions:
        measure(args, f"extract {args.arch} {name}", partial(plain.features, plain_net, loader, args.device),
                partial(extract, torch_network(net, VISIBLE, bf16), paths, args.extraction), len(paths),
                flops, bf16, plain_memory=True)


def bench_onnx(args: argparse.Namespace) -> None:
    """Features of image files on the CPU: export.py's network in onnxruntime against torch's own."""
    net = make_network(METHODS[args.method], args)[0].cpu()
    for module in net.modules():
        module.momentum = 1.0  # of BatchNorms: they learn one batch's statistics, else all features are alike
    with torch.no_grad():
        net.train()(*torch.randn(2, 8, 3, args.img_h, args.img_w))
    facts = {name: getattr(args, name) for name in ("method", "arch", "img_h", "img_w")}
    save_checkpoint(args.folder / "x.t", Checkpoint(net.state_dict(), facts, CLASSES))
    call(export.main, args.folder / "x.t", "--out", args.folder)
    file, paths = args.folder / f"{VISIBLE}.onnx", make_files(args, range(TEST_IMAGES["cpu"]))
    networks = torch_network(net, VISIBLE), onnx_model.load(file, args.threads or 0).features
    sides = [partial(extract, network, paths, args.extraction) for network in networks]
    measure(args, "onnx float32", *sides, len(paths), note=f"{file.stat().st_size / 1e6:.0f} MB a file")


def bench_metrics(args: argparse.Namespace) -> None:
    """`eval_sysu` against both plain loops on the geometry of SYSU-MM01's test, and the memory it adds."""
    rng = np.random.default_rng(0)
    cells = np.sort(rng.permutation(4 * PERSONS)[:GALLERY])  # (person, visible camera)
    q_pids, q_camids = rng.choice(cells // 4, QUERIES), rng.choice((3, 6), QUERIES)
    for shots in (1, 10):
        g_pids, g_camids = np.repeat(cells // 4, shots), np.repeat(np.array((1, 2, 4, 5))[cells % 4], shots)
        dist_mat = rng.normal(1, 0.1, (QUERIES, len(g_pids))).astype(np.float32)
        dist_mat -= np.float32(0.2) * (q_pids[:, None] == g_pids)
        search = (dist_mat, q_pids, g_pids, q_camids, g_camids)
        ours = partial(eval_sysu, *search)
        scores, memory = memory_of(ours)
        for found, expected in zip(scores, plain.scores(*search, arrays=True)):
            np.testing.assert_allclose(found, expected, rtol=1e-3)  # sorts differ where distances are equal
        for loop, arrays in (("", False), (" of arrays", True)):
            measure(args, f"metrics {shots}-shot{loop}", partial(plain.scores, *search, arrays), ours,
                    note=f"{dist_mat.shape}, {memory / dist_mat.nbytes:.2f} times its memory on top")


def bench_search(args: argparse.Namespace) -> None:
    """`find_nearest` in a mapped gallery against a product and a full stable sort, and the memory it adds."""
    rng = np.random.default_rng(0)

    def unit_rows(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, WIDTH), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    gallery = np.lib.format.open_memmap(args.folder / "gallery.npy", "w+", np.float32, (ROWS, WIDTH))
    for start in range(0, ROWS, BLOCK):
        gallery[start:start + BLOCK] = unit_rows(min(BLOCK, ROWS - start))
    for query in map(unit_rows, (1, 64)):
        sides = (lambda query=query: np.argsort(-(query @ gallery.T), 1, "stable")[:, :TOP],
                 lambda query=query: find_nearest(query, gallery, TOP).rows)
        found, memory = memory_of(sides[1])
        np.testing.assert_array_equal(found, sides[0]())
        measure(args, f"search {len(query)}", *sides, flops=2 * len(query) * gallery.size,
                note=f"in {ROWS:,} x {WIDTH:,}, {memory / 1e6:.0f} MB beyond the gallery")


def bench_preprocess(args: argparse.Namespace) -> None:
    """pre_process_sysu.py with a worker on each core against one worker."""
    cores, persons = os.cpu_count() or 1, -(-PREPROCESSED // 24)
    images = itertools.product(range(1, 7), range(1, persons + 1), range(1, 5))
    paths = make_files(args, [f"cam{camera}/{pid:04d}/{number:04d}" for camera, pid, number in images])
    (args.folder / "exp").mkdir()
    for name, pids in (("train", range(1, persons)), ("val", [persons]), ("test", [persons + 1])):
        (args.folder / "exp" / f"{name}_id.txt").write_text(",".join(map(str, pids)))
    flags = ("--data-path", args.folder, "--img_h", args.img_h, "--img_w", args.img_w, "--workers")
    one, all_cores = (partial(call, pre_process_sysu.main, *flags, workers) for workers in (1, cores))
    measure(args, "preprocess", one, all_cores, len(paths),
            note=f"{cores} workers against 1; {cores} cores at once would be {cores} times")


def bench_method(args: argparse.Namespace) -> None:
    """A step without input and optimiser, and features, of --method against those of `base`."""
    images = np.zeros((args.step_images, args.img_h, args.img_w, 3), np.uint8)
    methods = METHODS["base"], METHODS[args.method]
    for name, bf16 in args.precisions:
        title = f"method {args.method} {args.arch} {name}"
        steps = [forward_and_backward(method, args, bf16) for method in methods]
        measure(args, f"{title} step", *steps, args.step_images, count_flops(steps[1]), bf16)
        networks = [torch_network(make_network(method, args)[0], VISIBLE, bf16) for method in methods]
        sides = (partial(network, images) for network in networks)
        measure(args, f"{title} features", *sides, args.step_images)


def bench_params(args: argparse.Namespace) -> None:
    """Parameters without classifier, and the arithmetic of a forward pass of one image of either modality."""
    for name, method in METHODS.items():
        net = make_network(method, args)[0].eval()
        count = sum(p.numel() for p in net.parameters()) - net.classifier.weight.numel()
        measure(args, f"params {args.arch} {name}", note=f"{count / 1e6:.2f} M parameters, "
                f"{flops_of_pair(net, args) / 1e9:.1f} GFLOP a pair of images")


BENCHMARKS = {"step": bench_step, "input": bench_input, "extract": bench_extract, "onnx": bench_onnx,
              "metrics": bench_metrics, "search": bench_search, "preprocess": bench_preprocess,
              "method": bench_method, "params": bench_params}


# -------------------------------------------------------------------------------------------------- measuring
def measure(args: argparse.Namespace, name: str, baseline: Piece | None = None, variant: Piece | None = None,
            images: int = 0, flops: int = 0, bf16: bool = False, plain_memory: bool = False,
            note: str = "") -> None:
    """Run both sides alternately; keep and print medians, and ratios of neighbouring runs; or a note alone.

    images: of one run of either side; flops, bf16: the variant's arithmetic and its precision, if that is its
    floor, whose time as one large product is told as a share of ours. plain_memory: on the CPU, the baseline
    runs with glibc's own ways with freed memory, as scripts of others do.
    """
    def timed(piece: Piece) -> float:
        if plain_memory and args.device.type == "cpu":
            keep_freed_memory(piece is variant)
            if piece is variant:
                piece()  # it has the memory of a run that is under way then
        return seconds(piece, args.device)

    result = {"name": name, "note": note}
    if baseline is not None:
        times = np.array([(timed(baseline), timed(variant))
                          for _ in range(args.warmup + args.repeats)])[args.warmup:]
        ratios, medians = times[:, 0] / times[:, 1], np.median(times, 0).tolist()
        result |= {"ratio": float(np.median(ratios)), "ratio_min": float(ratios.min()),
                   "ratio_max": float(ratios.max()), "repeats": args.repeats,
                   **{side: {"seconds": median, "images_per_s": images / median}
                      for side, median in zip(("baseline", "variant"), medians)}}
        if flops:
            rate = peak(args.device, bf16)
            result |= {"FLOP": flops, "FLOP/s": rate, "share_of_floor": flops / rate / medians[1]}
    args.results.append(result)
    print(show(result), flush=True)


def seconds(piece: Piece, device: torch.device) -> float:
    """Seconds that a piece of work takes, its work on the device included."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    begun = time.perf_counter()
    piece()
    synchronise()
    return time.perf_counter() - begun


def peak(device: torch.device, bf16: bool) -> float:
    """Operations a second of one large matrix product."""
    size, dtype = PRODUCT[device.type], torch.bfloat16 if bf16 else torch.float32
    one, other = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size ** 3 / min(seconds(lambda: one @ other, device) for _ in range(8))


def memory_of(piece: Piece) -> tuple[Any, int]:
    """What a piece of work returns, and the most bytes that it had taken for that."""
    tracemalloc.start()
    try:
        return piece(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def count_flops(piece: Piece) -> int:
    """Floating-point operations (two for a multiply-add) of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        piece()
    return counter.get_total_flops()


@torch.inference_mode()
def flops_of_pair(net: TwoStream, args: argparse.Namespace) -> int:
    """Operations of one visible and one infrared image's forward pass."""
    images = torch.zeros(1, 3, args.img_h, args.img_w, device=args.device)
    return count_flops(lambda: net(images, images))


# ----------------------------------------------------------------------------------------------------- pieces
def call(main: Callable[[Sequence[str]], None], *words: object) -> None:
    """Run a script in this process, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(list(map(str, words)))


def make_training(args: argparse.Namespace, steps: int) -> tuple[dict[str, TrainImages], IdentitySampler]:
    """Noise in the form of training images, and a sampler whose epoch has this many steps."""
    labels = np.repeat(np.arange(steps * args.batch_size), args.num_pos)
    shape = (len(labels), args.img_h, args.img_w, 3)
    images = {modality: TrainImages(torch.randint(256, shape, dtype=torch.uint8), labels)
              for modality in MODALITIES}
    return images, IdentitySampler(dict.fromkeys(MODALITIES, labels), args.batch_size, args.num_pos, 0)


def make_files(args: argparse.Namespace, names: Iterable[object]) -> list[str]:
    """A JPEG file of smooth noise, 300 x 120 pixels, under each of these names."""
    noise, file = np.random.default_rng(0).integers(256, size=(30, 12, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).resize((120, 300), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    paths = [args.folder / f"{name}.jpg" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return list(map(str, paths))


def make_network(method: Method, args: argparse.Namespace,
                 memory_format: torch.memory_format = torch.channels_last) -> tuple[TwoStream, Criterion]:
    """A network with random weights, and its losses."""
    net = build_network(method, args.arch, CLASSES).to(args.device, memory_format=memory_format)
    return net, Criterion(method.losses, CLASSES, net.dim).to(args.device)


def forward_and_backward(method: Method, args: argparse.Namespace, bf16: bool) -> Piece:
    """A step without input and optimiser, on noise."""
    net, criterion = make_network(method, args)
    shape = (args.batch_size * args.num_pos, 3, args.img_h, args.img_w)
    views = {name: torch.randn(shape, device=args.device).contiguous(memory_format=torch.channels_last)
             for name in method.views}
    labels = torch.arange(args.batch_size, device=args.device).repeat_interleave(args.num_pos)

    def piece() -> None:
        with precision(args.device, bf16):
            output = net.train()(**views)
        net.zero_grad()
        criterion(output, labels)[0].backward()

    return piece


# ----------------------------------------------------------------------------------------------- command line
def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, the device, and what follows from them."""
    parser = Parser(description="Time this repository's ways against the plain ones.")
    parser.add_argument("benchmarks", nargs="+", choices=(*BENCHMARKS, "all"), help="what to time")
    add_data_arguments(parser)
    parser.add_argument("--gpu", **GPU)
    parser.add_argument("--arch", choices=BACKBONES, default="resnet50", help="backbone")
    parser.add_argument("--method", choices=METHODS, default="cgrnet", help="network and losses")
    parser.add_argument("--augment", type=choices(("strong", *plain.AUGMENTATIONS, "standard")),
                        default="standard", metavar="NAME[,NAME...]", help="augmentations of `input`")
    parser.add_argument("--batch-size", type=number(2), default=8, metavar="N", help="identities a batch")
    parser.add_argument("--num_pos", type=number(1), default=4, metavar="P",
                        help="images of each identity and modality")
    parser.add_argument("--repeats", type=number(1), default=5, metavar="N", help="timed runs of each side")
    parser.add_argument("--warmup", type=number(0), default=1, metavar="N",
                        help="runs of each side before those")
    parser.add_argument("--threads", type=number(1), metavar="N",
                        help="torch's threads on the CPU (default: its own choice)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    args = parser.parse_args(words)
    args.workers = min(args.workers, os.cpu_count() or 1)
    args.step_images = 2 * args.batch_size * args.num_pos
    args.device, args.results = choose_device(args.gpu), []
    args.precisions = [("float32", False), ("bf16", True)][:1 + has_bf16(args.device)]
    args.extraction = Extraction(ImageSpec(args.img_h, args.img_w), TEST_BATCH, args.workers)
    return args


def device_name(device: torch.device) -> str:
    """The device in its maker's words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8") if info.exists() else "")
    return model[1] if model else platform.processor() or platform.machine()


def show(result: dict[str, Any]) -> str:
    """One result on one line."""
    if "ratio" not in result:
        return f"{result['name']:<32} {result['note']}"
    before, after = result["baseline"], result["variant"]
    line = f"{result['name']:<32} {before['seconds']:8.3f} -> {after['seconds']:8.3f} s"
    if after["images_per_s"]:
        line += f" {before['images_per_s']:7.0f} -> {after['images_per_s']:7.0f} images/s"
    line += f"  ratio {result['ratio']:6.2f} ({result['ratio_min']:.2f} to {result['ratio_max']:.2f})"
    if "FLOP" in result:
        line += (f"  {result['FLOP'] / 1e9:.0f} GFLOP, as one product {result['FLOP/s'] / 1e9:.0f} GFLOP/s, "
                 f"{result['share_of_floor']:.0%} of our time")
    return f"{line}  {result['note']}".rstrip()


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmarks asked for, print a line for each result, and write them all where asked."""
    args = parse_arguments(words)
    prepare(args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    command = shlex.join(map(str, sys.argv[1:] if words is None else words))
    report = {"command": f"python -m tools.bench {command}", "device": device_name(args.device),
              "cores": os.cpu_count(), "threads": torch.get_num_threads(),
              "versions": versions(), "results": args.results}
    print(f"{report['device']}, {report['threads']} threads, torch {report['versions']['torch']}; "
          "baseline -> variant")
    for name in BENCHMARKS if "all" in args.benchmarks else args.benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = Path(folder)
            BENCHMARKS[name](args)
    if args.json:
        write_json(Path(args.json), report)


if __name__ == "__main__":
    run(main)

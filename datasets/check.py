"""Checks a copy of a data set: its counts against the published ones, and what is missing, empty, unreadable or misnamed.

    python data_manager.py DIR [--all]

Exit status 0: usable; 1: not usable, training or testing would refuse it; 2: a mistake in the command.
"""
from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import data_manager as dm
from datasets.images import read_image
from utils import Parser, UserError, explain_os_error, one_line

SAMPLE = 100  # images opened unless all are asked for
SHOWN = 20  # lines shown of one kind
SPLITS = {"train": "training", "test": "test"}
FAULT, NOTE = "FAULT", "note"


@dataclass
class Report:
    """What a check found: lines by (FAULT: not usable, or NOTE; kind), a table, counts, images to open, ignored files."""

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)
    counts: list[tuple[str, object, int]] = field(default_factory=list)  # what, found, published
    images: list[str] = field(default_factory=list)
    ignored: int = 0

    def add(self, severity: str, kind: str, line: object) -> None:
        """Add one finding."""
        self.found.setdefault((severity, kind), []).append(one_line(line))

    def attempt(self, severity: str, kind: str, prefix: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """What a function returns; None if it refuses, which is a finding in its own words."""
        try:
            return function(*args, **kwargs)
        except (UserError, OSError) as error:
            self.add(severity, kind, f"{prefix}{error if isinstance(error, UserError) else explain_os_error(error)}")

    @property
    def usable(self) -> bool:
        """True if nothing was found that training or testing would refuse."""
        return not any(severity == FAULT for severity, _ in self.found)


def check(root: Path, every: bool) -> tuple[str | None, Report]:
    """Look at a folder; returns the name of its data set (None if it is none) and what was found."""
    report, name = Report(), dm.recognise(root)
    if name is None:
        inside = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and dm.recognise(folder)]
        layouts = " or ".join(f"{data.title} ({', '.join(data.folders)})" for data in dm.DATASETS.values())
        report.add(FAULT, "layout", f"{root}: neither data set found, {layouts} expected; "
                                    + (f"check {inside[0]}, which has one" if inside else "name the folder that holds these"))
    else:
        {"sysu": check_sysu, "regdb": check_regdb}[name](root, report)
    if not every and len(report.images) > SAMPLE:
        report.images = [report.images[i] for i in np.linspace(0, len(report.images) - 1, SAMPLE).round().astype(int)]
    open_images(report)
    return name, report


def check_sysu(root: Path, report: Report) -> None:
    """Check the id lists, cameras and person folders of SYSU-MM01."""
    train, val, test = ({*(report.attempt(FAULT, "lists", "", dm.parse_id_list, root / "exp" / f"{name}_id.txt") or ())}
                        for name in ("train", "val", "test"))
    pids = {"train": train | val, "test": test}
    visible, infrared = dm.SYSU_CAMERAS.values()
    held: dict[tuple[str, int], dict[int, int]] = {(split, c): {} for split in SPLITS for c in visible + infrared}
    for camera in sorted(visible + infrared):
        if not (root / f"cam{camera}").is_dir():
            report.add(FAULT, "missing", f"{root / f'cam{camera}'}: no such folder")
            continue
        for split, pid, images in check_camera(root / f"cam{camera}", pids, report):
            held[split, camera][pid] = len(images)
            report.images += images

    def size(split: str, cameras: tuple[int, ...]) -> tuple[int, int]:
        counts = [held[split, camera] for camera in cameras]
        return len(set().union(*counts)), sum(sum(count.values()) for count in counts)

    report.table.append(f"{'':<16}" + "".join(f"{f'{split} persons':>18}{'images':>8}" for split in SPLITS.values()))
    for modality, cameras in dm.SYSU_CAMERAS.items():
        for row, chosen in [*((f"cam{camera} {modality}", (camera,)) for camera in cameras), (f"all {modality}", cameras)]:
            report.table.append(f"{row:<16}" + "".join("{:>18}{:>8}".format(*size(split, chosen)) for split in SPLITS))
    for split in SPLITS:
        sides = {modality: set().union(*(held[split, c] for c in cameras)) for modality, cameras in dm.SYSU_CAMERAS.items()}
        check_modalities(f"{root / 'exp'}", split, sides, pids[split], report)
    published = dm.DATASETS["sysu"].published
    report.counts = [("training persons", len(pids["train"]), published[0]),
                     ("test persons", len(pids["test"]), dm.SYSU_TEST_PERSONS),
                     ("visible training images", size("train", visible)[1], published[1]),
                     ("infrared training images", size("train", infrared)[1], published[2]),
                     ("infrared test images", size("test", infrared)[1], published[3]),
                     *((f"{mode}-search gallery", sum(len(held["test", c]) for c in dm.sysu_cameras(dm.VISIBLE, mode)), number)
                       for mode, number in dm.SYSU_GALLERY.items())]
    report.attempt(FAULT, "refused", "train.py: ", dm.sysu_train_split, str(root))
    for mode in ("all", "indoor"):
        report.attempt(FAULT, "refused", f"test.py --mode {mode}: ", dm.sysu_protocols, str(root), mode=mode, trials=[0])
    if report.usable or not (root / "exp" / "rand_perm_cam.mat").exists():
        report.attempt(NOTE, "only --gallery official needs it", "", dm.sysu_protocols, str(root), shot=10, gallery="official")


def check_regdb(root: Path, report: Report) -> None:
    """Check the lists of RegDB's ten trials, the images that they name, and those on disk that they do not."""
    named: dict[str, list[str]] = {}  # the lists that name an image
    rows: list[dict[str, int]] = []  # what each trial counts
    for trial in range(1, dm.TRIALS + 1):
        rows.append({})
        for split, word in SPLITS.items():
            files = {modality: root / "idx" / f"{split}_{name}_{trial}.txt" for modality, name in dm.REGDB_NAMES.items()}
            lists = {modality: report.attempt(FAULT, "lists", "", dm.parse_index, path) or [] for modality, path in files.items()}
            for modality, entries in lists.items():
                for image, _ in entries:
                    named.setdefault(Path(image).as_posix(), []).append(files[modality].name)
            pids = {modality: {label for _, label in entries} for modality, entries in lists.items()}
            everyone = set().union(*pids.values())
            if all(pids.values()):
                check_modalities(f"{root / 'idx'}, trial {trial}", split, pids, everyone, report)
            rows[-1] |= {f"{word} persons": len(everyone), **{f"{side} {word} images": len(lists[side]) for side in lists}}
        report.attempt(FAULT, "refused", f"train.py --trial {trial}: ", dm.regdb_train_split, str(root), trial)
        report.attempt(FAULT, "refused", f"test.py --trial {trial}: ", dm.regdb_protocols, str(root), trials=[trial])
    report.table.append("trial" + "".join(f"{f'{word} persons':>20}{'visible':>9}{'infrared':>10}" for word in SPLITS.values()))
    report.table += [f"{trial:<5}" + ("{:>20}{:>9}{:>10}" * 2).format(*row.values()) for trial, row in enumerate(rows, 1)]
    persons, images, *_ = dm.DATASETS["regdb"].published
    for what in rows[0]:
        found = {row[what] for row in rows}
        spread = found.pop() if len(found) == 1 else f"{min(found)} to {max(found)}"
        report.counts.append((what, spread, persons if "persons" in what else images))
    for image, lists in sorted(named.items()):
        if has_bytes(str(root / image), f", named by {lists[0]}" + f" and {len(lists) - 1} more" * (len(lists) > 1), report):
            report.images.append(str(root / image))
    for top in sorted({Path(image).parts[0] for image in named} | {*dm.DATASETS["regdb"].folders[1:]}):
        for folder, folders, files in os.walk(root / top):
            report.ignored += sum(map(dm.is_system_file, files))
            folders[:] = sorted(name for name in folders if not dm.is_system_file(name))
            for path in (Path(folder) / name for name in sorted(files) if not dm.is_system_file(name)):
                if path.relative_to(root).as_posix() not in named:
                    kind = "images that no list names" if path.suffix.lower() in dm.IMAGE_SUFFIXES else "files that are not images"
                    report.add(NOTE, kind, f"{path}{'' if path.exists() else ': a link that points nowhere'}")


def check_modalities(source: str, split: str, sides: dict[str, set[int]], pids: set[int], report: Report) -> None:
    """Report persons that lack a modality: training refuses them, testing leaves their queries out of the mean."""
    for modality, present in sides.items():
        for pid in sorted(pids - present):
            report.add(FAULT if split == "train" else NOTE, f"{SPLITS[split]} persons without a modality",
                       f"{source}: person {pid} has no {modality} image")
    if split == "test" and pids and not set.intersection(*sides.values()):
        report.add(FAULT, "no search", f"{source}: no test person has images in both modalities; restore the test persons")


def check_camera(folder: Path, pids: dict[str, set[int]], report: Report) -> Iterator[tuple[str, int, list[str]]]:
    """Yield split, pid and image files of every listed person in one camera; what else is in its folder is reported."""
    for entry in scan(folder, report):
        pid = int(entry.name) if entry.name.isdecimal() else None
        if splits := [split for split in SPLITS if pid in pids[split]]:
            person = report.attempt(FAULT, "persons' folders", "", dm.person_folder, entry)
            if person and (images := check_person(entry.path, report)):
                yield splits[0], pid, images
        elif pid is not None and entry.name == f"{pid:04d}" and os.path.isdir(entry.path):
            report.add(NOTE, "persons that no list names", entry.path)
        else:
            report.add(NOTE, "misnamed", f"{entry.path}: not used; a folder NNNN, a person's number in four digits, expected")


def check_person(folder: str, report: Report) -> list[str]:
    """The image files of a listed person's folder; what else is in it is reported."""
    images, entries = [], scan(folder, report)
    if not entries:
        report.add(NOTE, "empty folders", f"{folder}: no image in it")
    for entry in entries:
        if not entry.name.lower().endswith(dm.IMAGE_SUFFIXES) or os.path.isdir(entry.path):
            report.add(FAULT, "not images", f"{entry.path}: only {', '.join(dm.IMAGE_SUFFIXES)} files expected; move it elsewhere")
        elif has_bytes(entry.path, "", report):
            images.append(entry.path)
            if not re.fullmatch(r"[0-9]{4}\.jpg", entry.name):
                report.add(NOTE, "misnamed", f"{entry.path}: NNNN.jpg, a number in four digits, expected")
    return images


def has_bytes(path: str, why: str, report: Report) -> bool:
    """True for a file that is there and not empty; otherwise it is a finding."""
    if os.path.isfile(path):
        what = "" if os.path.getsize(path) else "0 bytes"
    else:
        what = "a link that points nowhere" if os.path.islink(path) else "a folder" if os.path.isdir(path) else "no such file"
    if what:
        report.add(FAULT, "empty" if what == "0 bytes" else "missing", f"{path}: {what}{why}")
    return not what


def scan(folder: str | Path, report: Report) -> list[os.DirEntry]:
    """The sorted entries of a folder without hidden and system files, which are counted."""
    entries = report.attempt(FAULT, "unreadable", "", lambda: sorted(os.scandir(folder), key=lambda entry: entry.name)) or []
    kept = [entry for entry in entries if not dm.is_system_file(entry.name)]
    report.ignored += len(entries) - len(kept)
    return kept


def open_images(report: Report) -> None:
    """Decode the images of a report, each whole, and add those that cannot be."""
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(report.attempt, FAULT, "unreadable", "", read_image, path, 16, 8) for path in report.images]
        try:
            for job in tqdm(jobs, "opening", unit="image", disable=None, leave=False):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    report.found.get((FAULT, "unreadable"), []).sort()


def describe(root: Path, name: str | None, report: Report, every: bool) -> Iterator[str]:
    """The lines of a report."""
    differing = sum(found != published for _, found, published in report.counts)
    if name:
        yield from [f"{dm.DATASETS[name].title} in {root}", "", *report.table, "", f"{'':<26}{'found':>14}{'published':>11}"]
        for what, found, published in report.counts:
            yield f"{what:<26}{found:>14}{published:>11}{'  differs' * (found != published)}"
        sample = " (a sample, evenly spread; --all opens all)" if not every and len(report.images) == SAMPLE else ""
        yield from ["", f"{len(report.images)} images opened{sample}",
                    f"{report.ignored} hidden or system files ignored", ""]
    for (severity, kind), lines in sorted(report.found.items(), key=lambda item: item[0][0] == FAULT):
        more = [f"  ... and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
        yield from [f"{severity}, {kind}: {len(lines)}", *(f"  {line}" for line in lines[:SHOWN]), *more, ""]
    yield ("usable" if report.usable else "not usable: mend the faults above") + (
        f"; {differing} of {len(report.counts)} counts differ from the published ones" if differing else "")


def main() -> None:
    """Check the folder that the command line names."""
    parser = Parser(description="Check a copy of SYSU-MM01 or RegDB. Exit status 0: usable, 1: not usable.")
    parser.add_argument("dir", metavar="DIR", help="folder of the data set")
    parser.add_argument("--all", action="store_true", help=f"open every image, not only {SAMPLE}")
    args = parser.parse_args()
    root = Path(args.dir)
    if not root.is_dir():
        raise UserError(f"DIR {root}: {'a file' if root.exists() else 'no such folder'}; name the folder of SYSU-MM01 or RegDB")
    name, report = check(root, args.all)
    text = "\n".join(describe(root, name, report, args.all))
    sys.stdout.reconfigure(errors="backslashreplace")
    print("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
    sys.exit(0 if report.usable else 1)

"""The check of a copy of a data set, which reads it as training and testing do, and collects every fault."""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import Copy, is_system_file
from datasets.images import TooManyBits, read_image
from datasets.types import MODALITIES, DataSet, Images, ImageSpec
from utils import UserError, one_line

SAMPLE = 100  # images opened unless all are asked for
SHOWN = 20  # lines shown of one kind
FAULT, NOTE = "FAULT", "note"


class Report(Copy):
    """What a check found: lines by (FAULT or NOTE, kind), a table, and counts beside the published ones.

    A FAULT is what training or testing would refuse; opened: how many images were decoded.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.found: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self.table = [" " * 22 + "".join(f"{f'{side} persons':>18}{'images':>8}" for side in MODALITIES)]
        self.counts: defaultdict[tuple[str, int], set[int]] = defaultdict(set)  # by (what, published)
        self.opened = 0

    def add(self, severity: str, kind: str, line: object) -> None:
        """Add one finding, once."""
        self.found[severity, kind][one_line(line)] = None

    def refuse(self, kind: str, line: str) -> None:
        """Add a fault."""
        self.add(FAULT, kind, line)

    def count(self, found: Mapping[str, int], published: Mapping[str, int], where: str = "") -> None:
        """Add counts that have a published one."""
        for what, number in found.items():
            if what in published:
                self.counts[f"{what}{where}", published[what]].add(number)

    @property
    def usable(self) -> bool:
        """True if nothing was found that training or testing would refuse."""
        return not any(severity == FAULT for severity, _ in self.found)


def check(data: DataSet, root: Path, every: bool) -> Report:
    """Read a copy as training and testing read it; every: decode all images, not a sample."""
    report, trials = Report(root), data.trials_to_check(root)
    for trial in trials:
        word = f"trial {trial} " if data.splits > 1 else ""
        if data.has(root, "train") and (split := report.attempt("refused", data.train_split, report, trial)):
            report.count(split.counts(), data.published)
            add_rows(report, f"{word}training", split.sides, by_camera=not word)
        if data.has(root, "test") and (sides := report.attempt("refused", data.test_images, report, trial)):
            check_test(data, trial, sides, report)
            add_rows(report, f"{word}test", sides.values(), by_camera=not word)
    for part in ("train", "test"):
        if not data.has(root, part):
            report.add(NOTE, f"nothing to {part} on", f"{root / part}: no such folder")
    if lacking := sorted({*range(1, data.splits + 1)} - {*trials}):
        report.add(NOTE, "trials without lists", f"{', '.join(map(str, lacking))}: others do without")
    data.check_more(report)
    for folder in data.folders:
        if folder != data.lists:
            note_unused(root / folder, report)
    open_images(report, every, "range" in data.flags)
    return report


def check_test(data: DataSet, trial: int, sides: Mapping[str, Images], report: Report) -> None:
    """Count the test images, try the searches, and note persons of one modality."""
    persons = {modality: set(images.pids.tolist()) for modality, images in sides.items()}
    everyone = set.union(*persons.values())
    images = {f"{modality} test images": len(images) for modality, images in sides.items()}
    report.count({"test persons": len(everyone), **images}, data.published)
    for keywords in data.checked:
        words = {"direction": data.direction, "trials": data.trials(trial)[:1], **keywords}
        for search in report.attempt("refused", data.searches, report, **words) or ():
            where = f" ({', '.join(keywords.values())})" if keywords else ""
            report.count({"gallery images": len(search.gallery)}, search.published, where)
    where = f" in trial {trial}" if data.splits > 1 else ""
    for modality, there in persons.items():
        for pid in sorted(everyone - there):
            name = data.name_of_person(pid, sides.values())
            report.add(NOTE, "test persons of one modality only",
                       f"{report.root}: person {name} has no {modality} image{where}")


def add_rows(report: Report, title: str, sides: Collection[Images], by_camera: bool) -> None:
    """Add persons and images of a split to the table; by_camera: also those of each camera."""
    cameras = sorted(set().union(*(images.camids.tolist() for images in sides))) if by_camera else []
    for camera in [*cameras, None]:
        cells = ""
        for images in sides:
            pids = images.pids if camera is None else images.pids[images.camids == camera]
            cells += f"{len(np.unique(pids)):>18}{len(pids):>8}"
        report.table.append(f"{title if camera is None else f'{title} cam{camera}':<22}{cells}")


def note_unused(top: Path, report: Report) -> None:
    """Note what lies below a folder and was not read, a line for each folder of it."""
    for folder, folders, files in os.walk(top):
        report.left_out.update((os.path.join(folder, name), None) for name in (*folders, *files)
                               if is_system_file(name))
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        unused = sorted(name for name in files if not is_system_file(name)
                        and os.path.join(folder, name) not in report.images)
        if unused:
            report.add(NOTE, "not used", f"{folder}: {len(unused)} file(s), the first {unused[0]}")
        elif not files and not folders:
            report.add(NOTE, "empty folders", folder)


def open_images(report: Report, every: bool, takes_range: bool) -> None:
    """Decode a sample of a report's images, or every one, and add the empty and the unreadable ones."""
    sizes = {path: os.path.getsize(path) for path in report.images}
    for path in (path for path, size in sizes.items() if not size):
        report.refuse("empty", f"{path}: 0 bytes")
    paths = [path for path, size in sizes.items() if size]
    if not every and len(paths) > SAMPLE:
        paths = [paths[place] for place in np.linspace(0, len(paths) - 1, SAMPLE).round().astype(int)]
    report.opened = len(paths)

    def fault(path: str) -> UserError | None:
        try:
            read_image(path, ImageSpec(16, 8))
        except UserError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        faults = list(filter(None, tqdm(pool.map(fault, paths), "opening", len(paths), unit="image",
                                        disable=None, leave=False)))
    deep = [error for error in faults if isinstance(error, TooManyBits) and takes_range]
    for error in faults:
        if error not in deep:
            report.refuse("unreadable", str(error))
    if deep:
        low, high = min(error.low for error in deep), max(error.high for error in deep)
        report.add(NOTE, "more than 8 bits a channel",
                   f"{len(deep)} of the {report.opened} images opened, raw values {low} to {high}: "
                   "training and testing need --range LOW HIGH, the raw values that become black and white")


def describe(title: str, report: Report) -> Iterator[str]:
    """The lines of a report; title: of the data set, empty if the folder holds none."""
    differing = sum(found != {published} for (_, published), found in report.counts.items())
    if title:
        yield from [f"{title} in {report.root}", "", *report.table]
        if report.counts:
            yield from ["", f"{'':<30}{'found':>14}{'published':>11}"]
        for (what, published), found in report.counts.items():
            spread = str(min(found)) if len(found) == 1 else f"{min(found)} to {max(found)}"
            yield f"{what:<30}{spread:>14}{published:>11}{'' if found == {published} else '  differs'}"
        sampled = " (a sample, evenly spread; --all opens all)" if report.opened < len(report.images) else ""
        yield from ["", f"{report.opened} images opened{sampled}",
                    f"{len(report.left_out)} hidden or system files ignored", ""]
    for (severity, kind), lines in sorted(report.found.items(), key=lambda item: item[0][0] == FAULT):
        more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        yield from [f"{severity}, {kind}: {len(lines)}", *(f"  {line}" for line in [*lines][:SHOWN]), *more,
                    ""]
    yield ("usable" if report.usable else "not usable: mend the faults above") + (
        f"; {differing} of {len(report.counts)} counts differ from the published ones" if differing else "")

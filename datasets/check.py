"""The report on a copy of a data set: what all checks share.

What is missing, empty, unreadable or misnamed is particular to a data set, whose own `check` adds it to the
report.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.files import IMAGE_SUFFIXES, is_system_file
from datasets.images import TooManyBits, read_image
from datasets.types import ImageSpec
from utils import UserError, explain_os_error, one_line

SAMPLE = 100  # images opened unless all are asked for
SHOWN = 20  # lines shown of one kind
SPLITS = {"train": "training", "test": "test"}
FAULT, NOTE = "FAULT", "note"


@dataclass
class Report:
    """What a check found: lines by (FAULT or NOTE, kind), a table, counts, images to open, ignored files.

    A FAULT is what training or testing would refuse.
    """

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)
    counts: list[tuple[str, object, int]] = field(default_factory=list)  # what, found, published
    images: list[str] = field(default_factory=list)
    ignored: int = 0
    takes_range: bool = False  # whether the data set reads images of more than 8 bits, if told how

    def add(self, severity: str, kind: str, line: object) -> None:
        """Add one finding."""
        self.found.setdefault((severity, kind), []).append(one_line(line))

    def attempt(self, severity: str, kind: str, prefix: str, function: Callable, *args: Any,
                **kwargs: Any) -> Any:
        """What a function returns; None if it refuses, which is a finding in its own words."""
        try:
            return function(*args, **kwargs)
        except (UserError, OSError) as error:
            self.add(severity, kind,
                     f"{prefix}{error if isinstance(error, UserError) else explain_os_error(error)}")

    @property
    def usable(self) -> bool:
        """True if nothing was found that training or testing would refuse."""
        return not any(severity == FAULT for severity, _ in self.found)


def check_modalities(source: str, split: str, sides: dict[str, set[int]], pids: set[int],
                     report: Report) -> None:
    """Report persons without a modality: training refuses them, testing leaves their queries out."""
    check_lone(source, split, sides, sorted(pids), report)
    if split == "test" and pids and not set.intersection(*sides.values()):
        report.add(FAULT, "no search", f"{source}: no test person has images in both modalities; restore "
                                       "the test persons")


def check_lone(source: object, split: str, sides: Mapping[str, Collection], persons: Sequence,
               report: Report) -> None:
    """Report each of the persons, in their order, whom one of the modalities does not show."""
    for modality, present in sides.items():
        for person in persons:
            if person not in present:
                report.add(FAULT if split == "train" else NOTE, f"{SPLITS[split]} persons without a modality",
                           f"{source}: person {person} has no {modality} image")


def has_bytes(path: str, why: str, report: Report) -> bool:
    """True for a file that is there and not empty; otherwise it is a finding."""
    if os.path.isfile(path):
        what = "" if os.path.getsize(path) else "0 bytes"
    elif os.path.islink(path):
        what = "a link that points nowhere"
    else:
        what = "a folder" if os.path.isdir(path) else "no such file"
    if what:
        report.add(FAULT, "empty" if what == "0 bytes" else "missing", f"{path}: {what}{why}")
    return not what


def check_unlisted(root: Path, top: str, named: Mapping[str, object], report: Report) -> None:
    """Report what lies in a folder and is in no list."""
    for folder, folders, files in os.walk(root / top):
        report.ignored += sum(map(is_system_file, files))
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        for path in (Path(folder) / name for name in sorted(files) if not is_system_file(name)):
            if path.relative_to(root).as_posix() not in named:
                image = path.suffix.lower() in IMAGE_SUFFIXES
                report.add(NOTE, "images that no list names" if image else "files that are not images",
                           f"{path}{'' if path.exists() else ': a link that points nowhere'}")


def scan(folder: str | Path, report: Report) -> list[os.DirEntry]:
    """The sorted entries of a folder without hidden and system files, which are counted."""
    entries = report.attempt(FAULT, "unreadable", "", lambda: list(os.scandir(folder))) or []
    entries.sort(key=lambda entry: entry.name)
    kept = [entry for entry in entries if not is_system_file(entry.name)]
    report.ignored += len(entries) - len(kept)
    return kept


def open_images(report: Report, every: bool) -> None:
    """Decode a sample of a report's images, or every one, each whole, and add those that cannot be."""
    if not every and len(report.images) > SAMPLE:
        places = np.linspace(0, len(report.images) - 1, SAMPLE).round().astype(int)
        report.images = [report.images[place] for place in places]
    deep: list[TooManyBits] = []

    def open_image(path: str) -> None:
        try:
            read_image(path, ImageSpec(16, 8))
        except TooManyBits as error:
            if not report.takes_range:
                raise
            deep.append(error)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(report.attempt, FAULT, "unreadable", "", open_image, path)
                for path in report.images]
        try:
            for job in tqdm(jobs, "opening", unit="image", disable=None, leave=False):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    report.found.get((FAULT, "unreadable"), []).sort()
    if deep:
        low, high = min(error.low for error in deep), max(error.high for error in deep)
        report.add(NOTE, "more than 8 bits a channel",
                   f"{len(deep)} of the {len(report.images)} images opened, raw values {low} to {high}: "
                   "training and testing need --range LOW HIGH, the raw values that become black and white")


def describe(root: Path, title: str, report: Report, every: bool) -> Iterator[str]:
    """The lines of a report; title: of the data set, empty if the folder holds none."""
    differing = sum(found != published for _, found, published in report.counts)
    if title:
        yield from [f"{title} in {root}", "", *report.table]
        if report.counts:
            yield from ["", f"{'':<26}{'found':>14}{'published':>11}"]
        for what, found, published in report.counts:
            yield f"{what:<26}{found:>14}{published:>11}{'' if found == published else '  differs'}"
        sampled = not every and len(report.images) == SAMPLE
        yield from ["", f"{len(report.images)} images opened"
                        f"{' (a sample, evenly spread; --all opens all)' if sampled else ''}",
                    f"{report.ignored} hidden or system files ignored", ""]
    for (severity, kind), lines in sorted(report.found.items(), key=lambda item: item[0][0] == FAULT):
        more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        yield from [f"{severity}, {kind}: {len(lines)}", *(f"  {line}" for line in lines[:SHOWN]), *more, ""]
    yield ("usable" if report.usable else "not usable: mend the faults above") + (
        f"; {differing} of {len(report.counts)} counts differ from the published ones" if differing else "")

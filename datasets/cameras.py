"""Folders CAMERA/NNNN of images, a person's number in four digits, as SYSU-MM01 and LLCM have them."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets.check import FAULT, NOTE, SPLITS, Report, has_bytes, scan
from datasets.files import IMAGE_SUFFIXES, list_images
from utils import UserError


def person_folder(entry: os.DirEntry) -> Path:
    """What a person's number names; `UserError` unless it is a folder, and the number has four digits."""
    pid, name = int(entry.name), f"{int(entry.name):04d}"
    if entry.name != name:
        raise UserError(f"{entry.path}: found for person {pid}, a folder of the name {name} expected; "
                        "rename it, or move it elsewhere")
    if not entry.is_dir():
        what = "a file" if os.path.exists(entry.path) else "a link that points nowhere"
        raise UserError(f"{entry.path}: {what} found, a folder with the images of person {pid} expected; "
                        "restore the folder, or remove this if the camera has none")
    return Path(entry.path)


def person_folders(folder: Path, pids: Iterable[int]) -> dict[int, Path]:
    """The folders that a camera has of these persons, by pid."""
    wanted = set(pids)
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
    return {int(entry.name): person_folder(entry) for entry in entries
            if entry.name.isdecimal() and int(entry.name) in wanted}


def image_files(cameras: Mapping[int, Path], pids: Sequence[int]) -> dict[tuple[int, int], list[str]]:
    """Image paths by (pid, camera), in the order of both; combinations without images are left out.

    cameras: their folders by number.
    """
    folders = {camera: person_folders(folder, pids) for camera, folder in cameras.items()}
    files = {(pid, camera): list_images(folders[camera][pid]) for pid in pids for camera in cameras
             if pid in folders[camera]}
    return {key: paths for key, paths in files.items() if paths}


# ---------------------------------------------------------------------------------------- the check of a copy
def check_camera(folder: Path, pids: Mapping[str, set[int]], report: Report, name: str,
                 form: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield split, pid and image files of every listed person in one camera; report what else is there.

    pids: listed persons by split; name, form: how an image is called, as a pattern and in words.
    """
    for entry in scan(folder, report):
        pid = int(entry.name) if entry.name.isdecimal() else None
        if splits := [split for split in SPLITS if pid in pids.get(split, ())]:
            person = report.attempt(FAULT, "persons' folders", "", person_folder, entry)
            if person and (images := check_person(entry.path, report, name, form)):
                yield splits[0], pid, images
        elif pid is not None and entry.name == f"{pid:04d}" and os.path.isdir(entry.path):
            report.add(NOTE, "persons that no list names", entry.path)
        else:
            report.add(NOTE, "misnamed",
                       f"{entry.path}: not used; a folder NNNN, a person's number in four digits, expected")


def check_person(folder: str, report: Report, name: str, form: str) -> list[str]:
    """The image files of a listed person's folder; what else is in it is reported."""
    images, entries = [], scan(folder, report)
    if not entries:
        report.add(NOTE, "empty folders", f"{folder}: no image in it")
    for entry in entries:
        if not entry.name.lower().endswith(IMAGE_SUFFIXES) or os.path.isdir(entry.path):
            report.add(FAULT, "not images",
                       f"{entry.path}: only {', '.join(IMAGE_SUFFIXES)} files expected; convert it to .png, "
                       "or move it elsewhere")
        elif has_bytes(entry.path, "", report):
            images.append(entry.path)
            if not re.fullmatch(name, entry.name):
                report.add(NOTE, "misnamed", f"{entry.path}: {form} expected")
    return images

"""Folders and lists as the data sets come: images of a person, id lists, lists of images."""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from utils import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db")


def list_images(folder: str | Path) -> list[str]:
    """Sorted image paths of a folder, without hidden and system files; anything else is a `UserError`."""
    paths = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_system_file(entry.name):
            continue
        if not entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.is_dir():
            raise UserError(f"{entry.path}: found among the images of a person, only "
                            f"{', '.join(IMAGE_SUFFIXES)} files expected; convert it to .png, or move it "
                            "elsewhere")
        paths.append(entry.path)
    return paths


def is_system_file(name: str) -> bool:
    """True for what operating systems leave in folders: hidden files, AppleDouble files, thumbnail caches."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file (any line ending, with or without a byte order mark)."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it from the data set") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); restore it from the data set") from None


def listed_files(path: Path, root: Path, others: Iterable[str], kind: str) -> list[tuple[str, int]]:
    """The (path, label) of each image that a list names.

    others: folders, in lower case, of the other modality; kind: what people call the list's own images.
    Raises `UserError` for an image that is not there, or in one of those folders.
    """
    entries = parse_index(path)
    for name, _ in entries:
        if name.split("/")[0].lower() in others:
            raise UserError(f"{path}: names {name}, which is not a {kind} image by its folder; a list of "
                            f"{kind} images expected; restore the list")
        if not (root / name).is_file():
            raise UserError(f"{path}: names {root / name}, which is not there; restore the image")
    return [(str(root / name), label) for name, label in entries]


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at least 0, as lists write it."""
    return text.isascii() and text.isdigit() and len(text) < 10


def parse_id_list(path: Path) -> list[int]:
    """The sorted identity numbers of an id list: one line, separated by commas.

    Spaces and a trailing comma are harmless. Raises `UserError` naming the file if it is missing or empty, or
    holds anything but positive numbers.
    """
    words = [word.strip() for word in ",".join(read_lines(path)).split(",")]
    for word in filter(None, words):
        if not (is_number(word) and int(word) > 0):
            raise UserError(f"{path}: {word[:40]!r} found, positive identity numbers separated by commas "
                            "expected; restore the file")
    if not any(words):
        raise UserError(f"{path}: empty; one line of identity numbers separated by commas expected; "
                        "restore the file")
    return sorted({int(word) for word in words if word})


def parse_index(path: Path) -> list[tuple[str, int]]:
    """The (relative path, label) lines of a list of images; blank lines, CRLF and tabs are harmless.

    Raises `UserError` naming file and line if the list is empty, or a line is malformed or repeats an image.
    """
    entries: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = name.strip()
        if not (name and is_number(label)) or Path(name).is_absolute():
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} found, 'relative/path label' "
                            "with a label of at least 0 expected; restore the file")
        name = Path(name).as_posix()
        if name in entries:
            raise UserError(f"{path}, line {number}: {name!r} is listed twice; each image once expected; "
                            "restore the file")
        entries[name] = int(label)
    if not entries:
        raise UserError(f"{path}: empty; lines 'relative/path label' expected; restore the file")
    return list(entries.items())

"""Folders and lists as data sets come: images of a person, id lists, lists of images."""
from __future__ import annotations

import codecs
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils import UserError, explain

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What operating systems, NAS systems and archives leave in folders, in lower case, beside names with a dot.
SYSTEM_NAMES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "@eadir",
                "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot", "$recycle.bin",
                "lost+found", "system volume information", "network trash folder", "temporary items",
                "__macosx")
# What cannot be seen of a name, beside control and format characters: joiners, fillers, variation selectors.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
                       "\U000e0100-\U000e01ef]")


class Copy:
    """The folders and lists of one copy of a data set; a fault is an error, which `check.Report` collects.

    images: the paths that were found; left_out: those of hidden and system files and folders.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.images: dict[str, None] = {}
        self.left_out: dict[str, None] = {}

    def refuse(self, kind: str, line: str) -> None:
        """Raise `UserError`; kind: a heading of the check's report."""
        raise UserError(line)

    def attempt(self, kind: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function returns; its error is a fault."""
        try:
            return function(*args, **kwargs)
        except (UserError, OSError) as error:
            self.refuse(kind, explain(error))

    def entries(self, folder: str | Path) -> list[os.DirEntry]:
        """The sorted entries of a folder without hidden and system files; none where there is no folder."""
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(folder) else []
        self.left_out.update((entry.path, None) for entry in entries if is_system_file(entry.name))
        return [entry for entry in entries if not is_system_file(entry.name)]

    def image_files(self, folder: str | Path) -> list[str]:
        """The sorted image paths of a person's folder; anything else in it is a fault."""
        paths = []
        for entry in self.entries(folder):
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                paths.append(entry.path)
            else:
                self.refuse("not images", f"{entry.path}: {describe_entry(entry.path)} found among the "
                            f"images of a person, only {', '.join(IMAGE_SUFFIXES)} files expected; restore "
                            "it, convert it to .png, or move it elsewhere")
        self.images.update(dict.fromkeys(paths))
        return paths

    def camera_images(self, cameras: Mapping[int, Path], pids: Iterable[int]) -> list[tuple[str, int, int]]:
        """Image path, pid and camera of each image of some persons, in the order of pid, camera and name.

        cameras: folders by number; in each, the folder NNNN is a person's number in four digits.
        """
        wanted, folders = set(pids), {}
        for camera, folder in cameras.items():
            for entry in self.entries(folder):
                shown = looks(entry.name)
                pid = int(shown) if is_number(shown) else None
                if pid in wanted and entry.name == f"{pid:04d}" and entry.is_dir():
                    folders[pid, camera] = entry.path
                elif pid in wanted:
                    self.refuse("persons' folders", f"{entry.path}: {describe_entry(entry.path)} found for "
                                f"person {pid}, a folder of the name {pid:04d} expected; rename or restore "
                                "it, or move it elsewhere")
        return [(path, *key) for key in sorted(folders) for path in self.image_files(folders[key])]

    def listed_images(self, path: Path, names: Mapping[str, str], modality: str) -> list[tuple[str, int]]:
        """The (path, label) of each image that a list names.

        names: of the modalities, in lower case. An image that is not there, or that lies in the other
        modality's folder, is a fault.
        """
        found = []
        for name, label in self.attempt("lists", parse_index, path) or ():
            image, top = self.root / name, name.split("/")[0].lower()
            if top in names.values() and top != names[modality]:
                self.refuse("lists", f"{path}: names {name}, which is not a {names[modality]} image by its "
                            f"folder; a list of {names[modality]} images expected; restore the list")
            elif not image.is_file():
                self.refuse("missing", f"{path}: names {image}: {describe_entry(image)}; restore the image")
            else:
                found.append((str(image), label))
        self.images.update((image, None) for image, _ in found)
        return found


def is_system_file(name: str) -> bool:
    """True for what systems leave in folders: hidden files, thumbnails, recycle bins, AppleDouble files."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def describe_entry(path: str | Path) -> str:
    """What a path names, in words; a link is what it points to."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link that points nowhere" if os.path.islink(path) else "no such file or folder"
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe",
             stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def not_read(path: str | Path, error: OSError) -> UserError:
    """The error for a file that the system could not read, which says nothing of the file."""
    return UserError(f"{path}: cannot be read ({error.strerror}); it may be sound: try again, or look after "
                     "the drive and the permissions")


def looks(name: str) -> str:
    """What a person sees of a name: without case, composition, invisible characters and outer spaces."""
    shown = "".join(c for c in INVISIBLE.sub("", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", shown).casefold()).split())


def read_text(path: Path, errors: str = "strict") -> str:
    """A small text file in UTF-8, or in UTF-16 with its byte order mark, as Windows writes it.

    errors: as `bytes.decode` takes it. Raises `UserError` for what is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: {describe_entry(path)}, a text file expected; restore it")
    try:
        data = path.read_bytes()
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf_16 else "utf-8-sig", errors)
        if "\0" in text:
            raise ValueError("zero bytes, as in UTF-16 without its byte order mark")
    except OSError as error:
        raise not_read(path, error) from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as text ({error}); save it in UTF-8") from None
    return text


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at least 0, as lists write it."""
    return text.isascii() and text.isdigit() and len(text) < 10


def parse_id_list(path: Path) -> list[int]:
    """The sorted identity numbers of an id list: one line, separated by commas.

    Spaces and a trailing comma are harmless. Raises `UserError` if it holds anything but positive numbers.
    """
    lines = read_text(path).splitlines()
    words = [word for line in lines for word in map(str.strip, line.split(",")) if word]
    wrong = [repr(word[:40]) for word in words if not (is_number(word) and int(word) > 0)]
    if wrong or not words:
        raise UserError(f"{path}: {wrong[0] if wrong else 'nothing'} found, positive identity numbers "
                        "separated by commas expected; restore the file")
    return sorted(set(map(int, words)))


def parse_index(path: Path) -> list[tuple[str, int]]:
    """The (relative path, label) lines of a list of images; blank lines, CRLF and tabs are harmless.

    Raises `UserError` naming the file, and the line that is malformed or repeats an image.
    """
    entries: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        words, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = Path(words.strip()).as_posix()
        if not words or not is_number(label) or Path(name).is_absolute() or name in entries:
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} found, 'relative/path label' with "
                            "a label of at least 0, and each image once, expected; restore the file")
        entries[name] = int(label)
    if not entries:
        raise UserError(f"{path}: nothing found, lines 'relative/path label' expected; restore the file")
    return list(entries.items())

"""Folders and lists as data sets come: images of a person, id lists, lists of images."""
from __future__ import annotations

import codecs
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What operating systems, NAS systems and archives leave in folders, in lower case, beside names with a dot.
SYSTEM_NAMES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "@eadir",
                "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot", "$recycle.bin",
                "lost+found", "system volume information", "network trash folder", "temporary items",
                "__macosx")
# What cannot be seen of a name, beside control and format characters: joiners, fillers, variation selectors.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
                       "\U000e0100-\U000e01ef]")


class Scan:
    """Reads the folders and lists of one copy of a data set.

    images: the paths that were found; left_out: those of hidden and system files and folders. A fault is an
    error; the check of a copy collects faults instead (see `check.Report`).
    """

    def __init__(self) -> None:
        self.images: dict[str, None] = {}
        self.left_out: dict[str, None] = {}

    def refuse(self, kind: str, line: str) -> None:
        """Raise `UserError`; kind: a heading of the check's report."""
        raise UserError(line)

    def attempt(self, kind: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, whose error is a fault."""
        return function(*args, **kwargs)

    def entries(self, folder: str | Path) -> list[os.DirEntry]:
        """The sorted entries of a folder without hidden and system files."""
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        self.left_out.update((entry.path, None) for entry in entries if is_system_file(entry.name))
        return [entry for entry in entries if not is_system_file(entry.name)]

    def image_files(self, folder: str | Path) -> list[str]:
        """The sorted image paths of a person's folder; anything else in it is a fault."""
        paths = []
        for entry in self.entries(folder):
            if not entry.name.lower().endswith(IMAGE_SUFFIXES):
                self.refuse("not images", f"{entry.path}: found among the images of a person, only "
                            f"{', '.join(IMAGE_SUFFIXES)} files expected; convert it to .png, or move it "
                            "elsewhere")
            elif not entry.is_file():
                self.refuse("not images", f"{entry.path}: {describe_entry(entry.path)} found, an image file "
                            "expected; restore it, or move it elsewhere")
            else:
                paths.append(entry.path)
        self.images.update(dict.fromkeys(paths))
        return paths

    def person_folders(self, camera: Path, pids: Iterable[int]) -> dict[int, Path]:
        """The folders NNNN, a person's number in four digits, that a camera has of these persons, by pid."""
        wanted, found = set(pids), {}
        for entry in self.entries(camera) if camera.is_dir() else []:
            number = looks(entry.name)
            if not (is_number(number) and int(number) in wanted):
                continue
            pid, name = int(number), f"{int(number):04d}"
            if entry.name != name:
                self.refuse("persons' folders", f"{entry.path}: found for person {pid}, a folder of the name "
                            f"{name} expected; rename it, or move it elsewhere")
            elif not entry.is_dir():
                self.refuse("persons' folders", f"{entry.path}: {describe_entry(entry.path)} found, a "
                            f"folder with the images of person {pid} expected; restore the folder, or "
                            "remove this if the camera has none")
            else:
                found[pid] = Path(entry.path)
        return found

    def camera_images(self, cameras: Mapping[int, Path],
                      pids: Sequence[int]) -> dict[tuple[int, int], list[str]]:
        """Image paths by (pid, camera), in the order of both; combinations without images are left out.

        cameras: their folders by number.
        """
        folders = {camera: self.person_folders(folder, pids) for camera, folder in cameras.items()}
        files = {(pid, camera): self.image_files(folders[camera][pid]) for pid in pids for camera in cameras
                 if pid in folders[camera]}
        return {key: paths for key, paths in files.items() if paths}

    def listed_images(self, path: Path, root: Path, others: Iterable[str],
                      kind: str) -> list[tuple[str, int]]:
        """The (path, label) of each image that a list names.

        others: folders, in lower case, of the other modality; kind: what people call the list's own images.
        An image that is not there, or lies in one of those folders, is a fault.
        """
        found = []
        for name, label in self.attempt("lists", parse_index, path) or ():
            if name.split("/")[0].lower() in others:
                self.refuse("lists", f"{path}: names {name}, which is not a {kind} image by its folder; "
                            f"a list of {kind} images expected; restore the list")
            elif not (root / name).is_file():
                self.refuse("missing", f"{path}: names {root / name}, which is "
                            f"{describe_entry(root / name)}; restore the image")
            else:
                found.append((str(root / name), label))
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
        return "a link that points nowhere" if os.path.islink(path) else "not there"
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


# ---------------------------------------------------------------------------------------------------- lists
def read_text(path: Path, errors: str = "strict") -> str:
    """A small text file in UTF-8, or in UTF-16 with its byte order mark, as Windows writes it.

    errors: of decoding, as `bytes.decode` takes it. Raises `UserError` for what is no such file.
    """
    if not path.is_file():
        what = f"{describe_entry(path)} found, a list expected" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; restore it")
    try:
        data = path.read_bytes()
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf_16 else "utf-8-sig", errors)
    except OSError as error:
        raise not_read(path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text ({error}); restore it, in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path}: zero bytes found, as in UTF-16 without its byte order mark; save it in "
                        "UTF-8")
    return text


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at least 0, as lists write it."""
    return text.isascii() and text.isdigit() and len(text) < 10


def parse_id_list(path: Path) -> list[int]:
    """The sorted identity numbers of an id list: one line, separated by commas.

    Spaces and a trailing comma are harmless. Raises `UserError` naming the file if it is missing or empty, or
    holds anything but positive numbers.
    """
    words = [word.strip() for word in ",".join(read_text(path).splitlines()).split(",")]
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
    for number, line in enumerate(read_text(path).splitlines(), 1):
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

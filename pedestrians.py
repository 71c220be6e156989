"""Procedural pedestrians, seen by visible and infrared cameras, in the exact layouts of SYSU-MM01 and RegDB.

A person is a small 3-D skeleton dressed in limbs: tapered strips with cylinder normals, so that one set of shapes
serves every view, light and spectrum. Each garment has a colour and, drawn independently, a near-infrared and a thermal
brightness; only what has a shape (cut, pattern, print, bag, hair, build) is shared between the modalities.

Lengths on a person are fractions of the body height, y downwards from the crown; tones are linear, 0..1.
"""
from __future__ import annotations

import colorsys
import io
import math
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CHANNELS = {"visible": 3, "near": 1, "thermal": 1}  # near: near-infrared, lit by a lamp on the camera
PERSON, SCENE, SHOT, SPLIT = range(4)  # what a random stream is for: the second word of its seed

TOPS = ("shirt", "long sleeves", "coat", "open jacket")
TOP_PATTERNS = ("plain", "hoops", "stripes", "checks", "yoke", "halves", "band", "raglan")
BOTTOMS = ("trousers", "shorts", "skirt", "wide trousers", "long skirt")
BOTTOM_PATTERNS = ("plain", "plain", "plain", "stripes", "checks", "halves", "side")
PRINTS = ("none", "disc", "square", "cross", "ring", "bars")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
HAIR = ("short", "bald", "long", "bun", "cap", "hood")
HAIR_COLOURS = (0.03, 0.025, 0.02), (0.09, 0.05, 0.03), (0.2, 0.12, 0.05), (0.4, 0.3, 0.15), (0.35, 0.34, 0.33)

# material: visible RGB, near-infrared and thermal brightness, each varied from scene to scene
MATERIALS = {
    "wall": ((0.68, 0.64, 0.56), 0.50, 0.34),
    "tile": ((0.55, 0.62, 0.66), 0.55, 0.30),
    "brick": ((0.44, 0.24, 0.18), 0.45, 0.38),
    "floor": ((0.42, 0.38, 0.33), 0.35, 0.36),
    "road": ((0.36, 0.36, 0.38), 0.30, 0.42),
    "wood": ((0.40, 0.25, 0.14), 0.55, 0.36),
    "metal": ((0.50, 0.53, 0.56), 0.40, 0.24),
    "glass": ((0.30, 0.42, 0.50), 0.12, 0.16),
    "leaf": ((0.16, 0.30, 0.10), 0.72, 0.30),
    "grass": ((0.28, 0.40, 0.14), 0.66, 0.33),
    "bark": ((0.22, 0.17, 0.12), 0.42, 0.36),
    "sky": ((0.72, 0.82, 0.95), 0.10, 0.06),
    "paper": ((0.70, 0.68, 0.62), 0.60, 0.35),
    "dark": ((0.10, 0.10, 0.11), 0.12, 0.28),
    "paint": ((0.30, 0.42, 0.55), 0.45, 0.33),
}


@dataclass(frozen=True)
class Camera:
    """How a camera sees: spectrum, scene behind the person, light, optics, electronics, and how well its crops fit."""

    spectrum: str
    scene: str
    room: int  # cameras with the same room and scene look at the same place
    light: tuple[float, float, float]  # x, y, z towards the light
    ambient: float
    gain: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 0.62
    slope: float = 0.0  # brightness gained from the middle to the right edge
    vignette: float = 0.1
    blur: float = 0.003  # radius, fraction of the image height
    noise: float = 0.02  # standard deviation, fraction of white
    tilt: float = 0.18  # how much nearer points sink: the camera looks down
    framing: float = 0.05  # standard deviation of the detector's error, fraction of the box
    quality: int = 88  # of the JPEG


SYSU_CAMERAS = {
    1: Camera("visible", "office", 1, (-0.6, -0.7, 0.5), 0.45, 1.05, (1.08, 1.0, 0.86), slope=0.15, blur=0.0022),
    2: Camera("visible", "corridor", 2, (0.1, -0.9, 0.4), 0.38, 0.82, (0.94, 1.04, 0.96), 0.66, -0.25, 0.2, noise=0.03),
    3: Camera("near", "corridor", 2, (0.0, -0.15, 1.0), 0.22, vignette=0.45, blur=0.0032, noise=0.03),
    4: Camera("visible", "garden", 4, (0.8, -0.5, 0.35), 0.38, 1.15, (1.0, 1.0, 0.96), 0.6, 0.1, 0.0, noise=0.012),
    5: Camera("visible", "street", 5, (-0.7, -0.7, 0.1), 0.5, 0.9, (0.88, 0.98, 1.14), 0.58, -0.1, blur=0.004),
    6: Camera("near", "street", 6, (0.25, -0.2, 0.95), 0.15, 1.1, gamma=0.7, vignette=0.5, blur=0.004, noise=0.035),
}
REGDB_CAMERAS = {
    "Visible": Camera("visible", "street", 7, (0.5, -0.7, 0.4), 0.5, 0.95, (1.0, 1.0, 1.04), slope=0.1, blur=0.004),
    "Thermal": Camera("thermal", "street", 7, (0.0, -0.3, 0.95), 0.8, gamma=1.0, blur=0.006, noise=0.015),
}
EVERYWHERE = (1, 2, 3, 4, 5, 6)
# which SYSU-MM01 cameras met a person; dealt in turn, so that even a handful of persons fills every camera
PRESENCE = EVERYWHERE, (4, 5, 6), (1, 2, 3), EVERYWHERE, (1, 3, 4, 5, 6), EVERYWHERE, (2, 3, 4, 6)


# ---------------------------------------------------------------------------------------------------------- persons


@dataclass(frozen=True)
class Piece:
    """One thing worn: cut, pattern, its period, and per spectrum a (2, channels) array of its two tones."""

    cut: str
    pattern: str
    period: float
    tones: dict[str, np.ndarray]


@dataclass(frozen=True)
class Person:
    """What stays with an identity from camera to camera."""

    girth: float
    shoulders: float
    stature: float
    glasses: bool
    skin: dict[str, np.ndarray]
    top: Piece
    bottom: Piece
    inner: Piece
    print: Piece
    bag: Piece
    hair: Piece
    shoes: Piece


def two_levels(rng: np.random.Generator, dark: tuple[float, float], light: tuple[float, float]) -> list[float]:
    """One brightness of each range of displayed ones, in random order, as linear tones."""
    return [level**1.7 for level in rng.permutation([rng.uniform(*dark), rng.uniform(*light)]).tolist()]


def draw_tones(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two tones per spectrum, (2, channels) each; the spectra know nothing of each other."""
    hues = [colorsys.hsv_to_rgb(rng.random(), 0.75 * rng.random() ** 2, 1.0) for _ in range(2)]
    visible = []
    for hue, level in zip(hues, two_levels(rng, (0.15, 0.35), (0.6, 0.82))):
        vivid = np.array(hue) * level / np.dot(hue, (0.3, 0.6, 0.1))
        visible.append(level + (vivid - level) * min(1.0, (0.85 - level) / (vivid.max() - level + 1e-6)))
    return {
        "visible": np.float32(visible),
        "near": np.float32(two_levels(rng, (0.2, 0.42), (0.66, 0.9)))[:, None],
        "thermal": np.float32(two_levels(rng, (0.36, 0.5), (0.68, 0.85)))[:, None],
    }


def draw_piece(rng: np.random.Generator, cuts: tuple[str, ...], patterns: tuple[str, ...] = ("plain",)) -> Piece:
    """A piece of one of the cuts and patterns, with tones of its own."""
    return Piece(str(rng.choice(cuts)), str(rng.choice(patterns)), float(rng.choice((0.055, 0.1))), draw_tones(rng))


def draw_person(key: list[int]) -> Person:
    """The person that belongs to a seed key."""
    rng = np.random.default_rng(key)
    fair = rng.uniform(0.12, 0.5)
    skin = {
        "visible": np.float32((fair * 1.25, fair * 0.92, fair * rng.uniform(0.62, 0.78))),
        "near": np.float32([rng.uniform(0.5, 0.66)]),
        "thermal": np.float32([rng.uniform(0.84, 0.95)]),
    }
    hair = draw_piece(rng, HAIR)
    if hair.cut not in ("cap", "hood"):
        grown = {
            "visible": HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))],
            "near": [rng.uniform(0.12, 0.5)],
            "thermal": [rng.uniform(0.4, 0.6)],
        }
        hair = Piece(hair.cut, "plain", 1.0, {name: np.float32([tone, tone]) for name, tone in grown.items()})
    return Person(
        girth=rng.uniform(0.85, 1.3),
        shoulders=rng.uniform(0.9, 1.12),
        stature=rng.uniform(0.93, 1.06),
        glasses=bool(rng.random() < 0.25),
        skin=skin,
        top=draw_piece(rng, TOPS, TOP_PATTERNS),
        bottom=draw_piece(rng, BOTTOMS, BOTTOM_PATTERNS),
        inner=draw_piece(rng, ("shirt",)),
        print=draw_piece(rng, PRINTS, ("front", "both")),
        bag=draw_piece(rng, BAGS, ("plain", "halves")),
        hair=hair,
        shoes=draw_piece(rng, ("low", "low", "boots")),
    )


# --------------------------------------------------------------------------------------------------------- painting


Point = Sequence[float]  # x, y and, where something is sorted by it, nearness
Texture = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # azimuth, along, half-width -> tone
HEMMED, BOX = (False, True), (True, True)  # which ends of a strip are straight


@dataclass
class Canvas:
    """A person being painted, and how units meet pixels."""

    rgba: np.ndarray  # (height, width, channels + 1): premultiplied tones and cover
    folds: np.ndarray  # (height, width): slopes of creased cloth
    scale: float  # pixels per body height
    origin: tuple[float, float]  # x, y in pixels of the crown
    camera: Camera
    yaw: float  # radians; 0 faces the camera, pi turns the back to it

    def window(self, a: Point, b: Point, margin: float) -> tuple[slice, slice, np.ndarray, np.ndarray]:
        """The rows and columns within `margin` of the line a-b, and their x (1, w) and y (h, 1) relative to a."""
        rows, columns, _ = self.rgba.shape
        left, right = sorted(p[0] * self.scale + self.origin[0] for p in (a, b))
        upper, lower = sorted(p[1] * self.scale + self.origin[1] for p in (a, b))
        margin *= self.scale
        x0, x1 = max(0, int(left - margin)), max(0, min(columns, int(right + margin) + 2))
        y0, y1 = max(0, int(upper - margin)), max(0, min(rows, int(lower + margin) + 2))
        x = (np.arange(x0, x1, dtype=np.float32) - self.origin[0]) / self.scale - a[0]
        y = (np.arange(y0, y1, dtype=np.float32) - self.origin[1]) / self.scale - a[1]
        return slice(y0, y1), slice(x0, x1), x[None], y[:, None]


def strip(canvas: Canvas, a: Point, b: Point, widths: Sequence[float], texture: Texture | np.ndarray, *,
          flat: tuple[bool, bool] = (False, False), corner: float = 0.0, shadow: float = 0.35, cloth: float = 0.0,
          dome: float = 0.0, offset: float = 0.0) -> None:
    """Paint a limb from a to b with half-widths spread evenly along it, lit as a cylinder.

    `texture` is one tone or a function of body azimuth (radians, 0 in front), distance from a, and half-width, each
    (h, w), to tones (h, w, channels); `flat` cuts the ends straight, with `corner` as the radius of their corners,
    instead of rounding them; `shadow` darkens what lies behind the rim; `cloth` is how deep the folds are; `dome`
    curves the surface towards round ends; `offset` is added to the distance along the limb, so that a pattern runs on
    past a joint.
    """
    scale, camera = canvas.scale, canvas.camera
    rows, columns, x, y = canvas.window(a, b, max(widths) + 0.03)
    if not x.size or not y.size:
        return
    length = max(math.hypot(b[0] - a[0], b[1] - a[1]), 1e-4)
    ex, ey = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    along, across = x * ex + y * ey, x * ey - y * ex
    half = np.interp(along, np.linspace(0, length, len(widths)), widths).astype(np.float32)
    over = np.maximum(-along, along - length)  # how far beyond an end, negative between the ends
    outside = np.maximum(over, 0)
    distance = 0
    if not all(flat):
        distance = np.sqrt(across**2 + outside**2) - half
    if any(flat):
        beside, beyond = np.abs(across) - half + corner, over + corner
        square = np.sqrt(np.maximum(beside, 0) ** 2 + np.maximum(beyond, 0) ** 2) - corner
        square += np.minimum(np.maximum(beside, beyond), 0)
        distance = square if all(flat) else np.where((along < length / 2) == flat[0], square, distance)
    cover = np.clip(0.5 - distance * scale, 0, 1)

    side = np.clip(across / half, -1, 1)
    crease = canvas.folds[rows, columns] * cloth
    nx, ny, nz = side * ey + crease, crease * 0.7 - side * ex, 1 - side * side
    if dome:
        end = dome * np.clip(outside / half, 0, 1) * np.sign(along - length / 2)
        nx, ny, nz = nx + end * ex, ny + end * ey, nz - end * end
    nz = np.sqrt(np.maximum(nz, 0.02))
    lx, ly, lz = camera.light
    lit = camera.ambient + (1 - camera.ambient) * np.clip(0.2 + 0.8 * (nx * lx + ny * ly + nz * lz), 0, 1.3)
    lit *= 0.72 + 0.28 * nz
    tone = texture(np.arcsin(side) - canvas.yaw, along + offset, half) if callable(texture) else texture
    target = canvas.rgba[rows, columns]
    if shadow:  # beside the limb and below a straight end, but not around a joint
        reach = np.maximum(distance, 0) + (0 if any(flat) else 2 * outside)
        target[..., :-1] *= (1 - shadow * np.clip(1 - reach / 0.03, 0, 1) ** 2)[..., None]
    target *= (1 - cover)[..., None]
    target[..., :-1] += tone * (lit * cover)[..., None]
    target[..., -1] += cover


def wave(x: np.ndarray, period: float, scale: float) -> np.ndarray:
    """A square wave of x, 0..1, with edges one pixel wide."""
    return np.clip(0.5 + period * scale / 6 * np.sin(2 * np.pi / period * x), 0, 1)


def weave(piece: Piece, canvas: Canvas, azimuth: np.ndarray, along: np.ndarray, sleeve: bool = False) -> np.ndarray:
    """How much of the second tone a pattern shows, 0..1, at surface coordinates of a garment."""
    scale, pattern, period = canvas.scale, piece.pattern, piece.period

    def step(x: np.ndarray) -> np.ndarray:
        return np.clip(x * scale + 0.5, 0, 1)

    around = azimuth * (0.05 if sleeve else 0.1)
    bulge = along - 0.012 * np.cos(azimuth + canvas.yaw)  # hoops sag: the camera looks down on them
    match pattern:
        case "hoops":
            return wave(bulge, period, scale)
        case "stripes":
            return wave(around + period / 4, period * 0.8, scale)
        case "checks":
            return 0.5 * (wave(bulge, period, scale) + wave(around, period, scale))
        case "yoke":
            return step(0.11 - bulge)
        case "halves":
            return step(bulge - 0.18)
        case "band":
            return step(bulge - 0.11) * step(0.19 - bulge)
        case "raglan":
            return np.full_like(bulge, float(sleeve))
        case "side":
            return step(0.0175 - np.abs(np.abs(wrap(azimuth)) - np.pi / 2) * 0.05)
    return np.zeros_like(bulge)


def wrap(angle: np.ndarray) -> np.ndarray:
    """The same angle in [-pi, pi]."""
    return angle - 2 * np.pi * np.rint(angle / (2 * np.pi))


def stamp(shape: str, u: np.ndarray, v: np.ndarray, size: float, scale: float) -> np.ndarray:
    """Cover 0..1 of a printed shape of half-size `size` around u = v = 0."""
    wide, high = np.abs(u), np.abs(v)
    far, square = np.hypot(u, v), np.maximum(wide, high)
    distance = {
        "disc": far - size,
        "square": square - size,
        "cross": np.minimum(np.maximum(wide * 3, high), np.maximum(wide, high * 3)) - size,
        "ring": np.abs(far - size * 0.8) - size * 0.28,
        "bars": np.maximum(square - size, np.abs((v / size + 1) % 0.8 - 0.4) * size - size * 0.2),
    }[shape]
    return np.clip(0.5 - distance * scale, 0, 1)


def mixed(tones: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Blend two tones (2, channels) by a map of 0..1."""
    return tones[0] + (tones[1] - tones[0]) * amount[..., None]


def garment(canvas: Canvas, piece: Piece, sleeve: bool = False, printed: Piece | None = None,
            inner: Piece | None = None) -> Texture:
    """The texture of a garment: its pattern, what is printed on it, and what an open front lets through."""
    scale, spectrum = canvas.scale, canvas.camera.spectrum
    tones = piece.tones[spectrum]
    prints = printed.tones[spectrum] if printed else tones
    figure = max(prints, key=lambda tone: float(np.abs(tone - tones[0]).sum()))  # the one that stands out

    def texture(azimuth: np.ndarray, along: np.ndarray, half: np.ndarray) -> np.ndarray:
        tone = mixed(tones, weave(piece, canvas, azimuth, along, sleeve))
        ahead = np.abs(wrap(azimuth))
        if inner is not None:
            gap = np.clip((0.028 + 0.05 * np.clip(along, 0, 0.4) - ahead * 0.09) * scale + 0.5, 0, 1)
            tone = tone + (inner.tones[spectrum][0] - tone) * gap[..., None]
        if piece.cut == "coat" and not sleeve:  # buttoned in front
            tone = tone * (1 - 0.4 * np.clip(1.5 - ahead * 0.1 * scale, 0, 1))[..., None]
        if printed is not None and printed.cut != "none":
            for centre in (0.0, np.pi)[: 1 + (printed.pattern == "both")]:
                turn = wrap(azimuth - centre)
                mark = stamp(printed.cut, turn * half, along - 0.14, 0.052, scale) * (np.abs(turn) < 1.5)
                tone = tone + (figure - tone) * mark[..., None]
        return tone

    return texture


def face(person: Person, canvas: Canvas) -> Texture:
    """The texture of a head: skin, eyes, brows, nose, mouth, glasses, and hair above the hair line."""
    spectrum, scale, cut = canvas.camera.spectrum, canvas.scale, person.hair.cut
    skin, hair = person.skin[spectrum], person.hair.tones[spectrum][0]
    thermal = spectrum == "thermal"
    features = [(0.12, 0.05, 0.005, 0.01, 0.3), (0.0, 0.071, 0.014, 0.0035, 0.45)]  # azimuth, y, radii, darkness
    for eye in (-0.42, 0.42):
        features += [(eye, 0.03, 0.0085, 0.0045, 0.15 if thermal else 0.75), (eye, 0.018, 0.012, 0.003, 0.35)]
        if person.glasses:
            features.append((eye, 0.03, 0.016, 0.012, 0.55 if thermal else 0.75))
    turns, line = {
        "cap": ((0, 1.6, 3.2), (0.008, 0.012, 0.03)),
        "hood": ((0.8, 1.0), (-0.01, 0.2)),
        "bald": ((0,), (-1.0,)),
    }.get(cut, ((0, 0.7, 1.0, 1.5, 1.9, 3.2), (0.005, 0.008, 0.025, 0.035, 0.07, 0.085)))

    def texture(azimuth: np.ndarray, y: np.ndarray, half: np.ndarray) -> np.ndarray:
        shade = np.ones_like(half)
        for at, height, rx, ry, darkness in features:
            far = np.hypot(wrap(azimuth - at) * 0.045 / rx, (y - height) / ry)
            shade *= 1 - darkness * np.clip(0.5 + (1 - far) * min(rx, ry) * scale, 0, 1)
        grown = np.clip((np.interp(np.abs(wrap(azimuth)), turns, line) - y) * scale + 0.5, 0, 1)
        tone = skin * shade[..., None]
        return tone + (hair - tone) * grown[..., None]

    return texture


# ---------------------------------------------------------------------------------------------------------- figures


@dataclass
class Figure:
    """A person in a pose: the skeleton's projection, and the strips to paint with their nearness."""

    person: Person
    canvas: Canvas
    lean: float
    phase: float  # of the walk, radians
    stride: float  # largest swing of a thigh, radians
    parts: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Where a point (to the person's left, down, ahead) is seen: x, y, nearness."""
        cos, sin = math.cos(self.canvas.yaw), math.sin(self.canvas.yaw)
        near = z * cos - x * sin
        return x * cos + z * sin + self.lean * (1 - y), y + self.canvas.camera.tilt * near, near

    def seen(self, width: float, depth: float) -> float:
        """The half-width that a body of elliptic section shows."""
        return math.hypot(width * math.cos(self.canvas.yaw), depth * math.sin(self.canvas.yaw))

    def add(self, near: float, a: Point, b: Point, widths: Sequence[float], texture: Texture | np.ndarray,
            **how: Any) -> None:
        """Queue a strip."""
        self.parts.append((near, partial(strip, self.canvas, a, b, widths, texture, **how)))

    def tone(self, piece: Piece, which: int = 0) -> np.ndarray:
        """One of a piece's two tones in the camera's spectrum, (channels,)."""
        return piece.tones[self.canvas.camera.spectrum][which]

    def paint(self) -> None:
        """Paint everything, the nearest last."""
        for _, painter in sorted(self.parts, key=lambda part: part[0]):
            painter()


def between(a: Point, b: Point, t: float) -> tuple[float, ...]:
    """The point that is `t` of the way from a to b."""
    return tuple(p + (q - p) * t for p, q in zip(a, b))


def below(a: Point, drop: float) -> tuple[float, ...]:
    """The point `drop` lower than a."""
    return a[0], a[1] + drop, *a[2:]


def add_leg(figure: Figure, side: int) -> None:
    """A leg at its moment of the walk, shod, in trousers or bare below shorts or a skirt; `side` is -1 or 1."""
    person, project, add, girth = figure.person, figure.project, figure.add, figure.person.girth
    swing = figure.stride * math.sin(figure.phase) * side
    shin = swing - 0.12 - 0.7 * figure.stride * max(0.0, math.cos(figure.phase) * side)
    knee_y, knee_z = 0.49 + 0.24 * math.cos(swing), 0.24 * math.sin(swing)
    ankle_y, ankle_z = knee_y + 0.225 * math.cos(shin), knee_z + 0.225 * math.sin(shin)
    hip, knee = project(side * 0.05 * girth, 0.49, 0), project(side * 0.05 * girth, knee_y, knee_z)
    stand = side * 0.047 * girth
    ankle, heel = project(stand, ankle_y, ankle_z), project(stand, ankle_y + 0.024, ankle_z - 0.015)
    toe = project(stand + side * 0.015, ankle_y + 0.024, ankle_z + 0.075)
    near = -0.6 + 0.2 * (hip[2] + knee[2])
    shoe, skin = figure.tone(person.shoes), person.skin[figure.canvas.camera.spectrum]
    cloth = garment(figure.canvas, person.bottom, sleeve=True)
    add(near, heel, toe, (0.02, 0.022, 0.017), shoe, shadow=0.2, dome=1)
    if "trousers" in person.bottom.cut:
        wide = 1.45 if person.bottom.cut == "wide trousers" else 1.0
        calf = 0.042 * girth * wide, 0.038 * wide, 0.034 * wide**1.5
        add(near + 0.001, knee, ankle, calf, cloth, flat=HEMMED, cloth=0.6, offset=0.24)
        add(near + 0.002, hip, knee, (0.06 * girth, 0.054 * girth, 0.042 * girth * wide), cloth, cloth=0.6)
        return
    add(near + 0.001, knee, ankle, (0.035 * girth, 0.04 * girth, 0.028, 0.02), skin)
    add(near + 0.002, hip, knee, (0.058 * girth, 0.05 * girth, 0.036 * girth), skin)
    if person.shoes.cut == "boots":
        add(near + 0.003, between(knee, ankle, 0.3), ankle, (0.043 * girth, 0.036, 0.027), shoe, flat=(True, False))
    if person.bottom.cut == "shorts":
        add(near + 0.004, hip, between(hip, knee, 0.82), (0.062 * girth, 0.063 * girth), cloth, flat=HEMMED, cloth=0.6)


def add_trunk(figure: Figure) -> None:
    """Hips, skirt and torso; the torso's hem hides the hips as far as the garment's cut reaches."""
    person, project, girth, broad = figure.person, figure.project, figure.person.girth, figure.person.shoulders
    top, bottom, yaw = person.top, person.bottom, figure.canvas.yaw
    cloth, hips, waist = garment(figure.canvas, bottom), figure.seen(0.1 * girth, 0.075 * girth), project(0, 0.42, 0)
    behind = -0.7 if "trousers" in bottom.cut else -0.5
    figure.add(behind, waist, project(0, 0.55, 0), (hips * 0.95, hips, hips), cloth, flat=BOX, corner=0.04, cloth=0.4)
    if "skirt" in bottom.cut:
        hem, flare = (0.66, 1.4) if bottom.cut == "skirt" else (0.89, 1.65)
        widths = hips * 0.92, hips * 1.08, hips * (1 + flare) / 2, hips * flare
        figure.add(-0.29, waist, project(0, hem, 0), widths, cloth, flat=BOX, corner=0.01, cloth=1.0)

    hem = {"coat": 0.7, "open jacket": 0.54}.get(top.cut, 0.52)
    depth = np.linspace(0, hem - 0.158, 20)  # below the neck, where the half-widths of two outlines are known
    marks = 0, 0.012, 0.026, 0.042, 0.1, 0.16, 0.22, 0.3, 0.36
    shoulders = 0.03, 0.054, 0.088 * broad, 0.104 * broad, 0.108 * broad
    front = *shoulders, 0.102 * girth**0.5, 0.094 * girth, 0.1 * girth, 0.103 * girth
    profile = 0.03, 0.042, 0.052, 0.062, 0.07, 0.072 * girth**0.5, 0.07 * girth, 0.075 * girth, 0.077 * girth
    widths = np.hypot(np.interp(depth, marks, front) * math.cos(yaw), np.interp(depth, marks, profile) * math.sin(yaw))
    widths *= bulk(top) * (1 + (0.5 if top.cut == "coat" else 0.0) * np.maximum(0, depth - 0.26))
    inner = person.inner if top.cut == "open jacket" else None
    dress = garment(figure.canvas, top, printed=None if inner else person.print, inner=inner)
    neck, base = project(0, 0.158, 0), project(0, hem, 0)
    figure.add(0, neck, base, widths.tolist(), dress, flat=BOX, corner=0.012, cloth=0.7)


def bulk(top: Piece) -> float:
    """How much thicker than the body a garment is."""
    return {"coat": 1.12, "open jacket": 1.08, "long sleeves": 1.03}.get(top.cut, 1.0)


def add_arm(figure: Figure, side: int, rng: np.random.Generator) -> None:
    """An arm that swings against the leg of its side, sleeved, with a handbag if there is one; `side` is -1 or 1."""
    person, project, add, girth = figure.person, figure.project, figure.add, figure.person.girth
    swing = -0.8 * figure.stride * math.sin(figure.phase) * side + rng.normal(0, 0.06)
    lower = swing + abs(rng.normal(0.25, 0.15))
    reach = side * (0.104 * person.shoulders + 0.022 * girth)
    elbow_y, elbow_z = 0.219 + 0.155 * math.cos(swing), 0.155 * math.sin(swing)
    shoulder, elbow = project(side * 0.094 * person.shoulders, 0.219, 0), project(reach, elbow_y, elbow_z)
    wrist = project(reach * 0.97, elbow_y + 0.145 * math.cos(lower), elbow_z + 0.145 * math.sin(lower))
    near, thick, wear = 0.012 + shoulder[2] + 0.5 * elbow[2], 0.031 * girth**0.6, 0.031 * girth**0.6 * bulk(person.top)
    skin, sleeve = person.skin[figure.canvas.camera.spectrum], garment(figure.canvas, person.top, sleeve=True)
    add(near, wrist, between(elbow, wrist, 1.28), (0.016, 0.019, 0.011), skin, dome=0.7)
    if person.top.cut == "shirt":
        add(near + 0.001, elbow, wrist, (thick * 0.8, thick * 0.75, 0.016), skin)
        add(near + 0.002, shoulder, elbow, (thick, thick * 0.82), skin)
        cuff = between(shoulder, elbow, 0.75)
        add(near + 0.003, shoulder, cuff, (thick * 1.15, thick * 1.25), sleeve, flat=HEMMED, cloth=0.6, offset=0.045)
    else:
        add(near + 0.001, elbow, wrist, (wear, wear, wear * 0.85), sleeve, flat=HEMMED, cloth=0.8, offset=0.205)
        add(near + 0.002, shoulder, elbow, (wear * 1.12, wear), sleeve, cloth=0.7, offset=0.045)
    if person.bag.cut == "handbag" and side == 1:
        grip, half = below(wrist, 0.05), figure.seen(0.035, 0.085)
        add(near - 0.001, grip, below(grip, 0.03), (0.01, 0.03), figure.tone(person.bag, 1), shadow=0)
        leather = garment(figure.canvas, person.bag)
        add(near - 0.001, below(grip, 0.03), below(grip, 0.14), (half * 0.85, half), leather, flat=BOX, corner=0.01)


def add_bag(figure: Figure) -> None:
    """A backpack with its straps, or a shoulder bag with its belt."""
    person, project, bag = figure.person, figure.project, figure.person.bag
    cos, broad, leather = math.cos(figure.canvas.yaw), person.shoulders, garment(figure.canvas, bag)
    if bag.cut == "backpack":
        half, over, under = figure.seen(0.09, 0.05), project(0, 0.185, -0.115), project(0, 0.45, -0.12)
        figure.add(-0.14 * cos, over, under, (half * 0.85, half, half), leather, flat=BOX, corner=0.03, cloth=0.4)
        for side in (-1, 1) if cos > -0.3 else ():
            strap = [project(side * x * broad, y, 0.06) for x, y in ((0.062, 0.18), (0.068, 0.25), (0.085, 0.36))]
            for a, b in zip(strap, strap[1:]):
                figure.add(0.01 + 0.02 * max(0.0, a[2]), a, b, (0.0125, 0.0125), figure.tone(bag), shadow=0.2)
    elif bag.cut == "shoulder bag":
        ahead, half = math.copysign(0.03, cos), figure.seen(0.04, 0.085)
        over, under = project(-0.06 * broad, 0.178, ahead), project(0.11 * person.girth, 0.47, ahead)
        figure.add(0.011, over, under, (0.011, 0.011), figure.tone(bag, 1), shadow=0.2)
        pouch = project(0.135 * person.girth, 0.45, -0.01)
        near = pouch[2] + 0.09 * (pouch[2] > -0.06)
        figure.add(near, pouch, below(pouch, 0.13), (half, half), leather, flat=BOX, corner=0.02)


def add_head(figure: Figure, rng: np.random.Generator) -> None:
    """Neck, head, and the hair or hat that stands off it."""
    person, project, add, nod = figure.person, figure.project, figure.add, rng.normal(0, 0.006)
    cos, hair = math.cos(figure.canvas.yaw), figure.tone(person.hair)
    deep = 1 + 0.2 * abs(math.sin(figure.canvas.yaw))
    add(-0.01, project(0, 0.1, 0), project(0, 0.175, 0), (0.026, 0.034), person.skin[figure.canvas.camera.spectrum])
    crown, chin = project(nod, 0.045, 0.012), project(nod, 0.108, 0.022)
    skull = 0.044 * deep, 0.047 * deep, 0.043 * deep, 0.03 * deep
    add(0.05, crown, chin, skull, face(person, figure.canvas), shadow=0.25, dome=1)
    cut = person.hair.cut
    if cut == "long":
        nape, tips = project(nod, 0.055, -0.02), project(nod, 0.25, -0.055)
        near = 0.06 if cos < -0.3 else 0.04 if cos < 0.5 else -0.05
        add(near, nape, tips, (0.05, 0.06, 0.063, 0.056), hair, cloth=1.2)
        for side in (-1, 1):
            a, b = project(nod + side * 0.042, 0.06, 0), project(side * 0.06, 0.24, 0.03)
            add(0.045 + 0.3 * a[2], a, b, (0.014, 0.017, 0.022, 0.018), hair, cloth=1.0, shadow=0.2)
    elif cut == "bun":
        knot = project(nod, 0.012, -0.045)
        add(0.04 if cos > 0 else 0.06, knot, below(knot, 0.01), (0.028, 0.028), hair, shadow=0.2, dome=1)
    elif cut == "cap":
        peak, a, b = cos * cos * 0.04 + 0.007, project(nod, 0.024, 0.05), project(nod, 0.026, 0.11)
        add(0.055 if cos > -0.2 else 0.045, a, b, (peak, peak * 0.8), hair, shadow=0.4)
    elif cut == "hood":
        add(0.045, project(nod, 0.15, -0.02), project(nod, 0.175, -0.02), (0.06, 0.072), hair, cloth=0.6)
    elif cut == "short":
        tuft = project(nod, 0.04, -0.014)
        add(0.045, tuft, below(tuft, 0.03), (0.047 * deep, 0.046 * deep), hair, shadow=0, dome=1)


def paint_person(person: Person, canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a person at a random moment of a walk."""
    stride = rng.uniform(0.1, 0.42) * (0.55 if "skirt" in person.bottom.cut else 1.0)
    figure = Figure(person, canvas, rng.normal(0, 0.008), rng.uniform(0, 2 * math.pi), stride)
    add_trunk(figure)
    for side in (-1, 1):
        add_leg(figure, side)
        add_arm(figure, side, rng)
    add_bag(figure)
    add_head(figure, rng)
    figure.paint()


# ----------------------------------------------------------------------------------------------------------- scenes


HEIGHT, WIDTH, HORIZON = 320, 1200, 236  # of a scene, in pixels; the floor begins at the horizon


def clouds(rng: np.random.Generator, shape: tuple[int, int], cell: float, aspect: float = 1.0) -> np.ndarray:
    """Smooth noise, (height, width) float32, with features `cell` pixels wide and `aspect` times as high."""
    rows, columns = max(2, int(shape[0] / cell / aspect) + 1), max(2, int(shape[1] / cell) + 1)
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


class Stage:
    """A scene being drawn: where things stand is shared by the cameras of a room, how bright they are is not."""

    def __init__(self, room: int, spectrum: str, seed: int) -> None:
        self.spectrum = spectrum
        self.layout = np.random.default_rng([seed, SCENE, room])
        self.paint = np.random.default_rng([seed, SCENE, room, list(CHANNELS).index(spectrum)])
        self.image = Image.new("RGB" if spectrum == "visible" else "L", (WIDTH, HEIGHT))
        self.pen = ImageDraw.Draw(self.image)

    def ink(self, material: str, spread: float = 0.12, dim: float = 1.0) -> tuple[int, ...]:
        """A tone of a material as 8-bit levels."""
        visible, near, thermal = MATERIALS[material]
        tone = np.array({"visible": visible, "near": (near,), "thermal": (thermal,)}[self.spectrum]) * dim
        tone = tone * (1 + self.paint.normal(0, spread)) + self.paint.normal(0, spread / 6, len(tone))
        return tuple(int(level) for level in np.clip(tone * 255, 4, 250))

    def box(self, x: float, y: float, w: float, h: float, fill: tuple[int, ...],
            rim: tuple[int, ...] | None = None) -> None:
        """A rectangle from its upper left corner and its size."""
        self.pen.rectangle((x, y, x + w, y + h), fill, rim)

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...]) -> None:
        """A line one pixel wide."""
        self.pen.line((x0, y0, x1, y1), fill)

    def shrub(self, x: float, y: float, radius: float, leaves: int, material: str = "leaf") -> None:
        """A heap of leaves, darker below."""
        far, angle = radius * np.sqrt(self.layout.random(leaves)), self.layout.random(leaves) * 6.3
        for cx, cy, size in zip(x + far * np.cos(angle), far * np.sin(angle) * 0.8, self.layout.uniform(2, 7, leaves)):
            ink = self.ink(material, 0.22, 0.8 - 0.4 * cy / radius)
            self.pen.ellipse((cx - size, y + cy - size * 0.7, cx + size, y + cy + size * 0.7), ink)

    def floor(self, wall: str, ground: str, tile: int) -> None:
        """A wall, and in front of it a floor with joints in perspective, if `tile` pixels is not 0."""
        self.box(0, 0, WIDTH, HEIGHT, self.ink(wall))
        self.box(0, HORIZON, WIDTH, HEIGHT, self.ink(ground))
        joint = self.ink(ground, 0.05, 0.7)
        if tile:
            for x in np.arange(-6 * WIDTH, 7 * WIDTH, tile):
                self.line(WIDTH / 2 + (x - WIDTH / 2) * 0.45, HORIZON, x, HEIGHT, joint)
            for y in HORIZON + (HEIGHT - HORIZON) * np.linspace(0.05, 1, 6) ** 1.6:
                self.line(0, y, WIDTH, y, joint)


def draw_garden(stage: Stage) -> None:
    """Bushes and trees under the sky, a lawn and a path."""
    layout = stage.layout
    stage.floor("leaf", "grass", 0)
    stage.box(0, 0, WIDTH, 50, stage.ink("sky"))
    for _ in range(60):
        stage.shrub(layout.uniform(0, WIDTH), layout.uniform(40, HORIZON - 10), layout.uniform(25, 60), 40)
    for x in layout.uniform(0, WIDTH, 14):
        girth = layout.uniform(6, 20)
        foot = (x + girth * 1.3, HORIZON + 10, x - girth * 0.3, HORIZON + 10)
        stage.pen.polygon((x, 0, x + girth, 0, *foot), stage.ink("bark", 0.2))
    path = (0, HEIGHT, 0, HORIZON + 40, WIDTH, HORIZON + 20, WIDTH, HEIGHT)
    stage.pen.polygon(path, stage.ink("road", 0.1, 1.1))
    for _ in range(8):
        stage.shrub(layout.uniform(0, WIDTH), HORIZON, layout.uniform(15, 30), 25, "grass")


def draw_street(stage: Stage) -> None:
    """A brick house with windows and doors; cars and poles before it."""
    layout, pen, ink = stage.layout, stage.pen, stage.ink
    stage.floor("brick", "road", 150)
    mortar = ink("wall", 0.1, 0.7)
    for row, y in enumerate(range(0, HORIZON, 9)):
        stage.line(0, y, WIDTH, y, mortar)
        for x in range(10 * (row % 2), WIDTH, 20):
            stage.line(x, y, x, y + 9, mortar)
    for x in np.arange(30, WIDTH, 190) + layout.uniform(0, 50):
        stage.box(x - 5, 25, 82, 125, ink("paper"))
        for pane in range(2):
            stage.box(x + 37 * pane, 30, 33, 115, ink("glass", 0.3))
        stage.shrub(x + 36, 150, 26, 30)
    for x in layout.uniform(0, WIDTH, 3):
        stage.box(x, 70, 62, HORIZON - 70, ink("paint", 0.3), ink("dark"))
        stage.box(x + 8, 84, 46, 50, ink("glass"))
    for x in layout.uniform(0, WIDTH, 4):
        pen.rounded_rectangle((x, HORIZON - 60, x + 130, HORIZON + 14), 22, ink("metal", 0.5))
        pen.rounded_rectangle((x + 22, HORIZON - 54, x + 108, HORIZON - 28), 10, ink("glass"))
        for wheel in (x + 18, x + 88):
            pen.ellipse((wheel, HORIZON - 6, wheel + 26, HORIZON + 20), ink("dark"))
    for x in layout.uniform(0, WIDTH, 5):
        stage.box(x, 0, 7, HORIZON + 12, ink("metal", 0.3))


def draw_corridor(stage: Stage) -> None:
    """A tiled wall with doors, notices and a handrail."""
    layout, pen, ink = stage.layout, stage.pen, stage.ink
    stage.floor("tile", "floor", 90)
    for y in range(0, HORIZON, 22):
        stage.line(0, y, WIDTH, y, ink("tile", 0.05, 0.85))
    for x in range(0, WIDTH, 22):
        stage.line(x, 0, x, HORIZON, ink("tile", 0.05, 0.85))
    for x in np.arange(20, WIDTH, 230) + layout.uniform(0, 60):
        stage.box(x, 40, 86, HORIZON - 40, ink("wood", 0.3), ink("dark"))
        stage.box(x + 52, 62, 22, 66, ink("glass"))
        pen.ellipse((x + 8, 138, x + 16, 146), ink("metal"))
        stage.box(x + 120, 70, layout.uniform(30, 70), 50, ink("paper", 0.4), ink("metal"))
    stage.box(0, 150, WIDTH, 7, ink("metal"))
    stage.box(0, HORIZON - 8, WIDTH, 8, ink("wood", 0.2, 0.8))


def draw_office(stage: Stage) -> None:
    """A plain wall with book shelves, windows, doors, plants and desks."""
    layout, box, ink = stage.layout, stage.box, stage.ink
    stage.floor("wall", "floor", 90)
    for x in layout.permutation(np.arange(10, WIDTH - 100, 160)):
        furniture = layout.choice(("shelves", "window", "door", "desk"))
        if furniture == "shelves":
            box(x, 20, 120, HORIZON - 10, ink("wood"))
            for y in range(28, HORIZON - 20, 42):
                box(x + 5, y, 110, 36, ink("dark"))
                for book in np.arange(x + 6, x + 104, 7):
                    tall, cover = layout.uniform(20, 34), layout.choice(("paper", "paint", "brick", "leaf", "dark"))
                    box(book, y + 36 - tall, 6, tall, ink(cover, 0.5))
        elif furniture == "window":
            box(x, 24, 104, 120, ink("paper"))
            box(x + 6, 30, 44, 108, ink("sky", 0.2, 0.9))
            box(x + 56, 30, 44, 108, ink("sky", 0.2, 0.9))
            box(x, 170, 104, 50, ink("metal"), ink("dark"))
        elif furniture == "door":
            box(x, 40, 84, HORIZON - 40, ink("wood", 0.3), ink("dark"))
            box(x + 104, HORIZON - 26, 26, 30, ink("brick"))
            stage.shrub(x + 117, HORIZON - 56, 34, 60)
        else:
            box(x, 150, 120, 12, ink("wood"))
            box(x + 4, 162, 10, HORIZON - 150, ink("metal"))
            box(x + 104, 162, 10, HORIZON - 150, ink("metal"))
            box(x + 30, 92, 64, 46, ink("dark"))
            box(x + 56, 138, 12, 12, ink("metal"))
            box(x, 40, 40, 34, ink("paint", 0.4))
    box(0, HORIZON - 8, WIDTH, 8, ink("wood", 0.2, 0.8))


SCENES = {"garden": draw_garden, "street": draw_street, "corridor": draw_corridor, "office": draw_office}


@lru_cache(maxsize=16)
def draw_scene(kind: str, room: int, spectrum: str, seed: int) -> Image.Image:
    """What stands behind the persons of a camera: an 8-bit image of HEIGHT x WIDTH pixels in linear tones."""
    stage = Stage(room, spectrum, seed)
    SCENES[kind](stage)
    stains = ((0.07, 90), (0.05, 9), (0.03, 2))  # depth, size in pixels
    stain = 1 + sum(depth * clouds(stage.paint, (HEIGHT, WIDTH), cell) for depth, cell in stains)
    pixels = np.asarray(stage.image, np.float32) * (stain[..., None] if spectrum == "visible" else stain)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.0))


# ------------------------------------------------------------------------------------------------------------ shots


def backdrop(camera: Camera, seed: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random cut of the camera's scene, (height, width, channels) linear, where the floor begins at the shins."""
    tall = rng.uniform(220, 290)
    wide = tall * size[1] / size[0]
    left, upper = rng.uniform(0, WIDTH - wide), min(max(HORIZON - rng.uniform(0.74, 0.84) * tall, 0), HEIGHT - tall)
    scene = draw_scene(camera.scene, camera.room, camera.spectrum, seed)
    cut = scene.resize(size[::-1], Image.Resampling.BILINEAR, (left, upper, left + wide, upper + tall))
    image = np.asarray(cut, np.float32).reshape(*size, CHANNELS[camera.spectrum]) / 255 * rng.uniform(0.75, 1.25)
    if camera.spectrum == "near":
        image *= rng.uniform(0.45, 0.9)  # the lamp sits on the camera: what is farther away is darker
    return image[:, ::-1] if rng.random() < 0.5 else image


def render_shot(person: Person, camera: Camera, seed: int, key: list[int],
                size: tuple[int, int] | None = None) -> Image.Image:
    """A camera's crop of a person, an RGB image of `size` (height, width) or, if None, as large as a detector's box.

    `seed` chooses the scene, `key` the moment; the same arguments give the same pixels.
    """
    rng = np.random.default_rng(key)
    if size is None:
        tall = int(rng.integers(200, 381))
        size = tall, min(max(int(tall * rng.uniform(0.37, 0.46)), 80), 160)
    height, width = size
    image = backdrop(camera, seed, size, rng)
    scale = height * 0.88 * person.stature * (1 + rng.normal(0, camera.framing))
    left = rng.normal(0.5, 1.5 * camera.framing) * width
    upper = (height - scale) / 2 + rng.normal(0, camera.framing) * height
    yaw = float(rng.choice((0, 0, 0, np.pi, np.pi, np.pi / 2, -np.pi / 2))) + rng.normal(0, 0.35)
    folds = 0.3 * clouds(rng, size, scale / 22, 0.55) + 0.25 * clouds(rng, size, scale / 12, 2.0)
    canvas = Canvas(np.zeros((height, width, image.shape[2] + 1), np.float32), folds, scale, (left, upper), camera, yaw)
    paint_person(person, canvas, rng)

    if camera.spectrum != "thermal":  # the shadow on the ground falls away from the light
        x = (np.arange(width, dtype=np.float32) - left) / scale + 0.12 * camera.light[0]
        y = (np.arange(height, dtype=np.float32) - upper) / scale - 0.985
        image = image * (1 - 0.6 * np.exp(-((x[None] / 0.2) ** 2) - (y[:, None] / 0.045) ** 2))[..., None]
    return develop(image * (1 - canvas.rgba[..., -1:]) + canvas.rgba[..., :-1], camera, rng)


def develop(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Turn linear tones (height, width, channels) into what a camera stores: light, cast, lens, sensor, 8-bit RGB."""
    height, width, channels = image.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32)[None], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    gain = camera.gain * math.exp(rng.normal(0, 0.2))
    light = gain * (1 + camera.slope * x) * (1 - camera.vignette * (0.4 * x * x + 0.6 * y * y))
    cast = np.float32(camera.cast[:channels]) * np.float32(1 + rng.normal(0, 0.06, channels))
    image = np.clip(image * light[..., None] * cast, 0, 1) ** camera.gamma
    radius = camera.blur * height * rng.uniform(0.7, 1.4)
    focus = Image.fromarray((image * 255).astype(np.uint8).squeeze()).filter(ImageFilter.GaussianBlur(radius))
    grain = rng.standard_normal((height, width, 1), np.float32)
    if channels > 1:
        grain = grain + 0.5 * rng.standard_normal(image.shape, np.float32)
    image = np.asarray(focus, np.float32).reshape(image.shape) + 255 * camera.noise * grain
    return Image.fromarray(np.repeat(np.clip(image, 0, 255).astype(np.uint8), 3 // channels, axis=2))


# ---------------------------------------------------------------------------------------------------------- layouts


@contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """A temporary folder that becomes `root` once everything is in it; FileExistsError if `root` is not empty."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not empty: remove it, or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def for_each(task: Callable[[int], None], ids: int, workers: int, progress: Callable[[int, int], None] | None) -> None:
    """Call a picklable task for each person 1..ids, in `workers` processes if more than one; reports (done, ids)."""
    if workers > 1:
        with ProcessPoolExecutor(min(workers, ids), multiprocessing.get_context("spawn")) as pool:
            finished = pool.map(task, range(1, ids + 1))
            for done, _ in enumerate(finished, 1):
                if progress:
                    progress(done, ids)
    else:
        for pid in range(1, ids + 1):
            task(pid)
            if progress:
                progress(pid, ids)


def render_sysu_person(root: Path, cameras: dict[int, tuple[int, ...]], images: int, seed: int, pid: int) -> None:
    """Write one person's crops, `images` in each of the cameras that met the person."""
    person = draw_person([seed, PERSON, 1, pid])
    for cam in cameras[pid]:
        folder = root / f"cam{cam}" / f"{pid:04d}"
        folder.mkdir(parents=True)
        for shot in range(1, images + 1):
            image = render_shot(person, SYSU_CAMERAS[cam], seed, [seed, SHOT, 1, pid, cam, shot])
            image.save(folder / f"{shot:04d}.jpg", quality=SYSU_CAMERAS[cam].quality)


def render_sysu(root: Path, ids: int, images: int, seed: int, progress: Callable[[int, int], None] | None = None,
                workers: int = 1) -> None:
    """Render persons with `images` crops per camera in the layout of SYSU-MM01; the same seed gives the same bytes.

    A third of the persons is for testing, a seventh of the others in val_id.txt. Raises FileExistsError if `root` is
    not empty, ValueError for fewer than 3 persons or 1 image.
    """
    from scipy.io import savemat

    if ids < 3 or not 1 <= images <= 255:
        raise ValueError(f"SYSU-MM01 needs at least 3 ids and 1 to 255 images, not {ids} and {images}")
    rng = np.random.default_rng([seed, SPLIT, 1])
    order = [int(pid) for pid in rng.permutation(ids) + 1]
    cameras = {pid: PRESENCE[place % len(PRESENCE)] for place, pid in enumerate(order)}
    tests = max(1, round(ids / 3))
    vals = tests + max(1, (ids - tests) // 7)
    splits = {"test": order[:tests], "val": order[tests:vals], "train": order[vals:]}
    permutations = np.empty((len(SYSU_CAMERAS), 1), object)
    for cam in SYSU_CAMERAS:
        cells = np.empty((ids, 1), object)
        for pid in range(1, ids + 1):
            shots = images if cam in cameras[pid] else 0
            cells[pid - 1, 0] = np.uint8([rng.permutation(shots) + 1 for _ in range(10)])
        permutations[cam - 1, 0] = cells
    with whole_folder(Path(root)) as folder:
        (folder / "exp").mkdir()
        for split, pids in splits.items():
            (folder / "exp" / f"{split}_id.txt").write_text(",".join(map(str, sorted(pids))) + "\n")
        mat = io.BytesIO()
        savemat(mat, {"rand_perm_cam": permutations}, do_compression=True)
        header = b"MATLAB 5.0 MAT-file, synthetic".ljust(116)  # in place of scipy's, which tells the time
        (folder / "exp" / "rand_perm_cam.mat").write_bytes(header + mat.getvalue()[len(header) :])
        for_each(partial(render_sysu_person, folder, cameras, images, seed), ids, workers, progress)


def render_regdb_person(root: Path, images: int, seed: int, pid: int) -> None:
    """Write one person's visible and thermal crops of 128 x 64 pixels (height x width)."""
    person = draw_person([seed, PERSON, 2, pid])
    for number, (modality, camera) in enumerate(REGDB_CAMERAS.items(), 1):
        folder = root / modality / str(pid)
        folder.mkdir(parents=True)
        for shot in range(1, images + 1):
            image = render_shot(person, camera, seed, [seed, SHOT, 2, pid, number, shot], (256, 128))
            image.reduce(2).save(folder / f"{modality[0].lower()}_{pid:03d}_{shot:02d}.bmp")


def render_regdb(root: Path, ids: int, images: int, seed: int, progress: Callable[[int, int], None] | None = None,
                 workers: int = 1) -> None:
    """Render persons with `images` crops per modality in the layout of RegDB; the same seed gives the same bytes.

    Ten trials each split the persons in half at random, with labels counted in the order of the pids. Raises
    FileExistsError if `root` is not empty, ValueError for fewer than 2 persons or 1 image.
    """
    if ids < 2 or images < 1:
        raise ValueError(f"RegDB needs at least 2 ids and 1 image, not {ids} and {images}")
    with whole_folder(Path(root)) as folder:
        (folder / "idx").mkdir()
        for trial in range(1, 11):
            order = np.random.default_rng([seed, SPLIT, 2, trial]).permutation(ids) + 1
            for split, pids in (("train", sorted(order[: ids // 2])), ("test", sorted(order[ids // 2 :]))):
                for modality in REGDB_CAMERAS:
                    lines = [
                        f"{modality}/{pid}/{modality[0].lower()}_{pid:03d}_{shot:02d}.bmp {label}\n"
                        for label, pid in enumerate(pids)
                        for shot in range(1, images + 1)
                    ]
                    (folder / "idx" / f"{split}_{modality.lower()}_{trial}.txt").write_text("".join(lines))
        for_each(partial(render_regdb_person, folder, images, seed), ids, workers, progress)

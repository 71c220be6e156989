"""Painting a person: strips lit as cylinders, textures of cloth and face, and the figure made of them.

A person is a small 3-D skeleton dressed in limbs: tapered strips with cylinder normals, so that one set of
shapes serves every view, light and spectrum. Lengths are fractions of the body height, y downwards from the
crown; tones are linear, 0..1.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from synthetic.persons import Camera, Person, Piece

Point = Sequence[float]  # x, y and, where something is sorted by it, nearness
Texture = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # azimuth, along, half-width -> tone
HEMMED, BOX = (False, True), (True, True)  # which ends of a strip are straight
BULK = {"coat": 1.12, "open jacket": 1.08, "long sleeves": 1.03}  # how much thicker than the body it is


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
        """The rows and columns within `margin` of the line a-b, and their x (1, w) and y (h, 1) from a."""
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
          flat: tuple[bool, bool] = (False, False), corner: float = 0.0, shadow: float = 0.35,
          cloth: float = 0.0, dome: float = 0.0, offset: float = 0.0) -> None:
    """Paint a limb from a to b with half-widths spread evenly along it, lit as a cylinder.

    `texture` is one tone or a function of body azimuth (radians, 0 in front), distance from a, and
    half-width, each (h, w), to tones (h, w, channels); `flat` cuts the ends straight, with `corner` as the
    radius of their corners, instead of rounding them; `shadow` darkens what lies behind the rim; `cloth` is
    how deep the folds are; `dome` curves the surface towards round ends; `offset` is added to the distance
    along the limb, so that a pattern runs on past a joint.
    """
    scale, camera = canvas.scale, canvas.camera
    rows, columns, x, y = canvas.window(a, b, max(widths) + 0.03)
    if not x.size or not y.size:
        return
    length = max(math.hypot(b[0] - a[0], b[1] - a[1]), 1e-4)
    ex, ey = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    along, across = x * ex + y * ey, x * ey - y * ex
    half = np.interp(along, np.linspace(0, length, len(widths)), widths).astype(np.float32)
    outside = np.maximum(np.maximum(-along, along - length), 0)
    distance = distance_to_strip(along, across, half, length, flat, corner)
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


def distance_to_strip(along: np.ndarray, across: np.ndarray, half: np.ndarray, length: float,
                      flat: tuple[bool, bool], corner: float) -> np.ndarray:
    """How far points (h, w) are from a limb of such half-widths, negative within; see `strip`."""
    over = np.maximum(-along, along - length)  # how far beyond an end, negative between the ends
    distance = np.sqrt(across**2 + np.maximum(over, 0)**2) - half
    if not any(flat):
        return distance
    beside, beyond = np.abs(across) - half + corner, over + corner
    square = np.sqrt(np.maximum(beside, 0) ** 2 + np.maximum(beyond, 0) ** 2) - corner
    square += np.minimum(np.maximum(beside, beyond), 0)
    return square if all(flat) else np.where((along < length / 2) == flat[0], square, distance)


def wave(x: np.ndarray, period: float, scale: float) -> np.ndarray:
    """A square wave of x, 0..1, with edges one pixel wide."""
    return np.clip(0.5 + period * scale / 6 * np.sin(2 * np.pi / period * x), 0, 1)


def weave(piece: Piece, canvas: Canvas, azimuth: np.ndarray, along: np.ndarray,
          sleeve: bool = False) -> np.ndarray:
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
    first, second = tones[..., None, None]
    return (first + (second - first) * amount).transpose(1, 2, 0)  # a plane a channel, as the canvas


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
    # azimuth, y, radii, darkness
    features = [(0.12, 0.05, 0.005, 0.01, 0.3), (0.0, 0.071, 0.014, 0.0035, 0.45)]
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
            **options: Any) -> None:
        """Queue a strip."""
        self.parts.append((near, partial(strip, self.canvas, a, b, widths, texture, **options)))

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
    """A leg at its moment of the walk, shod, in trousers or bare below shorts or skirt; `side`: -1 or 1."""
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
        boot = 0.043 * girth, 0.036, 0.027
        add(near + 0.003, between(knee, ankle, 0.3), ankle, boot, shoe, flat=(True, False))
    if person.bottom.cut == "shorts":
        add(near + 0.004, hip, between(hip, knee, 0.82), (0.062 * girth, 0.063 * girth), cloth,
            flat=HEMMED, cloth=0.6)


def add_trunk(figure: Figure) -> None:
    """Hips, skirt and torso; the torso's hem hides the hips as far as the garment's cut reaches."""
    person, project = figure.person, figure.project
    girth, broad, top, bottom = person.girth, person.shoulders, person.top, person.bottom
    yaw, cloth = figure.canvas.yaw, garment(figure.canvas, bottom)
    hips, waist = figure.seen(0.1 * girth, 0.075 * girth), project(0, 0.42, 0)
    behind = -0.7 if "trousers" in bottom.cut else -0.5
    figure.add(behind, waist, project(0, 0.55, 0), (hips * 0.95, hips, hips), cloth, flat=BOX,
               corner=0.04, cloth=0.4)
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
    widths = np.hypot(np.interp(depth, marks, front) * math.cos(yaw),
                      np.interp(depth, marks, profile) * math.sin(yaw))
    widths *= BULK.get(top.cut, 1.0) * (1 + (0.5 if top.cut == "coat" else 0.0) * np.maximum(0, depth - 0.26))
    inner = person.inner if top.cut == "open jacket" else None
    dress = garment(figure.canvas, top, printed=None if inner else person.print, inner=inner)
    neck, base = project(0, 0.158, 0), project(0, hem, 0)
    figure.add(0, neck, base, widths.tolist(), dress, flat=BOX, corner=0.012, cloth=0.7)


def add_arm(figure: Figure, side: int, rng: np.random.Generator) -> None:
    """An arm, swinging against its side's leg, sleeved, with a handbag if any; `side` is -1 or 1."""
    person, project, add, girth = figure.person, figure.project, figure.add, figure.person.girth
    swing = -0.8 * figure.stride * math.sin(figure.phase) * side + rng.normal(0, 0.06)
    lower = swing + abs(rng.normal(0.25, 0.15))
    reach = side * (0.104 * person.shoulders + 0.022 * girth)
    elbow_y, elbow_z = 0.219 + 0.155 * math.cos(swing), 0.155 * math.sin(swing)
    shoulder, elbow = project(side * 0.094 * person.shoulders, 0.219, 0), project(reach, elbow_y, elbow_z)
    wrist = project(reach * 0.97, elbow_y + 0.145 * math.cos(lower), elbow_z + 0.145 * math.sin(lower))
    near, thick = 0.012 + shoulder[2] + 0.5 * elbow[2], 0.031 * girth**0.6
    wear = thick * BULK.get(person.top.cut, 1.0)
    skin, sleeve = person.skin[figure.canvas.camera.spectrum], garment(figure.canvas, person.top, sleeve=True)
    add(near, wrist, between(elbow, wrist, 1.28), (0.016, 0.019, 0.011), skin, dome=0.7)
    if person.top.cut == "shirt":
        add(near + 0.001, elbow, wrist, (thick * 0.8, thick * 0.75, 0.016), skin)
        add(near + 0.002, shoulder, elbow, (thick, thick * 0.82), skin)
        cuff = between(shoulder, elbow, 0.75)
        add(near + 0.003, shoulder, cuff, (thick * 1.15, thick * 1.25), sleeve, flat=HEMMED,
            cloth=0.6, offset=0.045)
    else:
        add(near + 0.001, elbow, wrist, (wear, wear, wear * 0.85), sleeve, flat=HEMMED,
            cloth=0.8, offset=0.205)
        add(near + 0.002, shoulder, elbow, (wear * 1.12, wear), sleeve, cloth=0.7, offset=0.045)
    if person.bag.cut == "handbag" and side == 1:
        grip, half = below(wrist, 0.05), figure.seen(0.035, 0.085)
        add(near - 0.001, grip, below(grip, 0.03), (0.01, 0.03), figure.tone(person.bag, 1), shadow=0)
        leather = garment(figure.canvas, person.bag)
        add(near - 0.001, below(grip, 0.03), below(grip, 0.14), (half * 0.85, half), leather,
            flat=BOX, corner=0.01)


def add_bag(figure: Figure) -> None:
    """A backpack with its straps, or a shoulder bag with its belt."""
    person, project, bag = figure.person, figure.project, figure.person.bag
    cos, broad, leather = math.cos(figure.canvas.yaw), person.shoulders, garment(figure.canvas, bag)
    if bag.cut == "backpack":
        half, over, under = figure.seen(0.09, 0.05), project(0, 0.185, -0.115), project(0, 0.45, -0.12)
        figure.add(-0.14 * cos, over, under, (half * 0.85, half, half), leather, flat=BOX,
                   corner=0.03, cloth=0.4)
        for side in (-1, 1) if cos > -0.3 else ():
            strap = [project(side * x * broad, y, 0.06)
                     for x, y in ((0.062, 0.18), (0.068, 0.25), (0.085, 0.36))]
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
    add(-0.01, project(0, 0.1, 0), project(0, 0.175, 0), (0.026, 0.034),
        person.skin[figure.canvas.camera.spectrum])
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

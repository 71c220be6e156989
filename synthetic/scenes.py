"""Scenes: what stands behind the persons of a camera, in materials whose tones go by the spectrum."""
from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from synthetic.persons import CHANNELS, SCENE, Camera

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

HEIGHT, WIDTH, HORIZON = 320, 1200, 236  # of a scene, in pixels; the floor begins at the horizon


def clouds(rng: np.random.Generator, shape: tuple[int, int], cell: float, aspect: float = 1.0) -> np.ndarray:
    """Smooth noise, (height, width) float32, with features `cell` pixels wide and `aspect` times as high."""
    rows, columns = max(2, int(shape[0] / cell / aspect) + 1), max(2, int(shape[1] / cell) + 1)
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


class Stage:
    """A scene being drawn: the cameras of a room share where things stand, not how bright they are."""

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
        for cx, cy, size in zip(x + far * np.cos(angle), far * np.sin(angle) * 0.8,
                                self.layout.uniform(2, 7, leaves)):
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
                    tall = layout.uniform(20, 34)
                    cover = layout.choice(("paper", "paint", "brick", "leaf", "dark"))
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


def backdrop(camera: Camera, seed: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random cut of the camera's scene, (height, width, channels) linear, its floor from the shins down."""
    tall = rng.uniform(220, 290)
    wide = tall * size[1] / size[0]
    left = rng.uniform(0, WIDTH - wide)
    upper = min(max(HORIZON - rng.uniform(0.74, 0.84) * tall, 0), HEIGHT - tall)
    scene = draw_scene(camera.scene, camera.room, camera.spectrum, seed)
    cut = scene.resize(size[::-1], Image.Resampling.BILINEAR, (left, upper, left + wide, upper + tall))
    image = np.asarray(cut, np.float32).reshape(*size, CHANNELS[camera.spectrum]) / 255
    image = image * rng.uniform(0.75, 1.25)
    if camera.spectrum == "near":
        image *= rng.uniform(0.45, 0.9)  # the lamp sits on the camera: what is farther away is darker
    return image[:, ::-1] if rng.random() < 0.5 else image

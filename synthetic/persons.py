"""Persons and the cameras that see them: what is drawn by lot, before anything is painted.

Each garment has a colour and, drawn independently, a near-infrared and a thermal brightness; only what has a
shape (cut, pattern, print, bag, hair, build) is shared between the modalities.
"""
from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

CHANNELS = {"visible": 3, "near": 1, "thermal": 1}  # near: near-infrared, lit by a lamp on the camera
PERSON, SCENE, SHOT, SPLIT = range(4)  # what a random stream is for: the second word of its seed

TOPS = ("shirt", "long sleeves", "coat", "open jacket")
TOP_PATTERNS = ("plain", "hoops", "stripes", "checks", "yoke", "halves", "band", "raglan")
BOTTOMS = ("trousers", "shorts", "skirt", "wide trousers", "long skirt")
BOTTOM_PATTERNS = ("plain", "plain", "plain", "stripes", "checks", "halves", "side")
PRINTS = ("none", "disc", "square", "cross", "ring", "bars")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
HAIR = ("short", "bald", "long", "bun", "cap", "hood")
HAIR_COLOURS = ((0.03, 0.025, 0.02), (0.09, 0.05, 0.03), (0.2, 0.12, 0.05), (0.4, 0.3, 0.15),
                (0.35, 0.34, 0.33))


@dataclass(frozen=True)
class Camera:
    """How a camera sees: spectrum, scene, light, optics, electronics, and how well its crops fit."""

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
    framing: float = 0.03  # standard deviation of the detector's error, fraction of the box
    quality: int = 88  # of the JPEG


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


def two_levels(rng: np.random.Generator, dark: tuple[float, float],
               light: tuple[float, float]) -> list[float]:
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


def draw_piece(rng: np.random.Generator, cuts: tuple[str, ...],
               patterns: tuple[str, ...] = ("plain",)) -> Piece:
    """A piece of one of the cuts and patterns, with tones of its own."""
    return Piece(str(rng.choice(cuts)), str(rng.choice(patterns)),
                 float(rng.choice((0.055, 0.1))), draw_tones(rng))


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

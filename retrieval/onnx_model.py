"""A network that export.py wrote, run by onnxruntime: image files to features. Imports no torch."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import describe_entry
from datasets.images import MEAN, STD
from utils import as_user_error

FORMAT = 1
REQUIREMENTS = "requirements-export.txt"
OLDEST = 1, 22  # onnxruntime, as requirements-export.txt says


@dataclass(frozen=True)
class Facts:
    """What a file says of its network, as JSON values in its metadata.

    sha256: of the checkpoint that it comes from; height, width: pixels of the images; uint8: whether it takes
    bytes (B, height, width, 3), rather than normalised float32 (B, 3, height, width); precision: float32 or
    half; range: of raw values that became 8 bits, in the training.
    """

    format: int
    method: str
    arch: str
    modality: str
    dataset: str
    sha256: str
    height: int
    width: int
    uint8: bool
    precision: str
    range: list[int] | None = None


@dataclass(frozen=True)
class OnnxModel:
    """One branch of a network; its outputs are L2-normalised."""

    session: Any
    facts: Facts

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, height, width, 3) uint8 -> features after pooling and after BNNeck, (B, D) float32 each."""
        bnneck, pool = self.session.run(None, {"images": images if self.facts.uint8 else normalise(images)})
        return pool, bnneck


def normalise(images: np.ndarray) -> np.ndarray:
    """(B, height, width, 3) uint8 -> (B, 3, height, width) float32, by ImageNet's mean and deviation."""
    scale, shift = 1 / (255 * np.float32(STD)), -np.float32(MEAN) / np.float32(STD)
    return np.ascontiguousarray((images * scale + shift).transpose(0, 3, 1, 2))


def load(path: str | Path, threads: int = 0) -> OnnxModel:
    """Open a file of export.py on the CPU; threads: 0 for one a core.

    Raises `UserError` for a file that is none, and where onnxruntime is missing.
    """
    mend = f"run: pip install -r {REQUIREMENTS}"
    with as_user_error("onnxruntime does not load", mend):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        mend = f"onnxruntime {version} found, {'.'.join(map(str, OLDEST))} or later expected; {mend}"
    else:
        mend = "export the checkpoint again"
    with as_user_error(f"{path}: cannot be read as a network of export.py", mend):
        if not os.path.isfile(path):
            raise FileNotFoundError(describe_entry(path))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        facts = Facts(**{field.name: json.loads(metadata[field.name]) for field in fields(Facts)})
        if facts.format != FORMAT:
            raise ValueError(f"format {facts.format} found, {FORMAT} expected")
    return OnnxModel(session, facts)

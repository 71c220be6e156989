"""A network that export.py wrote, run by onnxruntime: image files to features. Imports no torch."""
from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import MEAN, STD
from datasets.types import ImageSpec
from utils import UserError, one_line

FORMAT = 1
INSTALL = "pip install -r requirements-export.txt"
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

    @property
    def spec(self) -> ImageSpec:
        """The form in which the network takes images."""
        return ImageSpec(self.height, self.width, self.range and tuple(self.range))


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
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: onnxruntime is not installed; run: {INSTALL}") from None
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a visible.onnx or an infrared.onnx that export.py wrote")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        facts = Facts(**{field.name: json.loads(metadata[field.name]) for field in fields(Facts)})
        if facts.format != FORMAT:
            raise ValueError(f"format {facts.format}")
    except Exception as error:  # onnxruntime's own errors, one class for each of its status codes
        unknown = isinstance(error, (KeyError, ValueError))
        what = "no metadata of export.py" if unknown else one_line(error)[:160]
        line = f"not a network of export.py ({what}); export the checkpoint again"
        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < OLDEST:
            line = (f"onnxruntime {onnxruntime.__version__} does not read it ({what}); "
                    f"{'.'.join(map(str, OLDEST))} or later expected; run: {INSTALL}")
        raise UserError(f"{path}: {line}") from None
    return OnnxModel(session, facts)

"""Decode and resize the training images of LLCM once, into .npy arrays that training memory-maps.

    python pre_process_llcm.py [--data-path DIR] [--arrays DIR] [--img_w 144 --img_h 288] [--workers N]
"""
from __future__ import annotations

from collections.abc import Sequence

from data_manager import DATASETS
from datasets.preprocess import preprocess
from command_line import run


def main(words: Sequence[str] | None = None) -> None:
    """Write the arrays of both modalities and the manifest beside them, whole or not at all."""
    preprocess(DATASETS["llcm"], words)


if __name__ == "__main__":
    run(main)

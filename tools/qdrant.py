"""Hands a file of embed.py over to Qdrant, for galleries that outgrow one machine (docs/scale.md).

    python -m tools.qdrant day.npz --collection day --url http://localhost:6333
    python -m tools.qdrant day.npz --collection day --path folder/      its engine in a folder

A point is a row of the file: its feature, and as payload path, row, camera (-1: the name tells none), time
(or null), modality and checkpoint. Needs requirements-scale.txt; reads QDRANT_API_KEY where the server wants
a key.
"""
from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from results import FEATURES
from retrieval.gallery import Gallery, camera_of, read_gallery, time_of
from utils import Parser, UserError, filled, number, one_line, run


def main(words: Sequence[str] | None = None) -> None:
    """Hand a file over by the arguments of the command line."""
    parser = Parser(description="Write the features of a file of embed.py into a collection of Qdrant.")
    parser.add_argument("gallery", metavar="GALLERY.npz", help="file of embed.py")
    parser.add_argument("--collection", type=filled, required=True, metavar="NAME",
                        help="collection to write; created if missing")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", type=filled, metavar="URL", help="a server")
    where.add_argument("--path", type=filled, metavar="DIR", help="a folder, for its engine in this process")
    parser.add_argument("--feature", choices=FEATURES, default="bnneck",
                        help="after pooling, or after BNNeck")
    parser.add_argument("--batch", type=number(1), default=256, metavar="N", help="points a request")
    args = parser.parse_args(words)
    gallery = read_gallery(args.gallery)
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise UserError("qdrant-client is not installed; run: pip install -r "
                        "requirements-scale.txt") from None
    place = {"path": args.path}
    if args.url:
        place = {"url": args.url, "api_key": os.environ.get("QDRANT_API_KEY")}
    try:
        client = QdrantClient(**place)
        hand_over(client, args.collection, gallery, args.feature, args.batch)
        client.close()
    except UserError:
        raise
    except Exception as error:  # those of the network and of the server have no class in common
        what = f"{type(error).__name__}: {one_line(error)[:160]}"
        raise UserError(f"{args.url or args.path}: Qdrant refused ({what}); is it running there?") from None
    print(f"{args.collection}: {len(gallery):,} points from {args.gallery}")


def hand_over(client: Any, collection: str, gallery: Gallery, feature: str = "bnneck",
              batch: int = 256) -> None:
    """Write a gallery into a collection, created if it is not there; rows that are there are written again.

    The collection compares by dot product, the cosine similarity of our unit features. Raises `UserError`
    where it holds features of another length, kind or checkpoint.
    """
    from qdrant_client import models
    feats = getattr(gallery, feature)
    if not client.collection_exists(collection):
        params = models.VectorParams(size=feats.shape[1], distance=models.Distance.DOT)
        client.create_collection(collection, params)
    require_same(client, collection, gallery, feature)
    for start in tqdm(range(0, len(gallery), batch), unit="request", leave=False, disable=None):
        rows = range(start, min(start + batch, len(gallery)))
        client.upsert(collection, [point(gallery, feature, feats[row], row) for row in rows], wait=True)


def require_same(client: Any, collection: str, gallery: Gallery, feature: str) -> None:
    """Raise `UserError` where the points of a collection cannot be compared with a gallery."""
    some, _ = client.scroll(collection, limit=1, with_payload=True)
    found = [client.get_collection(collection).config.params.vectors.size]
    found += [some[0].payload.get(name) for name in ("checkpoint", "feature")] if some else []
    expected = [gallery.bnneck.shape[1], gallery.record.checkpoint, feature][:len(found)]
    if found != expected:
        raise UserError(f"--collection {collection}: {found} found, {expected} (length of a feature, "
                        "checkpoint, kind) expected; choose another collection")


def point(gallery: Gallery, feature: str, feat: np.ndarray, row: int) -> Any:
    """The point of a row; its number follows from what it is, so that a growing file can be sent again."""
    from qdrant_client import models
    path, checkpoint = str(gallery.paths[row]), gallery.record.checkpoint
    payload = {"path": path, "row": row, "camera": camera_of(path), "time": time_of(path),
               "modality": gallery.record.modality, "checkpoint": checkpoint, "feature": feature}
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{checkpoint}/{feature}/{gallery.record.modality}/{path}")
    return models.PointStruct(id=str(number), vector=np.asarray(feat, np.float32).tolist(), payload=payload)


if __name__ == "__main__":
    run(main)

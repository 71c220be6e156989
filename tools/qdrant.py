"""Hands a file of embed.py over to Qdrant, for galleries that outgrow one machine (docs/scale.md).

    python -m tools.qdrant day.npz --collection day --url http://localhost:6333
    python -m tools.qdrant day.npz --collection day --path folder/      its engine in a folder

A point is a row of the file: its feature, and as payload path, row, camera (-1: the name tells none), time
(or null), modality, checkpoint and shows, the digest of what it shows. What is there already is not sent
again, so that a hand-over that was stopped goes on. Needs requirements-scale.txt; reads QDRANT_API_KEY where
the server wants a key.
"""
from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.types import FEATURES
from retrieval.gallery import Gallery, camera_of, read_gallery, time_of
from command_line import Parser, filled, number, run
from utils import UserError, as_user_error, one_line, warn

ATTEMPTS = 6  # of a request; the waits between them grow from one second to 16


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
    parser.add_argument("--timeout", type=number(1), default=60, metavar="SECONDS",
                        help="wait so long for an answer of a server")
    args = parser.parse_args(words)
    gallery = read_gallery(args.gallery)
    with as_user_error("qdrant_client does not load", "run: pip install -r requirements-scale.txt"):
        from qdrant_client import QdrantClient
    place = {"path": args.path}
    if args.url:
        place = {"url": args.url, "api_key": os.environ.get("QDRANT_API_KEY"), "timeout": args.timeout}
    with as_user_error(f"{args.url or args.path}: Qdrant does not answer as it should",
                       "see that it runs there, or give it a longer --timeout; the same command goes on"):
        client = QdrantClient(**place)
        sent = hand_over(client, args.collection, gallery, args.feature, args.batch)
        client.close()
    print(f"{args.collection}: {sent:,} points from {args.gallery}, {len(gallery) - sent:,} were there")


def hand_over(client: Any, collection: str, gallery: Gallery, feature: str = "bnneck",
              batch: int = 256) -> int:
    """Write the rows that a collection, created if it is not there, does not have; returns how many.

    The collection compares by dot product, the cosine similarity of our unit features. Raises `UserError`
    where it holds features of another length, kind or checkpoint.
    """
    from qdrant_client import models
    feats, keys = getattr(gallery, feature), point_keys(gallery, feature)
    if not insist(client.collection_exists, collection):
        params = models.VectorParams(size=feats.shape[1], distance=models.Distance.DOT)
        client.create_collection(collection, params)
    require_same(client, collection, gallery, feature)
    sent = 0
    for start in tqdm(range(0, len(gallery), batch), unit="request", leave=False, disable=None):
        rows = range(start, min(start + batch, len(gallery)))
        there = insist(client.retrieve, collection, [keys[row] for row in rows], with_payload=False)
        known = {str(found.id) for found in there}
        points = [point(gallery, feature, row, keys[row]) for row in rows if keys[row] not in known]
        if points:
            insist(client.upsert, collection, points, wait=True)
        sent += len(points)
    return sent


def insist(request: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The answer to a request, which is sent again, with a growing wait, where none comes."""
    for wait in [2 ** attempt for attempt in range(ATTEMPTS - 1)]:
        try:
            return request(*args, **options)
        except Exception as error:  # those of network and server have no class in common
            if isinstance(error, (TypeError, ValueError)) or getattr(error, "status_code", 500) < 500:
                raise  # it would be refused again
            warn(f"Qdrant: {type(error).__name__}: {one_line(error)[:100]}; trying again in {wait} s")
            time.sleep(wait)
    return request(*args, **options)


def require_same(client: Any, collection: str, gallery: Gallery, feature: str) -> None:
    """Raise `UserError` where the points of a collection cannot be compared with a gallery."""
    some, _ = insist(client.scroll, collection, limit=1, with_payload=True)
    found = [insist(client.get_collection, collection).config.params.vectors.size]
    found += [some[0].payload.get(name) for name in ("checkpoint", "feature")] if some else []
    expected = [gallery.bnneck.shape[1], gallery.record.checkpoint, feature][:len(found)]
    if found != expected:
        raise UserError(f"--collection {collection}: {found} found, {expected} (length of a feature, "
                        "checkpoint, kind) expected; choose another collection")


def point_keys(gallery: Gallery, feature: str) -> list[str]:
    """The numbers of the points of all rows, which follow from where the images lie and what they show."""
    made = f"{gallery.record.checkpoint}/{feature}/{gallery.record.modality}"
    return [str(uuid.uuid5(uuid.NAMESPACE_URL, as_text(f"{made}/{key}{digest and '/' + digest}")))
            for key, digest in zip(gallery.keys(), gallery.digests())]


def point(gallery: Gallery, feature: str, row: int, key: str) -> Any:
    """The point of a row."""
    from qdrant_client import models
    path, record = str(gallery.paths[row]), gallery.record
    payload = {"path": as_text(path), "row": row, "camera": camera_of(path), "time": time_of(path),
               "modality": record.modality, "checkpoint": record.checkpoint, "feature": feature,
               "shows": str(gallery.shows[row]) if len(gallery.shows) else ""}
    vector = np.asarray(getattr(gallery, feature)[row], np.float32).tolist()
    return models.PointStruct(id=key, vector=vector, payload=payload)


def as_text(name: str) -> str:
    """A name as Unicode can hold it: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    run(main)

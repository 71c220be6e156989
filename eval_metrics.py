"""Retrieval metrics: CMC, mAP and mINP of what each query sees, and k-reciprocal re-ranking.

Distances are (Q, G), smaller is closer; every result is a fraction.
"""
from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from datasets.exclusion import llcm_seen, sysu_seen

# Queries are ranked in blocks that fit the cache, several at once: NumPy sorts without the interpreter lock.
BLOCK_BYTES = 1 << 19
THREADS = min(4, os.cpu_count() or 1)


# ---------------------------------------------------------------------------------------------------- metrics
def distance_matrix(query_feats: np.ndarray, gallery_feats: np.ndarray) -> np.ndarray:
    """Cosine distances 1 - q · g of L2-normalised features, half of their squared Euclidean distances.

    query_feats (Q, D), gallery_feats (G, D) -> (Q, G) float32 from 0 to 2; rounding below 0 is cut. Raises
    ValueError for wrong shapes, and for NaN or infinite features.
    """
    query_feats, gallery_feats = _check_feats(query_feats, gallery_feats)
    dist_mat = query_feats @ gallery_feats.T
    np.subtract(1, dist_mat, out=dist_mat)
    return np.maximum(dist_mat, 0, out=dist_mat)


def modality_gap(visible: np.ndarray, infrared: np.ndarray) -> dict[str, float]:
    """How far apart L2-normalised features (N, D) and (M, D) of the two modalities lie.

    centroids: Euclidean distance of their means; visible, infrared, across: mean cosine distance of the pairs
    within and across modalities, an image not with itself (0 for a single image).
    """
    means = [side.mean(0, dtype=np.float64) for side in (visible, infrared)]
    within = [float(1 - (count * mean @ mean - 1) / (count - 1)) if count > 1 else 0.0
              for mean, count in zip(means, (len(visible), len(infrared)))]  # an image by itself is 1
    return {"centroids": float(np.linalg.norm(means[0] - means[1])), "visible": within[0],
            "infrared": within[1], "across": float(1 - means[0] @ means[1])}


def eval_sysu(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, q_camids: ArrayLike,
              g_camids: ArrayLike, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """SYSU-MM01's scores: queries of camera 3 do not see camera 2 (one room), CMC counts each person once.

    Arguments, results and errors are those of `evaluate`; q_camids (Q,), g_camids (G,): integers. Protocol:
    Wu et al., ICCV 2017.
    """
    cameras = _check_ids("q_camids", q_camids, len(q_pids)), _check_ids("g_camids", g_camids, len(g_pids))
    return evaluate(distmat, q_pids, g_pids, sysu_seen(*cameras), count_persons=True, max_rank=max_rank)


def eval_regdb(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike,
               max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """RegDB's scores: nothing is excluded, CMC counts images; else as `evaluate`."""
    return evaluate(distmat, q_pids, g_pids, max_rank=max_rank)


def eval_llcm(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, q_camids: ArrayLike,
              g_camids: ArrayLike, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """LLCM's scores: no query sees its own person by its own camera, CMC counts each person once.

    Arguments, results and errors are those of `eval_sysu`. Protocol: Zhang and Wang, CVPR 2023.
    """
    ids = {"q_pids": q_pids, "g_pids": g_pids, "q_camids": q_camids, "g_camids": g_camids}
    seen = llcm_seen(*(_check_ids(name, values, len(ids[f"{name[0]}_pids"])) for name, values in ids.items()))
    return evaluate(distmat, q_pids, g_pids, seen, count_persons=True, max_rank=max_rank)


def evaluate(dist_mat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, seen: ArrayLike | None = None, *,
             count_persons: bool = False, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """CMC curve, mAP and mINP of a ranking.

    dist_mat: (Q, G) finite real numbers; equal distances rank in gallery order.
    q_pids (Q,), g_pids (G,): integers.
    seen: (Q, G) bool, which gallery images exist to each query (see `Search.seen`); all where it is left out.
    count_persons: CMC ranks the persons of the gallery, each where it first appears, rather than the images.

    Returns cmc (max_rank,) float64 with Rank-k in cmc[k - 1], mAP and mINP. A query whose n matches are at
    the image ranks r_1 < ... < r_n has AP = mean(i / r_i) and INP = n / r_n (Ye et al., TPAMI 2021), whatever
    CMC counts. Queries without a match are left out of the means. After the last rank of a short gallery the
    curve keeps its value. Raises ValueError for wrong shapes, for NaN or infinite distances, and if no query
    has a match.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank: found {max_rank}, expected at least 1")
    return rank_queries(dist_mat, q_pids, g_pids, seen, count_persons=count_persons).summary(max_rank)


@dataclass(frozen=True)
class Ranking:
    """What each query found: ap (Q,), inp (Q,), and first (Q,), the rank of its first match, 0: none."""

    ap: np.ndarray
    inp: np.ndarray
    first: np.ndarray

    def summary(self, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
        """CMC (max_rank,), mAP and mINP over the queries with a match, as `evaluate` returns them."""
        n_valid = np.count_nonzero(self.first)
        hits = np.bincount(np.minimum(self.first, max_rank + 1), minlength=max_rank + 2)[1:-1]
        return hits.cumsum() / n_valid, float(self.ap.sum() / n_valid), float(self.inp.sum() / n_valid)


def rank_queries(dist_mat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, seen: ArrayLike | None = None, *,
                 count_persons: bool = False) -> Ranking:
    """AP, INP and first rank of each query; arguments and errors are those of `evaluate`."""
    dist_mat, q_pids, g_pids, seen = _check_ranking(dist_mat, q_pids, g_pids, seen)
    persons = _images_of_each(g_pids) if count_persons else None
    step = max(1, BLOCK_BYTES // (4 * len(g_pids)))
    blocks = [slice(start, start + step) for start in range(0, len(q_pids), step)]

    def rank_block(rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shown = None if seen is None else seen[rows]
        return _rank_rows(dist_mat[rows], q_pids[rows, None] == g_pids, shown, persons)

    with ThreadPoolExecutor(min(THREADS, len(blocks))) as pool:
        ranking = Ranking(*map(np.concatenate, zip(*pool.map(rank_block, blocks))))
    if not ranking.first.any():
        raise ValueError(f"q_pids: found no query with a match among the {len(g_pids)} gallery images it "
                         "sees, expected at least one")
    return ranking


def _images_of_each(pids: np.ndarray) -> np.ndarray:
    """The images (R, P) of each of P persons, who have at most R; the first one again where one has fewer."""
    order = np.argsort(pids, kind="stable")
    _, starts, counts = np.unique(pids[order], return_index=True, return_counts=True)
    nth = np.arange(counts.max())[:, None]
    return order[starts + np.where(nth < counts, nth, 0)]


def _rank_rows(dist: np.ndarray, match: np.ndarray, shown: np.ndarray | None,
               persons: np.ndarray | None,
               distinct: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP, INP and first rank (n,) of n queries, by one sort of each row.

    Distances become integers whose lowest bit marks a match, so that the marked places of a sorted row are
    the ranks of its matches. Where a match and another image are equally far, gallery order has to decide:
    such rows are ranked again with `distinct` integers.
    dist, match, shown: (n, G), shown None: all images; persons: see `_images_of_each`, None: CMC counts
    images.
    """
    keys = _sort_keys(dist, distinct)
    if shown is not None:
        np.copyto(keys, np.iinfo(keys.dtype).max - 1, where=~shown)
        match = match & shown
    keys |= match
    if persons is not None:  # the least key of each person's images, (n, P)
        nearest = functools.reduce(np.minimum, (keys[:, images] for images in persons))
    keys.sort(axis=1)
    marked = np.flatnonzero((keys.astype(np.uint8) & 1).view(bool))
    queries, ranks = marked // keys.shape[1], marked % keys.shape[1] + 1
    found, heads, counts = np.unique(queries, return_index=True, return_counts=True)
    ap, inp, first = np.zeros(len(keys)), np.zeros(len(keys)), np.zeros(len(keys), np.intp)
    nth = np.arange(1, len(ranks) + 1) - np.repeat(heads, counts)
    ap[found] = np.bincount(queries, nth / ranks, len(keys))[found] / counts
    inp[found] = counts / ranks[heads + counts - 1]
    flat = keys.reshape(-1)
    first[found] = (ranks[heads] if persons is None
                    else (nearest[found] < flat[marked[heads], None]).sum(axis=1) + 1)
    tied = np.unique(queries[(ranks > 1) & (flat[marked - 1] == flat[marked] - 1)])
    if len(tied):
        again = _rank_rows(dist[tied], match[tied], None if shown is None else shown[tied], persons, True)
        ap[tied], inp[tied], first[tied] = again
    return ap, inp, first


def _sort_keys(dist: np.ndarray, distinct: bool) -> np.ndarray:
    """Even integers (n, G) in the order of each row's distances; distinct: none of a row are equal.

    The bits of a number that is not negative sort like the number; the shift drops the sign of -0. Those of
    negative ones sort the other way, and need a bit more. Whatever is not float32 becomes its place in the
    row's stable argsort, which takes longer.
    """
    columns = np.arange(0, 2 * dist.shape[1], 2)
    if dist.dtype != np.float32:
        keys = np.empty(dist.shape, np.int64)
        np.put_along_axis(keys, np.argsort(dist, axis=1, kind="stable"), columns[None], axis=1)
        return keys
    if not distinct and dist.min() >= 0:
        return np.ascontiguousarray(dist).view(np.uint32) << 1
    bits = (dist + np.float32(0)).view(np.int32)  # + 0 makes 0 of -0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits.astype(np.int64) << 32 | columns


# ------------------------------------------------------------------------------------------------- re-ranking
def k_reciprocal_distance(query_feats: np.ndarray, gallery_feats: np.ndarray, k1: int = 20, k2: int = 6,
                          lam: float = 0.3) -> np.ndarray:
    """Distances after k-reciprocal re-ranking (Zhong et al., CVPR 2017).

    query_feats (Q, D), gallery_feats (G, D) -> (Q, G) float32, smaller is closer. All N = Q + G images are
    compared, so a pair's distance depends on the whole search; memory grows as 4 N² bytes.

    R(p, k) is the set of images among the k nearest of p that have p among their k nearest. R(p, k1) takes in
    the R(q, k1 / 2) of each of its q that lies in it by at least 2/3. Members weigh exp(-d), scaled to the
    sum 1; the weights of an image are averaged over its k2 nearest. d_J = 1 - Σ min / Σ max of the weights
    of two images; the result is lam d + (1 - lam) d_J.

    Where the paper leaves it open, this follows the authors' code: d is the squared Euclidean distance
    divided by the image's largest; an image is the nearest of itself, and k others follow; k1 / 2 rounds to
    even at .5. That code asks for more than 2/3; here, as in the paper, 2/3 is enough. Equal distances rank
    queries first, each set in its order.

    Raises ValueError for wrong shapes or arguments, and for NaN or infinite features.
    """
    query_feats, gallery_feats = _check_feats(query_feats, gallery_feats)
    if k1 < 1 or k2 < 1 or not 0 <= lam <= 1:
        raise ValueError(f"k1, k2, lam: found {k1}, {k2}, {lam}, expected k1 and k2 of at least 1 and "
                         "lam from 0 to 1")
    n_queries = len(query_feats)
    dist = _relative_distances(np.concatenate((query_feats, gallery_feats)))
    nearest = _nearest(dist, max(k1 + 1, k2))
    neighbours = [_rows_of_ones(nearest[:, :k + 1]) for k in (k1, int(np.around(k1 / 2)))]
    weights = _weights(dist, *(matrix.multiply(matrix.T).tocsr() for matrix in neighbours))
    if k2 > 1:
        weights = _rows_of_ones(nearest[:, :k2]) @ weights / min(k2, len(dist))
    result = _jaccard_distance(weights[:n_queries], weights[n_queries:])
    result *= 1 - lam
    result += lam * dist[:n_queries, n_queries:]
    return result


def _relative_distances(feats: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, N) float32 of the rows, each row divided by its largest."""
    squares = np.einsum("nd,nd->n", feats, feats)
    dist = feats @ feats.T
    dist *= -2
    dist += squares
    dist += squares[:, None]
    np.maximum(dist, 0, out=dist)
    np.fill_diagonal(dist, 0)
    largest = dist.max(axis=1, keepdims=True)
    dist /= np.where(largest > 0, largest, 1)
    return dist


def _nearest(dist: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of each image (N, k), itself first, equally near ones in order."""
    n, k = len(dist), min(k, len(dist))
    nearest = np.empty((n, k), np.int32)
    step = max(1, BLOCK_BYTES // n)
    for start in range(0, n, step):
        keys = dist[start:start + step].view(np.int32).astype(np.int64) << 32  # bits sort like their numbers
        keys |= np.arange(n)
        keys[np.arange(len(keys)), np.arange(start, start + len(keys))] -= 1 << 62
        nearest[start:start + step] = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1) & 0xFFFFFFFF
    return nearest


def _rows_of_ones(columns: np.ndarray) -> sp.csr_array:
    """The sparse (N, N) float32 matrix with ones at the given columns (N, k) of each row."""
    n, k = columns.shape
    return sp.csr_array((np.ones(n * k, np.float32), columns.ravel(), np.arange(0, n * k + 1, k)),
                        shape=(n, n))


def _weights(dist: np.ndarray, reciprocal: sp.csr_array, half: sp.csr_array) -> sp.csr_array:
    """Weights (N, N) of the expanded sets, each row of sum 1; R(p, k1) and R(p, k1 / 2) are rows of ones."""
    overlap = (reciprocal @ half.T).multiply(reciprocal).tocsr()
    overlap.data = (3 * overlap.data >= 2 * np.diff(half.indptr)[overlap.indices]).astype(np.float32)
    weights = (reciprocal + overlap @ half).tocsr()
    weights.eliminate_zeros()
    rows = np.repeat(np.arange(len(dist)), np.diff(weights.indptr))
    weights.data = np.exp(-dist[rows, weights.indices])
    weights.data /= np.add.reduceat(weights.data, weights.indptr[:-1])[rows]  # none is empty: p is in R(p, k)
    return weights


def _jaccard_distance(query: sp.csr_array, gallery: sp.csr_array) -> np.ndarray:
    """1 - Σ min / Σ max (Q, G) float32 of the rows of two sparse matrices whose rows sum to 1.

    Each weight of a query meets the gallery images with a weight in the same column: one list for a block of
    queries.
    """
    n_queries, n_gallery = query.shape[0], gallery.shape[0]
    images = gallery.tocsc()  # the gallery images of each column
    counts = np.diff(images.indptr)[query.indices]
    work = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))[query.indptr]
    work += np.arange(n_queries + 1) * n_gallery
    result = np.empty((n_queries, n_gallery), np.float32)
    start = 0
    while start < n_queries:
        stop = max(start + 1, np.searchsorted(work, work[start] + BLOCK_BYTES, "right") - 1)
        first, last = query.indptr[start], query.indptr[stop]
        met = counts[first:last]
        offset = images.indptr[query.indices[first:last]] - np.cumsum(met) + met
        entry = np.repeat(offset, met) + np.arange(met.sum())
        row = np.repeat(np.arange(stop - start), np.diff(query.indptr[start:stop + 1]))
        cell = np.repeat(row * n_gallery, met) + images.indices[entry]
        smaller = np.minimum(np.repeat(query.data[first:last], met), images.data[entry])
        shared = np.bincount(cell, smaller, (stop - start) * n_gallery).reshape(-1, n_gallery)
        result[start:stop] = 1 - shared / (2 - shared)
        start = stop
    return result


# ----------------------------------------------------------------------------------------- arguments checked
def _check_ranking(dist_mat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike,
                   seen: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The arguments of `evaluate` as arrays; raises ValueError where they do not fit."""
    dist_mat = np.asarray(dist_mat)
    if dist_mat.ndim != 2 or 0 in dist_mat.shape:
        raise ValueError(f"dist_mat: found shape {dist_mat.shape}, expected (queries, gallery images), "
                         "at least (1, 1)")
    if dist_mat.dtype.kind not in "fiub":
        raise ValueError(f"dist_mat: found dtype {dist_mat.dtype}, expected real numbers")
    finite = np.isfinite(dist_mat)
    if not finite.all():
        row, column = np.unravel_index(finite.argmin(), finite.shape)
        n_nan, n_bad = np.count_nonzero(np.isnan(dist_mat)), np.count_nonzero(~finite)
        raise ValueError(f"dist_mat: found {n_nan} NaN and {n_bad - n_nan} infinite distances, the first in "
                         f"row {row}, column {column}; expected finite numbers")
    if seen is not None:
        seen = np.ascontiguousarray(seen)
        if seen.shape != dist_mat.shape or seen.dtype != bool:
            raise ValueError(f"seen: found {seen.dtype} of shape {seen.shape}, expected bool of shape "
                             f"{dist_mat.shape}")
    pids = _check_ids("q_pids", q_pids, len(dist_mat)), _check_ids("g_pids", g_pids, dist_mat.shape[1])
    return dist_mat, *pids, seen


def _check_ids(name: str, ids: ArrayLike, length: int) -> np.ndarray:
    """Identity or camera numbers as (length,) int64; raises ValueError for another shape or type."""
    ids = np.asarray(ids)
    if ids.shape != (length,):
        line = "row" if name.startswith("q") else "column"
        raise ValueError(f"{name}: found shape {ids.shape}, expected ({length},), "
                         f"one for each {line} of dist_mat")
    if ids.dtype.kind not in "iub":
        raise ValueError(f"{name}: found dtype {ids.dtype}, expected integers")
    return ids.astype(np.int64)


def _check_feats(query_feats: np.ndarray, gallery_feats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both features as float32; raises ValueError for wrong shapes, and for NaN or infinite numbers."""
    query_feats, gallery_feats = np.asarray(query_feats, np.float32), np.asarray(gallery_feats, np.float32)
    if (query_feats.ndim != 2 or gallery_feats.ndim != 2 or query_feats.shape[1] != gallery_feats.shape[1]
            or 0 in query_feats.shape + gallery_feats.shape):
        raise ValueError(f"query_feats, gallery_feats: found shapes {query_feats.shape} and "
                         f"{gallery_feats.shape}, expected (Q, D) and (G, D), at least (1, 1)")
    for name, feats in (("query_feats", query_feats), ("gallery_feats", gallery_feats)):
        if not np.isfinite(feats).all():
            n_bad = np.count_nonzero(~np.isfinite(feats).all(axis=1))
            raise ValueError(f"{name}: found NaN or infinite numbers in {n_bad} of {len(feats)} rows, "
                             "expected none")
    return query_feats, gallery_feats

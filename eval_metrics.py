"""Retrieval metrics: CMC, mAP and mINP of what each query sees, and k-reciprocal re-ranking.

Distances are (Q, G), smaller is closer; every result is a fraction.
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from datasets.exclusion import llcm_seen, sysu_seen

# Queries are ranked in blocks, small enough for the cache, large enough to hide NumPy's overhead, and several
# at once: NumPy sorts and compares without the interpreter lock.
BLOCK_BYTES = 1 << 20
THREADS = min(4, os.cpu_count() or 1)
FEW = 8  # matches of a query that are ranked by counting, more by sorting
SMALL = 1 << 22  # a matrix with fewer distances is ranked by one thread: others would cost what they save


# ---------------------------------------------------------------------------------------------------- metrics
def distance_matrix(query_feats: np.ndarray, gallery_feats: np.ndarray) -> np.ndarray:
    """Cosine distances 1 - q · g of L2-normalised features, half of their squared Euclidean distances.

    query_feats (Q, D), gallery_feats (G, D) -> (Q, G) float32 from 0 to 2, smaller is closer; rounding below
    0 is cut.

    Raises ValueError for wrong shapes, and for NaN or infinite features.
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
    first, second = (side.mean(0, dtype=np.float64) for side in (visible, infrared))

    def within(mean: np.ndarray, count: int) -> float:  # N products are of an image with itself, 1 each
        return float(1 - (count * mean @ mean - 1) / (count - 1)) if count > 1 else 0.0

    return {"centroids": float(np.linalg.norm(first - second)), "visible": within(first, len(visible)),
            "infrared": within(second, len(infrared)), "across": float(1 - first @ second)}


def eval_sysu(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, q_camids: ArrayLike,
              g_camids: ArrayLike, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """SYSU-MM01's scores: queries of camera 3 do not see camera 2 (one room), CMC counts each person once.

    Arguments, results and errors are those of `evaluate`; q_camids (Q,), g_camids (G,): integers. The
    protocol is that of Wu et al., ICCV 2017.
    """
    cameras = _check_ids("q_camids", q_camids, len(q_pids)), _check_ids("g_camids", g_camids, len(g_pids))
    return evaluate(distmat, q_pids, g_pids, sysu_seen(*cameras), count_persons=True, max_rank=max_rank)


def eval_regdb(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike,
               max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """RegDB's scores: nothing is excluded, CMC counts images.

    Arguments, results and errors are those of `evaluate`.
    """
    return evaluate(distmat, q_pids, g_pids, max_rank=max_rank)


def eval_llcm(distmat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, q_camids: ArrayLike,
              g_camids: ArrayLike, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """LLCM's scores: no query sees its own person by its own camera, CMC counts each person once.

    Arguments, results and errors are those of `eval_sysu`. The protocol is that of Zhang and Wang, CVPR 2023.
    """
    n_queries, n_gallery = len(q_pids), len(g_pids)
    seen = llcm_seen(_check_ids("q_pids", q_pids, n_queries), _check_ids("g_pids", g_pids, n_gallery),
                     _check_ids("q_camids", q_camids, n_queries), _check_ids("g_camids", g_camids, n_gallery))
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
    curve keeps its value.

    Raises ValueError for wrong shapes, for NaN or infinite distances, and if no query has a match.
    """
    ranking = rank_queries(dist_mat, q_pids, g_pids, seen, count_persons=count_persons, max_rank=max_rank)
    return ranking.summary(max_rank)


class Ranking(NamedTuple):
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
                 count_persons: bool = False, max_rank: int = 20) -> Ranking:
    """AP, INP and first rank of each query; arguments and errors are those of `evaluate`.

    First ranks are exact up to max_rank; a later one is some rank after it.
    """
    dist_mat, q_pids, g_pids, seen = _check_ranking(dist_mat, q_pids, g_pids, seen, max_rank)
    threads = THREADS if dist_mat.size >= SMALL else 1
    block_size = min(BLOCK_BYTES, dist_mat.nbytes // (4 * threads)) // (4 * len(g_pids))
    q_persons, gallery = _by_persons(q_pids, g_pids)
    jobs = list(_jobs(q_persons, gallery, seen, max(block_size, 1)))
    if not any(job.matches.size for job in jobs):
        raise ValueError(f"q_pids: found no query with a match among the {len(g_pids)} gallery images it "
                         "sees, expected at least one")
    ap, inp = np.zeros((2, len(q_pids)))
    first = np.zeros(len(q_pids), np.intp)  # rank of the first match, 0 without a match

    def score(job: _Job) -> None:
        block = np.ascontiguousarray(dist_mat[job.queries])
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise _not_finite(dist_mat)
        n_matches = len(job.matches)
        if n_matches:
            hidden = None if seen is None else ~seen[job.queries]
            rank = _rank_by_counting if n_matches <= FEW else _rank_by_sorting
            ranks, first[job.queries] = rank(block, hidden, job, gallery, max_rank if count_persons else 0)
            ap[job.queries] = (np.arange(1, n_matches + 1)[:, None] / ranks).mean(axis=0)
            inp[job.queries] = n_matches / ranks[-1]

    _share(score, jobs, threads)
    return Ranking(ap, inp, first)


def _share(work: Callable[[_Job], None], jobs: list[_Job], threads: int) -> None:
    """Work on all jobs: this thread and threads - 1 others take the next one until none is left."""
    todo = deque(jobs)

    def take() -> None:
        while todo:
            try:
                job = todo.popleft()
            except IndexError:  # another thread was faster
                return
            work(job)

    if threads == 1:
        return take()
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(take) for _ in range(threads - 1)]
        take()
    for other in others:
        other.result()


class _Gallery(NamedTuple):
    """The G gallery images by the P persons that they show."""

    persons: np.ndarray  # (G,) index from 0
    counts: np.ndarray  # (P,) images of each person
    grouped: np.ndarray  # (G,) images, those of one person after another
    rounds: tuple[np.ndarray, np.ndarray]  # see `_in_rounds`


class _Job(NamedTuple):
    """Queries to rank together: they have equally many matches."""

    queries: np.ndarray  # (n,) rows of the matrix
    matches: np.ndarray  # (m, n) images of the gallery, each query's in gallery order


def _by_persons(q_pids: np.ndarray, g_pids: np.ndarray) -> tuple[np.ndarray, _Gallery]:
    """The person (Q,) of each query, and the gallery by persons, some of whom may have no image in it."""
    _, everyone = np.unique(np.concatenate((q_pids, g_pids)), return_inverse=True)
    q_persons, persons = everyone[:len(q_pids)], everyone[len(q_pids):]
    counts, grouped = np.bincount(persons, minlength=everyone.max() + 1), np.argsort(persons, kind="stable")
    return q_persons, _Gallery(persons, counts, grouped, _in_rounds(persons, counts, grouped))


def _jobs(q_persons: np.ndarray, gallery: _Gallery, seen: np.ndarray | None, size: int) -> Iterator[_Job]:
    """Split all queries by their number of matches, and into blocks of at most `size`."""
    n_matches, ends = gallery.counts[q_persons], gallery.counts.cumsum()[q_persons]
    queries = np.repeat(np.arange(len(q_persons)), n_matches)  # each as often as it has matches
    images = gallery.grouped[np.arange(len(queries)) + np.repeat(ends - n_matches.cumsum(), n_matches)]
    if seen is not None:
        exists = seen.reshape(-1).take(queries * seen.shape[1] + images)
        images, n_matches = images[exists], np.bincount(queries[exists], minlength=len(q_persons))
    starts = n_matches.cumsum() - n_matches
    order = np.argsort(n_matches * len(gallery.counts) + q_persons)  # neighbours' matches are close together
    for chosen in np.split(order, np.flatnonzero(np.diff(n_matches[order])) + 1):
        nth = np.arange(n_matches[chosen[0]])[:, None]
        step = -(-len(chosen) // -(-len(chosen) // size))  # blocks of about the same size
        for start in range(0, len(chosen), step):
            block = chosen[start:start + step]
            yield _Job(block, images[starts[block] + nth])


def _in_rounds(persons: np.ndarray, counts: np.ndarray, grouped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (G,) in rounds, the first of each person, the second of each, and so on; the rounds' ends.

    The persons with the most images come first, so that a person has the same place in each round.
    """
    place = np.empty_like(counts)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    nth = np.arange(len(grouped)) - np.repeat(np.cumsum(counts) - counts, counts)
    return grouped[np.lexsort((place[persons[grouped]], nth))], np.cumsum(np.bincount(nth))


def _rank_by_counting(block: np.ndarray, hidden: np.ndarray | None, job: _Job, gallery: _Gallery,
                      max_persons: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (m, n) of the matches among all images, ascending, and (n,) of the first match as CMC counts it.

    A match's rank is one more than the number of images ahead of it: of the images before all matches of the
    block's queries, those as near or nearer; of the images after them, the nearer ones; between, gallery
    order breaks the ties.
    hidden: (n, G) bool, which images do not exist to each query; None: all do.
    max_persons: 0 if CMC counts images, otherwise the persons that are worth counting.
    """
    if hidden is not None:
        block = block if block.dtype in (np.float32, np.float64) else _places(block)
        bits = block.view(f"i{block.itemsize}")
        np.bitwise_or(bits, -hidden.view(np.int8), out=bits)  # NaN, or the largest integer: never ahead
    table = np.ascontiguousarray(block.T)  # (G, n): the passes below run along the queries
    queries = np.arange(table.shape[1])
    own = table.reshape(-1).take(job.matches * table.shape[1] + queries)  # (m, n) distances of the matches
    near = np.sort(own, axis=0)
    low, high = job.matches.min(), job.matches.max() + 1
    ahead = np.empty(table.shape, bool)
    ranks = np.empty(near.shape, np.intp)
    for i in range(len(near)):
        np.less_equal(table[:low], near[i], out=ahead[:low])
        np.less(table[low:], near[i], out=ahead[low:])
        equal = table[low:high] == near[i]
        if np.count_nonzero(equal) > len(queries):  # other images beside the matches themselves
            order = np.argsort(own, axis=0, kind="stable")
            ahead[low:high] |= equal & (np.arange(low, high)[:, None] < job.matches[order[i], queries])
        ranks[i] = 1 + _count(ahead)
        if i == 0:
            first = 1 + _count(_persons(ahead, gallery.rounds)) if max_persons else ranks[0]
    return ranks, first


def _count(chosen: np.ndarray) -> np.ndarray:
    """Sums (n,) of a (k, n) bool matrix, added as bytes 255 rows at a time."""
    return sum(np.add.reduce(chosen[i:i + 255].view(np.uint8), axis=0, dtype=np.uint8).astype(np.intp)
               for i in range(0, len(chosen), 255))


def _persons(chosen: np.ndarray, rounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which persons (P, n) the chosen images (G, n) show."""
    order, ends = rounds
    chosen = chosen[order]
    for start, stop in zip(ends[:-1], ends[1:]):
        chosen[:stop - start] |= chosen[start:stop]
    return chosen[:ends[0]]


def _rank_by_sorting(block: np.ndarray, hidden: np.ndarray | None, job: _Job, gallery: _Gallery,
                     max_persons: int, distinct: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """As `_rank_by_counting`, in a time that does not depend on the number of matches.

    One sort without indices: the distances of a row become integers whose lowest bit marks a match, so that
    the marked places of the sorted row are the ranks. Where an impostor is exactly as far as a match, the
    gallery order has to decide: such rows are ranked again with `distinct` codes.
    """
    codes = _codes(block, distinct)
    if hidden is not None:
        bits = codes.view(f"i{codes.itemsize}")
        np.bitwise_or(bits, hidden.view(np.int8) * np.int8(-2), out=bits)  # the largest even code
    n, size = codes.shape
    rows = np.arange(0, n * size, size)
    flat = codes.reshape(-1)
    marked = flat[rows + job.matches] | 1
    flat[rows + job.matches] = marked
    ahead = codes < marked.min(axis=0)[:, None] if max_persons else None
    codes.sort(axis=1)
    marks = codes.astype(np.uint8)  # the lowest byte
    marks &= 1
    places = np.flatnonzero(marks.view(bool)).reshape(n, -1).T
    tied = ((flat[places] - 1 == flat[places - 1]) & (places > rows)).any(axis=0)
    ranks = places - rows + 1
    first = ranks[0] if ahead is None else 1 + _persons_ahead(ahead, ranks[0] - 1, gallery, max_persons)
    if tied.any():
        again = _Job(job.queries[tied], job.matches[:, tied])
        hidden = None if hidden is None else hidden[tied]
        ranks[:, tied], first[tied] = _rank_by_sorting(block[tied], hidden, again, gallery, max_persons,
                                                       distinct=True)
    return ranks, first


def _codes(block: np.ndarray, distinct: bool) -> np.ndarray:
    """Even unsigned integers (n, G) in the order of each row's distances; distinct: equal ones by column.

    The bits of a non-negative IEEE number, read as an integer, sort like the number.
    """
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    if block.dtype not in (np.float32, np.float64) or (distinct and block.dtype == np.float64):
        return _places(block)
    bits = block.view(f"i{block.itemsize}")
    if bits.min() < 0:
        top = np.iinfo(bits.dtype).max
        bits = (block + 0.0).view(bits.dtype)  # + 0.0 makes 0.0 of -0.0
        bits ^= (bits >> (8 * block.itemsize - 1)) & bits.dtype.type(top)  # below 0: the larger, the smaller
        low = int(bits.min())
        if int(bits.max()) - low > top:  # no bit to spare
            return _places(bits)
        bits -= bits.dtype.type(low)
    codes = bits.view(f"u{block.itemsize}") << 1
    if distinct:
        codes = codes.astype(np.uint64) << 32 | np.arange(0, 2 * codes.shape[1], 2, dtype=np.uint64)
    return codes


def _places(block: np.ndarray) -> np.ndarray:
    """Distinct codes (n, G) of any numbers, slower: twice the place in the row's stable argsort."""
    order = np.argsort(block, axis=1, kind="stable")
    codes = np.empty(block.shape, np.uint32)
    np.put_along_axis(codes, order, np.arange(0, 2 * block.shape[1], 2, dtype=np.uint32)[None], axis=1)
    return codes


def _persons_ahead(ahead: np.ndarray, n_ahead: np.ndarray, gallery: _Gallery, max_persons: int) -> np.ndarray:
    """How many persons (n,) the n_ahead (n,) images `ahead` (n, G) show; numbers over max_persons are cut."""
    n_persons = np.minimum(n_ahead, max_persons)
    chosen = np.flatnonzero((n_ahead > 1) & (n_ahead < max_persons * gallery.counts.max()))
    rows = np.repeat(np.arange(len(chosen)), n_ahead[chosen])
    images = np.flatnonzero(ahead if len(chosen) == len(ahead) else ahead[chosen]) - rows * ahead.shape[1]
    seen = np.zeros((len(chosen), len(gallery.counts)), bool)
    seen.reshape(-1)[gallery.persons[images] + rows * len(gallery.counts)] = True
    n_persons[chosen] = seen.sum(axis=1)
    return n_persons


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
    half = int(np.around(k1 / 2))
    nearest = _nearest(dist, max(k1 + 1, k2))
    weights = _weights(dist, _reciprocal(nearest[:, :k1 + 1]), _reciprocal(nearest[:, :half + 1]))
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


def _reciprocal(nearest: np.ndarray) -> sp.csr_array:
    """R(p, k) as the rows of a sparse (N, N) matrix of ones."""
    matrix = _rows_of_ones(nearest)
    return matrix.multiply(matrix.T).tocsr()


def _weights(dist: np.ndarray, reciprocal: sp.csr_array, half: sp.csr_array) -> sp.csr_array:
    """Weights (N, N) of the expanded reciprocal sets, each row of sum 1."""
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


def _check_ranking(dist_mat: ArrayLike, q_pids: ArrayLike, g_pids: ArrayLike, seen: ArrayLike | None,
                   max_rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    dist_mat = np.asarray(dist_mat)
    if dist_mat.ndim != 2 or 0 in dist_mat.shape:
        raise ValueError(f"dist_mat: found shape {dist_mat.shape}, expected (queries, gallery images), "
                         "at least (1, 1)")
    if dist_mat.dtype.kind not in "fiub":
        raise ValueError(f"dist_mat: found dtype {dist_mat.dtype}, expected real numbers")
    if max_rank < 1:
        raise ValueError(f"max_rank: found {max_rank}, expected at least 1")
    if seen is not None:
        seen = np.ascontiguousarray(seen)
        if seen.shape != dist_mat.shape or seen.dtype != bool:
            raise ValueError(f"seen: found {seen.dtype} of shape {seen.shape}, expected bool of shape "
                             f"{dist_mat.shape}")
    n_queries, n_gallery = dist_mat.shape
    return dist_mat, _check_ids("q_pids", q_pids, n_queries), _check_ids("g_pids", g_pids, n_gallery), seen


def _check_ids(name: str, ids: ArrayLike, length: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.shape != (length,):
        line = "row" if name.startswith("q") else "column"
        raise ValueError(f"{name}: found shape {ids.shape}, expected ({length},), "
                         f"one for each {line} of dist_mat")
    if ids.dtype.kind not in "iub":
        raise ValueError(f"{name}: found dtype {ids.dtype}, expected integers")
    return ids.astype(np.int64)


def _not_finite(dist_mat: np.ndarray) -> ValueError:
    bad = ~np.isfinite(dist_mat)
    row, column = np.unravel_index(bad.argmax(), bad.shape)
    n_nan, n_bad = np.count_nonzero(np.isnan(dist_mat)), np.count_nonzero(bad)
    return ValueError(f"dist_mat: found {n_nan} NaN and {n_bad - n_nan} infinite distances, the first in "
                      f"row {row}, column {column}; expected finite numbers")


def _check_feats(query_feats: np.ndarray, gallery_feats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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

"""The figures of a test: what they show, on galleries large and small."""
import numpy as np
import pytest
from PIL import Image

import figures
from datasets.sysu import SysuSearch
from datasets.types import Images, ImageSpec
from eval_metrics import distance_matrix
from results import FEATURES, Model, Protocol, Record, Scores, Trial
from utils import UserError

NAMES = ["cmc.png", "distances.png", "ranking.png"]


def make_search(root, q_pids, g_pids, q_camids=None, g_camids=None, width=8, seed=0):
    """A search on images of one colour a person, and distances of features: a direction each, and noise."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((max(*q_pids, *g_pids) + 1, width))
    sides, found = [], []
    for modality, pids, camids, camera in (("infrared", q_pids, q_camids, 3),
                                           ("visible", g_pids, g_camids, 1)):
        paths = [root / f"{modality} {number} é.png" for number in range(len(pids))]
        for path, pid in zip(paths, pids):
            Image.new("RGB", (20,
                              40), tuple(np.random.default_rng(pid).integers(0, 255, 3).tolist())).save(path)
        feats = directions[pids] + 0.8 * rng.standard_normal((len(pids), width))
        feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
        camids = np.full(len(pids), camera) if camids is None else np.array(camids)
        sides.append(Images(tuple(map(str, paths)), np.array(pids), camids, modality))
        found.append(feats)
    search = SysuSearch(*sides, 0, "SYSU-MM01 all-search, single-shot, random gallery, i2v",
                        count_persons=True)
    return search, distance_matrix(*found)


def make_record(trials=2, extras=(), size=(64, 32)):
    rng = np.random.default_rng(0)
    scores = [{feature: Scores(tuple(np.sort(rng.random(20)).tolist()), 0.4, 0.2) for feature in FEATURES}
              for _ in range(trials)]
    protocol = Protocol("SYSU-MM01 all-search, single-shot, random gallery, i2v", tuple(range(trials)), "")
    return Record(protocol, extras, Model("base", "resnet18", ("a.t",), ("00",)), ImageSpec(*size),
                  tuple(Trial(number, each) for number, each in enumerate(scores)))


def test_three_images_are_written_whole_and_are_the_same_each_time(tmp_path):
    search, dist_mat = make_search(tmp_path, [1, 1, 2, 3, 4], [1, 2, 3, 4])
    out = tmp_path / "out"
    out.mkdir()
    drawn = []
    for _ in range(2):
        figures.draw(out, make_record(extras=["flip", "k-reciprocal re-ranking"]), search, dist_mat, True)
        drawn.append([(out / name).read_bytes() for name in NAMES])
    assert sorted(path.name for path in out.iterdir()) == NAMES and drawn[0] == drawn[1]
    for name in NAMES:
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 300


@pytest.mark.parametrize("q_pids, g_pids, size", [([1], [1], (288, 144)), ([1], [2, 1, 3], (144, 288)),
                                                  ([1, 2], [1], (16, 400)), ([1, 2, 3], [3, 2], (400, 16))])
def test_small_searches_and_odd_shapes(tmp_path, q_pids, g_pids, size, recwarn):
    search, dist_mat = make_search(tmp_path, q_pids, g_pids)
    figures.draw(tmp_path, make_record(1, size=size), search, dist_mat, False)
    assert all((tmp_path / name).stat().st_size for name in NAMES) and not recwarn.list


def test_rerank_is_named(tmp_path, monkeypatch):
    search, dist_mat = make_search(tmp_path, [1, 2], [1, 2, 3])
    words = []
    for name in ("draw_cmc", "draw_ranking"):
        monkeypatch.setattr(figures, name, lambda *_: figures.Figure(figsize=(1, 1)))
    monkeypatch.setattr(figures, "draw_distances",
                        lambda title, word, *_: words.append(word) or figures.Figure((1, 1)))
    for reranked in (False, True):
        figures.draw(tmp_path, make_record(), search, dist_mat, reranked)
    assert words == ["cosine distance", "re-ranked distance"]


def test_excluded_images_are_shown_nowhere(tmp_path, monkeypatch):
    search, dist_mat = make_search(tmp_path, [1, 1, 2], [1, 2, 1, 2], q_camids=[3, 6, 3],
                                   g_camids=[2, 2, 1, 1])
    given = {}
    for name in ("draw_cmc", "draw_ranking", "draw_distances"):
        monkeypatch.setattr(figures, name, lambda *words, name=name: given.update({name: words})
                            or figures.Figure(figsize=(1, 1)))
    figures.draw(tmp_path, make_record(), search, dist_mat, False)
    expected = [[False, False, True, True], [True] * 4, [False, False, True, True]]
    assert given["draw_ranking"][2].tolist() == given["draw_distances"][3].tolist() == expected
    title = make_record().protocol.name
    assert [words[0] for words in given.values()] == [title, f"{title}, trial 0", f"{title}, trial 0"]


def test_a_ranking_shows_signs_cameras_and_distances(tmp_path):
    search, dist_mat = make_search(tmp_path, [1], [2, 1, 1], g_camids=[1, 4, 5])
    dist_mat, shown, same = np.array([[0.25, 0.25, -1e-9]],
                                     np.float32), np.ones((1, 3), bool), np.array([[False, True, True]])
    figure = figures.draw_ranking("title, trial 0", dist_mat, shown, same, search, ImageSpec(64, 32))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["title, trial 0", "query", "1", "2", "3", "person 1, camera 3\nfirst match: rank 1",
                     "✓ camera 5\n0.000", "✗ camera 1\n0.250", "✓ camera 4\n0.250"]
    frames = figure.axes[0].patches
    assert len(figure.axes[0].images) == len(frames) == 4
    assert frames[1].get_edgecolor() != frames[2].get_edgecolor()
    assert frames[1].get_linestyle() != frames[2].get_linestyle()


def test_at_most_ten_gallery_images_of_seven_persons(tmp_path):
    search, dist_mat = make_search(tmp_path, list(range(30)), list(range(30)))
    same = search.query.pids[:, None] == search.gallery.pids
    figure = figures.draw_ranking("title", dist_mat, search.seen(), same, search, ImageSpec(16, 8))
    assert len(figure.axes[0].images) == figures.QUERIES * (1 + figures.SHOWN)


def test_first_match_equals_a_loop_with_ties_and_exclusions():
    rng = np.random.default_rng(1)
    dist_mat = rng.integers(0, 6, (40, 25)).astype(np.float32)
    same, shown = rng.random((40, 25)) < 0.1, rng.random((40, 25)) < 0.7
    expected = []
    for row in range(40):
        seen = np.flatnonzero(shown[row])
        hits = np.flatnonzero(same[row, seen[np.argsort(dist_mat[row, seen], kind="stable")]])
        expected.append(hits[0] + 1 if len(hits) else 0)
    assert 0 in expected
    assert figures.first_match(dist_mat, shown, same).tolist() == expected


def test_queries_spread_from_best_to_worst_over_different_persons():
    ranks = np.array([0, 1, 1, 1, 1, 2, 2, 3, 5, 9, 12, 30, 99, 0])
    pids = np.arange(len(ranks)) // 2 * 2 % 12 + np.arange(len(ranks)) % 2
    chosen = figures.choose_queries(ranks, pids)
    assert len(chosen) == figures.QUERIES == len(set(pids[chosen]))
    assert ranks[chosen].tolist() == sorted(ranks[chosen]) and ranks[chosen[0]] == 1
    assert ranks[chosen[-1]] == 99
    assert figures.choose_queries(np.array([0, 0]), np.array([1, 2])) == []
    assert figures.choose_queries(np.array([0, 4]), np.array([1, 2])) == [1]


def test_cmc_is_in_per_cent_with_a_band_of_one_deviation():
    record = make_record(10)
    figure = figures.draw_cmc("title", record)
    axes = figure.axes[0]
    for line, feature in zip(axes.lines, FEATURES):
        curves = 100 * np.array([trial.scores[feature].cmc for trial in record.trials])
        np.testing.assert_allclose(line.get_xydata(), np.stack([np.arange(1, 21), curves.mean(0)], 1))
        first = curves[:, 0]
        assert f"Rank-1 {first.mean():.2f} ± {first.std():.2f}, mAP 40.00" in line.get_label()
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((curves.mean(0) + curves.std(0)).clip(max=100).max())
    assert "10 trials" in axes.get_legend().get_title().get_text()


def test_one_trial_has_no_deviation():
    figure = figures.draw_cmc("title", make_record(1))
    assert not any("±" in line.get_label() for line in figure.axes[0].lines)


def test_histograms_are_densities_of_shown_pairs():
    rng = np.random.default_rng(0)
    dist_mat = rng.random((50, 60), dtype=np.float32)
    same, shown = rng.random((50, 60)) < 0.3, rng.random((50, 60)) < 0.5
    axes = figures.draw_distances("title", "cosine distance", dist_mat, shown, same).axes[0]
    stairs = axes.patches
    assert len(stairs) == 4
    for outline, wanted in zip(stairs[1::2], (same, ~same)):
        values, edges, _ = outline.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1)
        pairs = dist_mat[shown & wanted]
        assert f"{len(pairs):,}, mean {pairs.mean():.3f}" in outline.get_label()
    assert axes.get_xlabel() == "cosine distance"


def test_equal_distances_and_one_kind_of_pair_only():
    for same in (np.ones((2, 3), bool), np.zeros((2, 3), bool)):
        axes = figures.draw_distances("title", "distance", np.full((2, 3), 0.5, np.float32),
                                      np.ones((2, 3), bool), same).axes[0]
        assert len(axes.patches) == 2 and axes.get_ylim()[1] > 0


def test_a_long_title_is_wrapped_not_cut(tmp_path):
    title = ("SYSU-MM01 indoor-search, multi-shot, official gallery, v2i + flip + k-reciprocal re-ranking, "
             "trial 0")
    figure = figures.draw_distances(title, "distance", np.eye(2, dtype=np.float32),
                                    np.ones((2, 2), bool), np.eye(2) > 0)
    assert figure.axes[0].get_title().split() == title.split() and "\n" in figure.axes[0].get_title()


def test_an_image_that_has_gone_is_named_and_no_figure_half_written(tmp_path):
    search, dist_mat = make_search(tmp_path, [1], [1, 2])
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "visible 0 é.png").unlink()
    with pytest.raises(UserError, match="visible 0 é.png: no such image"):
        figures.draw(out, make_record(), search, dist_mat, False)
    assert not any(path.name.startswith(".") for path in out.iterdir())

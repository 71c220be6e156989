"""Rankings and evidence: which queries they show, and what stands below and on the images."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_figures import explain, make_tested

import pictures
from datasets.images import read_image
from datasets.types import Images, ImageSpec
from pictures import Searched
from retrieval.evidence import Evidence

SPEC = ImageSpec(64, 32)


def test_a_ranking_shows_signs_cameras_and_similarities(tmp_path):
    tested = make_tested(tmp_path, [1], [2, 1, 1])
    tested = replace(tested, gallery=replace(tested.gallery, camids=np.array([1, 4, 5])),
                     feats=(np.eye(1, 2, dtype=np.float32), np.float32([[0.6, 0.8], [0.6, 0.8], [1, 0]])))
    (axes,) = pictures.draw_ranking("title, trial 0", [tested], [0], SPEC).axes
    words = [text.get_text() for text in axes.texts if text.get_text()]
    assert words[0].startswith("title, trial 0\n") and "cosine similarity" in words[0]
    assert words[1:] == ["query", "1", "2", "3", "person 1, camera 3\nfirst match: rank 1",
                         "✓ camera 5\n1.000", "✗ camera 1\n0.600", "✓ camera 4\n0.600"]
    assert len(axes.images) == len(axes.patches) == 4
    looks = {(frame.get_edgecolor(), frame.get_linestyle()) for frame in axes.patches[1:3]}
    assert len({colour for colour, _ in looks}) == len({style for _, style in looks}) == 2


def test_several_models_have_a_row_each_and_excluded_images_and_other_orders_are_followed(tmp_path):
    models = [make_tested(tmp_path, [1, 2], [1, 2, 3], label, seed=seed)
              for seed, label in enumerate(("base", "agw strong"))]
    models[1] = replace(models[1], seen=np.array([[True] * 3, [False, True, True]]),
                        distances=np.float32([[0, 1, 2], [0, 0.9, 0.1]]))
    words = [text.get_text() for text in pictures.draw_ranking("", models, [1, 0], SPEC, 2).axes[0].texts]
    assert [word for word in words if word in ("base", "agw strong")] == ["base", "agw strong"] * 2
    heads = [word for word in words if word.startswith("person")]
    assert [head.split(",")[0] for head in heads] == ["person 2", "person 2", "person 1", "person 1"]
    assert heads[1].endswith("first match: rank 2")
    shown = [float(word.split("\n")[1]) for word in words if word[0:1] in ("✓", "✗")]
    assert shown[2:4] == pytest.approx(models[1].similarity[1, [2, 1]].tolist(), abs=1e-3)


def test_queries_spread_from_best_to_worst_over_different_persons():
    def chosen(ranks, pids):
        images = Images((), pids, pids, "visible")
        tested = Searched("", images, images, None, None)
        vars(tested)["first_match"] = ranks  # that of the metrics
        return pictures.spread_queries(tested)

    ranks = np.array([0, 1, 1, 1, 1, 2, 2, 3, 5, 9, 12, 30, 99, 0])
    pids = np.arange(len(ranks)) // 2 * 2 % 12 + np.arange(len(ranks)) % 2
    rows = chosen(ranks, pids)
    assert len(rows) == pictures.QUERIES == len(set(pids[rows]))
    assert ranks[rows].tolist() == sorted(ranks[rows]) and (ranks[rows[0]], ranks[rows[-1]]) == (1, 99)
    assert chosen(np.array([0, 0]), np.array([1, 2])) == []
    assert chosen(np.array([0, 4]), np.array([1, 2])) == [1]


def test_pairs_are_the_nearest_of_the_same_and_of_another_person(tmp_path):
    tested = make_tested(tmp_path, [1, 2], [1, 1, 2])
    (_, same), (_, other), *rest = pictures.choose_pairs(tested, [0, 1])
    assert same[0] == other[0] == tested.query.paths[0] and len(rest) == 2
    assert same[1] == tested.gallery.paths[tested.similarity[0, :2].argmax()]
    assert other[1] == tested.gallery.paths[2]


def test_blue_is_for_and_orange_against_and_dark_images_become_light():
    pixels = np.full((8, 4, 3), 10, np.uint8)
    for value, channel in ((1.0, 2), (-1.0, 0)):
        shown = pictures.overlay(pixels, np.full((8, 4), value, np.float32), 1.0)
        assert shown.shape == pixels.shape and shown[0, 0].argmax() == channel
    assert (pictures.overlay(pixels, np.zeros((8, 4), np.float32), 0.0) >= 90).all()


def test_evidence_has_headed_columns_of_each_model_and_a_colour_bar(tmp_path):
    tested = make_tested(tmp_path, [1], [1, 2])
    paths = tested.query.paths[0], tested.gallery.paths[0]
    maps = np.float32([[1, -1], [0.5, 0]]), np.float32([[0, 0], [1, 0]])
    rows = [("same\nperson", [explain(paths), Evidence(paths, 0.125, maps, False)])]
    figure = pictures.draw_evidence("title, trial 1", rows, SPEC, ["base", "agw"])
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words.count("on query") == words.count("on found") == 2
    assert {"query", "found", "base", "agw", "same\nperson"} <= set(words)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[0], read_image(paths[0], ImageSpec(*shown[0].shape[:2])))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["0.250", "0.125"]
    assert "approximate" in figure.get_suptitle() and "title, trial 1" in figure.get_suptitle()
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["against the pair", "0", "for it"]

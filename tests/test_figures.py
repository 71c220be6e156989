"""The figures of a test: curves, similarities and the embedding, of one model or several."""
from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import save_image
from PIL import Image

import figures
from datasets.types import FEATURES, MODALITIES, Images, ImageSpec
from figures import Curve
from pictures import Searched
from retrieval.evidence import Evidence
from retrieval.verification import Pairs
from test_results import make_record
from utils import UserError

NAMES = ["cmc.png", "distances.png", "embedding.png", "evidence.png", "ranking.png", "verification.png"]


def make_tested(root, q_pids, g_pids, label="base", width=8, seed=0) -> Searched:
    """A search on images of one colour a person, and features of a direction each, with noise."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((max(*q_pids, *g_pids) + 1, width))
    sides, found = [], []
    for modality, pids in (("infrared", q_pids), ("visible", g_pids)):
        paths = [root / f"{modality} {number} é.png" for number in range(len(pids))]
        for path, pid in zip(paths, pids):
            save_image(path, [pid], (20, 40))
        feats = directions[pids] + 0.8 * rng.standard_normal((len(pids), width))
        sides.append(Images(tuple(map(str, paths)), np.array(pids), np.full(len(pids), 3), modality))
        found.append((feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32))
    return Searched(label, *sides, np.ones((len(q_pids), len(g_pids)), bool), tuple(found))


def explain(paths) -> Evidence:
    return Evidence(paths, 0.25, (np.eye(4, 2, dtype=np.float32), -np.eye(4, 2, dtype=np.float32)), True)


def draw(out, record, tested):
    pairs = {feature: Pairs(np.float32([0.5, 0.6]), np.float32([0.1, 0.2, 0.55])) for feature in FEATURES}
    figures.draw(out, record, tested, pairs, explain)


def test_figures_of_the_smallest_search_and_an_odd_shape_are_written_whole_or_not_at_all(tmp_path):
    pytest.importorskip("sklearn")
    tested, out = make_tested(tmp_path, [1], [1]), tmp_path / "out"
    record = replace(make_record((0.5,)), spec=ImageSpec(400, 16))
    out.mkdir()
    draw(out, record, tested)
    assert sorted(path.name for path in out.iterdir()) == NAMES
    for name in NAMES:
        with Image.open(out / name) as image:
            image.load()
        (out / name).unlink()
    (tmp_path / "visible 0 é.png").unlink()
    with pytest.raises(UserError, match="visible 0 é.png: no such"):
        draw(out, record, tested)
    assert list(out.iterdir()) == []


def test_titles_name_method_protocol_trial_and_feature(tmp_path, monkeypatch, capsys):
    """And without scikit-learn, all but the embedding is drawn."""
    titles, names = {}, ("cmc", "ranking", "distances", "roc", "evidence")
    for name in names:
        monkeypatch.setattr(figures, f"draw_{name}", lambda title, *_, name=name: titles.update({name: title})
                            or figures.Figure(figsize=(1, 1)))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    tested, out = make_tested(tmp_path, [1, 2], [1, 2]), tmp_path / "out"
    out.mkdir()
    draw(out, make_record(extras=["flip"]), tested)
    title = "agw: SYSU-MM01 all-search, i2v + flip"
    first = f"{title}, trial 0"
    assert titles == {"cmc": title, "roc": first,
                      **dict.fromkeys(["ranking", "distances", "evidence"], f"{first}, after BNNeck")}
    assert sorted(path.name for path in out.iterdir()) == [name for name in NAMES if name != "embedding.png"]
    assert "embedding.png: left out, as scikit-learn does not load (" in capsys.readouterr().err


def test_cmc_is_in_per_cent_with_a_band_of_one_deviation():
    record = make_record(np.random.default_rng(0).uniform(0, 1, 10))
    axes = figures.draw_cmc("title", [figures.cmc_curve(name, [record], name) for name in FEATURES]).axes[0]
    for line, band, feature in zip(axes.lines, axes.collections, FEATURES, strict=True):
        curves = 100 * record.cmc(feature)
        np.testing.assert_allclose(line.get_xydata(), np.stack([np.arange(1, 21), curves.mean(0)], 1))
        rank, mean_ap = curves[:, 0].mean(), 100 * record.values(feature, "mAP").mean()
        assert f"{feature}: Rank-1 {rank:.2f}%, mAP {mean_ap:.2f}%" == line.get_label()
        highest = (curves.mean(0) + curves.std(0)).max()
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(highest)
    assert axes.get_ylim() == (0, 100)


def test_several_seeds_are_one_curve_and_a_cut_axis_is_marked():
    records = [make_record((0.85, 0.95)), make_record((0.8, 0.86))]
    curve = figures.cmc_curve("base", records, "pool")
    np.testing.assert_allclose(curve.y, [100 * record.cmc("pool").mean(0) for record in records])
    axes = figures.draw_cmc("", [curve]).axes[0]
    assert axes.get_ylim()[0] == 60 and "cut at 60" in axes.get_ylabel() and len(axes.lines) == 2


def test_curves_differ_in_colour_and_marker_and_one_evaluation_is_a_mark():
    curves = [Curve(str(number), np.arange(3), np.ones((1, 3))) for number in range(len(figures.LOOKS))]
    lines = figures.draw_curves("", curves, "x", "y").axes[0].lines
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(lines)
    curve = Curve("a", np.array([4.0]), np.array([[50.0]]))
    (line,) = figures.draw_curves("", [curve], "x", "y").axes[0].lines
    assert line.get_marker() == "o" and line.get_xydata().tolist() == [[4, 50]]


def test_the_roc_is_that_of_the_pairs_and_names_the_equal_error_rate():
    rng = np.random.default_rng(0)
    pairs = [Pairs(*(rng.normal(mean, 0.1, 3000).astype(np.float32) for mean in (0.4, 0.2)))
             for _ in range(2)]
    curve = figures.roc_curve("base", pairs)
    for each, row in zip(pairs, curve.y):
        for rate, kept in zip(curve.x[::40] / 100, row[::40] / 100):
            threshold = np.quantile(each.impostor, 1 - rate)
            assert kept == pytest.approx((each.genuine > threshold).mean(), abs=0.02)
    error = np.mean([each.equal_error() for each in pairs])
    assert curve.label == f"base: equal error rate {error:.2%}" and curve.y[:, -1].tolist() == [100, 100]
    axes = figures.draw_roc("title", [curve]).axes[0]
    assert axes.get_xscale() == "log" and axes.get_ylim() == (0, 100)


def test_similarities_of_pairs_equal_a_loop(tmp_path):
    tested = make_tested(tmp_path, [1, 1, 2], [1, 2, 2, 3])
    found = figures.pair_similarities(tested)
    visible, pids = tested.feats[1], tested.gallery.pids
    for person, same in (("same", True), ("other", False)):
        expected = [visible[i] @ visible[j] for i in range(4) for j in range(i)
                    if (pids[i] == pids[j]) == same]
        assert sorted(found[person, "within visible"]) == pytest.approx(sorted(expected))
    assert len(found["same", "across"]) == 4 and len(found["other", "across"]) == 8


def test_panels_of_several_models_share_their_axes_and_persons(tmp_path):
    pytest.importorskip("sklearn")
    models = [make_tested(tmp_path, [1, 2, 3, 4] * 2, [1, 2, 3, 4], label, seed=seed)
              for seed, label in enumerate(("base", "agw"))]
    panels = figures.draw_distances("", models).axes
    assert [axes.get_title() for axes in panels] == ["base", "agw"]
    assert panels[0].get_xlim() == panels[1].get_xlim() and panels[0].get_ylim() == panels[1].get_ylim()
    assert {axes.get_xlabel() for axes in panels} == {"cosine similarity"}
    panels = figures.draw_embedding("", models, np.array([2, 4])).axes
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [["2", "4"] * 2] * 2


@pytest.mark.parametrize("persons, images", [(30, 3), (2, 20)])
def test_the_embedding_shows_persons_by_colour_and_modalities_by_marker(persons, images):
    pytest.importorskip("sklearn")
    pids, rng = np.repeat(10 * np.arange(1, persons + 1), images), np.random.default_rng(0)
    sides = [Images(("",) * len(pids), pids, pids, modality) for modality in MODALITIES]
    feats = [rng.standard_normal((len(pids), 8)).astype(np.float32) for _ in MODALITIES]
    tested = Searched("base", *sides, np.ones((len(pids), len(pids)), bool), tuple(feats))
    figure, again = (figures.draw_embedding("RegDB, v2i, trial 1", [tested]) for _ in range(2))
    assert figure.get_suptitle().endswith(f"\nt-SNE of {min(persons, 20)} of {persons} test persons")
    shown = figure.axes[0].collections[::2]
    assert [len(each.get_offsets()) for each in shown] == [min(persons, 20) * min(images, 12)] * 2
    np.testing.assert_array_equal(shown[0].get_offsets(), again.axes[0].collections[0].get_offsets())
    assert np.array_equal(*(each.get_facecolors() for each in shown))
    assert len({each.get_paths()[0].vertices.shape for each in shown}) == 2
    assert [text.get_text() for text in figure.axes[0].texts] == (
        [str(pid) for pid in np.unique(pids)] * 2 if persons <= 10 else [])

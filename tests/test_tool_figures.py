"""Figures of several records and logs: what is drawn of which, captions, and one-line errors."""
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from test_figures import explain
from test_results import make_record, make_search, save

import results
from datasets.types import Features
from tools import figures as tool
from utils import UserError


@pytest.fixture
def records(tmp_path):
    """Records of two seeds of two methods with the features beside them; their paths."""
    search, paths = make_search(tmp_path), []
    for number, (method, seed) in enumerate((method, seed) for method in ("base", "agw") for seed in (0, 1)):
        rng = np.random.default_rng(number)
        features = {}
        for side in (search.query, search.gallery):
            feats = np.eye(8, dtype=np.float32)[side.pids - 1] + 0.4 * rng.standard_normal((8, 8))
            feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
            features[side.modality] = Features(side.paths, feats, feats[:, ::-1].copy())
        path = tmp_path / method / str(seed) / "results.json"
        path.parent.mkdir(parents=True)
        save(path, make_record(method=method, seed=seed, files=(f"{method}_{seed}.t",), paths=("a.t",)))
        results.write_features(results.features_path(path), search, features)
        paths.append(str(path))
    return paths


def save_log(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def test_features_beside_a_record_are_those_that_were_written(records, tmp_path):
    query, gallery, seen, features = results.read_features(results.features_path(records[0]))
    search = make_search(tmp_path)
    assert (query.paths, gallery.modality) == (search.query.paths, "visible") and seen.all()
    assert features["visible"].bnneck[0].tolist() == features["visible"].pool[0, ::-1].tolist()
    (tmp_path / "base/1/results.features.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="results.features.npz: not the features that test.py --out writes"):
        results.read_features(results.features_path(records[1]))


@pytest.mark.parametrize("kind", ["cmc", "roc", "distances", "tsne", "ranking", "evidence"])
def test_each_kind_is_drawn_as_pdf_and_png_with_a_caption(records, tmp_path, kind, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(tool, "load_network", lambda *_: (None, None))
    monkeypatch.setattr(tool, "find_evidence", lambda net, paths, *_: explain(paths))
    tool.main([kind, *records, "--out", str(tmp_path / "out"), "--feature", "pool"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{kind}.pdf", f"{kind}.png", f"{kind}.txt"]
    with Image.open(tmp_path / "out" / f"{kind}.png") as image:
        width, resolution = image.width, image.info["dpi"][0]
    assert width / resolution == pytest.approx(3.4, abs=0.3)  # inches: a column
    caption = (tmp_path / "out" / f"{kind}.txt").read_text()
    for words in ("base (2 seeds), agw (2 seeds)", "SYSU-MM01 all-search, i2v", "after pooling", "agw_1.t",
                  "all trials" if kind == "cmc" else "trial 0"):
        assert words in caption


def test_names_and_persons_are_those_asked_for(records, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(tool.figures, "draw_embedding", lambda title, models, persons: shown.update(
        labels=[each.label for each in models], persons=persons.tolist()) or tool.Figure((1, 1)))
    words = ["tsne", *records, "--out", str(tmp_path), "--names", "Baseline", "AGW"]
    tool.main([*words, "--persons", "4", "2"])
    assert shown == {"labels": ["Baseline", "AGW"], "persons": [2, 4]}
    with pytest.raises(UserError, match="--persons 99: not in both modalities of this test; name some of 1"):
        tool.main([*words, "--persons", "2", "99"])
    with pytest.raises(UserError, match="--names: 1 given, 2 expected, of base, agw"):
        tool.main([*words[:-1]])


def test_what_cannot_be_drawn_is_one_line(records, tmp_path):
    results.features_path(records[0]).unlink()
    with pytest.raises(UserError, match="results.features.npz: not the features .*No such file.*with --out"):
        tool.main(["roc", *records, "--out", str(tmp_path)])
    with pytest.raises(UserError, match="results.json: no record of a test that scored sum, which cmc shows"):
        tool.main(["cmc", *records, "--feature", "sum"])
    log = save_log(tmp_path / "a.jsonl", [{"epoch": 0, "loss": 1.0}])
    with pytest.raises(UserError, match="a.jsonl: no record of a test"):
        tool.main(["cmc", log])


def test_curves_are_any_column_against_epochs_or_minutes(tmp_path, monkeypatch):
    logs = [save_log(tmp_path / f"sysu_{method}_seed_{seed}.jsonl", [
        {"epoch": epoch, "seconds": 60.0, "loss": 4.0 - epoch + seed,
         **({"pool/mAP": 0.1 * epoch} if epoch == 1 else {})} for epoch in range(2 + seed)])
        for method in ("base", "agw") for seed in (0, 1)]
    shown = []
    monkeypatch.setattr(tool.figures, "draw_curves", lambda *words: shown.append(words)
                        or tool.Figure((1, 1)))
    for words in (["--column", "loss"], ["--column", "pool/mAP", "--axis", "minutes"]):
        tool.main(["curves", *logs, "--out", str(tmp_path), *words])
    (_, curves, x, y), (_, one, minutes, per_cent) = shown
    assert [curve.label for curve in curves] == ["base", "agw"] and (x, y) == ("epochs of training", "loss")
    assert curves[0].x.tolist() == [1, 2] and curves[0].y.tolist() == [[4, 3], [5, 4]]
    assert (minutes, per_cent) == ("minutes of training", "mAP (%), after pooling")
    assert one[0].x.tolist() == [2] and one[0].y.tolist() == [[10], [10]]
    with pytest.raises(UserError, match="--column lost: .*seed_0.jsonl holds loss, pool/mAP, seconds; name"):
        tool.main(["curves", *logs, "--column", "lost"])
    lines = save_log(tmp_path / "lines.jsonl", [{"row": "base", "seed": 0, "pool/mAP": 10.0}])
    with pytest.raises(UserError, match="lines.jsonl holds no epochs; name one of these, or a log"):
        tool.main(["curves", lines, "--column", "pool/mAP"])

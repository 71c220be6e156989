"""Learning curves from the JSON lines of runs."""
import json

import numpy as np
import pytest
from PIL import Image

from tools import curves


def save_run(path, values, seconds=60.0, every=2):
    """JSON lines of a run that is evaluated every second epoch."""
    lines = [{"epoch": epoch, "seconds": seconds,
              **({"bnneck/rank-1": values[epoch // every]} if epoch % every else {})}
             for epoch in range(every * len(values))]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["curves.py", *map(str, words)])
    curves.main()


def test_seeds_are_one_group_and_the_picture_is_drawn(tmp_path, monkeypatch, capsys):
    runs = [save_run(tmp_path / f"sysu_{method}_p4_n8_lr_0.1_seed_{seed}.jsonl", [0.1, 0.2 + 0.1 * seed])
            for method in ("base", "strong") for seed in (0, 1)]
    call(monkeypatch, *runs, "--out", tmp_path / "c.png")
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=1) == ["sysu_base_p4_n8_lr_0.1",
                                       "2 run(s), at the end  25.00% after 4.0 minutes"]
    assert second.startswith("sysu_strong_p4_n8_lr_0.1 ")
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 0
    call(monkeypatch, *runs, "--axis", "epochs", "--out", tmp_path / "c.png")
    assert capsys.readouterr().out.splitlines()[0].endswith(" 25.00% after 4.0 epochs")


def test_a_curve_is_accuracy_against_minutes_or_epochs(tmp_path):
    found = curves.read_curve(save_run(tmp_path / "a.jsonl", [0.1, 0.3], seconds=30), "bnneck/rank-1")
    assert found.tolist() == [[1.0, 2.0], [0.1, 0.3]]
    by_epoch = curves.read_curve(str(tmp_path / "a.jsonl"), "bnneck/rank-1", "epochs")
    assert by_epoch.tolist() == [[2, 4], [0.1, 0.3]]
    longer = curves.read_curve(save_run(tmp_path / "b.jsonl", [0.3, 0.5, 0.9], seconds=90), "bnneck/rank-1")
    np.testing.assert_allclose(curves.mean_curve([found, longer]), [[2, 4], [0.2, 0.4]])
    assert len(curves.draw({"a": [found, longer]}, "x").axes[0].lines) == 3


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch, capsys):
    runs = []
    for folder, value in (("erase", 0.5), ("grey", 0.25)):
        (tmp_path / folder).mkdir()
        runs.append(save_run(tmp_path / folder / "sysu_base_seed_0.jsonl", [value]))
    call(monkeypatch, *runs, runs[0], "--out", tmp_path / "c.png")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/erase/sysu_base ") and "1 run(s), at the end  50.00%" in first
    assert second.startswith(f"{tmp_path}/grey/sysu_base ") and "1 run(s), at the end  25.00%" in second


@pytest.mark.parametrize("names, common, labels", [
    (["sysu_base_p4_lr_0.1", "sysu_cgrnet-strong_p4_lr_0.1"], "sysu_*_p4_lr_0.1", ["base", "cgrnet-strong"]),
    (["sysu_base_p4", "sysu_base_p4_epochs_9"], "sysu_base_p4_*_*", ["*", "epochs_9"]),
    (["sysu_base_p4_epochs_9", "sysu_agw_p4_epochs_20"], "sysu_*_p4_epochs_*", ["base_9", "agw_20"]),
    (["sysu_base_p4", "regdb_agw_p2"], "*_*_*", ["sysu_base_p4", "regdb_agw_p2"]),
    (["a_epochs_1_trial_2", "a_epochs_2_trial_1"], "", ["a_epochs_1_trial_2", "a_epochs_2_trial_1"]),
    (["sysu_base_p4"], "", ["sysu_base_p4"])])
def test_a_legend_says_what_tells_runs_apart(names, common, labels):
    assert curves.split_names(names) == (common, labels)


@pytest.mark.parametrize("text, measure, words", [
    ("{", "x", "no JSON lines of a run"), ("[1]\n", "x", "no JSON lines of a run"),
    ('{"epoch": 0}\n', "x", "no JSON lines of a run"),
    ('{"seconds": 1, "pool/mAP": 40}\n', "pool/mAP", "no JSON lines of a run"),
    ('{"epoch": 0, "seconds": 1, "loss": 2, "pool/mAP": 0.1}\n', "loss", "holds pool/mAP; name one"),
    ('{"epoch": 0, "seconds": 1}\n', "x", "holds no evaluation"), ("", "x", "holds no evaluation"),
    ('{"epoch": 0, "seconds": 1, "pool/mAP": 0.1}\n', "bnneck/mAP", "holds pool/mAP; name one of these")])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, monkeypatch, text, measure, words):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(curves.UserError, match=words):
        call(monkeypatch, tmp_path / "a.jsonl", "--measure", measure, "--out", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(curves.UserError, match="gone.jsonl: no JSON lines of a run"):
        call(monkeypatch, tmp_path / "gone.jsonl")

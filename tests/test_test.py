"""test.py on the real command line: where its record goes, what it says of forced trials, what it refuses."""
from __future__ import annotations

import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_checkpoint, make_regdb, make_sysu

import results
from eval_metrics import eval_sysu

checkpoint = functools.partial(make_checkpoint, arch="mobilenet_v2", noise=0)  # the smallest file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Small data sets and a checkpoint of each, only read."""
    folder = tmp_path_factory.mktemp("world")
    return SimpleNamespace(regdb=make_regdb(folder / "RegDB", images=2),
                           sysu=make_sysu(folder / "SYSU-MM01", 2, 1, 2, 1),
                           last=checkpoint(folder / "regdb_trial_1_last.t"),
                           of_sysu=checkpoint(folder / "s.t", dataset="sysu"))


@pytest.fixture
def tested(script, world):
    """Run test.py on RegDB in an empty folder."""
    return lambda *words: script("test.py", "--data-path", world.regdb, "--gpu", "cpu", *words)


def warnings(done, words):
    return [line for line in done.stderr.splitlines() if words in line]


# ------------------------------------------------------------------------------------------------- the record
def test_the_record_is_written_without_out_and_keeps_its_name(tested, script, world):
    again = script.cwd / world.last.name
    torch.save({**torch.load(world.last, weights_only=True), "epoch": 7}, again)
    first = "results: results/regdb_trial_1_last_regdb-v2i.json"
    for path, last in ((world.last, first), (again, first.replace(".json", "_2.json")), (world.last, first)):
        done = tested("--resume", path)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == last, done.stderr
    ends = ".json", ".queries.npz", "_2.json", "_2.queries.npz"
    assert sorted(path.name for path in (script.cwd / "results").iterdir()) == [
        f"regdb_trial_1_last_regdb-v2i{end}" for end in ends]
    record = json.loads((script.cwd / "results/regdb_trial_1_last_regdb-v2i.json").read_text())
    assert record["protocol"]["trials"] == [1] and record["extras"] == []


def test_out_takes_everything_and_says_what_it_replaces(tested, script, world, monkeypatch):
    done = tested("--resume", world.last, "--out", "found", "--flip")
    assert done.returncode == 0 and "is replaced" not in done.stderr, done.stderr
    assert {path.name for path in script.cwd.iterdir()} == {"found"}
    names = ["cmc", "distances", "ranking", "verification", "evidence"]
    names += ["embedding"] * ("embedding.png: left out" not in done.stderr)
    assert {path.name for path in (script.cwd / "found").iterdir()} == {
        "results.json", "results.csv", "results.features.npz", "results.queries.npz",
        *(f"{name}.png" for name in names)}
    monkeypatch.setattr("figures.draw", lambda *_: None)
    done = tested("--resume", world.last, "--out", "found")
    assert "--out found: the record of another test was there and is replaced" in done.stderr


def test_a_folder_that_cannot_be_written_is_an_error_before_the_network_runs(tested, script, world):
    (script.cwd / "results").write_text("a file")
    done = tested("--resume", world.last)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("test.py: error: --out results: cannot be written")
    assert done.stderr.count("\n") == 1
    assert "choose a folder that can" in done.stderr


# ---------------------------------------------------------------------------------------------- forced trials
def test_a_forced_trial_is_named_wherever_its_scores_are(tested, script):
    wide = make_checkpoint(script.cwd / "regdb_trial_1_last.t", img_h=64, img_w=32)  # see use_bf16
    done = tested("--resume", wide, "--trial", 2, "--force-trial", "--flip", "--amp", "bf16")
    assert done.returncode == 0, done.stderr
    (line,) = warnings(done, "--force-trial")
    assert line.startswith("warning: --force-trial: ") and "trained on trial 1" in line
    assert "test persons of trial 2" in line
    rows = [line for line in done.stdout.splitlines() if line.startswith(("pool ", "bnneck "))]
    assert len(rows) == 4 and all(row.endswith(" + flip + bfloat16 + trained on trial 1") for row in rows)
    (path,) = (script.cwd / "results").glob("*.json")
    assert json.loads(path.read_text())["extras"] == ["flip", "bfloat16", "trained on trial 1"]
    compared = script("test.py", "--compare", path).stdout
    assert "base + flip + bfloat16 + trained on trial 1" in compared


def test_a_trial_that_need_not_be_forced_leaves_no_trace(tested, world):
    done = tested("--resume", world.last, "--trial", 1, "--force-trial")
    assert done.returncode == 0, done.stderr
    assert not warnings(done, "--force-trial") and "trained on" not in done.stdout
    assert done.stdout.splitlines()[-1] == "results: results/regdb_trial_1_last_regdb-v2i-trial-1.json"


def test_ten_models_two_of_them_in_each_others_place_and_late_best_files(tested, script, tmp_path):
    for trial in range(1, 11):
        checkpoint(tmp_path / f"ten_{trial}.t", trial={2: 5, 5: 2}.get(trial, trial), best=trial in (4, 7))
    ten = tmp_path / "ten_{}.t"
    assert "trained on trial 5, trial 2 expected by its place" in tested("--resume", ten).stderr
    done = tested("--resume", ten, "--force-trial")
    assert done.returncode == 0, done.stderr
    assert len(warnings(done, "--force-trial")) == 2
    (line,) = warnings(done, "a best file")
    assert "ten_4.t" in line
    (path,) = (script.cwd / "results").glob("*.json")
    assert path.name == "ten_all_regdb-v2i-trial-2-5-trained-on-trial-5-2.json"
    record = json.loads(path.read_text())
    assert record["extras"] == ["trial 2, 5 trained on trial 5, 2"]
    assert record["protocol"]["trials"] == list(range(1, 11))


# --------------------------------------------------------------------------------------- features and queries
def test_the_sum_of_both_cosines_is_scored_and_named_in_every_line(script, world):
    done = script("test.py", "--data-path", world.sysu, "--gpu", "cpu", "--resume", world.of_sysu,
                  "--save-features", "f.npz", "--feature", "sum")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("pool ", "bnneck ", "sum "))]
    assert len(rows) == 11 and all(row.startswith("sum ") and row.endswith(" + feature sum") for row in rows)
    record = json.loads(next((script.cwd / "results").glob("*.json")).read_text())
    feats = np.load(script.cwd / "f.npz")
    cosines = sum(feats[f"query_{name}"] @ feats[f"gallery_{name}"].T for name in ("feats", "feats_pool"))
    cmc, mean_ap, _ = eval_sysu(-cosines, *(feats[f"{side}_{ids}"] for ids in ("pids", "camids")
                                            for side in ("query", "gallery")))
    assert record["trials"][0]["sum"]["cmc"] == pytest.approx(cmc.tolist())
    assert record["trials"][0]["sum"]["mAP"] == pytest.approx(mean_ap)
    assert record["extras"] == ["feature sum"] and record["mean"].keys() == {"sum"}


def test_one_feature_alone_has_the_scores_that_it_has_beside_the_other(tested, world):
    both, alone = (tested("--resume", world.last, *words) for words in ([], ["--feature", "pool"]))
    assert alone.stdout.splitlines()[-1] == "results: results/regdb_trial_1_last_regdb-v2i-feature-pool.json"
    rows, expected = ([line for line in done.stdout.splitlines() if line.startswith("pool ")]
                      for done in (alone, both))
    assert rows == [line + " + feature pool" for line in expected]


def test_queries_keep_their_average_precision_and_first_rank(script, world):
    done = script("test.py", "--data-path", world.sysu, "--gpu", "cpu", "--resume", world.of_sysu)
    assert done.returncode == 0, done.stderr
    (path,) = (script.cwd / "results").glob("*.json")
    record, queries = json.loads(path.read_text()), results.read_queries(path, results.read(path))
    assert len(queries.draws) == 10 * 4 and set(queries.draws.tolist()) == set(range(10))
    for trial in record["trials"]:
        for feature in ("pool", "bnneck"):
            mine = queries.draws == trial["trial"]
            first, ap = queries.first_ranks[feature][mine], queries.ap[feature][mine]
            matched = first > 0
            cmc = [np.mean(first[matched] <= k) for k in range(1, 21)]
            assert cmc == pytest.approx(trial[feature]["cmc"])
            assert ap[matched].mean() == pytest.approx(trial[feature]["mAP"])
    for name, statistic in (("mean", np.mean), ("std", np.std)):
        rank1 = statistic([trial["bnneck"]["cmc"][0] for trial in record["trials"]])
        assert record[name]["bnneck"]["rank-1"] == pytest.approx(rank1)
    settings = record["checkpoint"]["settings"]
    assert settings["img_h"] == 32 and settings["init"] is False and "seed" not in settings


# -------------------------------------------------------------------------------------------------- comparing
@pytest.mark.parametrize("words, flag", [(["--flip", "--rerank", "k-reciprocal"], "--flip"),
                                         (["--mode=indoor"], "--mode"), (["-r", "a.t"], "-r")])
def test_compare_goes_with_no_other_flag(words, flag, script):
    for both in (["--compare", "a.json", "b.json", *words], [*words, "--compare", "a.json", "b.json"]):
        done = script("test.py", *both)
        assert done.returncode == 2
        assert f"error: {flag}: --compare reads results and tests nothing; leave one of the" in done.stderr


# ------------------------------------------------------------------------------------------- what else is met
def test_queries_that_see_no_match_are_counted(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    for pid in ("0004", "0005"):  # whom only camera 2 shows indoors, which queries of camera 3 do not see
        shutil.rmtree(root / "cam1" / pid)
    shutil.copytree(root / "cam1/0001", root / "cam1/0004")
    done = script("test.py", "--resume", world.of_sysu, "--data-path", root, "--mode", "indoor",
                  "--gpu", "cpu")
    assert done.returncode == 0, done.stderr
    assert "queries that see no match, left out of the mean: 1 of 4" in done.stdout


@pytest.mark.parametrize("own, other", [("regdb", "sysu"), ("sysu", "regdb")])
def test_a_model_of_one_data_set_on_another(script, world, own, other):
    """RegDB's rule does not apply to another's model: all ten test splits."""
    resume = world.last if own == "regdb" else world.of_sysu
    done = script("test.py", "--resume", resume, "--dataset", other, "--data-path", getattr(world, other),
                  "--gpu", "cpu")
    rows = [line for line in done.stdout.splitlines() if line.startswith(("pool ", "bnneck "))]
    name = {"regdb": "RegDB", "sysu": "SYSU-MM01"}[own]
    assert len(rows) == 22 and all(row.endswith(f" + trained on {name}") for row in rows), done.stderr
    assert f"trained-on-{name.lower()}" in done.stdout.splitlines()[-1]


def test_every_seed_that_is_there(tested, script, tmp_path):
    for seed in (0, 3):
        checkpoint(tmp_path / f"run_seed_{seed}_last.t", seed)
    (tmp_path / "run_seed_x_last.t").touch()
    done = tested("--resume", tmp_path / "run_seed_{}_last.t")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (script.cwd / "results").glob("*.json")) == [
        f"run_seed_{seed}_last_regdb-v2i.json" for seed in (0, 3)]
    assert tested("--resume", tmp_path / "walk_seed_{}_last.t").returncode == 2

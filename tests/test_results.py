"""Records of tests: their table, their files, and each query's scores beside them."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import results
from bootstrap import QueryScores
from datasets.sysu import SysuSearch
from datasets.types import FEATURES, Images, ImageSpec
from results import Model, Protocol, Record, Scores, Trial
from utils import UserError


def make_record(rank1=(0.5, 0.7), extras=(), features=FEATURES, **model) -> Record:
    """A record of some trials; all features have the same scores."""
    scores = [Scores(tuple(np.linspace(value, 1, 20).tolist()), value / 2, value / 4) for value in rank1]
    trials = [Trial(number, dict.fromkeys(features, each), {"query_images": 80})
              for number, each in enumerate(scores)]
    made = Model(**{"method": "agw", "arch": "resnet50", "files": ("a.t",), "sha256": ("00",), **model})
    return Record(Protocol("SYSU-MM01 all-search, i2v", tuple(range(len(trials))), "ab" * 32), tuple(extras),
                  made, ImageSpec(288, 144), tuple(trials))


def save(path: Path, record: Record) -> str:
    path.write_text(json.dumps(record.to_json()))
    return str(path)


def save_with_queries(path: Path, ap: float, seed: int | None = 0, settings=None, extras=()) -> str:
    """A record of two draws whose 40 queries have an AP of about `ap`, and their file; the record's path."""
    rng = np.random.default_rng(seed)
    values = (ap + rng.normal(0, 0.02, 80)).clip(0, 1).astype(np.float32)
    first = (2 - (values > 0.5)).astype(np.int32)
    queries = QueryScores(np.repeat([0, 1], 40).astype(np.int16),
                          np.tile(np.repeat(np.arange(10), 4), 2).astype(np.int32),
                          dict.fromkeys(FEATURES, first), dict.fromkeys(FEATURES, values))
    record = make_record(extras=extras, seed=seed, settings=settings or {})
    trials = [replace(trial, scores={
        name: replace(scores, mAP=float(mine.mean(dtype=float)),
                      cmc=(float((mine > 0.5).mean()), *scores.cmc[1:]))
        for name, scores in trial.scores.items()})
        for trial, mine in zip(record.trials, (values[:40], values[40:]))]
    results.write_queries(queries, path)
    return save(path, replace(record, trials=tuple(trials)))


def test_neither_torch_nor_pillow_is_imported():
    code = "import sys, eval_metrics, results, tables; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_summary_is_mean_and_population_deviation_over_trials():
    record = make_record((0.5, 0.7))
    for feature in FEATURES:
        mean, std = (record.summary(name)[feature] for name in ("mean", "std"))
        found = mean["rank-1"], std["rank-1"], mean["mAP"], mean["rank-20"]
        assert found == pytest.approx((0.6, 0.1, 0.3, 1))


def test_every_line_of_a_score_names_the_extras():
    rows = results.lines(make_record(extras=["flip", "k-reciprocal re-ranking"]))
    assert rows[0] == "SYSU-MM01 all-search, i2v" and len(rows) == 2 + 2 * 2 + 2
    assert all(row.endswith(" + flip + k-reciprocal re-ranking") for row in rows[2:])
    assert "60.00 ± 10.00" in rows[-1] and "30.00 ±  5.00" in rows[-1]
    assert " 50.00 " in rows[2] and rows[2].startswith("pool trial 0")
    assert len({len(row) for row in results.lines(make_record())[1:]}) == 1


def test_no_deviation_of_one_draw_or_of_equal_ones():
    assert not any("±" in row for row in results.lines(make_record((0.5,))))
    assert not any("±" in row for row in results.lines(make_record((0.5, 0.5))))


def test_queries_that_see_no_match_are_told():
    record = make_record()
    record = replace(record, trials=tuple(replace(trial, unmatched=3) for trial in record.trials))
    assert results.lines(record)[1] == "queries that see no match, left out of the mean: 3 of 80"


def test_files_hold_the_record(tmp_path):
    record = make_record(extras=["flip"], settings={"lr": 0.1}, seed=4)
    results.write(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]
    assert results.read(tmp_path / "results.json") == record
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["0", "1", "mean", "std"] * 2
    assert {row["extras"] for row in table} == {"flip"}
    for row in table[:2]:
        scores = record.trials[int(row["trial"])].scores["pool"]
        assert float(row["rank-5"]) == scores.cmc[4] and float(row["mINP"]) == scores.mINP
    assert float(table[2]["mAP"]) == record.summary("mean")["pool"]["mAP"]
    assert float(table[7]["rank-1"]) == record.summary("std")["bnneck"]["rank-1"]


def test_a_record_of_earlier_versions_loads(tmp_path):
    record = make_record()
    old = record.to_json()
    for name in ("settings", "seed", "paths"):
        del old["checkpoint"][name]
    for trial in old["trials"]:
        del trial["queries_without_match"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert results.read(tmp_path / "old.json") == record


@pytest.mark.parametrize("resume, name",
                         [("save_model/a_best.t", "a_best"), ("a_trial_{}_last.t", "a_trial_all_last"),
                          ("models/{}/b.2.t", "b.2")])
def test_a_record_is_called_after_checkpoint_protocol_and_extras(resume, name):
    record = make_record(extras=["flip", "k-reciprocal re-ranking", "trained on trial 1"])
    slug = "sysu-mm01-all-search-i2v-flip-k-reciprocal-re-ranking-trained-on-trial-1"
    assert results.default_path(resume, record).as_posix() == f"results/{name}_{slug}.json"
    several = results.default_path(resume, make_record(), named=True)  # two trials
    assert several.name == f"{name}_sysu-mm01-all-search-i2v.json"
    one = replace(record, protocol=replace(record.protocol, name="RegDB, v2i", trials=(2,)), extras=("flip",))
    assert results.default_path(resume, one, named=True).name == f"{name}_regdb-v2i-trial-2-flip.json"


def test_the_record_of_another_test_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    first = results.default_path("a.t", make_record())
    save(first, make_record())
    assert results.default_path("a.t", make_record()) == first
    assert results.default_path("a.t", make_record(sha256=("11",))).stem == f"{first.stem}_2"
    first.write_text("{")
    assert results.default_path("a.t", make_record()).stem == f"{first.stem}_2"


def test_a_file_of_queries_holds_what_was_written(tmp_path):
    path = save_with_queries(tmp_path / "a.json", 0.4)
    record = results.read(path)
    found = results.read_queries(path, record)
    assert found.draws.tolist() == [0] * 40 + [1] * 40 and found.pids.dtype == np.int32
    assert found.first_ranks.keys() == found.ap.keys() == set(FEATURES)
    assert found.ap["bnneck"][:40].mean(dtype=float) == pytest.approx(record.values("bnneck", "mAP")[0])
    assert results.read_queries(tmp_path / "b.json", record) is None


@pytest.mark.parametrize("spoil", [
    lambda arrays: arrays.update(ap_pool=arrays["ap_pool"][:-1]),
    lambda arrays: arrays.update(pids=arrays["pids"][:-1]),
    lambda arrays: arrays.update(first_rank_pool=3 - arrays["first_rank_pool"]),
    lambda arrays: arrays.update(draws=np.array(0)), lambda arrays: arrays.pop("ap_bnneck")])
def test_a_file_of_queries_that_does_not_fit_its_record_is_named_in_one_line(tmp_path, spoil):
    path = save_with_queries(tmp_path / "a.json", 0.5)
    file = results.queries_path(path)
    arrays = dict(np.load(file))
    spoil(arrays)
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=r"a\.queries\.npz: [^\n]*; test that checkpoint again$"):
        results.read_queries(path, results.read(path))


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b"PK\3\4 no archive"), lambda path: path.write_bytes(b""),
    lambda path: (path.unlink(), path.mkdir())])
def test_a_broken_file_of_queries_is_refused_by_name(tmp_path, spoil):
    path = save_with_queries(tmp_path / "a.json", 0.3)
    spoil(tmp_path / "a.queries.npz")
    with pytest.raises(UserError, match="a.queries.npz: .*test that checkpoint again"):
        results.read_queries(path, results.read(path))


def test_a_record_of_one_feature(tmp_path):
    alone = make_record(extras=["feature sum"], features=["sum"])
    assert [row.split()[0] for row in results.lines(alone)[2:]] == ["sum"] * 3
    results.write(alone, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        assert {row["feature"] for row in csv.DictReader(file)} == {"sum"}
    assert results.read(tmp_path / "results.json") == alone


def broken(change):
    record = make_record().to_json()
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize("text", [
    "", "[]", "null", "{}", "\0", '{"format": 1}', broken(lambda r: r.pop("checkpoint")),
    broken(lambda r: r["checkpoint"].pop("method")), broken(lambda r: r["protocol"].pop("trials")),
    broken(lambda r: r["trials"][1].pop("pool")), broken(lambda r: r.update(trials=[])),
    broken(lambda r: r["trials"][1]["bnneck"].update(mAP=None)), broken(lambda r: r.update(extras=None)),
    broken(lambda r: r.update(format=2)), b"\xff\xfe\x00"])
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"odd\.json: not a results\.json of test\.py \([^\n]*$"):
        results.read(path)


def test_folders_and_missing_files_are_refused(tmp_path):
    for name in ("gone.json", "."):
        with pytest.raises(UserError, match="not a results.json"):
            results.read(tmp_path / name)


def make_protocol(root, trial=0):
    paths = tuple(str(root / f"cam3/{pid:04d}/0001.jpg") for pid in (1, 2))
    query = Images(paths, np.array([1, 2]), np.array([3, 3]), "infrared")
    gallery = Images((str(root / "cam1/0001/0001.jpg"),), np.array([1]), np.array([1]), "visible")
    return SysuSearch(query, gallery, trial, "SYSU-MM01 all-search", count_persons=True)


def test_a_protocol_is_known_by_its_images_and_persons_not_by_their_folder(tmp_path):
    one, other = (results.describe_protocol([make_protocol(root)], str(root))
                  for root in (tmp_path / "a", tmp_path / "b c"))
    assert one == other and (one.name, one.trials) == ("SYSU-MM01 all-search", (0,))
    changed = make_protocol(tmp_path)
    changed.gallery.pids[0] = 2
    assert results.describe_protocol([changed], str(tmp_path)).images != one.images


def test_counts(tmp_path):
    assert results.count(make_protocol(tmp_path)) == {"query_images": 2, "query_ids": 2, "gallery_images": 1,
                                                      "gallery_ids": 1}

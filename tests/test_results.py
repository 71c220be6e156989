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
from conftest import ROOT, save_image

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


@pytest.mark.parametrize("modules, absent", [("eval_metrics, results, tables", {"torch", "PIL"}),
                                             ("search", {"torch"})])
def test_neither_torch_nor_pillow_is_imported(modules, absent):
    code = f"import sys, {modules}; print({absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_lines_name_the_extras_with_mean_and_population_deviation():
    record = make_record(extras=["flip", "k-reciprocal re-ranking"])
    record = replace(record, trials=tuple(replace(trial, unmatched=3) for trial in record.trials))
    rows = results.lines(record)
    assert rows[:2] == ["SYSU-MM01 all-search, i2v",
                        "queries that see no match, left out of the mean: 3 of 80"]
    assert len(rows) == 3 + 2 * 2 + 2
    assert all(row.endswith(" + flip + k-reciprocal re-ranking") for row in rows[3:])
    assert "60.00 ± 10.00" in rows[-1] and "30.00 ±  5.00" in rows[-1]
    assert " 50.00 " in rows[3] and rows[3].startswith("pool trial 0")
    for equal in ((0.5,), (0.5, 0.5)):
        assert not any("±" in row for row in results.lines(make_record(equal)))


@pytest.mark.parametrize("features", [FEATURES, ("sum",)])
def test_files_hold_the_record(tmp_path, features):
    record = make_record(extras=["flip"], settings={"lr": 0.1}, seed=4, features=features)
    results.write(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]
    assert results.read(tmp_path / "results.json") == record
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["0", "1", "mean", "std"] * len(features)
    assert {row["extras"] for row in table} == {"flip"} and {row["feature"] for row in table} == set(features)
    for row in table[:2]:
        scores = record.trials[int(row["trial"])].scores[features[0]]
        assert float(row["rank-5"]) == scores.cmc[4] and float(row["mINP"]) == scores.mINP
    assert float(table[2]["mAP"]) == pytest.approx(0.3) and float(table[3]["rank-1"]) == pytest.approx(0.1)


def test_a_record_of_earlier_versions_loads(tmp_path):
    record, path = make_record(), tmp_path / "old.json"
    old = record.to_json()
    old["checkpoint"] = {name: old["checkpoint"][name] for name in ("method", "arch", "files", "sha256")}
    for trial in old["trials"]:
        del trial["queries_without_match"]
    path.write_text(json.dumps(old))
    assert results.read(path) == record


@pytest.mark.parametrize("resume, name",
                         [("save_model/a_best.t", "a_best"), ("a_trial_{}_last.t", "a_trial_all_last"),
                          ("models/{}/b.2.t", "b.2")])
def test_a_record_is_called_after_checkpoint_protocol_and_extras(resume, name):
    record = make_record(extras=["flip", "k-reciprocal re-ranking", "trained on trial 1"])
    slug = "sysu-mm01-all-search-i2v-flip-k-reciprocal-re-ranking-trained-on-trial-1"
    assert results.default_path(resume, record).as_posix() == f"results/{name}_{slug}.json"
    one = replace(record, protocol=replace(record.protocol, name="RegDB, v2i", trials=(2,)), extras=("flip",))
    assert results.default_path(resume, one, named=True).name == f"{name}_regdb-v2i-trial-2-flip.json"


@pytest.mark.parametrize("spoil", [
    lambda arrays: arrays.update(ap_pool=arrays["ap_pool"][:-1]),
    lambda arrays: arrays.update(first_rank_pool=3 - arrays["first_rank_pool"]),
    lambda arrays: arrays.update(draws=np.array(0)), lambda arrays: arrays.pop("ap_bnneck"), None])
def test_a_file_of_queries_that_does_not_fit_its_record_is_named_in_one_line(tmp_path, spoil):
    path = save_with_queries(tmp_path / "a.json", 0.5)
    file = results.queries_path(path)
    arrays = dict(np.load(file))
    if spoil:
        spoil(arrays)
        np.savez(file, **arrays)
    else:
        file.write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match=r"a\.queries\.npz: [^\n]*; test that checkpoint again$"):
        results.read_queries(path, results.read(path))


def broken(change) -> bytes:
    record = make_record().to_json()
    change(record)
    return json.dumps(record).encode()


@pytest.mark.parametrize("content", [
    b"", b"[]", b'{"format": 1}', broken(lambda r: r.pop("checkpoint")),
    broken(lambda r: r["trials"][1].pop("pool")), broken(lambda r: r.update(trials=[])),
    broken(lambda r: r["trials"][1]["bnneck"].update(mAP=None)), broken(lambda r: r.update(extras=None)),
    broken(lambda r: r.update(format=2)), b"\xff\xfe\x00", None])
def test_a_broken_or_missing_file_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.json: not a results\.json of test\.py \([^\n]*$"):
        results.read(tmp_path / "odd.json")


def make_search(root: Path) -> SysuSearch:
    """Four persons, two images of each in each modality."""
    sides = []
    for modality, camera in (("infrared", 6), ("visible", 1)):
        paths = [root / f"{modality}{number}.png" for number in range(8)]
        for path in paths:
            save_image(path, [camera], (8, 16))
        pids = np.repeat(np.arange(1, 5), 2)
        sides.append(Images(tuple(map(str, paths)), pids, np.full(8, camera), modality))
    return SysuSearch(*sides, 0, "SYSU-MM01 all-search, i2v", True)


def test_a_protocol_is_known_by_its_images_and_persons_not_by_their_folder(tmp_path):
    one, other = (results.describe_protocol([make_search(root)], str(root))
                  for root in (tmp_path / "a", tmp_path / "b c"))
    assert one == other and (one.name, one.trials) == ("SYSU-MM01 all-search, i2v", (0,))
    changed = make_search(tmp_path)
    changed.gallery.pids[0] = 2
    assert results.describe_protocol([changed], str(tmp_path)).images != one.images

"""Records of tests: their table, files, and the comparison of several."""
import csv
import json

import numpy as np
import pytest

import results
from bootstrap import QueryScores
from datasets.sysu import SysuSearch
from datasets.types import Images
from results import FEATURES
from utils import UserError


def make_record(rank1=(0.5, 0.7), extras=()):
    """A record of two trials; both features have the same scores."""
    trials = []
    for trial, value in enumerate(rank1):
        scores = {"cmc": np.linspace(value, 1, 20).tolist(), "mAP": value / 2, "mINP": value / 4}
        trials.append({"trial": trial, **{feature: dict(scores) for feature in FEATURES}, "counts": {}})
    return {"format": results.FORMAT, "protocol": {"name": "SYSU-MM01 all-search, i2v", "trials": [0, 1],
                                                   "images": "ab" * 32}, "extras": list(extras),
            "checkpoint": {"method": "agw", "arch": "resnet50", "files": ["a.t"], "sha256": ["00"]},
            "image_size": [288, 144], "trials": trials, **results.summarise(trials)}


def save(path, record):
    path.write_text(json.dumps(record))
    return str(path)


def test_summary_is_mean_and_population_deviation_over_trials():
    record = make_record((0.5, 0.7))
    for feature in FEATURES:
        assert record["mean"][feature]["rank-1"] == pytest.approx(0.6)
        assert record["std"][feature]["rank-1"] == pytest.approx(0.1)
        assert record["mean"][feature]["mAP"] == pytest.approx(0.3)
        assert record["mean"][feature]["rank-20"] == 1


def test_every_line_of_a_score_names_the_extras():
    rows = results.lines(make_record(extras=["flip", "k-reciprocal re-ranking"]))
    assert rows[0] == "SYSU-MM01 all-search, i2v"
    assert len(rows) == 2 + 2 * 2 + 2
    assert all(row.endswith(" + flip + k-reciprocal re-ranking") for row in rows[2:])
    assert "60.00 ± 10.00" in rows[-1] and "30.00 ±  5.00" in rows[-1]
    assert " 50.00 " in rows[2] and rows[2].startswith("pool trial 0")


def test_columns_of_the_table_line_up():
    rows = results.lines(make_record())
    assert len({len(row) for row in rows[1:]}) == 1


def test_files_hold_the_record(tmp_path):
    record = make_record(extras=["flip"])
    results.write(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == record
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["0", "1", "mean", "std"] * 2
    assert {row["extras"] for row in table} == {"flip"}
    for row in table[:2]:
        result = record["trials"][int(row["trial"])]["pool"]
        assert float(row["rank-5"]) == result["cmc"][4] and float(row["mINP"]) == result["mINP"]
    assert float(table[2]["mAP"]) == record["mean"]["pool"]["mAP"]
    assert float(table[7]["rank-1"]) == record["std"]["bnneck"]["rank-1"]


@pytest.mark.parametrize("resume, name",
                         [("save_model/a_best.t", "a_best"), ("a_trial_{}_last.t", "a_trial_all_last"),
                          ("models/{}/b.2.t", "b.2")])
def test_a_record_is_called_after_checkpoint_protocol_and_extras(resume, name):
    record = make_record(extras=["flip", "k-reciprocal re-ranking", "trained on trial 1"])
    slug = "sysu-mm01-all-search-i2v-flip-k-reciprocal-re-ranking-trained-on-trial-1"
    assert results.default_path(resume, record).as_posix() == f"results/{name}_{slug}.json"
    several = results.default_path(resume, make_record(), named=True)  # two trials
    assert several.name == f"{name}_sysu-mm01-all-search-i2v.json"
    record["protocol"].update(name="RegDB, v2i", trials=[2])
    record["extras"] = ["trained on trial 1"]
    one = results.default_path(resume, record, named=True)
    assert one.name == f"{name}_regdb-v2i-trial-2-trained-on-trial-1.json"


def test_results_are_compared_side_by_side(tmp_path):
    paths = [save(tmp_path / "a.json", make_record()),
             save(tmp_path / "b.json", make_record((0.2, 0.2), ["flip"]))]
    rows = results.compare(paths)
    assert rows[0] == "SYSU-MM01 all-search, i2v"
    assert rows[1].startswith(f"[1] {paths[0]}: agw, a.t")
    assert rows[2].startswith(f"[2] {paths[1]}: agw + flip, a.t")
    line = next(row for row in rows if row.startswith("rank-1 "))
    assert line.split() == ["rank-1", "60.00", "±", "10.00", "20.00", "±", "0.00"]
    assert sum(row.startswith("mINP") for row in rows) == len(FEATURES)
    assert len({len(row) for row in rows[3:]}) == 1


@pytest.mark.parametrize("key, value",
                         [("name", "SYSU-MM01 indoor-search, i2v"), ("trials", [0]), ("images", "cd" * 32)])
def test_different_protocols_are_not_compared(tmp_path, key, value):
    other = make_record()
    other["protocol"][key] = value
    paths = [save(tmp_path / "a.json", make_record()), save(tmp_path / "b.json", other)]
    with pytest.raises(UserError, match=f"a.json has {key} .*b.json has .*different protocols"):
        results.compare(paths)


def save_with_queries(path, ap, seed=0, settings=None, extras=()):
    """A record of two draws whose 40 queries have an AP of about `ap`, and their file; the record's path."""
    rng = np.random.default_rng(seed)
    pids, draws = np.tile(np.repeat(np.arange(10), 4), 2), np.repeat([0, 1], 40)
    values = (ap + rng.normal(0, 0.02, 80)).clip(0, 1).astype(np.float32)
    first = (2 - (values > 0.5)).astype(np.int32)
    queries = QueryScores(draws.astype(np.int16), pids.astype(np.int32), dict.fromkeys(FEATURES, first),
                          dict.fromkeys(FEATURES, values))
    record = make_record(extras=extras)
    for trial, mine in zip(record["trials"], (values[:40], values[40:])):
        for feature in FEATURES:
            trial[feature]["mAP"] = float(mine.mean(dtype=float))
            trial[feature]["cmc"][0] = float((mine > 0.5).mean())
    record["checkpoint"] |= {"settings": settings, "seed": seed}
    results.write_queries(queries, path)
    return save(path, {**record, **results.summarise(record["trials"])})


def test_a_file_of_queries_holds_what_was_written(tmp_path):
    path = save_with_queries(tmp_path / "a.json", 0.4)
    found = results.read_queries(tmp_path / "a.json")
    assert found.draws.tolist() == [0] * 40 + [1] * 40 and found.pids.dtype == np.int32
    assert found.first_ranks.keys() == found.ap.keys() == set(FEATURES)
    assert found.ap["pool"].dtype == np.float32
    trial = json.loads(open(path).read())["trials"][0]
    assert found.ap["bnneck"][:40].mean(dtype=float) == pytest.approx(trial["bnneck"]["mAP"])
    assert results.read_queries(tmp_path / "b.json") is None


def test_differences_come_with_an_interval_and_are_told_apart_or_not(tmp_path):
    a, b, c = (save_with_queries(tmp_path / f"{name}.json", ap, seed) for name, ap, seed in
               (("a", 0.3, 0), ("b", 0.7, 1), ("c", 0.3001, 2)))
    rows = results.compare([a, b, c])
    assert rows[-10].startswith("[2] less [1], with 95 % intervals (10,000 bootstrap samples")
    assert rows[-5].startswith("[3] less [1]")
    assert [row.split()[:2] for row in rows[-9:-5]] == [
        [feature, name] for feature in FEATURES for name in ("rank-1", "mAP")]
    assert rows[-9].split()[2] == "+100.00" and not any("not told apart" in row for row in rows[-9:-5])
    value, low, high = (float(part.strip("[],")) for part in rows[-8].replace("[", " ").split()[2:5])
    assert 38 < low < value < high < 42
    assert all(row.endswith("  not told apart by this test") for row in rows[-4:])


def test_records_that_differ_by_their_seed_are_one_group(tmp_path):
    made = [save_with_queries(tmp_path / f"{name}{seed}.json", ap + 0.05 * seed, seed, {"augment": augment})
            for name, ap, augment in (("a", 0.2, None), ("b", 0.6, "erase")) for seed in range(3)]
    rows = results.compare(made)
    assert sum("less" in row for row in rows) == 1 and "[4] [5] [6] less [1] [2] [3], with" in "\n".join(rows)
    (line,) = (row for row in rows if row.startswith("pool    mAP  ") and "±" not in row)
    value, low, high = (float(part.strip("[],")) for part in line.replace("[", " ").split()[2:5])
    # seeds differ by 5 points, persons by less than 1
    assert value == pytest.approx(40, abs=1) and high - low > 8
    alone = results.compare(made[:2])  # all of one group: each by itself
    assert any(row.startswith("[2] less [1]") for row in alone)


def test_a_seed_that_comes_twice_or_is_not_known_is_no_other_seed(tmp_path, capsys):
    made = [save_with_queries(tmp_path / f"a{seed}.json", 0.2 + 0.05 * seed, seed) for seed in range(2)]
    other = save_with_queries(tmp_path / "b.json", 0.6, 0, {"augment": "erase"})
    unknown = save_with_queries(tmp_path / "c.json", 0.3, None, {"augment": "erase"})
    heads = [row for row in results.compare([*made, made[0], other, unknown]) if "less" in row]
    assert [head.partition(", with")[0] for head in heads] == [
        f"[{number}] less [1] [2]" for number in (3, 4, 5)]
    warning = capsys.readouterr().err
    assert "one record is set against several seeds" in warning and warning.count("\n") == 1


def test_records_without_a_common_feature_say_so(tmp_path):
    paths = [save_with_queries(tmp_path / f"{name}.json", 0.4) for name in "ab"]
    record = json.loads(open(paths[1]).read())
    for part in (*record["trials"], record["mean"], record["std"]):
        del part["pool"]
    save(tmp_path / "b.json", record)
    first = json.loads(open(paths[0]).read())
    for part in (*first["trials"], first["mean"], first["std"]):
        del part["bnneck"]
    save(tmp_path / "a.json", first)
    assert results.compare(paths)[-1] == "[2] and [1] were scored with no feature in common"


@pytest.mark.parametrize("spoil", [
    lambda arrays: arrays.update(ap_pool=arrays["ap_pool"][:-1]),
    lambda arrays: arrays.update(pids=arrays["pids"][:-1]),
    lambda arrays: arrays.update(pids=arrays["pids"][:, None]),
    lambda arrays: arrays.update(ap_pool=np.full_like(arrays["ap_pool"], np.nan)),
    lambda arrays: arrays.update(first_rank_pool=3 - arrays["first_rank_pool"]),
    lambda arrays: arrays.update(draws=np.array(0)), lambda arrays: arrays.pop("ap_bnneck")])
def test_a_file_of_queries_that_does_not_fit_its_record_is_named_in_one_line(tmp_path, spoil):
    paths = [save_with_queries(tmp_path / f"{name}.json", 0.5) for name in "ab"]
    file = results.queries_path(tmp_path / "b.json")
    arrays = dict(np.load(file))
    spoil(arrays)
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=r"^--compare .*b\.queries\.npz: [^\n]*$"):
        results.compare(paths)


def test_other_persons_or_no_trials_are_one_line(tmp_path):
    paths = [save_with_queries(tmp_path / f"{name}.json", 0.5) for name in "ab"]
    file = results.queries_path(tmp_path / "b.json")
    np.savez(file, **{**np.load(file), "pids": np.load(file)["pids"] + 1})
    with pytest.raises(UserError, match=r"b\.queries\.npz: other queries than beside .*a\.json; test both"):
        results.compare(paths)
    save(tmp_path / "b.json", {**json.loads(open(paths[1]).read()), "trials": []})
    with pytest.raises(UserError, match="b.json: not a results.json of test.py"):
        results.compare(paths)


def test_without_files_of_queries_nothing_is_tested_and_a_line_says_so(tmp_path, capsys):
    paths = [save_with_queries(tmp_path / "a.json", 0.3), save(tmp_path / "b.json", make_record())]
    assert not any("less" in row for row in results.compare(paths))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: --compare: ") and "b.queries.npz is not there" in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b"PK\3\4 no archive"), lambda path: path.write_bytes(b""),
    lambda path: np.savez(path.open("wb"), draws=[1]), lambda path: (path.unlink(), path.mkdir())])
def test_a_broken_file_of_queries_is_refused_by_name(tmp_path, spoil):
    path = save_with_queries(tmp_path / "a.json", 0.3)
    spoil(tmp_path / "a.queries.npz")
    with pytest.raises(UserError, match="a.queries.npz: .*test that checkpoint again"):
        results.compare([path])


def test_queries_of_another_test_are_refused(tmp_path):
    a, _ = save_with_queries(tmp_path / "a.json", 0.3), save_with_queries(tmp_path / "b.json", 0.4)
    (tmp_path / "b.queries.npz").replace(tmp_path / "a.queries.npz")
    with pytest.raises(UserError, match="a.queries.npz: of another test than"):
        results.compare([a])


def test_a_record_of_one_feature(tmp_path):
    record = make_record(extras=["feature sum"])
    trials = [{"trial": trial["trial"], "sum": trial["pool"], "counts": {}} for trial in record["trials"]]
    alone = {**record, "trials": trials, **results.summarise(trials)}
    assert [row.split()[0] for row in results.lines(alone)[2:]] == ["sum"] * 3
    assert all(row.endswith(" + feature sum") for row in results.lines(alone)[2:])
    results.write(alone, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        assert {row["feature"] for row in csv.DictReader(file)} == {"sum"}
    rows = results.compare([save(tmp_path / "a.json", make_record()), str(tmp_path / "results.json")])
    assert [row.split()[0] for row in rows if "[1]" in row and "±" not in row][1:] == [
        "pool", "bnneck", "sum"]
    assert next(row for row in rows if row.startswith("rank-1 ")).split()[-1] == "-"


def broken(change):
    record = make_record()
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", '"text"', "{}", "\0", '{"format": 1}',
    broken(lambda r: r.pop("checkpoint")),
    broken(lambda r: r["checkpoint"].pop("method")),
    broken(lambda r: r["protocol"].pop("trials")),
    broken(lambda r: r["mean"].pop("pool")),
    broken(lambda r: r["std"]["bnneck"].pop("mINP")),
    broken(lambda r: r["mean"]["pool"].update({"rank-1": None})),
    broken(lambda r: r.update(extras=None)),
])
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(UserError, match="odd.json: not a results.json"):
        results.compare([str(path)])


def test_bytes_that_are_no_text_folders_and_missing_files_are_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes", "."):
        with pytest.raises(UserError, match="not a results.json"):
            results.read(str(tmp_path / name))
    with pytest.raises(UserError, match="--compare .*gone.json: no such file"):
        results.read(str(tmp_path / "gone.json"))


def test_another_format_is_refused_whatever_else_it_holds(tmp_path):
    with pytest.raises(UserError, match="format 2 found, 1 expected"):
        results.read(save(tmp_path / "new.json", {"format": 2}))


def make_protocol(root, trial=0):
    paths = tuple(str(root / f"cam3/{pid:04d}/0001.jpg") for pid in (1, 2))
    query = Images(paths, np.array([1, 2]), np.array([3, 3]), "infrared")
    gallery = Images((str(root / "cam1/0001/0001.jpg"),), np.array([1]), np.array([1]), "visible")
    return SysuSearch(query, gallery, trial, "SYSU-MM01 all-search", count_persons=True)


def test_a_protocol_is_known_by_its_images_and_persons_not_by_their_folder(tmp_path):
    one, other = (results.describe_protocol([make_protocol(root)], str(root))
                  for root in (tmp_path / "a", tmp_path / "b c"))
    assert one == other and one["name"] == "SYSU-MM01 all-search" and one["trials"] == [0]
    changed = make_protocol(tmp_path)
    changed.gallery.pids[0] = 2
    assert results.describe_protocol([changed], str(tmp_path))["images"] != one["images"]


def test_counts(tmp_path):
    assert results.count(make_protocol(tmp_path)) == {"query_images": 2, "query_ids": 2, "gallery_images": 1,
                                                      "gallery_ids": 1}


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    record = make_record()
    results.write(record, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(TypeError):
        results.write({**record, "odd": object()}, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]

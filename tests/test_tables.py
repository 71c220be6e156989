"""Tables of records and of logs: seeds together, differences with intervals, four formats."""
from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from test_results import make_record, save, save_with_queries

import results
import tables
from tools import table
from utils import UserError


def call(capsys, *words):
    """What `tools.table` prints."""
    table.main(list(map(str, words)))
    return capsys.readouterr().out


def save_log(path, values):
    """The log of a run that is evaluated every second epoch."""
    lines = [{"epoch": epoch, "loss": 1.0,
              **({f"{feature}/{name}": values[epoch // 2] for feature in ("pool", "bnneck")
                  for name in ("rank-1", "rank-10", "mAP")} if epoch % 2 else {})}
             for epoch in range(2 * len(values))]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_seeds_of_one_method_and_its_settings_are_a_row(tmp_path, capsys):
    earlier = {"weights": "epoch 2, step 0"}, {"weights": "epoch 2", "init": False}  # how versions told it
    paths = [save(tmp_path / f"{method}{augment}{seed}.json",
                  make_record((0.4 + 0.1 * seed,), method=method, seed=seed, settings={
                      "augment": augment, "lr": 0.1, "data": "ab" * 32, "sync_bn": bool(augment),
                      "set": ["graph=None", "own=1"] if augment else [], **earlier[seed]}))
             for method, augment in (("base", None), ("base", "erase"), ("agw", None)) for seed in (0, 1)]
    out = call(capsys, *paths).splitlines()
    assert out[0] == "SYSU-MM01 all-search, i2v, after pooling"
    assert out[1].split() == ["method", "seeds", "Rank-1", "Rank-10", "Rank-20", "mAP", "mINP"]
    assert [row.split("  ")[0] for row in out[2:5]] == [
        "base", "base augment erase sync bn set graph=None own=1", "agw"]
    assert out[2].split()[1:5] == ["2", "45.00", "±", "7.07"]  # of two seeds, n - 1
    assert out[-1] == "(per cent; ± is the standard deviation over seeds)"
    error = call(capsys, *paths, "--spread", "error").splitlines()[2].split()
    assert error[1:5] == ["2", "45.00", "±", "5.00"]
    one = call(capsys, paths[0])
    assert "±" not in one and one.splitlines()[2].split()[:3] == ["base", "1", "40.00"]


def test_each_protocol_and_feature_has_its_table(tmp_path, capsys):
    paths = []
    for name in ("SYSU-MM01 all-search, i2v", "RegDB, v2i"):
        record = make_record((0.5,))
        record = replace(record, protocol=replace(record.protocol, name=name))
        paths.append(save(tmp_path / f"{name[:3]}.json", record))
    titles = [row for row in call(capsys, *paths).splitlines() if ", after" in row]
    assert titles == ["SYSU-MM01 all-search, i2v, after pooling", "SYSU-MM01 all-search, i2v, after BNNeck",
                      "RegDB, v2i, after pooling", "RegDB, v2i, after BNNeck"]
    alone = call(capsys, *paths, "--feature", "bnneck")
    assert alone.count("after BNNeck") == 2 and "pooling" not in alone
    with pytest.raises(UserError, match="--feature sum: none of the runs"):
        call(capsys, *paths, "--feature", "sum")


def test_a_seed_that_comes_twice_or_is_not_known_is_another_row(tmp_path, capsys):
    made = [save_with_queries(tmp_path / f"a{seed}.json", 0.2, seed) for seed in range(2)]
    again = save_with_queries(tmp_path / "again.json", 0.3, 0)
    unknown = save_with_queries(tmp_path / "unknown.json", 0.3, None)
    rows = call(capsys, *made, again, unknown).splitlines()[2:5]
    for row, path in zip(rows, (made[0], again, unknown), strict=True):
        assert row.startswith("agw (") and row.split("  ")[0].endswith(f"{path[-20:]})")


def test_differences_are_those_of_the_bootstrap(tmp_path, capsys):
    made = [save_with_queries(tmp_path / f"{name}{seed}.json", ap + 0.05 * seed, seed, {"augment": augment})
            for name, ap, augment in (("a", 0.2, None), ("b", 0.6, "erase")) for seed in range(3)]
    (first, second) = tables.make_tables(tables.read_runs(made), "agw")[0].rows
    found = second.differences["mAP"]
    assert not first.differences and found.value == pytest.approx(0.4, abs=0.01)
    assert found.high - found.low > 0.08  # seeds differ by 5 points, persons by less than 1
    out = call(capsys, *made, "--against", "agw")
    assert f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]" in out
    assert "bootstrap samples of persons, draws and seeds" in out
    with pytest.raises(UserError, match="--against base: agw, agw augment erase found; name one of these"):
        call(capsys, *made, "--against", "base")
    tables.compare(made[1:4])
    assert "one record is set against several seeds" in capsys.readouterr().err


def test_compare_prints_the_same_table_and_csv_holds_fractions(tmp_path, capsys):
    made = [save_with_queries(tmp_path / f"{name}.json", ap, 0, {"augment": name})
            for name, ap in (("a", 0.3), ("b", 0.7), ("c", 0.3001))]
    against = ("--against", "agw augment a")
    assert tables.compare(made) + "\n" == call(capsys, *made, *against)
    rows = tables.compare(made).splitlines()[2:5]
    assert "[" not in rows[0] and "+100.00 [" in rows[1] and "-0.0" not in rows[1]
    rows = list(csv.DictReader(call(capsys, *made, *against, "--format", "csv").splitlines()))
    assert [row["method"] for row in rows[:2]] == ["agw augment a", "agw augment b"]
    assert float(rows[1]["difference mAP"]) == pytest.approx(float(rows[1]["mAP"]) - float(rows[0]["mAP"]))
    assert rows[0]["difference mAP"] == ""


def test_different_tests_are_not_compared_and_missing_queries_are_a_warning(tmp_path, capsys):
    a, b = (save_with_queries(tmp_path / f"{name}.json", 0.5, settings={"lr": name}) for name in "ab")
    whole = results.read(b)
    for changed in ({"trials": (0,)}, {"images": "cd" * 32}):
        save(tmp_path / "c.json", replace(whole, protocol=replace(whole.protocol, **changed)))
        for call_it in (lambda *paths: tables.compare(paths),
                        lambda *paths: call(capsys, *paths, "--against", "agw lr a")):
            with pytest.raises(UserError, match=f"a.json has {[*changed][0]} .*c.json .*different protocols"):
                call_it(a, str(tmp_path / "c.json"))
    file = results.queries_path(b)
    np.savez(file, **{**np.load(file), "pids": np.load(file)["pids"] + 1})
    with pytest.raises(UserError, match=r"b\.queries\.npz: other queries than beside .*a\.json; test both"):
        tables.compare([a, b])
    file.unlink()
    assert "Δ" not in tables.compare([a, b])
    assert "b.queries.npz is not there" in capsys.readouterr().err


def test_logs_are_scored_by_their_last_evaluation_and_lines_of_many_runs_are_in_per_cent(tmp_path, capsys):
    made = {"base": (0.1, 0.2, 0.3), "agw": (0.12, 0.21, 0.33)}
    logs = [save_log(tmp_path / f"sysu_{method}_p4_seed_{seed}_cosine.jsonl", [0.9, value])
            for method, values in made.items() for seed, value in enumerate(values)]
    out = call(capsys, *logs, "--against", "base", "--feature", "pool").splitlines()
    assert out[0].startswith("sysu, last evaluation, first trial, after pooling")
    assert out[1].split()[:5] == ["method", "seeds", "Rank-1", "Rank-10", "mAP"]  # none of what no log holds
    assert out[2].split() == ["base", "3", *["20.00", "±", "10.00"] * 3]
    assert out[3].endswith("+2.00 [-0.48, +4.48]  +2.00 [-0.48, +4.48]")  # 1, 2, 3: error 0.577 times 4.303
    names = ("pool/rank-1", "pool/mAP", "bnneck/rank-1", "bnneck/mAP")
    lines = [{"row": method, "seed": seed, **dict.fromkeys(names, 100 * value)}
             for method, values in made.items() for seed, value in enumerate(values)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = call(capsys, tmp_path / "runs.jsonl", "--against", "base", "--format", "markdown").splitlines()
    assert out[0] == "**runs, after pooling**"
    assert out[4] == "| base | 3 | 20.00 ± 10.00 | 20.00 ± 10.00 |  |  |"
    assert out[5].startswith("| agw | 3 | 22.00 ± 10.54 | 22.00 ± 10.54 | +2.00 [-0.48, +4.48] |")


def test_a_table_of_latex_marks_best_and_second(tmp_path, capsys):
    paths = [save(tmp_path / f"{name}.json", make_record((value,), method=name, seed=0))
             for name, value in (("a_b", 0.5), ("c", 0.7), ("d", 0.6))]
    out = call(capsys, *paths, "--format", "latex", "--feature", "pool")
    assert r"a\_b & 1 & 50.00" in out and r"c & 1 & \textbf{70.00}" in out
    assert r"d & 1 & \underline{60.00}" in out and out.count(r"\midrule") == 1
    assert out.startswith(r"% \usepackage{booktabs}") and out.rstrip().endswith(r"\end{table}")
    two = [save(tmp_path / f"c{seed}.json", make_record((0.5 + 0.1 * seed,), method="c", seed=seed))
           for seed in (1, 2)]
    assert r"c & 2 & 65.00{\tiny $\pm$7.07}" in call(capsys, *two, "--format", "latex")


def test_published_rows_are_marked_and_another_test_is_a_warning(tmp_path, capsys):
    record = make_record((0.5,), method="cgrnet")
    record = replace(record, protocol=replace(
        record.protocol, name="SYSU-MM01 all-search, single-shot, random gallery, i2v"))
    path = save(tmp_path / "a.json", record)
    table.main([path, "--published"])
    out, err = capsys.readouterr()
    row = next(row for row in out.splitlines() if row.startswith("CGRNet"))
    assert row.split()[:6] == ["CGRNet", "(SPL", "2021)", "†", "52.64", "85.25"]
    assert row.split()[4:] == ["52.64", "85.25", "-", "51.37", "-"]
    assert "† is published, not measured here" in out
    assert "3803 queries published for SYSU-MM01 all-search, single-shot" in err and "80 found" in err


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    for folder in ("erase", "grey"):
        (tmp_path / folder).mkdir()
        save_log(tmp_path / folder / "sysu_base_seed_0.jsonl", [0.5])
    out = call(capsys, *tmp_path.glob("*/*.jsonl"), "--feature", "pool").splitlines()
    assert len([row for row in out if "erase" in row or "grey" in row]) == 2


@pytest.mark.parametrize("text, words", [("{", "no JSON lines of a run"), ("[1]\n", "no JSON lines of a run"),
                                         ('{"epoch": 0}\n', "no evaluation in it")])
def test_what_is_no_log_is_refused_in_one_line(tmp_path, capsys, text, words):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"a.jsonl: {words}"):
        call(capsys, tmp_path / "a.jsonl")

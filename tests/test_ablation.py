"""Runs of the ablation are train.py's own, and its table tells means, errors and paired differences."""
import json

import pytest
from conftest import SMALL

from model import METHODS
from tools import ablation


@pytest.fixture
def run(regdb, script, monkeypatch):
    """Call the ablation's main in the folder that scripts run in."""
    def call(*words):
        monkeypatch.chdir(script.cwd)
        monkeypatch.setattr("sys.argv", list(map(str, ("ablation", *words, "--dataset", "regdb",
                                                       "--data-path", regdb, *SMALL))))
        ablation.main()
    return call


def test_a_run_is_that_of_train_py_and_is_not_run_again(run, regdb, script, capsys):
    run("base", "cgrnet", "--seeds", 3, "--epochs", 2, "--json", "runs.jsonl")
    runs = ablation.read_runs(script.cwd / "runs.jsonl")
    assert list(runs) == [("base", 3), ("cgrnet", 3)] and len(runs["cgrnet", 3]["gammas"]) == 3
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, *SMALL, "--method", "cgrnet",
                  "--seed", 3, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    (log,) = (script.cwd / "log/regdb_log").glob("*.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    for name in ("pool/rank-1", "pool/mAP", "bnneck/rank-1", "bnneck/mAP"):
        assert runs["cgrnet", 3][name] == round(100 * last[name], 2)
    before = (script.cwd / "runs.jsonl").read_text()
    capsys.readouterr()
    run("base", "--seeds", 3, "--epochs", 2, "--json", "runs.jsonl")
    assert (script.cwd / "runs.jsonl").read_text() == before
    assert capsys.readouterr().out.startswith("| | seeds | pool/rank-1")


def test_the_table_pairs_runs_of_one_seed():
    figures = ("pool/rank-1", "pool/mAP", "bnneck/rank-1", "bnneck/mAP")
    values = {"a": (10.0, 20.0, 30.0), "b": (12.0, 21.0, 33.0)}
    runs = {(row, seed): dict.fromkeys(figures, value) for row, scores in values.items()
            for seed, value in enumerate(scores)}
    head, _, first, second = ablation.table(runs)
    assert head == "| | seeds | pool/rank-1 | pool/mAP | bnneck/rank-1 | bnneck/mAP |"
    assert first == "| a | 3 |" + " 20.0 ± 5.8 |" * 4
    # 1, 2, 3: mean 2, error 0.577, times 4.303
    assert second == "| b | 3 |" + " 22.0 ± 6.1; +2.0 [-0.5, +4.5] |" * 4


def test_rows_are_steps_from_base_to_cgrnet():
    assert ablation.ROWS["own stage 1, similarity"] != METHODS["cgrnet"] == ablation.ROWS["cgrnet"]
    assert all(method.losses["triplet"].weight == 2 for row, method in ablation.ROWS.items()
               if "stage 1" in row)

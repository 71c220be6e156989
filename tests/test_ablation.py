"""Runs of the ablation are train.py's own, and its table tells means, errors and paired differences."""
import json
import re

import pytest
from conftest import SMALL
from torch import nn

from engine import build_optimiser
from model import METHODS, build_network
from tools import ablation
from utils import UserError


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
    _, _, first, second = ablation.table(runs, "b")
    assert first == "| a | 3 |" + " 20.0 ± 5.8; -2.0 [-4.5, +0.5] |" * 4
    assert second == "| b | 3 |" + " 22.0 ± 6.1 |" * 4
    alone = {("b", 1): runs["b", 1], ("a", 1): runs["a", 1]}
    assert ablation.table(alone)[3] == "| a | 1 |" + " 20.0; -1.0 |" * 4
    assert len(ablation.table({})) == 2


def test_rows_are_steps_from_base_to_cgrnet():
    methods = {name: row.method for name, row in ablation.ROWS.items()}
    assert methods["own stage 1, similarity"] != methods["cgrnet"] and METHODS.items() <= methods.items()
    assert all(method.losses["triplet"].weight == 2 for row, method in methods.items()
               if "stage 1" in row and not row.startswith("base"))


def test_a_relation_alone_leaves_the_other_gammas_at_0(run, script):
    rows = ("local to local", "global to local", "local to global")
    run(*(f"shared stage 1, {row} alone" for row in rows), "--epochs", 1, "--json", "runs.jsonl")
    for index, record in enumerate(ablation.read_runs(script.cwd / "runs.jsonl").values()):
        assert [number for number, gamma in enumerate(record["gammas"]["graph.gamma"]) if gamma] == [index]


@pytest.mark.parametrize("row, named, expected", [
    ("cgrnet, gammas at a fiftieth", r".*gamma$", 0.01),
    ("cgrnet, gammas at the full rate", r".*gamma$", 0.5),
    ("base, triplet x 2, stage 1 at the full rate", r"shared\.layer1\.", 0.5),
    ("own stage 1 at no rate", r"streams\.\w+\.layer1\.", 0.0),
    ("own stage 1 at the full rate", r"streams\.\w+\.layer1\.", 0.5)])
def test_a_row_sets_the_rate_of_its_own_parameters_alone(row, named, expected):
    method = ablation.ROWS[row].method
    net = build_network(method, "resnet18", 4)
    optimiser = build_optimiser(net, nn.Identity(), 0.5, True, "sgd")

    def rates() -> dict[str, float]:
        first = {parameter: group["initial_lr"] for group in optimiser.param_groups
                 for parameter in group["params"]}
        return {name: first[parameter] for name, parameter in net.named_parameters() if parameter in first}

    before = rates()
    ablation.ROWS[row].set_up(net, optimiser, 0.5)
    changed = {name: pytest.approx(expected) for name in before if re.match(named, name)}
    assert changed and rates() == before | changed


@pytest.mark.parametrize("words, message", [
    (("--recipe", "short"), "--recipe short: rows of many methods have no recipe in common"),
    (("--dataset", "regdb", "--trial", "all"), "--trial all: a row is one model"),
    (("--init", "a.t"), "--init: rows from several seeds have their own"),
    (("--json", "file/runs.jsonl"), "--json file: cannot be written")])
def test_what_no_row_can_follow_is_refused(words, message, run, script):
    (script.cwd / "file").write_text("")
    with pytest.raises(UserError, match=message):
        run("base", "--json", "runs.jsonl", *words)


@pytest.mark.parametrize("text", ['{"row": "base", "se', "\n", '{"epoch": 0, "seconds": 1}\n',
                                  '{"row": "base", "seed": 0, "pool/rank-1": 1}\n'])
def test_a_file_of_something_else_is_one_line(text, tmp_path):
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"^--json .*runs\.jsonl: line 1 is no run of tools\.ablation[^\n]*$"):
        ablation.read_runs(tmp_path / "runs.jsonl")


def test_runs_of_other_flags_are_not_taken_for_those_asked_for(run, script):
    run("base", "--epochs", 1, "--json", "runs.jsonl")
    before = (script.cwd / "runs.jsonl").read_text()
    with pytest.raises(UserError, match="^--json runs.jsonl: holds runs of --epochs 1, 2 asked for; name an"):
        run("base", "cgrnet", "--epochs", 2, "--json", "runs.jsonl")
    assert (script.cwd / "runs.jsonl").read_text() == before


def test_the_flags_of_train_py_reach_a_row(run, script):
    run("base", "--augment", "standard,erase", "--epochs", 1, "--json", "erased.jsonl")
    run("base", "--epochs", 1, "--json", "plain.jsonl")
    plain, erased = (ablation.read_runs(script.cwd / f"{name}.jsonl")["base", 0]
                     for name in ("plain", "erased"))
    assert plain["loss"] != erased["loss"]

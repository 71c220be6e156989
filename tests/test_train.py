"""train.py on the real command line: what a run leaves, resuming to the bit, how it ends, what it refuses."""
import json
import re
import shutil
import threading

import ending
import pytest
import scripts
import torch
from conftest import SMALL, make_regdb

from model import METHODS
from report import epoch_line, warn_of_stuck_triplet

pytestmark = pytest.mark.usefixtures("short")
NAME = "regdb_cgrnet_p2_n2_lr_0.02_seed_5_resnet18_32x16_epochs_3_pretrained_none_trial_1"
LAST = f"save_model/{NAME}_last.t"


def records(cwd):
    (path,) = (cwd / "log").glob("*_log/*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(cwd):
    """What a run logs, without what no two runs share."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_s")}
            for record in records(cwd)]


def weights(cwd, kind="last"):
    (path,) = (cwd / "save_model").glob(f"*_{kind}.t")
    return torch.load(path, weights_only=True)


def flags(data):
    return ("--dataset", "regdb", "--data-path", data, "--epochs", 3, "--method", "cgrnet", *SMALL,
            "--eval-every", 1, "--seed", 5, "--print-freq", 4)


@pytest.fixture
def train(script, regdb):
    """Train on RegDB for an epoch or so."""
    return lambda *words, **options: script("train.py", "--dataset", "regdb", "--data-path", regdb,
                                            "--epochs", 1, "--method", "base", *SMALL, *words, **options)


# ------------------------------------------------------------------------------------------ what a run leaves
def test_regdb_from_images_to_rank_k(regdb, script):
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--method", "agw", "--epochs", 2,
                  "--trial", 3, "--amp", "off", *SMALL, "--eval-every", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"train visible +4 +16\n", done.stdout)
    assert re.search(r"gallery infrared +4 +16\n", done.stdout)
    line, _ = [line for line in done.stdout.splitlines() if line.startswith("epoch ") and "Rank-1" in line]
    assert re.fullmatch(r"epoch 1/2  loss \d+\.\d{3}  acc \d+\.\d%  pool \d+\.\d/\d+\.\d  "
                        r"bnneck \d+\.\d/\d+\.\d % Rank-1/mAP  \d+ s  0 min left", line)
    name = ("regdb_agw_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_2_pretrained_none_amp_off"
            "_trial_3")
    assert {p.name for p in (script.cwd / "save_model").glob("*.t")} == {f"{name}_best.t", f"{name}_last.t"}
    logged = records(script.cwd)
    assert [record["epoch"] for record in logged] == [0, 1] and logged[1]["bnneck/rank-1"] >= 0
    tested = script("test.py", "--resume", f"save_model/{name}_last.t", "--data-path", regdb,
                    "--out", "found", "--gpu", "cpu", "--amp", "off")
    assert tested.returncode == 0, tested.stderr
    found = json.loads((script.cwd / "found/results.json").read_text())
    assert found["protocol"]["name"] == "RegDB, v2i" and found["protocol"]["trials"] == [3]
    for feature in ("pool", "bnneck"):  # training and testing evaluate with the same functions
        assert found["mean"][feature]["mAP"] == pytest.approx(logged[1][f"{feature}/mAP"], abs=1e-6)
    record = {"epoch": 118, "loss": 12.3456, "accuracy": 1.0, "seconds": 1234.5, "pool/rank-1": 1.0,
              "pool/mAP": 1.0, "bnneck/rank-1": 1.0, "bnneck/mAP": 1.0}
    assert len(epoch_line(record, 120, 1e6)) <= 110


def test_a_dry_run_says_what_would_run_and_writes_a_picture_alone(train, script):
    from PIL import Image
    done = train("--dry-run", "--epochs", 7)
    assert done.returncode == 0, done.stderr
    assert re.search(r"8 images a step, \d+\.\d\d s a step, 4 steps and 0 min an epoch, \d+ min for 7 epochs "
                     r"without evaluation; \d+\.\d GB of memory", done.stdout.splitlines()[-1])
    (picture,) = [path for path in script.cwd.rglob("*") if path.is_file()]
    assert picture.name.endswith("_batch.png") and Image.open(picture).size == (64, 64)  # 4 + 4 of 16 x 32


def test_set_changes_the_row_in_name_checkpoint_and_test(regdb, script):
    words = ("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1, *SMALL, "--set")
    assert script(*words, "graph=None", "own_stages=0").returncode == 0
    (last,) = (script.cwd / "save_model").glob("*_graph-None_own_stages-0_*_last.t")
    content = torch.load(last, weights_only=True)
    assert content["args"]["set"] == ["graph=None", "own_stages=0"]
    assert not any(key.startswith("graph.") for key in content["net"])
    assert script("test.py", "--resume", last, "--gpu", "cpu").returncode == 0  # it knows the data's folder
    odd = script(*words, "nonsense=1")
    assert odd.returncode == 2 and "nonsense" in odd.stderr and odd.stderr.count("\n") == 1


def test_a_run_whose_files_exist_is_refused(train, script):
    assert train().returncode == 0
    before = weights(script.cwd)
    again = train()
    assert again.returncode == 2
    assert "a run of this name is there; go on with it by --resume auto" in again.stderr
    assert again.stderr.count("\n") == 1 and train("--name", "mine", "--seed", 1).returncode == 0
    (other,) = (script.cwd / "save_model").glob("*_mine_*_last.t")
    key = "classifier.weight"
    assert not torch.equal(torch.load(other, weights_only=True)["net"][key], before["net"][key])
    (path,) = (script.cwd / "save_model").glob("*_none_trial_1_last.t")
    (script.cwd / f"save_model/.{path.name}.123.tmp").write_text("half")  # of a run that was killed
    others = script.cwd / f"save_model/.{path.name.replace('_last', '_x_last')}.123.tmp"
    others.write_text("half")  # of another run, which may be writing it
    with ending.end_at("step", 1, 15):
        assert "--overwrite" in train("--overwrite").stderr.splitlines()[-1]  # not --resume the earlier run
    assert train("--overwrite", "--lr", 0.02).returncode == 0
    assert [path.name for path in (script.cwd / "save_model").glob(".*")] == [others.name]
    assert all(torch.equal(value, torch.load(path, weights_only=True)["net"][key])
               for key, value in before["net"].items())


# ---------------------------------------------------------------------------------------- resuming to the bit
@pytest.fixture(scope="module")
def left_alone(once, short):
    """A folder with the data and what a run leaves that nothing ends; only read."""
    def make(folder):
        (folder / "run").mkdir()
        words = [scripts.ROOT / "train.py", *flags(make_regdb(folder / "RegDB", images=6))]
        done = scripts.run(words, folder / "run")
        assert done.returncode == 0, done.stderr

    return once("left_alone", make)


def test_tensorboard_has_steps_gammas_pictures_and_arguments(left_alone):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    (folder,) = (left_alone / "run/log/vis_log").iterdir()
    epochs, steps = (EventAccumulator(str(place)).Reload() for place in (folder, folder / "steps"))
    assert [event.step for event in epochs.Scalars("bnneck/mAP")] == [0, 1, 2]
    assert [event.step for event in steps.Scalars("loss")] == [4, 6, 10, 12, 16, 18]
    tags = set(steps.Tags()["scalars"])
    assert {"lr", "images_per_s", "graph.gamma.0", "similarity.visible.gamma.0"} <= tags
    assert epochs.Tags()["images"] == ["batch/visible", "batch/infrared"]
    assert "_hparams_/session_start_info" in epochs.summary_metadata


def require_same(cwd, left_alone):
    """The run in `cwd` has the weights, the optimiser and the figures of the run left alone, to the bit."""
    alone = left_alone / "run"
    last, best, found = weights(alone), weights(alone, "best"), weights(cwd)
    assert all(torch.equal(value, found["net"][name]) for name, value in last["net"].items())
    assert [g["lr"] for g in found["optimiser"]["param_groups"]] == [
        g["lr"] for g in last["optimiser"]["param_groups"]]
    for key, state in last["optimiser"]["state"].items():
        assert torch.equal(state["momentum_buffer"], found["optimiser"]["state"][key]["momentum_buffer"])
    assert (found["epoch"], found["best"]) == (3, last["best"])
    assert figures(cwd) == figures(alone)
    again = weights(cwd, "best")
    assert again["epoch"] == best["epoch"]
    assert all(torch.equal(value, again["net"][name]) for name, value in best["net"].items())


@pytest.mark.parametrize("kind, number", [("write", 4), ("after", 2)])
def test_kill_9_anywhere(kind, number, left_alone, script):
    words = flags(left_alone / "RegDB")
    assert scripts.run(ending.end_by(kind, number, 9, words), script.cwd, fresh=True).returncode == -9
    resumed = script("train.py", *words, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


@pytest.mark.parametrize("signum, kind, number", [(2, "step", 2), (15, "write", 1), (15, "evaluation", 2)])
def test_signals_end_a_run_and_name_the_command_that_goes_on(signum, kind, number, left_alone, script):
    with ending.end_at(kind, number, signum):
        stopped = script("train.py", *flags(left_alone / "RegDB"))
    assert stopped.returncode == 128 + signum
    (line,) = [line for line in stopped.stderr.splitlines() if not line.startswith("warning")]
    again = re.fullmatch(r"train.py: stopped in epoch \d; go on with: python (.*)", line)[1].split()
    assert (again[1:3] == ["--resume", LAST]) == (script.cwd / LAST).exists()
    resumed = script(*again)
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


def test_resume_from_an_epoch_file_of_which_the_last_are_kept(left_alone, script):
    words = flags(left_alone / "RegDB")
    assert script("train.py", *words, "--save_epoch", 1, "--keep", 2).returncode == 0
    kept = (script.cwd / "save_model").glob("*_epoch_[0-9]*")
    assert sorted(path.name.split("_")[-1] for path in kept) == ["2.t", "3.t"]
    resumed = script("train.py", "--resume", LAST.replace("_last", "_epoch_2"), "--gpu", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


@pytest.fixture(scope="module")
def stopped_run(once, left_alone):
    """A run on that data that ended after two epochs; only read."""
    def make(folder):
        with ending.end_at("step", 13, 15):
            words = [scripts.ROOT / "train.py", *flags(left_alone / "RegDB")]
            assert scripts.run(words, folder).returncode == 143

    return once("stopped", make)


@pytest.fixture
def stopped(stopped_run, script):
    """A copy of it in the folder in which `script` runs."""
    shutil.copytree(stopped_run, script.cwd, dirs_exist_ok=True)


def change(path, **changes):
    """Change keys of a checkpoint."""
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def test_resume_refuses_another_run(stopped, script, regdb):
    whole = (script.cwd / LAST).read_bytes()
    for words, changes, expected in (
            (("--data-path", regdb), {}, "on data"),
            ((), {"processes": 2}, "a run of 2 process(es) found, 1 started; go on with torchrun"),
            ((), {"optimiser": {"state": {}, "param_groups": []}}, "its optimiser does not fit this run")):
        (script.cwd / LAST).write_bytes(whole)
        change(script.cwd / LAST, **changes)
        done = script("train.py", "--resume", LAST, "--gpu", "cpu", *words)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
    best = script("train.py", "--resume", LAST.replace("last", "best"), "--gpu", "cpu")
    assert best.returncode == 2 and "weights only" in best.stderr


def test_files_of_a_name_from_before_go_on_under_it_and_a_best_that_is_gone_is_counted_anew(stopped, script):
    (script.cwd / LAST).rename(script.cwd / "save_model/old_last.t")
    (script.cwd / LAST.replace("last", "best")).unlink()
    change(script.cwd / "save_model/old_last.t", name="")
    done = script("train.py", "--resume", "save_model/old_last.t", "--gpu", "cpu")
    assert done.returncode == 0 and "the best is counted anew from epoch 3" in done.stderr, done.stderr
    assert {path.name for path in (script.cwd / "save_model").glob("*.t")} == {"old_last.t", "old_best.t"}
    assert weights(script.cwd)["epoch"] == weights(script.cwd, "best")["epoch"] == 3


def test_a_longer_cosine_is_said_and_the_run_keeps_its_name(train, script):
    assert train("--schedule", "cosine", "--epochs", 2).returncode == 0
    (last,) = (script.cwd / "save_model").glob("*_last.t")
    done = script("train.py", "--resume", last, "--gpu", "cpu", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    assert re.search("--epochs 3: the run began with --epochs 2, and --schedule cosine goes by its length: "
                     r"the rate of epoch 2 is 0\.005, not 0", done.stderr)
    assert [path.name for path in (script.cwd / "save_model").glob("*_last.t")] == [last.name]


# ---------------------------------------------------------------------------------------------- first weights
def test_init_takes_weights_and_says_what_came_and_what_not(left_alone, stopped, script):
    words = ("train.py", *flags(left_alone / "RegDB"), "--seed", 6, "--epochs", 1, "--init", LAST)
    done = script(*words)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "--init" in line and "tensors" in line)
    assert re.search(r": (\d+) of \1 tensors and 100 % of the backbone's parameters came from the file", line)
    refused = script(*words, "--method", "base")  # whose stage 1 the file has twice
    assert refused.returncode == 2 and "lacks shared.layer1.0.conv1.weight" in refused.stderr, refused.stderr
    leaked = script(*words, "--trial", 2)
    assert leaked.returncode == 2 and "trained on trial 1, whose training persons" in leaked.stderr


# --------------------------------------------------------------------------------------- refused or warned of
def test_a_loss_that_is_not_finite_stops_the_run(train, script):
    done = train("--epochs", 3, "--lr", "1e30", "--print-freq", 1)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(r"epoch \d, step \d+: the loss is not finite \(loss \S+ id .*; lower --lr, or use", line)
    assert not list((script.cwd / "save_model").glob("*_last.t"))
    writers = [thread for thread in threading.enumerate() if "tensorboard" in type(thread).__module__]
    assert not writers  # all files are closed


def test_weights_that_are_not_finite_are_not_written(train, script, monkeypatch):
    def broken(net, *_):
        net.bottleneck.running_var[1] = torch.inf
        return {"bnneck/rank-1": 1.0, "bnneck/mAP": 1.0, "pool/rank-1": 1.0, "pool/mAP": 1.0}

    monkeypatch.setattr("train.evaluate", broken)
    done = train()
    assert done.returncode == 2
    assert "bottleneck.running_var is not finite; checkpoints of earlier" in done.stderr
    assert not list((script.cwd / "save_model").glob("*.t"))


def test_surprises_are_warned_of(train, capsys):
    done = train("--num_pos", 5)
    assert "--epochs 1: --schedule step first lowers the rate in epoch 20" in done.stderr
    assert "8 time(s) a person has fewer than --num_pos 5 images of a modality" in done.stderr
    assert "not the whole data set" in done.stderr
    for name, method, stuck, other in (("weighted_triplet", "agw", 0.6931, 0.67),
                                       ("triplet", "base", 0.3001, 0.29)):
        warn_of_stuck_triplet({"epoch": 3, name: stuck}, METHODS[method])
        assert "epoch 4: the " + name.replace("_", " ") + " loss stayed at" in capsys.readouterr().err
        warn_of_stuck_triplet({"epoch": 3, name: other}, METHODS[method])
        assert not capsys.readouterr().err

"""train.py on the real command line: what a run leaves, resuming to the bit, how it ends, what it refuses."""
import json
import re
import shutil

import ending
import numpy as np
import pytest
import scripts
import torch
from conftest import SMALL, make_regdb

from model import METHODS
from report import epoch_line, warn_of_stuck_triplet

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
            "--eval-every", 1, "--seed", 5)


@pytest.fixture
def train(script, regdb):
    """Train on RegDB for an epoch or so."""
    return lambda *words, **options: script("train.py", "--dataset", "regdb", "--data-path", regdb,
                                            "--epochs", 1, "--method", "base", *SMALL, *words, **options)


# ------------------------------------------------------------------------------------------ what a run leaves
@pytest.mark.parametrize("method", ["base", "agw", "cgrnet"])
def test_regdb_from_images_to_rank_k(method, regdb, script):
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--method", method, "--epochs", 2,
                  "--trial", 3, "--amp", "off", *SMALL, fresh=method == "cgrnet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train visible +4 +16\n", done.stdout)
    assert re.search(r"gallery infrared +4 +16\n", done.stdout)
    name = (f"regdb_{method}_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_2_pretrained_none_amp_off"
            "_trial_3")
    assert {p.name for p in (script.cwd / "save_model").glob("*.t")} == {f"{name}_best.t", f"{name}_last.t"}
    logged = records(script.cwd)
    assert [record["epoch"] for record in logged] == [0, 1] and logged[1]["bnneck/rank-1"] >= 0
    tested = script("test.py", "--resume", f"save_model/{name}_last.t", "--data-path", regdb,
                    "--out", "found", "--gpu", "cpu", "--amp", "off", fresh=method == "cgrnet")
    assert tested.returncode == 0, tested.stderr
    found = json.loads((script.cwd / "found/results.json").read_text())
    assert found["protocol"]["name"] == "RegDB, v2i" and found["protocol"]["trials"] == [3]
    for feature in ("pool", "bnneck"):  # training and testing evaluate with the same functions
        assert found["mean"][feature]["mAP"] == pytest.approx(logged[1][f"{feature}/mAP"], abs=1e-6)


def test_sysu_from_images_to_rank_k(sysu, script):
    assert script("pre_process_sysu.py", "--data-path", sysu, "--img_w", 16, "--img_h", 32).returncode == 0
    done = script("train.py", "--data-path", sysu, "--epochs", 1, *SMALL)
    assert done.returncode == 0, done.stderr
    (best,) = (script.cwd / "save_model").glob("sysu_cgrnet_p2_n2_lr_0.02_seed_0_*_best.t")
    tested = script("test.py", "--mode", "all", "--resume", best, "--data-path", sysu,
                    "--save-features", "feats.npz", "--out", "found", "--gpu", "cpu")
    assert tested.returncode == 0, tested.stderr
    assert len(re.findall(r"^(?:pool|bnneck) trial \d", tested.stdout, re.M)) == 20
    found = json.loads((script.cwd / "found/results.json").read_text())
    assert [trial["trial"] for trial in found["trials"]] == list(range(10))
    rank1 = [trial["bnneck"]["cmc"][0] for trial in found["trials"]]
    assert found["mean"]["bnneck"]["rank-1"] == pytest.approx(np.mean(rank1))
    assert found["std"]["bnneck"]["rank-1"] == pytest.approx(np.std(rank1))
    feats = np.load(script.cwd / "feats.npz")
    assert feats["query_feats"].shape == feats["query_feats_pool"].shape == (3 * 2 * 4, 512)
    assert feats["gallery_feats"].dtype == np.float32 and feats["gallery_paths"].shape == (12,)
    np.testing.assert_allclose(np.linalg.norm(feats["gallery_feats"], axis=1), 1, rtol=1e-5)


def test_same_seed_same_weights_and_another_seed_others(train, script):
    found = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        done = train("--seed", seed, "--model_path", f"{name}/save_model", "--log_path", f"{name}/log",
                     "--vis_log_path", f"{name}/vis", fresh=name == "again")  # with other hashes
        assert done.returncode == 0, done.stderr
        found[name] = weights(script.cwd / name)["net"]
    assert all(torch.equal(found["one"][key], found["again"][key]) for key in found["one"])
    assert not all(torch.equal(found["one"][key], found["other"][key]) for key in found["one"])


def test_an_epoch_is_one_line_in_per_cent(train):
    done = train("--schedule", "cosine")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("epoch ") and "Rank-1" in line]
    assert re.fullmatch(r"epoch 1/1  loss \d\.\d{3}  acc \d+\.\d%  pool \d+\.\d/\d+\.\d  "
                        r"bnneck \d+\.\d/\d+\.\d % Rank-1/mAP  \d+ s  0 min left", line)
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


def test_tensorboard_has_steps_gammas_pictures_and_arguments(regdb, script):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 2, *SMALL,
                  "--print-freq", 3)
    assert done.returncode == 0 and "for 2 epochs of 4 steps" in done.stdout, done.stderr
    (folder,) = (script.cwd / "log/vis_log").iterdir()
    epochs, steps = (EventAccumulator(str(place)).Reload() for place in (folder, folder / "steps"))
    assert [event.step for event in epochs.Scalars("bnneck/mAP")] == [1]
    assert [event.step for event in steps.Scalars("loss")] == [3, 4, 7, 8]
    tags = set(steps.Tags()["scalars"])
    assert {"lr", "images_per_s", "graph.gamma.0", "similarity.visible.gamma.0"} <= tags
    assert epochs.Tags()["images"] == ["batch/visible", "batch/infrared"]
    assert "_hparams_/session_start_info" in epochs.summary_metadata


def test_keep_bounds_the_epoch_files(train, script):
    assert train("--epochs", 3, "--save_epoch", 1, "--keep", 2).returncode == 0
    kept = (script.cwd / "save_model").glob("*_epoch_[0-9]*")
    assert sorted(path.name.split("_")[-1] for path in kept) == ["2.t", "3.t"]


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
    assert again.stderr.count("\n") == 1 and train("--name", "mine").returncode == 0
    (path,) = (script.cwd / "save_model").glob("*_none_trial_1_last.t")
    (script.cwd / f"save_model/.{path.name}.123.tmp").write_text("half")  # of a run that was killed
    others = script.cwd / f"save_model/.{path.name.replace('_last', '_x_last')}.123.tmp"
    others.write_text("half")  # of another run, which may be writing it
    assert train("--overwrite", "--lr", 0.02).returncode == 0
    assert [path.name for path in (script.cwd / "save_model").glob(".*")] == [others.name]
    assert all(torch.equal(value, torch.load(path, weights_only=True)["net"][key])
               for key, value in before["net"].items())


# ---------------------------------------------------------------------------------------- resuming to the bit
@pytest.fixture(scope="session")
def left_alone(once):
    """The data, and what a run leaves that nothing ends."""
    def make(folder):
        (folder / "run").mkdir()
        words = [scripts.ROOT / "train.py", *flags(make_regdb(folder / "RegDB", images=6))]
        done = scripts.run(words, folder / "run")
        assert done.returncode == 0, done.stderr

    folder = once("left_alone", make)
    return folder / "RegDB", weights(folder / "run"), figures(folder / "run"), weights(folder / "run", "best")


def require_same(cwd, left_alone):
    _, last, logged, best = left_alone
    found = weights(cwd)
    assert all(torch.equal(value, found["net"][name]) for name, value in last["net"].items())
    assert [g["lr"] for g in found["optimiser"]["param_groups"]] == [
        g["lr"] for g in last["optimiser"]["param_groups"]]
    for key, state in last["optimiser"]["state"].items():
        assert torch.equal(state["momentum_buffer"], found["optimiser"]["state"][key]["momentum_buffer"])
    assert (found["epoch"], found["best"]) == (3, last["best"])
    assert figures(cwd) == logged
    again = weights(cwd, "best")
    assert again["epoch"] == best["epoch"]
    assert all(torch.equal(value, again["net"][name]) for name, value in best["net"].items())


@pytest.mark.parametrize("kind, number", [("step", 8), ("write", 4), ("after", 2)])
def test_kill_9_anywhere(kind, number, left_alone, script):
    words = flags(left_alone[0])
    assert scripts.run(ending.end_by(kind, number, 9, words), script.cwd).returncode == -9
    resumed = script("train.py", *words, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


@pytest.mark.parametrize("signum, kind, number", [(2, "step", 5), (15, "evaluation", 2), (1, "step", 2)])
def test_signals_end_a_run_and_name_the_command_that_goes_on(signum, kind, number, left_alone, script):
    with ending.end_at(kind, number, signum):
        stopped = script("train.py", *flags(left_alone[0]))
    assert stopped.returncode == 128 + signum
    (line,) = [line for line in stopped.stderr.splitlines() if not line.startswith("warning")]
    again = re.fullmatch(r"train.py: stopped in epoch \d; go on with: python (.*)", line)[1].split()
    assert (again[1:3] == ["--resume", LAST]) == (script.cwd / LAST).exists()
    resumed = script(*again)
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


def test_resume_from_an_epoch_file_ends_as_the_run_left_alone(left_alone, script):
    words = flags(left_alone[0])
    assert script("train.py", *words, "--save_epoch", 1).returncode == 0
    resumed = script("train.py", "--resume", LAST.replace("_last", "_epoch_1"), "--gpu", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    require_same(script.cwd, left_alone)


@pytest.fixture(scope="session")
def stopped_run(once, left_alone):
    """A run on that data that ended after two epochs; only read."""
    def make(folder):
        with ending.end_at("step", 13, 15):
            assert scripts.run([scripts.ROOT / "train.py", *flags(left_alone[0])], folder).returncode == 143

    return once("stopped", make)


@pytest.fixture
def stopped(stopped_run, script):
    """A copy of it in the folder in which `script` runs."""
    shutil.copytree(stopped_run, script.cwd, dirs_exist_ok=True)


def test_resume_refuses_another_run(left_alone, stopped, script, regdb):
    for words, expected in ((("--data-path", regdb), "on data"),
                            (("--method", "agw"), "--method agw: the checkpoint"),
                            (("--arch", "resnet50"), "--arch resnet50"),
                            (("--batch-size", "3"), "--batch-size 3"),
                            (("--set", "graph=None"), "--set graph=None")):
        done = script("train.py", "--resume", LAST, "--gpu", "cpu", *words)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    best = script("train.py", "--resume", LAST.replace("last", "best"), "--gpu", "cpu")
    assert best.returncode == 2 and "weights only" in best.stderr


def change(path, **changes):
    """Change keys of a checkpoint."""
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def test_resume_refuses_another_number_of_processes_and_another_optimiser(stopped, script):
    whole = (script.cwd / LAST).read_bytes()
    for changes, expected in (
            ({"processes": 2}, "a run of 2 process(es) found, 1 started; go on with torchrun"),
            ({"optimiser": {"state": {}, "param_groups": []}}, "its optimiser does not fit this run")):
        (script.cwd / LAST).write_bytes(whole)
        change(script.cwd / LAST, **changes)
        done = script("train.py", "--resume", LAST, "--gpu", "cpu")
        assert done.returncode == 2 and expected in done.stderr, done.stderr


def test_a_best_file_that_is_gone_is_counted_anew(stopped, script):
    (script.cwd / LAST.replace("last", "best")).unlink()
    done = script("train.py", "--resume", LAST, "--gpu", "cpu")
    assert done.returncode == 0 and "the best is counted anew from epoch 3" in done.stderr
    assert weights(script.cwd, "best")["epoch"] == 3


def test_files_of_a_name_from_before_go_on_under_it(stopped, script):
    for kind in ("last", "best"):
        (script.cwd / f"save_model/{NAME}_{kind}.t").rename(script.cwd / f"save_model/old_{kind}.t")
    change(script.cwd / "save_model/old_last.t", name="")
    assert script("train.py", "--resume", "save_model/old_last.t", "--gpu", "cpu").returncode == 0
    assert {path.name for path in (script.cwd / "save_model").glob("*.t")} == {"old_last.t", "old_best.t"}
    assert weights(script.cwd)["epoch"] == 3


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
    words = ("train.py", *flags(left_alone[0]), "--seed", 6, "--epochs", 1, "--init", LAST)
    done = script(*words)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "--init" in line and "tensors" in line)
    assert re.search(r": (\d+) of \1 tensors and 100 % of the backbone's parameters came from the file", line)
    refused = script(*words, "--method", "base")  # whose stage 1 the file has twice
    assert refused.returncode == 2 and "lacks shared.layer1.0.conv1.weight" in refused.stderr, refused.stderr
    leaked = script(*words, "--trial", 2)
    assert leaked.returncode == 2 and "trained on trial 1, whose training persons" in leaked.stderr


def test_pretrained_file_and_what_is_said_without_one(train, script, tmp_path):
    import torchvision
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    done = train("--lr", "1e-30", "--pretrained", tmp_path / "resnet18.pth")
    assert done.returncode == 0, done.stderr
    assert torch.equal(weights(script.cwd)["net"]["streams.visible.conv1.weight"], state["conv1.weight"])
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "part.pth")
    refused = train("--pretrained", tmp_path / "part.pth")
    assert refused.returncode == 2 and "bn1.weight" in refused.stderr and refused.stderr.count("\n") <= 2
    offline = train("--pretrained", "imagenet",
                    env={"TORCH_HOME": str(tmp_path / "none"), "https_proxy": "http://127.0.0.1:9"})
    assert offline.returncode == 2 and f"put that file at {tmp_path / 'none'}" in offline.stderr


# --------------------------------------------------------------------------------------- refused or warned of
def test_a_loss_that_is_not_finite_stops_the_run(train, script):
    done = train("--epochs", 3, "--lr", "1e30", "--print-freq", 1)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(r"epoch \d, step \d+: the loss is not finite \(loss \S+ id .*; lower --lr, or use", line)
    assert not list((script.cwd / "save_model").glob("*_last.t"))


def test_weights_that_are_not_finite_are_not_written(train, script, monkeypatch):
    def broken(net, *_):
        net.bottleneck.running_var[1] = torch.inf
        return {"bnneck/rank-1": 1.0, "bnneck/mAP": 1.0, "pool/rank-1": 1.0, "pool/mAP": 1.0}

    monkeypatch.setattr("train.evaluate", broken)
    done = train()
    assert done.returncode == 2
    assert "bottleneck.running_var is not finite; checkpoints of earlier" in done.stderr
    assert not list((script.cwd / "save_model").glob("*.t"))


def test_an_evaluation_that_fails_ends_the_run(regdb, train):
    name = (regdb / "idx/test_visible_1.txt").read_text().split()[0]
    (regdb / name).write_bytes(b"")
    done = train()
    assert done.returncode == 2 and name in done.stderr.splitlines()[-1]


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


def test_a_folder_that_vanishes_while_training_is_one_line(train, script):
    from torch.optim.optimizer import register_optimizer_step_post_hook
    models = script.cwd / "save_model"
    hook = register_optimizer_step_post_hook(lambda *_: shutil.rmtree(models, ignore_errors=True))
    try:
        done = train()
    finally:
        hook.remove()
    assert done.returncode == 2
    assert re.search(r"save_model/\S+: cannot be written \(.*\)", done.stderr.splitlines()[-1])


def test_no_compiler_is_found_out_before_the_first_step(train, script, tmp_path):
    done = train("--compile", env={"CXX": "/nowhere/c++", "PATH": "/nowhere",
                                   "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}, fresh=True)
    assert done.returncode == 2 and "--compile: torch.compile does not work here" in done.stderr
    assert not list(script.cwd.glob("save_model/*.t"))

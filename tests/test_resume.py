"""A run killed and resumed ends as the run left alone: the same bits in weights, optimiser and log."""
import os
import re
import shutil

import pytest
import scripts
import torch
from conftest import ROOT, SMALL, make_regdb
from test_train import figures, weights

from checkpoint import load_init
from model import build_network
from utils import UserError

# The function at whose beginning a run is ended in its evaluation.
EVALUATION = "train.evaluate"
# Runs train.py and ends it at the n-th event of a kind: after a step, half-way through a write, before or
# after a rename.
DRIVER = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
kind, number, signum = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv[:4] = ["train.py"]
import functools, importlib
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
import train, utils
count = 0

def due(this):
    global count
    count += this == kind
    return this == kind and count == number

def step(*_):
    if due("step"):
        os.kill(os.getpid(), signum)

def save(content, path, original=torch.save):
    original(content, path)
    if due("write"):
        with open(path, "rb+") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signum)

def replace(source, target, original=os.replace):
    if str(target).endswith(".t") and due("before"):
        os.kill(os.getpid(), signum)
    original(source, target)
    if str(target).endswith(".t") and due("after"):
        os.kill(os.getpid(), signum)

*path, name = {EVALUATION!r}.split(".")
owner = functools.reduce(getattr, path[1:], importlib.import_module(path[0]))

def evaluate(*args, original=getattr(owner, name), **options):
    if due("evaluation"):
        os.kill(os.getpid(), signum)
    return original(*args, **options)

setattr(owner, name, evaluate)
torch.save, os.replace = save, replace
register_optimizer_step_post_hook(step)
utils.run(train.main)
"""


def flags(data):
    return ("--dataset", "regdb", "--data-path", str(data), "--epochs", "3", "--method", "cgrnet", *SMALL,
            "--eval-every", "1", "--seed", "5")


def drive(cwd, *words):
    cwd.mkdir(exist_ok=True)
    return scripts.run(["-c", DRIVER, *words], cwd)


@pytest.fixture(scope="session")
def left_alone(once):
    """The data, and what a run leaves that nothing ends."""
    def make(folder):
        done = drive(folder / "run", "never", 0, 0, *flags(make_regdb(folder / "RegDB", images=6)))
        assert done.returncode == 0, done.stderr

    folder = once("left_alone", make)
    return folder / "RegDB", weights(folder / "run"), figures(folder / "run"), weights(folder / "run", "best")


@pytest.fixture(scope="session")
def killed_run(once, left_alone):
    """A run on that data that was killed after its second checkpoint; only read."""
    def make(folder):
        assert drive(folder / "run", "after", 2, 9, *flags(left_alone[0])).returncode == -9

    return once("killed", make) / "run"


@pytest.fixture
def killed(killed_run, tmp_path):
    """A copy of it in the folder in which `script` runs."""
    shutil.copytree(killed_run, tmp_path / "cwd", dirs_exist_ok=True)


def require_same(cwd, left_alone):
    _, last, logged, best = left_alone
    found = weights(cwd)
    assert all(torch.equal(value, found["net"][name]) for name, value in last["net"].items())
    assert [g["lr"] for g in found["optimiser"]["param_groups"]] == [
        g["lr"] for g in last["optimiser"]["param_groups"]]
    for key, state in last["optimiser"]["state"].items():
        assert torch.equal(state["momentum_buffer"], found["optimiser"]["state"][key]["momentum_buffer"])
    assert (found["epoch"], found["step"], found["best"]) == (3, 0, last["best"])
    assert figures(cwd) == logged
    again = weights(cwd, "best")
    assert again["epoch"] == best["epoch"]
    assert all(torch.equal(value, again["net"][name]) for name, value in best["net"].items())


NAME = "save_model/regdb_cgrnet_p2_n2_lr_0.02_seed_5_resnet18_32x16_epochs_3_trial_1_last.t"


@pytest.mark.parametrize("kind, number",
                         [("step", 8), ("write", 4), ("before", 3), ("after", 2), ("evaluation", 2)])
def test_kill_9_anywhere(kind, number, left_alone, tmp_path):
    killed = drive(tmp_path / "run", kind, number, 9, *flags(left_alone[0]))
    assert killed.returncode == -9
    resumed = drive(tmp_path / "run", "never", 0, 0, "--resume", NAME, "--data-path", left_alone[0],
                    "--gpu", "cpu", "--eval-every", 1, "--workers", 1)
    assert resumed.returncode == 0, resumed.stderr
    require_same(tmp_path / "run", left_alone)


@pytest.mark.parametrize("signum, status, "
                         "kind", [(2, 130, "step"), (15, 143, "step"), (15, 143, "evaluation")])
def test_signals_end_the_step_and_say_how_to_go_on(signum, status, kind, left_alone, tmp_path):
    stopped = drive(tmp_path / "run", kind, 2, signum, *flags(left_alone[0]))
    assert stopped.returncode == status
    line = stopped.stderr.strip().splitlines()[-1]
    assert "go on with: python train.py --resume" in line and "Traceback" not in stopped.stderr
    resumed = drive(tmp_path / "run", "never", 0, 0, "--resume", NAME, "--data-path", left_alone[0],
                    "--gpu", "cpu", "--eval-every", 1, "--workers", 1)
    assert resumed.returncode == 0, resumed.stderr
    require_same(tmp_path / "run", left_alone)


def test_resume_refuses_another_run(left_alone, killed, script, regdb):
    base = ("train.py", "--resume", NAME, "--gpu", "cpu")
    for words, expected in ((("--data-path", regdb), "on data"),
                            (("--data-path", left_alone[0], "--method", "agw"), "--method agw"),
                            (("--data-path", left_alone[0], "--arch", "resnet50"), "--arch resnet50"),
                            (("--data-path", left_alone[0], "--batch-size", "3"), "--batch-size 3")):
        done = script(*base, *words)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    best = script("train.py", "--resume", NAME.replace("last", "best"),
                  "--data-path", left_alone[0], "--gpu", "cpu")
    assert best.returncode == 2 and "weights only" in best.stderr


def test_resume_refuses_images_of_other_content_and_equal_size(left_alone, killed, tmp_path, script):
    data = shutil.copytree(left_alone[0], tmp_path / "RegDB")
    image = data / (data / "idx/train_visible_1.txt").read_text().split()[0]
    content = bytearray(image.read_bytes())
    content[-1] ^= 255
    image.write_bytes(content)
    done = script("train.py", "--resume", NAME, "--gpu", "cpu", "--data-path", data)
    assert done.returncode == 2 and "trained on data" in done.stderr


def change(path, **changes):
    """Change a checkpoint: keys of its own, or of its arguments."""
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        (content if key in content else content["args"])[key] = value
    torch.save(content, path)


def test_resume_believes_nothing_that_a_flag_could_not_say(left_alone, killed, script):
    path = script.cwd / NAME
    whole = path.read_bytes()
    for changes, expected in (
            ({"lr": float("nan")}, "--lr nan found in it"), ({"batch_size": 0}, "--batch-size 0 found in it"),
            ({"optim": "foo"}, "--optim foo found in it"), ({"seed": -3}, "--seed -3 found in it"),
            ({"schedule": "foo"}, "--schedule foo found in it"),
            ({"epoch": -1}, "does not fit this run"), ({"step": 99}, "does not fit this run"),
            ({"processes": 2}, "a run of 2 process(es) found, 1 started; go on with torchrun")):
        path.write_bytes(whole)
        change(path, **changes)
        done = script("train.py", "--resume", NAME, "--gpu", "cpu", "--data-path", left_alone[0])
        assert done.returncode == 2 and expected in done.stderr, (changes, done.stderr)
        assert "Traceback" not in done.stderr, (changes, done.stderr)


def test_init_from_another_trial_is_refused(left_alone, killed, script):
    done = script("train.py", "--init", NAME, *flags(left_alone[0]), "--trial", 2)
    assert done.returncode == 2 and "--init" in done.stderr
    assert "trained on trial 1, whose training persons" in done.stderr


def test_a_new_run_of_the_same_name_knows_what_is_of_the_earlier_one(left_alone, script):
    """It warns of it, keeps its newest epoch files, clears half-written ones, claims no other's checkpoint.
    """
    common = ("train.py", *flags(left_alone[0]), "--method", "base", "--save_epoch", 1, "--keep", 1)
    models = script.cwd / "save_model"
    name = "regdb_base_p2_n2_lr_0.02_seed_5_resnet18_32x16_epochs_1_trial_1"
    models.mkdir()
    for kind in ("last.t", "epoch_9.t"):
        (models / f"{name}_{kind}").write_text("junk")
    (models / f".{name}_last.t.123.tmp").write_text("half")
    done = script(*common, "--epochs", 1)
    assert done.returncode == 0 and f"{name}_last.t: a run of this name is there" in done.stderr, done.stderr
    assert sorted(path.name for path in models.glob("*.t")) == [
        f"{name}_{kind}.t" for kind in ("best", "epoch_1", "epoch_9", "last")]
    again = script(*common, "--epochs", 1, "--model_path", "elsewhere")
    assert f"{name}.jsonl: a run of this name is there" in again.stderr
    (models / f"{name.replace('0.02', '1e+30').replace('epochs_1', 'epochs_3')}_last.t").write_text("junk")
    broken = script(*common[:-4], "--lr", "1e30", "--print-freq", 1)
    assert broken.returncode == 2 and "no checkpoint was written yet" in broken.stderr


def test_init_takes_weights_and_says_what_came_and_what_not(left_alone, killed, script):
    common = ("train.py", "--init", NAME, *flags(left_alone[0]), "--seed", 6, "--epochs", 1)
    done = script(*common)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "--init" in line and "tensors" in line)
    assert re.search(r": (\d+) of \1 tensors and 100 % of the backbone's parameters came from the file; "
                     "every key used", line)
    refused = script(*common, "--method", "base")  # whose stage 1 the file has twice
    assert refused.returncode == 2, refused.stderr
    assert "lacks shared.layer1.0.conv1.weight" in refused.stderr, refused.stderr


def test_init_reads_bare_state_dicts_and_the_prefix_of_data_parallel_training(tmp_path):
    torch.manual_seed(0)
    base, net = (build_network("base", "resnet18", classes) for classes in (5, 3))
    torch.save({f"module.{name}": value for name, value in base.state_dict().items()}, tmp_path / "bare.t")
    line = load_init(net, str(tmp_path / "bare.t"), "sysu", 1)
    assert line.endswith("left out: classifier.weight") and "100 % of the backbone" in line
    assert torch.equal(net.shared["layer4"][1].conv2.weight, base.shared["layer4"][1].conv2.weight)


def test_init_refuses_another_architecture_by_the_first_layer_that_is_missing(tmp_path):
    torch.save(build_network("base", "resnet18", 3).state_dict(), tmp_path / "small.t")
    with pytest.raises(UserError, match="small.t: .* shared.layer1.0.conv1.weight has shape .64, 64, "
                       "3, 3., .64, 64, 1, 1. expected"):
        load_init(build_network("base", "resnet50", 3), str(tmp_path / "small.t"), "sysu", 1)


def test_init_of_cgrnet_from_base_starts_as_that_base(tmp_path):
    """With all gammas at 0 the network is its first one, a base; both streams get its shared stage 1."""
    torch.manual_seed(0)
    base, net = (build_network(method, "resnet18", 3).to(memory_format=torch.channels_last).eval()
                 for method in ("base", "cgrnet"))
    torch.save({"net": base.state_dict()}, tmp_path / "base.t")
    left_out = load_init(net, str(tmp_path / "base.t"), "sysu", 1).partition("left out: ")[2].split(", ")
    assert left_out and all(name.startswith(("graph.", "similarity.")) for name in left_out)
    images = torch.randn(2, 3, 48, 24)
    for modality in ("visible", "infrared"):
        assert torch.equal(net(**{modality: images}).neck, base(**{modality: images}).neck)


def test_a_run_in_use_is_refused(left_alone, tmp_path, script):
    import filelock
    folder = script.cwd / "save_model"
    folder.mkdir()
    with filelock.FileLock(folder
                           / ".regdb_cgrnet_p2_n2_lr_0.02_seed_5_resnet18_32x16_epochs_3_trial_1.lock"):
        done = script("train.py", *flags(left_alone[0]))
    assert done.returncode == 2 and "a living process is training" in done.stderr


def test_keep_bounds_the_epoch_files(left_alone, script):
    done = script("train.py", *flags(left_alone[0]), "--save_epoch", 1, "--keep", 2)
    assert done.returncode == 0, done.stderr
    kept = sorted(name for name in os.listdir(script.cwd / "save_model") if "_epoch_" in name)
    assert [name.split("_")[-1] for name in kept] == ["2.t", "3.t"]

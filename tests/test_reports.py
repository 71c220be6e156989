"""What users of this field and of its libraries report elsewhere, through the real command line."""
from __future__ import annotations

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
from conftest import ROOT, SMALL, make_llcm
from test_faults import RUN, make_world

from model import METHODS, build_network
from train import warn_of_stuck_triplet

DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
exec(sys.argv.pop(1))
import importlib.util
sys.argv.pop(0)
spec = importlib.util.spec_from_file_location("script", {str(ROOT)!r} + "/" + sys.argv[0])
script = importlib.util.module_from_spec(spec)
sys.modules["script"] = script
spec.loader.exec_module(script)
script.run(script.main)
"""


@pytest.fixture(scope="module")
def world(once):
    """The small data sets, arrays and run of `test_faults`, only read."""
    folder = once("world", make_world)
    return SimpleNamespace(sysu=folder / "SYSU-MM01", regdb=folder / "RegDB", arrays=folder / "arrays",
                           last=folder / f"save_model/{RUN}_last.t", best=folder / f"save_model/{RUN}_best.t")


@pytest.fixture
def changed(tmp_path):
    """Run a script with something changed before: changed(source, "train.py", *words)."""
    def call(source, *words, **options):
        (tmp_path / "cwd").mkdir(exist_ok=True)
        return scripts.run(["-c", DRIVER, source, *words], tmp_path / "cwd", **options)
    return call


@pytest.fixture
def train(script, world):
    """Train on RegDB for an epoch or so."""
    return lambda *words, **options: script("train.py", "--dataset", "regdb", "--data-path", world.regdb,
                                            "--epochs", 1, "--method", "base", *SMALL, *words, **options)


def errors(done):
    return [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]


def words(world, *more):
    return ("train.py", "--dataset", "regdb", "--data-path", world.regdb, "--method", "base", *SMALL, *more)


# ------------------------------------------------------------------------------------------------- evaluation
OVERFLOW = """
import features
original, calls = features.extract, []
def overflow(*args, **kwargs):
    found = original(*args, **kwargs)
    calls.append(1)
    if len(calls) <= 2:  # both modalities of the first evaluation
        found.pool[0] = float("inf")
    return found
features.extract = overflow
"""


def test_an_evaluation_that_fails_is_a_warning_and_training_goes_on(world, changed, tmp_path):
    done = changed(OVERFLOW, *words(world, "--epochs", 2, "--eval-every", 1))
    assert done.returncode == 0 and not errors(done), done.stderr
    assert len(re.findall("warning: epoch 0: the evaluation failed, no figures of this epoch, the run goes "
                          r"on: .* its pool feature is not finite \(1 of 16 such\).*running statistics",
                          done.stderr)) == 1
    (log,) = (tmp_path / "cwd").glob("log/regdb_log/*.jsonl")
    first, second = map(json.loads, log.read_text().splitlines())
    assert "pool/mAP" not in first and 0 <= second["pool/mAP"] <= 1
    assert "in epoch 1: " in done.stdout.splitlines()[-1]


def test_test_images_that_cannot_be_read_end_no_training(script, world, tmp_path):
    root = shutil.copytree(world.regdb, tmp_path / "RegDB")
    name = (root / "idx/test_visible_1.txt").read_text().split()[0]
    (root / name).write_bytes(b"")
    done = script("train.py", "--dataset", "regdb", "--data-path", root, "--epochs", 1,
                  "--method", "base", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "epoch 0: the evaluation failed, no figures of this epoch, the run goes on" in done.stderr
    assert done.stdout.splitlines()[-1] == f"done, without figures: save_model/{RUN}_last.t"
    assert [path.name for path in (script.cwd / "save_model").glob("*.t")] == [f"{RUN}_last.t"]


def test_non_local_blocks_from_scratch_keep_to_a_tenth():
    """At the full rate, their cubic product outgrows the running statistics behind it within an epoch."""
    net = build_network("agw", "resnet18", 3)
    rates = {id(p): group["lr"] for group in net.parameter_groups(0.1, pretrained=False)
             for p in group["params"]}
    tenths = [rates[id(p)] for p in net.non_local.parameters()]
    assert tenths == pytest.approx([0.01] * len(tenths))
    assert rates[id(net.shared["layer4"][0].conv1.weight)] == 0.1


def test_a_weighted_triplet_loss_stuck_at_ln_2_is_warned_of(capsys):
    for name, method, stuck, other in (("weighted_triplet", "agw", 0.6931, 0.67),
                                       ("triplet", "base", 0.3001, 0.29)):
        warn_of_stuck_triplet({"epoch": 3, name: stuck}, METHODS[method])
        assert "epoch 3: the " + name.replace("_", " ") + " loss stayed at" in capsys.readouterr().err
        warn_of_stuck_triplet({"epoch": 3, name: other}, METHODS[method])
        assert not capsys.readouterr().err


# ------------------------------------------------------------------------------------- found out at the start
@pytest.mark.parametrize("source, flags, expected", [
    ("sys.modules['tensorboard'] = None\nfor name in [n for n in sys.modules if "
     "n.startswith('torch.utils.tensorboard')]:\n    del sys.modules[name]", (),
     "TensorBoard does not start .*; run: pip install --upgrade tensorboard protobuf"),
    ("import torch.utils.tensorboard as t\ndef broken(*_, **__): "
     "raise TypeError('Descriptors cannot be created directly.')\nt.SummaryWriter = broken", (),
     r"TensorBoard does not start \(TypeError: Descriptors"),
    ("import os\nos.environ |= {'CXX': '/nowhere/c++', 'PATH': '/nowhere'}", ("--compile",),
     r"--compile: torch.compile does not work here \(.*\); "
     r"install a C\+\+ compiler .* or leave --compile out")])
def test_what_a_run_needs_is_tried_before_its_first_step(source, flags, expected, world, changed, tmp_path):
    done = changed(source, *words(world, "--epochs", 1, *flags),
                   env={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 2 and len(errors(done)) == 1, done.stderr
    assert re.search(expected, errors(done)[0]), done.stderr
    assert not list((tmp_path / "cwd").glob("save_model/*.t")) and "epoch 0" not in done.stdout


def test_tensorboard_that_fails_on_the_way_costs_nothing_else(world, changed, tmp_path):
    source = ("import torch.utils.tensorboard as t\ndef broken(*_, **__): "
              "raise OSError(28, 'No space left on device')\nt.SummaryWriter.add_scalar = broken")
    done = changed(source, *words(world, "--epochs", 2))
    assert done.returncode == 0 and done.stderr.count("the run goes on without TensorBoard") == 1, done.stderr
    assert torch.load(tmp_path / f"cwd/save_model/{RUN.replace('epochs_1', 'epochs_2')}_last.t",
                      weights_only=True)["epoch"] == 2


def test_a_broken_matplotlib_is_found_before_a_test_and_out_stays_away(world, changed, tmp_path):
    source = ("for name in [n for n in sys.modules if n.startswith('matplotlib')]:\n"
              "    del sys.modules[name]\n"
              "sys.modules['matplotlib'] = None")
    test = ("test.py", "--resume", world.last, "--data-path", world.regdb, "--gpu", "cpu")
    done = changed(source, *test, "--out", "found")
    assert done.returncode == 2 and len(errors(done)) == 1, done.stderr
    assert "--out: Matplotlib, which draws the figures, does not load" in errors(done)[0]
    assert not (tmp_path / "cwd/found").exists()
    done = changed(source, "search.py", "a.npz", "b.npz", "--out", "found")
    assert done.returncode == 2, done.stderr
    assert "Matplotlib, which draws the figures, does not load" in errors(done)[0]
    assert changed(source, *test).returncode == 0  # draws nothing


# ------------------------------------------------------------------------------------------------------ locks
@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_one_warning_of_each_folder(number, world, changed, tmp_path):
    source = ("import errno, fcntl, os\n"
              f"def flock(*_): raise OSError(errno.{number}, os.strerror(errno.{number}))\n"
              "fcntl.flock = flock")
    done = changed(source, *words(world, "--epochs", 1))
    assert done.returncode == 0 and not errors(done), done.stderr
    said = re.findall("warning: (.*): its file system has no locks .*, going on without", done.stderr)
    assert said == ["save_model", "log/regdb_log"], done.stderr
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    for _ in range(2):
        done = changed(source, "pre_process_sysu.py", "--data-path", root, "--img_w", 16, "--img_h", 32,
                       "--workers", 0)
        assert done.returncode == 0 and done.stderr.count("has no locks") == 1, done.stderr
        assert str(root) in done.stderr, done.stderr


# ----------------------------------------------------------------------- silent replacement, misleading words
def test_the_record_of_another_checkpoint_of_the_same_name_stays(script, world, tmp_path):
    other = tmp_path / "other" / world.last.name
    other.parent.mkdir()
    content = torch.load(world.last, weights_only=True)
    torch.save({**content, "epoch": 7}, other)
    test = ("test.py", "--data-path", world.regdb, "--gpu", "cpu", "--resume")
    said = [script(*test, path).stdout.splitlines()[-1] for path in (world.last, other, world.last, other)]
    name = RUN.replace(".", "-").replace("0-02", "0.02")
    assert said[0] == said[2] == f"results: results/{name}_last_regdb-v2i.json"
    assert said[1] == said[3] == said[0].replace(".json", "_2.json")
    hashes = {json.loads(path.read_text())["checkpoint"]["sha256"][0]
              for path in (script.cwd / "results").glob("*.json")}
    assert len(hashes) == 2
    assert script(*test, world.last, "--out", "found").stderr.count("is replaced") == 0
    done = script(*test, other, "--out", "found")
    assert "--out found: the record of another test was there and is replaced" in done.stderr


def test_a_run_that_goes_on_elsewhere_takes_its_best_file_along(script, world, tmp_path):
    resume = ("train.py", "--data-path", world.regdb, "--gpu", "cpu", "--epochs", 1,
              "--model_path", "new", "--resume")
    done = script(*resume, world.last)
    assert done.returncode == 0, done.stderr
    named = done.stdout.splitlines()[-1].rpartition(": ")[2]
    assert named == f"new/{RUN}_best.t" and (script.cwd / named).read_bytes() == world.best.read_bytes()
    again = script(*resume, world.last)
    assert again.returncode == 0  # its last file was never replaced: no step was left
    lonely = shutil.copy(world.last, tmp_path / world.last.name)
    done = script(*resume[:-2], "third", "--resume", lonely, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert "is not there; the best is counted anew from epoch 1" in done.stderr
    assert (script.cwd / f"third/{RUN}_best.t").exists() and "in epoch 1" in done.stdout.splitlines()[-1]


def test_arrays_of_other_code_are_not_replaced_without_a_word(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    np.save(root / "train_rgb_resized_img.npy", np.zeros(3))
    pre = ("pre_process_sysu.py", "--data-path", root, "--img_w", 16, "--img_h", 32, "--workers", 0)
    elsewhere = script(*pre, "--arrays", tmp_path / "arrays")
    assert elsewhere.returncode == 0 and "will be replaced" not in elsewhere.stderr
    assert len(np.load(root / "train_rgb_resized_img.npy")) == 3
    done = script(*pre)
    assert done.returncode == 0
    assert re.search("train_rgb_resized_img.npy: without .*, so made by other code or cut short; "
                     r"will be replaced \(--arrays DIR", done.stderr)
    assert "will be replaced" not in script(*pre).stderr


def test_arrays_in_a_folder_of_their_own(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    train = ("train.py", "--data-path", root, "--epochs", 1, *SMALL, "--arrays", tmp_path / "arrays")
    lacking = script(*train)
    command = re.search(r"--arrays \S+: no train_resized_img.json in it; run: python (.*)",
                        errors(lacking)[0])[1].split()
    assert lacking.returncode == 2 and script(*command).returncode == 0
    assert not list(root.glob("*.npy")) and len(list((tmp_path / "arrays").glob("*.npy"))) == 4
    other = make_llcm(tmp_path / "LLCM")
    mixed = script("pre_process_llcm.py", "--data-path", other, "--arrays", tmp_path / "arrays")
    assert mixed.returncode == 2 and "of another data set found" in errors(mixed)[0], mixed.stderr
    for image in root.glob("cam1/0001/*"):  # training reads none: marks come from the manifest
        os.chmod(image, 0)
    assert script(*train).returncode == 0
    refused = script("train.py", "--dataset", "regdb", "--data-path", world.regdb, "--arrays", "x")
    assert "--arrays x belongs to SYSU-MM01 and LLCM, but the data set is regdb" in refused.stderr


def test_an_image_of_another_format_is_named(script, world, tmp_path):
    from PIL import Image
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    Image.new("RGB", (24, 48)).save(root / "cam1/0001/0001.jpg", "GIF")
    done = script("pre_process_sysu.py", "--data-path", root, "--workers", 0)
    assert done.returncode == 2
    assert re.search(r"0001.jpg: a GIF file \(JPEG, PNG, BMP, TIFF, WEBP are read\) found", done.stderr)


def test_one_person_and_regdb_with_one_trial(script, world, tmp_path):
    root = shutil.copytree(world.regdb, tmp_path / "RegDB")
    for trial in range(2, 11):
        for path in (root / "idx").glob(f"*_{trial}.txt"):
            path.unlink()
    checked = script("data_manager.py", root)
    assert checked.returncode == 0 and checked.stdout.splitlines()[-1].startswith("usable")
    assert "note, trials without lists: 9" in checked.stdout
    for name in ("visible", "thermal"):
        path = root / f"idx/train_{name}_1.txt"
        path.write_text("".join(line for line in path.open() if line.endswith(" 0\n")))
    done = script("train.py", "--dataset", "regdb", "--data-path", root, *SMALL)
    assert errors(done) == ["train.py: error: 1 training person found, at least 2 expected, "
                            "as a triplet needs another; add persons to the training lists"]


def test_a_longer_cosine_is_said_and_the_run_keeps_its_name(train, script, world):
    assert train("--schedule", "cosine", "--epochs", 2).returncode == 0
    name = RUN.replace("epochs_1", "cosine_epochs_2")
    resume = ("train.py", "--resume", f"save_model/{name}_last.t", "--data-path", world.regdb, "--gpu", "cpu")
    done = script(*resume, "--epochs", 3)
    assert done.returncode == 0, done.stderr
    assert re.search("--epochs 3: the run began with --epochs 2, and --schedule cosine goes by its length: "
                     r"the rate of epoch 2 is 0\.005, not 0", done.stderr)
    assert {path.name for path in (script.cwd / "save_model").glob("*.t")} == {
        f"{name}_{kind}.t" for kind in ("best", "last")}
    assert "goes by its length" not in script(*resume).stderr


def test_files_of_a_name_from_before_go_on_under_it(script, world, tmp_path):
    old = RUN.replace("_resnet18_32x16_epochs_1", "")
    content = torch.load(world.last, weights_only=True)
    del content["name"]
    (script.cwd / "save_model").mkdir()
    torch.save(content, script.cwd / f"save_model/{old}_last.t")
    shutil.copy(world.best, script.cwd / f"save_model/{old}_best.t")
    done = script("train.py", "--resume", f"save_model/{old}_last.t", "--data-path", world.regdb,
                  "--gpu", "cpu", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (script.cwd / "save_model").glob("*.t")} == {
        f"{old}_{kind}.t" for kind in ("best", "last")}


def test_queries_that_see_no_match_are_counted(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    for pid in ("0005", "0006"):  # whom only camera 2 shows indoors, which queries of camera 3 do not see
        shutil.rmtree(root / "cam1" / pid)
    for path in (root / "cam1").iterdir():
        shutil.copytree(path, root / "cam1/0005") if path.name == "0001" else None
    sysu = dict(torch.load(world.last, weights_only=True))
    sysu["args"] = {**sysu["args"], "dataset": "sysu"}
    torch.save(sysu, tmp_path / "sysu.t")
    done = script("test.py", "--resume", tmp_path / "sysu.t", "--data-path", root, "--mode", "indoor",
                  "--gpu", "cpu", "--out", "found")
    assert done.returncode == 0, done.stderr
    assert "queries that see no match, left out of the mean: 2 of 8" in done.stdout
    done = script("train.py", "--test-only", "--resume", tmp_path / "sysu.t", "--data-path", root, "--mode",
                  "indoor", "--direction", "i2v", "--gpu", "cpu")
    assert "queries that see no match, left out of the mean: 2 of 8" in done.stdout, done.stderr
    record = json.loads((script.cwd / "found/results.json").read_text())
    assert {trial["queries_without_match"] for trial in record["trials"]} == {2}


@pytest.mark.parametrize("said", ["could not create a primitive", "could not create a memory object",
                                  "can't start new thread",
                                  "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"])
def test_short_memory_is_one_line(said, world, changed):
    source = ("import torch\n"
              f"def broken(*_, **__): raise RuntimeError({said!r})\n"
              "torch.Tensor.backward = broken")
    done = changed(source, *words(world, "--epochs", 1))
    assert done.returncode == 2 and len(errors(done)) == 1, done.stderr
    assert "out of memory (" in errors(done)[0], done.stderr


# --------------------------------------------------------------------------------------- asked for by several
def test_a_model_of_one_data_set_on_another(script, world, tmp_path):
    done = script("test.py", "--resume", world.best, "--dataset", "sysu",
                  "--data-path", world.sysu, "--gpu", "cpu")
    assert done.returncode == 0 and "best file" not in done.stderr, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("pool ", "bnneck "))]
    assert len(rows) == 22 and all(row.endswith(" + trained on RegDB") for row in rows)
    assert "trained-on-regdb" in done.stdout.splitlines()[-1]
    sysu = dict(torch.load(world.last, weights_only=True))
    sysu["args"] = {**sysu["args"], "dataset": "sysu"}
    torch.save(sysu, tmp_path / "sysu.t")
    test = ("test.py", "--resume", tmp_path / "sysu.t", "--dataset", "regdb",
            "--data-path", world.regdb, "--gpu", "cpu")
    done = script(*test)  # RegDB's rule does not apply: all ten test splits
    rows = [line for line in done.stdout.splitlines() if line.startswith(("pool ", "bnneck "))]
    assert done.returncode == 0 and len(rows) == 22, done.stderr
    assert all(row.endswith(" + trained on SYSU-MM01") for row in rows), done.stderr
    one = script(*test, "--trial", 2, "--out", "found")
    assert one.returncode == 0 and "bnneck trial 2" in one.stdout and "bnneck trial 1" not in one.stdout
    assert json.loads((script.cwd / "found/results.json").read_text())["extras"] == ["trained on SYSU-MM01"]


def test_a_launcher_that_sets_ranks_alone(world, tmp_path):
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [scripts.start([ROOT / "train.py", *map(str, words(world, "--epochs", 1)[1:])], tmp_path,
                         {**env, "RANK": str(rank)}) for rank in range(2)]
    said = [script.communicate(timeout=300) for script in both]
    assert [script.returncode for script in both] == [0, 0], said
    assert "2 process(es)" in said[0][0] and not said[1][0]

"""train.py and test.py through the real command line."""
import json
import re

import numpy as np
import pytest
import torch
from conftest import SMALL

from engine import build_optimiser, learning_rate_factor
from loss import Criterion
from model import build_network


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


@pytest.mark.parametrize("method", ["base", "agw", "cgrnet"])
def test_regdb_from_images_to_rank_k(method, regdb, script):
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--method", method, "--epochs", 2,
                  "--trial", 3, "--amp", "off", *SMALL, fresh=method == "cgrnet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train visible +4 +16\n", done.stdout)
    assert re.search(r"gallery infrared +4 +16\n", done.stdout)
    name = f"regdb_{method}_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_2_trial_3"
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


def test_test_only_gives_the_figures_of_the_last_epoch_and_writes_nothing(regdb, script):
    data = ("--data-path", regdb)
    done = script("train.py", "--dataset", "regdb", *data, "--epochs", 1, "--method", "base", *SMALL)
    assert done.returncode == 0, done.stderr
    before = sorted(script.cwd.rglob("*"))
    last = "save_model/regdb_base_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_trial_1_last.t"
    done = script("train.py", "--resume", last, *data, "--test-only", "--gpu", "cpu")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (record,) = records(script.cwd)
    names = "rank-1", "rank-5", "rank-10", "rank-20", "mAP", "mINP"
    assert done.stdout.splitlines() == ["RegDB, v2i", *(
        f"{kind:<7} " + " ".join(f"{name} {record[f'{kind}/{name}']:.2%}" for name in names)
        for kind in ("pool", "bnneck"))]
    assert sorted(script.cwd.rglob("*")) == before
    best = script("train.py", "--resume", last.replace("last", "best"), *data, "--test-only", "--gpu", "cpu")
    assert best.stdout == done.stdout and "a best file" in best.stderr


def test_sysu_from_images_to_rank_k(sysu, script):
    assert script("pre_process_sysu.py", "--data-path", sysu, "--img_w", 16, "--img_h", 32).returncode == 0
    done = script("train.py", "--data-path", sysu, "--epochs", 1, *SMALL)
    assert done.returncode == 0, done.stderr
    tested = script("test.py", "--mode", "all",
                    "--resume", "save_model/sysu_cgrnet_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_best.t",
                    "--data-path", sysu, "--save-features", "feats.npz", "--out", "found", "--gpu", "cpu")
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


def test_same_seed_same_weights_and_another_seed_others(regdb, tmp_path, script):
    found = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1, "--seed", seed,
                      *SMALL, "--model_path", f"{name}/save_model", "--log_path", f"{name}/log",
                      "--vis_log_path", f"{name}/vis", fresh=name == "again")  # with other hashes
        assert done.returncode == 0, done.stderr
        found[name] = weights(script.cwd / name)["net"]
    assert all(torch.equal(found["one"][key], found["again"][key]) for key in found["one"])
    assert not all(torch.equal(found["one"][key], found["other"][key]) for key in found["one"])


def test_all_ten_trials_of_regdb(regdb, script):
    for trial in range(1, 11):
        done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1, "--trial", trial,
                      "--method", "base", *SMALL) if trial == 1 else None
        assert done is None or done.returncode == 0
    one = script.cwd / "save_model/regdb_base_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_trial_1_best.t"
    pattern = str(one).replace("trial_1", "trial_{}")
    tested = script("test.py", "--resume", pattern, "--data-path", regdb, "--gpu", "cpu")
    assert tested.returncode == 2 and "trial_2_best.t: no such file" in tested.stderr
    content = torch.load(one, weights_only=True)
    for trial in range(2, 11):
        args = {**content["args"], "trial": trial}
        torch.save({**content, "trial": trial, "args": args}, str(one).replace("trial_1", f"trial_{trial}"))
    tested = script("test.py", "--resume", pattern, "--data-path", regdb, "--gpu", "cpu")
    assert tested.returncode == 0, tested.stderr
    assert re.search(r"bnneck trial 10", tested.stdout)


def test_leakage_is_refused(regdb, script):
    script("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1, "--method", "base", *SMALL)
    last = "save_model/regdb_base_p2_n2_lr_0.02_seed_0_resnet18_32x16_epochs_1_trial_1_last.t"
    base = ("test.py", "--resume", last, "--data-path", regdb, "--gpu", "cpu")
    refused = script(*base, "--trial", 2)
    assert refused.returncode == 2 and "was trained on trial 1" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert script(*base, "--trial", 2, "--force-trial").returncode == 0
    wrong = script(*base, "--method", "agw")
    assert wrong.returncode == 2 and "--method agw" in wrong.stderr and "base" in wrong.stderr


def test_schedule():
    for epochs in (80, 3):  # the paper's bends stay where they are
        factors = [learning_rate_factor(epoch, epochs, "step") for epoch in range(80)]
        assert factors[:10] == [pytest.approx((epoch + 1) / 10) for epoch in range(10)]
        assert factors[10:20] == [1.0] * 10 and factors[20:50] == [0.1] * 30 and factors[50:] == [0.01] * 30
    factors = [learning_rate_factor(epoch, 16, "cosine") for epoch in range(16)]
    assert factors[0] == 0.5 and factors[8] == pytest.approx(0.5) and 0 < factors[-1] < 0.01
    assert factors[1:] == sorted(factors[1:], reverse=True) and 0 < learning_rate_factor(0, 1, "cosine") <= 1


def test_a_short_run_of_the_step_schedule_is_warned_of(regdb, script):
    common = ("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1,
              "--method", "base", *SMALL)
    assert "--epochs 1: --schedule step first lowers the rate in epoch 20" in script(*common).stderr
    done = script(*common, "--schedule", "cosine")
    assert done.returncode == 0 and "--schedule step" not in done.stderr


def test_optimisers_take_their_groups():
    net = build_network("base", "resnet18", 3)
    criterion = Criterion(net.method.losses, 3, net.dim)
    for name, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        optimiser = build_optimiser(net, criterion, 0.1, True, name)
        assert isinstance(optimiser, kind)
        assert [group["initial_lr"] for group in optimiser.param_groups] == [pytest.approx(0.01), 0.1]


def test_pretrained_file_and_what_is_said_without_one(regdb, script, tmp_path):
    import torchvision
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    common = ("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 1, *SMALL, "--lr", "1e-30")
    done = script(*common, "--pretrained", tmp_path / "resnet18.pth")
    assert done.returncode == 0, done.stderr
    net = weights(script.cwd)["net"]
    assert torch.equal(net["streams.visible.conv1.weight"], state["conv1.weight"])
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    assert script(*common, "--pretrained", "imagenet", env={"TORCH_HOME": str(tmp_path)}).returncode == 0
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "part.pth")
    refused = script(*common, "--pretrained", tmp_path / "part.pth")
    assert refused.returncode == 2 and "bn1.weight" in refused.stderr and refused.stderr.count("\n") <= 2
    offline = script(*common, "--pretrained", "imagenet",
                     env={"TORCH_HOME": str(tmp_path / "none"), "https_proxy": "http://127.0.0.1:9"})
    assert offline.returncode == 2 and f"put that file at {tmp_path / 'none'}" in offline.stderr


def test_a_loss_that_is_not_finite_stops_the_run(regdb, script):
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--epochs", 3, *SMALL,
                  "--lr", "1e30", "--print-freq", 1)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(r"epoch \d, step \d+: the loss is not finite \(loss \S+ id", line)
    assert "no checkpoint was written yet" in line
    assert not list((script.cwd / "save_model").glob("*_last.t"))

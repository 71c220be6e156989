"""Two CPU processes (gloo): the same parameters, and where the maths says so the joint batch's gradients."""
import json
import socket
import subprocess
from pathlib import Path

import ending
import pytest
import scripts
import torch
import torch.distributed as dist
from conftest import ROOT, SMALL, make_regdb
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.usefixtures("short")
STEPS = 4


def freeze_statistics(net):
    """BatchNorm by running statistics: batch statistics are of one process, not of the joint batch."""
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def train(net, batches):
    """A few steps on the identity loss; returns the losses."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for visible, infrared, labels in batches:
        loss = torch.nn.functional.cross_entropy(net(visible, infrared).logits, labels.repeat(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def make(batch):
    from model import METHODS, build_network
    torch.manual_seed(0)
    net = build_network(METHODS["base"], "resnet18", 6)
    freeze_statistics(net)
    generator = torch.Generator().manual_seed(1)
    batches = [(*torch.randn(2, batch, 3, 32, 16, generator=generator),
                torch.randint(6, (batch,), generator=generator)) for _ in range(STEPS)]
    return net, batches


def worker(rank, folder):
    """What each of the two processes does."""
    dist.init_process_group("gloo")
    with ending.short_resnet():
        net, batches = make(8)
    half = slice(4 * int(rank), 4 * int(rank) + 4)
    losses = train(DistributedDataParallel(net), [(v[half], i[half], y[half]) for v, i, y in batches])
    dist.all_reduce(losses)
    torch.save({"net": net.state_dict(), "losses": losses / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_two_processes_follow_the_joint_batch(tmp_path):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import test_distributed; "
            "test_distributed.worker(*sys.argv[2:])")
    for done in as_torchrun(lambda rank: ["-c", code, Path(__file__).parent, rank, tmp_path], tmp_path):
        assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one["net"][key], other["net"][key]) for key in one["net"])
    net, batches = make(8)
    losses = train(net, batches)
    torch.testing.assert_close(one["losses"], losses, rtol=1e-4, atol=1e-5)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(one["net"][key], value, rtol=1e-3, atol=1e-5)


def as_torchrun(words, cwd):
    """What two processes leave that begin as torchrun begins them. words: rank -> its command line."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [scripts.start(words(rank), cwd, {**common, "RANK": str(rank)})
               for rank in range(2)]
    try:
        said = [script.communicate(timeout=300) for script in started]
    finally:
        for script in started:
            script.kill()
    return [subprocess.CompletedProcess(script.args, script.returncode, *both)
            for script, both in zip(started, said)]


def test_torchrun_trains_one_process_writes_and_a_signal_to_one_ends_both(tmp_path):
    """What ends in its second epoch, started without torchrun, goes on to what a run under torchrun gives."""
    data = make_regdb(tmp_path / "RegDB", images=6)
    flags = ("--dataset", "regdb", "--data-path", data, "--epochs", 2, "--amp", "off", "--method", "cgrnet",
             *SMALL, "--eval-every", 1, "--resume", "auto")

    def words(signalled):
        return ending.end_by("step" if signalled else "never", 5, 15, flags)

    for run in ("alone", "stopped"):
        (tmp_path / run).mkdir()
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    done = scripts.run([*torchrun, *words(False)], tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1 and done.stdout.count("done: best") == 1
    (last,) = (tmp_path / "alone/save_model").glob("*_last.t")
    tested = scripts.run([ROOT / "test.py", "--data-path", data, "--gpu", "cpu", "--resume", last,
                          "--out", "found"], tmp_path)
    assert tested.returncode == 0, tested.stderr
    found = json.loads((tmp_path / "found/results.json").read_text())["mean"]
    (log,) = (tmp_path / "alone/log/regdb_log").glob("*.jsonl")
    logged = json.loads(log.read_text().splitlines()[-1])
    # of one network, whatever each rank has seen
    for feature, name in (("pool", "mAP"), ("bnneck", "mAP"), ("bnneck", "mINP")):
        assert found[feature][name] == pytest.approx(logged[f"{feature}/{name}"], abs=1e-6)

    stopped = as_torchrun(lambda rank: words(rank == 1), tmp_path / "stopped")
    assert stopped[1].returncode == 143 and stopped[0].returncode != 0, [done.stderr for done in stopped]
    assert torch.load(tmp_path / "stopped/save_model" / last.name, weights_only=True)["epoch"] == 1
    for done in as_torchrun(lambda rank: words(False), tmp_path / "stopped"):
        assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / run / "save_model" / last.name, weights_only=True)
                  for run in ("alone", "stopped"))
    assert all(torch.equal(value, other["net"][key]) for key, value in one["net"].items())
    assert one["best"] == other["best"]

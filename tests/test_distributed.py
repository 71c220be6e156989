"""Two processes on the CPU (gloo): the same parameters on both, and the gradients of the joint batch where the maths says so."""
import json
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import ROOT, SMALL, make_regdb
from torch.nn.parallel import DistributedDataParallel

STEPS = 4


def freeze_statistics(net):
    """BatchNorm by running statistics: batch statistics are of one process, and differ from those of the joint batch."""
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
    from model import METHODS, TwoStream
    torch.manual_seed(0)
    net = TwoStream(METHODS["base"], "resnet18", 6)
    freeze_statistics(net)
    generator = torch.Generator().manual_seed(1)
    batches = [(*torch.randn(2, batch, 3, 32, 16, generator=generator), torch.randint(6, (batch,), generator=generator))
               for _ in range(STEPS)]
    return net, batches


def worker(rank, port, folder):
    import sys
    sys.path.insert(0, str(ROOT))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net, batches = make(8)
    half = slice(4 * rank, 4 * rank + 4)
    losses = train(DistributedDataParallel(net), [(v[half], i[half], y[half]) for v, i, y in batches])
    dist.all_reduce(losses)
    torch.save({"net": net.state_dict(), "losses": losses / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_two_processes_follow_the_joint_batch(tmp_path):
    mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one["net"][key], other["net"][key]) for key in one["net"])
    net, batches = make(8)
    losses = train(net, batches)
    torch.testing.assert_close(one["losses"], losses, rtol=1e-4, atol=1e-5)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(one["net"][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["base", "cgrnet"])
def test_torchrun_trains_and_one_process_writes(method, tmp_path):
    import subprocess
    import sys
    data = make_regdb(tmp_path / "RegDB", images=6)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
               str(ROOT / "train.py"), "--dataset", "regdb", "--data-path", str(data), "--epochs", "1", "--method", method, "--amp",
               "off", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1 and done.stdout.count("done: best") == 1
    assert len(list((tmp_path / "log/regdb_log").glob("*.jsonl"))) == 1
    alone = subprocess.run([sys.executable, str(ROOT / "test.py"), "--data-path", str(data), "--gpu", "cpu", "--resume",
                            str(next((tmp_path / "save_model").glob("*_last.t"))), "--out", "found"], cwd=tmp_path, text=True,
                           capture_output=True)
    assert alone.returncode == 0, alone.stderr
    found = json.loads((tmp_path / "found/results.json").read_text())["mean"]
    logged = json.loads(next((tmp_path / "log/regdb_log").glob("*.jsonl")).read_text())
    for feature, name in (("pool", "mAP"), ("bnneck", "mAP"), ("bnneck", "mINP")):  # of one network, whatever each rank has seen
        assert found[feature][name] == pytest.approx(logged[f"{feature}/{name}"], abs=1e-6)

"""Which device and precision a run takes, and how it uses memory."""
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import devices
from datasets.types import ImageSpec
from devices import choose_device, require_compiler, use_bf16, without_tf32
from utils import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch):
    """As if there were this many GPUs and no launcher: gpus(2)."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    return set_count


@pytest.mark.parametrize("gpu", ("0,1", "-1", "cuda:", "all", ""))
def test_what_names_no_device_is_refused(gpu):
    with pytest.raises(UserError, match="N or cuda:N .*, mps or cpu expected; for several GPUs: "
                       "torchrun --nproc-per-node"):
        choose_device(gpu)


def test_a_gpu_that_is_not_there(gpus, capsys):
    gpus(0)
    assert choose_device("cuda:1") == CPU
    assert capsys.readouterr().err == ("warning: --gpu cuda:1: no CUDA device here, running on the CPU "
                                       "(--gpu cpu asks for that)\n")
    gpus(1)
    assert choose_device("cuda:0") == GPU and not capsys.readouterr().err
    assert choose_device("1") == GPU
    assert capsys.readouterr().err == ("warning: --gpu 1: one CUDA device here, number 0 "
                                       "(they count from 0); running on that\n")
    gpus(2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"--gpu 2: 2 CUDA device\(s\) found, counted from 0; name one"):
        choose_device("2")


def test_a_launcher_gives_each_process_its_device(gpus, monkeypatch):
    gpus(2)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "host"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    assert choose_device("0") == torch.device("cuda", 1)  # srun
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert choose_device("1") == GPU  # torchrun
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")


def test_bfloat16_is_taken_where_device_backbone_and_size_gain(monkeypatch):
    usual, narrow = ImageSpec(), ImageSpec(32, 16)
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)
    assert use_bf16(CPU, "auto", "resnet50", usual) and use_bf16(CPU, "auto", "resnet18", usual)
    assert not use_bf16(CPU, "auto", "mobilenet_v2", usual)
    assert not use_bf16(CPU, "auto", "resnet50", narrow)  # wrong numbers of oneDNN
    assert use_bf16(GPU, "auto", "mobilenet_v2", narrow)
    assert use_bf16(CPU, "bf16", "mobilenet_v2", narrow) and not use_bf16(CPU, "off", "resnet50", usual)
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    assert not use_bf16(CPU, "auto", "resnet50", usual)


def test_a_compiler_that_does_not_work_is_said_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match="^--compile: torch.compile does not work here .RuntimeError: Failed "
                       "to find C compiler. Please specify one.; install a C.. compiler"):
        require_compiler(CPU)


def test_tf32_is_put_back():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    with without_tf32():
        torch.backends.cudnn.allow_tf32 = True
        with pytest.raises(KeyError), without_tf32():
            assert not any(backend.allow_tf32 for backend in backends)
            raise KeyError
        assert [backend.allow_tf32 for backend in backends] == [False, True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again():
    """In a process of its own: the setting holds for a main thread, and stays."""
    script = """
import resource, torch, devices
devices.keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(1 << 20)  # 4 MB, 1,024 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True,
                          text=True, check=True)
    assert int(done.stdout) < 10 * 1024  # those of the first few

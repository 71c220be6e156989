"""Where and how to compute: device, processes, precision."""
from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator

import torch
import torch.distributed as dist

from backbones import BACKBONES
from datasets.types import ImageSpec
from utils import UserError, as_user_error, warn

LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}  # what a launcher sets for each process of a run
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # options of glibc's mallopt


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the processes that a launcher (torchrun, srun) announces by RANK, WORLD_SIZE and MASTER_ADDR, with
    NCCL on CUDA and gloo on the CPU: rank and number; (0, 1) where these are not set.

    Raises `UserError` if the others are not found.
    """
    if not LAUNCHED <= os.environ.keys():
        return 0, 1
    os.environ.setdefault("MASTER_PORT", "29500")
    where = " ".join(f"{name}={os.environ[name]}" for name in (*sorted(LAUNCHED), "MASTER_PORT"))
    with as_user_error(f"{where}: the processes of this run do not find each other",
                       "mend these, or unset RANK for a single process"):
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def choose_device(gpu: str) -> torch.device:
    """The device that `--gpu` names, or one for each process of a launcher; the CPU where there is none.

    Raises `UserError` for what names no device, and for one of several GPUs that is not there.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not re.fullmatch("mps|(cuda:)?[0-9]+", gpu):
        raise UserError(f"--gpu {gpu}: N or cuda:N (the number of one device), mps or cpu expected; for "
                        "several GPUs: torchrun --nproc-per-node 2 train.py, which gives each its process")
    kind = "MPS" if gpu == "mps" else "CUDA"
    if not (torch.backends.mps if gpu == "mps" else torch.cuda).is_available():
        warn(f"--gpu {gpu}: no {kind} device here, running on the CPU (--gpu cpu asks for that)")
        return torch.device("cpu")
    if gpu == "mps":
        return torch.device("mps")
    index, count = int(gpu.removeprefix("cuda:")), torch.cuda.device_count()
    if "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"])
    elif LAUNCHED <= os.environ.keys():  # srun may show each process its own GPU alone
        index = int(os.environ.get("SLURM_LOCALID", os.environ["RANK"])) % count
    elif index >= count == 1:
        warn(f"--gpu {gpu}: one CUDA device here, number 0 (they count from 0); running on that")
        index = 0
    if index >= count:
        raise UserError(f"--gpu {index}: {count} CUDA device(s) found, counted from 0; name one of them")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def prepare(device: torch.device) -> None:
    """Allow TF32 for float32 products outside autocast (what needs more digits asks for them), and have freed
    memory used again on the CPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory(keep: bool = True) -> None:
    """Have glibc keep freed memory for the next tensor, or not; does nothing with another C library.

    glibc returns tensors of over 32 MB to the system as they are freed, and each page of the next costs a
    fault: up to a third of a step (docs/speed.md). Not to keep is what its own thresholds grow to, see
    mallopt(3).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0 if keep else 1 << 16)
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, -1 if keep else 64 << 20)
    if not keep:
        trim(0)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions in full float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def require_compiler(device: torch.device) -> None:
    """Raise `UserError` where torch.compile cannot compile a small function."""
    with as_user_error("--compile: torch.compile does not work here", "install a C++ compiler (on a GPU, "
                       "triton), or leave --compile out"):
        torch.compile(torch.relu)(torch.ones(8, device=device))


def use_bf16(device: torch.device, amp: str, arch: str, spec: ImageSpec) -> bool:
    """Whether to autocast to bfloat16: `auto` says yes where the device has it and the backbone gains by it.

    Not so on a CPU for images of up to 16 pixels in width: with strides of 2, oneDNN's bfloat16 convolution
    of their maps of two columns gives wrong numbers (torch 2.15 on AMX).
    """
    if amp != "auto":
        return amp == "bf16"
    gains = device.type == "cuda" or (BACKBONES[arch].cpu_bf16 and spec.width > 16)
    return gains and has_bf16(device)


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16: CUDA from capability 8.0, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    answers = (getattr(torch.cpu, name, bool)  # some versions of torch lack one of them
               for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return device.type == "cpu" and any(answer() for answer in answers)


def precision(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

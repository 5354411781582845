"""What this machine has: device, number formats, threads, and a record of it all."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from chainrule.errors import Problem, UserError, Where

_RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn", "scipy", "pyarrow")


def choose_device(name: str) -> torch.device:
    """The torch device for a recipe's `training.device`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the named device is not on this machine.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if there[device]))
    if not there[name]:
        problem = Problem(
            where=Where(field="training.device"),
            expected=f"one of {', '.join(device for device, found in there.items() if found)}",
            got=repr(name),
            todo="Use --set training.device=auto.",
        )
        raise UserError(f"This machine has no {name} device that torch can use.", [problem])
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        flags = cpu_flags()
        return bool(flags & {"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"})
    return False


def cpu_flags() -> frozenset[str]:
    """The instruction-set flags that the kernel lists for the first core; empty where it lists none."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def use_threads(threads: int | None) -> int:
    """Let torch use `threads` threads, else what OMP_NUM_THREADS says (its first number), else one a core."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    chosen = threads or (int(first) if first.isdecimal() else 0) or physical_cores()
    torch.set_num_threads(chosen)
    return chosen


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions and machine facts for environment.json. No names, no paths."""
    return {
        "chainrule": _version("chainrule"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_features": sorted(cpu_flags() & _TELLING_FLAGS),
        "cores": physical_cores(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_TELLING_FLAGS = frozenset(
    {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "amx_tile"}
    | {"fma", "asimd", "bf16", "sve", "i8mm"}
)

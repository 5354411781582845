"""The compiled kernels: the C++ files of the folder cpp, built once on the user's machine and kept in the cache.

Where there is no compiler, where the build fails, or with CHAINRULE_NATIVE=0, every kernel runs as plain torch instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from chainrule.system.assets import cache_folder
from chainrule.system.device import cpu_flags

VERSION = 1
SOURCES = Path(__file__).with_name("cpp")
FORMATS = (torch.float32, torch.bfloat16)
SIZES_OF = {"product": 5, "weight_gradient": 3}  # how many of the last arguments are sizes
_BUILD_SECONDS = 180

# The letters of a signature: p pointer, l int64, i int32, u uint32, f float32.
_KINDS = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32, "u": ctypes.c_uint32, "f": ctypes.c_float}
_SIGNATURES = {
    "norm_forward": "ippppppppp" + "ll" + "fiiuu",
    "norm_backward": "ipppppppppp" + "ll" + "iiuu",
    "gelu_forward": "ippp" + "ll",
    "gelu_backward": "ippppp" + "ll",
    "gated_forward": "ippp" + "lll",
    "gated_backward": "ippppp" + "lll",
    "rotate_forward": "ipppp" + "pp" + "llllll",
    "rotate_backward": "ipppp" + "pp" + "llllll",
    "cross_entropy": "ippp" + "ll",
    "softmax_forward": "ipp" + "ll" + "pp" + "llll" + "fiiuu",
    "softmax_backward": "ippp" + "ll" + "fiuu",
    "heads_forward": "ippl" + "p" + "llll" + "fiuu",
    "heads_backward": "ipppl" + "p" + "llll" + "fiuu",
    "tiled_forward": "ppppp" + "pp" + "fiuu",
    "tiled_backward": "pppppppp" + "pp" + "fiuu",
    "weight_gradient": "pppp" + "lll",
    "product": "pp" + "pp" + "ppp" + "pp" + "llll" + "i",
    "dropout": "ipp" + "ll" + "iuu",
    "column_sum": "ipp" + "ll",
    "gather_sum": "ipppp" + "ll",
    "squares": "pl",
    "adam": "ppl" + "f",
    "adam_rows": "pppppp" + "ll" + "i" + "ffffffff",
    "adam_late": "ppppp" + "ll" + "i" + "ppp" + "ffff",
}
# No -ffast-math: it would assume that nothing is infinite, and change the rounding of the whole process.
_FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
]


def available() -> bool:
    """Whether the compiled kernels can be used here. The first call may take some seconds: it builds them."""
    return os.environ.get("CHAINRULE_NATIVE", "1") != "0" and _library() is not None


def usable(values: torch.Tensor) -> bool:
    """Whether the compiled kernels can read this tensor."""
    return values.device.type == "cpu" and values.dtype in FORMATS and available()


def call(name: str, *arguments: torch.Tensor | float | None) -> Any:
    """Call one kernel. Tensors are handed over as pointers and must be contiguous and of the kernel's formats."""
    library = _library()
    if library is None:
        raise RuntimeError("the compiled kernels are not available")
    library.chainrule_threads(torch.get_num_threads())
    with _told(name, arguments):
        return getattr(library, f"chainrule_{name}")(*[_argument(argument) for argument in arguments])


def _told(name: str, arguments: tuple[Any, ...]) -> AbstractContextManager[Any]:
    """Torch's profiler, where one watches, is told of the kernel, and of a product's sizes."""
    if not torch.autograd.profiler._is_profiler_enabled:
        return nullcontext()
    sizes = arguments[-SIZES_OF[name] :] if name in SIZES_OF else ()
    return torch.profiler.record_function(" ".join(map(str, (f"chainrule::{name}", *sizes))))


def tiles() -> bool:
    """Whether the processor multiplies bfloat16 on tile registers (AMX), the compiler knows them, and they are ours."""
    return available() and _tiles()


@lru_cache(maxsize=1)
def _tiles() -> bool:
    library = _library()
    return library is not None and bool(library.chainrule_tiles())


def must_build() -> bool:
    """Whether the first use will have to compile."""
    return os.environ.get("CHAINRULE_NATIVE", "1") != "0" and not library_path().is_file() and _compiler() is not None


def is_half(values: torch.Tensor) -> int:
    """1 for bfloat16, 0 for float32."""
    return int(values.dtype == torch.bfloat16)


def address(values: torch.Tensor | None) -> int:
    """Where the elements of a contiguous tensor begin; 0 for None.

    Raises:
        ValueError: the tensor is not contiguous.
    """
    if values is None:
        return 0
    if not values.is_contiguous():
        raise ValueError("a kernel reads contiguous tensors only")
    return values.data_ptr()


def _argument(value: Any) -> Any:
    return address(value) if isinstance(value, torch.Tensor) else value


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        path = _built()
        library = ctypes.CDLL(str(path)) if path else None
    except OSError:  # no room in the cache, or a library that this machine cannot load
        return None
    if library is None or library.chainrule_kernels_version() != VERSION:
        return None
    library.chainrule_threads.argtypes, library.chainrule_threads.restype = [ctypes.c_int32], None
    for name, signature in _SIGNATURES.items():
        function = getattr(library, f"chainrule_{name}")
        function.argtypes = [_KINDS[letter] for letter in signature]
        function.restype = ctypes.c_double if name == "squares" else None
    return library


def library_path() -> Path:
    """Where the library for this source, processor and machine is kept, built or not."""
    sources = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".hpp")]
    told = [*sources, platform.machine().encode(), *(flag.encode() for flag in sorted(cpu_flags()))]
    digest = hashlib.sha256(b"\n".join(told)).hexdigest()[:16]
    return cache_folder() / "kernels" / f"kernels-{VERSION}-{digest}.so"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)


def _built() -> Path | None:
    """The shared library in the cache, compiled if it is not there yet; None where that fails."""
    target, compiler = library_path(), _compiler()
    if target.is_file():
        return target
    if compiler is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        product = Path(work) / target.name
        wide = ["-mprefer-vector-width=512"] if "avx512f" in cpu_flags() else []
        for more in (["-fopenmp", *wide], ["-fopenmp"], []):
            command = [compiler, *_FLAGS, *more, str(SOURCES / "kernels.cpp"), "-o", str(product)]
            try:
                done = subprocess.run(command, capture_output=True, check=False, timeout=_BUILD_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode == 0:
                product.replace(target)
                return target
    return None

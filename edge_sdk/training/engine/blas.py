"""How many threads NumPy's BLAS may use while an engine runs.

OpenBLAS starts one thread for each core and lets them spin between calls. For matrices of a training step's size that
costs far more than it brings: the 784-200-200-10 MLP at batch 32 took 7 to 11 times the CPU time with two threads on
two busy cores. The number is a setting of the whole process, so it is put back after each run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["Changed", "limit_blas_threads", "restore_blas_threads"]

# NumPy's wheels rename OpenBLAS's symbols; a system's library has them as they are.
_PREFIXES: Final = ("scipy_openblas", "openblas")
_SUFFIXES: Final = ("64_", "_64", "")

Changed: TypeAlias = list[tuple[Callable[[int], None], int]]
"""Functions that set a number of threads, and the number to set again."""


def limit_blas_threads(count: int) -> Changed:
    """Let every OpenBLAS in this process use ``count`` threads; what comes back undoes it."""
    changed = []
    for put, get in _controls():
        threads = get()
        if threads != count:
            put(count)
            changed.append((put, threads))
    return changed


def restore_blas_threads(changed: Changed) -> None:
    """Undo :func:`limit_blas_threads`."""
    for put, threads in changed:
        put(threads)


@cache
def _controls() -> tuple[tuple[Callable[[int], None], Callable[[], int]], ...]:
    """(set, get) of each OpenBLAS that this process has loaded."""
    found = []
    for path in _loaded_libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in (f"{prefix}_%s_num_threads{suffix}" for prefix in _PREFIXES for suffix in _SUFFIXES):
            put, get = getattr(library, name % "set", None), getattr(library, name % "get", None)
            if put is not None and get is not None:
                put.argtypes, put.restype, get.argtypes, get.restype = [ctypes.c_int], None, [], ctypes.c_int
                found.append((put, get))
                break
    return tuple(found)


def _loaded_libraries() -> list[str]:
    """Paths of the loaded libraries that may be an OpenBLAS (Linux; elsewhere none is found)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "blas" in line}
    return sorted(path for path in paths if "blas" in Path(path).name)

"""What a device installs: ``pip install .`` into an empty environment, in packages and bytes."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, at_most
from benchmarks.processes import ROOT

__all__ = ["measure"]

PACKAGES: Final = 5
MEGABYTES: Final = 90.0
SOURCES: Final = ("edge_sdk", "coordinator", "device_sim")
FILES: Final = ("pyproject.toml", "README.md", "LICENSE")


def measure() -> list[Figure]:
    """Packages and megabytes in site-packages, with their bytecode; pip itself is not in the environment."""
    with tempfile.TemporaryDirectory(prefix="edgefed-bench-") as name:
        folder = Path(name)
        source, environment = folder / "source", folder / "venv"
        copy_sources(source)
        venv.create(environment, with_pip=False)
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", str(source)],
            check=True,
        )
        (packages,) = environment.glob("lib/python*/site-packages")
        installed = sorted(path.name for path in packages.glob("*.dist-info"))
        total = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    machine = platform.machine()
    return [
        at_most(f"bare install on {machine}: packages", len(installed), "packages", PACKAGES),
        at_most(f"bare install on {machine}: bytes in site-packages", total / 1e6, "MB", MEGABYTES),
    ]


def copy_sources(target: Path) -> None:
    """A copy to build from, so that the checkout stays as it is."""
    target.mkdir()
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    for name in SOURCES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))

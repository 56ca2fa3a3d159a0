"""Where mosquitto is, for everything here that starts one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

__all__ = ["find_mosquitto"]


def find_mosquitto() -> str | None:
    """Where mosquitto is installed, None if it is not.

    Debian puts it where only root's PATH looks; ``make test`` unpacks one into this interpreter's environment where it
    may not install any.
    """
    beside_us = Path(sys.prefix) / "bin"
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=f"/usr/sbin:/usr/local/sbin:{beside_us}")

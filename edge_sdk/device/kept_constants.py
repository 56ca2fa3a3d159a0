"""Constants that a device has made of its own examples, one small file for each program: ``constants-<digest>``.

They are made once, at the first training of a program, and stay: a model that was trained with one mean and scale would
not be the same one with others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device.files import Files
from edge_sdk.device.state_file import HEAD_BYTES_MAX, CorruptError, seal, unseal
from edge_sdk.errors import StateError
from edge_sdk.parameters import ELEMENTS_MAX

__all__ = ["KeptConstants"]

logger = logging.getLogger(__name__)

CONSTANTS: Final = 4
PROGRAMS_MAX: Final = 16
FILE_BYTES_MAX: Final = 4 * ELEMENTS_MAX + 2 * HEAD_BYTES_MAX
NAME: Final = re.compile(r"constants-[0-9a-f]{64}")


class KeptConstants:
    """The constants in a device's state; those of the ``PROGRAMS_MAX`` newest programs stay.

    Args:
        files: Where the files are.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._last: tuple[bytes, NDArray[np.float32]] | None = None

    def get(self, program: bytes, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The constants that are kept for a program, or else what ``make`` gives, kept from now on.

        Where the storage fails they are kept in memory alone, which is logged.

        Args:
            program: The program's digest, 32 bytes.
            make: Gives finite float32 values, one-dimensional.
        """
        if self._last is not None and self._last[0] == program:
            return self._last[1]
        name = f"constants-{program.hex()}"
        found = self._read(name)
        if found is None:
            found = make()
            self._write(name, found)
        self._last = program, found
        return found

    def _read(self, name: str) -> NDArray[np.float32] | None:
        try:
            size_bytes = self._files.size_bytes(name)
            if size_bytes is None or size_bytes > FILE_BYTES_MAX:
                return None
            data = self._files.read(name)
            return None if data is None else np.frombuffer(unseal(data, CONSTANTS)[1], "<f4").astype(np.float32)
        except (CorruptError, StateError, ValueError) as error:
            logger.error("state: %s is corrupt (%s): made anew from the examples of today", name, error)
            return None

    def _write(self, name: str, values: NDArray[np.float32]) -> None:
        try:
            self._files.write(name, seal(CONSTANTS, {}, values.astype("<f4").tobytes()))
            kept = [each for each in self._files.names() if NAME.fullmatch(each)]
            for old in kept[:-PROGRAMS_MAX]:
                self._files.delete(old)
        except StateError as error:
            logger.warning("state: the constants of this device's examples are kept in memory only: %s", error)

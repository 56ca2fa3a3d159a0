"""Arrays out of an ``.npz`` file; never anything that would have to be unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.source import file_error
from edge_sdk.training.layouts import plain_arrays

__all__ = ["arrays_of"]


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays by name, in the plain layout.

    Raises:
        ExamplesError: The file cannot be read, or its arrays do not fit each other.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise file_error(path, "it holds one bare array; save it with numpy.savez(path, x=..., y=...)")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except ExamplesError:
        raise
    except Exception as error:  # zip, header and pickle errors are of many types
        raise file_error(path, "cannot be read as .npz", shown=f": {error}") from error
    try:
        return plain_arrays(arrays)
    except ExamplesError as error:
        raise error.within(path) from error

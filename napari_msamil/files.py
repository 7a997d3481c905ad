"""Files that are whole or not there. Imports nothing heavy, so that everything in the house may write this way."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""In the name of a file that is being written, or was when its process was killed."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes beside the target and moves into place, so that a reader never sees half a file.

    Args:
        path: The file to make or replace; its folder is made.
        write: Called with the open temporary file.

    Raises:
        OSError: It cannot be written; the error names the file, also where a full disk is the cause.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports another error while it closes what it could not write
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def copy_atomically(source: Path, target: Path) -> None:
    """Copies a file as `write_atomically` writes one."""
    with source.open("rb") as file:
        write_atomically(target, lambda out: shutil.copyfileobj(file, out))

"""Folder that an export fills, or leaves as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from governance.errors import ConfigError
from governance.files import remove_file


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[None]:
    """Let the body fill a new or empty folder with files.

    Where the body raises, nothing is left of them: the same command can be given again.

    Raises:
        ConfigError: the folder is not empty.
    """
    existed = target.exists()
    if existed and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: is not empty; an export never overwrites. Give a new folder.")
    try:
        yield
    except BaseException:
        if target.is_dir():
            for path in list(target.iterdir()):
                remove_file(path)
            if not existed:
                target.rmdir()
        raise

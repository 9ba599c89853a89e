"""Lists of repositories and paths whose owners opted out, as The Stack's.

    # one entry per line; case, a leading https://github.com/ and a trailing slash do not count
    owner
    owner/repository
    https://github.com/owner/repository
    owner/repository/src/secret.py

An entry removes everything below it: all repositories of an owner, all files of a repository, a folder, a file. It is
compared with a document's repository and path, component by component.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from data_pipeline.readers.streams import TornStream, lines, open_source
from data_pipeline.readers.streams import blocks as file_blocks
from governance.errors import ConfigError

_HOST = re.compile(r"^(https?://)?(www\.)?(github|gitlab)\.com/|^https?://[^/]+/", re.I)
_ENTRY = re.compile(r"[^\s/\\*?]+(/[^/\\*?\x00-\x1f]+)*")


def read_opt_outs(paths: Iterable[Path]) -> frozenset[str]:
    """The entries of list files, plain or packed.

    Raises:
        MissingInput: one cannot be read.
        ConfigError: one has a line that is no entry, or no entry at all.
    """
    entries: set[str] = set()
    for path in paths:
        open_source(path).close()
        before = len(entries)
        try:
            for number, line in enumerate(lines(file_blocks(path)), 1):
                if entry := _entry(line, path, number):
                    entries.add(entry)
        except TornStream as error:
            raise ConfigError(f"{path}: is torn ({error.reason}). Copy the list again; nothing was removed.") from error
        if len(entries) == before and not any(entries):
            raise ConfigError(f"{path}: has no entry. Name repositories or paths, one per line, or remove the setting.")
    return frozenset(entries)


def _entry(line: bytes, path: Path, number: int) -> str:
    """A line's entry as it is compared; "" for a comment."""
    try:
        text = line.decode("utf-8").strip().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, line {number}: is not UTF-8. Write the list in UTF-8.") from error
    if not text or text.startswith("#"):
        return ""
    entry = _HOST.sub("", text).removesuffix(".git").rstrip("/")
    if not _ENTRY.fullmatch(entry):
        raise ConfigError(
            f"{path}, line {number}: {text[:100]!r} is not OWNER, OWNER/REPOSITORY or a path below one, such as "
            "octocat/hello-world/src/a.py. Correct the line."
        )
    return entry.lower()


def opted_out(repository: str, path: str, entries: Collection[str]) -> str:
    """The entry that a file is below; "" if there is none."""
    parts = "/".join(filter(None, (repository, path))).lower().split("/")
    return next((below for end in range(1, len(parts) + 1) if (below := "/".join(parts[:end])) in entries), "")

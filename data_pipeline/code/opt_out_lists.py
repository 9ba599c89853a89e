"""Lists of repositories and paths whose owners opted out, as The Stack's.

    # one entry per line; case, a leading https://github.com/ or git@github.com: and a trailing slash do not count
    owner
    owner/repository
    https://github.com/owner/repository
    https://github.com/owner/repository/blob/main/src/secret.py
    owner/repository/src/secret.py

An entry removes everything below it: all repositories of an owner, all files of a repository, a folder, a file. It is
compared with a document's repository and path, component by component. Of the address of a page that shows a file or a
folder, `blob/main` or `tree/main` is left out; a branch must have no slash in its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote

from data_pipeline.readers.streams import TornStream, lines, open_source
from data_pipeline.readers.streams import blocks as file_blocks
from governance.errors import ConfigError

_HOST = re.compile(r"(git\+)?(https?|ssh|git)://[^/]+/|(www\.)?(github|gitlab)\.com/|git@[^/:]+:", re.I)
_VIEW = re.compile(r"(?P<repository>[^/]+/[^/]+|.+?(?=/-/))(/-)?/(blob|tree|raw|blame|edit|commits)/[^/]+")
_ENTRY = re.compile(r"[^\s/\\*?@#]+(/[^/\\*?\x00-\x1f]+)*")
_BEHIND_ADDRESS = re.compile(r"[?#].*", re.S)


def read_opt_outs(paths: Iterable[Path]) -> frozenset[str]:
    """The entries of list files, plain or packed.

    Raises:
        MissingInput: one cannot be read.
        ConfigError: one has a line that is not an entry, or no entry at all.
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
            raise ConfigError(
                f"{path}: is truncated or damaged ({error.reason}). Copy the list again; nothing was removed."
            ) from error
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
    entry, has_host = _without_host(text)
    if " #" in entry or (has_host and "#" in entry) or not _ENTRY.fullmatch(entry):
        raise ConfigError(
            f"{path}, line {number}: {text[:100]!r} is not OWNER, OWNER/REPOSITORY or a path below one, such as "
            "octocat/hello-world/src/a.py. Correct the line; a comment needs a line of its own."
        )
    return entry.lower()


def _without_host(text: str) -> tuple[str, bool]:
    """A name or address without its host, and whether it had one."""
    host = _HOST.match(text)
    name = (text[host.end() :] if host else text).rstrip("/").removesuffix(".git")
    return (unquote(_VIEW.sub(r"\g<repository>", name, count=1)) if host else name), host is not None


def repository_name(value: str) -> str:
    """A repository, by name or address, as entries name it.

    The result is "" where no entry can name it. Case is kept.
    """
    text = value.strip()
    if _HOST.match(text):
        text = _BEHIND_ADDRESS.sub("", text)
    name = plain_path(_without_host(text)[0])
    return name if _ENTRY.fullmatch(name) else ""


def plain_path(path: str) -> str:
    """A path in a repository as entries name it.

    The result is "" for one that leads out of the repository.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part.strip() not in ("", ".")]
    return "" if ".." in map(str.strip, parts) else "/".join(parts).strip()


def opted_out(repository: str, path: str, entries: Collection[str]) -> str:
    """The entry that a file is below; "" if there is none."""
    named = repository_name(repository) or repository
    parts = "/".join(filter(None, (named, path))).lower().split("/")
    return next((below for end in range(1, len(parts) + 1) if (below := "/".join(parts[:end])) in entries), "")


def unmatched(entries: Collection[str], matched: Collection[str]) -> list[str]:
    """Sorted entries that are neither matched nor below a matched one."""
    return sorted(entry for entry in entries if not opted_out("", entry, matched))

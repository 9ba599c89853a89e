"""Blocklist stage: domains, URLs and words, ready for lookup.

    [data.lists]
    domains = ["lists/adult/domains.gz", "lists/hosts.txt"]
    urls = ["lists/urls.txt"]
    words = { en = ["lists/en.txt"], "*" = ["lists/any.txt"] }

Plain text, one entry per line, .gz and .zst too; blank lines are left out, and what follows "#" at a line's start or
after white space. A domain is alone on its line, or after an address as in a hosts file ("0.0.0.0 example.org"), and
blocks its subdomains too. A URL blocks itself and every path below it. Words and phrases belong to a language code, "*"
to every language. A line that is none of these is counted (`not_understood`) and reported.

URLs are compared as duplicates are (`data_pipeline/urls.py`), but for the scheme and a slash at the path's end.

Outputs: `domains.arrow` and `urls.arrow` (Arrow's IPC file, uncompressed; `key`: the first 64 bits of the entry's
SHA-256, sorted; `entry`), and `words.parquet` (`language`, `entry`, sorted). A look-up is by the key and then by the
entry, so that no two are confused. The workers map the two files, and share their pages.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.documents import read_table, write_table
from data_pipeline.readers.local import LocalFile, find_files
from data_pipeline.readers.streams import TornStream, blocks, lines
from data_pipeline.urls import normalise_url
from governance.config import Section
from governance.errors import ManifestError
from governance.file_digests import file_inputs, unchanged
from governance.files import atomic_path, sha256_bytes
from governance.log import get_logger
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 3
KEYED_SCHEMA = pa.schema([("key", pa.uint64()), ("entry", pa.string())])
WORDS_SCHEMA = pa.schema([("language", pa.string()), ("entry", pa.string())])

_COMMENT = re.compile(r"(?:^|\s)#.*")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")
_EMAIL = re.compile("[^/?#]*@")
"""Beginning of an e-mail address, whose host must not be blocked for it."""
_DOMAIN = re.compile(r"\[[0-9a-f:.]+\]|(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")


class BlocklistsConfig(Section):
    """Files of each list, as patterns relative to the run's file."""

    domains: tuple[str, ...] = ()
    """Files of domains."""
    urls: tuple[str, ...] = ()
    """Files of URLs."""
    words: dict[Annotated[str, Field(pattern=r"^(\*|[a-z]{2,3})$")], tuple[str, ...]] = Field(default={})
    """Language code, or "*" for every language -> files of words and phrases."""

    def files(self) -> list[tuple[str, tuple[str, ...]]]:
        """Kind ("domains", "urls", "words/<code>") and patterns of each non-empty list."""
        kinds = {"domains": self.domains, "urls": self.urls}
        kinds |= {f"words/{code}": patterns for code, patterns in sorted(self.words.items())}
        return [(kind, patterns) for kind, patterns in kinds.items() if patterns]


class ListsIdentity(Section):
    """Recipe of the lists: how many input files belong to each."""

    files: dict[str, int]


def normal_url(url: str) -> str:
    """A URL as lists and look-ups compare it.

    It has no scheme, no "www." and no last slash; the result is "" for a text without a host.
    """
    text = url.strip()
    if not _SCHEME.match(text):
        if _EMAIL.match(text):
            return ""
        text = f"https://{text.removeprefix('//')}"
    whole = normalise_url(text)
    place, mark, query = whole.partition("://")[2].partition("?")
    return f"{place.rstrip('/')}{mark}{query}"


def domain_of(whole: str) -> str:
    """The host of a URL in that form, without its port.

    The result is "" for text that cannot be a host.
    """
    host = whole.partition("?")[0].partition("/")[0].partition("#")[0]
    domain = re.sub(r":\d+$", "", host)
    return domain if _DOMAIN.fullmatch(domain) else ""


def with_parents(url: str) -> tuple[list[str], list[str]]:
    """Domains and URLs, the host's and each parent, that would block it."""
    whole = normal_url(url)
    if not whole:
        return [], []
    domain = domain_of(whole)
    labels = [domain] if domain.startswith("[") else domain.split(".")
    steps = whole.partition("?")[0].split("/")
    urls = ["/".join(steps[:stop]) for stop in range(len(steps), 0, -1)]
    return [".".join(labels[start:]) for start in range(len(labels)) if domain], list(dict.fromkeys([whole, *urls]))


def key_of(entry: str) -> int:
    """The first 64 bits of the entry's SHA-256."""
    return int(sha256_bytes(entry.encode("utf-8"))[:16], 16)


def entries(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """Normalised entries of one list file, with their lines; "" for invalid.

    Raises:
        ManifestError: the file is torn, or is not text.
    """
    read = {"domains": _domains, "urls": _urls, "words": _words}[kind]
    try:
        for number, line in enumerate(lines(blocks(path)), 1):
            try:
                text = _COMMENT.sub("", line.decode("utf-8")).strip()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{path}, line {number}: is not UTF-8. Convert the list.") from error
            if text:
                yield from ((number, entry) for entry in read(text))
    except TornStream as error:
        raise ManifestError(f"{path}: {error.reason}. Fetch the list again.") from error


def _domains(text: str) -> list[str]:
    first, *rest = text.split()
    if rest and not _is_address(first):
        return [""]
    found = []
    for name in rest or [first]:
        whole = normal_url(name.removeprefix("*").removeprefix("."))
        found.append(domain_of(whole) if whole.isascii() and not set("/?#") & set(whole) else "")
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _urls(text: str) -> list[str]:
    whole = "" if len(text.split()) > 1 else normal_url(text)
    return [whole if domain_of(whole) else ""]


def _words(text: str) -> list[str]:
    entry = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    known = any(unicodedata.category(character) == "So" or character.isalnum() for character in entry)
    return [entry if known else ""]


def make_lists(config: BlocklistsConfig, config_folder: Path, runtime: Runtime) -> Manifest:
    """Make or find the lists; relative paths start at `config_folder`.

    Raises:
        MissingInput: a pattern finds no file.
        ManifestError: a file is torn, or is not text.
    """
    files: dict[str, list[LocalFile]] = {
        kind: [] for kind in ("domains", "urls", *(f"words/{code}" for code in config.words))
    }
    for kind, patterns in config.files():
        files[kind] = find_files(patterns, config_folder, f"data.lists.{kind}")
    named = ((f"{kind}/{file.name}", file.path) for kind, found in files.items() for file in found)
    inputs = file_inputs(named, runtime)
    recipe = Recipe("lists", VERSION, ListsIdentity(files={kind: len(found) for kind, found in files.items()}))

    def make(folder: Path) -> Made:
        wrong: list[str] = []
        paths = [file.path for found in files.values() for file in found]
        with unchanged(zip(paths, (item.digest for item in inputs), strict=True)):
            tables = {kind: _keyed(_understood(files[kind], kind, wrong)) for kind in ("domains", "urls")}
            words = sorted(
                {
                    (code, entry)
                    for code in config.words
                    for entry in _understood(files[f"words/{code}"], "words", wrong)
                }
            )
        columns = [[code for code, _ in words], [entry for _, entry in words]]
        tables["words"] = pa.table(columns, schema=WORDS_SCHEMA)
        if wrong:
            get_logger(__name__).warning(
                "lists: %d lines are not an entry of their list, such as %s", len(wrong), wrong[0]
            )
        made = [folder / f"{kind}.arrow" for kind in ("domains", "urls")]
        for path in made:
            table = tables[path.stem]
            with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), KEYED_SCHEMA) as writer:
                writer.write_batch(pa.record_batch([column.combine_chunks() for column in table.columns], KEYED_SCHEMA))
        write_table(folder / "words.parquet", tables["words"])
        outputs = [describe(path, runtime.root) for path in (*made, folder / "words.parquet")]
        return Made(outputs, {**{n: table.num_rows for n, table in tables.items()}, "not_understood": len(wrong)})

    return run_stage(recipe, inputs, runtime, make, alone=True)


def _understood(files: list[LocalFile], kind: str, wrong: list[str]) -> Iterator[str]:
    """The entries of the files.

    The place of each line that is not an entry goes to `wrong`.
    """
    for file in files:
        for number, entry in entries(file.path, kind):
            if entry:
                yield entry
            else:
                wrong.append(f"{file.path}, line {number}")


def _keyed(found: Iterator[str]) -> pa.Table:
    chunks = []
    while batch := list(itertools.islice(found, 1 << 16)):
        chunks.append(pa.array(batch, pa.string()))
    entry = pc.unique(pa.chunked_array(chunks, pa.string()))
    keys = np.fromiter((key_of(one.as_py()) for one in entry), np.uint64, len(entry))
    table = pa.table([pa.array(keys), entry], schema=KEYED_SCHEMA)
    return table.sort_by([("key", "ascending"), ("entry", "ascending")])


@functools.lru_cache(maxsize=4)
def _table(path: Path) -> tuple[Any, pa.Array]:
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            table = file.get_batch(0).cast(KEYED_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}. Remove its folder and make it again.") from error
    return table["key"].to_numpy(), table["entry"]


def blocked_by(url: str, folder: Path) -> str:
    """The list entry that blocks a URL ("domain example.org"), or ""."""
    domains, urls = with_parents(url)
    for kind, entries in (("domain", domains), ("url", urls)):
        keys, known = _table(folder / f"{kind}s.arrow")
        if not len(keys) or not entries:
            continue
        # Of the type of `keys`, which would be converted each time otherwise.
        sought = np.array([key_of(entry) for entry in entries], np.uint64)
        firsts, ends = np.searchsorted(keys, sought), np.searchsorted(keys, sought, side="right")
        for row in np.flatnonzero(firsts < ends).tolist():
            if entries[row] in known[firsts[row] : ends[row]].to_pylist():
                return f"{kind} {entries[row]}"
    return ""


@functools.lru_cache(maxsize=4)
def words_by_language(folder: Path) -> dict[str, tuple[str, ...]]:
    """Words and phrases of each language, with those of "*", in order."""
    table = read_table(folder / "words.parquet", WORDS_SCHEMA)
    found: dict[str, set[str]] = {}
    for code, entry in zip(table["language"].to_pylist(), table["entry"].to_pylist(), strict=True):
        found.setdefault(code, set()).add(entry)
    everywhere = found.get("*", set())
    return {code: tuple(sorted(entries | everywhere)) for code, entries in found.items()}

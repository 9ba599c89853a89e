"""Ids that no source of a root holds.

A receipt says "not used" of every id that a corpus does not hold, a mistyped one included, and its proof is as valid.
The command adds whether a source of the root holds a record of this id at all. That is not part of the receipt: the id
that resembles it is another document's, and a receipt reveals no other document.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.documents import QUARANTINE_SCHEMA, read_table
from governance.manifest import FILE_NAME, Manifest, read_manifest

_COMPARED = 100_000  # names at most, to find the one that resembles another
_DIGITS = 18


def id_note(asked: str, root: Path) -> str:
    """Words on an id that is not a document's of any source.

    "" for a document's. The ids of all ingested documents of the root are read, and not hashed: nothing signed rests on
    them.

    Raises:
        ManifestError: a manifest or a shard is torn.
    """
    ingested = [read_manifest(path) for path in sorted(root.glob(f"ingest/*/{FILE_NAME}"))]
    if any(pc.any(pc.equal(ids, asked)).as_py() for ids in _ids(ingested, root)):
        return ""
    for path in filter(Path.exists, (path for made in ingested for path in made.files("quarantine", root))):
        for row in read_table(path, QUARANTINE_SCHEMA).to_pylist():
            if f"{row['source']}/{row['file']}#{row['position']}" == asked:
                return f"a source of this root holds this record, but it became no document: {row['reason']}"
    gone = [path for made in ingested for path in made.files("documents", root) if not path.exists()]
    if gone or not ingested:
        why = f"{gone[0]} is gone" if gone else f"{root} has no artifact of the stage ingest"
        return f"whether a source of this root holds such an id cannot be said: {why}"
    found = (_nearest(asked, ids) for ids in _ids(ingested, root))
    near = _nearest(asked, pa.array(filter(None, found), pa.string()))
    return f"no source of this root holds such an id{f'; the nearest is {near}' if near else ''}"


def _ids(ingested: Iterable[Manifest], root: Path) -> Iterator[pa.ChunkedArray]:
    for made in ingested:
        for path in filter(Path.exists, made.files("documents", root)):
            yield read_table(path, columns=["id"])["id"]


def _nearest(asked: str, ids: pa.Array | pa.ChunkedArray) -> str:
    """The id that resembles one most, or "".

    Of the file whose name is the most similar, it is the record of the nearest number.
    """
    files = pc.replace_substring_regex(ids, "#[^#]*$", "")
    file, _, record = asked.rpartition("#") if "#" in asked else (asked, "", "")
    alike = _closest(file, pc.unique(files).to_pylist())
    if not alike:
        return ""
    names: list[str] = ids.filter(pc.equal(files, alike)).to_pylist()
    wanted = _number(record)
    apart = {abs(number - wanted): name for name in names if (number := _number(name.rpartition("#")[2])) >= 0}
    return apart[min(apart)] if wanted >= 0 and apart else _closest(f"{alike}#{record}", names) or names[0]


def _closest(word: str, names: list[str]) -> str:
    return word if word in names else next(iter(difflib.get_close_matches(word, names[:_COMPARED], n=1)), "")


def _number(record: str) -> int:
    """The number of a record; -1 where it is named otherwise."""
    return int(record) if record.isdecimal() and len(record) <= _DIGITS else -1

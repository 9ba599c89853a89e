"""WET files and WACZ archives.

WET (`type = "wet"`): the records of type conversion in a WARC file, whose block is a page's text, as Common Crawl
extracted it. The text is taken as it is; its url is the target URI. Header fields named in `columns` (WARC-Date,
WARC-Identified-Content-Language) are kept. Other records are counted as `not_a_conversion`.

WACZ (a `warc` source's files that end in .wacz): a zip whose folder `archive` holds WARC files. Each is unpacked to a
temporary file and read as one; its name is that of the archive and its own. What the zip cannot give is a fault
`unreadable_member`, and one that unpacks to far more than it holds a `decompression_bomb` (`archive.py`); the archive
counts as torn. It counts as torn, too, where a WARC file is not the one whose SHA-256 `datapackage.json` states
(`wacz_digest_mismatch`; none of it is read) or is missing (`missing_member`). Format: WACZ 1.1.1.
"""

from __future__ import annotations

import json
import lzma
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_pipeline.readers.archive import Member, is_zip, members, read_blocks
from data_pipeline.readers.opt_out import HostRules
from data_pipeline.readers.record import Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import WarcSource, WetSource
from data_pipeline.readers.streams import PACKED, TornStream, end_at_machine_error
from data_pipeline.readers.warc_stream import RawRecord, raw_records
from governance.errors import MissingInput, storage_errors
from governance.files import sha256_file

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_GAP = b"\r\n\r\n"
_MAX_PACKAGE_BYTES = 64 << 20
"""Size of a datapackage.json that is read."""


def read_wet(path: Path, file: str, source: WetSource, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    """Records and faults of one WET file, in order.

    Raises:
        MissingInput: the file cannot be opened.
    """
    from data_pipeline.readers.warc import is_altered

    for raw in raw_records(path):
        if not isinstance(raw, RawRecord):
            yield RecordFault(file, raw.place, raw.reason, sample(raw.data))
            continue
        head, _, block = raw.data.partition(_GAP)
        fields = _fields(head)
        if fields.get("warc-type", "").lower() != "conversion":
            passed["not_a_conversion"] += 1
            continue
        url = fields.get("warc-target-uri", "").strip("<> ")
        fault = "warc_too_large" if raw.cut else "warc_digest_mismatch" if is_altered(raw) else ""
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            text, fault = "", fault or "not_utf8"
        if not fault and len(text.strip()) < source.min_text_characters:
            fault = "no_text"
        if fault:
            yield RecordFault(file, raw.place, fault, sample(url))
        else:
            row = {"text": text, "url": url, **{name: fields.get(name.lower()) for name in source.columns}}
            yield to_record(row, source.fields, file, raw.place, url)


def _fields(head: bytes) -> dict[str, str]:
    """A header's fields by their names in small letters."""
    lines = head.decode("utf-8", "replace").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_wacz(
    path: Path, file: str, source: WarcSource, rules: HostRules | None, passed: Counter[str]
) -> Iterator[Record | RecordFault]:
    """Records and faults of the WARC files in one archive, in order.

    Raises:
        MissingInput: the archive cannot be opened.
    """
    from data_pipeline.readers.warc import read_warc

    if not is_zip(path):
        yield RecordFault(file, 0, "unreadable_member", sample("not a whole zip file"))
        return
    digests = _stated_digests(path)
    try:
        for member in members(path, ("archive/*",)):
            name, stated = f"{file}/{member.name}", digests.pop(member.name, "")
            if member.fault:
                yield RecordFault(name, 0, member.fault, "")
                continue
            ending = next((ending for ending in PACKED if member.name.endswith(ending)), "")
            with tempfile.NamedTemporaryFile(suffix=ending) as unpacked:
                torn = _unpack(member, unpacked)
                if stated and not torn and sha256_file(Path(unpacked.name)) != stated:
                    yield RecordFault(name, 0, "wacz_digest_mismatch", sample(f"datapackage.json states {stated}"))
                    continue
                yield from read_warc(Path(unpacked.name), name, source, rules=rules, passed=passed)
            if torn:
                yield RecordFault(name, 0, torn, "")
    except MissingInput as error:  # its directory is damaged, or the device fails
        end_at_machine_error(error.__cause__ or error, path)
        yield RecordFault(file, 0, "unreadable_member", sample(str(error.__cause__)))
    else:
        for member_name in digests:
            yield RecordFault(f"{file}/{member_name}", 0, "missing_member", "")


def _unpack(member: Member, target: IO[bytes]) -> str:
    """Write the bytes of a member; return its fault, or "".

    Raises:
        StorageError: the disk of temporary files is full.
    """
    fault = ""
    with storage_errors(Path(tempfile.gettempdir())):
        try:
            for block in read_blocks(member):
                target.write(block)
        except TornStream as error:
            fault = error.reason
        target.flush()
    return fault


def _stated_digests(path: Path) -> dict[str, str]:
    """SHA-256 by name of the WARC files in `datapackage.json`, or ""."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("datapackage.json") as file:
            package = json.loads(file.read(_MAX_PACKAGE_BYTES))
        resources = [(str(resource["path"]), str(resource.get("hash", ""))) for resource in package["resources"]]
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RuntimeError, *_DAMAGE) as error:
        end_at_machine_error(error, path)
        return {}  # absent or unreadable: a WACZ without statements is read as it is
    of_archive = [(name, stated) for name, stated in resources if name.startswith("archive/")]
    return {name: stated.removeprefix("sha256:") if stated.startswith("sha256:") else "" for name, stated in of_archive}

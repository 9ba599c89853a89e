"""Parts that read what others wrote, each with inputs that are right: changed inputs may raise a PipelineError only."""

from __future__ import annotations

import base64
import bz2
import copy
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import PipelineError

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """A reader, inputs that it reads, and the place where it wants them."""

    run: Run
    seeds: Sequence[bytes]
    values: bool = False
    """The input is JSON that `run` signs or seals: whole values are changed in it, not bytes."""


def explained(target: Target, data: bytes, folder: Path) -> bool:
    """Return whether an input was read; False: it was refused.

    Any other error than a PipelineError is raised.
    """
    try:
        target.run(data, folder)
    except PipelineError as error:
        if not str(error).strip():
            raise AssertionError("a PipelineError without words") from error
        return False
    return True


def changed(target: Target, chance: random.Random) -> bytes:
    """A right input after one to eight changes."""
    seed = chance.choice(target.seeds)
    if target.values:
        return json.dumps(_other_value(json.loads(seed), chance)).encode("utf-8")
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 8, 64))
        way = chance.randrange(6)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif way == 1:
            data[at : at + length] = b""
        elif way == 2:
            data[at:at] = chance.choice(_TOKENS)
        elif way == 3:
            data[at : at + length] = chance.randbytes(length)
        elif way == 4:
            other = chance.choice(target.seeds)
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + chance.choice((8, 64, 512))]
        else:
            data[at : at + 1] = data[at : at + length] * chance.choice((2, 16))
    return bytes(data)


_TOKENS = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"'''", b"\\u0000", b"\\ud800", b"{", b"[[", b"]]>",
    b"<![CDATA[", b"&#0;", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"\r", b"\n", b"\r\n\r\n", b"-1", b"1e999", b"nan",
    b"99999999999999999999", b"null", b"true", b"= inf", b"[" * 1200, b"9" * 4400, b"a" * 5000, b"../", b"\x1f\x8b\x08",
    b"BZh9", b"\x28\xb5\x2f\xfd", b"content-length: 18446744073709551616\r\n", b"content-encoding: br\r\n",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 70, 0.5, 1e308, "", "a", "\ud800", "\x00", "2030-02-30", "f" * 64, "0" * 64, "a" * 5000,
    [], [[]], {}, {"": {}}, [None], {"sha256": None},
)  # fmt: skip


def _other_value(value: Any, chance: random.Random) -> Any:
    """The value with one to three of its parts changed, removed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder: Any = [value]
        at: Any = 0
        while isinstance(holder[at], dict | list) and holder[at] and chance.random() < 0.8:
            holder = holder[at]
            at = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        way = chance.randrange(4)
        if way == 0 and isinstance(holder, dict):
            del holder[at]
        elif way == 1 and isinstance(holder, dict):
            holder[chance.choice(["x", "", "\ud800", at + "s"])] = holder[at]
        elif way == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[at]))
        else:
            holder[at] = copy.deepcopy(chance.choice(_VALUES))
        if holder and isinstance(holder, list) and len(holder) == 1 and holder[0] is not value and at == 0:
            value = holder[0] if holder[0] is None or not isinstance(value, dict | list) else value
    return value


def _drained(pieces: Iterable[object]) -> None:
    for _ in pieces:
        pass


def _fields() -> Any:
    from data_pipeline.readers.record import Fields

    return Fields(text="text", id="id", url="url", language="language", columns=("n",))


def _of_file(ending: str, read: Callable[[Path], Iterable[object]]) -> Run:
    def run(data: bytes, folder: Path) -> None:
        path = folder / f"input{ending}"
        path.write_bytes(data)
        _drained(read(path))

    return run


def _jsonl(data: bytes, folder: Path) -> None:
    from data_pipeline.readers.text import read_jsonl

    _drained(read_jsonl([data[:50], data[50:]], "a.jsonl", _fields()))


def _csv(data: bytes, folder: Path) -> None:
    from data_pipeline.readers.file_types.delimited import Dialect, read_csv

    _drained(read_csv([data[:50], data[50:]], "a.csv", _fields()))
    _drained(read_csv([data[:50], data[50:]], "a.csv", _fields(), Dialect(encoding="latin-1", delimiter=";")))


def _html(data: bytes, folder: Path) -> None:
    from data_pipeline.readers.html import extract

    extract(data)


def _wikitext(data: bytes, folder: Path) -> None:
    from data_pipeline.readers.file_types.wikitext import plain_text

    plain_text(data.decode("utf-8", "replace"))


def _warc(path: Path) -> Iterable[object]:
    from data_pipeline.readers.sources import WarcSource
    from data_pipeline.readers.warc import host_files, read_warc

    source = WarcSource(type="warc", name="web", licence="CC0-1.0", paths=("x",))
    _drained(host_files(path))
    return read_warc(path, path.name, source)


def _wet(path: Path) -> Iterable[object]:
    from data_pipeline.readers.file_types.web_captures import read_wet
    from data_pipeline.readers.sources import WetSource

    source = WetSource(type="wet", name="web", licence="CC0-1.0", paths=("x",), columns=("WARC-Date",))
    return read_wet(path, path.name, source, Counter())


def _mediawiki(path: Path) -> Iterable[object]:
    from data_pipeline.readers.file_types.mediawiki import read_mediawiki
    from data_pipeline.readers.sources import MediawikiSource

    source = MediawikiSource(type="mediawiki", name="wiki", licence="CC0-1.0", paths=("x",), columns=("title",))
    return read_mediawiki(path, path.name, source, Counter())


def _parquet(path: Path) -> Iterable[object]:
    from data_pipeline.readers.parquet import read_parquet

    return read_parquet(path, path.name, _fields())


def _arrow(path: Path) -> Iterable[object]:
    from data_pipeline.readers.file_types.arrow_files import read_arrow_file

    return read_arrow_file(path, path.name, _fields())


def _archive(path: Path) -> Iterable[object]:
    from data_pipeline.readers.archive import members, read_blocks
    from data_pipeline.readers.text import ending_of, read_member

    for member in members(path, ("*",)):
        yield from read_member(read_blocks(member), member.name, ending_of(member.name), _fields())


def _config(data: bytes, folder: Path) -> None:
    from assay.config import load_run

    path = folder / "run.toml"
    path.write_bytes(data)
    if not (folder / "policy.toml").exists():
        (folder / "policy.toml").write_bytes((ROOT / "configs" / "policy.toml").read_bytes())
    load_run(path, [])


def _policy(data: bytes, folder: Path) -> None:
    from governance.gate.policy import load_policy

    path = folder / "other.toml"
    path.write_bytes(data)
    load_policy(path)


def _manifest(data: bytes, folder: Path) -> None:
    from governance.manifest import read_manifest

    path = folder / "manifest.json"
    path.write_bytes(data)
    read_manifest(path)


def _sealed_manifest(data: bytes, folder: Path) -> None:
    from governance.config import canonical_json
    from governance.files import sha256_bytes

    values = json.loads(data)
    if isinstance(values, dict):
        try:
            values["seal"] = sha256_bytes(canonical_json({**values}))
        except (TypeError, ValueError):  # no seal is possible
            values["seal"] = ""
    _manifest(json.dumps(values).encode("utf-8"), folder)


_KEY = bytes(range(32))


def _key() -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_KEY)


def _envelope(payload: Any) -> dict[str, Any]:
    """An envelope of any payload with a valid signature, as governance/signing writes it."""
    from governance.signing.dsse import PAYLOAD_TYPE, key_id, pre_authentication

    body, key = json.dumps(payload).encode("utf-8"), _key()
    one = {"keyid": key_id(key.public_key()), "sig": base64.b64encode(key.sign(pre_authentication(body))).decode()}
    return {"payload": base64.b64encode(body).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [one]}


def _waiver(data: bytes, folder: Path) -> None:
    from governance.gate.signed_statements import read_statements
    from governance.gate.waivers import RULINGS

    inner = folder / "waivers"
    inner.mkdir(exist_ok=True)
    (inner / "one.json").write_bytes(data)
    read_statements(inner, RULINGS)


def _journal(data: bytes, folder: Path) -> None:
    from governance.signing.journal_lines import read_journal

    path = folder / "journal.jsonl"
    path.write_bytes(data)
    read_journal(path, [_key().public_key()])


def _signed_waiver(data: bytes, folder: Path) -> None:
    _waiver(json.dumps(_envelope(json.loads(data))).encode("utf-8"), folder)


def _signed_journal(data: bytes, folder: Path) -> None:
    values = json.loads(data)
    if isinstance(values, dict) and "statement" in values:
        values["envelope"] = _envelope(values.pop("statement"))
    _journal(json.dumps(values).encode("utf-8") + b"\n", folder)


def _statement_seeds() -> list[bytes]:
    public = _key().public_key().public_bytes_raw().hex()
    signed = {"approver": "ann", "key": public, "reason": "Two torn records were read by a person.",
              "signed_at": "2027-01-01T09:00:00Z"}  # fmt: skip
    ruling = {"gate": "sources.quarantined_share", "result": "sources", "policy": "0" * 64, **signed}
    predicates = {
        "waiver": {**ruling, "observed": 0.0013, "max_deviation": 0.0005, "expires": "2027-01-31"},
        "refusal": ruling,
        "withdrawal": {"refusal": "a.json", "gate": "sources.quarantined_share", "corpus": "0" * 64, **signed},
    }
    return [
        json.dumps({
            "_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "encode", "digest": {"sha256": "1" * 64}}],
            "predicateType": f"urn:assay:{kind}:1", "predicate": predicate,
        }).encode()
        for kind, predicate in predicates.items()
    ]  # fmt: skip


def _journal_seeds(signed: bool) -> list[bytes]:
    """A line as the program writes it: here with the statement in place of the envelope, or signed."""
    artifact = {"path": "encode/0123456789abcdef/manifest.json", "sha256": "2" * 64}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": artifact["path"], "digest": {"sha256": artifact["sha256"]}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "journal": {"index": 0, "previous": "", "time": "2027-01-01T09:00:00Z"},
            "buildDefinition": {"resolvedDependencies": [{"name": "clean", "digest": {"sha256": "3" * 64}}]},
        },
    }
    line = {"kind": "artifact", "time": "2027-01-01T09:00:00Z", "statement": statement}
    if signed:
        line["envelope"] = _envelope(line.pop("statement"))
    return [json.dumps(line).encode() + b"\n"]


def _manifest_seeds() -> list[bytes]:
    from governance.manifest import Manifest, Output, manifest_text

    outputs = [Output(path="encode/0123456789abcdef/a.tokens", bytes=3, sha256="1" * 64)]
    manifest = Manifest(
        stage="encode", version=1, key="0123456789abcdef" * 4, config={"a": 1, "b": [0.5, "c"]}, inputs=(),
        outputs=tuple(outputs), stats={"tokens": 3, "by": {"en": 1}}, run={"started": "2027-01-01T09:00:00Z"},
    )  # fmt: skip
    return [manifest_text(manifest).encode()]


def _unsealed(seeds: Sequence[bytes]) -> list[bytes]:
    return [
        json.dumps({name: value for name, value in json.loads(seed).items() if name != "seal"}).encode()
        for seed in seeds
    ]


def _table_seeds() -> tuple[list[bytes], list[bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["one", "two", None], "id": ["a", "b", "c"], "n": [1, 2, 3], "language": ["en"] * 3})
    parquet, arrow, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return [parquet.getvalue()], [arrow.getvalue(), stream.getvalue()]


def _archive_seeds() -> list[bytes]:
    packed, taped = io.BytesIO(), io.BytesIO()
    files = {"a.txt": b"one text", "b/c.html": b"<p>two</p>", "d.csv": b"text,id\nthree,1\n"}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with tarfile.open(fileobj=taped, mode="w") as tape:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tape.addfile(info, io.BytesIO(data))
    return [packed.getvalue(), taped.getvalue(), gzip.compress(taped.getvalue(), mtime=0)]


_PAGE = b"<!doctype html><html lang=en><head><title>T</title><meta charset=utf-8></head><body><article><h1>A</h1>" \
    b"<p>Some text of a page &amp; more, long enough to stay.</p><pre><code>x = 1</code></pre><table><tr><td>1" \
    b"</table></article><footer>c</footer></body></html>"  # fmt: skip
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_PAGE),
    _PAGE,
)


def _warc_record(kind: bytes, block: bytes) -> bytes:
    head = (
        b"WARC/1.1\r\nWARC-Type: %s\r\nWARC-Target-URI: http://a.example/x\r\nWARC-Date: 2027-01-01T00:00:00Z\r\n"
        b"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\nContent-Type: application/http; "
        b"msgtype=response\r\nContent-Length: %d\r\n\r\n"
    )
    return head % (kind, len(block)) + block + b"\r\n\r\n"


_WARC = _warc_record(b"response", _HTTP) + _warc_record(b"conversion", b"a plain text")
_WIKITEXT = (
    b"'''Bold''' [[link|text]] {{tpl|a=1}} <ref name=x>note</ref>\n== Head ==\n* item\n{| class=w\n|-\n| cell\n|}\n"
)
_WIKI = (
    b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en"><siteinfo><base>http://a.example/wiki'
    b'/Main</base><namespaces><namespace key="0" case="first-letter" /></namespaces></siteinfo><page><title>One</title>'
    b"<ns>0</ns><id>1</id><revision><id>2</id><timestamp>2027-01-01T00:00:00Z</timestamp><model>wikitext</model>"
    b'<text xml:space="preserve">' + _WIKITEXT.replace(b"<", b"&lt;") + b"</text></revision></page></mediawiki>"
)


def targets() -> dict[str, Target]:
    """Every target by name."""
    from benchmarks.measures.small_run import SMALL_RUN

    parquet, arrow = _table_seeds()
    runs = [SMALL_RUN.encode(), *(path.read_bytes() for path in sorted((ROOT / "configs").glob("*.toml")))]
    rows = b'{"text": "one", "id": "a", "n": 1, "url": "http://a.example"}\n{"text": "two \\u00e9", "language": "en"}\n'
    return {
        "jsonl": Target(_jsonl, [rows]),
        "csv": Target(_csv, [b'text,id,n\n"one, ""two""",a,1\nthree,b,2\n', b"text;id\r\n'x';1\r\n"]),
        "html": Target(_html, [_PAGE]),
        "wikitext": Target(_wikitext, [_WIKITEXT]),
        "warc": Target(_of_file(".warc", _warc), [_WARC]),
        "warc_gz": Target(_of_file(".warc.gz", _warc), [gzip.compress(_WARC, mtime=0)]),
        "wet": Target(_of_file(".wet", _wet), [_WARC]),
        "mediawiki": Target(_of_file(".xml", _mediawiki), [_WIKI]),
        "mediawiki_bz2": Target(_of_file(".xml.bz2", _mediawiki), [bz2.compress(_WIKI)]),
        "parquet": Target(_of_file(".parquet", _parquet), parquet),
        "arrow": Target(_of_file(".arrow", _arrow), arrow),
        "archive": Target(_of_file(".zip", _archive), _archive_seeds()),
        "config": Target(_config, runs),
        "policy": Target(_policy, [(ROOT / "configs" / "policy.toml").read_bytes()]),
        "manifest": Target(_manifest, _manifest_seeds()),
        "sealed_manifest": Target(_sealed_manifest, _unsealed(_manifest_seeds()), values=True),
        "waiver": Target(_waiver, [json.dumps(_envelope(json.loads(one))).encode() for one in _statement_seeds()]),
        "signed_waiver": Target(_signed_waiver, _statement_seeds(), values=True),
        "journal": Target(_journal, _journal_seeds(signed=True)),
        "signed_journal": Target(_signed_journal, _journal_seeds(signed=False), values=True),
    }

"""Web archives through the whole of ingest: a page is a document, its position the byte of its record in the file."""

import gzip
import json

import pytest

from data_pipeline.documents import QUARANTINE_SCHEMA, read_documents, read_table
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import WarcSource
from governance.errors import MissingInput
from governance.stage import Runtime

PROSE = "This page tells at some length what there is to tell, and then it tells it once more. " * 5


def record(url, body, status=200, media_type="text/html", kind="response"):
    http = f"HTTP/1.1 {status} OK\r\nContent-Type: {media_type}; charset=utf-8\r\n\r\n".encode() + body
    head = f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{abs(hash(url))}>\r\nWARC-Target-URI: {url}\r\n"
    head += "WARC-Date: 2024-05-01T12:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n"
    return f"{head}Content-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n"


def page(number):
    return f"<html><title>t</title><body><main><p>{number}. {PROSE}</p></main></body></html>".encode()


@pytest.fixture
def crawl(tmp_path):
    """Two archives, and where the records of each begin."""
    starts = {}
    for name, count in (("a.warc.gz", 12), ("b.warc.gz", 3)):
        members = [gzip.compress(record(f"https://h.example/{name}/{i}", page(i))) for i in range(count)]
        members.insert(1, gzip.compress(record("https://h.example/none", b"gone", 404)))
        members.insert(2, gzip.compress(record("https://h.example/i.png", b"\x89PNG", media_type="image/png")))
        starts[name] = [sum(map(len, members[:i])) for i in range(len(members)) if i not in (1, 2)]
        (tmp_path / name).write_bytes(b"".join(members))
    (tmp_path / "c.warc.gz").write_bytes(gzip.compress(record("https://h.example/i.png", b"x", media_type="image/png")))
    robots = {"url": "https://h.example/robots.txt", "fetched": "2024-04-01T00:00:00Z"}
    (tmp_path / "hosts.jsonl").write_text(json.dumps(robots | {"body": "User-agent: GPTBot\nDisallow: /b"}) + "\n")
    return starts


def made(tmp_path, root, workers=1, shard_bytes=3000, **values):
    source = WarcSource(type="warc", name="web", licence="NOASSERTION", paths=("*.warc.gz",), **values)
    return ingest((source,), IngestConfig(shard_bytes=shard_bytes), tmp_path, Runtime(tmp_path / root, workers))


def test_pages_are_at_the_bytes_of_their_records(tmp_path, crawl):
    one = made(tmp_path, "r1")
    assert made(tmp_path, "r2", workers=2).digest == one.digest
    documents = list(read_documents(one.files("documents", tmp_path / "r1")))
    places = [(name, start) for name in ("a.warc.gz", "b.warc.gz") for start in crawl[name]]
    assert [(d.file, d.position) for d in documents] == places
    assert documents[3].url == "https://h.example/a.warc.gz/3"
    assert [d.opt_out for d in documents] == ["none"] * 15
    assert len(one.files("documents", tmp_path / "r1")) > 3, "one archive becomes several shards"
    assert one.stats["passed_over"] == {"other_content_type": 3, "status_not_200": 2}
    assert (one.stats["documents_in"], one.stats["documents_kept"], one.stats["files"]) == (15, 15, 3)


def test_what_hosts_say_is_an_input(tmp_path, crawl):
    without = made(tmp_path, "r1")
    output = made(tmp_path, "r1", opt_out_paths=("hosts.jsonl",))
    assert output.key != without.key
    assert "web/opt_out/hosts.jsonl" in {item.path for item in output.inputs}
    documents = list(read_documents(output.files("documents", tmp_path / "r1")))
    assert [d.opt_out for d in documents] == ["none"] * 12 + ["robots.txt:GPTBot"] * 3
    assert made(tmp_path, "r2", opt_out_paths=(str(tmp_path / "host*.jsonl"),)).digest == output.digest
    with pytest.raises(MissingInput, match="names no file"):
        made(tmp_path, "r1", opt_out_paths=("none.jsonl",))


def test_a_torn_archive_is_reported_with_its_byte(tmp_path, crawl):
    path = tmp_path / "a.warc.gz"
    cut = crawl["a.warc.gz"][7] + 100
    path.write_bytes(path.read_bytes()[:cut])
    manifest = made(tmp_path, "r1")
    faults = [
        (row["file"], row["position"], row["reason"])
        for shard in manifest.files("quarantine", tmp_path / "r1")
        for row in read_table(shard, QUARANTINE_SCHEMA).to_pylist()
    ]
    assert faults == [("a.warc.gz", crawl["a.warc.gz"][7], "warc_torn_record")]
    assert manifest.stats["documents_kept"] == 10
    assert manifest.stats["torn_files"] == 1

"""Files behind URLs: an ingest has the digest of the same files on this machine, and nothing is fetched twice."""

import contextlib
import functools
import gzip
import http.server
import importlib.util
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.documents import read_documents
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import remote
from data_pipeline.readers.remote import RemoteFile, fetch_remote, find_remote
from data_pipeline.readers.sources import JsonlSource, ParquetSource, TextSource
from governance.errors import ConfigError, ManifestError, MissingInput, StorageError
from governance.stage import Runtime, ShareDone
from tests.serving import serving


def files(folder):
    (folder / "raw" / "de").mkdir(parents=True)
    (folder / "raw" / "en").mkdir()
    rows = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(50)).encode()
    (folder / "raw" / "de" / "a.jsonl").write_bytes(rows)
    (folder / "raw" / "en" / "b.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0))
    pq.write_table(pa.table({"text": ["one", "two"]}), folder / "raw" / "x.parquet")
    (folder / "raw" / "p.html").write_text("<main><p>" + "A page of prose, which is long enough. " * 9 + "</p></main>")
    return folder


def sources(prefix):
    return (
        JsonlSource(type="jsonl", name="rows", licence="MIT", paths=(f"{prefix}raw/**/*.jsonl*",)),
        ParquetSource(type="parquet", name="table", licence="MIT", paths=(f"{prefix}raw/*.parquet",)),
        TextSource(type="text", name="page", licence="MIT", paths=(f"{prefix}raw/p.html",)),
    )


@pytest.fixture
def memory(tmp_path):
    """The files in fsspec's memory file system."""
    import fsspec

    system = fsspec.filesystem("memory")
    for path in files(tmp_path / "files").rglob("*.*"):
        system.pipe(f"/bucket/{path.relative_to(tmp_path / 'files')}", path.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def made(listed, tmp_path, root, workers=1, **runtime):
    return ingest(listed, IngestConfig(shard_bytes=700), tmp_path, Runtime(tmp_path / root, workers, **runtime))


def test_memory_file_and_path_give_one_digest(tmp_path, memory):
    local = made(sources(f"{tmp_path}/files/"), tmp_path, "r1")
    assert made(sources("memory://bucket/"), tmp_path, "r2").digest == local.digest
    assert made(sources(f"file://{tmp_path}/files/"), tmp_path, "r3").digest == local.digest
    assert list((tmp_path / "r3").glob("fetch/*/file/*")) == [], "a path of this machine is read where it lies"
    names = {document.file for document in read_documents(local.files("documents", tmp_path / "r1"))}
    assert names == {"de/a.jsonl", "en/b.jsonl.gz", "x.parquet", "p.html"}
    assert local.stats["documents_kept"] == 103


def test_a_fetch_reports_how_far_it_is(tmp_path, memory, monkeypatch):
    shown = {}

    @contextlib.contextmanager
    def progress(name, total, unit):
        shown[name] = [total, 0.0]

        def advance(amount):
            shown[name][1] += amount

        yield advance

    monkeypatch.setattr(remote, "progress", progress)
    made(sources("memory://bucket/"), tmp_path, "root")
    assert set(shown) == {"fetch a.jsonl", "fetch b.jsonl.gz", "fetch x.parquet", "fetch p.html"}
    assert all(total > 0 and came == pytest.approx(total) for total, came in shown.values())


def test_what_was_fetched_is_found_and_what_was_altered_is_not_read(tmp_path, memory):
    one = made(sources("memory://bucket/"), tmp_path, "root")
    assert made(sources("memory://bucket/"), tmp_path, "root", make=False) == one
    (copy,) = (tmp_path / "root" / "fetch").glob("*/file/x.parquet")
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match="was altered after it was fetched"):
        made(sources("memory://bucket/"), tmp_path, "root")
    memory.pipe("/bucket/raw/de/a.jsonl", b'{"text": "new"}\n')
    copy.parent.parent.rename(tmp_path / "away")
    assert made(sources("memory://bucket/"), tmp_path, "root").digest != one.digest


def test_a_look_up_refuses_a_remote_file_that_is_known_to_have_changed(tmp_path, memory):
    one = made(sources("memory://bucket/"), tmp_path, "root")
    kept = memory.cat("/bucket/raw/p.html")
    memory.rm("/bucket/raw/p.html")
    assert made(sources("memory://bucket/"), tmp_path, "root", make=False).digest == one.digest
    memory.pipe("/bucket/raw/p.html", kept + b" ")
    with pytest.raises(MissingInput, match="fetch: not made yet"):
        made(sources("memory://bucket/"), tmp_path, "root", make=False)


def test_names_are_those_below_the_shared_folder(memory):
    def names(*patterns):
        return [file.name for file in find_remote(patterns, "s")]

    assert names("memory://bucket/raw/**/*.jsonl*") == ["de/a.jsonl", "en/b.jsonl.gz"]
    assert names("memory://bucket/raw/de/a.jsonl", "memory://bucket/raw/en/*") == ["de/a.jsonl", "en/b.jsonl.gz"]
    assert names("memory://bucket/raw/de/a.jsonl") == ["a.jsonl"]


@pytest.mark.parametrize(
    ("patterns", "error", "words"),
    [
        (("memory://bucket/none*",), MissingInput, "'memory://bucket/none\\*' names no file"),
        (("memory://bucket/raw",), MissingInput, "names no file"),
        (("memory://bucket/raw/de/a.jsonl", "here/*.jsonl"), ConfigError, "mixes paths of this machine and memory://"),
        (("nope://x/y",), ConfigError, "fsspec has no nope://"),
    ],
)
def test_urls_that_name_nothing(memory, patterns, error, words):
    with pytest.raises(error, match=words):
        find_remote(patterns, "s")


@pytest.mark.parametrize(("url", "package"), [("s3://b/x.jsonl", "s3fs"), ("gs://b/x.jsonl", "gcsfs")])
def test_a_package_that_is_not_installed_is_named(url, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(MissingInput, match=f"pip install {package}"):
        find_remote((url,), "s")


def test_a_full_disk_is_not_blamed_on_the_source(tmp_path, memory, monkeypatch):
    def full(path):
        raise StorageError("full")

    monkeypatch.setattr("data_pipeline.readers.remote.atomic_file", full)
    with pytest.raises(StorageError):
        fetch_remote(RemoteFile("a.jsonl", "memory://bucket/raw/de/a.jsonl"), "s", Runtime(tmp_path))


def test_a_look_up_fetches_nothing_that_it_keeps(tmp_path, memory):
    with pytest.raises(MissingInput, match="fetch: not made yet"):
        made(sources("memory://bucket/"), tmp_path, "root", make=False)
    assert not (tmp_path / "root").exists()


def test_a_share_reads_nothing_to_know_which_version_it_is(tmp_path, memory):
    made(sources("memory://bucket/"), tmp_path, "root")
    with pytest.raises(ShareDone, match="its server does not say which version it is"):
        fetch_remote(RemoteFile("a.jsonl", "memory://bucket/raw/de/a.jsonl"), "s", Runtime(tmp_path, mode="share"))


class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        if self.path.startswith("/raw/de"):
            self.send_header("ETag", '"1"')
        super().end_headers()

    def log_message(self, *words):
        self.server.asked.append(words[1] if len(words) > 1 else "")


@contextlib.contextmanager
def served(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.asked = []
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/", server


web = pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="http through fsspec wants aiohttp")


@web
def test_http_gives_the_digest_of_the_files(tmp_path):
    files(tmp_path / "files")
    with served(tmp_path / "files") as (prefix, server):
        by_url = (
            JsonlSource(
                type="jsonl",
                name="rows",
                licence="MIT",
                paths=(f"{prefix}raw/de/a.jsonl?signature=secret", f"{prefix}raw/en/b.jsonl.gz"),
            ),
        )
        remote = made(by_url, tmp_path, "r1")
        asked = [words for words in server.asked if words.startswith("GET") and "/de/" in words]
        assert made(by_url, tmp_path, "r1") == remote
        assert [words for words in server.asked if words.startswith("GET") and "/de/" in words] == asked
        with pytest.raises(MissingInput, match="cannot be read"):
            made((by_url[0].model_copy(update={"paths": (f"{prefix}raw/none.jsonl",)}),), tmp_path, "r1")
    assert made(sources(f"{tmp_path}/files/")[:1], tmp_path, "r2").digest == remote.digest
    for path in (tmp_path / "r1").rglob("*.json"):
        assert "secret" not in path.read_text().replace("secret_sha256", "")
    with pytest.raises(MissingInput, match="cannot be read"):
        made(by_url, tmp_path, "r3")

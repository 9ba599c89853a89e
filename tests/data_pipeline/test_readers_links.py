"""Patterns and symbolic links: the matches of `glob` are found, links out of the folder refused, loops end."""

import glob
import os
import random
import time

import pytest

from data_pipeline import ingest as stage
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.local import find_files, search_files
from data_pipeline.readers.sources import HubSource, JsonlSource
from governance.errors import MissingInput
from governance.stage import Runtime

PATTERNS = ("**", "*/x.txt", "**/*.txt", "a/**/b*", "*", "a/*", "**/a/*", ".*", "a/**", "**/**/x.txt", "[ab]/*", "?")


@pytest.mark.parametrize("seed", range(8))
def test_a_tree_without_links_is_found_as_glob_finds_it(tmp_path, seed):
    generator = random.Random(seed)
    for number in range(20):
        folder = tmp_path / "/".join(generator.choice(["a", "b", ".h", "ab"]) for _ in range(generator.randrange(4)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / generator.choice(["x.txt", "b.txt", ".y", f"z{number}"])).write_text("")
    for pattern in (*PATTERNS, "a/x.txt", "ab/**/x.txt"):
        expected = {path for path in glob.glob(str(tmp_path / pattern), recursive=True) if os.path.isfile(path)}
        try:
            found = {str(file.path) for file in find_files((pattern,), tmp_path, "s")}
        except MissingInput:
            found = set()
        assert found == expected


def outside(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "out" / "secret.txt").write_text("b")
    return tmp_path / "in", tmp_path / "out"


@pytest.mark.parametrize(
    ("link", "target", "patterns"),
    [
        ("in/b.txt", "out/secret.txt", ("in/*.txt",)),
        ("in/b.txt", "out/secret.txt", ("in/b.txt",)),
        ("in/deep/b.txt", "out/secret.txt", ("in/**/*.txt",)),
        ("in/deep/more", "out", ("in/**/*.txt",)),
        ("in/deep/more", "out", ("in/*/*/*.txt", "in/a.txt")),
        ("in/deep/more", "out", ("in/*/more/secret.txt",)),
    ],
)
def test_a_link_out_of_the_folder_is_refused_unless_it_is_allowed(tmp_path, link, target, patterns):
    outside(tmp_path)
    os.symlink(tmp_path / target, tmp_path / link)
    with pytest.raises(MissingInput) as error:
        find_files(patterns, tmp_path, "source s")
    words = str(error.value)
    assert f"{tmp_path / link} is a symbolic link to {tmp_path / target}, which is outside" in words
    assert "follow_links = true" in words
    found = find_files(patterns, tmp_path, "s", follow_links=True)
    assert "b" in {file.path.read_text() for file in found}


def test_the_source_says_whether_links_are_followed(tmp_path):
    folder, out = outside(tmp_path)
    (out / "x.jsonl").write_text('{"text": "a"}\n')
    os.symlink(out / "x.jsonl", folder / "x.jsonl")

    def made(root, follow):
        source = JsonlSource(type="jsonl", name="a", licence="MIT", paths=("in/*.jsonl",), follow_links=follow)
        return ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / root))

    with pytest.raises(MissingInput, match="is a symbolic link to"):
        made("r1", follow=False)
    allowed = made("r1", follow=True)
    (folder / "x.jsonl").unlink()
    (folder / "x.jsonl").write_text('{"text": "a"}\n')
    assert made("r2", follow=False).digest == allowed.digest, "the way to a file is not part of what it is"


def test_links_that_stay_inside_are_followed(tmp_path):
    folder, _ = outside(tmp_path)
    os.symlink("a.txt", folder / "b.txt")
    os.symlink("deep", folder / "again")
    (folder / "deep" / "c.txt").write_text("c")
    names = [file.name for file in find_files(("in/**/*.txt",), tmp_path, "s")]
    assert names == ["a.txt", "b.txt", "deep/c.txt"], "a folder is entered once, under its own name"
    os.symlink(folder, tmp_path / "door")
    assert len(find_files(("door/*.txt",), tmp_path, "s")) == 2, "the folder itself may be reached through a link"


def test_loops_and_many_ways_to_one_folder_end(tmp_path):
    folder, _ = outside(tmp_path)
    os.symlink(folder, folder / "deep" / "up")
    os.symlink("self", folder / "self")
    os.symlink("pong", folder / "ping")
    os.symlink("ping", folder / "pong")
    level = folder
    for _ in range(30):  # 2 to the 30 ways to the last folder
        (level / "n").mkdir()
        os.symlink("n", level / "m")
        level = level / "n"
    (level / "end.txt").write_text("e")
    found = search_files(("in/**/*.txt",), tmp_path, "s")
    assert [file.name for file in found.files] == ["a.txt", "n/" * 30 + "end.txt"]
    assert {reason for _, reason in found.unread} == {"dangling_link"}, "three links that lead nowhere"
    assert len(search_files(("in/**/*.txt",), tmp_path, "s", follow_links=True).files) == 2
    with pytest.raises(MissingInput, match="names no file"):
        find_files(("in/self",), tmp_path, "s")


def test_nothing_that_a_pattern_reaches_is_lost_in_silence(tmp_path, monkeypatch):
    folder, out = outside(tmp_path)
    (folder / "x.jsonl").write_text('{"text": "a"}\n')
    source = JsonlSource(type="jsonl", name="a", licence="MIT", paths=("in/**/*.jsonl",))

    def made(source=source):
        return ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root"))

    whole = made()
    os.symlink("gone.jsonl", folder / "b.jsonl")
    os.symlink("gone", folder / "more")
    os.mkfifo(folder / "c.jsonl")
    (folder / os.fsdecode(b"d\xff.jsonl")).write_text('{"text": "b"}\n')
    listed = os.listdir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    found = made()
    assert found.key != whole.key
    assert found.stats["passed_over"] == {
        "dangling_link": 2, "not_a_file": 1, "unreadable_folder": 1, "name_not_utf8": 1
    }  # fmt: skip
    assert (found.stats["torn_files"], found.stats["by_source"]["a"]["torn_files"]) == (5, 5)
    assert found.stats["documents_kept"] == whole.stats["documents_kept"] == 1
    with pytest.raises(MissingInput, match=r"not read: .*b\.jsonl \(dangling_link\)"):
        find_files(source.paths, tmp_path, "evaluation set e")
    (out / "r.jsonl").write_text('{"text": "a"}\n')
    (out / "README.md").write_text("a card")
    (out / "rows.feather").write_text("unknown")
    hub = HubSource(type="hub", name="h", licence="MIT", dataset="./out")
    assert made(hub).stats["passed_over"] == {"unknown_file": 2}, "secret.txt and rows.feather"


@pytest.mark.parametrize(("settled", "shard_bytes"), [(True, 1000), (False, 1000), (False, 20)])
def test_a_file_that_changes_between_digest_and_reading_is_noticed(tmp_path, monkeypatch, settled, shard_bytes):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' * 4)
    os.utime(path, (1, 1))
    if settled:  # as two seconds later
        monkeypatch.setattr("governance.file_digests._SETTLED_NANOSECONDS", -(10**18))
    source = JsonlSource(type="jsonl", name="a", licence="MIT", paths=("x.jsonl",))
    read = stage.read_items

    def changed(work, passed):
        time.sleep(0.05)  # the clock of the file system has ticked
        path.write_text('{"text": "b"}\n' * 4)
        os.utime(path, (1, 1))
        return read(work, passed)

    monkeypatch.setattr(stage, "read_items", changed)
    with pytest.raises(MissingInput, match="was changed while it was read"):
        ingest((source,), IngestConfig(shard_bytes=shard_bytes), tmp_path, Runtime(tmp_path / "root"))
    monkeypatch.setattr(stage, "read_items", read)
    assert ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root")).stats["documents_kept"] == 4

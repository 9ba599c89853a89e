"""Copies of a root in an object store: whole, by digest, resumable, verified; against local servers of S3 and GCS."""

import json
import shutil
import socket

import pytest

from assay.cli.main import main
from assay.mirror import root_mirror
from assay.mirror.root_mirror import pull_root, push_root
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput, StorageError
from governance.lineage.unlisted_files import beside_faults
from governance.manifest import BESIDE, Manifest, describe, read_manifest, verify, write_manifest
from governance.stage import Runtime

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server():
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def store(server, monkeypatch):
    """A bucket's URL."""
    import s3fs

    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    if system.exists("runs"):
        system.rm("runs", recursive=True)
    system.mkdir("runs")
    return "s3://runs/mine"


@pytest.fixture
def google(monkeypatch):
    """A bucket of a local server of Google's storage."""
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield "gs://runs/mine"
    gcsfs.GCSFileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(50)))
    source = JsonlSource(type="jsonl", name="a", licence="MIT", paths=("a.jsonl",))
    ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root"))
    (tmp_path / "root" / "journal.jsonl").write_text("a line\n")
    (tmp_path / "root" / "commit.lock").write_text("")
    return tmp_path / "root"


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".lock"}  # fmt: skip


@pytest.mark.parametrize("kind", ["store", "google"])
def test_a_root_goes_out_and_comes_back(root, kind, request, tmp_path, capsys):
    store = request.getfixturevalue(kind)
    assert main(["mirror", "push", str(root), store]) == 0
    count = len(files(root))
    assert f"{count} files" in capsys.readouterr().out
    again = push_root(root, store)
    assert (again.files, again.sent) == (count, 0), "by digest: nothing is sent twice"
    with (root / "journal.jsonl").open("a") as journal:
        journal.write("another line\n")
    assert push_root(root, store).sent == 1
    assert main(["mirror", "pull", store, str(tmp_path / "back")]) == 0
    assert files(tmp_path / "back") == files(root)
    [path] = (tmp_path / "back").glob("ingest/*/manifest.json")
    assert verify(read_manifest(path), tmp_path / "back", deep=True) == []


def test_a_push_replaces_no_copy_of_another_root_nor_of_a_later_state(root, store, tmp_path):
    """Its index would take the names of what only the copy holds. A cut index is written again."""
    shutil.copytree(root, tmp_path / "older")
    with (root / "journal.jsonl").open("a") as journal:
        journal.write("another line\n")
    push_root(root, store)
    other = tmp_path / "other"
    shutil.copytree(root, other)
    (other / "journal.jsonl").write_text("of another root, and longer than that line\n")
    for wrong in (tmp_path / "older", other):
        with pytest.raises(ConfigError, match="of another root, or of a later state of this one"):
            push_root(wrong, store)
    system, base = root_mirror.file_system(store)
    system.pipe_file(f"{base}/index.json", b'{"files": {')
    assert push_root(root, store).sent == 0
    assert pull_root(store, tmp_path / "back").files == len(files(root))


def test_the_lock_that_a_training_lists_goes_along_and_no_other(root, store, tmp_path):
    lock = root / "train" / ("0" * 16) / "run.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("attempt 1")
    made = Manifest(stage="train", version=1, key="0" * 64, config={}, inputs=(), outputs=(), stats={},
                    run={BESIDE: [describe(lock, root).model_dump(mode="json")]})  # fmt: skip
    write_manifest(made, root)
    push_root(root, store)
    pull_root(store, tmp_path / "back")
    assert beside_faults([made], tmp_path / "back") == []
    assert [path.name for path in (tmp_path / "back").rglob("*.lock")] == ["run.lock"]


def test_an_interrupted_push_or_pull_goes_on(root, store, tmp_path, monkeypatch):
    left = [2]
    copy = root_mirror._copy

    def breaks(source, write, size):
        if write.__name__ != "<lambda>":
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the line is cut")
        return copy(source, write, size)

    monkeypatch.setattr(root_mirror, "_AT_ONCE", 1)
    monkeypatch.setattr(root_mirror, "_copy", breaks)
    with pytest.raises(StorageError, match=r"the line is cut.*What was copied is kept; run the same command again"):
        push_root(root, store)
    with pytest.raises(MissingInput, match="holds no copy of a root"):
        pull_root(store, tmp_path / "back")
    left[0] = 99
    done = push_root(root, store)
    assert 0 < done.sent < done.files
    left[0] = 1
    with pytest.raises(StorageError):
        pull_root(store, tmp_path / "back")
    left[0] = 99
    assert pull_root(store, tmp_path / "back").sent == done.files - 1
    assert files(tmp_path / "back") == files(root)


def test_what_is_altered_is_refused_on_both_sides(root, store, tmp_path):
    push_root(root, store)
    before = (tmp_path / "first", pull_root(store, tmp_path / "first"))[0]
    victim = next(root.glob("ingest/*/documents/*.parquet"))
    data = bytearray(victim.read_bytes())
    data[9] ^= 1
    digest = root_mirror._listed(root)[0][victim.relative_to(root).as_posix()][0]
    system, base = root_mirror.file_system(store)
    system.rm(f"{base}/blobs/{digest}")
    whole = victim.read_bytes()
    victim.write_bytes(bytes(data))
    with pytest.raises(AlteredFile, match="is not what its manifest states"):
        push_root(root, store)
    assert not system.exists(f"{base}/blobs/{digest}")
    system.pipe_file(f"{base}/blobs/{digest}", bytes(data))
    with pytest.raises(ManifestError, match=r"blobs/\w+: the object of ingest/.* is damaged\. Remove it there"):
        pull_root(store, tmp_path / "second")
    (before / "journal.jsonl").write_text("of another run\n")
    system.pipe_file(f"{base}/blobs/{digest}", whole)
    with pytest.raises(ConfigError, match=r"journal.jsonl: exists with other content. Fetch into a new folder"):
        pull_root(store, before)
    system.pipe_file(f"{base}/index.json", json.dumps({"files": {"../x": [digest, 1]}}).encode())
    with pytest.raises(ManifestError, match="outside the root"):
        pull_root(store, tmp_path / "third")


@pytest.mark.parametrize(("damage", "words"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is not what its manifest states"),
    (lambda path: path.unlink(), "lists this file, but it is missing"),
], ids=["cut", "gone"])  # fmt: skip
def test_a_push_of_a_damaged_root_leaves_the_copy_whole(root, tmp_path, damage, words):
    store = f"file://{tmp_path}/disk"
    push_root(root, store)
    whole = files(root)
    damage(next(root.glob("ingest/*/documents/*.parquet")))
    with pytest.raises(AlteredFile, match=words):
        push_root(root, store)
    pull_root(store, tmp_path / "back")
    assert files(tmp_path / "back") == whole


def test_a_file_rewritten_during_a_push_is_not_called_altered(root, tmp_path, monkeypatch):
    digest = root_mirror._digest

    def rewrites(path, size):
        found = digest(path, size)
        if path.name == "journal.jsonl":
            path.write_text("edited\n")
        return found

    monkeypatch.setattr(root_mirror, "_digest", rewrites)
    store = f"file://{tmp_path}/disk"
    with pytest.raises(StorageError, match=r"was rewritten while it was sent\. Run the same command again"):
        push_root(root, store)
    monkeypatch.undo()
    push_root(root, store)
    pull_root(store, tmp_path / "back")
    assert files(tmp_path / "back") == files(root)


def test_places_that_cannot_be_used_are_named(root, store, tmp_path):
    with pytest.raises(MissingInput, match=r"s3://nowhere/x: FileNotFoundError: .*Create the bucket or folder"):
        push_root(root, "s3://nowhere/x")
    with pytest.raises(MissingInput, match="holds no artifact"):
        push_root(tmp_path / "none", store)
    with pytest.raises(ConfigError, match=r"Protocol not known: nope.*Give a URL such as s3://"):
        push_root(root, "nope://x")
    push_root(root, f"file://{tmp_path}/disk")
    shutil.rmtree(root / "ingest")
    assert pull_root(f"file://{tmp_path}/disk", root).sent > 0

"""Uploads of a folder, to a local fake of the hub."""

from __future__ import annotations

import hashlib
import os

import pytest

from governance import hub_client
from governance.errors import ConfigError, PipelineError, StorageError
from governance.hub_client import push
from pretrain.export.huggingface import INDEX, REPLACED
from tests.governance.upload_server import TOKEN

AGAIN = "send it with: hf upload"
WEIGHTS = os.urandom(50_000)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "the exported model"
    path.mkdir()
    (path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Model\n")
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


def visibility(hub, name):
    """The visibility in the request that creates a repository, in either form of the hub's library."""
    request = hub.repositories[name]
    assert ("private" in request) != ("visibility" in request), request
    return request.get("visibility") or ("private" if request["private"] else "public")


def test_every_file_arrives_in_a_private_repository_and_again_in_the_same(hub, folder):
    for _ in range(2):
        assert push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN).endswith("/commit/" + "c" * 40)
    assert list(hub.repositories) == ["lab/tiny"]
    assert visibility(hub, "lab/tiny") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert list(hub.objects) == [hashlib.sha256(WEIGHTS).hexdigest()]
    push(folder, "lab/open", "Checkpoint 1", again=AGAIN, public=True)
    assert visibility(hub, "lab/open") == "public"


def test_no_file_of_an_earlier_export_is_left_that_loaders_would_read(hub, folder):
    """`transformers` takes model.safetensors where it is there, even next to an index of other files."""
    push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN, replaces=REPLACED)
    hub.files |= {
        "model-00001-of-00002.safetensors": b"old",
        "chat_template.jinja": b"old",
        "adapter_config.json": b"old",
        "notes.md": b"mine",
    }
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    (folder / INDEX).write_text("{}")
    push(folder, "lab/tiny", "Checkpoint 2", again=AGAIN, replaces=REPLACED)
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()} | {"notes.md": b"mine"}


@pytest.mark.parametrize(
    ("part", "status", "error", "message"),
    [
        ("create", 401, PipelineError, r"answers 401 .*run hf auth login, or set HF_TOKEN"),
        ("create", 403, PipelineError, r"answers 403 .*use one with write access"),
        ("preupload", 404, PipelineError, "answers 404"),
        ("commit/main", 403, PipelineError, "answers 403"),
        ("create", 429, PipelineError, r"answers 429 .*wait some minutes"),
        ("create", 500, StorageError, r"answers 500 .*Try again later"),
        ("commit/main", 500, StorageError, r"answers 500 .*Try again later"),
    ],
)
def test_a_refusal_says_what_to_do_and_how_to_finish(hub, folder, part, status, error, message):
    hub.fail[part] = status
    with pytest.raises(error, match=message) as raised:
        push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN)
    assert str(raised.value).endswith(AGAIN)
    hub.fail.clear()
    push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN)
    assert hub.files["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("part", ["create", "preupload", "objects", "commit/main"])
def test_a_silent_hub_does_not_hold_the_push_up(hub, folder, part, monkeypatch):
    monkeypatch.setattr(hub_client, "_SILENT", 0.05)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own tries
    hub.silent = part
    with pytest.raises(StorageError, match=r"cannot be reached .*timed out"):
        push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN)


def test_an_answer_that_is_not_json_points_to_the_endpoint(hub, folder):
    hub.page = "create"
    with pytest.raises(PipelineError, match=r"the answer is not JSON .*Check HF_ENDPOINT and proxies"):
        push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN)


def test_a_hub_that_is_not_there_and_a_bad_name_are_errors(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match="as OWNER/NAME"):
        push(folder, "tiny", "Checkpoint 1", again=AGAIN)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached"):
        push(folder, "lab/tiny", "Checkpoint 1", again=AGAIN)

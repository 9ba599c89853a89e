"""Initial weights from the hub, against a local server of its interface: pinned, verified, explained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.stage import Runtime
from pretrain.checkpoint.load import parent_of
from pretrain.config.optim import OptimConfig
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.initial_weights import hub_weights
from pretrain.initial_weights.model_settings import read_model
from pretrain.initial_weights.start import open_weights
from tests.pretrain.initial_weights.test_initial_weights import saved


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a model's repository, one of which Assay does not read."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    saved("llama", folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(monkeypatch, files, tmp_path, serve_hub):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return serve_hub("lab/tiny", files)


def recipe(files, address="hf://lab/tiny"):
    train = TrainConfig(sequence_length=16, global_batch_size=2, steps=1, initial_weights=address)
    return TrainRecipe(
        model=read_model(json.loads(files["config.json"])), optim=OptimConfig(learning_rate=1e-3), train=train
    )


def test_a_model_is_fetched_once_at_the_commit_of_its_branch(server, files, tmp_path):
    runtime = Runtime(tmp_path / "root", command="assay train x.toml")
    with pytest.raises(MissingInput, match=r"not fetched yet\. Fetch it with: assay train x\.toml"):
        open_weights(recipe(files), replace(runtime, make=False))
    first = open_weights(recipe(files), runtime)
    assert {name: first.folder.files.get(name) is not None for name in files} == {
        name: name in ("config.json", "tokenizer.json", "model.safetensors", "README.md") for name in files
    }
    facts = first.folder.facts()
    assert (facts["name"], facts["address"]) == ("tiny", f"hf://lab/tiny@{'c' * 40}")
    assert (facts["card"], first.source.path) == ({"license": "apache-2.0"}, "tiny")
    assert not any("pytorch_model" in request for request in server.requests)
    server.repositories["lab/tiny"].commit = "d" * 40  # the branch moves on
    requests = len(server.requests)
    again = open_weights(recipe(files), replace(runtime, make=False))
    assert (again.folder.digest, again.folder.address) == (first.folder.digest, first.folder.address)
    assert len(server.requests) == requests, "found without the hub"


@pytest.mark.parametrize("damage", ["{", "[]", '{"commit": "x"}'])
def test_ranks_that_list_a_moving_branch_at_the_same_time_agree(server, files, tmp_path, monkeypatch, damage):
    """The other rank writes its note between this one's look for a note and its own answer."""
    other, asked = Runtime(tmp_path / "root"), hub_weights.ask_hub

    def late(place, request):
        monkeypatch.setattr(hub_weights, "ask_hub", asked)
        answer = asked(place, request)
        server.repositories["lab/tiny"].commit = "d" * 40
        late.other = hub_weights.fetched("hf://lab/tiny", other).address
        return answer

    monkeypatch.setattr(hub_weights, "ask_hub", late)
    assert hub_weights.fetched("hf://lab/tiny", other).address == late.other == f"hf://lab/tiny@{'d' * 40}"
    [note] = (tmp_path / "root" / "fetch").glob("hub-*.json")
    note.write_text(damage)
    assert hub_weights.fetched("hf://lab/tiny", other).address == late.other
    assert json.loads(note.read_bytes())["commit"] == "d" * 40, "a damaged note is written again"


def test_weights_that_are_not_what_was_listed_are_refused(server, files, tmp_path):
    runtime = Runtime(tmp_path / "root")
    folder = open_weights(recipe(files), runtime).folder.path
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(files["model.safetensors"][:-1] + b"\xff")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not what the hub listed for hf://lab/tiny@c{40}"):
        open_weights(recipe(files), runtime)


def test_only_what_the_hub_itself_listed_is_known_to_be_the_hubs(server, files, tmp_path, monkeypatch):
    """`HF_ENDPOINT` makes any server the hub: its address is in the signed note."""
    found = open_weights(recipe(files), Runtime(tmp_path / "root"))
    assert f"listed by {server.url}, not by https://huggingface.co" in found.of_hub.unverified(found.folder.files)
    [note] = (tmp_path / "root" / "fetch").glob("hub-*.json")
    assert server.url in note.read_text()
    monkeypatch.setattr(hub_weights, "HUB", server.url)
    assert found.of_hub.unverified(found.folder.files) == ""
    unlisted = replace(found.of_hub, listed={})
    assert "no SHA-256 of its model.safetensors" in unlisted.unverified(found.folder.files)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("hf://tiny", ConfigError, r"is not hf://OWNER/NAME\[@REVISION\]"),
        ("hf://lab/none", MissingInput, "train.initial_weights: .*(not found on the hub|without a valid token)"),
        ("hf://lab/tiny@v9", MissingInput, "the model 'lab/tiny' at v9: there is no such revision"),
    ],
)
def test_an_address_that_the_hub_does_not_know_is_refused(server, files, tmp_path, address, error, words):
    with pytest.raises(error, match=words):
        open_weights(recipe(files, address), Runtime(tmp_path))


@pytest.mark.parametrize(("status", "words"), [(429, r"429 \(too many requests\)"), (500, "with 500, 3 times")])
def test_a_busy_or_broken_hub_is_asked_again_and_then_named(server, files, tmp_path, monkeypatch, status, words):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.failures += [status] * 50
    with pytest.raises(MissingInput, match=rf"train\.initial_weights: the hub answered the model 'lab/tiny' .*{words}"):
        open_weights(recipe(files), Runtime(tmp_path / "root"))
    server.failures[:] = [status]  # it recovers
    assert open_weights(recipe(files), Runtime(tmp_path / "root")).folder.facts()["name"] == "tiny"


def test_continue_from_needs_a_state_which_the_hub_has_not(tmp_path):
    train = TrainConfig(sequence_length=16, global_batch_size=2, steps=1, continue_from="hf://lab/tiny")
    with pytest.raises(CheckpointError, match=r'train\.initial_weights = "hf://lab/tiny"'):
        parent_of(train, tmp_path)

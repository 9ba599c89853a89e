"""Parquet files of the hub, against a local server of its interface: listed once, pinned, verified, explained."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem

from data_pipeline.config import DataConfig
from data_pipeline.documents import read_documents
from data_pipeline.filters.model_files import model_files
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import hub
from data_pipeline.readers.sources import HubSource, JsonlSource, ParquetSource
from data_pipeline.tokens.tokenizer import TokenizerConfig, take_over
from governance.config import validate
from governance.errors import ConfigError, MissingInput, hub_hint
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.hooks import Hooks
from governance.lineage.attest import KeySigner
from governance.lineage.unlisted_files import find_unlisted, note_faults
from governance.signing.dsse import private_key
from governance.stage import Runtime


def parquet(texts):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


FILES = {
    "README.md": b"# a data set",
    "data/train-00000-of-00002.parquet": parquet(["one", "two"]),
    "data/train-00001-of-00002.parquet": parquet(["three"]),
    "data/test-00000-of-00001.parquet": parquet(["held out"]),
}


@pytest.fixture
def server(serve_hub):
    return serve_hub("lab/news", FILES)


def source(**values):
    return HubSource(
        **{"type": "hub", "name": "h", "licence": "MIT", "dataset": "lab/news", "revision": "main"} | values
    )


def made(root, one, **runtime):
    manifest = ingest((one,), IngestConfig(), root, Runtime(root, **runtime))
    return manifest, [document.text for document in read_documents(manifest.files("documents", root))]


def test_each_file_is_an_item_and_the_branch_a_commit(server, tmp_path):
    manifest, texts = made(tmp_path / "1", source())
    assert texts == ["one", "two", "three"]
    names = [name for name in sorted(FILES) if "train" in name]
    assert [(item.stage, item.path) for item in manifest.inputs] == [("hub", f"h/{name}") for name in names]
    assert manifest.config["sources"][0]["revision"] == "c" * 40
    note = json.loads(next((tmp_path / "1" / "fetch").glob("hub-*.json")).read_bytes())
    assert (note["dataset"], note["commit"]) == ("lab/news", "c" * 40)
    assert sum("/api/datasets/" in request for request in server.requests) == 1, "listed once"
    server.repositories["lab/news"].commit = "d" * 40  # the branch moves on
    seen = len(server.requests)
    again, _ = made(tmp_path / "1", source(), make=False)
    assert (again.digest, len(server.requests)) == (manifest.digest, seen), "found without the hub"
    server.repositories["lab/news"].commit = "c" * 40
    two, _ = made(tmp_path / "2", source(revision="c" * 40), workers=2)
    assert two.digest == manifest.digest


def test_splits_and_patterns_choose_files(server, tmp_path):
    assert made(tmp_path / "1", source(split="test"))[1] == ["held out"]
    assert made(tmp_path / "2", source(files=("data/*-00001-of-*",)))[1] == ["three"]
    with pytest.raises(MissingInput, match=r"no file of 'lab/news' at c{40} matches x/\*"):
        made(tmp_path / "3", source(files=("x/*",)))


LAYOUTS = {
    "older names": ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", {}, True),
    "converted": ("default/train/0000.parquet", {}, True),
    "one file": ("train.parquet", {}, True),
    "another split in the folder": ("train/test-00000-of-00001.parquet", {}, False),
    "another split behind a word": ("data/test-train-00000-of-00001.parquet", {}, False),
    "a folder that is only like it": ("train-small/test-00000-of-00001.parquet", {}, False),
    "a part of a word": ("data/train_sft-00000-of-00001.parquet", {}, False),
    "the configuration": ("en/train-00000-of-00001.parquet", {"config_name": "en"}, True),
    "another configuration": ("de/train-00000-of-00001.parquet", {"config_name": "en"}, False),
}


@pytest.mark.parametrize(("name", "values", "belongs"), LAYOUTS.values(), ids=LAYOUTS)
def test_only_files_of_the_split_belong_to_it(server, tmp_path, name, values, belongs):
    server.repositories["lab/news"].files = {name: FILES["data/train-00001-of-00002.parquet"]}
    listing = hub.list_hub(source(**values), Runtime(tmp_path))
    assert [file.name for file in listing.files] == [name] * belongs


def test_several_configurations_are_refused_unless_one_is_chosen(server, tmp_path):
    files = {f"{name}/train-00000-of-00001.parquet": parquet([name]) for name in ("all", "en")}
    server.repositories["lab/news"].files = files
    with pytest.raises(ConfigError, match=r"in 2 folders \(all, en\).*Set config_name to one of them"):
        made(tmp_path / "1", source())
    assert made(tmp_path / "2", source(config_name="en"))[1] == ["en"]
    assert made(tmp_path / "3", source(files=("*/train-*.parquet",)))[1] == ["all", "en"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"commit": 1}', '{"commit": "x", "files": [1]}'])
def test_a_damaged_listing_is_made_again(server, tmp_path, damage):
    first = hub.list_hub(source(), Runtime(tmp_path))
    for note in (tmp_path / "fetch").glob("hub-*.json"):
        note.write_text(damage)
    assert hub.list_hub(source(), Runtime(tmp_path)) == first


def test_workers_that_list_a_moving_branch_at_the_same_time_agree(server, tmp_path, monkeypatch):
    """Another worker writes its listing between this one's look for a note and its own answer."""
    asked = hub.ask_hub

    def late(place, request):
        monkeypatch.setattr(hub, "ask_hub", asked)
        answer = asked(place, request)
        server.repositories["lab/news"].commit = "d" * 40
        late.other = hub.list_hub(source(), Runtime(tmp_path))
        return answer

    monkeypatch.setattr(hub, "ask_hub", late)
    assert hub.list_hub(source(), Runtime(tmp_path)) == late.other
    assert late.other.commit == "d" * 40


def test_a_listing_that_no_trusted_key_signed_is_made_again(server, tmp_path):
    keys = GovernanceConfig(signing_key="key.pem")
    private_key(tmp_path / "key.pem")
    signed = Runtime(tmp_path / "root", hooks=Hooks(signer=KeySigner(Keyring(keys, tmp_path))))
    first = hub.list_hub(source(), signed)
    requests = len(server.requests)
    assert hub.list_hub(source(), signed) == first
    assert len(server.requests) == requests, "found without the hub"
    assert find_unlisted({}, signed.root).problems == []
    assert not any(note_faults([], signed.root, signed.hooks.signer))
    for note in (tmp_path / "root" / "fetch").glob("hub-*.json"):
        note.write_text(json.dumps({"commit": "e" * 40, "files": []}))
    assert len(list(note_faults([], signed.root, signed.hooks.signer))) == 2, "of the branch and of its commit"
    assert hub.list_hub(source(), signed) == first


def test_a_busy_hub_and_a_broken_connection_are_tried_again(server, tmp_path):
    server.failures += [429, 503]
    server.torn.append("data/train-00001-of-00002.parquet")
    assert made(tmp_path, source())[1] == ["one", "two", "three"]
    assert server.torn == []


def test_a_file_that_is_not_what_was_listed_is_refused(server, tmp_path):
    listing = hub.list_hub(source(), Runtime(tmp_path))
    file = listing.files[0]
    with pytest.raises(MissingInput, match="is not what the hub listed"):
        list(hub.read_hub_file(source(), listing.commit, file.name, "0" * 64))


REFUSALS = {
    "gated": ({"gated": True}, {}, [], "Accept its terms on its page, then set HF_TOKEN"),
    "private": ({"token": "hf_x"}, {}, [], "without a valid token"),
    "revision": ({}, {"revision": "nope"}, [], "there is no such revision"),
    "name": ({}, {"dataset": "lab/nothing"}, [], "not found on the hub|without a valid token"),
    "busy": ({}, {}, [429] * 50, r"with 429 \(too many requests\)"),
    "broken": ({}, {}, [500] * 50, "with 500, 3 times"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_explained_and_nothing_is_made(server, tmp_path, case):
    repository, values, failures, words = REFUSALS[case]
    for name, value in repository.items():
        setattr(server.repositories["lab/news"], name, value)
    server.failures += failures
    with pytest.raises(MissingInput, match=words):
        made(tmp_path, source(**values))
    assert not list(tmp_path.glob("ingest/*/manifest.json"))


def test_a_token_opens_a_private_data_set(server, tmp_path, monkeypatch):
    server.repositories["lab/news"].token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert made(tmp_path, source())[1] == ["one", "two", "three"]


def test_no_hub_at_all(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingInput, match=r"cannot be read from the hub .*hf download --repo-type dataset lab/news"):
        made(tmp_path, source())


def test_hf_paths_name_data_sets_and_files(server, tmp_path):
    """`hf://datasets/owner/name[@revision][/path]` as a hub's data set, and in the paths of any other source."""
    plain, texts = made(tmp_path / "1", source())
    for number, dataset in enumerate(["hf://datasets/lab/news", "hf://datasets/lab/news@main"], 2):
        one = HubSource(type="hub", name="h", licence="MIT", dataset=dataset)
        assert made(tmp_path / str(number), one)[0].digest == plain.digest
    one = HubSource(type="hub", name="h", licence="MIT", dataset="hf://datasets/lab/news@main/data/test-*.parquet")
    assert (one.dataset, one.revision, one.files) == ("lab/news", "main", ("data/test-*.parquet",))
    assert made(tmp_path / "4", one)[1] == ["held out"]
    server.repositories["lab/news"].files["lines/a.jsonl"] = b'{"text": "a line"}\n'
    rows = {"name": "p", "licence": "MIT"}
    files = ParquetSource(type="parquet", paths=("hf://datasets/lab/news/data/train-*.parquet",), **rows)
    assert made(tmp_path / "5", files)[1] == texts
    lines = JsonlSource(type="jsonl", paths=("hf://datasets/lab/news@main/lines/a.jsonl",), **rows)
    first, found = made(tmp_path / "6", lines)
    assert found == ["a line"]
    assert made(tmp_path / "6", lines)[0].digest == first.digest
    server.repositories["lab/news"].files["lines/a.jsonl"] = b'{"text": "another"}\n'
    HfFileSystem.clear_instance_cache()
    assert made(tmp_path / "6", lines)[1] == ["another"], "the hub's id of the content is part of the key"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataset": "hf://lab/news"}, r"is not hf://datasets/OWNER/NAME\[@REVISION\]\[/PATH\]"),
        ({"dataset": "hf://datasets/news"}, "is not hf://datasets"),
        ({"dataset": "hf://datasets/lab/news@main", "revision": "v1"}, "already names revision: remove the line"),
        ({"dataset": "hf://datasets/lab/news/a.parquet", "files": ("b",)}, "already names files"),
    ],
)
def test_hf_paths_that_contradict_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        HubSource(type="hub", name="h", licence="MIT", **values)


def test_a_run_file_may_list_files_and_columns_of_a_data_set():
    source = {"type": "hub", "name": "h", "licence": "MIT", "dataset": "lab/news", "revision": "v1",
              "files": ["data/*.parquet"], "columns": ["date"]}  # fmt: skip
    read = validate({"sources": [source]}, DataConfig, "run.toml").sources[0]
    assert (read.files, read.columns) == (("data/*.parquet",), ("date",))


@pytest.mark.parametrize(
    ("dataset", "revision", "files"),
    [
        ("lab/news@refs/convert/parquet/default/train/0.parquet", "refs/convert/parquet", ("default/train/0.parquet",)),
        ("lab/news@refs%2fconvert%2Fparquet/a.parquet", "refs/convert/parquet", ("a.parquet",)),
        ("lab/news@refs/pr/7", "refs/pr/7", ()),
        ("lab/news@v1/refs/pr/", "v1", ("refs/pr/*",)),
    ],
)
def test_hf_paths_name_refs_of_the_hub(dataset, revision, files):
    one = HubSource(type="hub", name="h", licence="MIT", dataset=f"hf://datasets/{dataset}")
    assert (one.dataset, one.revision, one.files) == ("lab/news", revision, files)


@pytest.mark.parametrize("path", ["data.jsonl", "lines"])
def test_hf_paths_of_other_kinds_are_sent_to_their_source(server, tmp_path, path):
    server.repositories["lab/news"].files |= {"data.jsonl": b"", "lines/a.jsonl": b""}
    one = HubSource(type="hub", name="h", licence="MIT", dataset=f"hf://datasets/lab/news/{path}")
    with pytest.raises(MissingInput, match=r"\.parquet files are read here: name others in the `paths`"):
        made(tmp_path, one)


def test_an_hf_path_without_owner_is_explained(server, tmp_path):
    one = HubSource(type="hub", name="h", licence="MIT", dataset="hf://datasets/squad/plain_text/train.parquet")
    with pytest.raises(MissingInput, match=r"'squad/plain_text' .*\(OWNER/NAME; an hf:// path must have both"):
        made(tmp_path, one)


@pytest.mark.parametrize("refusal", [{"gated": True}, {"token": "hf_x"}], ids=["gated", "private"])
@pytest.mark.parametrize("path", ["data.jsonl", "lines/*.jsonl"])
def test_hf_paths_that_need_a_token_say_so(server, tmp_path, refusal, path):
    server.repositories["lab/news"].files |= {"data.jsonl": b"", "lines/a.jsonl": b""}
    for name, value in refusal.items():
        setattr(server.repositories["lab/news"], name, value)
    HfFileSystem.clear_instance_cache()
    lines = JsonlSource(type="jsonl", name="p", licence="MIT", paths=(f"hf://datasets/lab/news/{path}",))
    with pytest.raises(MissingInput, match=r"cannot be read \(.*credentials in the environment"):
        made(tmp_path, lines)


def test_hf_paths_that_the_hub_refuses(server, tmp_path):
    missing = ParquetSource(type="parquet", name="p", licence="MIT", paths=("hf://datasets/lab/none/*.parquet",))
    with pytest.raises(MissingInput, match=r"hf://datasets/lab/none/\*\.parquet (names no file|cannot be read)"):
        made(tmp_path, missing)


def test_a_model_as_hf_path_is_refused_with_the_command_that_fetches_it(tmp_path):
    words = r"Models of the hub are fetched first: hf download lab/model --local-dir FOLDER"
    path = tmp_path / "hf://lab/model@main/tokenizer.json"
    with pytest.raises(MissingInput, match=words):
        model_files(path, "quality")
    with pytest.raises(MissingInput, match=words):
        take_over(path, TokenizerConfig(path="hf://lab/model@main/tokenizer.json"))
    assert hub_hint(tmp_path) == ""

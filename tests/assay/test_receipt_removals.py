"""Reasons that a receipt names for a document that was read and not trained on."""

import json
import os
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from assay.config import load_run
from assay.pipeline import corpus
from assay.receipts.receipt_requests import ReceiptRequest, _form_found, _held, _intact_shards, _removals, read_request
from assay.receipts.unknown_ids import id_note
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.token_shards import TokenShard
from governance.errors import AlteredFile, ConfigError
from governance.files import remove_file
from governance.manifest import Manifest, read_manifest
from governance.receipts.verify_receipt import name_of
from governance.stage import Runtime


def test_a_document_that_the_mixture_left_out_is_named_as_removed(project):
    runtime = Runtime(project / "root")
    made = corpus(load_run(project / "run.toml", ["data.mix.total_bytes=9000"]), runtime)
    [plan], [file] = made["mix"].files("plan", runtime.root), made["redact"].files("documents", runtime.root)
    copies = dict(zip(pq.read_table(file)["id"].to_pylist(), pq.read_table(plan)["copies"].to_pylist(), strict=True))
    left_out = [name for name, count in copies.items() if not count]
    assert left_out
    for name, removed in ((left_out[0], ["mix: mix_quota"]), (left_out[-1], ["mix: mix_quota"]), ("a.jsonl#999", [])):
        assert list(_removals(read_request(name, runtime.root), made["encode"], runtime.root)) == removed


def test_an_id_that_no_source_holds_is_named_as_such(project):
    """Also a record that became no document; with documents gone, nothing is claimed."""
    runtime = Runtime(project / "root")
    with open(project / "b.jsonl", "a") as file:
        file.write("{torn\n")
    corpus(load_run(project / "run.toml", []), runtime)
    paths = read_manifest(next(runtime.root.glob("ingest/*/manifest.json"))).files("documents", runtime.root)
    ids = [name for path in paths for name in pq.read_table(path)["id"].to_pylist()]
    assert {id_note(name, runtime.root) for name in ids} == {""}
    nothing = "no source of this root holds such an id"
    for asked, said in (
        ("tales/a.jsonl#63", f"{nothing}; the nearest is tales/a.jsonl#59"),
        (f"tales/b.jsonl#{'9' * 5000}", f"{nothing}; the nearest is tales/b.jsonl#"),
        ("tales/b.josnl#7", f"{nothing}; the nearest is tales/b.jsonl#7"),
        ("tales/b.jsonl#7x", f"{nothing}; the nearest is tales/b.jsonl#7"),
        ("zzz#1", nothing),
        ("tales/b.jsonl#60", "a source of this root holds this record, but it became no document: "),
    ):
        note = id_note(asked, runtime.root)
        assert note.startswith(said)
        assert (note.rpartition(" ")[2] in ids) == ("nearest" in said)
    remove_file(paths[0])
    assert id_note(ids[0], runtime.root).endswith(f"cannot be said: {paths[0]} is gone")
    assert id_note(ids[0], project).endswith("has no artifact of the stage ingest")


def test_an_id_of_any_form_is_one_if_a_source_holds_it(project):
    """Any other would be a mistyped path, which must not be answered with "not used"."""
    runtime = Runtime(project / "root")
    rows = [{"name": f"tale {number}", "text": f"A tale of number {number}. " * 9} for number in range(9)]
    (project / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JsonlSource(type="jsonl", name="mine", paths=("named.jsonl",), licence="CC0-1.0", id_field="name")
    ingest((source,), IngestConfig(), project, runtime)
    assert read_request("mine/tale 3", runtime.root) == ReceiptRequest("id", "mine/tale 3")
    assert id_note("mine/tale 33", runtime.root).endswith("the nearest is mine/tale 3")
    for asked in ("mine/tale 33", "mine/tale", "tale 3", " "):
        with pytest.raises(ConfigError, match="is not a file, a URL or an id"):
            read_request(asked, runtime.root)


@pytest.mark.parametrize("asked", ["http://h:443/a", "https://h:443/a"])
def test_a_url_is_found_by_the_form_that_a_receipt_prints(asked, tmp_path):
    """The canonical form of `https://h:443/a` is not itself."""
    held = {("url", name_of("url", "https://h:443/a")): 7}
    names = SimpleNamespace(tag_of=lambda kind, name: (kind, name), tree=SimpleNamespace(place=held.get))
    assert _form_found(names, read_request(asked, tmp_path), asked) == (ReceiptRequest("url", "https://h:443/a"), 7)
    other = read_request("https://h:444/a", tmp_path)
    assert _form_found(names, other, "https://h:444/a") == (other, None)


def test_shards_that_change_while_steps_are_counted_give_no_receipt(project):
    root = project / "root"
    run = load_run(project / "run.toml", [])
    tokens = corpus(run, Runtime(root))["encode"]
    path = next(path for path in tokens.files("train", root) if path.suffix == ".tokens")
    identity = frozenset({TokenShard.open(path).identities[0].tobytes()})
    values = {"train_key": "a" * 64, "step": 1, "vocabulary_size": 300}
    checkpoint = Manifest(
        stage="checkpoint", version=1, key="c" * 64, inputs=(tokens.as_input(),), outputs=(), stats={}, run={},
        config={**values, "recipe": run.config.recipe.model_dump(mode="json")},
    )  # fmt: skip
    tree = SimpleNamespace(stats={"shard_tokens": [size for _, _, size in _held(identity, tokens, root)["train"]]})
    given = (identity, {"copies": 1, "held_out": 0}, checkpoint, tokens, tree, root)
    with _intact_shards(*given):
        pass
    with pytest.raises(AlteredFile, match="was changed while it was read"), _intact_shards(*given):
        os.utime(path, (0, 0))

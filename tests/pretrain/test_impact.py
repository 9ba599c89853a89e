"""The readers of a document: shards, rows, checkpoints and children, exactly, against a count by brute force."""

import io
import json
import random
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from assay.cli.main import main
from assay.impact import explain, impact
from assay.receipts.receipt_requests import explain as explain_receipt
from assay.receipts.receipt_requests import prove
from data_pipeline.documents import read_table
from data_pipeline.tokens.token_shards import document_identity
from governance.errors import ConfigError, GateClosed, ManifestError, MissingInput
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import attest_with, open_journal
from governance.lineage.lineage_graph import read_graph
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest, write_manifest
from governance.receipts.verify_receipt import faults
from governance.signing.dsse import create_key, public_key
from governance.stage import Recipe, Runtime, commit
from pretrain.config.training import MixtureConfig, RampConfig, TrainConfig
from pretrain.data.dataset import open_rows
from pretrain.data.sampler import sampler_of
from tests.pretrain.nearest_texts import nearest_text
from tests.pretrain.read_project import read_project

CONFIG = GovernanceConfig(signing_key="key.pem")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["stretches", "packed"])
def trained(request, tmp_path_factory):
    """The rows of one training are stretches of the token shards, those of the other are packed."""
    return read_project(tmp_path_factory.mktemp(request.param), packed=request.param == "packed")


def child_of(checkpoint, root, name):
    """An artifact that was made of a checkpoint, as a tuned model would be."""
    recipe = Recipe(name, 1, GovernanceConfig())
    manifest = Manifest(stage=name, version=1, key=recipe.key([checkpoint.digest]), config={}, stats={}, run={},
                        inputs=(checkpoint.as_input(),), outputs=())  # fmt: skip
    return commit(
        manifest,
        root,
        attest_with(open_journal(Keyring(CONFIG, root.parent), root), Keyring(CONFIG, root.parent), root),
    )


def rows_by_document(rows, length):
    """Identity of a document -> the rows that have a token of it; every token of every row is looked at."""
    holding = defaultdict(set)
    for number in range(rows.count):
        shard_of = []
        if rows.packed:
            place = max(index for index, start in enumerate(rows.starts[:-1]) if start <= number)
            index, shards = rows.packed[place]
            row = number - rows.starts[place]
            first = int(index.row_ends[row - 1]) if row else 0
            for piece in index.pieces[first : int(index.row_ends[row])]:
                stop = int(piece["start"]) + int(piece["length"]) + 1
                shard_of += [(shards[piece["shard"]], token) for token in range(int(piece["start"]), stop)]
        else:
            place = max(index for index, start in enumerate(rows.starts[:-1]) if start <= number)
            shard, row = rows.shards[place], number - rows.starts[place]
            shard_of = [(shard, t) for t in range(row * length, min((row + 1) * length, len(shard.tokens)))]
        for shard, token in shard_of:
            document = int(np.searchsorted(shard.document_ends, token, side="right"))
            holding[shard.identities[document].tobytes()].add(number)
    return holding


def brute_force(rows, holding, document_id, identity):
    """The steps that read a row with a token of the document, once for each such row."""
    sampler, seen = sampler_of(rows, TrainConfig.model_validate(identity["recipe"]["train"])), []
    for step in range(1, identity["step"] + 1):
        seen += [step for number in sampler.rows(step) if number in holding[document_identity(document_id)]]
    return seen


def test_it_names_exactly_what_saw_it(trained):
    root = trained / "root"
    graph = read_graph(root)
    checkpoints = [node for node in graph.nodes.values() if node.stage == "checkpoint"]
    assert len(checkpoints) == 8
    assert sum(node.manifest is None for node in checkpoints) == 6  # removed, and known by the journal
    stage = "pack" if (root / "pack").exists() else "encode"
    [made] = [read_manifest(path) for path in root.glob(f"{stage}/*/{FILE_NAME}")]
    length = checkpoints[-1].config["recipe"]["train"]["sequence_length"]
    rows = open_rows(made, "train", root, length)
    holding = rows_by_document(rows, length)
    chance, output = random.Random(4), {True: 0, False: 0}
    for _ in range(8):
        name = f"tales/{chance.choice('ab')}.jsonl#{chance.randrange(59)}"
        try:
            found = impact(name, [root])
        except MissingInput:
            pytest.fail(f"{name} is known")
        last = max((item.checkpoint.config for item in found.checkpoints), key=lambda at: at["step"], default=None)
        read = brute_force(rows, holding, name, last) if last else []
        for item in found.checkpoints:
            steps = [step for step in read if step <= item.step]
            assert (item.times, item.first_step) == (len(steps), min(steps, default=0)), (name, item.step)
            output[bool(steps)] += 1
        in_train = any(held.role == "train" for held in found.shards)
        assert {item.checkpoint.key for item in found.checkpoints} == (
            {node.key for node in checkpoints} if found.shards else set()
        )
        assert any(item.times for item in found.checkpoints) == in_train
        kinds = {node.stage for _, node in found.children}
        assert kinds == ({"train", "report", "evaluation", "export"} if in_train else set())
    assert min(output.values()) > 0  # some saw it, some did not


def test_a_receipt_says_what_was_read_and_what_was_not(trained, tmp_path, capsys):
    """Steps as by brute force; a page, a text and a removed document; each checks with the verifier alone."""
    root, key = trained / "root", public_key(trained / "key.pem.pub")
    newest = max(root.glob("checkpoint/*/manifest.json"), key=lambda path: read_manifest(path).config["step"]).parent
    manifest = read_manifest(newest / FILE_NAME)
    made = read_manifest(root / manifest.inputs[0].path)
    length = manifest.config["recipe"]["train"]["sequence_length"]
    rows = open_rows(made, "train", root, length)
    holding = rows_by_document(rows, length)
    keyring = Keyring(GovernanceConfig(signing_key=str(trained / "key.pem")))
    for name in ("tales/a.jsonl#0", "tales/b.jsonl#3", "tales/b.jsonl#20"):
        said = prove(name, newest, keyring)["statement"]
        read = brute_force(rows, holding, name, manifest.config)
        assert said["read"] == {"times": len(read), "steps": read[:8]}
        assert said["answer"] == ("used" if read else "not used")
    example = re.search(r"```text\n(used: .*?)\n```", (ROOT / "docs" / "receipts.md").read_text(), re.DOTALL)
    shown = explain_receipt(prove("https://a.example/page/7", newest, keyring))
    assert re.match(re.sub(r"\d+", r"[0-9, ]+", re.escape(example[1])), shown), (
        shown
    )  # the worked example, but for numbers
    texts = [json.loads(line)["text"] for line in (trained / "b.jsonl").read_text().splitlines()]
    (tmp_path / "copy.txt").write_text(f"  {texts[3].upper()}\n")  # other white space and case
    (tmp_path / "new.txt").write_text("a text of nobody")
    (tmp_path / "long.txt").write_text("a longer text than any " * 10_000)
    removed = "removed by dedup: exact_duplicate\n"
    for number, (asked, words) in enumerate([
        (tmp_path / "copy.txt", "used: text"), (tmp_path / "new.txt", "not used: text"), ("tales/b.jsonl#7", removed),
        (tmp_path / "long.txt", "not used: text"), ("https://b.example/page/3?utm_source=x#top", "used: url https://b."),
        ("https://b.example/page/7", removed), ("tales/b.jsonl#9", "removed by clean: too_few_words\n"),
        ("tales/b.jsonl#999", "no source of this root holds such an id; the nearest is tales/b.jsonl#"),
    ]):  # fmt: skip
        words_typed = ["governance", "prove", str(asked), "--checkpoint", str(newest)]
        files = ["--receipt", str(tmp_path / f"{number}.json"), "--signing-key", str(trained / "key.pem")]
        assert main([*words_typed, *files]) == 0
        assert words in capsys.readouterr().out
        one = json.loads((tmp_path / f"{number}.json").read_bytes())
        text = asked.read_text() if isinstance(asked, Path) else None
        assert faults(one, key, text, (root / "journal.jsonl").read_bytes()) == []
        assert set(re.findall(r"tales/\w+\.jsonl#\d+", json.dumps(one))) <= {str(asked)}  # no other document
    assert main([*words_typed, *files]) == 78  # the receipt is there already
    half = " ".join(texts[3].split()[:25])
    (tmp_path / "half.txt").write_text(half)
    for text, asked in ((half, "half.txt"), (texts[3], "copy.txt")):
        found = prove(str(tmp_path / asked), newest, keyring, near=True)
        assert found["statement"]["nearest"] == nearest_text(text, trained)
        assert faults(found, key) == []
    assert "% of the distinct sequences of 5 words of both are in both" in explain_receipt(found)
    with pytest.raises(ConfigError, match="--nearest compares a text"):
        prove("tales/b.jsonl#7", newest, keyring, near=True)
    assert main(["governance", "verify", "--deep", str(root), "--key", str(trained / "key.pem.pub")]) == 0


def test_a_receipt_is_refused_with_a_reason(trained, tmp_path):
    keyring = Keyring(GovernanceConfig(signing_key=str(trained / "key.pem")))
    shutil.copytree(trained, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    checkpoint = next(root.glob("checkpoint/*"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    for asked, error, words in [
        (tmp_path / "empty.txt", ConfigError, "has no text"),
        (tmp_path / "bytes.txt", ConfigError, "not text in UTF-8"),
        (tmp_path / "gone.txt", ConfigError, "is not a file, a URL or an id"), ("", ConfigError, "is not a file"),
        ("x" * 5000, ConfigError, "is not a file"), ("a\ud800#1", ConfigError, "is not text in UTF-8"),
    ]:  # fmt: skip
        with pytest.raises(error, match=words):
            prove(str(asked), checkpoint, keyring)
    create_key(tmp_path / "other.pem")
    with pytest.raises(ConfigError, match=r"none of its .* lines is signed"):
        prove("tales/a.jsonl#1", checkpoint, Keyring(GovernanceConfig(signing_key=str(tmp_path / "other.pem"))))
    elsewhere = tmp_path / "elsewhere" / "checkpoint" / checkpoint.name
    shutil.copytree(checkpoint, elsewhere)
    with pytest.raises(GateClosed, match="nothing states this checkpoint"):
        prove("tales/a.jsonl#1", elsewhere, keyring)
    shutil.copy(root / "journal.jsonl", tmp_path / "elsewhere")
    with pytest.raises(MissingInput, match="Give the checkpoint in the root of its training"):
        prove("tales/a.jsonl#1", elsewhere, keyring)
    assert prove("tales/a.jsonl#1", checkpoint, keyring)["statement"]["answer"] in ("used", "not used")
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(GateClosed, match=r"no line of .* states it as it is"):
        prove("tales/a.jsonl#1", checkpoint, keyring)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(GateClosed, match="the journal lacks line"):
        prove("tales/a.jsonl#1", checkpoint, keyring)
    (root / "journal.jsonl").write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(ManifestError, match="does not follow"):
        prove("tales/a.jsonl#1", checkpoint, keyring)


def test_a_text_leads_back_to_its_documents(trained, tmp_path, capsys, monkeypatch):
    """Documents by search in their texts, steps by brute force; the page masks personal data and needs no network."""
    words, root = [str(trained / "run.toml"), "--root", str(trained / "root")], trained / "root"
    newest = max(root.glob("checkpoint/*/manifest.json"), key=lambda path: read_manifest(path).config["step"]).parent
    asked = ["trace-text", "--checkpoint", str(newest), "--signing-key", str(trained / "key.pem"), "--json"]
    assert main([*asked, "no index yet, and at least fifty characters of a text"]) == 66
    assert "Make it with: assay data index CONFIG" in capsys.readouterr().out
    assert main(["data", "index", *words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["shards"], made["index_bytes"] < 7 * made["bytes"]) == (1, True)
    [index] = root.glob("text_index/*/manifest.json")
    texts = {}
    redacted = read_manifest(root / read_manifest(index).inputs[1].path)
    for path in redacted.files("documents", root):
        texts |= {row["id"]: row["text"] for row in read_table(path).to_pylist()}
    one, other = texts["tales/a.jsonl#3"][5:90], texts["tales/b.jsonl#20"][-70:]
    mail = "someone.at.home@mail.example"
    text = f"Write to {mail}. As he said: {one}; and then: {other} <b>the end</b>"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    page = tmp_path / "page.html"
    assert main([*asked, "-", "--html", str(page), "--min-characters", "60", "--documents", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    manifest = read_manifest(newest / FILE_NAME)
    packed = read_manifest(root / manifest.inputs[0].path)
    rows = open_rows(packed, "train", root, manifest.config["recipe"]["train"]["sequence_length"])
    holding = rows_by_document(rows, manifest.config["recipe"]["train"]["sequence_length"])
    assert one in found["spans"][0]["text"]
    assert any(other in span["text"] for span in found["spans"])
    assert (found["text"], found["step"], found["corpus_documents"]) == (text, 24, len(texts))
    for span in found["spans"]:
        held = [name for name, one in texts.items() if span["text"] in one]
        assert (span["documents"], len(span["sources"])) == (len(held), min(3, len(held)))
        assert [source["id"] for source in span["sources"]] == held[:3]
        assert span["occurrences"] == sum(texts[name].count(span["text"]) for name in held)
        for source in span["sources"]:
            assert source["steps"] == brute_force(rows, holding, source["id"], manifest.config)
            assert (source["licence"], source["source"], source["taken_down"]) == ("CC0-1.0", "tales", "")
            assert source["copies"] + source["held_out"] == 1
    written = page.read_text()
    assert mail not in written
    assert "[EMAIL]" in written
    assert "&lt;b&gt;the end&lt;/b&gt;" in written
    assert written.count('href="#span-') >= len(found["spans"])
    assert not re.search(r"<script|https?://(?!www\.[ab]\.example)", written)
    corpus = root / manifest_of_tokens(manifest, root).folder
    assert (
        main([*[word for word in asked if word not in ("--checkpoint", str(newest))], "--corpus", str(corpus), text])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["spans"][0]["sources"][0]["steps"] is None
    guide = re.findall(r"```text\n(.*?)\n```", (ROOT / "docs" / "trace_text.md").read_text(), re.DOTALL)
    assert main([*[word for word in asked if word != "--json"], guide[0]]) == 0
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert re.match(re.sub(r"\d+(,\\ \d+)*", "[0-9, ]+", re.escape(guide[1])), shown), shown  # but for numbers
    assert main(["governance", "verify", "--deep", str(root), "--key", str(trained / "key.pem.pub")]) == 0
    capsys.readouterr()
    assert main(["data", "clean-up", *words, "--json"]) == 0
    listed = {one["artifact"]: one["kept_for"] for one in json.loads(capsys.readouterr().out)["candidates"]}
    assert listed[index.parent.relative_to(root).as_posix()] != ""


def manifest_of_tokens(checkpoint, root):
    """The token corpus of a checkpoint, packed or not."""
    made = read_manifest(root / checkpoint.inputs[0].path)
    return read_manifest(root / made.inputs[0].path) if made.stage == "pack" else made


@pytest.mark.parametrize("trained", ["packed"], indirect=True)
def test_a_text_is_not_traced_where_the_answer_could_be_wrong(trained, tmp_path, capsys, monkeypatch):
    shutil.copytree(trained, tmp_path / "copy")
    root, key = tmp_path / "copy" / "root", str(trained / "key.pem")
    [checkpoint] = [path.parent for path in root.glob("checkpoint/*/manifest.json")
                    if read_manifest(path).config["step"] == 24]  # fmt: skip
    asked = ["trace-text", "--signing-key", key, "--checkpoint", str(checkpoint)]
    text = "a text of nobody, which has fifty characters and more"

    def refused(words, status, said):
        assert main(words) == status
        assert said in capsys.readouterr().err

    assert main(["data", "index", str(tmp_path / "copy" / "run.toml"), "--root", str(root)]) == 0
    assert main([*asked, text]) == 0
    assert "0 of 53 characters (0 %) are in 0 verbatim span(s)" in capsys.readouterr().out
    refused([*asked, " \n "], 78, "the text is empty")
    refused([*asked, "short"], 78, "--min-characters 5")
    refused([*asked, "long " * 200_001], 78, "at most 1,000,000 are traced")
    refused([*asked, "\udcff" * 60], 78, "is not UTF-8")
    refused([*asked[:3], text], 78, "Give a checkpoint's folder")
    refused([*asked[:3], "--corpus", str(root / "redact"), text], 66, "is not a finished artifact")
    refused(
        [*asked[:3], "--corpus", str(next(root.glob("redact/*/manifest.json")).parent), text], 78, "ROOT/encode/KEY"
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n\x1a\n\xff\xfe" * 9)))
    refused([*asked, "-"], 78, "not text in UTF-8")
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint" / checkpoint.name)
    there = str(tmp_path / "elsewhere" / "checkpoint" / checkpoint.name)
    refused(["trace-text", text, "--checkpoint", there, "--signing-key", key], 66, "in the root of its training")
    [made] = root.glob("text_index/*/manifest.json")
    for role in ("text", "suffixes", "ends", "listed"):
        file = next((made.parent / role).iterdir())
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes(byte ^ 1 for byte in whole[-9:]))
        refused([*asked, text], 65, "was cut or altered; nothing was traced")
        file.write_bytes(whole[:-1])
        refused([*asked, text], 65, f"{role}/{file.name}: has ")
        file.write_bytes(whole)
    for role in ("encode/*/train", "encode/*/validation", "pack/*/train"):  # the steps rest on them
        for file in [path for path in root.glob(f"{role}/*") if path.is_file()][:1]:
            whole = file.read_bytes()
            file.write_bytes(whole[:-9] + bytes(byte ^ 1 for byte in whole[-9:]))
            refused([*asked, text], 65, "The steps rest on it; nothing was traced")
            file.write_bytes(whole)
    assert main([*asked, text]) == 0
    values = read_manifest(made)
    foreign = values.inputs[0].model_copy(update={"digest": "f" * 64})
    write_manifest(values.model_copy(update={"inputs": (foreign, *values.inputs[1:])}), root)
    refused([*asked, text], 66, "its 1 index(es) are of other corpora")


def test_a_child_of_a_checkpoint_that_did_not_see_it_is_not_named(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    for number in range(60):
        found = impact(f"tales/a.jsonl#{number}", [root])
        early = [item for item in found.checkpoints if not item.times]
        late = [item for item in found.checkpoints if item.times]
        if early and late:
            break
    manifests = {}
    for item, name in ((early[0], "unaware"), (late[-1], "aware")):
        node = item.checkpoint
        manifests[name] = child_of(node.manifest or Removed(node.digest, node.path), root, name)
    grandchild = child_of(manifests["aware"], root, "grandchild")
    named = {node.path for _, node in impact(f"tales/a.jsonl#{number}", [root]).children}
    assert {manifests["aware"].path, grandchild.path} <= named
    assert manifests["unaware"].path not in named


@dataclass(frozen=True)
class Removed:
    """Only path and digest are read of a checkpoint that was removed."""

    digest: str
    path: str

    def as_input(self):
        return Input(stage="checkpoint", digest=self.digest, path=self.path)


def test_by_url_by_shard_and_what_a_filter_removed(trained, capsys):
    root = trained / "root"
    by_url = impact("http://a.example/page/5", [root])
    assert by_url == replace(impact("tales/a.jsonl#5", [root]), fates=by_url.fates)
    [duplicate] = impact("tales/b.jsonl#7", [root]).fates
    assert duplicate.startswith("tales/b.jsonl#7: removed by dedup for exact_duplicate")
    assert "tales/b.jsonl#3" in duplicate
    short = impact("https://b.example/page/9", [root])
    assert short.fates[0].startswith("tales/b.jsonl#9: removed by clean for too_few_words")
    assert (short.shards, short.checkpoints, short.children) == ((), (), ())
    [shard, *_] = sorted(root.glob("encode/*/train/*.tokens"))
    whole = impact(str(shard), [root])
    assert len(whole.identities) > 50
    assert all(item.times == item.step * 16 for item in whole.checkpoints)  # every row holds something of it
    assert impact(shard.relative_to(root).as_posix(), [root]) == whole
    assert main(["governance", "impact", "tales/a.jsonl#5", "--root", str(root)]) == 0
    assert capsys.readouterr().out.startswith(explain(impact("tales/a.jsonl#5", [root])) + "\nnote: no signature")
    assert main(["governance", "impact", "tales/none#1", "--root", str(root)]) == 66
    assert main(["governance", "impact", "tales/a.jsonl#5", "--root", str(trained / "nowhere")]) == 66


def test_the_whole_way_can_be_walked_in_the_journal_alone(trained, tmp_path):
    """Source file -> documents -> tokens -> verdict -> checkpoint -> child, and it agrees with the manifests."""
    root = trained / "root"
    (tmp_path / "journal.jsonl").write_bytes((root / "journal.jsonl").read_bytes())
    alone, both = read_graph(tmp_path), read_graph(root)
    assert alone.nodes.keys() == both.nodes.keys()
    assert alone.parents == both.parents
    for node in both.nodes.values():
        if node.manifest is not None:
            inputs = tuple((item.path, item.digest) for item in node.manifest.inputs)
            assert alone.parents[node.key][: len(inputs)] == inputs
    for child in ("export", "evaluation", "report", "train"):
        [node] = [node for node in alone.nodes.values() if node.stage == child]
        above = {item.stage for _, item in alone.ancestors(node)}
        assert {"file", "ingest", "encode", "verdict", "checkpoint"} <= above, child


def test_deep_verification_of_a_real_root_and_its_train_anchor(trained):
    root = trained / "root"
    assert main(["governance", "verify", str(root), "--deep", "--key", str(trained / "key.pem.pub")]) == 0
    [train] = root.glob("train/*")
    assert read_manifest(train / FILE_NAME).run["journal"].count(":") == 1
    assert main(["governance", "verify", str(train), "--deep", "--key", str(trained / "key.pem.pub")]) == 0
    assert Runtime(root).hooks.head() == ""


def test_a_ramp_and_a_mixture_are_computed_back_exactly(tmp_path, run_training):
    settings = {
        "batch_size_ramp": (RampConfig(until_step=3, global_batch_size=4),),
        "mixture": (MixtureConfig(from_step=3, weights={"web": 1.0, "books": 4.0}),),
        "every_steps": 3,
        "keep_last": 9,
    }
    run = run_training(tmp_path, **settings)
    train = TrainConfig.model_validate_json(json.dumps(run.config["train"]))
    [tokens] = [read_manifest(tmp_path / item.path) for item in run.inputs]
    rows = open_rows(tokens, "train", tmp_path, train.sequence_length)
    order, output = sampler_of(rows, train), set()
    for name in ("train00", "train07", "train112", "train129"):
        wanted = document_identity(name).hex()
        read = [step for step in range(1, 11) for row in order.rows(step) if wanted in rows.documents_of([row])]
        seen = {item.step: (item.times, item.first_step) for item in impact(name, [tmp_path]).checkpoints}
        assert seen == {
            last: (sum(step <= last for step in read), min((s for s in read if s <= last), default=0))
            for last in (3, 6, 9, 10)
        }
        output |= set(seen.values())
    assert len(output) > 3

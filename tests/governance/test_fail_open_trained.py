"""After the training: what a report shows, and what a training continues from, is what a trusted key stated.

A corpus was let through and trained, by a key of its own. Each case copies the root, edits it without the key, and
types what the operator types next. Attacks of this kind that are tested elsewhere: forged audits and Data Docs below a
report (`test_check_commands.py`); exchanged weights with a resealed manifest, also behind a link
(`test_whole_way.py`); a report that rests on more than was stated, and a foreign ledger (`test_running_digests.py`); a
line of the journal by a strange key (`test_lineage.py`).
"""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli.main import main
from assay.config import load_run
from assay.receipts.corpus_names import read_names
from assay.weights_origin import weights_origin
from data_pipeline.tokens.token_shards import TokenShard, document_identity
from governance.errors import GateClosed
from governance.manifest import describe, read_manifest, write_manifest
from governance.receipts.mapped_arrays import map_arrays, write_arrays
from governance.receipts.name_tree import name_tree
from governance.receipts.verify_receipt import name_of
from governance.signing import journal_lines
from governance.stage import Runtime
from tests.altered_files import flip
from tests.governance.attacked import only, prepare, reseal, words_of
from tests.governance.test_fail_open_after import by_another_key
from tests.governance.test_fail_open_races import at_first_step


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("trained") / "project")
    assert main(["train", *words_of(folder)]) == 0
    return folder


@pytest.fixture
def project(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "project")
    return tmp_path / "project"


def foreign_ledger(folder):
    """Another host's energy, which no run of this root measured."""
    text = (folder / "root" / "energy.jsonl").read_text()
    (folder / "root" / "energy.node9.jsonl").write_text(text.replace('"interval":"', '"interval":"f'))


def without(name, dropped):
    """A file of lines that lost some of them."""

    def attack(folder):
        path = only(folder, name)
        lines = path.read_bytes().splitlines(keepends=True)
        del lines[dropped]
        path.write_bytes(b"".join(lines))

    return attack


LEDGER = "energy.jsonl"
SHOWN = {
    "a removed document": (lambda f: flip(only(f, "clean/*/removed/*tales*")), 77, "removed/"),
    "a kept document": (lambda f: flip(only(f, "redact/*/documents/*tales*")), 77, "documents/"),
    "a feature of a document": (lambda f: flip(only(f, "clean/*/features/*stories*")), 77, "features/"),
    "a foreign ledger": (foreign_ledger, 65, "energy.node9.jsonl: no line of the journal"),
    "a ledger without its first lines": (without(LEDGER, slice(1, 3)), 65, f"{LEDGER}: "),
    "a ledger without its last lines": (without(LEDGER, slice(-3, None)), 65, f"{LEDGER}: "),
    "a ledger without a line inside": (without(LEDGER, slice(7, 8)), 65, f"{LEDGER}: "),
    "no ledger": (lambda f: only(f, LEDGER).unlink(), 65, f"{LEDGER}: is missing"),
    "a record of steps without its last": (without("train/*/metrics.jsonl", slice(-1, None)), 65, "metrics.jsonl: "),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_report_shows_nothing_that_was_altered(project, capsys, name):
    attack, status, words = SHOWN[name]
    attack(project)
    capsys.readouterr()
    assert main(["report", "write", *words_of(project)]) == status
    assert words in capsys.readouterr().err
    assert list((project / "root").glob("report/*/manifest.json")) == []


def test_a_command_verifies_each_line_of_the_journal_once(project, monkeypatch):
    counted, verify = [], journal_lines._faults

    def faults(line, *given):
        counted.append(line)
        return verify(line, *given)

    monkeypatch.setattr(journal_lines, "_faults", faults)
    for command in (["train"], ["report", "write"]):
        counted.clear()
        assert main([*command, *words_of(project)]) == 0
        lines = (project / "root" / "journal.jsonl").read_bytes().splitlines()
        assert len(counted) == len(set(counted)), command
        assert set(counted) >= set(lines[:-1])  # the last one states the report


# --- what else is signed, or sent on, after a training


def digit(path):
    """One digit of a text made another."""
    text = path.read_text()
    place = next(place for place, letter in enumerate(text) if letter.isdigit() and letter != "0")
    path.write_text(f"{text[:place]}{'1' if text[place] != '1' else '2'}{text[place + 1 :]}")


def flipped(pattern):
    return lambda folder: flip(only(folder, pattern))


def report_and_manifest(folder):
    digit(only(folder, "report/*/report.json"))
    reseal(folder, "report")


def validation_and_manifest(folder):
    flip(only(folder, "encode/*/validation/*tales*"))
    reseal(folder, "encode")


# --- receipts and takedowns: what is said of a document


def names_without(name):
    """The tree of all names but one, whole and sealed as anyone can."""

    def attack(folder):
        root, made = folder / "root", read_manifest(only(folder, "receipts/*/manifest.json"))
        [tokens] = (read_manifest(root / item.path) for item in made.inputs)
        shutil.rmtree(root / "receipts")
        known = read_names(tokens, root)
        kept = (known.names != np.frombuffer(name_of("id", name), np.uint8)).any(axis=1)
        fewer = {field: getattr(known, field)[kept] for field in ("kinds", "names", "documents")}
        planted = name_tree(tokens, lambda: replace(known, **fewer), Runtime(root))
        assert planted.path == made.path
        assert planted.stats["names"] == made.stats["names"] - 1

    return attack


def other_identity(pattern, name):
    """A document's identity in a shard, another one's from now on."""

    def attack(folder):
        path = only(folder, pattern)
        data, identity = path.read_bytes(), document_identity(name)
        assert data.count(identity) == 1
        path.write_bytes(data.replace(identity, bytes(16)))

    return attack


def exchanged_identities(folder):
    """The same identities, at each other's places."""
    path = only(folder, "encode/*/train/*stories*.tokens")
    held = TokenShard.open(path).identities
    path.write_bytes(path.read_bytes().replace(held.tobytes(), held[::-1].tobytes()))


def array_of_the_tree(name, change):
    def attack(folder):
        path = only(folder, "receipts/*/names.bin")
        arrays = {name: array.copy() for name, array in map_arrays(path).items()}
        change(arrays[name])
        write_arrays(path, arrays)

    return attack


def no_copies(leaves):
    leaves[:, :4] = 0


def no_licence(leaves):
    leaves[:, 8:] ^= 1


def no_siblings(nodes):
    nodes[2:] ^= 1


def another_reason(folder):
    path = only(folder, "clean/*/removed/*stories*")
    table = pq.read_table(path, partitioning=None)
    place = table.column_names.index("reason")
    pq.write_table(table.set_column(place, "reason", pa.array(["licence_refused"] * len(table))), path)


STORY, SHORT_STORY = "stories/stories.jsonl#0", "stories/stories.jsonl#40"
ANSWERED = {
    "a tree without a document": (names_without(STORY), STORY, 77, "receipts/"),
    "... before it was made": (names_without(STORY), STORY, 77, "has no statement of it"),
    "documents of the names": (flipped("receipts/*/documents.bin"), STORY, 65, "documents.bin: has"),
    "copies in the tree": (array_of_the_tree("leaves", no_copies), STORY, 65, "a shard was altered"),
    "licences in the tree": (array_of_the_tree("leaves", no_licence), STORY, 65, "names.bin of the"),
    "nodes of the tree": (array_of_the_tree("nodes", no_siblings), STORY, 65, "was altered: proof"),
    "the document's identity in a shard": (other_identity("encode/*/train/*stories*", STORY), STORY, 65, "altered"),
    "identities exchanged": (exchanged_identities, STORY, 65, ".tokens: has sha256"),
    "the reason of a removal": (another_reason, SHORT_STORY, 65, "removed/"),
}


@pytest.fixture(scope="module")
def answering(trained, tmp_path_factory):
    """A root whose tree of names was made by the first question."""
    folder = tmp_path_factory.mktemp("answering") / "project"
    shutil.copytree(trained, folder)
    assert answer(folder, STORY)[0] == 0
    return folder


def answer(folder, name):
    """Exit status of a request for a receipt, and the receipt."""
    last = only(folder, "train/*/manifest.json")
    checkpoint = folder / "root" / read_manifest(last).stats["checkpoint"]["path"]
    file = folder / "receipt.json"
    words = ["governance", "prove", name, "--checkpoint", str(checkpoint.parent), "--receipt", str(file)]
    status = main([*words, "--signing-key", str(folder / "key.pem")])
    return status, json.loads(file.read_bytes()) if file.exists() else None


@pytest.mark.parametrize("name", ANSWERED)
def test_a_receipt_says_nothing_that_was_altered(answering, tmp_path, capsys, name):
    project = shutil.copytree(answering, tmp_path / "project")
    (project / "receipt.json").unlink()
    attack, asked, status, words = ANSWERED[name]
    if name.startswith("..."):  # in a copy of the root as it was before the first question
        lines = (project / "root" / "journal.jsonl").read_bytes().splitlines(keepends=True)
        assert b'"kind":"receipts' in lines[-1]
        (project / "root" / "journal.jsonl").write_bytes(b"".join(lines[:-2]))
    attack(project)
    lines = (project / "root" / "journal.jsonl").read_bytes()
    capsys.readouterr()
    assert answer(project, asked) == (status, None)
    assert words in capsys.readouterr().err
    assert (project / "root" / "journal.jsonl").read_bytes() == lines


STUDENT = """base = "run.toml"

[model]
num_hidden_layers = 1

[train.distillation]
teacher = "{}"
logits = "sampled"
"""


@pytest.fixture(scope="module")
def taught(trained, tmp_path_factory):
    """A root with draws from its checkpoint, and the words that train a student on them."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("taught") / "project")
    teacher = read_manifest(only(folder, "train/*/manifest.json")).stats["checkpoint"]["path"]
    (folder / "student.toml").write_text(STUDENT.format(teacher.removesuffix("/manifest.json")))
    assert main(["teacher-logits", *student_of(folder)]) == 0
    return folder


def student_of(folder):
    return [str(folder / "student.toml"), *words_of(folder)[1:]]


def other_draws(folder):
    """Other targets for the student, listed and sealed as anyone can."""
    flip(only(folder, "teacher_logits/*/draws/*"))
    reseal(folder, "teacher_logits")


def test_a_student_does_not_learn_from_draws_that_the_journal_does_not_state(taught, tmp_path, capsys):
    project = shutil.copytree(taught, tmp_path / "project")
    other_draws(project)
    capsys.readouterr()
    assert main(["train", *student_of(project)]) == 77
    assert "no statement of these artifacts as they are:\n  teacher_logits/" in capsys.readouterr().err
    assert len(list((project / "root").glob("train/*/manifest.json"))) == 1


def test_draws_altered_while_a_student_reads_them_are_in_no_checkpoint(taught, tmp_path, capsys, monkeypatch):
    """They are mapped, as the token shards are."""
    project = shutil.copytree(taught, tmp_path / "project")
    before = set((project / "root").glob("checkpoint/*"))
    at_first_step(monkeypatch, lambda: flip(only(project, "teacher_logits/*/draws/*")))
    capsys.readouterr()
    assert main(["train", *student_of(project)]) == 65
    assert "draws/00000.draws: " in capsys.readouterr().err
    assert set((project / "root").glob("checkpoint/*")) == before


def test_a_takedown_is_not_planned_from_other_shards(project, capsys):
    """With its identity altered, no shard holds the document, and a plan would find nothing to do."""
    other_identity("encode/*/train/*stories*", STORY)(project)
    typed = words_of(project)
    assert main(["governance", "takedown", typed[0], STORY, *typed[1:]]) == 77
    assert ".tokens: has sha256" in capsys.readouterr().err


def test_an_impact_is_not_read_from_other_shards(project, capsys):
    """A shard may be altered or removed, or altered with its manifest."""
    shard, root = only(project, "encode/*/train/*stories*"), project / "root"
    words = ["governance", "impact", STORY, "--root", str(root)]
    assert main(words) == 0
    assert f"{shard.name}: document(s)" in capsys.readouterr().out
    other_identity("encode/*/train/*stories*", STORY)(project)
    assert main(words) == 65
    assert f"{shard.name}: has sha256" in capsys.readouterr().err
    made, content = read_manifest(only(project, "encode/*/manifest.json")), shard.read_bytes()
    shard.unlink()
    assert main(words) == 65
    assert f"{shard.name}: is missing" in capsys.readouterr().err
    shard.write_bytes(content)
    write_manifest(
        made.model_copy(update={"outputs": tuple(describe(root / one.path, root) for one in made.outputs)}), root
    )
    assert main(words) == 65
    assert "manifest.json: is not the manifest that the journal states" in capsys.readouterr().err


def test_a_replay_is_not_certified_from_altered_losses(project, capsys):
    """The certificate says how many of the steps that both trainings made have the same loss."""
    digit(only(project, "train/*/losses.json"))
    typed = words_of(project)
    assert main(["governance", "takedown", typed[0], STORY, *typed[1:], "--execute"]) == 65
    assert "losses.json: has" in capsys.readouterr().err
    assert b'"kind":"replay"' not in (project / "root" / "journal.jsonl").read_bytes()


REPORT, DOCUMENTS = ("report", "write"), ("report", "write", "--documents")
EVALUATE, EXPORT, MEGATRON = ("evaluate", "last"), ("export", "last", "{}/exported"), ("data", "export", "{}/megatron")
SIGNED = {
    "a report's page": (flipped("report/*/report.html"), REPORT, "report.html: has"),
    "a report's facts below its documents": (flipped("report/*/report.json"), DOCUMENTS, "report.json: has"),
    "a report with its manifest": (report_and_manifest, REPORT, "report/"),
    "validation tokens before a measurement": (flipped("encode/*/validation/*tales*"), EVALUATE, ".tokens: has"),
    "validation tokens with their manifest": (validation_and_manifest, EVALUATE, "no verdict on this corpus"),
    "a tokenizer before an export": (flipped("tokenizer/*/tokenizer.json"), EXPORT, "tokenizer.json"),
    "tokens before an export": (flipped("encode/*/train/*tales*"), MEGATRON, ".tokens: has"),
    "tokens with their manifest": (validation_and_manifest, MEGATRON, "encode/"),
}


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "project"
    shutil.copytree(trained, folder)
    assert main(["report", "write", *words_of(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", SIGNED)
def test_nothing_altered_is_signed_or_sent_on(reported, tmp_path, capsys, name):
    project = shutil.copytree(reported, tmp_path / "project")
    attack, command, words = SIGNED[name]
    attack(project)
    lines = (project / "root" / "journal.jsonl").read_bytes()
    typed = [word.format(project) for word in command]
    place = 2 if command[0] in ("report", "data") else 1
    capsys.readouterr()
    status = main([*typed[:place], words_of(project)[0], *typed[place:], *words_of(project)[1:]])
    assert (status, words in capsys.readouterr().err) == (65 if "tokenizer" in name else 77, True)
    assert (project / "root" / "journal.jsonl").read_bytes() == lines
    assert not (project / "exported").exists()
    assert list(project.glob("megatron*")) == []


def test_a_checkpoint_under_another_ones_name_is_not_measured_for_it(project, capsys):
    """Both are stated, each under its own name: the weights of the other one would be read."""
    named = parent(project)
    [*_, other] = [path for path in project.glob("root/checkpoint/*/manifest.json") if path.parent != named]
    shutil.copy(other, named / "manifest.json")
    for command in (["evaluate", str(named)], ["export", str(named), str(project / "exported")]):
        capsys.readouterr()
        assert main([command[0], *words_of(project), *command[1:]]) == 77
        assert f"holds the manifest of checkpoint/{other.parent.name}" in capsys.readouterr().err


def test_exchanged_weights_are_not_signed_as_a_model(project, capsys):
    exchanged(project)
    assert main(["governance", "keygen", "--model", str(project / "model.pem")]) == 0
    words = ["--key", str(project / "model.pem"), "--signing-key", str(project / "key.pem")]
    capsys.readouterr()
    assert main(["governance", "sign", str(parent(project)), *words]) == 77
    assert "states it as it is" in capsys.readouterr().err
    assert list(project.glob("root/checkpoint/*/model.sig")) == []


# --- a parent in another root


def parent(folder):
    """The checkpoint of the middle of the training, by path, and the words that continue it in a root beside it."""
    paths = (folder / "root").glob("checkpoint/*/manifest.json")
    made = min(paths, key=lambda path: json.loads(path.read_bytes())["config"]["step"])
    return made.parent


def continue_from(path):
    return ["--set", f'train.continue_from="{path}"']


def exchanged(lab):
    """Other weights, listed and sealed as anyone can."""
    root, made = lab / "root", read_manifest(parent(lab) / "manifest.json")
    flip(root / next(output.path for output in made.outputs if "weights" in output.path))
    outputs = tuple(describe(root / output.path, root) for output in made.outputs)
    write_manifest(made.model_copy(update={"outputs": outputs}), root)


def journal_cut(lab):
    journal = lab / "root" / "journal.jsonl"
    kept = [line for line in journal.read_bytes().splitlines(keepends=True) if b'"kind":"checkpoint"' not in line]
    journal.write_bytes(b"".join(kept))


PARENTS = {
    "exchanged weights": (exchanged, "has no statement of these artifacts as they are"),
    "a journal that was cut": (journal_cut, "cannot be trusted"),
    "a journal that was altered": (lambda lab: flip(lab / "root" / "journal.jsonl"), "cannot be trusted"),
    "a journal by another key": (by_another_key, "governance.parent_keys"),
}


@pytest.fixture
def lab(trained, tmp_path):
    """Another root, whose checkpoint the project continues from."""
    shutil.copytree(trained, tmp_path / "lab")
    return tmp_path / "lab"


@pytest.mark.parametrize("name", PARENTS)
def test_a_parent_in_another_root_that_its_journal_does_not_state_is_refused(project, lab, capsys, name):
    attack, words = PARENTS[name]
    attack(lab)
    for command in (["train", *continue_from(parent(lab))], ["run", *continue_from(parent(lab))],
                    ["export", str(parent(lab)), str(lab / "exported")]):  # fmt: skip
        capsys.readouterr()
        assert main([command[0], *words_of(project), *command[1:]]) == 77
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_parent_without_a_journal_is_named_and_refused_where_the_policy_demands_its_origin(project, lab, capsys):
    words = [*words_of(project), *continue_from(parent(lab))]
    assert origin(project, continue_from=parent(lab))["verified"]
    (lab / "root" / "journal.jsonl").unlink()
    policy = project / "policy.toml"
    written = policy.read_text()
    require_origin(project)
    assert main(["governance", "check", *words_of(project)]) == 0
    capsys.readouterr()
    for command in ("train", "run"):
        assert main([command, *words]) == 77
        assert "its root has no journal.jsonl), and the policy assay-default demands it" in capsys.readouterr().err
    policy.write_text(written)
    assert main(["train", *words]) == 0
    [record] = [made for made in manifests(project, "train") if "origin" in made.run]
    assert (record.run["origin"]["verified"], record.run["origin"]["why"]) == (False, "its root has no journal.jsonl")
    assert main(["report", "write", *words]) == 0
    page = html.unescape((project / "root" / "report" / "latest.html").read_text())
    front = page[: page.index("</header>")]
    assert f'Parent\'s origin not verified</strong><bdi dir="auto">: {record.run["origin"]["from"]}' in front


@pytest.mark.slow
def test_weights_of_a_folder_are_verified_where_an_export_stated_them(project, tmp_path, capsys):
    folder = tmp_path / "exported"
    assert main(["export", *words_of(project), str(parent(project)), str(folder)]) == 0
    assert origin(project, initial_weights=folder)["verified"]
    weights = folder / "model.safetensors"
    flip(weights)
    found = origin(project, initial_weights=folder)
    assert (found["verified"], "no line of this root's journal" in found["why"]) == (False, True)
    assert origin(project) is None


@pytest.mark.slow
def test_an_unverified_ancestor_is_found_behind_its_checkpoints_and_exports(project, lab, capsys):
    """Weights trained from unverified ones are not verified either: continued, measured, exported or loaded."""
    (lab / "root" / "journal.jsonl").unlink()
    words = [*words_of(project), *continue_from(parent(lab))]
    assert main(["train", *words]) == 0
    [record] = [made for made in manifests(project, "train") if "origin" in made.run]
    child = (project / "root" / record.stats["checkpoint"]["path"]).parent
    found = origin(project, continue_from=child)
    assert (found["verified"], f"{record.run['origin']['from']}: its root has no" in found["why"]) == (False, True)
    exported = project / "exported"
    assert main(["export", *words_of(project), str(child), str(exported)]) == 0
    assert "| origin of the weights | not verified: its training started from" in (exported / "README.md").read_text()
    assert not origin(project, initial_weights=exported)["verified"]

    forged = shutil.copytree(project, project.parent / "forged")
    require_origin(project)
    assert main(["governance", "check", *words_of(project)]) == 0
    for command in (["train", *continue_from(child)], ["evaluate", str(child)],
                    ["export", str(child), str(project / "again")]):  # fmt: skip
        capsys.readouterr()
        assert main([command[0], *words_of(project), *command[1:]]) == 77
        assert "demands it (verified_origin)" in capsys.readouterr().err
    assert not (project / "again").exists()

    made = read_manifest(child / "manifest.json")
    run = {**made.run, "origin": {**made.run["origin"], "verified": True}}
    write_manifest(made.model_copy(update={"run": run}), forged / "root")
    with pytest.raises(GateClosed, match="no statement of these artifacts"):
        origin(forged, continue_from=forged / "root" / made.folder)


@pytest.mark.slow
def test_a_training_that_began_needs_only_the_manifest_of_its_parent(project, lab, capsys, monkeypatch):
    """The origin of a training is decided before its first step, and is in its own signed records."""
    other = shutil.copytree(project, project.parent / "other")
    words = continue_from(parent(lab))
    with monkeypatch.context() as killing:
        killing.setattr("pretrain.train.commit", killed)
        assert main(["train", *words_of(project), *words]) == 130  # its checkpoints are made, its record is not
    (lab / "root" / "journal.jsonl").unlink()
    assert main(["train", *words_of(other), *words]) == 0
    for path in parent(lab).rglob("*.safetensors"):
        path.unlink()
    require_origin(project)
    assert main(["governance", "check", *words_of(project)]) == 0
    for _ in ("it resumes", "it is finished"):
        assert main(["train", *words_of(project), *words]) == 0
    [[ours], [theirs]] = [[made for made in manifests(at, "train") if "origin" in made.run] for at in (project, other)]
    assert (ours.run["origin"]["verified"], theirs.run["origin"]["verified"]) == (True, False)
    assert (ours.key, ours.digest) == (theirs.key, theirs.digest)


def killed(*given):
    raise KeyboardInterrupt


def require_origin(folder):
    policy = folder / "policy.toml"
    policy.write_text(f"verified_origin = true\n{policy.read_text()}")


@pytest.mark.parametrize("command", [["evaluate"], ["export", "exported"]])
def test_a_checkpoint_of_unknown_origin_is_refused_where_the_policy_demands_it(project, lab, capsys, command):
    (lab / "root" / "journal.jsonl").unlink()
    require_origin(project)
    capsys.readouterr()
    assert main([command[0], *words_of(project), str(parent(lab)), *(str(lab / name) for name in command[1:])]) == 77
    assert "its root has no journal.jsonl), and the policy assay-default demands it" in capsys.readouterr().err


def test_a_link_to_a_checkpoint_is_followed_unless_it_has_the_name_of_another(project, tmp_path, capsys):
    first, *_, other = sorted(path.parent for path in project.glob("root/checkpoint/*/manifest.json"))
    (tmp_path / "latest").symlink_to(first)
    assert main(["evaluate", *words_of(project), str(tmp_path / "latest")]) == 0
    shutil.rmtree(other)
    other.symlink_to(first)
    capsys.readouterr()
    assert main(["evaluate", *words_of(project), str(other)]) == 77
    assert f"holds the manifest of checkpoint/{first.name}" in capsys.readouterr().err


def test_a_key_of_parents_opens_no_gate_of_this_root(project, lab):
    """The journal of the other root counts; a verdict or a journal by its key does not, and the own key still does."""
    by_another_key(lab)
    shutil.copy(lab / "stranger.pem.pub", project / "colleague.pub")
    setting = 'governance.parent_keys=["colleague.pub"]'
    with pytest.raises(GateClosed, match=r"governance\.parent_keys"):
        origin(project, continue_from=parent(lab))
    assert origin(project, [setting], continue_from=parent(lab))["verified"]
    assert main(["governance", "check", *words_of(project), "--set", setting]) == 0
    by_another_key(project)
    assert main(["train", *words_of(project), "--set", setting]) == 77


def origin(folder, words=(), **train):
    run = load_run(folder / "run.toml", [*words, *(f'train.{name}="{value}"' for name, value in train.items())])
    return weights_origin(run, Runtime((folder / "root").absolute()))


def manifests(folder, stage):
    return [read_manifest(path) for path in (folder / "root").glob(f"{stage}/*/manifest.json")]

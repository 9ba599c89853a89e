"""`verify --deep` finds every edit below a root and names the file, and the piece of a large file."""

import datetime
import json
import os
import random
import shutil

import pytest

import governance.manifest
from governance import files
from governance.config import Section, validate
from governance.files import write_bytes, write_json
from governance.gate.decision import CheckResult, decide
from governance.gate.policy import Policy
from governance.gate.verdict import GateContext, GovernanceConfig, Keyring, give_verdict
from governance.lineage.attest import attest_with, open_journal, state_mirror
from governance.manifest import Input, Manifest, describe, read_manifest, write_manifest
from governance.signing.dsse import private_key
from governance.signing.openssf import create_model_key
from governance.stage import Recipe, commit
from governance.verification import verify_artifact, verify_root

CONFIG = GovernanceConfig(signing_key="key.pem", model_signing=True, model_key="model.pem")
POLICY = {
    "name": "test",
    "owners": {"data": ["ann"]},
    "licences": {"allowed": ["MIT"]},
    "gate": [{"id": "a.b", "suite": "sources", "expectation": "between", "column": "x", "max": 1, "owner": "data",
              "why": "it matters"}],
}  # fmt: skip


def make(root, stage, inputs, contents, run=None, **stats):
    recipe = Recipe(stage, 1, Section())
    manifest = Manifest(stage=stage, version=1, key=recipe.key([item.digest for item in inputs]), config={},
                        inputs=tuple(inputs), outputs=(), stats=stats, run=run or {})  # fmt: skip
    outputs = []
    for name, data in contents.items():
        write_bytes(root / manifest.folder / name, data)
        outputs.append(describe(root / manifest.folder / name, root))
    manifest = manifest.model_copy(update={"outputs": tuple(sorted(outputs, key=lambda output: output.path))})
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    return commit(manifest, root, attest_with(journal, Keyring(CONFIG, root.parent), root))


def build(folder):
    """A root of every kind of thing: sources, shards (one of two pieces), a verdict, a signed checkpoint, a run."""
    root, chance = folder / "root", random.Random(1)
    private_key(folder / "key.pem")
    create_model_key(folder / "model.pem")
    sources = [Input(stage="file", digest=f"{n}" * 64, path=f"tales/{n}.jsonl") for n in range(2)]
    ingest = make(root, "ingest", sources, {f"documents/{n}.parquet": chance.randbytes(300 + n) for n in range(3)})
    clean = make(root, "clean", [ingest.as_input()], {"documents/0.parquet": chance.randbytes(200)})
    big = chance.randbytes(1 << 20) * (files.LEAF_BYTES >> 20) + b"the end"
    encode = make(root, "encode", [clean.as_input(), ingest.as_input()],
                  {"train/0.tokens": big, "train/1.tokens": chance.randbytes(500)})  # fmt: skip
    audit = make(root, "audit", [ingest.as_input(), clean.as_input(), encode.as_input()], {"results.json": b"[]"})
    policy = validate(POLICY, Policy, "policy")
    result = CheckResult("a.b", "s", "pass", 0.5, 10, 0, "fine")
    judgement = decide(policy, [result], encode.digest, datetime.date(2026, 1, 1))
    journal = open_journal(Keyring(CONFIG, folder), root)
    give_verdict(judgement, encode, audit, policy, GateContext(Keyring(CONFIG, folder), root, journal))
    checkpoint = make(root, "checkpoint", [encode.as_input()],
                      {"weights/0.safetensors": chance.randbytes(900), "state.json": b"{}"})  # fmt: skip
    make(root, "train", [encode.as_input()], {"losses.json": b"[1.0, 0.5]"}, run={"journal": journal.head()},
         checkpoint={"path": checkpoint.path, "digest": checkpoint.digest})  # fmt: skip
    return root


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pristine"))


@pytest.fixture(scope="module")
def working(pristine, tmp_path_factory):
    """A copy in which each edit is made; an edited file is restored after it."""
    return copy_of(pristine, tmp_path_factory.mktemp("working"))


def copy_of(pristine, folder):
    shutil.copytree(pristine.parent, folder, dirs_exist_ok=True)
    return folder / "root"


def files_of(root):
    manifests = sorted(root.glob("*/*/manifest.json"))
    outputs = {root / out["path"] for path in manifests for out in json.loads(path.read_bytes())["outputs"]}
    extra = [*root.glob("verdicts/*.json"), *root.glob("*/*/model.sig"), root / "journal.jsonl"]
    return [*sorted(outputs), *manifests, *extra]


def flip(path, position, bit):
    with open(path, "r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0] ^ 1 << bit
        handle.seek(position)
        handle.write(bytes([byte]))


def restore(pristine, root, touched):
    for path in touched:
        source = pristine / path.relative_to(root)
        if source.exists():
            os.unlink(path) if path.exists() else None
            shutil.copyfile(source, path)
        elif path.exists():
            os.unlink(path)


def edit_byte(root, chance):
    path = chance.choice(files_of(root))
    flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
    return [path], [path]


def edit_swap(root, chance):
    while True:
        one, other = chance.sample(files_of(root), 2)
        if one.stat().st_size < files.LEAF_BYTES and one.read_bytes() != other.read_bytes()[: files.LEAF_BYTES]:
            break
    os.rename(one, root / "aside")
    os.rename(other, one)
    os.rename(root / "aside", other)
    return [one, other], [one, other]


def edit_truncate(root, chance):
    path = chance.choice(files_of(root))
    os.truncate(path, chance.randrange(path.stat().st_size))
    return [path], [path]


def edit_rename(root, chance):
    path = chance.choice(files_of(root))
    os.rename(path, path.with_name(f"x{path.name}"))
    return [path], [path, path.with_name(f"x{path.name}")]


def _journal_lines(root, change):
    path = root / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    return [path], [path]


def edit_order(root, chance):
    def change(lines):
        one, other = chance.sample(range(len(lines)), 2)
        lines[one], lines[other] = lines[other], lines[one]

    return _journal_lines(root, change)


def edit_drop(root, chance):
    return _journal_lines(root, lambda lines: lines.pop(chance.randrange(len(lines))))


def edit_replay(root, chance):
    return _journal_lines(root, lambda lines: lines.insert(chance.randint(1, len(lines)), chance.choice(lines)))


def edit_parents(root, chance):
    """Inputs of two artifacts are exchanged, or those of one reordered; the seal is made to fit."""
    paths = [path for path in sorted(root.glob("*/*/manifest.json"))]
    while True:
        one, other = chance.sample(paths, 2)
        ours, theirs = read_manifest(one), read_manifest(other)
        if ours.inputs != theirs.inputs:
            break
    if len(ours.inputs) > 1 and chance.random() < 0.5:
        write_manifest(ours.model_copy(update={"inputs": ours.inputs[::-1]}), root)
        return [one], [one]
    write_manifest(ours.model_copy(update={"inputs": theirs.inputs}), root)
    write_manifest(theirs.model_copy(update={"inputs": ours.inputs}), root)
    return [one, other], [one, other]


def edit_leaf(root, chance):
    """A byte of one piece of the large file; or its leaf in the manifest, with a seal that fits."""
    [path] = root.glob("encode/*/manifest.json")
    manifest = read_manifest(path)
    if chance.random() < 0.5:
        large = root / manifest.outputs[0].path
        position = chance.randrange(large.stat().st_size)
        flip(large, position, chance.randrange(8))
        first = position // files.LEAF_BYTES * files.LEAF_BYTES
        last = min(first + files.LEAF_BYTES, large.stat().st_size) - 1
        return [large], [large], f"bytes {first} to {last} differ"
    leaves = list(manifest.outputs[0].leaves)
    leaves[chance.randrange(len(leaves))] = "0" * 64
    outputs = (manifest.outputs[0].model_copy(update={"leaves": tuple(leaves)}), *manifest.outputs[1:])
    write_manifest(manifest.model_copy(update={"outputs": outputs}), root)
    return [path], [path], "has other leaves"


EDITS = (edit_byte, edit_swap, edit_truncate, edit_rename, edit_order, edit_drop, edit_replay, edit_parents, edit_leaf)


def check(pristine, root, edit, seed):
    chance = random.Random(seed)
    named, touched, *words = edit(root, chance)
    try:
        problems = verify_root(root, Keyring(CONFIG, root.parent), deep=True).problems
    finally:
        changed = [path for path in touched if not path.exists() or not (pristine / path.relative_to(root)).exists()
                   or path.read_bytes() != (pristine / path.relative_to(root)).read_bytes()]  # fmt: skip
        restore(pristine, root, touched)
    if not changed:
        return False
    for path in named:
        name = path.relative_to(root).as_posix()
        own = (
            path.parents[1] / "manifest.json"
            if len(path.relative_to(root).parts) == 4
            else path.parent / "manifest.json"
        )
        if own in named and own != path:  # the artifact that lists this file was altered too: that is reported instead
            name = f"{own.relative_to(root).as_posix()}: "
        message = [problem for problem in problems if problem.startswith(name) or "journal.jsonl" in name in problem]
        assert message, (edit.__name__, seed, name, problems)
    for word in words:
        assert any(word in problem for problem in problems), (edit.__name__, seed, word, problems)
    return True


def test_an_untouched_root_has_no_problem_and_neither_has_a_moved_one(pristine, working):
    for root in (pristine, working):
        assert verify_root(root, Keyring(CONFIG, root.parent), deep=True)[1] == []
        [train] = root.glob("train/*")
        read, problems, _ = verify_artifact(train, Keyring(CONFIG, root.parent), deep=True)
        assert problems == []
        assert read > 15


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edits_are_found_and_named(pristine, working, edit):
    assert sum(check(pristine, working, edit, seed) for seed in range(3)) >= 1


@pytest.mark.slow
def test_hundreds_of_random_edits_are_all_found_and_named(tmp_path, monkeypatch):
    """Pieces of 1 MiB, since each edit costs two readings of the large file; elsewhere they have their own size."""
    for module in (files, governance.manifest):
        monkeypatch.setattr(module, "LEAF_BYTES", 1 << 20)
    pristine = build(tmp_path / "pristine")
    working = copy_of(pristine, tmp_path / "working")
    chance = random.Random(20)
    made, seed = dict.fromkeys(EDITS, 0), 100
    while sum(made.values()) < 400:
        edit = chance.choice(EDITS)
        made[edit] += check(pristine, working, edit, seed := seed + 1)
    assert min(made.values()) > 15
    assert verify_root(working, Keyring(CONFIG, working.parent), deep=True)[1] == []


def test_a_planted_artifact_and_an_old_verdict_put_back_are_found(pristine, tmp_path):
    shutil.copytree(pristine.parent, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    [clean] = [read_manifest(path) for path in root.glob("clean/*/manifest.json")]
    planted = clean.model_copy(update={"key": "a" * 64, "stage": "planted", "outputs": ()})
    write_manifest(planted, root)
    [verdict] = root.glob("verdicts/*.json")
    write_json(root / "verdicts" / "old.json", json.loads(verdict.read_bytes()))
    problems = verify_root(root, Keyring(CONFIG, root.parent), deep=True)[1]
    assert sorted(problem.partition(":")[0] for problem in problems) == [planted.path, "verdicts/old.json"]


def test_a_shallow_check_of_one_artifact_reads_only_that(pristine, tmp_path):
    shutil.copytree(pristine.parent, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    [train], [clean] = root.glob("train/*"), root.glob("clean/*")
    flip(next(clean.glob("documents/*")), 5, 1)
    assert verify_artifact(train, Keyring(CONFIG, root.parent))[1] == []
    problems = verify_artifact(train, Keyring(CONFIG, root.parent), deep=True)[1]
    assert [problem.startswith("clean/") for problem in problems] == [True]
    shutil.rmtree(clean)  # removed to save space, which is not a fault
    assert verify_artifact(train, Keyring(CONFIG, root.parent), deep=True)[1] == []


def test_a_waiver_that_did_not_hold_when_it_was_used_is_found(tmp_path):
    from governance.verification import _waivers

    verdict = {
        "signed_at": "2026-03-01T00:00:00Z",
        "corpus": {"digest": "c"},
        "waivers": [
            {"gate": "a", "expires": "2026-02-28", "subject": "c"},
            {"gate": "b", "expires": "2026-03-01", "subject": "d"},
            {"gate": "c", "expires": "2026-03-01", "subject": "c"},
        ],
    }
    message = list(_waivers(verdict))
    assert len(message) == 2
    assert "expired on 2026-02-28" in message[0]
    assert "belongs to another corpus" in message[1]


def test_files_of_wandbs_runs_are_checked_once_they_are_stated(pristine, tmp_path, caplog):
    root = copy_of(pristine, tmp_path)
    run, link = root / "wandb" / "offline-run-1", root / "wandb" / "debug.log"
    write_bytes(run / "media" / "table.json", b"{}")
    write_bytes(run / "debug.log", b"begun")
    link.symlink_to(run / "debug.log")

    def problems():
        return [line.partition(":")[0] for line in verify_root(root, Keyring(CONFIG, root.parent), deep=True).problems]

    assert problems() == []  # left by a run that was killed before it stated them
    [audit] = map(read_manifest, root.glob("audit/*/manifest.json"))
    for _ in range(2):  # a repetition adds nothing
        state_mirror(open_journal(Keyring(CONFIG, root.parent), root), audit, root)
    assert (root / "journal.jsonl").read_text().count("\n") == (pristine / "journal.jsonl").read_text().count("\n") + 1
    link.unlink()  # as in a copy without links
    assert problems() == []
    write_bytes(run / "media" / "table.json", b"[]")
    write_bytes(run / "other.json", b"{}")
    (run / "debug.log").unlink()
    altered = [f"wandb/offline-run-1/{name}" for name in ("debug.log", "media/table.json", "other.json")]
    (run / "core.log").symlink_to("/before/wandb/root/wandb/wandb/logs/core.log")  # W&B's, in a root that was moved
    assert sorted(problems()) == sorted([*altered, "wandb/offline-run-1/core.log"]), "there is no such log"
    write_bytes(root / "wandb" / "wandb" / "logs" / "core.log", b"begun")
    assert sorted(problems()) == altered
    write_bytes(root / "wandb" / "offline-run-2" / "debug.log", b"killed before it was stated")
    assert sorted(problems()) == altered
    (root / "wandb" / "offline-run-1" / "debug.log").symlink_to("/etc/hostname")
    with caplog.at_level("WARNING", "assay"):
        state_mirror(open_journal(Keyring(CONFIG, root.parent), root), audit, root)
    assert "differ from their statement" in caplog.text
    assert sorted(problems()) == altered[:2], "an alteration is never stated anew"

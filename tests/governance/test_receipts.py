"""Receipts: every member and non-member is proven, every forgery is named, and no other name is shown."""

import ast
import base64
import copy
import datetime
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.normalised_text import normalise
from data_pipeline.tokens.labels import content_digests
from governance.errors import ConfigError, ManifestError, PipelineError
from governance.files import json_text, sha256_bytes
from governance.kernels.sha256_lanes import sha256_lanes
from governance.manifest import Manifest
from governance.receipts import verify_receipt
from governance.receipts.blinded_tree import build
from governance.receipts.mapped_arrays import map_arrays, write_arrays
from governance.receipts.name_tree import CorpusNames, name_tree, open_names
from governance.receipts.receipt import receipt
from governance.receipts.verify_receipt import KINDS, faults, leaf_value, name_of, root_of_proof, signed_bytes
from governance.signing.certificates import PREDICATE_TYPE as CERTIFICATE
from governance.signing.certificates import certificate_predicate
from governance.signing.dsse import SigningKey, draw_key, key_id, public_pem, sign, statement
from governance.signing.journal import Journal
from governance.stage import Runtime

FOUND = {"copies": 2, "held_out": 1, "licence": "MIT"}
FACTS = {"checkpoint": "c" * 64, "step": 40, "builds_on": [], "journal": 0, "filters": "clean dedup", "removed": ""}


@given(st.lists(st.binary(max_size=200), max_size=40))
def test_the_kernel_hashes_as_hashlib_does(messages):
    data = np.frombuffer(b"".join(messages) + b"\0", np.uint8)
    offsets = np.cumsum([0, *map(len, messages)], dtype=np.int64)
    assert [row.tobytes() for row in sha256_lanes(data, offsets)] == [hashlib.sha256(m).digest() for m in messages]


@given(st.text(max_size=60))
def test_the_verifier_names_a_text_as_the_corpus_does(text):
    [digest] = content_digests(pa.array([normalise(text)], pa.large_string()))
    assert name_of("text", text).hex() == digest[:32]


def tree_of(tags, secret=b"secrets." * 4):
    ordered = sorted(tags)
    halves = np.frombuffer(b"".join(ordered), ">u8").astype(np.uint64).reshape(-1, 2)
    leaves = np.frombuffer(leaf_value(FOUND) * len(ordered), np.uint8).reshape(-1, 20)
    return build(halves[:, 0].copy(), halves[:, 1].copy(), leaves, secret)


@st.composite
def crowds(draw):
    """Tags, some of which share long beginnings."""
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    tags = {chance.randbytes(16) for _ in range(draw(st.sampled_from([0, 1, 2, 3, 20, 130, 300])))}
    for tag in list(tags)[: draw(st.integers(0, 5))]:
        kept = chance.randrange(1, 6)
        tags.add(tag[:kept] + chance.randbytes(16 - kept))
    return sorted(tags), chance


@settings(max_examples=30)
@given(crowds())
def test_each_tag_is_proven_present_or_absent_and_never_both(crowd):
    tags, chance = crowd
    tree = tree_of(tags)
    if tree.depth == 0 and tags:
        assert tree._hash_below([(tag, leaf_value(FOUND)) for tag in tags], 0) == tree.root  # the plain definition
    others = [chance.randbytes(16) for _ in range(20)] + [tag[:1] + chance.randbytes(15) for tag in tags[:20]]
    for tag in [*tags[:40], *(tag for tag in others if tag not in tags)]:
        proof = tree.prove(tag)
        assert (proof["end"] == "used") == (tag in tags) == (tree.place(tag) is not None)
        assert root_of_proof(tag, proof, FOUND if tag in tags else None) == tree.root
        wrong = {**FOUND, "copies": 3}
        assert tag not in tags or root_of_proof(tag, proof, wrong) != tree.root
        elsewhere = bytes([tag[0] ^ 0x80]) + tag[1:]  # the other half of the tree
        if len(proof["path"]):
            assert root_of_proof(elsewhere, proof, FOUND if tag in tags else None) != tree.root


def test_what_stands_beside_a_place_is_blinded():
    """The hash beside a name includes a secret, so that a guess of the neighbouring name cannot be checked."""
    chance = random.Random(3)
    tags = sorted(chance.randbytes(16) for _ in range(50))
    one, two = tree_of(tags), tree_of(tags, b"another." * 4)
    absent = next(tag for tag in (chance.randbytes(16) for _ in range(99)) if isinstance(one.prove(tag)["end"], list))
    shown = json.dumps(one.prove(absent))
    assert not any(tag.hex() in shown or tag[:4].hex() in shown for tag in tags)
    for tag in (absent, tags[7]):
        ours, theirs = one.prove(tag), two.prove(tag)
        assert (ours["path"], ours["end"]) == (theirs["path"], theirs["end"])
        assert ours["siblings"] != theirs["siblings"]
        assert ours["shown"] != theirs["shown"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tree of 200 documents by id and URL, two of one URL and of two licences, and one held out."""
    root = tmp_path_factory.mktemp("receipts")
    documents = np.arange(200)
    values = [("id", f"tales/a.jsonl#{n}") for n in documents] + [("url", f"https://a.example/{n}") for n in documents]
    values[201] = values[200]  # documents 0 and 1 have one URL
    names = CorpusNames(
        identities=np.stack([np.frombuffer(name_of("id", f"tales/a.jsonl#{n}"), np.uint8) for n in documents]),
        copies=(documents != 5).astype(np.int64),
        held_out=(documents == 5).astype(np.int64),
        licences=documents % 2,
        licence_words=("MIT", "CC0-1.0"),
        kinds=np.array([KINDS[kind] for kind, _ in values], np.uint8),
        names=np.stack([np.frombuffer(name_of(*value), np.uint8) for value in values]),
        documents=np.tile(documents, 2),
    )
    tokens = Manifest(stage="encode", version=1, key="encode" * 20, config={}, inputs=(), outputs=(), stats={}, run={})
    tree = name_tree(tokens, lambda: names, Runtime(root))
    assert name_tree(tokens, lambda: pytest.fail("found, not made again"), Runtime(root)).digest == tree.digest
    return open_names(tree, root), draw_key(), tree, root


def answers(corpus, kind, value, steps=(3, 9)):
    names, key, *_ = corpus
    place = names.tree.place(names.tag_of(kind, name_of(kind, value)))
    copies = names.found(place)["copies"] if place is not None else 0
    return receipt(names, (kind, value), steps if copies else (), FACTS, key)


def test_names_of_several_documents_say_so(corpus):
    names, *_ = corpus
    one = answers(corpus, "url", "https://a.example/0")
    assert one["statement"]["found"] == {"copies": 2, "held_out": 0, "licence": "CC0-1.0 AND MIT"}
    place = names.tree.place(names.tag_of("url", name_of("url", "https://a.example/0")))
    assert names.identities_of(place) == {name_of("id", f"tales/a.jsonl#{n}") for n in (0, 1)}
    held = answers(corpus, "id", "tales/a.jsonl#5", ())
    assert held["statement"]["answer"] == "not used"
    assert held["statement"]["found"] == {"copies": 0, "held_out": 1, "licence": "CC0-1.0"}
    assert faults(held, corpus[1].public_key()) == []


def forgeries(one, chance, other):
    """(receipt, the kind of fault that names it)."""
    said, proof = one["statement"], one["proof"]
    for name, value in [("answer", "used" if said["answer"] == "not used" else "not used"), ("root", "0" * 48),
                        ("step", 41), ("checkpoint", "d" * 64), ("corpus", "e" * 64), ("names", 7),
                        ("words", "all"), ("read", {"times": 7, "steps": [1, 2, 3, 4, 5, 6, 7]}),
                        ("journal", 99), ("licence", "none"), ("found", {**FOUND, "copies": chance.randrange(1 << 32)}),
                        ("removed", "clean: x")]:  # fmt: skip
        yield {**one, "statement": {**said, name: value}}, "signature"
    yield {**one, "statement": other["statement"]}, "signature"
    yield {**one, "signature": one["signature"][:-4]}, "signature"
    yield {**one, "signature": other["signature"]}, "signature"
    if proof["siblings"]:
        yield {**one, "proof": {**proof, "siblings": proof["siblings"][:-30]}}, "proof"
        yield {**one, "proof": {**proof, "siblings": proof["siblings"][:-30], "path": proof["path"][:-1]}}, "proof"
        at = chance.randrange(len(proof["siblings"]))
        letter = "A" if proof["siblings"][at] != "A" else "B"
        yield (
            {**one, "proof": {**proof, "siblings": proof["siblings"][:at] + letter + proof["siblings"][at + 1 :]}},
            "proof",
        )
    end = {"used": "nothing", "nothing": "used"}.get(proof["end"] if isinstance(proof["end"], str) else "", "used")
    yield {**one, "proof": {**proof, "end": end}}, "proof"
    yield {**one, "proof": {**proof, "end": [0, 2], "shown": "00" * 24}}, "proof"
    yield {**one, "proof": {**proof, "path": "2" * len(proof["path"])}}, "proof"
    yield {**one, "proof": {**proof, "shown": proof["shown"][:-2] + "zz"}}, "form"
    yield {**one, "proof": other["proof"]}, "proof"
    yield {"statement": said, "signature": one["signature"]}, "form"


def kinds_of(found):
    return {fault.partition(":")[0] for fault in found}


@settings(max_examples=60)
@given(st.sampled_from(["id", "url"]), st.integers(0, 500), st.integers(0, 1 << 32))
def test_every_forgery_is_named(corpus, kind, number, seed):
    form = {"id": "tales/a.jsonl#{}", "url": "https://a.example/{}"}[kind]
    one, other = answers(corpus, kind, form.format(number)), answers(corpus, kind, form.format((number + 7) % 500))
    key = corpus[1].public_key()
    assert faults(one, key, form.format(number)) == []
    assert len(json.dumps(one)) < 2000
    about = f"name: is not about this question, but about {kind} {form.format(number)}"
    assert faults(one, key, form.format(number + 1)) == [about]
    for forged, kind_of_fault in forgeries(one, random.Random(seed), other):
        assert kind_of_fault in kinds_of(faults(copy.deepcopy(forged), key)), (forged, kind_of_fault)
    assert kinds_of(faults(one, draw_key().public_key())) == {"signature"}


def test_a_lie_that_the_right_key_signed_is_named(corpus):
    """An operator who changes the statement and signs it again is contradicted by the tree."""
    _, key, *_ = corpus
    for value in ("https://a.example/3", "https://a.example/300"):
        one = answers(corpus, "url", value)
        for change in ({"root": "0" * 48}, {"found": {**FOUND, "copies": 9}}, {"found": None, "answer": "not used"},
                       {"answer": "not used"}, {"read": {"times": 0, "steps": []}}, {"salt": 1}, {"words": "all"},
                       {"read": {"times": 3, "steps": [1]}}):  # fmt: skip
            said = {**one["statement"], **change}
            if said == one["statement"]:
                continue
            signature = key.private.sign(verify_receipt.signed_bytes(said))
            lie = {**one, "statement": said, "signature": base64.b64encode(signature).decode()}
            honest = change == {"found": None, "answer": "not used"} and one["statement"]["found"] is None
            assert bool(faults(lie, key.public_key())) != honest, change


@pytest.mark.parametrize(
    ("kind", "asked", "kinds"),
    [("id", "the text of a page", ["text", "raw text"]), ("raw text", "https://a.example/3", ["url"])],
)
def test_an_answer_by_a_name_of_another_kind_is_not_about_the_question(corpus, kind, asked, kinds):
    """No document has this text as its id: proven, signed, and no answer to whether it was read."""
    _, key, *_ = corpus
    one = answers(corpus, kind, asked)
    assert faults(one, key.public_key(), asked) == []
    assert faults(one, key.public_key(), asked, kinds=kinds)[0].startswith("name: is not about this question, but")
    assert faults(one, key.public_key(), "")[0].startswith("name: is not about this question, but")


def test_the_journal_binds_the_tree(corpus, tmp_path):
    names, key, made, _ = corpus
    one, public = answers(corpus, "url", "https://a.example/3"), corpus[1].public_key()
    path = tmp_path / "journal.jsonl"
    head = {f"{made.folder}/head.json": sha256_bytes(json_text(names.head).encode())}

    def journal(*said, signer=key):
        path.unlink(missing_ok=True)
        kept = Journal(tmp_path, lambda: signer)
        for subjects in said:
            kept.append("x", statement(subjects, "urn:x", {}))
        return path.read_bytes()

    assert faults(one, public, journal=journal(head)) == []
    assert faults(one, public, journal=journal({"a": "0" * 64})) == ["journal: states another tree"]
    assert "another key" in faults(one, public, journal=journal(head, signer=draw_key()))[0]
    assert "was cut" in faults(one, public, journal=b"")[0]
    # A job's lines hold its certificate, an envelope with a payload of its own.
    root, now = draw_key(), datetime.datetime.now(datetime.UTC)
    of_job = statement(
        {"job": key_id(public)}, CERTIFICATE, certificate_predicate("job", public.public_bytes_raw(), 9, now)
    )
    job = SigningKey(key.private, sign(of_job, root))
    for name in ("a", "aa", "aaa"):  # payloads with each end that base64 has
        assert faults(one, public, journal=journal({**head, name: "0" * 64}, {"b": "0" * 64}, signer=job)) == []
    # The chain: a line that a killed writer left torn is part of it.
    path.unlink()
    before = Journal(tmp_path, lambda: key)
    before.append("x", statement({"b": "1" * 64}, "urn:x", {}))
    with path.open("ab") as file:
        file.write(b'{"envelope": {')
    for subjects in ({"c": "2" * 64}, head, {"d": "3" * 64}):
        Journal(tmp_path, lambda: key).append("x", statement(subjects, "urn:x", {}))
    whole = path.read_bytes()
    later = {**one, "statement": {**one["statement"], "journal": 3}}
    later["signature"] = base64.b64encode(key.private.sign(signed_bytes(later["statement"]))).decode()
    assert faults(later, public, journal=whole) == []
    lines = whole.splitlines(keepends=True)
    other, shorter = (b"e", b"3"), (b'"payload":"e', b'"payload":"')
    for place, change in ((1, other), (2, other), (2, shorter), (3, other), (3, shorter)):
        # A torn line, such as 1, holds no hash of the one before it.
        altered = [*lines]
        altered[place] = altered[place].replace(*change, 1)
        [fault] = faults(later, public, journal=b"".join(altered))
        assert fault.startswith(f"journal: line {place + 1} does not follow line {place}: "), fault
    [fault] = faults(later, public, journal=b"".join([*lines[:3], lines[3].replace(*shorter)]))
    assert fault == "journal: the line that states the tree was altered, or another key signed it"
    for edited in ([*lines[:2], *lines[3:], lines[4]], [lines[1], lines[0], *lines[2:]]):
        assert "does not follow" in faults(later, public, journal=b"".join(edited))[0]


def test_bad_trees_and_keys_are_refused(corpus, tmp_path):
    names, key, made, root = corpus
    with pytest.raises(ConfigError, match="a job's key cannot sign it"):
        receipt(names, ("id", "a#1"), (), FACTS, SigningKey(key.private, {"payload": ""}))
    with pytest.raises(ManifestError, match="its root is not the one in its manifest"):
        open_names(made.model_copy(update={"stats": {**made.stats, "root": "0" * 48}}), root)
    with pytest.raises(ManifestError, match=r"head\.json"):
        open_names(made, tmp_path)
    alone = tree_of([b"\1" * 16])
    with pytest.raises(PipelineError, match="without showing another name"):
        alone.prove(b"\1" * 15 + b"\2")  # 120 bits in common: by chance once in 2**32


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.sampled_from(["<u8", "<u4", "|u1"]), st.integers(0, 40))))
def test_arrays_of_one_file_are_those_that_were_written(tmp_path_factory, forms):
    path = tmp_path_factory.mktemp("arrays") / "some.bin"
    given = {name: np.arange(3 * count).astype(kind).reshape(count, 3) for name, (kind, count) in forms.items()}
    write_arrays(path, given)
    found = map_arrays(path)
    assert list(found) == list(given)
    for name, array in given.items():
        assert (found[name].dtype, found[name].ctypes.data % 64 * found[name].size) == (array.dtype, 0)
        assert np.array_equal(found[name], array)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="its header states"):
        map_arrays(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"high": 3}',
        b'{"high": ["<u8", [9]]}',
        b'{"high": ["<f8", [1]]}',
        b'{"high": ["|O", [1]]}',
        b'{"high": ["<u8,(", [1]]}',
        b'{"high": ["f8,,", [1]]}',
    ],
)
def test_an_altered_header_of_the_names_is_named(corpus, tmp_path, header):
    _, _, made, root = corpus
    copied = Path(shutil.copytree(root, tmp_path / "root"))
    path = copied / made.folder / "names.bin"
    path.write_bytes(header.ljust(1024) + path.read_bytes()[1024:])
    with pytest.raises(ManifestError, match="Remove its folder"):
        open_names(made, copied)


def test_the_verifier_runs_alone(corpus, tmp_path):
    source = Path(verify_receipt.__file__).read_text()
    assert len(source.splitlines()) <= 150
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports}
    assert modules - set(sys.stdlib_module_names) == {"cryptography"}
    (tmp_path / "v.py").write_text(source)
    (tmp_path / "key.pub").write_bytes(public_pem(corpus[1].public_key()))
    one = answers(corpus, "url", "https://a.example/3")
    forged = {**one, "statement": {**one["statement"], "answer": "not used"}}
    done = []
    (tmp_path / "good.json").write_text(json.dumps(one))
    (tmp_path / "bad.json").write_text(json.dumps(forged))
    (tmp_path / "page.txt").write_text("the text of a page")
    (tmp_path / "swapped.json").write_text(json.dumps(answers(corpus, "id", "the text of a page")))
    with_key, address = ["--key", "key.pub", "--asked"], "https://a.example/3"
    for words in (
        ["-I", "v.py", "good.json", *with_key, address],
        ["-I", "v.py", "bad.json", *with_key, address],
        ["-I", "v.py", "good.json", *with_key, "https://a.example/" + "3" * 300],  # longer than a file's name may be
        ["-I", "v.py", "swapped.json", *with_key, "page.txt"],
        ["-I", "v.py", "good.json"],
        ["-I", "v.py", "none.json", *with_key, address],
        ["-I", "v.py", "key.pub", *with_key, address],
        ["-I", "v.py", "good.json", "--key", "good.json"],
        ["-I", "-S", "v.py", "good.json", *with_key, address],
    ):
        words = [sys.executable, *words]
        done.append(subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False))
    assert (done[0].returncode, json.loads(done[0].stdout)["answer"]) == (0, "used"), done[0].stderr
    assert (done[1].returncode, done[1].stderr) == (
        1,
        "signature: the statement was altered, or another key signed it\n",
    )
    for other in done[2:4]:
        assert (other.returncode, other.stderr.startswith("name: is not about this question, but about ")) == (1, True)
    assert (done[4].returncode, done[4].stderr.endswith("arguments are required: --key\n")) == (2, True)
    for one_of, words in zip(done[5:], ("none.json", "JSONDecodeError", "PEM", "cryptography"), strict=True):
        assert (one_of.returncode, "Traceback" in one_of.stderr) == (1, False)
        assert words in one_of.stderr

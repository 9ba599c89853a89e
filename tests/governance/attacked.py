"""A small corpus that was prepared and let through, and edits that tests make before they query the gate again."""

from __future__ import annotations

import datetime
import functools
import json
import shutil
import tempfile
from pathlib import Path

from assay.cli.main import main
from assay.config import load_run
from assay.corpus_gate import pass_gate
from assay.pipeline import corpus
from governance.gate.signed_statements import signature_fields, write_statement
from governance.gate.verdict import verdict_path
from governance.gate.waivers import WAIVER, Refusal, Waiver
from governance.manifest import describe, read_manifest, write_manifest
from governance.signing.dsse import create_key, private_key
from governance.stage import Runtime
from tests.conftest import CONFIG, tale, write_run

NOW = datetime.datetime.now(datetime.UTC)
SOURCES = """
[[data.sources]]
type = "jsonl"
name = "stories"
paths = ["stories.jsonl"]
licence = "CC0-1.0"
"""


def gate(name, **fields):
    """One more gate, as the policy's text."""
    known = {"id": name, "owner": "data", "why": "what the test is about", **fields}
    lines = []
    for field, value in known.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            text = "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + " }"
        lines.append(f"{field} = {text}")
    return "\n[[gate]]\n" + "\n".join(lines) + "\n"


FAILS = gate("sources.few", suite="sources", expectation="between", column="documents_in", max=1)


def prepare(folder, licence="CC0-1.0", *, checked=True):
    """A corpus of two shards, the texts of the second longer and under `licence`, and its verdict if asked for."""
    return shutil.copytree(_made(licence, checked), folder)


_PLACE = tempfile.TemporaryDirectory()


@functools.cache
def _made(licence, checked):
    """Corpus that `prepare` copies.

    It takes more than a second of processor time, so it is made once in a process.
    """
    folder = Path(_PLACE.name) / f"{licence}-{checked}"
    if checked:
        shutil.copytree(_made(licence, False), folder)
        assert main(["governance", "check", *words_of(folder)]) == 0
        return folder
    folder.mkdir()
    config = CONFIG.replace('paths = ["*.jsonl"]', 'paths = ["tales.jsonl"]\nopt_out_field = "opt_out"')
    sources = SOURCES.replace("CC0-1.0", licence)
    write_run(folder, config.replace("[data.tokenizer]", f"{sources}\n[data.tokenizer]"))
    policy = (Path(__file__).parents[2] / "configs" / "policy.toml").read_text()
    create_key(folder / "ann.pem")
    policy = policy.replace('data = ["data-lead"]', 'data = ["ann"]').replace(
        "[licences]", '[people]\nann = "ann.pem.pub"\n\n[licences]'
    )
    (folder / "policy.toml").write_text(policy)
    for name, words, seeds in (("tales", 90, range(120)), ("stories", 140, range(200, 240))):
        lines = [{"text": tale(seed, words), **({"opt_out": "none"} if seed == 7 else {})} for seed in seeds]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["data", "prepare", *words_of(folder), "--data-workers", "1"]) == 0
    return folder


def words_of(folder):
    return [str(folder / "run.toml"), "--root", str(folder / "root")]


def closed(folder, capsys, output, *words, checked=77, status=77):
    """The audit and the training end with these; the error names the given words, and no step was computed."""
    capsys.readouterr()
    if checked is not None:
        assert main(["governance", "check", *words_of(folder), *words]) == checked
    if status == 77:
        assert checked is None or checked == 0 or output in capsys.readouterr().err
    assert main(["train", *words_of(folder), *words]) == status
    assert output in capsys.readouterr().err
    assert [path.name for made in ("train", "checkpoint") for path in (folder / "root" / made).glob("*")] == []


def demand(folder, text):
    """Add to the policy."""
    path = folder / "policy.toml"
    path.write_text(path.read_text() + text)


def verdict_of(folder):
    """The verdict's file, the policy and the token shards' manifest, by the present run's file."""
    run = load_run(folder / "run.toml", [])
    [manifest] = (folder / "root" / "encode").glob("*/manifest.json")
    tokens = read_manifest(manifest)
    return verdict_path(tokens, run.policy, folder / "root"), run.policy, tokens


def paper(folder, kind, **fields):
    """A waiver or a refusal by ann of the result that `FAILS` finds."""
    _, policy, tokens = verdict_of(folder)
    key = private_key(folder / "ann.pem")
    known = {**signature_fields("ann", "the test wants it so", key), "gate": "sources.few", "result": "sources"}
    known |= {"policy": policy.digest}
    if kind == WAIVER:
        known |= {"observed": 160.0, "max_deviation": 159.0, "expires": str(NOW.date() + datetime.timedelta(days=9))}
    content = (Waiver if kind == WAIVER else Refusal)(**{**known, **fields})
    path = folder / "waivers" / f"{kind.split(':')[2]}.json"
    write_statement(path, kind, ("corpus", tokens.digest), content, key)
    return path


def only(folder, pattern):
    """The one file or folder of the root that a pattern names."""
    [path] = (folder / "root").glob(pattern)
    return path


def reseal(folder, pattern, *, files=True, **changes):
    """Change a manifest, list its files as they are now and make its seal fit: no key is needed for that."""
    root, path = folder / "root", only(folder, f"{pattern}/*/manifest.json")
    made = read_manifest(path)
    outputs = tuple(describe(root / of.path, root) for of in made.outputs) if files else made.outputs
    write_manifest(made.model_copy(update={"outputs": outputs, **changes}), root)
    return path


def opens(folder):
    """The gate's answer to a training, without the training."""
    run = load_run(folder / "run.toml", [])
    runtime = Runtime((folder / "root").absolute(), make=False)
    return pass_gate(run, corpus(run, runtime), runtime)["verdict"]

"""`assay audit-training`: honest trainings, three that were falsified, other arithmetic, and bad input."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay.cli.main import main
from assay.recomputation import repeated_stretch
from assay.recomputation.repeated_stretch import other_arithmetic
from governance.manifest import read_manifest
from governance.recomputation.audit_draw import drawn, public_value
from governance.recomputation.audit_statement import audit_faults
from governance.signing.dsse import public_key
from governance.signing.journal_lines import read_journal
from pretrain import loop
from pretrain.data.sampler import RowSampler
from pretrain.engine.fragments import nudge
from pretrain.preflight.hardware import arithmetic
from tests.conftest import CONFIG, write_tales

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of twelve steps that keeps a checkpoint of each second one."""
    folder = tmp_path_factory.mktemp("audited")
    kept = "every_steps = 2\nkeep_every_steps = 2"
    (folder / "run.toml").write_text(CONFIG.replace("every_steps = 4", kept))
    shutil.copy(ROOT / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(120))
    assert main(["run", str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "1"]) == 0
    return folder


@pytest.fixture
def audit(trained, capsys):
    """`audit(words)`: the command on the run, and its JSON object."""

    def answer(*words, status=0, root=None):
        capsys.readouterr()
        typed = ["audit-training", str(trained / "run.toml"), "--root", str(root or trained / "root"), *words, "--json"]
        assert main(typed) == status
        return json.loads(capsys.readouterr().out)

    return answer


def entries_of(trained):
    entries, faults = read_journal(trained / "root" / "journal.jsonl", [public_key(trained / "key.pem.pub")])
    assert faults == []
    return entries


def test_an_honest_training_is_equal_to_the_bit_and_known_everywhere(trained, audit, capsys):
    root, run = trained / "root", str(trained / "run.toml")
    found = audit("--share", "0.5")
    assert (found["verdict"], found["checkpoints"], found["amount"], found["draws"]) == ("equal", 6, 3, 1)
    assert (found["chance_of_one"], found["chance_of_two"], found["surely_found"]) == (0.5, 0.8, 3)
    assert [one["number"] for one in found["repeated"]] == drawn(found["value"], 6, 3)
    assert found["value"] == public_value(found["head"], found["training"], found["nonce"])
    for one in found["repeated"]:
        assert one["last_step"] == one["first_step"] + 1 == 2 * one["number"] + 2
        assert read_manifest(root / one["end"]["path"]).digest == one["end"]["digest"]
        assert one["other_arithmetic"] == []
    assert not list(trained.glob("root-training-audit/*"))
    again = audit("--share", "0.1", "--beacon", "drand 4,242,424: 8f1e")
    assert (again["draws"], again["beacon"], again["nonce"]) == (2, True, "drand 4,242,424: 8f1e")
    # The journal has each draw before its audit; what knows of them: verification, report, the page.
    kinds = [entry.kind for entry in entries_of(trained)]
    assert [kind for kind in kinds if "training" in kind] == 2 * ["training-audit-draw", "training_audit"]
    assert main(["governance", "verify", str(root), "--deep", "--key", str(trained / "key.pem.pub")]) == 0
    assert main(["report", run, "--root", str(root)]) == 0
    newest = max(root.glob("report/*/report.html"), key=lambda path: path.stat().st_mtime)
    assert "1 of 6 stretches, draw 2; a fault in one stretch is found with probability 0.167: equal" in re.sub(
        "<[^>]+>", "", newest.read_text()
    )
    from assay.recomputation.training_audit import explain

    example = re.search(r"```text\n(drawn: .*?)\n```", (ROOT / "docs" / "recompute.md").read_text(), re.DOTALL)[1]
    plain = re.compile(r"[0-9a-f]{16}|(?<=line )\d+|steps \d+ to \d+")
    assert plain.sub("x", explain(found)) == plain.sub("x", example)
    # A forged draw is seen by whoever has the journal.
    entries = entries_of(trained)
    place = next(number for number, entry in enumerate(entries) if entry.kind == "training-audit-draw")
    for name, value, fault in (
        ("nonce", "another", "does not follow from the head and the nonce"),
        ("amount", 1, "another number of stretches"),
        ("head", "0:" + "0" * 64, "does not follow"),
    ):
        forged = copy.deepcopy(entries)
        forged[place].statement["predicate"]["draw"][name] = value
        assert any(fault in line for line in audit_faults(forged, root)), name
    assert audit_faults(entries, root) == []
    assert len(audit_faults([entry for entry in entries if entry.kind != "training-audit-draw"], root)) == 2


def swap_a_row(patch):
    """Step 5 reads a row of another step in place of its first one."""
    rows = RowSampler.rows
    patch.setattr(RowSampler, "rows", lambda order, step: [*rows(order, 9)[:1], *rows(order, step)[1:]]
                  if step == 5 else rows(order, step))  # fmt: skip


def raise_a_rate(patch):
    """Step 7 has a learning rate that is a hundredth higher."""
    rate = loop.rate_factor
    patch.setattr(loop, "rate_factor", lambda step, *more: rate(step, *more) * (1.01 if step == 7 else 1.0))


def alter_weights(patch):
    """The checkpoint of step 2 has weights that differ by a millionth, and the training goes on from them."""
    save = loop._save

    def altered(context, state):
        if state.step == 2:
            nudge(context.engine, 1e-6)
        save(context, state)

    patch.setattr(loop, "_save", altered)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "falsify", "number"), [(11, swap_a_row, 2), (12, raise_a_rate, 3), (13, alter_weights, 0)]
)
def test_a_falsified_training_is_found_in_its_stretch(trained, audit, tmp_path, monkeypatch, seed, falsify, number):
    root, own = tmp_path / "root", ["--set", f"train.seed={seed}", "--set", "train.steps=8"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # two roots grow from one journal
    shutil.copytree(trained / "root", root)
    with pytest.MonkeyPatch.context() as patch:
        falsify(patch)
        assert main(["train", str(trained / "run.toml"), "--root", str(root), *own]) == 0
    found = audit("--share", "1", *own, status=65, root=root)
    results = [one["result"] for one in found["repeated"]]
    assert results == ["falsified" if place == number else "equal" for place in range(4)]
    assert found["verdict"] == "falsified"
    assert 0 < found["repeated"][number]["differences"]["weights"] < 1
    # An audit of a half finds it in half of the draws.
    draws = [drawn(public_value(found["head"], found["training"], str(nonce)), 4, 2) for nonce in range(400)]
    assert abs(sum(number in one for one in draws) / 400 - 0.5) < 0.125  # five standard errors
    keys = ["--key", str(trained / "key.pem.pub")]
    assert main(["governance", "verify", str(root), "--deep", *keys]) == 65


@pytest.mark.slow
def test_other_arithmetic_is_held_to_a_measured_bound(trained, audit, tmp_path, monkeypatch):
    """Trained with two threads and audited with one: other bits, which only a real fault takes over the bound."""
    root, own = tmp_path / "root", ["--set", "train.steps=6", "--set", "train.precision='fp32'"]
    own += ["--set", "engine.threads=2"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(trained / "root", root)
    with pytest.MonkeyPatch.context() as patch:
        rate = loop.rate_factor
        patch.setattr(loop, "rate_factor", lambda step, *more: rate(step, *more) * (1.5 if step == 5 else 1.0))
        assert main(["train", str(trained / "run.toml"), "--root", str(root), *own]) == 0
    settings = repeated_stretch._settings

    def with_one_thread(run, stretch):
        made = settings(run, stretch)
        return replace(made, engine=made.engine.model_copy(update={"threads": 1}))

    monkeypatch.setattr(repeated_stretch, "_settings", with_one_thread)
    found = audit("--share", "1", *own, status=65, root=root)
    assert all(one["other_arithmetic"] == ["threads 2 there, 1 here"] for one in found["repeated"])
    assert [one["result"] == "falsified" for one in found["repeated"]] == [False, False, True]
    for one in found["repeated"]:
        if one["result"] == "within the bound":
            assert 0 < one["differences"]["weights"] <= one["bound"]["weights"] < 1e-2
    last = found["repeated"][-1]
    assert last["differences"]["weights"] > 5 * last["bound"]["weights"]


def test_a_limit_of_the_instructions_is_another_arithmetic(monkeypatch):
    """Else an honest training would count as falsified: neither the processor's name nor torch says so."""
    runs = []
    for limit in ("AVX2", "AVX512_CORE"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        runs.append(SimpleNamespace(run={"execution": {**arithmetic(), "device": "cpu"}, "packages": {}}))
    [found] = other_arithmetic(*runs)
    assert re.fullmatch(r"matrix instructions .*up to AVX2 there, .*up to AVX512_CORE here", found)
    assert other_arithmetic(runs[0], runs[0]) == []


def test_bad_input_is_refused_in_words(trained, audit, tmp_path, monkeypatch):
    assert "above 0 and at most 1" in audit("--share", "0", status=78)["error"]["message"]
    assert "above 0 and at most 1" in audit("--share", "1.5", status=78)["error"]["message"]
    changed = audit("--set", "train.seed=99", status=66)["error"]["message"]
    assert "0 checkpoint(s) of this training are kept" in changed
    assert "give the run's own file" in changed
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = tmp_path / "root"
    shutil.copytree(trained / "root", root)
    [tokens] = root.glob("encode/*/train/*.tokens")
    data = tokens.read_bytes()
    tokens.unlink()
    assert "encode: not made yet" in audit("--share", "0.1", status=66, root=root)["error"]["message"]
    tokens.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert tokens.name in audit("--share", "0.1", status=77, root=root)["error"]["message"]
    tokens.write_bytes(data)
    made = [read_manifest(path) for path in root.glob("checkpoint/*/manifest.json")]
    for one in made:
        if one.config["step"] < 12:
            shutil.rmtree(root / one.folder)
    only = audit("--share", "0.5", status=66, root=root)["error"]["message"]
    assert "1 checkpoint(s) of this training are kept" in only
    assert "--share 1 repeats the whole training" in only
    [last] = root.glob("checkpoint/*/weights/*.safetensors")
    altered = bytearray(last.read_bytes())
    altered[-1] ^= 1
    last.write_bytes(altered)
    assert "is not as it was stated" in audit("--share", "1", status=65, root=root)["error"]["message"]
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:-2]))
    audit("--share", "1", status=77, root=root)

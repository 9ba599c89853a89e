"""`assay audit-training`: honest trainings, three that were falsified, other arithmetic, and bad input."""

import contextlib
import copy
import io
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from assay.cli.main import main
from assay.recomputation import repeated_stretch
from assay.recomputation.repeated_stretch import other_arithmetic
from governance.errors import Preempted, StorageError
from governance.files import make_private_folder
from governance.manifest import read_manifest
from governance.recomputation.audit_draw import drawn, public_value
from governance.recomputation.audit_statement import audit_faults
from governance.signing.dsse import public_key
from governance.signing.journal_lines import read_journal
from pretrain import loop
from pretrain.data.sampler import RowSampler
from pretrain.engine.fragments import nudge
from pretrain.preflight.hardware import arithmetic
from tests.altered_files import flip
from tests.conftest import CONFIG, write_run, write_tales
from tests.pretrain.rank_runs import run_ranks

ROOT = Path(__file__).parents[2]
FIRST = """
[[data.sources]]
type = "jsonl"
name = "{name}"
paths = ["*.jsonl"]
licence = "CC0-1.0"
"""


def run_small(folder, text, **tales):
    """A run of twelve steps that keeps a checkpoint of each second one."""
    write_run(folder, text.replace("every_steps = 4", "every_steps = 2\nkeep_every_steps = 2"))
    shutil.copy(ROOT / "configs" / "policy.toml", folder / "policy.toml")
    for name, seeds in tales.items():
        write_tales(folder / f"{name}.jsonl", seeds)
    assert main(["run", str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run_small(tmp_path_factory.mktemp("audited"), CONFIG, a=range(120))


@pytest.fixture(scope="module")
def trained_on_two_sources(tmp_path_factory):
    first, second = (FIRST.format(name=name) for name in ("tales", "fables"))
    assert first in CONFIG
    text = CONFIG.replace(first, first.replace("*", "a") + second.replace("*", "b"))
    return run_small(tmp_path_factory.mktemp("audited"), text, a=range(60), b=range(60, 120))


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
    assert not (trained / "root-training-audit").exists(), "an empty one would refuse another account"
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
    assert not any(audit_faults(entries, root))
    assert len(list(audit_faults([entry for entry in entries if entry.kind != "training-audit-draw"], root))) == 2


def test_a_repetition_that_another_account_left_is_not_taken(trained, tmp_path, capsys):
    """Whoever may write next to the root reads the draw in the journal, and could leave the drawn checkpoints there."""
    left = trained / "root-training-audit"
    (left / "planted").mkdir(parents=True)
    left.chmod(0o755)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for file in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(StorageError, match="is not a folder of this account alone"):
            make_private_folder(file)
    assert main(["audit-training", str(trained / "run.toml"), "--root", str(trained / "root"), "--share", "0.1"]) == 74
    assert f"{left}: is not a folder of this account alone" in capsys.readouterr().err
    shutil.rmtree(left)


def swap_a_row(patch, at):
    """A step reads a row of another step in place of its first one."""
    rows, other = RowSampler.rows, (at + 3) % 8 + 1
    patch.setattr(RowSampler, "rows", lambda order, step: [*rows(order, other)[:1], *rows(order, step)[1:]]
                  if step == at else rows(order, step))  # fmt: skip


def raise_a_rate(patch, at):
    """A step has a learning rate that is a hundredth higher."""
    rate = loop.rate_factor
    patch.setattr(loop, "rate_factor", lambda step, *more: rate(step, *more) * (1.01 if step == at else 1.0))


def alter_weights(patch, at):
    """A checkpoint has weights that differ by a millionth, and the training goes on from them."""
    save = loop._save

    def altered(context, state):
        if state.step == at:
            nudge(context.engine, 1e-6)
        save(context, state)

    patch.setattr(loop, "_save", altered)


def random_training(chance):
    """Overrides of a training of eight steps, drawn; its ranks; and where it is stopped, in the middle of a step."""
    ranks, precision = chance.choice([1, 2]), chance.choice(["fp32", "bf16"])
    own = {"train.seed": chance.randrange(1000), "train.steps": 8, "train.precision": f"'{precision}'"}
    own["train.global_batch_size"], own["engine.micro_batch_size"] = chance.choice([4, 8]), chance.choice([1, 2])
    own["engine.zero_stage"] = chance.choice([1, 2, 3] if precision == "bf16" else [0, 1, 2, 3])
    own["engine.rank_invariant"] = "true" if ranks == 2 or chance.random() < 0.5 else "false"
    if chance.random() < 0.5:
        own["train.batch_size_ramp"] = f"[{{until_step = {chance.choice([2, 5])}, global_batch_size = 4}}]"
    if chance.random() < 0.5:
        own["train.mixture"] = f"[{{from_step = {chance.choice([2, 4])}, weights = {{tales = 1.0, fables = 2.0}}}}]"
    return (
        [word for name, value in own.items() for word in ("--set", f"{name}={value}")],
        ranks,
        chance.choice([0, 4, 7]),
    )


def train_wrongly(words, falsify, at, stop):
    """Train with a fault at a step, stopped in the middle of another one and started again; for ranks, too."""
    with pytest.MonkeyPatch.context() as patch:
        globals()[falsify](patch, at)
        rate = loop.rate_factor

        def stopped(step, *more):
            if step == stop:
                raise Preempted("in the middle of a step")
            return rate(step, *more)

        if stop:
            with pytest.MonkeyPatch.context() as once:
                once.setattr(loop, "rate_factor", stopped)
                assert main(words) == Preempted.exit_code
        assert main(words) == 0


@pytest.mark.slow
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, (1 << 32) - 1))
@pytest.mark.parametrize("falsify", ["swap_a_row", "raise_a_rate", "alter_weights"])
def test_a_falsified_training_is_found_in_its_stretch(trained_on_two_sources, tmp_path_factory, falsify, seed):
    """Random trainings of one or two ranks: one stretch is falsified, all others are equal to the bit."""
    trained = trained_on_two_sources
    chance, folder = random.Random(f"{falsify} {seed}"), tmp_path_factory.mktemp("falsified")
    (own, ranks, stop), root, run = random_training(chance), folder / "root", str(trained / "run.toml")
    at = chance.choice([2, 4, 6]) if falsify == "alter_weights" else chance.choice(range(1, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))  # two roots grow from one journal
        shutil.copytree(trained / "root", root)
        given = (["train", run, "--root", str(root), *own], falsify, at, stop)
        if ranks == 1:
            train_wrongly(*given)
        else:
            script = f"from tests.assay.test_audit_training import train_wrongly\ntrain_wrongly(*{given!r})"
            well, output = run_ranks(folder / "ranks", ["-c", script], ranks)
            assert well, output[-6000:]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["audit-training", run, "--root", str(root), "--share", "1", *own, "--json"]) == 65, own
        found = json.loads(out.getvalue())
        results = [one["result"] for one in found["repeated"]]
        number = (at - 1) // 2
        assert results == ["falsified" if place == number else "equal" for place in range(4)], (own, ranks, at, stop)
        assert found["verdict"] == "falsified"
        assert found["repeated"][number]["differences"]["weights"] > 0
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
    """Neither the processor's name nor torch shows such a limit; an honest training must not count as falsified."""
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
    flip(last, -1)
    assert "is not as it was stated" in audit("--share", "1", status=65, root=root)["error"]["message"]
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:-2]))
    audit("--share", "1", status=77, root=root)

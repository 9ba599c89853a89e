"""Measurements of a trained run in its report: what it repeats, what it is worth, what its architecture claims."""

import json
import shutil
from pathlib import Path

import pytest

from assay.cli.main import main
from data_pipeline.documents import read_table
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import attest_with, open_journal
from governance.manifest import read_manifest
from governance.stage import commit
from tests.pretrain.read_project import read_project

CONFIG = GovernanceConfig(signing_key="key.pem")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return read_project(tmp_path_factory.mktemp("trained"), packed=True)


def test_the_report_shows_which_sequences_the_last_checkpoint_repeats(trained, tmp_path, capsys):
    """The probe counts copies in the shards, also where rows are packed; a report recomputes from its evidence."""
    shutil.copytree(trained, tmp_path / "copy")
    folder, root = tmp_path / "copy", tmp_path / "copy" / "root"
    words = [str(folder / "run.toml"), "--root", str(root)]
    assert json.loads((root / "report" / "latest.json").read_bytes())["memorisation"] is None
    probe = ["governance", "audit-memorisation", *words, "last"]
    assert main([*probe, "--set", "memorisation.prefix_tokens=33"]) == 78
    assert "= 65 is above train.sequence_length = 64" in capsys.readouterr().err
    short = ["--set", "memorisation.prefix_tokens=4", "--set", "memorisation.continuation_tokens=2"]
    assert main([*probe, *short, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["copies_from"] for row in found["rows"]][:2] == [0, 1]
    assert all(row["lower"] <= row["rate"] <= row["upper"] for row in found["rows"])
    assert (found["epochs"] > 1, found["read_share"]) == (True, 1.0)
    assert main([*probe, *short]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f" 0 {found['rows'][0]['sequences']} " in printed
    assert f"has read 100 % of what the training shards give to predict, {found['epochs']:.2f} epochs" in printed
    assert main(["data", "index", *words]) == 0
    capsys.readouterr()
    assert main([*probe, *short, "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)["verbatim"]
    assert (traced["prefix_tokens"], traced["max_tokens"]) == (4, 60)
    assert [row["characters_from"] for row in traced["rows"]] == [25, 50, 100, 200, 400] * 2
    assert {row["prompts_of"] for row in traced["rows"]} == {"train", "validation"}
    kept = json.loads(next(root.glob("verbatim/*/generations.json")).read_bytes())
    texts = [row["text"] for path in root.glob("redact/*/documents/*") for row in read_table(path).to_pylist()]
    for row in traced["rows"]:
        mine = [one for one in kept if one["split"] == row["prompts_of"]]
        assert row["generations"] == len(mine) > 0
        held = [
            any(one["text"][at : at + row["characters_from"]] in text for text in texts for at in
                range(len(one["text"]) - row["characters_from"] + 1))
            for one in mine
        ]  # fmt: skip
        assert (row["with_passage"], row["lower"] <= row["rate"] <= row["upper"]) == (sum(held), True)
        assert row["characters_lower"] <= row["characters"] <= row["characters_upper"]
    assert main(["report", *words]) == 0
    made = json.loads((root / "report" / "latest.json").read_bytes())
    assert made["verbatim"]["rows"] == traced["rows"]
    assert "Generations that are verbatim in the corpus" in (root / "report" / "latest.html").read_text()
    assert made["memorisation"]["rows"] == found["rows"]
    assert any(entry["path"].startswith("memorisation/") for entry in made["evidence"]["entries"])
    assert "Extraction by number of copies" in (root / "report" / "latest.html").read_text()
    [probed] = [read_manifest(path) for path in root.glob("memorisation/*/manifest.json")]
    foreign = probed.inputs[1].model_copy(
        update={"digest": "f" * 64}
    )  # the same checkpoint on texts that it has not read
    changes = {"key": "f" * 64, "inputs": (probed.inputs[0], foreign), "outputs": (), "stats": {}}
    statement = attest_with(open_journal(Keyring(CONFIG, root.parent), root), Keyring(CONFIG, root.parent), root)
    commit(probed.model_copy(update=changes), root, statement)
    assert main(["report", *words]) == 0
    assert json.loads((root / "report" / "latest.json").read_bytes())["memorisation"]["rows"] == found["rows"]
    assert main(["report", "verify", *words]) == 0
    [path] = root.glob("memorisation/*/sequences.json")
    line = json.loads(path.read_bytes())[0]
    assert main(["data", "trace", str(root / line["shard"]), str(line["offset"])]) == 0
    path.write_text(path.read_text().replace("true", "false").replace("false", "true", 1))
    capsys.readouterr()
    assert main(["report", *words]) == 0
    assert "the report leaves out memorisation" in capsys.readouterr().err
    shard = next(root.glob("encode/*/train/*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main([*probe, "--set", "memorisation.sequences=5"]) == 77


def test_a_kpi_is_planned_tested_and_reported(trained, tmp_path, capsys):
    """The model's energy is part of its cost, and the lineage of the answer reaches the sources."""
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy"
    words = [str(folder / "run.toml"), "--root", str(folder / "root")]
    kpis, data = folder / "kpis.toml", folder / "out.csv"
    kpis.write_text(
        '[experiment]\nname = "trial"\n[[kpi]]\nname = "solved"\nkind = "share"\ncolumn = "solved"\nbaseline = 0.5\n'
        "smallest_effect = 0.2\nvalue = 3.0\n[money]\nprice_per_kwh = 0.4\ncost_per_unit = 0.01\nserved_units = 1000\n"
    )
    rows = (f"{number},{('control', 'treatment')[number % 2]},{int(number % 4 != 0)}" for number in range(300))
    data.write_text("\n".join(["unit,arm,solved", *rows]))
    capsys.readouterr()
    assert main(["governance", "kpi-test", *words, str(kpis), str(data)]) == 66
    assert "assay governance kpi-plan" in capsys.readouterr().err
    assert main(["governance", "kpi-plan", *words, str(kpis)]) == 0
    assert "units (" in capsys.readouterr().out
    assert main(["report", *words]) == 0
    shown = json.loads((folder / "root" / "report" / "latest.json").read_bytes())
    assert shown["kpi"]["test"] is None
    capsys.readouterr()
    assert main(["governance", "kpi-test", *words, str(kpis), str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["decision"], found["money"]["kwh"] > 0) == ("paid", True)
    assert main(["report", *words]) == 0
    shown = json.loads((folder / "root" / "report" / "latest.json").read_bytes())
    assert shown["kpi"]["test"]["money"] == found["money"]
    assert "Did it pay" in (folder / "root" / "report" / "latest.html").read_text()
    data.write_text(data.read_text().replace("1,treatment,1", "1,treatment,0"))
    assert main(["governance", "kpi-test", *words, str(kpis), str(data)]) == 77
    assert "its decision counts: paid" in capsys.readouterr().out
    assert main(["report", *words]) == 0
    shown = json.loads((folder / "root" / "report" / "latest.json").read_bytes())
    assert shown["kpi"]["test"]["decision"] == "paid", "the test that decided, not the newest"
    assert main(["report", "verify", *words]) == 0
    capsys.readouterr()
    assert main(["governance", "trace", found["folder"]]) == 0
    lines = capsys.readouterr().out
    assert all(word in lines for word in ("kpi_plan", "checkpoint", "out.csv", "ingest"))


def test_the_transformer_s_claims_are_tested_behind_the_gate(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy"
    root, small = folder / "root", tmp_path / "small.toml"
    small.write_text(
        '[claims]\narchitectures = ["transformer", "gru"]\nmatching = ["parameters"]\nwidth = 16\nseeds = 2\n'
        "sequence_length = 32\nbatch_rows = 2\nbudgets = [64, 128]\nlearning_rates = [0.01]\nevaluations = 2\n"
        "validation_rows = 2\nrecall = { distances = [4, 8], steps = 2, batch_tokens = 16, rows = 1 }\n"
    )
    words = ["experiment", "claims", str(folder / "run.toml"), "--with", str(small), "--root", str(root)]
    assert main([*words, "--dry-run"]) == 0
    assert "trainings   8 on the run's tokens (2 seeds" in capsys.readouterr().out
    assert not (root / "claim_language").exists()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in found["claims"]] == ["speed", "tokens", "time", "energy", "context", "recall"]
    assert Path(found["report"]).read_text().count("<h1>") == 1
    lines = [json.loads(line) for line in (root / "energy.jsonl").read_text().splitlines()]
    ends = [line["stage"] for line in lines if line["kind"] == "end" and line["stage"].startswith("claim")]
    assert (ends.count("claim_language"), ends.count("claim_recall"), ends.count("claims")) == (8, 4, 1)
    assert main([*words, "--set", "claims.seeds=1"]) == 78
    assert "1 seed(s) give no interval" in capsys.readouterr().err
    assert main([*words, "--set", "claims.budgets=[0]"]) == 78
    manifest = next(root.glob("claim_recall/*/manifest.json"))
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"joules":', '"joules": 1.5, "was":', 1))
    assert main(words) == 65  # its seal
    manifest.write_text(whole)
    for verdict in root.glob("verdicts/*"):
        verdict.unlink()
    assert main(words) in (66, 77)

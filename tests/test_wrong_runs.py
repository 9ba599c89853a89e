"""Mistakes that a user can make in a run's sources, documents and configuration."""

import gzip

import pytest

from assay.cli.main import main


def prepare(project, *words):
    return main(
        ["data", "prepare", str(project / "run.toml"), "--root", str(project / "root"), "--data-workers", "1", *words]
    )


def run(project, *words):
    return main(["run", str(project / "run.toml"), "--root", str(project / "root"), "--data-workers", "1", *words])


def test_no_look_up_makes_anything(project):
    root = ["--root", str(project / "root")]
    for words in (["data", "show"], ["governance", "check"], ["train"], ["report"]):
        assert main([*words, str(project / "run.toml"), *root]) == 66


def test_missing_sources(project):
    assert (
        prepare(project, "--set", 'data.sources=[{type="jsonl",name="x",licence="MIT",paths=["none-*.jsonl"]}]') == 66
    )


def test_bad_records_are_quarantined_and_close_the_gate(project, capsys):
    lines = [b"no json\n", b'{"other": 1}\n', b'{"text": "\xff"}\n', b'{"text": 5}\n']
    (project / "c.jsonl").write_bytes(b"".join(lines))
    whole = gzip.compress((project / "b.jsonl").read_bytes())
    (project / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    words = ["--set", 'data.sources=[{type="jsonl",name="tales",licence="CC0-1.0",paths=["*.jsonl","*.jsonl.gz"]}]']
    assert run(project, *words) == 77
    output = capsys.readouterr().err
    assert "sources.quarantined_share" in output
    assert "sources.torn_files" in output
    assert "c.jsonl#0 not_json" in output
    assert output.count("verdict BLOCK") == 1
    import pyarrow.parquet as pq

    rows = [
        row
        for path in (project / "root").glob("ingest/*/quarantine/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    reasons = {(row["file"], row["position"]): row["reason"] for row in rows}
    assert reasons["c.jsonl", 0] == "not_json"
    assert reasons["c.jsonl", 2] == "not_utf8"
    assert any(reason == "truncated_gzip" for reason in reasons.values())
    assert len(rows) == 5


def test_everything_filtered_out_is_reported_and_can_be_looked_at(project, capsys):
    (project / "a.jsonl").write_text('{"text": "too short"}\n' * 3)
    (project / "b.jsonl").unlink()
    assert run(project) == 78
    output = capsys.readouterr().err
    assert "clean: no document is left of 3 (too_few_words 3)" in output
    assert "assay data show" in output
    assert main(["data", "show", str(project / "run.toml"), "--root", str(project / "root")]) == 0
    assert "too_few_words" in capsys.readouterr().out


def test_a_source_of_which_nothing_is_left_is_named(project, capsys, tales):
    (project / "extra.jsonl").write_text('{"text": "too short"}\n' * 3)
    extra = '{type = "jsonl", name = "extra", licence = "CC0-1.0", paths = ["extra.jsonl"]}'
    tale = '{type = "jsonl", name = "tales", licence = "CC0-1.0", paths = ["a.jsonl"]}'
    words = ["--root", str(project / "root"), "--set", f"data.sources=[{tale}, {extra}]"]
    assert main(["data", "prepare", str(project / "run.toml"), *words]) == 0
    assert "clean: no document of source extra is left of 3 (too_few_words 3)" in capsys.readouterr().err


def test_fewer_tokens_than_a_batch(project, capsys, tales):
    tales(project / "a.jsonl", range(3))
    (project / "b.jsonl").unlink()
    policy = project / "policy.toml"
    policy.write_text(policy.read_text().replace("min = 1000\n", "min = 1\n"))
    words = ("--set", "train.global_batch_size=400", "--set", "data.tokenizer.vocabulary_size=300")
    assert run(project, *words) not in (0, 77)
    assert "400" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", ["train.stepz", "unknown key", "steps"]),
        ('train.steps="many"', ["train.steps", "many"]),
        ("model.num_attention_heads=5", ["hidden_size", "5"]),
        ("engine.zero_stage=0", ["zero_stage", "bf16"]),
        ('governance.policy="nowhere.toml"', ["nowhere.toml", "no such file"]),
    ],
)
def test_a_wrong_configuration_is_reported_with_its_fix(project, override, words, capsys):
    assert run(project, "--set", override) == 78
    output = capsys.readouterr().err
    assert all(word in output for word in words), output
    assert not (project / "root").exists()

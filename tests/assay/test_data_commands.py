"""Output and artifacts of `assay data ...` on a small corpus, and mistakes that a user can make."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import assay
from assay.cli.main import main
from data_pipeline.tokens.megatron import open_indexed
from data_pipeline.tokens.token_shards import TokenShard
from governance.errors import MissingInput
from governance.manifest import read_manifest
from governance.parallel import close_pool
from governance.reports.report import report
from governance.stage import Runtime, read_artifact
from tests.conftest import CONFIG, tale, write_run, write_tales

DOCS = Path(__file__).parents[2] / "docs"
CLASSIFIER = """
[[data.classifiers]]
name = "quality"
paths = ["labelled.jsonl"]
positive = ["good"]
held_out_share = 0.4
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project whose corpus is made, once for this file; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("prepared") / "project"
    folder.mkdir()
    write_run(folder)
    shutil.copy(Path(__file__).parents[2] / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(40))
    extra = ["Too short.", f"{tale(1)}", "Mail \x1b[2Jjane.doe@example.org or 0044 20 7946 0958. " + tale(77)]
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in extra))
    assert (
        main(["data", "prepare", str(folder / "run.toml"), "--root", str(folder / "made"), "--data-workers", "1"]) == 0
    )
    return folder


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def output(capsys, *words):
    """The exit status and what a command printed."""
    status = main([str(word) for word in words])
    return status, capsys.readouterr().out


def only(root, stage):
    [path] = root.glob(f"{stage}/*/manifest.json")
    return read_manifest(path)


def test_prepare_names_every_artifact_and_finds_it_again(prepared, capsys):
    status, out = output(
        capsys, "data", "prepare", prepared / "run.toml", "--root", prepared / "made", "--data-workers", "1"
    )
    assert status == 0
    named, _, table = out.partition("\n\n")
    stages = [line.split()[0] for line in named.splitlines()]
    assert stages == ["ingest", "clean", "dedup", "redact", "tokenizer", "encode"]
    for line in named.splitlines():
        assert only(prepared / "made", line.split()[0]).digest.startswith(line.split()[1])
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in table.splitlines()}
    ingested, encoded = only(prepared / "made", "ingest").stats, only(prepared / "made", "encode").stats
    assert rows["ingest", "(all)"] == [f"{ingested['documents_kept']:,}", f"{ingested['bytes_kept']:,}"]
    for source, tokens in encoded["tokens_by_source"].items():
        assert rows["encode", source][-1] == f"{tokens:,}"
    assert rows["encode", "(all)"][-1] == f"{encoded['train_tokens'] + encoded['validation_tokens']:,}"


def test_show_reports_the_same_of_a_run_and_of_its_last_artifact(prepared, capsys):
    root = prepared / "made"
    status, of_run = output(capsys, "data", "show", prepared / "run.toml", "--root", root)
    assert status == 0
    for artifact in (root / only(root, "encode").folder, root / only(root, "encode").path):
        assert output(capsys, "data", "show", artifact) == (0, of_run)
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in of_run.splitlines() if "(all)" in line}
    for stage in ("ingest", "clean", "dedup", "redact", "encode"):
        stats = only(root, stage).stats
        assert rows[stage, "(all)"][0] == f"{stats['documents_in']:,}"
        assert rows[stage, "(all)"][1] == f"{stats['documents_kept']:,}"
    assert of_run.splitlines()[-1] == f"encode: {only(root, 'encode').digest}"


def test_show_has_reasons_histograms_and_masked_samples(prepared, capsys):
    _, out = output(capsys, "data", "show", prepared / "run.toml", "--root", prepared / "made")
    assert re.search(r"clean +removed +1 +too_few_words", out)
    assert "clean: examples removed for too_few_words" in out
    assert "    Too short." in out
    assert "clean: words (documents; # kept, . removed)" in out
    assert "encode: tokens (documents" in out
    assert "redact: examples of kept documents" in out
    assert "jane.doe" not in out
    assert "7946" not in out
    assert "\x1b" not in out
    bars = re.findall(r"^ +[\d.,e+]+ ([#.]*) +([\d,]+) +([\d,]+)$", out, re.MULTILINE)
    assert bars
    for bar, kept, removed in bars:
        assert ("#" in bar) <= (kept != "0")
        assert bool(bar) == (kept != "0" or removed != "0")


def test_show_of_an_artifact_in_the_middle_ends_there(prepared, capsys):
    root = prepared / "made"
    _, out = output(capsys, "data", "show", root / only(root, "dedup").folder)
    assert out.splitlines()[-1] == f"dedup: {only(root, 'dedup').digest}"
    assert "encode" not in out
    assert [line.split()[0] for line in out.splitlines() if "(all)" in line] == ["ingest", "clean", "dedup"]


def test_show_of_a_run_that_is_half_made_and_of_one_whose_ancestors_are_gone(copy, capsys):
    root = copy / "made"
    shutil.rmtree(root / "clean")
    _, out = output(capsys, "data", "show", root / only(root, "encode").folder)
    assert [line.split()[0] for line in out.splitlines() if "(all)" in line] == ["dedup", "redact", "encode"]
    status, out = output(capsys, "data", "show", copy / "run.toml", "--root", root)
    assert status == 0
    assert out.splitlines()[-1] == f"ingest: {only(root, 'ingest').digest}"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show", "{}/absent.toml"], 66, "absent.toml: no such file"),
        (["show", "{}/run.toml", "--root", "{}/nothing"], 66, "not made yet"),
        (["show", "{}/made"], 66, "manifest.json"),
        (["show", "{}/made/dedup/*", "--set", "x=1"], 78, "--set has no effect"),
        (["trace", "{}/absent.tokens", "0"], 66, "no such file or folder"),
        (["export", "{}/run.toml", "x", "--root", "{}/nothing"], 66, "data prepare"),
        (["train-classifier", "{}/run.toml"], 78, "no [[data.classifiers]]"),
        (["import", "{}/absent", "--root", "{}/r", "--vocabulary-size", "9", "--end-of-document", "0"], 66, "absent"),
        (["import", "{}/x", "--root", "{}/r", "--vocabulary-size", "9", "--end-of-document", "9"], 78, "is not below"),
    ],
)
def test_wrong_words_are_reported(prepared, words, status, said, caplog, capsys):
    words = [word.format(prepared) for word in words]
    words = [str(next(prepared.glob("made/dedup/*"))) if word.endswith("*") else word for word in words]
    assert main(["data", *words]) == status
    assert said in capsys.readouterr().err + caplog.text


def test_a_torn_table_is_named(copy, capsys, caplog):
    root = copy / "made"
    only(root, "clean").files("features", root)[0].write_bytes(b"PAR1")
    assert main(["data", "show", str(root / only(root, "clean").folder)]) == 65
    assert "features/" in capsys.readouterr().err + caplog.text


def test_trace_names_the_document(prepared, capsys):
    root = prepared / "made"
    [path] = only(root, "encode").files("train", root)[:1]
    status, out = output(capsys, "data", "trace", path, "5")
    assert status == 0
    [name] = re.findall(r"^id +(\S+)$", out, re.MULTILINE)
    assert name.startswith("tales/")
    [line] = re.findall(r"^characters .*: '(.*)'$", out, re.MULTILINE)
    assert line in tale(int(name.rpartition("#")[2]))
    assert "ingest" in out
    assert main(["data", "trace", str(path), str(10**9)]) != 0


def test_export_and_import_come_round(prepared, tmp_path, capsys):
    root = prepared / "made"
    status, out = output(capsys, "data", "export", prepared / "run.toml", tmp_path / "new" / "corpus", "--root", root)
    assert status == 0
    train = only(root, "encode").files("train", root)
    names = [line.rpartition("/")[2] for line in out.splitlines()]
    assert names[:2] == ["corpus_train.bin", "corpus_train.idx"]
    tokens = np.concatenate([np.asarray(TokenShard.open(path).tokens) for path in train])
    exported = open_indexed(tmp_path / "new" / "corpus_train")
    assert np.array_equal(np.asarray(exported.tokens), tokens)
    stats = only(root, "tokenizer").stats
    status, out = output(
        capsys, "data", "import", tmp_path / "new" / "corpus_train", "--root", tmp_path / "made",
        "--vocabulary-size", stats["vocabulary_size"], "--end-of-document", stats["end_of_document"],
    )  # fmt: skip
    assert status == 0
    made = only(tmp_path / "made", "megatron")
    assert out.split()[:2] == ["megatron", made.digest[:16]]
    back = [np.asarray(TokenShard.open(path).tokens) for path in made.files("train", tmp_path / "made")]
    assert np.array_equal(np.concatenate(back), tokens)


def test_an_evaluation_on_a_read_only_root_is_refused_before_the_work(prepared, monkeypatch, capsys):
    """The journal could not state its result."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    root = prepared / "made"
    assert main(["evaluate", str(prepared / "run.toml"), "last", "--root", str(root)]) == 74
    assert f"cannot write {root}: the file system is read-only" in capsys.readouterr().err


def test_train_classifier_prints_how_good_it_is(copy, capsys):
    rows = [{"text": tale(n), "label": "good"} for n in range(40)]
    rows += [
        {"text": f"buy cheap pills {n} now click here win {n * 7} free prize" * 5, "label": "bad"} for n in range(40)
    ]
    (copy / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (copy / "run.toml").write_text(CONFIG.replace("[data.tokenizer]", f"{CLASSIFIER}\n[data.tokenizer]", 1))
    words = ["data", "train-classifier", copy / "run.toml", "--root", copy / "made"]
    status, out = output(capsys, *words)
    assert status == 0
    stats = only(copy / "made", "classifier").stats
    assert out.startswith(f"quality: AUC {stats['auc']:.3f} (")
    assert f"{stats['held_out_documents']} documents held out of 80" in out
    assert output(capsys, *words) == (0, out)


def test_two_workers_of_an_array_make_what_one_makes(prepared, tmp_path):
    """Worker 0 runs before worker 1 has begun: it makes everything, and the digests are those of one worker."""
    shutil.copytree(prepared, tmp_path / "p", ignore=shutil.ignore_patterns("made"))
    try:
        for worker in ("0/2", "1/2"):
            words = ["data", "prepare", str(tmp_path / "p" / "run.toml"), "--root", str(tmp_path / "made")]
            assert main([*words, "--data-workers", "1", "--wait", "--task", worker]) == 0
    finally:
        close_pool()
    for stage in ("ingest", "clean", "dedup", "redact", "tokenizer", "encode"):
        assert only(tmp_path / "made", stage).digest == only(prepared / "made", stage).digest


def test_an_earlier_corpus_in_the_same_root_is_no_ancestor(copy, capsys):
    root, earlier = copy / "made", only(copy / "made", "dedup")
    write_tales(copy / "a.jsonl", range(500, 540))  # another file of the same name
    text = CONFIG.replace("[data.tokenizer]", f'[data.dedup]\nagainst = ["{earlier.folder}"]\n\n[data.tokenizer]')
    (copy / "next.toml").write_text(text)
    status, of_run = output(capsys, "data", "prepare", copy / "next.toml", "--root", root, "--data-workers", "1")
    assert status == 0
    tokens = read_artifact(root / of_run.partition("\n\n")[0].splitlines()[-1].split("/made/")[1])
    shard = next(path for path in tokens.files("train", root) if len(TokenShard.open(path).tokens))
    _, out = output(capsys, "data", "trace", shard, 0)
    assert [line.split()[0] for line in out.split("made from\n")[1].splitlines()].count("file") == 1
    _, of_run = output(capsys, "data", "show", copy / "next.toml", "--root", root)
    assert output(capsys, "data", "show", root / tokens.folder) == (0, of_run)


SECRETS = {
    "GB82 WEST 1234 5698 7654 32": "[IBAN]",
    "AKIAIOSFODNN7EXAMPLE": "[AWS_KEY]",
    "81.2.69.142": "[IPV4]",
    "jane [at] example [dot] org": "[EMAIL]",
    "-----BEGIN PRIVATE KEY-----\n"
    + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n" * 30
    + "-----END PRIVATE KEY-----": "[",
}


def test_examples_are_masked_by_the_rules_of_personal_data(project, capsys):
    """Documents that no stage has redacted: those removed by the first filter, and the quarantined ones."""
    texts = [f"Too short: {secret}" for secret in SECRETS]
    rows = [json.dumps({"text": text, "id": f"100000000{n}"}) for n, text in enumerate(texts)]
    rows += [json.dumps({"text": tale(0), "id": "2000000001"}), json.dumps({"text": tale(0), "id": "2000000002"})]
    rows += ['{"text": "broken, by key AKIAIOSFODNN7EXAMPLE']
    (project / "c.jsonl").write_text("\n".join(rows) + "\n")
    text = CONFIG.replace("*.jsonl", "c.jsonl").replace('licence = "CC0-1.0"', 'licence = "CC0-1.0"\nid_field = "id"')
    (project / "run.toml").write_text(text)
    words = [project / "run.toml", "--root", project / "made", "--data-workers", "1"]
    assert output(capsys, "data", "prepare", *words)[0] == 0
    status, shown = output(capsys, "data", "show", *words[:3])
    assert status == 0
    assert output(capsys, "governance", "check", *words)[0] in (0, 77)
    status, out = output(capsys, "report", *words)
    assert status == 0
    page = Path(out.split("report: ")[1].strip()).read_text(encoding="utf-8")
    for secret, placeholder in SECRETS.items():
        for found in (page, shown) if secret in list(SECRETS)[:2] else (page,):
            assert secret not in found
            assert placeholder in found
    assert "MIIEvQ" not in page
    assert "broken, by key [AWS_KEY]" in page
    assert "kept=tales/2000000001" in page  # evidence must remain readable
    assert "kept=tales/2000000001" in shown
    status, out = output(capsys, "report", *words, "--documents")
    assert status == 0
    made = {path.name: path.read_text() for path in Path(out.split("documents: ")[1].strip()).iterdir()}
    assert "model_card.md" not in made  # no training
    assert "| documents | 1 |" in made["datasheet.md"]
    assert not [(name, secret) for name, text in made.items() for secret in SECRETS if secret in text]


def test_a_run_is_opened_as_the_page_and_the_notebook_do(copy, tmp_path, monkeypatch):
    root = copy / "made"
    artifacts = {path.parent.parent.name: read_manifest(path) for path in sorted(root.glob("*/*/manifest.json"))}
    with pytest.raises(MissingInput, match="no report here"):
        assay.open_run(root).report()
    report(artifacts, {}, root, Runtime(root))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    page = (DOCS / "python.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["table"].num_rows == len(names["corpus"]) > 30
    assert names["table"]["text"].to_pylist() == names["corpus"]["text"]
    assert "too_few_words" in set(names["frame"]["reason"])
    assert names["first"][-1] == names["shard"].end_of_document
    cells = json.loads((DOCS / "read_a_run.ipynb").read_text())["cells"]
    seen = {}
    exec("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), seen)
    assert seen["lengths"].sum() == len(seen["shard"].tokens)
    assert {"stage", "documents_kept"} <= set(seen["funnel"])
    run = assay.open_run(root)
    with pytest.raises(MissingInput, match=r"no artifact of 'mix'; there are .*encode"):
        run.files("mix")
    with pytest.raises(MissingInput, match=r"has no 'kept'; it has .*documents.*removed"):
        run.files("clean", "kept")
    with pytest.raises(MissingInput, match="holds no artifact"):
        assay.open_run(tmp_path)


@pytest.mark.parametrize(
    ("more", "refused"), [("", True), ('scope = "training"\n', False), ('unknown = "allow"\n', False)]
)
def test_a_ray_cluster_is_refused_where_energy_that_it_uses_would_count(copy, more, refused, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    policy = copy / "policy.toml"
    policy.write_text(f"{policy.read_text()}\n[energy_budget]\nkilowatt_hours = 9\n{more}")
    words = ["data", "prepare", str(copy / "run.toml"), "--root", str(copy / "new"), "--engine", "ray", "--dry-run"]
    assert main(words) == (78 if refused else 0)
    assert ("--engine ray: the policy's energy_budget" in capsys.readouterr().err) == refused

"""Own filters and readers: the page's examples, keys that follow the source, and every way in which they can fail."""

import json
import mailbox
import random
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.documents import read_documents
from data_pipeline.filters.own_filters import kept_rows
from data_pipeline.prepare import stages
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.own_code import find_code, load
from governance.processes import time_limit
from governance.reports.terminal import show_corpus
from governance.stage import Runtime

PAGE = (Path(__file__).parents[2] / "docs" / "own_code.md").read_text(encoding="utf-8")
RULES, FORMATS = re.findall(r"```python\n(.*?)```", PAGE, re.S)[:2]
WORDS = """
the of and to a in is it that was he for on are with as his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did
"""


def prose(seed):
    draw = random.Random(seed)
    return " ".join(" ".join(draw.sample(WORDS.split(), 12)).capitalize() + "." for _ in range(8))


@pytest.fixture
def project(tmp_path):
    """A package next to the run's file, a mailbox and JSON Lines."""
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "rules.py").write_text(RULES)
    (tmp_path / "mylab" / "formats.py").write_text(FORMATS)
    (tmp_path / "mails").mkdir()
    box = mailbox.mbox(tmp_path / "mails" / "a.mbox")
    for number in range(12):
        box.add(f"Message-ID: {number}\n\n{prose(number)}{'!' * (200 if number % 4 == 3 else 0)}".encode())
    box.close()
    return tmp_path


def config(**values):
    source = {"type": "own", "name": "mails", "licence": "MIT", "reader": "mylab.formats:read_mails",
              "paths": ["mails/*"], "id_field": "id"}  # fmt: skip
    own = [{"name": "loud", "filter": "mylab.rules:not_loud"}]
    return validate({"sources": [source], "filters": own} | values, DataConfig, "run.toml")


def made(project, until, values, root="root", **runtime):
    """The manifests up to a stage."""
    found = {}
    for manifest in stages(values, project, Runtime(project / root, **runtime)):
        found[manifest.stage] = manifest
        if manifest.stage == until:
            break
    return found


def test_the_examples_of_the_page_run_as_shown(project):
    found = made(project, "filter", config())
    root = project / "root"
    assert found["ingest"].stats["documents_kept"] == 12
    assert found["filter"].stats["removed"] == {"own:loud": 3}
    kept = [document.id for document in read_documents(found["filter"].files("documents", root))]
    assert kept == [f"mails/{n}" for n in range(12) if n % 4 != 3]
    assert [item.path for item in found["ingest"].inputs] == [
        "mails/a.mbox", "mails/code/mylab/formats.py", "mails/code/mylab/rules.py",
    ]  # fmt: skip
    two = made(project, "filter", config(), root="two", workers=2)
    assert two["filter"].digest == found["filter"].digest


def test_an_edit_between_two_starts_makes_the_stage_anew(project):
    first = made(project, "filter", config())
    rules = project / "mylab" / "rules.py"
    rules.write_text(RULES.replace("marks, 100", "marks, 0"))
    second = made(project, "filter", config())
    assert second["filter"].key != first["filter"].key
    assert second["filter"].stats["removed"] == {}
    rules.write_text(RULES)
    assert made(project, "filter", config())["filter"].digest == first["filter"].digest


def test_modules_that_the_code_imports_decide_the_key_too(project):
    (project / "limits.py").write_text("import deeper\n\nMARKS = deeper.MARKS\n")
    (project / "deeper.py").write_text("MARKS = 100\n")
    (project / "mylab" / "rules.py").write_text("import limits\n" + RULES.replace("marks, 100", "marks, limits.MARKS"))
    first = made(project, "filter", config())
    assert first["filter"].stats["removed"] == {"own:loud": 3}
    (project / "deeper.py").write_text("MARKS = 0\n")
    second = made(project, "filter", config())
    assert second["filter"].key != first["filter"].key
    assert second["filter"].stats["removed"] == {}
    assert "deeper.py" in dict(find_code("mylab.rules:not_loud", project, "filter").named())


BROKEN = {
    "raise KeyError('x')": r"filter loud \(mylab\.rules:not_loud\), .*, rows 0 to \d+: KeyError: 'x' at rules\.py:2",
    "return [True]": r"it returned 1 value\(s\) for 12 rows",
    "return [None] * batch.num_rows": "it returned None; each value must be True",
    "return 7": "'int' object is not iterable",
    "raise SystemExit(0)": r"SystemExit: 0 at rules\.py:2",
    "\n    while True: pass": "no answer after 0.5 seconds",
}


@pytest.mark.parametrize(("body", "words"), BROKEN.items())
def test_a_filter_that_fails_leaves_no_artifact(project, body, words):
    (project / "mylab" / "rules.py").write_text(f"def not_loud(batch):\n    {body}\n")
    own = [{"name": "loud", "filter": "mylab.rules:not_loud", "seconds": 0.5}]
    with pytest.raises(ConfigError, match=words):
        made(project, "filter", config(filters=own))
    assert not list(project.glob("root/filter/*/manifest.json"))
    assert not list(project.glob("root/filter/*/documents/*.parquet"))


def test_what_a_reader_raises_is_quarantined(project):
    formats = project / "mylab" / "formats.py"
    formats.write_text(
        "def read_mails(path):\n    yield {'text': 'first', 'id': 'a'}\n    yield 3\n    yield {'text': 1, 'id': 'b'}\n"
        "    yield {'text': 'last', 'id': 'c'}\n    raise OSError('lost')\n"
    )
    stats = made(project, "ingest", config())["ingest"].stats
    faults = {"quarantine:not_an_object": 1, "quarantine:text_not_string": 1, "quarantine:reader_failed": 1}
    assert (stats["documents_kept"], stats["removed"], stats["torn_files"]) == (2, faults, 1)
    formats.write_text(
        "def read_mails(path):\n    yield {'text': 'a', 'id': 'a'}\n    raise ValueError(f'{path} is torn')\n"
    )
    found = made(project, "ingest", config())["ingest"]
    [table] = [pq.read_table(file) for file in found.files("quarantine", project / "root")]
    assert table["sample"].to_pylist() == ["ValueError: a.mbox is torn at formats.py:3"], "no path of this machine"
    assert "a.mbox#1\n    ValueError: a.mbox is torn at formats.py:3" in show_corpus([found], project / "root")
    formats.write_text("def read_mails(path):\n    yield {'text': 'a', 'id': 'a'}\n    raise SystemExit(0)\n")
    assert "SystemExit: 0 at formats.py:3" in show_corpus(
        [made(project, "ingest", config())["ingest"]], project / "root"
    )
    for one in ("{'text': 'first', 'id': 'a'}", "'first'"):  # its keys or characters are not documents
        formats.write_text(f"def read_mails(path):\n    return {one}\n")
        with pytest.raises(ConfigError, match=r"no record became a document of 1 .*reader_failed 1"):
            made(project, "ingest", config())


FAILED = {
    "while True: pass": r"a\.mbox, record 1: TimeoutError: no answer after 0\.3 seconds.*raise the source's `seconds`",
    "raise MemoryError": r"a\.mbox, record 1: MemoryError",
    "open('/no/such/file')": r"a\.mbox, record 1: FileNotFoundError",
}


@pytest.mark.parametrize(("body", "words"), FAILED.items())
def test_a_failure_of_the_machine_ends_the_stage(project, body, words):
    text = f"def read_mails(path):\n    yield {{'text': 'first', 'id': 'a'}}\n    {body}\n"
    (project / "mylab" / "formats.py").write_text(text)
    source = config().sources[0].model_copy(update={"seconds": 0.3})
    with pytest.raises(ConfigError, match=words):
        made(project, "ingest", config(sources=[source.model_dump()]))
    assert not list(project.glob("root/ingest/*/manifest.json"))


WRONG = {
    "mylab.rules:loud": (ConfigError, "has no function 'loud'; it has: not_loud"),
    "mylab.nothing:f": (MissingInput, "no module mylab.nothing in"),
    "broken:f": (ConfigError, "cannot be imported .SyntaxError"),
    "json:f": (ConfigError, "the name json is taken by"),
}


@pytest.mark.parametrize(("dotted", "outcome"), WRONG.items())
def test_wrong_code_is_reported_before_the_corpus_is_read(project, dotted, outcome):
    (project / "broken.py").write_text("def f(:\n")
    (project / "json.py").write_text("def f(): pass\n")
    with pytest.raises(outcome[0], match=outcome[1]):
        made(project, "ingest", config(filters=[{"name": "loud", "filter": dotted}]))
    assert not (project / "root" / "ingest").exists()


def test_a_change_while_a_stage_runs_is_refused(project):
    code = find_code("mylab.rules:not_loud", project, "filter")
    digest = code.digest
    assert load(code, digest)
    (project / "mylab" / "helpers.py").write_text("x = 1\n")
    code = find_code("mylab.rules:not_loud", project, "filter")
    with pytest.raises(ConfigError, match="changed while the stage ran"):
        load(code, digest)


def test_an_installed_function_and_any_boolean_answer(project):
    code = find_code("textwrap:dedent", project, "filter")
    assert code.files[0].name == "textwrap.py"
    assert load(code)(" a") == "a"
    batch = pa.record_batch({"text": ["a", "b"]})
    assert kept_rows(lambda batch: pa.chunked_array([[True], [False]]), batch, 9) == [True, False]
    assert kept_rows(lambda batch: (number for number in (0, 1)), batch, 9) == [False, True]
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"), time_limit(0.05):
        time.sleep(2)


def test_sources_alone_make_a_corpus(tmp_path):
    """With no other section and no model, the defaults lead to token shards."""
    rows = [{"text": prose(number)} for number in range(40)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"sources": [{"type": "jsonl", "name": "mine", "licence": "MIT", "paths": ["docs.jsonl"]}]}
    found = made(tmp_path, "", validate(values, DataConfig, "run.toml"))
    assert list(found) == ["ingest", "clean", "dedup", "redact", "tokenizer", "encode"]
    assert found["encode"].stats["documents_kept"] > 0

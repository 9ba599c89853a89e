"""Rows that are source files: the documents of a source tree, in each format, with lists, faults and refusals."""

import json

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.code.languages import known_language
from data_pipeline.code.licences import UNKNOWN, normalised
from data_pipeline.code.opt_out_lists import plain_path
from data_pipeline.code.select_code import select_code
from data_pipeline.code.source_rows import licence_of_value
from data_pipeline.config import DataConfig
from data_pipeline.documents import CODE_LANGUAGE, read_documents, read_rows
from data_pipeline.filters.clean import clean
from data_pipeline.ingest import ingest
from governance.config import validate
from governance.errors import ConfigError
from governance.stage import Runtime

CODE = "def area(width, height):\n    return width * height\n"
FILES = {
    "main.py": CODE,
    "vendored/y.c": "// SPDX-License-Identifier: Zlib\nint y;\n",
    "gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\n" + CODE,
    "min.js": "a=1;" * 300,
    "secret/a.py": CODE + "# hidden\n",
    "notes.unknown": "words",
    "LICENSE": "MIT License",
    "blob.py": "x = '\0'\n",
    "empty.py": "",
}
PASSED = {"licence_file": 1, "binary_file": 1, "empty_file": 1, "no_programming_language": 1}
STACK = {
    "text_field": "content",
    "licence_field": "max_stars_repo_licenses",
    "id_field": "hexsha",
    "columns": ["max_stars_count"],
    "code": {
        "path_field": "max_stars_repo_path",
        "repository_field": "max_stars_repo_name",
        "allow_licences": ["MIT", "Zlib"],
    },
}


def stack_rows(licences):
    return [
        {"hexsha": f"{number:04d}", "content": text, "max_stars_repo_path": path, "max_stars_repo_name": "ann/tools",
         "max_stars_repo_licenses": licences, "max_stars_count": number}
        for number, (path, text) in enumerate(FILES.items())
    ]  # fmt: skip


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".orc":
        orc.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)


def judged(folder, source, root):
    """Documents after `code`, what it removed, and the manifest of `ingest`."""
    (folder / "opt.txt").write_text("ann/tools/secret\n", "utf-8")
    data = {
        "sources": [{"name": "stack", "licence": "NOASSERTION"} | source],
        "code": {"opt_out": ["opt.txt"]},
        "clean": {"refuse_licences": []},
    }
    config = validate(data, DataConfig, "run.toml")
    runtime = Runtime(folder / root)
    made = ingest(config.sources, config.ingest, folder, runtime)
    cleaned = clean(made, config.clean, runtime)
    found = select_code(cleaned, config.code, config.sources, runtime, folder)
    removed = {row["text"]: row["reason"] for path in found.files("removed", runtime.root) for row in read_rows(path)}
    faults = [row for path in made.files("quarantine", runtime.root) for row in read_rows(path)]
    return [*read_documents(found.files("documents", runtime.root))], removed, faults, made


def facts(document):
    columns = json.loads(document.columns)
    return document.text, document.language, document.licence, columns["repository"], columns["path"], columns[
        "programming_language"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The files in a tree whose licence file says what the rows' licence says."""
    folder = tmp_path_factory.mktemp("tree")
    repository = folder / "repos" / "ann" / "tools"
    for name, text in FILES.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (repository / "LICENSE").write_text("# SPDX-License-Identifier: MIT\n", "utf-8")
    source = {"type": "code", "paths": ["repos/**/*"], "repository_by_path": "^(?P<repository>[^/]+/[^/]+)/",
              "allow_licences": ["MIT", "Zlib"]}  # fmt: skip
    return judged(folder, source, "root")[:2]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow", "orc", "hub"])
def test_rows_go_through_the_stage_as_the_files_of_a_tree(tmp_path, tree, kind):
    by_tree, gone_of_tree = tree
    ending = "parquet" if kind == "hub" else kind
    write(tmp_path / f"rows.{ending}", stack_rows(["mit"]))
    where = {"dataset": "./rows.parquet"} if kind == "hub" else {"paths": [f"rows.{ending}"]}
    by_rows, gone, faults, made = judged(tmp_path, STACK | {"type": kind} | where, "rows")
    assert sorted(map(facts, by_rows)) == sorted(map(facts, by_tree)) != []
    assert {document.language for document in by_rows} == {CODE_LANGUAGE}
    assert gone == gone_of_tree
    assert set(gone.values()) == {"licence_refused", "minified", "path_opted_out"}
    assert (faults, made.stats["passed_over"]) == ([], PASSED)
    assert len(FILES) == made.stats["documents_kept"] + sum(PASSED.values())
    columns = {json.loads(document.columns)["path"]: json.loads(document.columns) for document in by_rows}
    assert columns["main.py"]["licence_from"] == "max_stars_repo_licenses"
    assert columns["main.py"]["max_stars_count"] == 0
    assert columns["vendored/y.c"]["licence_from"] == "header"
    assert set(columns["main.py"]) == {
        "max_stars_count", "repository", "path", "programming_language", "licence_from",
    }  # fmt: skip


def test_rows_without_path_or_repository_are_faults_and_a_row_may_name_its_language(tmp_path):
    rows = [
        {"text": CODE, "path": None, "repo": "a/b", "lang": "Python", "licence": None},
        {"text": CODE, "path": "x.py", "repo": "", "lang": "Python", "licence": None},
        {"text": CODE, "path": "x.py", "repo": 3, "lang": "Python", "licence": None},
        {"text": CODE, "path": "x.py", "repo": " / ", "lang": "Python", "licence": None},
        {"text": CODE, "path": "x.py", "repo": "ann/../tools", "lang": "Python", "licence": None},
        {"text": CODE, "path": "a/../../x.py", "repo": "a/b", "lang": "Python", "licence": None},
        {"text": "\ufeffrun", "path": "/bin/x.unknown", "repo": "a/b", "lang": "sieve", "licence": "MIT OR Zlib"},
        {"text": "run", "path": "y.unknown", "repo": "a/b", "lang": "Klingon", "licence": None},
        {"text": "run", "path": "x.unknown", "repo": "a/b", "lang": None, "licence": []},
        {"text": CODE, "path": "y.py", "repo": "a/b", "lang": None, "licence": {"name": "MIT"}},
        {"text": CODE, "path": "z.py", "repo": "a/b", "lang": None, "licence": None},
        {"text": CODE, "path": "z.py", "repo": "a/b", "lang": None, "license": "GPL-3.0-only"},
    ]
    write(tmp_path / "rows.jsonl", rows)
    source = {
        "type": "jsonl",
        "paths": ["rows.jsonl"],
        "licence_field": "licence",
        "code": {"path_field": "path", "repository_field": "repo", "programming_language_field": "lang"},
    }
    documents, _, faults, made = judged(tmp_path, source, "root")
    assert [fault["reason"] for fault in faults] == ["no_path", *["no_repository"] * 4, "no_path", "no_licence_field"]
    assert [facts(document)[:1] + facts(document)[2:] for document in documents] == [
        ("run", "MIT OR Zlib", "a/b", "bin/x.unknown", "Sieve"),
        (CODE, UNKNOWN, "a/b", "y.py", "Python"),
        (CODE, "NOASSERTION", "a/b", "z.py", "Python"),
    ]
    assert made.stats["passed_over"] == {"no_programming_language": 2}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc", "csv"])
def test_rows_without_the_named_licence_are_faults_in_each_format(tmp_path, kind):
    rows = [{"text": CODE, "path": "z.py", "license": "GPL-3.0-only"}]
    if kind == "csv":
        (tmp_path / "rows.csv").write_text("text,path,license\nx = 1,z.py,GPL-3.0-only\n", "utf-8")
    else:
        write(tmp_path / f"rows.{kind}", rows)
    source = {"type": kind, "paths": [f"rows.{kind}"], "licence_field": "licence", "code": {"path_field": "path"}}
    documents, _, faults, _ = judged(tmp_path, source, "root")
    assert (documents, [fault["reason"] for fault in faults]) == ([], ["no_licence_field"])


REPOSITORIES = ["ann/tools", "/ann/tools/", " Ann/Tools ", "ann\\tools", "https://github.com/ann/tools",
                "ann/tools.git", "http://user@www.github.com/ann/tools.git/", "git@github.com:ann/tools.git",
                "git://github.com/ann/tools",
                "ssh://git@gitlab.com/ann/tools.git", "git+https://github.com/ann/tools.git#main", "./ann//tools",
                "https://github.com/ann/tools/tree/main", "https://github.com/ann/to%6Fls?tab=readme"]  # fmt: skip
PATHS = ["secret/a.py", "/secret/a.py", "./secret/a.py", "secret\\a.py", ".\\secret\\.\\a.py", "secret//./a.py ",
         "SECRET/a.py"]  # fmt: skip


def rows_of_code(folder, rows, **code):
    write(folder / "rows.jsonl", rows)
    named = {"path_field": "path", "repository_field": "repo"} | code
    return judged(folder, {"type": "jsonl", "paths": ["rows.jsonl"], "licence_field": "licence", "code": named}, "root")


def test_an_opt_out_list_finds_rows_however_they_spell_repository_and_path(tmp_path):
    places = [(one, PATHS[0]) for one in REPOSITORIES] + [(REPOSITORIES[0], one) for one in PATHS]
    texts = [f"{CODE}# {number}\n" for number in range(len(places))]
    rows = [
        {"text": text, "repo": repository, "path": path, "licence": None}
        for text, (repository, path) in zip(texts, places, strict=True)
    ]
    documents, removed, faults, _ = rows_of_code(tmp_path, rows)
    assert removed == dict.fromkeys(texts, "path_opted_out")
    assert (documents, faults) == ([], [])


@given(st.text("aZ.\\/ ", max_size=20))
def test_a_plain_path_has_only_names(value):
    found = plain_path(value)
    assert plain_path(found) == found
    assert found == "" or not {"", ".", ".."} & set(found.split("/"))


@given(st.lists(st.sampled_from(["MIT", "mit", "Apache-2.0", "GPL-2.0", "MIT OR Zlib", " ", "Foo"]), max_size=4))
def test_a_list_of_licences_counts_whole_in_any_order(stated):
    found = licence_of_value(stated)
    named = {normalised(one) for one in stated if one.strip()}
    in_csv = json.dumps(stated), str(stated), " ".join(["[", *map(repr, stated), "]"])
    assert {found, licence_of_value(stated[::-1]), *map(licence_of_value, in_csv)} == {found}
    assert (found == UNKNOWN) == (UNKNOWN in named)
    assert (found == "") == (not named)
    assert found in ("", UNKNOWN) or normalised(found) == found
    assert found == UNKNOWN or all(part in found for one in named for part in one.split(" OR "))


def test_other_values_state_no_known_licence():
    assert [licence_of_value(value) for value in (None, "", [], 3, [3], "[", "MIT or zlib", "[3]", "[None]")] == [
        "", "", "", UNKNOWN, UNKNOWN, UNKNOWN, "MIT OR Zlib", UNKNOWN, UNKNOWN,
    ]  # fmt: skip


@pytest.mark.parametrize("value", [False, 0, 0.0, {}, "[" * 100_000, "['MIT'" * 20_000, "[" + "'MIT', " * 20_000])
def test_an_empty_or_broken_value_of_another_type_is_unknown(value):
    assert licence_of_value(value) == UNKNOWN


@pytest.mark.parametrize(
    ("name", "language"),
    [("python", "Python"), ("C-Sharp", "C#"), ("cpp", "C++"), ("Shell", "Bash"), ("r", "R"), ("S", "R"),
     ("verilog", "Verilog"), ("Emacs Lisp", "EmacsLisp"), ("Dockerfile", "Docker"), ("text", ""), ("", ""),
     ("Klingon", "")],
)  # fmt: skip
def test_a_named_language_is_spelt_as_that_of_a_file(name, language):
    assert known_language(name) == language


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"code": {}}, "path_field"),
        ({"language_field": "lang"}, "language_field is not for rows of source code"),
        ({"decode_entities": True}, "decode_entities is not for rows of source code"),
        ({"columns": ["path"]}, "columns names 'path'"),
        ({"code": {"path_field": "path", "allow_licences": ["GPL"]}}, "allow_licences"),
    ],
)
def test_settings_that_contradict_rows_of_code_are_refused(values, words):
    source = {"type": "jsonl", "name": "s", "licence": "MIT", "paths": ["x"], "code": {"path_field": "path"}} | values
    with pytest.raises(ConfigError, match=words):
        validate({"sources": [source]}, DataConfig, "run.toml")

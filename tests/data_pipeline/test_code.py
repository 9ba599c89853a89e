"""Source code: languages, licences, trees and archives, opt-out lists and the stage that removes files."""

import importlib.metadata
import io
import json
import os
import random
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.takedown import find_documents
from data_pipeline.code import source_trees
from data_pipeline.code.languages import known_language, programming_language
from data_pipeline.code.licences import (
    LICENCE_FILE_BYTES,
    UNKNOWN,
    licence_of_file,
    licence_of_header,
    listed_licences,
    normalised,
)
from data_pipeline.code.opt_out_lists import opted_out, read_opt_outs
from data_pipeline.code.select_code import select_code
from data_pipeline.config import DataConfig
from data_pipeline.dedup.dedup import dedup
from data_pipeline.documents import CODE_LANGUAGE, read_documents, read_rows
from data_pipeline.filters.clean import clean
from data_pipeline.ingest import ingest
from data_pipeline.pii.redact import redact
from data_pipeline.prepare import stage_names
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.gate.licence_choices import permits
from governance.stage import Runtime
from tests.data_pipeline.test_more_formats import Failing


def licence_text(package, name):
    """The text of an installed package's licence file."""
    files = importlib.metadata.files(package) or []
    return next(file.locate() for file in files if file.name == name).read_text("utf-8")


MIT = licence_text("pytest", "LICENSE")
BSD = licence_text("packaging", "LICENSE.BSD")
APACHE = licence_text("huggingface_hub", "LICENSE")


# --- Languages


@pytest.mark.parametrize(
    ("file", "text", "language"),
    [
        ("a/b.py", "", "Python"),
        ("run", "#!/usr/bin/env -S python3.11 -u\n", "Python"),
        ("run", "#!/bin/dash\n", "Bash"),
        ("run", "echo", ""),
        ("notes.txt", "plain", ""),
        ("Makefile", "all:", "Makefile"),
        ("x.tar.PY", "", "Python"),
        ("analysis.R", "x <- 1", "R"),
        ("x.h", "#ifndef X_H\nint f(void);\n", "C"),
        ("x.h", "namespace a {\nclass B : public C {};\n}\n", "C++"),
        ("x.h", "#import <Foundation/Foundation.h>\n@interface A\n@end\n", "Objective-C"),
        ("x.m", "@implementation A\n@end\n", "Objective-C"),
        ("x.m", "function y = f(x)\n% doubles\ny = 2 * x;\nend\n", "Matlab"),
        ("x.pl", "use strict;\nmy $x = 1;\n", "Perl"),
        ("x.pl", ":- module(a, [b/1]).\nb(X) :- c(X).\n", "Prolog"),
        ("x.r", "x <- 1\n", "R"),
        ("x.r", "REBOL [title: {a}]\n", "REBOL"),
        ("go.mod", "module example.org/a\n", ""),
        ("Dockerfile.dev", "FROM a\n", "Docker"),
        ("web.Dockerfile", "FROM a\n", "Docker"),
        ("Containerfile", "FROM a\n", "Docker"),
        ("Dockerfile.md", "# A\n", "Markdown"),
        ("a/App.svelte", "<script>\n", "Svelte"),
        ("de.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n', "XML"),
        ("x.ts", "let a = <T>b;\n", "TypeScript"),
        ("x.cls", "% a class\n\\NeedsTeXFormat{LaTeX2e}\n", "TeX"),
        ("x.cls", "VERSION 1.0 CLASS\nBEGIN\n", "VB.net"),
        ("x.cls", "USING a.*.\nCLASS b:\nEND CLASS.\n", "OpenEdge ABL"),
        ("x.cls", "public class A { }\n", ""),
        ("x.inc", "mov ax, bx\n", ""),
        ("x.inc", "<?php\n", "PHP"),
        ("x.fs", "#version 330\nvoid main() {}\n", "GLSL"),
        ("x.cl", "__kernel void f(__global int *a) {}\n", "C"),
        ("x.bas", 'Attribute VB_Name = "A"\n', "VB.net"),
    ],
)
def test_the_language_is_that_of_name_first_line_or_content(file, text, language):
    assert programming_language(file, text) == language


def test_a_hostile_file_costs_no_more_than_its_length():
    """In quadratic time each third takes more than the bound, some of them hours."""
    begun = time.process_time()
    for _ in range(4):
        assert programming_language("x.h", "\n" * 20_000) == "C"
        assert programming_language("x.m", "\n" * 20_000) == "Matlab"
    assert licence_of_file(b"SPDX: MIT" + b"-" * 200_000) == UNKNOWN
    assert licence_of_file(f"{MIT}\nSPDX-License-Identifier: MIT{chr(39) * 200_000}x\n".encode()) == UNKNOWN
    assert time.process_time() - begun < 20


@given(st.text(max_size=200), st.sampled_from(["x.h", "x.m", "x.pl", "x.v", "x.inc", "x.cl", "x.s", "x", "x.g"]))
@settings(max_examples=60)
def test_any_text_has_one_language_or_none(text, file):
    found = programming_language(file, text)
    assert known_language(found) == found


# --- Licences


def commented(text, mark="# "):
    return "".join(f"{mark}{line}\n" for line in text.splitlines())


NOTICE = APACHE[APACHE.index('Licensed under the Apache License, Version 2.0 (the "License")') :]

GPL = """This program is free software: you can redistribute it and/or modify it under the terms of the GNU General
Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
later version.
"""
CODE = "def area(width, height):\n    return width * height\n"
IN_CODE = 'HEADER = "# SPDX-License-Identifier: MIT"\n'


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("// SPDX-License-Identifier: mit or apache-2.0\n", "MIT OR Apache-2.0"),
        ("/* SPDX-License-Identifier: GPL-2.0+ WITH Classpath-exception-2.0 */\n",
         "GPL-2.0-or-later WITH Classpath-exception-2.0"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: Zlib\n", "MIT AND Zlib"),
        ("<!-- SPDX-License-Identifier: MIT -->\n", "MIT"),
        ("(* SPDX-License-Identifier: (MIT OR Zlib) *)\nlet a = 1\n", "MIT OR Zlib"),
        ("{- SPDX-License-Identifier: MIT -}\nmodule A where\n", "MIT"),
        ("// Copyright (c) A House. All rights reserved.\n// Licensed under the MIT License. See License.txt in the"
         " project root.\n", "MIT"),
        ("// Licensed to the A.B Foundation under one or more agreements.\n// The A.B Foundation licenses this file to"
         " you under the MIT license.\n// See the LICENSE file for more information.\n", "MIT"),
        ("# Licensed under the MIT License, except for the tables.\n", UNKNOWN),
        ("# Licensed under the MIT License or the GPL.\n", UNKNOWN),
        ("# SPDX-License-Identifier: LicenseRef-Mine\n", "LicenseRef-Mine"),
        ("# SPDX-License-Identifier: Not-A-Licence\n", UNKNOWN),
        ("# SPDX-License-Identifier: MIT AND (\n", UNKNOWN),
        ("# SPDX-License-Identifier:\n", UNKNOWN),
        (commented(NOTICE) + "import os\n", "Apache-2.0"),
        ("#!/bin/sh\n" + commented(MIT), "MIT"),
        ("#ifndef X\n#define X\n/*\n" + commented(BSD, " * ") + " */\n", "BSD-2-Clause"),
        (commented(NOTICE + "\nAs a special exception, you may link this with anything.\n"), UNKNOWN),
        (commented(NOTICE + "\nAlternatively, use it under the terms of the GPL.\n"), UNKNOWN),
        ("# Proprietary and confidential.\n", UNKNOWN),
        ("// Use of this source code is governed by a license found in the LICENSE file.\n", ""),
        ("# A helper for dates.\nimport os  # licensed\n", ""),
        (commented(GPL) + IN_CODE, UNKNOWN),
        (commented(MIT) + IN_CODE, "MIT"),
        (commented(MIT, "// ") + "int a; /* SPDX-License-Identifier: GPL-3.0-only */\n", UNKNOWN),
        (commented(MIT, "// ") + "int a; /* SPDX-License-Identifier: MIT */\n", "MIT"),
        (commented(MIT, "// ") + "int a; /*\n" + GPL + "*/\nint b;\n", UNKNOWN),
        (commented(MIT) + "x = 1  # Licensed under the GPL.\n", UNKNOWN),
        (commented(MIT) + "a = 1\n" * 50_000 + "# SPDX-License-Identifier: GPL-2.0-only\n", UNKNOWN),
        (commented(MIT) + "\n" * (LICENCE_FILE_BYTES - 300) + commented(GPL), UNKNOWN),
        (commented(MIT) + "a = 1\n" * 50_000, "MIT"),
        ("a = 1\n" * 50_000 + commented(GPL), UNKNOWN),
        ("# A helper.\n" + IN_CODE, UNKNOWN),
        (commented(NOTICE) + CODE + commented(MIT), UNKNOWN),
        (commented(MIT) + CODE + commented(MIT), "MIT"),
        ("# A helper.\n" + CODE + commented(GPL), UNKNOWN),
        (commented(MIT) + CODE + "# This part is released under the terms of another licence.\n", UNKNOWN),
        (commented(MIT) + f"TEXT = {NOTICE!r}\n", "MIT"),
        ("# SPDX-License-Identifier: MIT\n" + CODE + "# SPDX-License-Identifier: Zlib\n", UNKNOWN),
        (commented(BSD[: BSD.index("THIS SOFTWARE")] + "THIS SOFTWARE IS PROVIDED ``AS IS'' WITHOUT ANY WARRANTY."),
         UNKNOWN),
        ('" Vim "syntax" file\n"\n" SPDX-License-Identifier: MIT\nset nocompatible\n', "MIT"),
        ("{ A unit }\n{$mode objfpc}\n{\n  SPDX-License-Identifier: (MIT OR Zlib)\n}\nunit a;\n", "MIT OR Zlib"),
        ("(*\n  SPDX-License-Identifier: MIT\n*)\nunit a;\n", "MIT"),
        ('{"a": "SPDX-License-Identifier: MIT"}\n', UNKNOWN),
        ("# SPDX-License-Identifier: MIT\n" + commented(GPL), UNKNOWN),
        ("# SPDX-License-Identifier: GPL-3.0-or-later WITH GCC-exception-3.1\n" + commented(GPL),
         "GPL-3.0-or-later WITH GCC-exception-3.1"),
        ("# SPDX-License-Identifier: MIT OR Apache-2.0\n" + commented(NOTICE), "MIT OR Apache-2.0"),
        ("# SPDX-License-Identifier: ()\n", UNKNOWN),
        (f"# SPDX-License-Identifier: {'(MIT AND ' * 400}MIT{')' * 400}\n", UNKNOWN),
        (f"# SPDX-License-Identifier: {'(MIT AND ' * 60}MIT{')' * 60}\n", UNKNOWN),
        ("", ""),
    ],
)  # fmt: skip
def test_a_header_states_its_licence(text, licence):
    assert licence_of_header(text) == licence


def test_a_licence_file_is_known_only_if_nothing_else_is_in_it():
    assert licence_of_file(MIT.encode()) == "MIT"
    assert licence_of_file(f"{BSD}\n\n{MIT}".encode()) == "BSD-2-Clause AND MIT"
    assert licence_of_file(b"SPDX-License-Identifier: Zlib\n") == "Zlib"
    assert licence_of_file(f"{MIT}\n\nSPDX-License-Identifier: Zlib\n".encode()) == "Zlib AND MIT"
    for other in (
        MIT + "\nCommercial use is not permitted.\n",
        MIT[: len(MIT) // 2],
        "All rights reserved.",
        f"Choose one of these licences.\n{BSD}\n\n{MIT}",
        MIT + "\0",
        MIT + " " * LICENCE_FILE_BYTES,
        "",
    ):
        assert licence_of_file(other.encode()) == UNKNOWN


@given(st.text(alphabet="SPDX-License-Identifier: MITandorwith()#/*\n'\"", max_size=300))
def test_any_header_has_an_answer_that_can_be_parsed_again(text):
    found = licence_of_header(text)
    assert found in ("", UNKNOWN) or normalised(found) == found


@given(st.lists(st.sampled_from(["MIT", "(", ")", " AND ", " OR ", " WITH ", "+", " ", ":", "GPL-2.0-only",
                                 "Classpath-exception-2.0", "LicenseRef-x"]), max_size=12))  # fmt: skip
@settings(max_examples=300)
def test_any_expression_has_an_answer(parts):
    found = normalised("".join(parts))
    assert found == UNKNOWN or normalised(found) == found
    assert isinstance(permits("".join(parts), ("MIT",), ()), bool)


@pytest.mark.parametrize(
    ("expression", "allowed", "denied", "stays"),
    [
        ("MIT", (), (), True),
        ("MIT OR GPL-3.0-only", ("MIT",), (), True),
        ("MIT AND GPL-3.0-only", ("MIT",), (), False),
        ("MIT OR GPL-3.0-only", (), ("GPL-3.0-only",), True),
        ("MIT AND GPL-3.0-only", (), ("GPL-3.0-only",), False),
        ("(MIT OR Zlib) AND ISC", ("MIT", "ISC"), (), True),
        ("GPL-2.0-only WITH Linux-syscall-note", ("GPL-2.0-only",), (), True),
        ("GPL-2.0-only WITH Linux-syscall-note", (), ("GPL-2.0-only",), False),
        (UNKNOWN, ("MIT",), (), False),
        (UNKNOWN, ("MIT", UNKNOWN), (), True),
        (UNKNOWN, (), ("GPL-3.0-only",), True),
    ],
)
def test_an_expression_passes_if_it_can_be_met_by_allowed_licences(expression, allowed, denied, stays):
    assert permits(expression, allowed, denied) is stays


def test_entries_of_licence_lists_are_spelt_as_the_list_does_or_refused():
    names = ("GPL-3.0", "gpl-2.0+", "mit", UNKNOWN, "LicenseRef-Mine", "GPL-2.0-only with Classpath-exception-2.0")
    assert listed_licences(names) == (
        "GPL-3.0-only", "GPL-2.0-or-later", "MIT", UNKNOWN, "LicenseRef-Mine",
        "GPL-2.0-only WITH Classpath-exception-2.0",
    )  # fmt: skip
    for other in ("GPL-3", "GPL", "Foo", "MIT OR Zlib", "Classpath-exception-2.0", "", "MIT License"):
        with pytest.raises(ValueError, match="is not the SPDX identifier"):
            listed_licences(("MIT", other))


# --- Opt-out lists


def test_an_entry_removes_everything_below_it(tmp_path):
    (tmp_path / "list.txt").write_text(
        "\ufeff# a comment\nOwner\nhttps://github.com/one/two.git\n\nthree/four/src/a b.py\n"
        "https://github.com/octo/a/blob/main/src/a%20b.py\ngithub.com/octo/b/tree/v1.0/src/\n"
        "https://github.com/octo/c/tree/main\nhttps://gitlab.com/group/sub/d/-/blob/main/x.c\n"
        "git@github.com:octo/e.git\nssh://git@github.com/octo/f.git/\nocto/g/blob/main/x.c\nocto/h/@types/x.ts\n"
    )
    entries = read_opt_outs([tmp_path / "list.txt"])
    assert entries == {
        "owner", "one/two", "three/four/src/a b.py", "octo/a/src/a b.py", "octo/b/src", "octo/c", "group/sub/d/x.c",
        "octo/e", "octo/f", "octo/g/blob/main/x.c", "octo/h/@types/x.ts",
    }  # fmt: skip
    assert opted_out("owner/any", "x.py", entries) == "owner"
    assert opted_out("One/Two", "deep/x.py", entries) == "one/two"
    assert opted_out("https://github.com/One/Two.git", "deep/x.py", entries) == "one/two"  # as a source's settings may
    assert opted_out("three/four", "src/a b.py", entries) == "three/four/src/a b.py"
    for repository, path in (("one", "x.py"), ("one/twofold", "x.py"), ("ownership", "x.py"), ("three/four", "src")):
        assert opted_out(repository, path, entries) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"owner/name extra/\n\n a b/c\n", "line 3"), (b"owner\\name/*\n", "line 1"), (b"\xff\xfe\n", "not UTF-8"),
     (b"octo/hello # note\n", "line 1"), (b"octo\nme@octo/hello\n", "line 2"),
     (b"https://github.com/octo/hello#readme\n", "line 1"),
     (b"# nothing\n", "no entry"), (b"", "no entry")],
)  # fmt: skip
def test_a_malformed_list_is_an_error_that_names_its_line(tmp_path, data, words):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        read_opt_outs([tmp_path / "list.txt"])


# --- The source and the stage


def config_of(folder, **values):
    source = {"type": "code", "name": "repos", "licence": UNKNOWN, "paths": ["repos/**/*"], **values.pop("source", {})}
    return validate({"sources": [source], **values}, DataConfig, str(folder / "run.toml"))


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(tmp_path, root="root", workers=1, **values):
    config = config_of(tmp_path, **values)
    runtime = Runtime(tmp_path / root, workers)
    made = ingest(config.sources, config.ingest, tmp_path, runtime)
    faults = [row for path in made.files("quarantine", runtime.root) for row in read_rows(path)]
    return config, runtime, made, [*read_documents(made.files("documents", runtime.root))], faults


TREE = {
    "repos/alpha/LICENSE": MIT,
    "repos/alpha/main.py": CODE,
    "repos/alpha/empty/__init__.py": "",
    "repos/alpha/vendored/COPYING": BSD,
    "repos/alpha/vendored/deep/x.c": "int x;\n",
    "repos/alpha/vendored/deep/y.c": "// SPDX-License-Identifier: Zlib\nint y;\n",
    "repos/alpha/logo.png": b"\x89PNG\0\0",
    "repos/alpha/notes.txt": "words",
    "repos/beta/LICENSE": b"A" * (2 * LICENCE_FILE_BYTES),
    "repos/beta/latin.c": b"// caf\xe9\nint z;\n",
    "repos/beta/wide.py": "x = 'größer'\n".encode("utf-16"),
    "repos/beta/b.py": CODE + "# beta\n",
    "repos/gamma/g.sh": "echo\n",
}
PASSED = {"licence_file": 3, "empty_file": 1, "binary_file": 1, "no_programming_language": 1}


def test_each_file_of_a_tree_is_a_document_a_fault_or_passed_over(tmp_path):
    write(tmp_path, TREE)
    os.symlink(tmp_path / "repos", tmp_path / "repos" / "gamma" / "loop")
    _, _, made, documents, faults = read(tmp_path)
    found = {document.file: document for document in documents}
    assert {file: document.licence for file, document in found.items()} == {
        "alpha/main.py": "MIT", "alpha/vendored/deep/x.c": "BSD-2-Clause", "alpha/vendored/deep/y.c": "Zlib",
        "beta/wide.py": UNKNOWN, "beta/b.py": UNKNOWN, "gamma/g.sh": UNKNOWN,
    }  # fmt: skip
    assert {document.language for document in documents} == {CODE_LANGUAGE}
    assert found["beta/wide.py"].text == "x = 'größer'\n"
    assert json.loads(found["alpha/vendored/deep/x.c"].columns) == {
        "repository": "alpha", "path": "vendored/deep/x.c", "programming_language": "C",
        "licence_from": "alpha/vendored/COPYING",
    }  # fmt: skip
    assert json.loads(found["gamma/g.sh"].columns)["licence_from"] == "source"
    assert [(fault["file"], fault["reason"]) for fault in faults] == [("beta/latin.c", "not_utf8")]
    assert made.stats["passed_over"] == PASSED
    assert made.stats["files"] == len(TREE) == len(documents) + len(faults) + sum(PASSED.values())


def packed(kind, files):
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_reads_as_its_folder_and_a_torn_one_is_counted(tmp_path, kind):
    noise = random.Random(0).randbytes(3_000_000)
    files = {name.removeprefix("repos/alpha/"): content if isinstance(content, bytes) else content.encode()
             for name, content in TREE.items() if name.startswith("repos/alpha/")}  # fmt: skip
    whole = packed(kind, {**files, "noise.bin": noise, "last.py": CODE.encode()})
    write(tmp_path, {f"repos/alpha.{kind}": whole})
    _, _, made, documents, faults = read(tmp_path)
    assert {json.loads(d.columns)["path"]: (json.loads(d.columns)["repository"], d.licence) for d in documents} == {
        "main.py": ("alpha", "MIT"), "vendored/deep/x.c": ("alpha", "BSD-2-Clause"),
        "vendored/deep/y.c": ("alpha", "Zlib"), "last.py": ("alpha", "MIT"),
    }  # fmt: skip
    assert (faults, made.stats["torn_files"]) == ([], 0)
    write(tmp_path, {f"repos/alpha.{kind}": whole[: len(whole) // 2]})
    _, _, made, documents, faults = read(tmp_path)
    assert [fault["reason"] for fault in faults] == ["unreadable_member"]
    assert made.stats["torn_files"] == 1
    assert len(documents) == (0 if kind == "zip" else 3)  # a zip's list of members is at its end


def test_licence_files_of_a_wheel_count_where_they_were_in_the_source_tree(tmp_path):
    own = {"alpha/main.py": CODE, "alpha/vendored/x.py": CODE + "# x\n"}
    info = "alpha-1.0.dist-info/"
    wheels = {
        "old.whl": {**own, info + "LICENSE": MIT},
        "new.whl": {**own, info + "licenses/LICENSE": MIT, info + "licenses/alpha/vendored/COPYING": BSD},
        "two.whl": {**own, info + "LICENSE": MIT, "LICENSE": BSD},
        "not_a_wheel.zip": {**own, info + "LICENSE": MIT},
    }
    for name, files in wheels.items():
        data = packed("zip", {file: text if isinstance(text, bytes) else text.encode() for file, text in files.items()})
        write(tmp_path, {f"repos/{name}": data})
    found = {document.file: document for document in read(tmp_path)[3]}
    assert {file: document.licence for file, document in found.items()} == {
        "old.whl/alpha/main.py": "MIT", "old.whl/alpha/vendored/x.py": "MIT",
        "new.whl/alpha/main.py": "MIT", "new.whl/alpha/vendored/x.py": "BSD-2-Clause",
        "two.whl/alpha/main.py": UNKNOWN, "two.whl/alpha/vendored/x.py": UNKNOWN,
        "not_a_wheel.zip/alpha/main.py": UNKNOWN, "not_a_wheel.zip/alpha/vendored/x.py": UNKNOWN,
    }  # fmt: skip
    assert json.loads(found["new.whl/alpha/main.py"].columns)["licence_from"] == f"new.whl/{info}licenses/LICENSE"


def test_an_archive_that_tears_within_a_member_is_one_torn_file(tmp_path):
    whole = packed(
        "tar.gz", {"main.py": CODE.encode(), "noise.py": random.Random(0).randbytes(3_000_000).hex().encode()}
    )
    write(tmp_path, {"repos/alpha.tar.gz": whole[: len(whole) // 2]})
    _, _, made, _, faults = read(tmp_path)
    assert [fault["file"] for fault in faults] == ["alpha.tar.gz/noise.py", "alpha.tar.gz"]
    assert "truncated" in faults[1]["sample"]
    assert "Remove its folder" not in faults[1]["sample"]
    assert made.stats["torn_files"] == 1


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_failing_device_is_not_damage_of_an_archive_of_code(tmp_path, monkeypatch, kind):
    noise = random.Random(0).randbytes(9000).hex().encode()
    write(tmp_path, {f"repos/alpha.{kind}": packed(kind, {"LICENSE": MIT.encode(), "a.py": noise, "b.py": noise})})
    monkeypatch.setattr(
        "data_pipeline.readers.archive.open_source", lambda path, *_: io.BufferedReader(Failing(path), 512)
    )
    with pytest.raises(MissingInput, match="Input/output error"):
        read(tmp_path)


SECRET = "ghp_" + "a1B2" * 9


def test_a_file_is_removed_for_its_first_reason_and_nothing_is_lost(tmp_path):
    near = "".join(f"value_{n} = compute_{n}(left_{n}, right_{n})\n" for n in range(300))
    write(tmp_path, TREE)
    write(tmp_path, {
        "repos/alpha/near.py": near,
        "repos/beta/near.py": near.replace("value_7 ", "other_7 "),
        "repos/alpha/lock.js": "var a;\n",
        "repos/alpha/min.js": "a=1;" * 300,
        "repos/alpha/gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\n" + CODE,
        "repos/alpha/secret.py": f'TOKEN = "{SECRET}"\nstep = {random.Random(1).random()}\n',
        "opt.txt": "alpha/lock.js\ngamma\n",
    })  # fmt: skip
    values = {
        "source": {"licence": "MIT", "allow_licences": ["MIT", "Zlib", UNKNOWN]},
        "code": {"opt_out": ["opt.txt"]},
    }
    digests = set()
    for workers in (1, 2):
        small = {"ingest": {"shard_bytes": 4096}, "clean": {"refuse_licences": []}}
        config, runtime, documents, ingested, _ = read(tmp_path, f"root{workers}", workers, **values, **small)
        documents = clean(documents, config.clean, runtime)
        assert documents.stats["removed"] == {}  # rules on prose do not hold for code
        found = select_code(documents, config.code, config.sources, runtime, tmp_path)
        digests.add((documents.digest, found.digest))
    assert len(digests) == 1
    removed = {row["file"]: (row["reason"], row["evidence"]) for path in found.files("removed", runtime.root)
               for row in read_rows(path)}  # fmt: skip
    assert removed == {
        "alpha/lock.js": ("path_opted_out", "entry=alpha/lock.js"),
        "gamma/g.sh": ("path_opted_out", "entry=gamma"),
        "alpha/min.js": ("minified", "longest_line=1200"),
        "alpha/gpl.py": ("licence_refused", "licence=GPL-3.0-only from=header"),
        "alpha/vendored/deep/x.c": ("licence_refused", "licence=BSD-2-Clause from=alpha/vendored/COPYING"),
    }
    stats = found.stats
    assert stats["documents_in"] == len(ingested) == stats["documents_kept"] + sum(stats["removed"].values())
    assert stats["licences"]["GPL-3.0-only"] == 1
    assert sum(stats["programming_languages"].values()) == len(ingested)
    kept = dedup(found, config.dedup, runtime, ())
    assert kept.stats["removed"] == {"near_duplicate": 1}  # the copy with one changed line
    safe = [*read_documents(redact(kept, config.pii, runtime, tmp_path).files("documents", runtime.root))]
    assert SECRET not in "".join(document.text for document in safe)
    roots = {runtime.root: [documents_of for documents_of in (read(tmp_path, "root2", 2, **values, **small)[2], found)]}
    assert len(find_documents("alpha", roots).identities) == sum(d.file.startswith("alpha/") for d in ingested)
    assert find_documents("alpha/lock.js", roots).fates == (
        "repos/alpha/lock.js#0: removed by code for path_opted_out (entry=alpha/lock.js)",
    )


def test_entries_that_match_no_file_are_named(tmp_path, caplog):
    write(tmp_path, {**TREE, "opt.txt": "alpha\nalpha/main.py\nhttps://example.org/delta/raw\nnobody\n"})
    config, runtime, documents, _, _ = read(tmp_path, code={"opt_out": ["opt.txt"]})
    found = select_code(documents, config.code, config.sources, runtime, tmp_path)
    assert found.stats["opt_out_entries"] == {"alpha": 3}
    # alpha/main.py is below alpha
    assert "2 of 4 entries match no file that clean kept: delta/raw, nobody" in caplog.text


def test_a_denied_licence_is_removed_however_it_is_spelt(tmp_path):
    write(tmp_path, {"repos/a/gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\n" + CODE})
    for name in ("GPL-3.0", "gpl-3.0-ONLY"):
        config, runtime, documents, _, _ = read(tmp_path, source={"deny_licences": [name]})
        found = select_code(documents, config.code, config.sources, runtime, tmp_path)
        assert found.stats["removed"] == {"licence_refused": 1}
    with pytest.raises(ConfigError, match=r"source repos: deny_licences: 'GPL-3\.O' is not the SPDX identifier"):
        config_of(tmp_path, source={"deny_licences": ["GPL-3.O"]})


def test_a_licence_file_is_read_for_the_files_below_it_alone(tmp_path, monkeypatch):
    for number in range(12):
        write(tmp_path / "repos" / f"r{number:02d}", {"LICENSE": MIT, "a.py": CODE * 40, "b.py": CODE * 41})
    files = []
    blocks = source_trees.byte_range
    monkeypatch.setattr(source_trees, "byte_range", lambda path, *more: files.append(path) or blocks(path, *more))
    _, _, _, documents, _ = read(tmp_path, ingest={"shard_bytes": 4096})
    assert {document.licence for document in documents} == {"MIT"}
    assert len(documents) == 24
    assert sum(path.name == "LICENSE" for path in files) <= 12 * 4  # as data, and for at most two shards


def test_versions_of_the_libraries_that_decide_are_in_the_key_of_sources_of_code_alone(tmp_path, monkeypatch):
    write(tmp_path, {**TREE, "texts/a.txt": "words"})
    texts = {"type": "text", "name": "texts", "licence": "MIT", "paths": ["texts/*"]}
    version = importlib.metadata.version

    def keys():
        plain = validate({"sources": [texts]}, DataConfig, str(tmp_path / "run.toml"))
        made = ingest(plain.sources, plain.ingest, tmp_path, Runtime(tmp_path / "root"))
        return read(tmp_path)[2].key, made.key

    code, text = keys()
    for name in ("Pygments", "licenseclassifier", "license-expression"):
        with monkeypatch.context() as other:
            other.setattr(importlib.metadata, "version", lambda of, name=name: version(of) + "9" * (of == name))
            after = keys()
        assert after[0] != code
        assert after[1] == text


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="group named repository"):
        config_of(tmp_path, source={"repository_by_path": "^([^/]+)/"})
    with pytest.raises(ConfigError, match="lacks 'path'"):
        config_of(tmp_path, source={"columns": ["repository", "programming_language"]})
    config = config_of(tmp_path, code={"opt_out": ["gone.txt"]})
    write(tmp_path, TREE)
    documents = ingest(config.sources, config.ingest, tmp_path, Runtime(tmp_path / "root"))
    with pytest.raises(MissingInput, match=r"gone\.txt"):
        select_code(documents, config.code, config.sources, Runtime(tmp_path / "root"), tmp_path)


def test_a_source_of_code_brings_its_stage():
    other = {"sources": [{"type": "text", "name": "a", "licence": "MIT", "paths": ["*"]}]}
    assert "code" not in stage_names(DataConfig.model_validate(other))
    assert stage_names(config_of(Path()))[:3] == ("ingest", "clean", "code")

"""How the house is kept: file length, one writer, one door a heavy dependency, a true README, quiet imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("governance", "data_pipeline", "pretrain", "slurm")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
DOORS = {
    "deepspeed": {"pretrain/engine.py", "pretrain/engine_state.py"},
    "wandb": {"pretrain/wandb_mirror.py", "pretrain/wandb_log.py"},
    "tensorboard": set(),
    "great_expectations": {"governance/checks/expectations.py", "governance/checks/data_docs.py"},
    "tokenizers": {"data_pipeline/tokenizer.py"},
    "tiktoken": set(),
    "duckdb": {"data_pipeline/duplicates/join.py"},
    "daft": {"data_pipeline/duplicates/join.py"},
    "fsspec": {"data_pipeline/readers/remote.py"},
    "fastwarc": {"data_pipeline/readers/warc.py", "data_pipeline/readers/warc_stream.py"},
    "trafilatura": {"data_pipeline/readers/html.py"},
    "pynvml": {"governance/energy/nvml.py"},
    "cryptography": {"governance/signing.py", "governance/model_signature.py"},
    "datasets": {"data_pipeline/readers/hub.py"},
}
WRITERS = {"write_text", "write_bytes", "replace", "rename", "symlink_to", "mkdir", "makedirs", "rmtree"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "manager", "base", "core", "process", "handle"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_one_idea_a_file(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_files_py_writes_and_hashes(path):
    if name_of(path) == "governance/files.py":
        return
    offences = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            offences += [f"{node.lineno}: hashlib" for name in names if name.split(".")[0] == "hashlib"]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            modes = [a.value for a in [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
                     if isinstance(a, ast.Constant)]  # fmt: skip
            offences += [f"{node.lineno}: open {mode!r}" for mode in modes if set(str(mode)) & set("wax+")]
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in {"os", "shutil"}
            and node.func.attr in WRITERS
        ):
            offences.append(f"{node.lineno}: {node.func.value.id}.{node.func.attr}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            offences += [
                f"{node.lineno}: .{node.func.attr}" for _ in [0] if node.func.attr in {"write_text", "write_bytes"}
            ]
    assert offences == []


@pytest.mark.parametrize("package", sorted(DOORS))
def test_one_door_a_heavy_dependency(package):
    users = set()
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            if any(module.split(".")[0] == package for module in modules):
                users.add(name_of(path))
    assert users <= DOORS[package]


def test_names_have_a_meaning():
    assert [name_of(p) for p in FILES if p.stem in FORBIDDEN_NAMES or p.parent.name in FORBIDDEN_NAMES] == []


def test_readme_tree_equals_the_disk():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.DOTALL)
    assert block is not None, "the README has no tree between <!-- tree --> and its code fence"
    listed, parents = set(), []
    for line in block.group(1).splitlines():
        entry = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], entry.rstrip("/")]
        path = "/".join(parents) + ("/" if entry.endswith("/") else "")
        assert path not in listed, f"{path}: twice in the README"
        listed.add(path)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    shown = {path for path in tracked if path.split("/")[0] in PACKAGES and path.endswith((".py", ".sbatch", ".toml"))}
    shown = {path for path in shown if not path.endswith(("__init__.py", "__main__.py"))}
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked}
    files = {path for path in listed if not path.endswith("/")}
    assert shown - files == set(), "on disk, not in the README"
    assert {path for path in files if not (ROOT / path).exists()} == set(), "in the README, not on disk"
    assert {entry for entry in top if not entry.startswith(".")} - listed == set(), "top level, not in the README"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom pretrain.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch','great_expectations','pydantic','numpy','pyarrow','numba','deepspeed','wandb','rich','pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    "module",
    [
        "governance.reports.report", "governance.reports.documents.documents", "pretrain.config", "governance.gate",
        "slurm.status", "governance.reports.recomputation", "governance.reports.comparison",
        "governance.reports.run_index", "pretrain.report_commands",
    ],
)  # fmt: skip
def test_reading_a_run_needs_no_heavy_library(module):
    code = (
        f"import sys, {module}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch','great_expectations','deepspeed','wandb'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_about_this_machine_is_committed():
    pattern = r"(^|[^A-Za-z0-9_.])/(root|home/[a-z]+)/|--(extra-)?index-url"
    found = subprocess.run(
        ["git", "grep", "-nE", pattern, "--", ".", ":!tests/test_house.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == ""

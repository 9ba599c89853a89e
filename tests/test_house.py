"""Rules of the code: file length, one writer, one door for each heavy dependency, a true README, quiet imports."""

import ast
import functools
import itertools
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from slurm import frozen
from tests.tree import PACKAGES, tree

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
DOORS = {
    "deepspeed": {"pretrain/engine/engine.py"},
    "wandb": {"pretrain/metrics/wandb.py", "pretrain/metrics/wandb_reader.py"},
    "tensorboard": set(),
    "mlflow": {"pretrain/metrics/mirrors.py"},
    "great_expectations": {
        "governance/checks/expectations.py",
        "governance/checks/data_docs.py",
        "governance/checks/gx/named_expectations.py",
        "governance/checks/gx/own_expectations.py",
    },
    "tokenizers": {"data_pipeline/tokens/tokenizer.py", "data_pipeline/tokens/unknown_characters.py"},
    "gigatoken": {"data_pipeline/tokens/encoder.py"},
    "tiktoken": set(),
    "duckdb": {"data_pipeline/dedup/join.py"},
    "daft": {"data_pipeline/dedup/join.py"},
    "ray": {"governance/ray_cluster/ray_connection.py"},
    "fsspec": {"data_pipeline/readers/remote.py"},
    "fastwarc": {"data_pipeline/readers/warc.py", "data_pipeline/readers/warc_stream.py"},
    "trafilatura": {"data_pipeline/readers/html.py"},
    "pygments": {"data_pipeline/code/languages.py"},
    "license_expression": {"governance/gate/licence_choices.py"},
    "licenseclassifier": {"data_pipeline/code/licences.py"},
    "pypdfium2": {"data_pipeline/readers/pdf/text_layer.py"},
    "presidio_analyzer": {"data_pipeline/pii/entities/presidio.py"},
    "spacy": {"data_pipeline/pii/entities/presidio.py"},
    "jinja2": {"governance/reports/documents/markdown.py"},
    "pynvml": {"governance/energy/nvml.py"},
    "cryptography": {
        "governance/signing/dsse.py",
        "governance/signing/openssf.py",
        "governance/signing/model_bundles.py",
        "governance/receipts/verify_receipt.py",
    },
    "sigstore": {"governance/signing/model_bundles.py"},
    "datasets": {"data_pipeline/readers/hub.py"},
    "xlstm": {"pretrain/experiments/recurrent.py"},
    "mlstm_kernels": {"pretrain/experiments/recurrent.py"},
    "sacrebleu": {"pretrain/inference/translation_scores.py"},
    "pydivsufsort": {"data_pipeline/text_index/index_stage.py"},
    "statsmodels": {"governance/kpi/power_analysis.py", "governance/kpi/effects.py"},
}
WRITERS = {"write_text", "write_bytes", "replace", "rename", "symlink_to", "mkdir", "makedirs", "rmtree"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "manager", "base", "core", "process", "handle"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_one_idea_a_file():
    lines = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*FILES, *(ROOT / "tests").rglob("*.py")]
    }
    assert {name: count for name, count in lines.items() if count > 600} == {}


def each_file(offences_of):
    """File -> its offences, where it has any: one test for all files costs less than one for each."""
    found = {name_of(path): offences_of(path) for path in FILES}
    return {name: offences for name, offences in found.items() if offences}


def test_only_files_py_writes_and_hashes():
    assert each_file(writes_and_hashes) == {}


def writes_and_hashes(path):
    offences = []
    if name_of(path) in ("governance/files.py", "governance/receipts/verify_receipt.py"):  # the latter goes out alone
        return offences
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
    return offences


@functools.cache
def importers():
    """Top-level package -> the files that import it."""
    found = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                found.setdefault(module.split(".")[0], set()).add(name_of(path))
    return found


def test_one_door_a_heavy_dependency():
    others = {package: importers().get(package, set()) - doors for package, doors in DOORS.items()}
    assert {package: files for package, files in others.items() if files} == {}


def test_names_have_a_meaning():
    assert [name_of(p) for p in FILES if p.stem in FORBIDDEN_NAMES or p.parent.name in FORBIDDEN_NAMES] == []


def test_the_tree_page_equals_the_disk():
    page = ROOT / "docs" / "tree.md"
    assert page.read_text(encoding="utf-8") == tree() + "\n", "out of date: make tree"
    top = {line.split("/")[0] + ("/" if "/" in line else "") for line in tracked()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") <= 140
    assert [
        entry
        for entry in sorted(top)
        if not entry.startswith(".") and entry not in {"README.md"} and entry not in readme
    ] == []


def test_every_file_of_the_packages_is_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    missing = []
    for name in (name for name in tracked() if name.split("/")[0] in PACKAGES):
        package, _, inside = name.partition("/")
        if (ROOT / name).is_symlink():  # `assay/configs`, whose files `test_release.py` finds in the wheel
            continue
        module = name.endswith(".py") and (ROOT / name).with_name("__init__.py").exists()
        if not module and not any(Path(inside).match(pattern) for pattern in patterns.get(package, [])):
            missing.append(name)
    assert missing == []


def test_a_frozen_run_knows_the_whole_program():
    assert set(frozen._PACKAGES) == set(PACKAGES)


def test_a_folder_holds_at_most_25_modules():
    counts = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {name_of(folder): count for folder, count in counts.items() if count > 25} == {}


def test_no_two_modules_share_a_name():
    counts = Counter(path.name for path in FILES if path.stem not in {"__init__", "__main__", "config"})
    assert [name for name, count in counts.items() if count > 1] == []


def test_docstrings_open_with_a_short_noun_phrase():
    assert each_file(wrong_docstrings) == {}


def wrong_docstrings(path):
    """Docstrings of the module, classes, functions and fields; exported code follows the form of its own library."""
    tree = tree_of(path)
    if "remote_code" in path.parts:
        return []
    if not ast.get_docstring(tree):
        return ["the module has no docstring"]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    offences = []
    opened = [(f"line {text.lineno}", text.value.value) for text in texts_of_fields(tree)]
    for node in (node for node in ast.walk(tree) if isinstance(node, documented)):
        line = (ast.get_docstring(node) or "").split("\n")[0]
        name = getattr(node, "name", "the module")
        opened.append((name, line))
        if len(line.split()) > 12:
            offences.append(f"{name}: {len(line.split())} words, at most 12: {line}")
    for name, text in opened:
        if re.match(r"(What|Which|Whether|Who|Whom|Whose|Where|When|Why|How|Of|By (which|whom|what))\b", text):
            offences.append(f"{name}: opens with an interrogative: {text}")
    return offences


def texts_of_fields(tree):
    """Strings that follow an assignment: docstrings of fields and constants."""
    for body in (node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)):
        for before, text in itertools.pairwise(body):
            literal = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if literal and isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(text.value.value, str):
                yield text


def test_no_dialect():
    """Words with a plain one: told (reported), whom (a subject in front), heed (honour, follow); identifiers count."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {}
    for path in (path for path in [*FILES, *pages] if "remote_code" not in path.parts):
        text = path.read_text(encoding="utf-8").replace('"not told"', "")  # a phase's name in ledgers of users
        if words := re.findall(r"(?<![a-z])(told|whom|heeds?|heeded)(?![a-z])", text):
            found[name_of(path)] = sorted(set(words))
    assert found == {}


def test_no_two_classes_share_a_name():
    places = {}
    for path in (path for path in FILES if "remote_code" not in path.parts):
        for node in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)):
            places.setdefault(node.name, []).append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_pages_name_files_and_classes_that_exist():
    """A path in backticks is the end of a tracked one."""
    names = tracked()
    gone = {}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if page.stem == "coming_from":  # names files of other programs
            continue
        paths = re.findall(r"`((?:[\w-]+/)*\w+\.(?:py|sh)|docs/\w+\.md)`", page.read_text(encoding="utf-8"))
        if lost := sorted({path for path in paths if not any(f"/{name}".endswith(f"/{path}") for name in names)}):
            gone[name_of(page)] = lost
    assert gone == {}
    classes = {node.name for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"class `(\w+)`", glossary) if name not in classes] == []


def test_docstrings_and_comments_name_files_that_exist():
    """A path in backticks is the end of a tracked one."""
    names = tracked()
    gone = {}
    for path in (path for path in FILES if "remote_code" not in path.parts):
        paths = re.findall(r"`((?:[\w-]+/)*\w+\.py)`", path.read_text(encoding="utf-8"))
        if lost := sorted({path for path in paths if not any(f"/{name}".endswith(f"/{path}") for name in names)}):
            gone[name_of(path)] = lost
    assert gone == {}


def test_pages_name_tests_that_exist():
    """`test_file.py::test_name`, and `::test_name` of any file."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    gone = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for file, name in re.findall(r"`(\w+\.py)?::(test_\w+)`", page.read_text(encoding="utf-8")):
            if not any(f"def {name}(" in text for key, text in texts.items() if file in ("", key)):
                gone.append(f"{name_of(page)}: {file}::{name}")
    assert gone == []


def test_imported_names_exist():
    """Late imports too, also of tests and benchmarks, which no type checker reads."""
    gone = []
    for path in (*FILES, *(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))):
        for node in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)):
            if node.level or (node.module or "").split(".")[0] not in (*PACKAGES, "tests", "benchmarks"):
                continue
            folder = ROOT / node.module.replace(".", "/")
            file = folder.with_suffix(".py") if folder.with_suffix(".py").exists() else folder / "__init__.py"
            names = top_names(file) if file.exists() else set()
            for alias in node.names:
                module = folder / alias.name
                if alias.name not in names and not module.is_dir() and not module.with_suffix(".py").exists():
                    gone.append(f"{name_of(path)}:{node.lineno}: {node.module} has no {alias.name}")
    assert gone == []


@functools.cache
def top_names(path):
    """Names that a module binds outside functions and classes; all that occur where it has `__getattr__`."""
    found, todo = set(), list(tree_of(path).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.AST):
            todo += ast.iter_child_nodes(node)
    if "__getattr__" in found:
        found |= {node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)}
    return found


def test_no_modules_import_in_a_circle():
    """Imports for types only count, too."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    arrows = {name: modules_of(path) & names.keys() - {name} for name, path in names.items()}
    while leaves := [name for name, targets in arrows.items() if not targets]:
        for leaf in leaves:
            del arrows[leaf]
        arrows = {name: targets - set(leaves) for name, targets in arrows.items()}
    assert arrows == {}, "these import one another, or lead to such"


def modules_of(path):
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in members if (ROOT / f"{name.replace('.', '/')}.py").exists()}
            found |= known or {node.module}
    return found


def tracked():
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom assay.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch','great_expectations','pydantic','numpy','pyarrow','numba','deepspeed','wandb','rich','pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


READERS = (
    "governance.reports.report", "governance.reports.documents.all_documents", "pretrain.config.training",
    "governance.gate.verdict", "slurm.status", "governance.reports.recompute", "governance.reports.compare",
    "governance.reports.index", "assay.cli.report_commands", "assay.cli.plan_commands", "assay.planning.layouts",
    "assay.experiments.scaling_experiment", "pretrain.train",
)  # fmt: skip


def test_reading_a_run_needs_no_heavy_library():
    code = (
        f"import sys, {', '.join(READERS)}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch','great_expectations','deepspeed','wandb','numba'}))"
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

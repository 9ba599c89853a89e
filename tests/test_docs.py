"""README and docs: every command parses, every TOML block is valid, and pages that teach run in their order."""

import contextlib
import io
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from assay.cli.command_words import current_words, in_order, join_files
from assay.cli.surface import parser
from assay.config import RunConfig
from governance.config import validate
from governance.errors import ConfigError
from slurm.config import SlurmConfig
from tests.conftest import CONFIG, write_tales

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SURFACE = parser()
PROGRAMS = ("assay", "make", "python", "pip", "cp", "mkdir", "git", "head", "export", ".", "cd", "apptainer", "lm_eval",
            "model_signing")  # fmt: skip
# Stand-ins for the words in capitals that pages use for a reader's own paths.
WORDS = {"N": "2", "I/N": "0/2", "SIZE": "80GiB", "HOURS": "24", "OFFSET": "300", "M": "2", "NAME": "1b"}


def blocks(page, language):
    """The fenced blocks of a page with this language ("" for none), and the line that each begins at."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        if found[2] == language:
            lines = [line.removeprefix(found[1]) for line in found[3].splitlines()]
            yield text[: found.start()].count("\n") + 1, "\n".join(lines)


def commands(page):
    """The commands of the blocks without a language: continuation lines joined, comments cut off."""
    for line, text in blocks(page, ""):
        for command in text.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(command, comments=True) if command.split()[:1] and command.split()[0] in PROGRAMS else []
            )
            if words:
                yield line, words


def inline(page):
    """Whole commands between backticks, such as `assay report CONFIG --documents`."""
    for found in re.finditer(r"`(assay [a-z][^`\n]*)`", page.read_text(encoding="utf-8")):
        text = re.sub(r"\[([^][]*)\]", r"\1", found[1].replace("\\|", "|"))
        if "..." not in text and "COMMAND" not in text:
            yield found[1], shlex.split(re.sub(r"(\w+)(\|\w+)+", r"\1", text))


def parses(words):
    words = [
        WORDS.get(word, word) for word in itertools.takewhile(lambda word: word not in (">>", ">", "|"), words[1:])
    ]
    words = [re.sub(r"\$\w+/\$\w+", "0/2", word) if "/$" in word else re.sub(r"\$\w+", "2", word) for word in words]
    errors, old = io.StringIO(), []
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            in_order(SURFACE.parse_args(join_files(current_words(words, old.append), SURFACE)), old.append)
    except SystemExit as leaving:
        return "" if leaving.code == 0 else errors.getvalue().splitlines()[-1]
    return "; ".join(old)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_parses(page):
    wrong = []
    for line, words in commands(page):
        if words[0] == "assay" and (fault := parses(words)):
            wrong.append(f"line {line}: {shlex.join(words)}: {fault}")
    for text, words in inline(page):
        # A page may name a command without its arguments: `assay slurm submit`.
        if (fault := parses(words)) and "the following arguments are required" not in fault:
            wrong.append(f"{text}: {fault}")
    assert wrong == []


def merged(below, above):
    """`above` laid over `below`, section by section; a list replaces a list."""
    nested = {name for name in below.keys() & above.keys() if isinstance(below[name], dict)}
    return below | above | {name: merged(below[name], above[name]) for name in nested}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_toml_block_of_a_page_is_valid(page):
    """A fragment of a run's file, laid over a small complete one, is a run's file."""
    wrong = []
    for line, text in blocks(page, "toml"):
        values = tomllib.loads(text.replace('"..."', f'"{64 * "0"}"'))
        if not values.keys() <= RunConfig.model_fields.keys():
            continue  # a policy, a site's file: their own tests read them
        if mix := values.get("data", {}).get("mix"):  # its weights name sources of the page's own corpus
            [one] = tomllib.loads(CONFIG)["data"]["sources"]
            values["data"]["sources"] = [one | {"name": name} for name in mix["weights"]]
        try:
            validate(merged(tomllib.loads(CONFIG), values), RunConfig, f"{page.name}, line {line}")
        except ConfigError as error:
            wrong.append(str(error))
    assert wrong == []


LEFT_OUT = {
    r"git clone |cd |\. |make (install|quickstart|test)": "the environment of the tests has the program",
    r"assay slurm (submit|status|logs|retry)": "wants a cluster: tests/cluster, tests/slurm/test_rehearsal.py",
    r"assay governance review": "asks a person about a closed gate: tests/governance/test_waivers.py",
    r"assay report compare": "compares a second run, which no page makes: tests/governance/test_reports_parts.py",
    r"apptainer |pip install |lm_eval ": "wants a program from the network",
}


def follow(page, folder, shorter):
    """Save the files that a page asks for, run its commands with exit code 0 each, and return those that ran."""
    text = page.read_text(encoding="utf-8")
    steps = [(line, "save", block) for line, block in blocks(page, "toml")]
    steps += [(line, "run", words) for line, words in commands(page)]
    ran = []
    for line, kind, content in sorted(steps, key=lambda step: step[0]):
        if kind == "save":
            before = " ".join(text.splitlines()[max(0, line - 4) : line])
            if named := re.search(r"[Ss]ave this as `([^`]+)`", before):
                (folder / named[1]).parent.mkdir(exist_ok=True)
                content = re.sub(r"^(warmup|decay)_steps = \d+$", r"\1_steps = 1", content, flags=re.MULTILINE)
                content = re.sub(r"^steps = \d+$", f"steps = {shorter}", content, flags=re.MULTILINE)
                (folder / named[1]).write_text(content)
            continue
        if any(re.match(pattern, shlex.join(content)) for pattern in LEFT_OUT):
            continue
        words = [match for word in content for match in (sorted(glob(word.replace("KEY", "*"), folder)) or [word])]
        program = {"assay": [sys.executable, "-m", "assay"], "python": [sys.executable]}.get(words[0], [words[0]])
        done = subprocess.run([*program, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}, line {line}: {shlex.join(words)}\n{done.stdout}{done.stderr}"
        ran.append(" ".join(words[:3]))
    return ran


USED_ELSEWHERE = {"--engine": "tests/data_pipeline/test_join.py: the engines give the same corpus"}


def test_what_a_page_of_reference_shows_is_used_by_a_test():
    """Commands and options of pages whose commands are not run in their order (`follow`)."""
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_cli.py"}
    del texts[Path(__file__)]
    shown = {}
    for page in PAGES:
        for _, words in commands(page):
            if words[0] == "assay":
                leaf = [word for word in itertools.takewhile(str.isidentifier, words[1:]) if word.islower()][:2]
                group = leaf[0] in ("data", "governance", "slurm", "report")
                for part in (" ".join(leaf if group else leaf[:1]), *(word for word in words if word[:2] == "--")):
                    shown.setdefault(part, page.name)
    assert len(shown) > 40
    between, end = r"""["', ]+""", r"""["'\s,=]"""
    patterns = {part: re.compile(f"[\"' ]{part.replace(' ', between)}{end}") for part in shown}
    unused = {
        part: shown[part] for part, found in patterns.items() if not any(found.search(text) for text in texts.values())
    }
    assert unused.keys() == USED_ELSEWHERE.keys(), unused


def test_each_answer_to_a_thread_names_a_test_that_exists():
    rows = re.findall(
        r"^\| .*\) \| (yes|partly|no) \|.*\| (`tests/.*) \|$", (ROOT / "docs/you_asked.md").read_text(), re.M
    )
    assert len(rows) >= 25
    for answer, tests in rows:
        first, *others = re.findall(r"`([^`]+)`", tests)
        places = [ROOT / first, *((ROOT / first).parent / other for other in others)]
        assert [place for place in places if not place.exists()] == [], answer


def glob(word, folder):
    return [str(path.relative_to(folder)) for path in folder.glob(word)] if "/" in word and "*" in word else []


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout as the pages assume it: `.git`, `configs/`, and documents in `corpus/` with many different words."""
    (tmp_path / ".git").mkdir()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "corpus").mkdir()
    write_tales(tmp_path / "corpus" / "a.jsonl", range(150))
    chance = random.Random(1)
    letters = ("bdfgklmnprstvz", "aeiou") * 3
    names = ["".join(map(chance.choice, letters)) for _ in range(9000)]
    with (tmp_path / "corpus" / "b.jsonl").open("w") as file:
        for first in range(0, len(names), 45):
            text = "".join(
                f"{name} {chance.choice(('the', 'of', 'and', 'with'))} " for name in names[first : first + 45]
            )
            file.write(json.dumps({"text": f"The {text}end."}) + "\n")
    for name, place in (("PYTHONPATH", str(ROOT)), ("XDG_CONFIG_HOME", str(tmp_path / "home"))):
        monkeypatch.setenv(name, place)
    return tmp_path


@pytest.mark.slow
def test_the_readme_runs_in_its_order(checkout):
    ran = follow(ROOT / "README.md", checkout, 4)
    assert ran[:2] == ["assay inspect corpus", "assay run configs/mine.toml"]
    assert len(ran) >= 5


@pytest.mark.slow
def test_the_tutorial_and_the_how_tos_run_in_their_order(checkout):
    pages = [
        "tutorial",
        *(f"howto/{name}" for name in ("corpus", "dedup", "policy", "review", "slurm", "takedown", "report")),
    ]
    ran = [command for page in pages for command in follow(ROOT / "docs" / f"{page}.md", checkout, 6)]
    assert {"assay data prepare", "assay governance impact", "assay report index", "assay slurm render"} <= {
        " ".join(command.split()[:3]) for command in ran
    }


def test_every_page_is_in_the_navigation_and_the_site_builds_without_other_hosts(tmp_path):
    """Settings and commands come from the program, so each field and each command must be on its page."""
    pytest.importorskip("material")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = set(re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - listed == set()
    pages = {str(path.relative_to(tmp_path / "site")): path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    for name, text in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="https?:', text), name
        assert not re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="https?:', text), name
    assert all(f"<code>{name}</code>" in pages["reference_settings.html"] for name in SlurmConfig.model_fields)
    assert "assay governance verify" in pages["reference_commands.html"]
    if chromium := shutil.which("chromium"):
        page = f"file://{tmp_path}/site/index.html?q=takedown"
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", "--dump-dom")
        done = subprocess.run([chromium, *options, page], capture_output=True, text=True, check=False)
        assert "md-search-result__item" in done.stdout, "the search does not work from disk"

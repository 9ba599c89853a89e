"""README and docs: every command parses, every TOML block is valid, and the site builds."""

import contextlib
import io
import itertools
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
from tests.conftest import CONFIG

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SURFACE = parser()
# Kept columns and classifiers that fragments name.
COLUMNS = ["date", "topic", "quality"]
CLASSIFIERS = [{"name": name, "paths": ["a.jsonl"], "positive": ["yes"]} for name in ("law", "mathematics")]
# Stand-ins for the words in capitals that pages use for a reader's own paths.
WORDS = {"N": "2", "I/N": "0/2", "SIZE": "80GiB", "HOURS": "24", "OFFSET": "300", "M": "2", "NAME": "1b"}


def blocks(page, language):
    """The fenced blocks of a page with this language ("" for none), and the line that each begins at."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        if found[2] == language:
            lines = [line.removeprefix(found[1]) for line in found[3].splitlines()]
            yield text[: found.start()].count("\n") + 1, "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_commands_hides_behind_a_language(page):
    """Blocks without a language are commands, which are run; a shell's name would leave them out."""
    languages = set(re.findall(r"^ *```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert languages <= {"csv", "json", "python", "text", "toml", "yaml"}


def commands(page):
    """The lines of the blocks without a language, continuation lines joined, comments cut off."""
    for line, text in blocks(page, ""):
        for command in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(command, comments=True):
                yield line, words


def inline(page):
    """Whole commands between backticks, such as `assay report CONFIG --documents`, with their lines."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"`(assay [a-z][^`\n]*)`", text):
        command = re.sub(r"\[([^][]*)\]", r"\1", found[1].replace("\\|", "|"))
        if "..." not in command and "COMMAND" not in command:
            yield text[: found.start()].count("\n") + 1, shlex.split(re.sub(r"([\w.]+)(\|[\w.]+)+", r"\1", command))


def parses(words):
    words = [
        WORDS.get(word, word) for word in itertools.takewhile(lambda word: word not in (">>", ">", "|"), words[1:])
    ]
    words = [re.sub(r"\$\w+/\$\w+", "0/2", word) if "/$" in word else re.sub(r"\$\w+", "2", word) for word in words]
    errors, old = io.StringIO(), []
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            in_order(SURFACE.parse_args(join_files(current_words(words, SURFACE, old.append), SURFACE)), old.append)
    except SystemExit as leaving:
        return "" if leaving.code == 0 else errors.getvalue().splitlines()[-1]
    return "; ".join(old)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_parses(page):
    wrong = []
    for line, words in commands(page):
        if words[0] == "assay" and (fault := parses(words)):
            wrong.append(f"line {line}: {shlex.join(words)}: {fault}")
    for line, words in inline(page):
        # A page may name a command without its arguments: `assay slurm submit`.
        unfinished = "the following arguments are required|a command is missing"
        if (fault := parses(words)) and not re.search(unfinished, fault):
            wrong.append(f"line {line}: {shlex.join(words)}: {fault}")
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
        [one] = tomllib.loads(CONFIG)["data"]["sources"]
        named = {"sources": [one | {"columns": COLUMNS}], "classifiers": CLASSIFIERS}
        below = merged(tomllib.loads(CONFIG), {"data": named})
        mix = values.get("data", {}).get("mix", {})
        if "weights" in mix and "by" not in mix:  # names of the page's own sources
            values["data"]["sources"] = [one | {"name": name} for name in mix["weights"]]
        try:
            validate(merged(below, values), RunConfig, f"{page.name}, line {line}")
        except ConfigError as error:
            wrong.append(str(error))
    assert wrong == []


def test_each_answer_to_a_thread_names_a_test_that_exists():
    rows = re.findall(
        r"^\| .*\) \| (yes|partly|no) \|.*\| (`tests/.*) \|$", (ROOT / "docs/you_asked.md").read_text(), re.M
    )
    assert len(rows) >= 25
    for answer, tests in rows:
        first, *others = re.findall(r"`([^`]+)`", tests)
        places = [ROOT / first, *((ROOT / first).parent / other for other in others)]
        assert [place for place in places if not place.exists()] == [], answer


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

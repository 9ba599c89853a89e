"""The command surface: pinned commands and options, nearest words, words of the last release."""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest

from assay.cli import (
    classify_commands,
    config_commands,
    data_commands,
    experiment_commands,
    governance_commands,
    inspect_commands,
    kpi_commands,
    mirror_commands,
    model_commands,
    plan_commands,
    report_commands,
    review_commands,
    slurm_commands,
    trace_commands,
)
from assay.cli import run_commands as commands
from assay.cli.command_words import current_words, in_order, leaves
from assay.cli.main import main
from assay.cli.output import say
from assay.cli.surface import parser
from governance.errors import MissingInput

COMMON = ["--data-workers", "--help", "--root", "--set", "--with", "CONFIG"]
WITHOUT_JSON = {"completion", "config schema"}
SURFACE = {
    "completion": ["--help", "SHELL"],
    "config schema": ["--help"],
    "audit-training": [*COMMON, "--beacon", "--share"],
    "classify evaluate": [*COMMON, "--test", "CHECKPOINT"],
    "classify folds": [*COMMON, "--nproc"],
    "config show": [*COMMON, "--changed"],
    "data clean-up": [*COMMON, "--execute", "--incomplete", "--keep"],
    "data export": [*COMMON, "PREFIX"],
    "data import": ["--end-of-document", "--help", "--root", "--vocabulary-size", "PREFIX"],
    "data index": [*COMMON, "--shard-size"],
    "data prepare": [*COMMON, "--dry-run", "--engine", "--merge", "--task", "--wait"],
    "data push": [*COMMON, "--public", "OWNER/NAME"],
    "data show": [*COMMON[:-1], "CONFIG|ARTIFACT"],
    "data trace": ["--help", "OFFSET", "SHARD"],
    "data train-classifier": COMMON,
    "doctor": ["--help"],
    "evaluate": [*COMMON, "--average", "CHECKPOINT"],
    "experiment claims": [*COMMON, "--dry-run", "--quick"],
    "experiment scaling": [*COMMON, "--dry-run", "--nproc"],
    "experiment mixture": [*COMMON, "--dry-run", "--nproc"],
    "export": [*COMMON, "--adapter", "--average", "--dtype", "--public", "--push", "CHECKPOINT", "FOLDER"],
    "inspect": ["--data-workers", "--eval-set", "--help", "--output", "--sample-mb", "PATH"],
    "mirror pull": ["--help", "ROOT", "URL"],
    "mirror push": ["--help", "ROOT", "URL"],
    "governance anchor": [*COMMON, "--accept"],
    "governance audit-model": [*COMMON, "CHECKPOINT"],
    "governance audit-memorisation": [*COMMON, "CHECKPOINT"],
    "governance check": [*COMMON, "--data-docs", "--engine"],
    "governance clock": [*COMMON, "--accept", "--reason"],
    "governance diff": ["--help", "A", "B"],
    "governance energy": ["--final", "--help", "ROOT"],
    "governance freeze": [*COMMON, "FILE"],
    "governance impact": ["--help", "--root", "DOCUMENT|URL|SHARD"],
    "governance kpi-plan": [*COMMON, "KPIS"],
    "governance kpi-test": [*COMMON, "--checkpoint", "--early", "KPIS", "OUTCOMES"],
    "governance keygen": ["--days", "--help", "--job", "--model", "--name", "--root", "--root-key", "PATH"],
    "governance prove": [
        "--checkpoint",
        "--help",
        "--nearest",
        "--receipt",
        "--signing-key",
        "--verifier",
        "DOCUMENT|URL|FILE",
    ],
    "governance review": [*COMMON, "--key", "--reason", "--withdraw"],
    "governance sign": ["--help", "--key", "--signing-key", "CHECKPOINT"],
    "governance site": ["--help", "POLICY"],
    "governance suites": ["--help", "--owner", "--suite", "FOLDER", "POLICY|SUITE"],
    "governance takedown": [*COMMON, "--cluster", "--execute", "--nproc", "--plan", "--settings", "DOCUMENT"],
    "governance trace": ["--help", "--prov", "--svg", "ARTIFACT"],
    "governance verify": ["--deep", "--help", "--key", "ARTIFACT|ROOT"],
    "governance verify-model": [
        "--certificate",
        "--help",
        "--identity",
        "--ignore",
        "--issuer",
        "--key",
        "--signature",
        "MODEL",
    ],
    "generate": [
        *COMMON,
        "--average",
        "--max-tokens",
        "--prompts",
        "--seed",
        "--stop",
        "--temperature",
        "--top-p",
        "CHECKPOINT",
        "PROMPT",
    ],
    "init": ["--from", "--help", "FOLDER"],
    "interpret": [*COMMON, "--html", "--prune-heads", "--rows", "CHECKPOINT", "TEXT"],
    "translate": [
        *COMMON,
        "--alpha",
        "--average",
        "--beam",
        "--file",
        "--reference",
        "--tokenizer",
        "CHECKPOINT",
        "TEXT",
    ],
    "plan": [*COMMON, "--cluster", "--from", "--html", "--nodes"],
    "report compare": ["--help", "--html", "A", "B"],
    "report index": ["--help", "--html", "FOLDER"],
    "report verify": ["--help", "--key", "--root", "--with", "CONFIG|ROOT|REPORT"],
    "report write": [*COMMON, "--documents", "--open"],
    "run": [*COMMON, "--engine", "--from-scratch", "--nproc"],
    "slurm cancel": COMMON,
    "slurm logs": [*COMMON, "--attempt", "--follow", "--job", "--rank"],
    "slurm preflight": COMMON,
    "slurm render": [*COMMON, "--job"],
    "slurm retry": [*COMMON, "--local", "--take-edits"],
    "slurm status": [*COMMON, "--watch"],
    "slurm submit": [*COMMON, "--carbon-aware", "--expected", "--fetch", "--latest", "--local", "--take-edits"],
    "teacher-logits": COMMON,
    "trace-text": [
        "--checkpoint",
        "--corpus",
        "--documents",
        "--help",
        "--html",
        "--min-characters",
        "--signing-key",
        "TEXT",
    ],
    "train": [*COMMON, "--device", "--dry-run", "--from-scratch", "--gpu-memory", "--nproc", "--ranks"],
}


def surface(top, prefix=""):
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from surface(command, f"{prefix} {name}".strip())
            return
    options = [action.option_strings[-1] if action.option_strings else action.metavar for action in top._actions]
    yield prefix, sorted(options), (top.get_default("group"), top.get_default("command"))


def test_surface_is_pinned_and_each_command_exists():
    found = list(surface(parser()))
    assert {name: options for name, options, _ in found} == {
        name: sorted([*words, "--quiet", "--verbose", *([] if name in WITHOUT_JSON else ["--json"])])
        for name, words in SURFACE.items()
    }
    modules = {
        "classify": classify_commands,
        "config": config_commands, "data": data_commands, "experiment": experiment_commands,
        "governance": governance_commands,
        "inspect": inspect_commands, "kpi": kpi_commands,
        "mirror": mirror_commands, "model": model_commands, "plan": plan_commands, "report": report_commands,
        "review": review_commands, "slurm": slurm_commands, "trace": trace_commands, "": commands,
    }  # fmt: skip
    assert all(callable(getattr(modules[group], function)) for _, _, (group, function) in found)
    assert {group for name, _, (group, _) in found if name.startswith("data ")} == {"data"}


@pytest.mark.parametrize(
    ("words", "current"),
    [
        (["report", "x.toml"], ["report", "write", "x.toml"]),
        (["-v", "report", "--root", "r", "x.toml"], ["-v", "report", "write", "--root", "r", "x.toml"]),
        (["report", "verify", "x.toml"], None), (["report", "write", "x.toml"], None), (["report", "--help"], None),
        (["report"], None), (["train", "report"], None), ([], None),
        (["report", "./verify"], ["report", "write", "./verify"]), (["report", "verfiy", "x"], None),
        (["report", "-v", "verify", "x"], None), (["report", "-q", "x.toml"], ["report", "write", "-q", "x.toml"]),
        (["report", "x.toml", "last"], ["report", "write", "x.toml"]),
        (["report", "x.toml", "--root", "last"], ["report", "write", "x.toml", "--root", "last"]),
        (["report", "verify", "x.toml", "last"], ["report", "verify", "x.toml"]),
        (["help"], ["--help"]), (["help", "data", "show"], ["data", "show", "--help"]),
    ],
)  # fmt: skip
def test_short_forms_are_for_whole_commands(words, current):
    assert current_words(words, parser(), pytest.fail) == (current or words)


def test_options_of_the_last_release_work_and_warn():
    warned = []
    words = ["data", "prepare", "run.toml", "--workers=3", "--worker", "2/3", "--engine", "daft"]
    waits = parser().parse_args(current_words(words, parser(), warned.append))
    assert (waits.task, waits.wait, waits.merge, waits.data_workers, waits.engine) == ((2, 3), True, False, 3, "daft")
    shares = parser().parse_args(
        current_words(["data", "prepare", "run.toml", "--share", "0/7"], parser(), warned.append)
    )
    assert (shares.task, shares.wait) == ((0, 7), False)
    merges = parser().parse_args(current_words(["data", "prepare", "run.toml", "--join"], parser(), warned.append))
    assert (merges.task, merges.merge) == (None, True)
    assert parser().parse_args(current_words(["run", "x.toml", "--processes", "4"], parser(), warned.append)).nproc == 4
    assert [line.partition(";")[0] for line in warned] == [
        "--workers is now --data-workers", "--worker is now --task I/N --wait", "--share is now --task",
        "--join is now --merge", "--processes is now --nproc",
    ]  # fmt: skip
    plain = parser().parse_args(["data", "prepare", "run.toml"])
    assert (plain.task, plain.wait, plain.merge, plain.engine) == (None, False, False, "duckdb")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["evaluate", "last", "x.toml", "--json"], ["evaluate", "x.toml", "last", "--json"]),
        (["export", "c", "f", "x.toml"], ["export", "x.toml", "c", "f"]),
        (["governance", "audit-model", "c", "x.toml"], ["governance", "audit-model", "x.toml", "c"]),
    ],
)
def test_the_order_of_the_last_release_works_and_warns(old, new):
    given, warned = [parser().parse_args(words) for words in (old, new)], []
    for arguments in given:
        in_order(arguments, warned.append)
    assert vars(given[0]) == vars(given[1])
    assert len(warned) == 1
    assert f"assay {' '.join(word for word in new if word != '--json')};" in warned[0]


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["--max-tokens", "3", "The cat"], ["The cat"]), (["The cat", "--max-tokens", "3"], ["The cat"]),
        (["a", "--max-tokens=3", "b", "-v", "c d"], ["a", "b", "c d"]),
        (["--max-tokens", "3", "--", "- item", "-v"], ["- item", "-v"]),
        (["a", "--max-tokens", "3", "- b", "--", "--", "--seed"], ["a", "- b", "--", "--seed"]),
        (["--", "-a", "--max-tokens"], ["-a", "--max-tokens"]), (["--max-tokens", "3"], []), ([], []),
    ],
)  # fmt: skip
def test_prompts_are_before_and_after_options(words, prompts):
    arguments = parser().parse_args(["generate", "my.toml", "last", *words])
    assert (str(arguments.config), str(arguments.checkpoint), arguments.prompts) == ("my.toml", "last", prompts)
    assert arguments.max_tokens == (3 if {"3", "--max-tokens=3"} & set(words) else 128)


def test_a_mistyped_option_among_prompts_is_no_prompt(capsys):
    for word in ("--max-tonkens", "--zzz", "-x"):
        with pytest.raises(SystemExit):
            parser().parse_args(["generate", "my.toml", "last", "--seed", "3", "a", word])
        assert f"unknown option {word}" in capsys.readouterr().err


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("word", "found"), [("-v", (True, False)), ("-q", (False, True))])
def test_verbose_and_quiet_are_anywhere(place, word, found):
    words = ["governance", "check", "x.toml"]
    words.insert(place, word)
    arguments = parser().parse_args(words)
    assert (arguments.verbose, arguments.quiet) == found


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("rnu x.toml", "'assay run'"), ("trian x.toml", "'assay train'"), ("evalute x.toml last", "'assay evaluate'"),
        ("exprot x.toml c f", "'assay export'"), ("slrum status x.toml", "'assay slurm'"),
        ("data perpare x.toml", "'assay data prepare'"), ("data sohw x.toml", "'assay data show'"),
        ("prepare x.toml", "'assay data prepare'"), ("governance chekc x.toml", "'assay governance check'"),
        ("goverance check x.toml", "'assay governance'"), ("report verfiy x", "'assay report verify'"),
        ("report comapre a b", "'assay report compare'"), ("slurm stauts x.toml", "'assay slurm status'"),
        ("verify x", "'assay governance verify' or 'assay report verify'"), ("data train x", "'assay train'"),
        ("governance audit-training x.toml", "'assay audit-training'"),
        ("run --ste train.steps=3 x.toml", "--set"), ("train x.toml --nporc 2", "--nproc"),
        ("train x.toml --dryrun", "--dry-run"), ("data prepare x.toml --tsak 0/2", "--task"),
        ("run x.toml --data-worker=2 --rooot r", "--root"), ("run x.toml --dry-run", "an option of: assay data pre"),
        ("report verify x --set a=1", "unknown option --set; it is an option of: assay config show"),
        ("init first --from quikstart", "did you mean 'quickstart'"), ("mirror", "the commands are: push, pull"),
        ("--json doctor", "--json follows the command: assay COMMAND --json"),
    ],
)  # fmt: skip
def test_a_mistyped_word_is_met_with_the_nearest(typed, nearest, capsys):
    with pytest.raises(SystemExit) as left:
        main(typed.split())
    assert left.value.code == 2
    assert nearest in capsys.readouterr().err.splitlines()[-1]


MISSING = (
    "run mien.toml", "run mine.toml mien.toml", "train x.toml", "evaluate mine.toml c", "evaluate x.toml last",
    "generate x.toml last", "generate mine.toml c", "interpret x.toml last t", "translate x.toml last t",
    "export mine.toml c out", "inspect x", "report x.toml", "report x.toml last", "report verify x",
    "report compare x mine.toml", "report index x", "config show x.toml", "data prepare x.toml", "data show x.toml",
    "data trace x 0", "data export x.toml out", "data clean-up x.toml", "slurm submit x.toml", "slurm status x.toml",
    "slurm logs x.toml", "governance check x.toml", "governance verify x", "governance trace x",
    "governance diff mine.toml x", "governance freeze x.toml out", "governance review x.toml --key k",
    "governance suites x.toml out", "governance suites x.json", "governance site x.toml",
    "governance impact doc --root x", "governance audit-model x.toml c", "governance anchor x.toml",
    "governance takedown x.toml doc",
)  # fmt: skip


def test_a_mistyped_path_is_refused_before_anything_slow_is_imported(tmp_path):
    (tmp_path / "mine.toml").touch()
    code = (
        "import sys\nfrom assay.cli.main import main\n"
        f"for words in {MISSING!r}: print(main(words.split()), end=' ')\n"
        "print(sorted({'torch', 'pydantic', 'numpy', 'pyarrow', 'pandas', 'great_expectations'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "66 " * len(MISSING) + "[]\n"
    assert "mien.toml: no such file. Did you mean mine.toml?" in done.stderr


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["run", "x.toml", "--data-workers", "0"], "not a whole number of at least 1"),
        (["data", "prepare", "x.toml", "--root", "s3://b/x"], "copy it with: assay mirror push FOLDER s3://b/x"),
        *((["train", "x.toml", f"--gpu-memory={word}"], "not a size above 0 with its unit, such as 80GiB")
          for word in ("80", "0GiB", "-1GiB", "80 GiB", "80gib", "\N{ARABIC-INDIC DIGIT ONE}GiB")),
        (["train", "x.toml", "--device", "tpu"], "invalid choice: 'tpu'"),
        *((["data", "prepare", "x.toml", f"--task={word}"], "I from 0 to N - 1")
          for word in ("3/3", "1", "-1/2", "1/0", "a/b", "1/2/3", "\N{ARABIC-INDIC DIGIT ONE}/2", "")),
        (["data", "prepare", "x.toml", "--engine", "spark"], "invalid choice"),
        (["data", "prepare", "x.toml", "--wait"], "--wait requires --task I/N"),
        *((["data", "prepare", "x.toml", *two], "not allowed with argument")
          for two in (("--task=0/2", "--merge"), ("--join", "--share=0/2"), ("-v", "-q"))),
        (["data", "trace", "x.tokens", "-1"], "OFFSET"),
        (["data", "trace", "x.tokens", "1.5"], "not a whole number of at least 0"),
        (["data", "export", "x.toml", "/"], "does not name a file"),
        (["data", "export", "x.toml", "folder/"], "does not name a file"),
        (["data", "import", "x", "--root", "r", "--vocabulary-size", "9"], "--end-of-document"),
        (["data", "show"], "CONFIG|ARTIFACT"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(words, output, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert output in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["train"], ["run"]])
def test_help_lists_the_exit_codes(words, capsys):
    with pytest.raises(SystemExit) as left:
        parser().parse_args([*words, "--help"])
    assert left.value.code == 0
    output = capsys.readouterr().out
    assert all(
        f"{code} " in output.partition("exit codes:")[2]
        for code in (0, 1, 2, 65, 66, 69, 70, 71, 73, 74, 75, 77, 78, 130)
    )


def test_wrong_words_explain_themselves():
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "run", "x.toml", "--data-workers", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not a whole number of at least 1" in done.stderr


def test_the_help_of_an_option_states_its_default():
    silent = [
        (words, action.option_strings)
        for words, command in leaves(parser())
        for action in command._actions
        if action.option_strings and action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS)
        if "default" not in (action.help or "")
    ]
    assert not silent


@pytest.mark.parametrize("buffering", [1, -1])
@pytest.mark.parametrize("words", [["--json"], []])
def test_a_full_disk_below_standard_output_is_a_disk_error(tmp_path, monkeypatch, capsys, buffering, words):
    with open("/dev/full", "w", buffering=buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["init", str(tmp_path / "new"), *words]) == 74
    assert "cannot write standard output: no space left" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "buffering"), [(["--json"], 1), (["--json"], -1), ([], -1)])
@pytest.mark.parametrize("failing", [MissingInput, KeyboardInterrupt])
def test_a_full_disk_or_closed_pipe_does_not_hide_a_commands_error(monkeypatch, capsys, words, buffering, failing):
    def doctor(arguments):
        say("half of the answer")
        raise failing("no such thing")

    monkeypatch.setattr(config_commands, "doctor", doctor)
    reading, writing = os.pipe()
    os.close(reading)
    unwritable = os.open(os.devnull, os.O_RDONLY)
    full_disk = ("/dev/full", "cannot write standard output: no space left")
    for out, said in (full_disk, (writing, ""), (unwritable, "Bad file descriptor")):
        with open(out, "w", buffering=buffering) as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(["doctor", *words]) == (66 if failing is MissingInput else 130)
        err = capsys.readouterr().err
        assert ("no such thing" if failing is MissingInput else "interrupted") in err
        assert said in err
    monkeypatch.setattr(sys, "stdout", None)  # assay doctor >&-
    assert main(["doctor", *words]) == (66 if failing is MissingInput else 130)


def test_a_closed_pipe_ends_a_command_quietly(tmp_path, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["init", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--json"], []])
def test_an_interrupt_that_a_library_lost_is_still_one(monkeypatch, capsys, words):
    """Within pyarrow's import of pandas a Ctrl-C became an AttributeError of the module that was half imported."""

    def doctor(arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("partially initialized module 'pandas'")

    monkeypatch.setattr(config_commands, "doctor", doctor)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    try:
        assert main(["doctor", *words]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    assert "interrupted; finished work is kept" in (said.out if words else said.err)


@pytest.mark.parametrize("place", ["{0}/file.toml --root {1}/root", "{1}/file.toml", "{1}/file.toml --root {0}/root"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path, capsys, place):
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    for folder in (tmp_path, odd):
        source = '[[data.sources]]\ntype = "text"\nname = "mine"\npaths = ["*.txt"]\nlicence = "CC0-1.0"\n'
        (folder / "file.toml").write_text(source)
        (folder / "a.txt").write_text("A text of a few words. " * 50)
    assert main(["data", "prepare", *place.format(tmp_path, odd).split()]) == 78
    assert re.search(r"odd.*is not UTF-8\. Rename it", capsys.readouterr().err)

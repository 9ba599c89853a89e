"""Nearest words for mistyped ones, and words of the last release.

`Parser` answers an unknown word with the nearest known one. `current_words` turns the options of the last release
into those of today, `in_order` its order of positional words; both warn, and go with the next release.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

REPORT_COMMANDS = ("write", "verify", "compare", "index")
_OLD_OPTIONS = {
    "--workers": ("--data-workers",),
    "--processes": ("--nproc",),
    "--worker": ("--wait", "--task"),
    "--share": ("--task",),
    "--join": ("--merge",),
}
"""Option of the last release -> the same today; the last word takes the value.

A command that has an option of that name keeps it: `audit-training --share`.
"""
_INPUTS = ("config", "path", "checkpoint", "artifact", "shard", "run", "ours", "theirs", "policy", "runs", "kpis")
"""Positional words that name something on disk that must exist."""
_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")

Warn = Callable[[str], None]


class Parser(argparse.ArgumentParser):
    """An argument parser with suggestions, -v and -q in every command."""

    top: Parser | None = None
    """The whole program's parser, to find a word that belongs to another command."""
    repeated: str = ""
    """A repeatable positional word that may follow options, too; argparse takes it in one place only."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Add -v and -q to every parser."""
        super().__init__(*arguments, **named)
        amount = self.add_mutually_exclusive_group()
        amount.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="print more messages"
        )
        amount.add_argument(
            "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="print warnings and errors only"
        )

    def parse_known_args(  # type: ignore[override] # its overloads say no more than this
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Refuse unknown words with a suggestion, then parse."""
        words = list(sys.argv[1:] if args is None else args)
        commands = subcommands(self)
        for word in words[: words.index("--")] if "--" in words else words:
            if word.startswith("-") and word != "-":
                self._refuse_option(word)
            elif commands:
                if word not in commands:
                    self._refuse_command(word, commands)
                break
        parsed, left = super().parse_known_args(words, namespace)
        if self.repeated:  # unknown options are refused above
            if "--" in left:
                left.remove("--")
            setattr(parsed, self.repeated, [*getattr(parsed, self.repeated), *left])
            left = []
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """End with the message, and the nearest choice or a group's commands."""
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message):
            known = [word.strip(" '") for word in wrong[2].split(",")]
            if near := difflib.get_close_matches(wrong[1], known, n=1):
                message += f"; did you mean {near[0]!r}?"
        elif message.endswith("required: COMMAND"):
            message = f"a command is missing; the commands are: {', '.join(subcommands(self))}"
        super().error(message)

    def _refuse_option(self, word: str) -> None:
        known = _options(self)
        name = word.partition("=")[0]
        short = not name.startswith("--") and name[:2] in known
        if short or any(option.startswith(name) for option in known) or " " in word or _NUMBER.fullmatch(word):
            return  # argparse completes options, and takes a word with a space or a number as a value
        near = difflib.get_close_matches(name, known, n=1)
        owners = [path for path, leaf in leaves(self.top or self) if name in _options(leaf)]
        if any(name in _options(leaf) for _, leaf in leaves(self)):
            self.error(f"{name} follows the command: {self.prog} COMMAND {name}")
        if owners:
            others = f" and {len(owners) - 4} other commands" if len(owners) > 5 else ""
            named = ", ".join(f"assay {path}" for path in (owners[:4] if others else owners))
            self.error(f"unknown option {name}; it is an option of: {named}{others}")
        if near:
            self.error(f"unknown option {name}; did you mean {near[0]}?")
        self.error(f"unknown option {name}; the options are listed by: {self.prog} --help")

    def _refuse_command(self, word: str, commands: dict[str, Parser]) -> NoReturn:
        paths = [path for path, _ in leaves(self.top or self)]
        elsewhere = [path for path in paths if path.rpartition(" ")[2] == word]
        near = difflib.get_close_matches(word, commands, n=1)
        if not near and not elsewhere:
            last = {path.rpartition(" ")[2]: path for path in paths}
            elsewhere = [last[name] for name in difflib.get_close_matches(word, last, n=1, cutoff=0.75)]
        suggestions = [f"assay {path}" for path in elsewhere] or [f"{self.prog} {name}" for name in near]
        if suggestions:
            self.error(f"unknown command {word!r}; did you mean {' or '.join(map(repr, suggestions))}?")
        self.error(f"unknown command {word!r}; the commands are: {', '.join(commands)}")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """Subcommands of a parser by name; empty for a command without any."""
    for action in parser._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, Parser]]:
    """Each command that runs something, with its words."""
    for name, command in subcommands(parser).items():
        words = f"{path} {name}".strip()
        if subcommands(command):
            yield from leaves(command, words)
        else:
            yield words, command


def _command(words: Sequence[str], top: Parser) -> Parser:
    """The innermost command that the words name."""
    command = top
    for word in (word for word in words if not word.startswith("-")):
        command = subcommands(command).get(word, command)
    return command


def current_words(words: Sequence[str], top: Parser, warn: Warn) -> list[str]:
    """The words as the parser knows them.

    `assay report CONFIG` is short for `assay report write CONFIG`, `assay help X` for `assay X --help`; the `last` of
    `assay report CONFIG last` is left out, because a report is always on the last run of its CONFIG.
    """
    renamed = _renamed(words, _options(_command(words, top)), warn)
    place = next((index for index, word in enumerate(renamed) if not word.startswith("-")), len(renamed))
    options, command, rest = renamed[:place], renamed[place : place + 1], renamed[place + 1 :]
    if command == ["help"]:
        return [*options, *rest, "--help"]
    return [*options, *command, *(_report_words(rest) if command == ["report"] else rest)]


def _renamed(words: Sequence[str], own: Sequence[str], warn: Warn) -> list[str]:
    """The words with options of the last release under today's names.

    `own` are the command's options of today.
    """
    renamed: list[str] = []
    old = {name: now for name, now in _OLD_OPTIONS.items() if name not in own}
    for index, word in enumerate(words):
        if word == "--":
            return renamed + list(words[index:])
        name, equals, value = word.partition("=")
        *before, last = old.get(name, (name,))
        renamed += [*before, last + equals + value]
        if name in old:
            shown = f"{last} I/N {' '.join(before)}" if before else last
            warn(f"{name} is now {shown}; the old option will be removed in the next release")
    return renamed


def _report_words(rest: Sequence[str]) -> list[str]:
    """The words after `assay report`, without `last` and with the command."""
    rest = list(rest)
    plain = [word for word in rest if not word.startswith("-") and word not in ("write", "verify")]
    if plain[:1] != ["compare"] and "last" in plain[1:] and not Path("last").exists():
        config = rest.index(plain[0])
        if rest[config + 1 : config + 2] == ["last"]:
            del rest[config + 1]
    first = next((word for word in rest if word not in ("-v", "--verbose", "-q", "--quiet")), "")
    if first in ("", "-h", "--help", *REPORT_COMMANDS):
        return rest
    mistyped = re.fullmatch(r"[a-z]+", first) and difflib.get_close_matches(first, REPORT_COMMANDS, n=1)
    return rest if mistyped and not Path(first).exists() else ["write", *rest]


def join_files(words: Sequence[str], top: Parser) -> list[str]:
    """`a.toml b.toml` as `a.toml --with b.toml`, for commands that merge files."""
    command = _command(words, top)
    if "--with" not in _options(command) or any(action.dest == "kpis" for action in command._actions):
        return list(words)
    joined: list[str] = []
    after_file = False
    for word in words:
        is_file = word.endswith(".toml") and not word.startswith("-")
        joined += ["--with", word] if is_file and after_file else [word]
        after_file = is_file
    return joined


def last_without_file(words: Sequence[str]) -> str:
    """Explanation of `assay evaluate last` without a run file, or ""."""
    plain = [word for word in words if not word.startswith("-")]
    command = " ".join(plain[:2] if plain[:1] in (["report"], ["governance"]) else plain[:1])
    if "last" not in plain or Path("last").exists() or any(word.endswith(".toml") for word in plain):
        return ""
    given = {"evaluate": "CONFIG last", "generate": "CONFIG last PROMPT", "interpret": "CONFIG last TEXT",
             "translate": "CONFIG last TEXT",
             "export": "CONFIG last FOLDER",
             "report write": "CONFIG", "report verify": "CONFIG",
             "governance audit-model": "CONFIG last", "governance audit-memorisation": "CONFIG last",
             }.get(command, "")  # fmt: skip
    return f"'last' is the last run of a run file; name that file: assay {command} {given}" if given else ""


def in_order(arguments: argparse.Namespace, warn: Warn) -> None:
    """Put the last release's order of positional words, CONFIG last, right."""
    given = [name for name in ("config", "checkpoint", "target") if hasattr(arguments, name)]
    if len(given) < 2:
        return
    values = [getattr(arguments, name) for name in given]
    if values[-1].suffix == ".toml" and values[0].suffix != ".toml":
        for name, value in zip(given, (values[-1], *values[:-1]), strict=True):
            setattr(arguments, name, value)
        shown = " ".join(str(getattr(arguments, name)) for name in given)
        warn(
            f"the run file comes first now: assay {arguments.words} {shown}; "
            "the old order will be removed in the next release"
        )


def _shipped(path: Path) -> Path:
    """The shipped configuration of this name, such as `configs/1b.toml`."""
    known = str(path.parent) in (".", "configs")
    return Path(__file__).parents[1] / "configs" / path.name if known else path


def refuse_missing(arguments: argparse.Namespace) -> None:
    """Refuse a path that does not exist, before anything slow is imported.

    A missing `configs/1b.toml` is the shipped one.

    Raises:
        MissingInput: a path names nothing.
        ConfigError: the run's file is left out.
    """
    from governance.errors import MissingInput, near_path

    named = [(name, getattr(arguments, name, None)) for name in _INPUTS]
    named += [("config", path) for path in getattr(arguments, "more", [])]
    for name, path in [*named, *(("root", root) for root in getattr(arguments, "roots", []))]:
        if path is None or path.exists() or (name == "checkpoint" and str(path) == "last"):
            continue
        if name == "config" and _shipped(path).is_file() and hasattr(arguments, "more"):
            arguments.more = [_shipped(path) if other == path else other for other in arguments.more]
            arguments.config = _shipped(path) if arguments.config == path else arguments.config
            continue
        near = near_path(path, *(["last"] if name == "checkpoint" else []))
        if name == "config":
            raise MissingInput(f"{path}: no such file.{near or ' Name a run file (TOML), or write one: assay init'}")
        raise MissingInput(f"{path}: no such file or folder in {path.absolute().parent}.{near}")

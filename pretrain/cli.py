"""The command line: what can be typed, and how errors become exit codes.

A command's work is one function in `pretrain/commands.py`, imported when it is called, so that `assay --help` needs
neither torch nor pydantic. The set of commands and options is pinned by `tests/pretrain/test_cli.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import ModuleType

_EPILOG = """exit codes: 0 done, 66 something is missing, 65 something was altered or torn, 69 the scheduler refused,
74 the disk refused, 75 preempted (run the same command again), 77 the gate is closed, 78 the configuration is wrong"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    # Read once, when torch loads OpenMP: a waiting thread spins for a moment and then sleeps. By default it spins on,
    # on the core that the other thread needs when the machine is shared (benchmarks/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = parser().parse_args(argv)
    from governance.errors import PipelineError
    from governance.log import get_logger, set_up_logging
    from pretrain.distributed import read_ranks

    set_up_logging(verbose=arguments.verbose)
    try:
        set_up_logging(read_ranks().rank, verbose=arguments.verbose)
        return int(getattr(_module(arguments), arguments.command)(arguments) or 0)
    except PipelineError as error:
        get_logger(__name__).error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except KeyboardInterrupt:
        get_logger(__name__).error("interrupted; finished work is kept, the same command goes on from there")
        return 130
    except BrokenPipeError:  # `assay data show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """The whole command surface."""
    top = argparse.ArgumentParser(
        prog="assay",
        description="Pretraining that you can account for: raw corpus -> audited tokens -> trained model -> report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"assay {_version()}")
    top.add_argument("-v", "--verbose", action="store_true", help="tell more")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    command = _add(commands, "run", "run", "all of it on this machine: data, audit, gate, training, report")
    _config(command)
    _processes(command)
    _data(commands)
    _governance(commands)
    _training(commands)
    _slurm(commands)
    command = _add(commands, "report", "report", "write report.html and report.json of a run")
    _config(command)
    return top


def _module(arguments: argparse.Namespace) -> ModuleType:
    from pretrain import commands, data_commands

    return data_commands if arguments.group == "data" else commands


def _data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("data", help="prepare a corpus, or look at one", description="The corpus.")
    group = group.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: str, text: str) -> argparse.ArgumentParser:
        command = _add(group, name, function, text)
        command.set_defaults(group="data")
        return command

    command = add("prepare", "prepare", "make every artifact of the corpus")
    _config(command)
    command.add_argument(
        "--worker",
        type=_worker,
        default=(0, 1),
        metavar="I/N",
        help="be worker I (from 0) of N that share the work: --worker $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT",
    )
    command.add_argument(
        "--engine", choices=("duckdb", "daft"), default="duckdb", help="of the global joins; daft runs on Ray too"
    )
    command = add("show", "show", "print a corpus through its stages: counts, histograms, samples (PII masked)")
    _config(command, "CONFIG|ARTIFACT", "the run's TOML file, or an artifact's folder")
    command = add("trace", "trace", "say which document, file and place a token is from")
    command.add_argument("shard", type=Path, metavar="SHARD", help="a token shard (.tokens) or packed rows (.rows)")
    command.add_argument("offset", type=_natural, metavar="OFFSET", help="the token's number in it, from 0")
    _config(
        add(
            "train-classifier", "train_classifiers", "train the models of [[data.classifiers]], print how good they are"
        )
    )
    command = add("export", "export", "write the token shards as Megatron's PREFIX_train.bin and .idx")
    _config(command)
    command.add_argument("prefix", type=_prefix, metavar="PREFIX", help="path and first part of the files' names")
    command = add("import", "import_tokens", "make token shards of Megatron's PREFIX.bin and PREFIX.idx")
    command.add_argument("prefix", type=_prefix, metavar="PREFIX", help="the two files without their endings")
    command.add_argument("--root", type=Path, required=True, help="folder of all artifacts")
    command.add_argument("--vocabulary-size", type=_positive, required=True, help="every id is below it")
    command.add_argument("--end-of-document", type=_natural, required=True, help="id of the token that ends a document")


def _governance(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("governance", help="audit, verify, compare, sign", description="Checks and evidence.")
    group = group.add_subparsers(metavar="COMMAND", required=True)
    _config(_add(group, "check", "governance_check", "audit the corpus and sign the verdict"))
    command = _add(group, "verify", "governance_verify", "read every file below ROOT and compare it with its manifest")
    command.add_argument("artifact", type=Path, metavar="ROOT", help="a root of artifacts, or one artifact's folder")
    command.add_argument(
        "--key",
        dest="keys",
        type=Path,
        action="append",
        default=[],
        metavar="PUBLIC_KEY",
        help="believe verdicts of this key, instead of your own (repeatable)",
    )
    command = _add(group, "trace", "governance_trace", "print what an artifact was made from, down to the source files")
    command.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact's folder or its manifest.json")
    command = _add(group, "diff", "governance_diff", "print in words how two artifacts differ")
    command.add_argument("ours", type=Path, metavar="A", help="an artifact's folder or its manifest.json")
    command.add_argument("theirs", type=Path, metavar="B", help="another")
    command = _add(group, "audit-model", "governance_audit_model", "measure what a checkpoint leans to")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    _config(command)
    command = _add(group, "keygen", "governance_keygen", "make an Ed25519 key pair that signs verdicts")
    command.add_argument("path", type=Path, nargs="?", metavar="PATH", help="where; default: your configuration folder")


def _training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(commands, "train", "train", "train on a corpus whose gate is open; goes on from the last checkpoint")
    _config(command)
    _processes(command)
    command = _add(commands, "evaluate", "evaluate", "validation loss and bits per byte of a checkpoint")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    _config(command)
    command = _add(commands, "export", "export", "write a checkpoint as a Hugging Face Llama folder")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    command.add_argument("target", type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    _config(command)


def _slurm(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("slurm", help="the run as a Slurm job", description="The run as a Slurm job.")
    group = group.add_subparsers(metavar="COMMAND", required=True)
    _config(_add(group, "render", "slurm_render", "print the job script"))
    _config(_add(group, "submit", "slurm_submit", "submit it; the script is kept with the run"))
    _config(_add(group, "status", "slurm_status", "the job's state in the queue"))


def _add(
    group: argparse._SubParsersAction[argparse.ArgumentParser], name: str, function: str, text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(command=function, group="")
    return command


def _config(command: argparse.ArgumentParser, name: str = "CONFIG", text: str = "the run's TOML file") -> None:
    command.add_argument("config", type=Path, metavar=name, help=text)
    command.add_argument("--root", type=Path, help="folder of all artifacts (default: runs/<name of CONFIG>)")
    command.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="processes for data (default: cores)"
    )
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one setting, VALUE in TOML's grammar: --set train.steps=20 (repeatable)",
    )


def _processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=_positive, default=1, help="training processes on this machine (default: 1)"
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def _prefix(text: str) -> Path:
    if not Path(text).name or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} names no file: give a path and the first part of a name")
    return Path(text)


def _worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (text.isascii() and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(number), int(count)


def _version() -> str:
    from importlib import metadata

    return metadata.version("assay-pretrain")

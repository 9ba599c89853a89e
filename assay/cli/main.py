"""Command line: parser, error handling and exit codes.

Each command is one function of a `*_commands.py` in this folder, imported when it is called, so that `assay --help`
needs neither torch nor pydantic. `tests/assay/test_cli.py` pins the set of commands and options.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from assay.cli.governance_options import add_commands as add_governance
from assay.cli.governance_options import trusted_keys
from assay.cli.option_values import hours, natural, positive, prefix, size, worker

_REPORT_COMMANDS = ("write", "verify", "compare", "index")

_EPILOG = """exit codes: 0 done, 1 error (see message), 2 usage error, 65 data altered or torn, 66 input missing,
69 scheduler or node unavailable, 70 a training process hung, 71 energy budget exhausted, 73 another attempt
holds the run, 74 disk error, 75 preempted (run the same command again), 77 gate closed, 78 configuration error"""


def program() -> int:
    """Run `main`, then end the process without Python's teardown after training."""
    status = main()
    if "torch.distributed" in sys.modules:
        from pretrain.distributed.process_group import end_rank

        end_rank(status)
    return status


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    # Read once, when torch loads OpenMP: a waiting thread spins for a moment and then sleeps. By default it spins on,
    # on the core that the other thread needs when the machine is shared (benchmarks/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = parser().parse_args(whole_words(sys.argv[1:] if argv is None else argv))
    from governance.errors import PipelineError
    from governance.log import get_logger, set_up_logging
    from pretrain.distributed.process_group import read_ranks

    set_up_logging(verbose=arguments.verbose)
    if launcher := os.environ.pop(
        "ASSAY_LAUNCHER", ""
    ):  # LAUNCHER of launcher.py, whose import every command would pay
        from governance.processes import end_with_parent

        end_with_parent(int(launcher), signal.SIGTERM)
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
    top.add_argument("-v", "--verbose", action="store_true", help="verbose logging")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    command = _add(commands, "run", "run", "run everything on this machine: data, audit, gate, training, report")
    _config(command)
    _processes(command)
    _from_scratch(command)
    _codes(command)
    _data(commands)
    add_governance(_group(commands, "governance", "audit, verify, trace, sign", "Checks and evidence."), _config)
    _training(commands)
    _slurm(commands)
    _report(commands)
    return top


def whole_words(words: Sequence[str]) -> list[str]:
    """The words as the parser knows them.

    `assay report CONFIG` is short for `assay report write CONFIG`.
    """
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    if list(words[place : place + 1]) != ["report"] or list(words[place + 1 :]) in ([], ["-h"], ["--help"]):
        return list(words)
    short = words[place + 1] not in _REPORT_COMMANDS
    return [*words[: place + 1], *(["write"] if short else []), *words[place + 1 :]]


def _module(arguments: argparse.Namespace) -> ModuleType:
    from importlib import import_module

    return import_module(f"assay.cli.{arguments.group}_commands" if arguments.group else "assay.cli.run_commands")


def _data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = _group(commands, "data", "prepare a corpus, or look at one", "The corpus.")
    command = add("prepare", "prepare", "make every artifact of the corpus")
    _config(command)
    part = command.add_mutually_exclusive_group()
    part.add_argument(
        "--worker",
        type=worker,
        default=(0, 1),
        metavar="I/N",
        help="run as worker I (from 0) of N concurrent workers, which wait for each other",
    )
    part.add_argument(
        "--share",
        type=worker,
        metavar="I/N",
        help="array task I (from 0) of N: make its missing shards of the next data step, then exit",
    )
    part.add_argument(
        "--join", action="store_true", help="merge the results of array tasks: make what lies between two data steps"
    )
    command.add_argument(
        "--engine",
        choices=("duckdb", "daft"),
        default="duckdb",
        help="engine of the global joins; daft also runs on Ray",
    )
    command = add("show", "show", "print a corpus through its stages: counts, histograms, samples (PII masked)")
    _config(command, "CONFIG|ARTIFACT", "the run's TOML file, or an artifact's folder")
    command = add("trace", "trace", "say which document, file and place a token is from")
    command.add_argument("shard", type=Path, metavar="SHARD", help="a token shard (.tokens) or packed rows (.rows)")
    command.add_argument("offset", type=natural, metavar="OFFSET", help="the token's number in it, from 0")
    _config(
        add(
            "train-classifier", "train_classifiers", "train the models of [[data.classifiers]], print how good they are"
        )
    )
    command = add("export", "export", "write the token shards as Megatron's PREFIX_train.bin and .idx")
    _config(command)
    command.add_argument("prefix", type=prefix, metavar="PREFIX", help="path and first part of the files' names")
    command = add("import", "import_tokens", "make token shards of Megatron's PREFIX.bin and PREFIX.idx")
    command.add_argument("prefix", type=prefix, metavar="PREFIX", help="the two files without their endings")
    command.add_argument("--root", type=Path, required=True, help="folder of all artifacts")
    command.add_argument("--vocabulary-size", type=positive, required=True, help="every id is below it")
    command.add_argument("--end-of-document", type=natural, required=True, help="id of the token that ends a document")


def _training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(commands, "train", "train", "train on a corpus whose gate is open; goes on from the last checkpoint")
    _config(command)
    _processes(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="print sizes, layout, memory and DeepSpeed's JSON, or the reason for a refusal; start nothing",
    )
    command.add_argument("--ranks", type=positive, help="with --dry-run: total ranks, --processes of them on each node")
    command.add_argument("--device", choices=("cpu", "cuda"), help="with --dry-run: plan for nodes of this kind")
    command.add_argument(
        "--gpu-memory", type=size, metavar="SIZE", help="with --device cuda: memory of each GPU, such as 80GiB"
    )
    _from_scratch(command)
    _codes(command)
    command = _add(
        commands, "evaluate", "evaluate", "a checkpoint's validation loss, by source and language, and its tasks"
    )
    command.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint's folder, or `last`: this run's final one",
    )
    command.add_argument("--json", action="store_true", help="print all figures as JSON")
    _config(command)
    command = _add(commands, "export", "export", "write a checkpoint as a Hugging Face folder")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    command.add_argument("target", type=Path, metavar="FOLDER", help="a new folder")
    command.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="data type of the weights (default: %(default)s)",
    )
    _config(command)


def _report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    told = 'Reports of runs. "assay report CONFIG" is short for "assay report write CONFIG".'
    add = _group(commands, "report", "write, verify, compare or list the reports of runs", told)
    command = add("write", "write", "write report.html and report.json of a run")
    _config(command)
    command.add_argument(
        "--documents", action="store_true", help="also the model card, datasheet, bills of materials and forms"
    )
    run = "CONFIG|ROOT|REPORT"
    text = "a run's TOML file, a run's root (its newest report), or a report's folder"
    command = add("verify", "verify", "compute every number again from the evidence, and name those that differ")
    command.add_argument("run", type=Path, metavar=run, help=text)
    command.add_argument("--root", type=Path, help="of a CONFIG: folder of all artifacts (default: runs/<its name>)")
    trusted_keys(command)
    command = add("compare", "compare", "set two runs side by side: verdict, data, loss, speed, energy, configuration")
    command.add_argument("ours", type=Path, metavar="A", help=text)
    command.add_argument("theirs", type=Path, metavar="B", help="the other one")
    command.add_argument("--html", type=Path, metavar="PATH", help="also write an HTML page")
    command = add("index", "index", "list all runs under a folder: a page of them, and lines")
    command.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder with roots of runs, at most three levels deep"
    )
    command.add_argument("--html", type=Path, metavar="PATH", help="path of the page (default: FOLDER/index.html)")


def _slurm(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = _group(commands, "slurm", "the run as jobs of a Slurm cluster", "The run as jobs of a Slurm cluster.")
    command = add("render", "render", "print the jobs' scripts; nothing is submitted")
    _config(command)
    command.add_argument("--job", default="", metavar="JOB", help="only this job's script")
    command = add("submit", "submit", "submit the run; what the cluster would refuse is refused before")
    _config(command)
    command.add_argument(
        "--carbon-aware",
        type=Path,
        metavar="CSV",
        help="start in the greenest hours of this forecast (CSV: time,grams_per_kwh)",
    )
    command.add_argument(
        "--latest", type=hours, metavar="HOURS", help="with --carbon-aware: start within this many hours (default: 24)"
    )
    command.add_argument(
        "--expected",
        type=hours,
        metavar="HOURS",
        help="with --carbon-aware: duration of the run (default: training's time limit)",
    )
    command.add_argument(
        "--fetch", action="store_true", help="download remote sources here first, for compute nodes without internet"
    )
    _submits(command)
    command = add("status", "status", "each job, shards, training, energy, and what to type next")
    _config(command)
    command.add_argument("--watch", action="store_true", help="repeat until all jobs have ended")
    _config(add("cancel", "cancel", "cancel every job that waits or runs"))
    command = add("retry", "retry", "submit again what failed, tasks of arrays by number, and what hangs on it")
    _config(command)
    _submits(command)
    command = add("logs", "logs", "print a job's log")
    _config(command)
    command.add_argument(
        "--job", default="", metavar="JOB", help='"train", or a task such as "clean[3]" (default: the one to look at)'
    )
    command.add_argument("--attempt", type=int, metavar="N", help="attempt, from 0 (default: the newest)")
    command.add_argument("--rank", type=int, metavar="N", help="rank of a training (default: all)")
    command.add_argument("--follow", action="store_true", help="follow the log until the job has ended")
    _config(add("preflight", "preflight", "check this node for training; the job starts it on each of its nodes"))


def _submits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--local",
        action="store_true",
        help="run the jobs here one after the other, without a queue or inside salloc",
    )
    command.add_argument(
        "--take-edits",
        action="store_true",
        help="accept edits of run file, policy or program since submission (default: refuse)",
    )


def _group(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, description: str
) -> Callable[[str, str, str], argparse.ArgumentParser]:
    """A command's group.

    Returns a function that adds a command (name, function, help) of its module.
    """
    group = commands.add_parser(name, help=text, description=description).add_subparsers(
        metavar="COMMAND", required=True
    )

    def add(command: str, function: str, told: str) -> argparse.ArgumentParser:
        added = _add(group, command, function, told)
        added.set_defaults(group=name)
        return added

    return add


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
        "--workers", type=positive, default=os.cpu_count() or 1, help="processes of the data stages (default: cores)"
    )
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one setting, VALUE in TOML's grammar: --set train.steps=100 (repeatable)",
    )


def _processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=positive, default=1, help="training processes on this machine (default: 1)"
    )


def _from_scratch(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from-scratch",
        dest="overrides",
        action="append_const",
        const="checkpoint.from_scratch=true",
        help="start at step 1 although earlier checkpoints are lost or damaged (otherwise refused)",
    )


def _codes(command: argparse.ArgumentParser) -> None:
    command.epilog, command.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter


def _version() -> str:
    from importlib import metadata

    return metadata.version("assay-pretrain")

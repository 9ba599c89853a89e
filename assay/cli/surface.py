"""The command surface: every command and option, with its help."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from assay.cli.command_words import Parser, leaves, subcommands
from assay.cli.governance_options import add_commands as add_governance
from assay.cli.governance_options import checkpoint_option, trusted_keys
from assay.cli.option_values import (
    engine,
    flag,
    hours,
    natural,
    nproc,
    option,
    path,
    positive,
    prefix,
    root_folder,
    size,
    task,
)  # fmt: skip

_EXAMPLES = (
    "quickstart", "speedrun", "handbook", "web", "10m", "125m", "350m", "1b", "7b", "13b", "70b",
    "transformer-base", "transformer-big", "policy", "policy-strict",
)  # fmt: skip
"""The shipped configurations; pinned, so that `--help` reads no folder."""
_JUDGED = "data and policy"
_WITHOUT_JSON = ("completion", "schema")
"""Functions that print a script or a schema."""
Commands = argparse._SubParsersAction

_EPILOG = """exit codes: 0 done, 1 error (see message), 2 usage error, 65 data altered or torn, 66 input missing,
69 scheduler or node unavailable, 70 a training process hung, 71 energy budget exhausted, 73 another attempt
holds the run, 74 disk error, 75 preempted (run the same command again), 76 training diverged, 77 gate closed,
78 configuration error, 130 interrupted (finished work is kept)"""
_FIRST = """first steps: assay inspect FOLDER                       what your documents hold; proposes a run's file
             assay init my-run                          writes an example of a run's file, and a policy
             assay run my-run/quickstart.toml           the example: a whole run in miniature, on this machine
             assay COMMAND --help                       options of a command

"""


@functools.cache
def parser() -> Parser:
    """The whole command surface.

    It is built once in a process, because its 70 commands take 30 ms.
    """
    top = Parser(
        prog="assay",
        description="Pretraining that you can account for: raw corpus -> audited tokens -> trained model -> report.",
        epilog=_FIRST + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("-V", "--version", action="version", version=f"assay {metadata.version('assay-pretrain')}")
    top.set_defaults(verbose=False, quiet=False)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    _setup(commands)
    text = "do everything on this machine: prepare the corpus, audit it, train, write the report"
    command = _config(_add(commands, "run", "run", text))
    nproc(command)
    engine(command)
    _from_scratch(command)
    _codes(command)
    _inspect(commands)
    _data(commands)
    about = "audit a corpus, and sign, verify and trace artifacts"
    judged = functools.partial(_corpus, needs=_JUDGED)
    add_governance(_group(commands, "governance", about), _config, judged)
    _training(commands)
    _plan(commands)
    _classify(commands)
    _experiment(commands)
    _slurm(commands)
    _report(commands)
    _mirror(commands)
    for command in (*subcommands(top).values(), *(leaf for _, leaf in leaves(top))):
        command.top = top
    return top


def _inspect(commands: Commands[Parser]) -> None:
    about = "show what files hold, without a configuration, and propose a run's file"
    command = _add(commands, "inspect", "inspect", about, "inspect")
    path(command, "path", "PATH", "a file or folder of documents, of any known format")
    path(command, "--output", "FOLDER", "where the page and the proposed file are written (default: inspect-NAME)")
    text = "megabytes of text above which a sample is read (default: %(default)s)"
    option(command, "--sample-mb", positive, "N", text, default=500)
    text = "search the documents for the items of this evaluation set, JSON Lines or Parquet (repeatable)"
    path(command, "--eval-set", "PATH", text, dest="eval_sets", action="append", default=[])
    _data_workers(command)


def _mirror(commands: Commands[Parser]) -> None:
    add = _group(commands, "mirror", "copy a root to S3, GCS or another store, and back")
    url = "folder of the store: s3://bucket/runs/mine, gs://..., or any other that fsspec supports"
    command = add("push", "push", "send the files of a root that the store lacks; repeat it to continue or to update")
    path(command, "folder", "ROOT", "folder that holds all artifacts of a run")
    option(command, "url", str, "URL", url)
    command = add("pull", "pull", "fetch a root from a store and verify every file; repeat it to continue")
    option(command, "url", str, "URL", url)
    path(command, "target", "ROOT", "a new folder")


def _setup(commands: Commands[Parser]) -> None:
    command = _add(commands, "init", "init", "write a run's file and its policy into a folder", "config")
    path(command, "folder", "FOLDER", "folder to write to (default: this one)", nargs="?", default=Path())
    command.add_argument(
        "--from",
        dest="name",
        choices=_EXAMPLES,
        default="quickstart",
        help="configuration to start from: a whole run, a model size, or a policy alone (default: %(default)s)",
    )
    text = "print what this machine can do, and how to fix what it cannot"
    _add(commands, "doctor", "doctor", text, "config")
    text = "print a script that completes commands and options in your shell"
    command = _add(commands, "completion", "completion", text, "config")
    text = "bash or zsh: assay completion bash >> ~/.bashrc"
    command.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help=text)
    add = _group(commands, "config", "print a run's settings, or the schema of its file")
    command = _config(add("show", "show", "print every setting of a run and where its value comes from"))
    flag(command, "--changed", "leave out settings that have their default")
    add("schema", "schema", "print the JSON schema of a run's file, for editors")


def _data(commands: Commands[Parser]) -> None:
    add = _group(commands, "data", "prepare a corpus, look at it, convert it")
    command = _corpus(add("prepare", "prepare", "make every artifact of the corpus; finished parts are reused"))
    part = command.add_mutually_exclusive_group()
    text = "do what is left of task I (from 0) of N in the next data step, then exit (default: make everything)"
    option(part, "--task", task, "I/N", text)
    flag(part, "--merge", "merge what all tasks of a data step made, and continue up to the next step")
    flag(part, "--dry-run", "print the data steps, and what requests to teacher models will cost; make nothing")
    flag(command, "--wait", "with --task: stay until the corpus is complete; all N tasks must run at the same time")
    engine(command)
    command = add("show", "show", "print a corpus stage by stage: counts, histograms, examples (personal data masked)")
    _corpus(command, "CONFIG|ARTIFACT", "the run's TOML file, or an artifact's folder")
    text = "list the corpus artifacts that neither this run nor any verdict, checkpoint or report needs"
    command = _corpus(add("clean-up", "clean_up", text))
    flag(command, "--execute", "remove them; without it nothing is changed")
    flag(command, "--incomplete", "with --execute: remove them although this run is not made up to its last stage")
    text = "also keep this artifact, such as the last one of another run, and all it depends on (repeatable)"
    path(command, "--keep", "ARTIFACT", text, action="append", default=[])
    text = "index the corpus's texts, so that `assay trace-text` finds what is verbatim in them"
    command = _corpus(add("index", "index", text), needs=_JUDGED)
    text = "text of a shard of the index (default: 1GiB); making one takes five times its text in memory"
    option(command, "--shard-size", size, "SIZE", text, default=1 << 30)
    command = add("trace", "trace", "print which document, file and line a token comes from")
    path(command, "shard", "SHARD", "a token shard (.tokens) or packed rows (.rows)")
    option(command, "offset", natural, "OFFSET", "position of the token in the shard, from 0")
    text = "train the classifiers of [[data.classifiers]] and print their accuracy"
    _corpus(add("train-classifier", "train_classifiers", text))
    command = _corpus(
        add("export", "export", "write the token shards in Megatron's format: PREFIX_train.bin and .idx"), needs=_JUDGED
    )
    option(command, "prefix", prefix, "PREFIX", "path and first part of the files' names")
    text = "upload the documents that the gate admitted, with their card, to the Hugging Face hub"
    command = _corpus(add("push", "push", text), needs=_JUDGED)
    option(command, "repository", str, "OWNER/NAME", "data set of the hub; created if it does not exist")
    flag(command, "--public", "create a public data set, not a private one")
    command = add("import", "import_tokens", "turn Megatron's PREFIX.bin and PREFIX.idx into token shards")
    option(command, "prefix", prefix, "PREFIX", "path of the two files without their endings")
    command.add_argument("--root", type=root_folder, required=True, help="folder that holds all artifacts")
    option(command, "--vocabulary-size", positive, "N", "number of ids; every id is below it", required=True)
    option(command, "--end-of-document", natural, "ID", "id of the token that ends a document", required=True)


def _training(commands: Commands[Parser]) -> None:
    text = "train on the prepared corpus, or resume from the last checkpoint"
    command = _config(_add(commands, "train", "train", text))
    nproc(command)
    text = "print parameters, memory, layout and DeepSpeed's configuration, or why a start would be refused"
    flag(command, "--dry-run", text)
    text = "with --dry-run: plan for this many ranks, --nproc of them on each node (default: --nproc)"
    option(command, "--ranks", positive, "N", text)
    text = "with --dry-run: plan for nodes of this kind (default: this machine)"
    command.add_argument("--device", choices=("cpu", "cuda"), help=text)
    text = "with --device cuda, which needs it: memory of each GPU, such as 80GiB"
    option(command, "--gpu-memory", size, "SIZE", text)
    _from_scratch(command)
    _codes(command)
    text = "sample the teacher's logits once, for training with [train.distillation] logits = 'sampled'"
    _config(_add(commands, "teacher-logits", "teacher_logits", text))
    text = "measure a checkpoint: validation loss by source and language, task scores"
    command = _config(_add(commands, "evaluate", "evaluate", text))
    checkpoint_option(command)
    _average(command)
    text = "repeat drawn stretches of a training between its checkpoints, and compare the weights to the bit"
    command = _config(_add(commands, "audit-training", "audit_training", text, "governance"))
    text = "share of the stretches to repeat, above 0 and up to 1 (default: %(default)s)"
    command.add_argument("--share", type=float, default=0.01, metavar="SHARE", help=text)
    text = "public random value that nobody knew when the checkpoints were made (default: generated here)"
    command.add_argument("--beacon", default="", metavar="TEXT", help=text)
    _generation(commands)
    _translation(commands)
    _interpretation(commands)
    _trace_text(commands)
    command = _config(_add(commands, "export", "export", "write a checkpoint as a Hugging Face folder"))
    checkpoint_option(command)
    path(command, "target", "FOLDER", "the folder to create")
    _average(command)
    flag(command, "--adapter", "write the adapter alone, in PEFT's format (default: merged into the weights)")
    option(command, "--push", str, "OWNER/NAME", "then upload it to this model repository of the hub")
    flag(command, "--public", "with --push: create a public repository, not a private one")
    command.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="data type of the weights (default: %(default)s)",
    )


def _plan(commands: Commands[Parser]) -> None:
    text = "predict memory, time, failures, money and energy of a run on a named cluster, before anything is queued"
    command = _config(_add(commands, "plan", "plan", text, "plan"))
    text = "nodes: h100, h200, a100, mi300x, cpu, or a file of your own (default: slurm.cluster)"
    option(command, "--cluster", str, "NAME|FILE", text, default="")
    option(command, "--nodes", positive, "N", "number of nodes (default: slurm.nodes)")
    text = "correct the plan by the record of a run on such nodes: its root, or the folder of its training"
    path(command, "--from", "RUN", text, dest="from_run")
    path(command, "--html", "PATH", "also write the plan as a page, with memory and time drawn over the layouts")


def _generation(commands: Commands[Parser]) -> None:
    text = "continue prompts with a checkpoint; print tokens/s and energy"
    command = _reads_texts(_add(commands, "generate", "generate", text, "model"), "continue", "PROMPT")
    text = 'also continue each line of this file; of a .jsonl file the field "prompt", which may hold line breaks'
    path(command, "--prompts", "FILE", text, dest="prompts_file")
    text = "most tokens of a continuation (default: %(default)s)"
    option(command, "--max-tokens", positive, "N", text, default=128)
    text = "end a continuation where this text begins (repeatable)"
    option(command, "--stop", str, "TEXT", text, dest="stops", action="append", default=[])
    text = "draw tokens with logits divided by T; 0: take the likeliest (default: %(default)g)"
    option(command, "--temperature", float, "T", text, default=0.0)
    text = "draw only from the likeliest tokens that together reach this probability (default: %(default)g)"
    option(command, "--top-p", float, "P", text, default=1.0)
    option(command, "--seed", natural, "N", "seed of the draws (default: 0)", default=0)
    _average(command)


def _reads_texts(command: Parser, use: str, name: str = "TEXT") -> Parser:
    """Add a run's file, a checkpoint, and texts before and after options."""
    checkpoint_option(_config(command))
    command.repeated = f"{name.lower()}s"
    text = f'a text to {use} (repeatable); after "--" it may begin with "-"'
    option(command, command.repeated, str, name, text, nargs="*")
    return command


def _average(command: Parser) -> None:
    text = "average the weights of the last N checkpoints of the training, up to CHECKPOINT (default: %(default)s)"
    option(command, "--average", positive, "N", text, default=1)


def _translation(commands: Commands[Parser]) -> None:
    text = "translate texts with an encoder-decoder, by beam search"
    command = _reads_texts(_add(commands, "translate", "translate", text, "model"), "translate")
    text = 'also translate each line of this file; of a .jsonl file the field "prompt", which may hold line breaks'
    path(command, "--file", "FILE", text)
    text = "beam width (default: %(default)s); 1 is greedy search"
    option(command, "--beam", positive, "N", text, default=4)
    text = "exponent of the length penalty ((5 + n) / 6)^A (default: %(default)g)"
    option(command, "--alpha", float, "A", text, default=0.6)
    _average(command)
    text = "score the translations of --file by BLEU and chrF against the lines of this file"
    path(command, "--reference", "FILE", text)
    text = "BLEU tokenizer: %(choices)s (default: %(default)s); zh for Chinese, char for other texts without spaces"
    command.add_argument("--tokenizer", choices=("13a", "intl", "char", "zh"), default="13a", metavar="NAME", help=text)


def _trace_text(commands: Commands[Parser]) -> None:
    text = "find what of a text is verbatim in a corpus: documents, licences, and the steps that read them"
    command = _add(commands, "trace-text", "trace_text", text, "trace")
    option(command, "text", str, "TEXT", 'a text, or "-" to read it from standard input')
    path(command, "--checkpoint", "CHECKPOINT", "a checkpoint's folder: its corpus, and the steps that read a document")
    path(command, "--corpus", "ARTIFACT", "instead of a checkpoint: a token corpus, as ROOT/encode/KEY")
    text = "least characters of a span (default: %(default)s)"
    option(command, "--min-characters", positive, "N", text, default=50)
    text = "documents to list for each span; all are counted (default: %(default)s)"
    option(command, "--documents", positive, "N", text, default=10)
    path(command, "--html", "FILE", "also write the text with its spans marked as a page")
    path(command, "--signing-key", "PATH", "key that the run signs with (default: your own)")


def _classify(commands: Commands[Parser]) -> None:
    add = _group(commands, "classify", "test a classifier, or cross-validate its training")
    text = "measure a classifier on its test documents: accuracy, macro-F1, classes, confusion, calibration"
    command = _config(add("evaluate", "evaluate", text))
    checkpoint_option(command)
    text = "test on the rows of this JSON Lines file (text, label) instead of the split's test documents"
    path(command, "--test", "FILE", text)
    command = _config(add("folds", "folds", "train and test on each fold; print their mean with its interval"))
    nproc(command)


def _interpretation(commands: Commands[Parser]) -> None:
    text = "show how a checkpoint reads texts: attention, logit lens, activations, attribution; prune heads"
    command = _reads_texts(_add(commands, "interpret", "interpret", text, "model"), "explain")
    path(command, "--html", "PATH", "also write maps and tables as an HTML page")
    flag(command, "--prune-heads", "measure the importance of each head, and the loss without the least important")
    text = "with --prune-heads: validation rows, half of them to choose heads (default: 64)"
    option(command, "--rows", positive, "N", text)


def _experiment(commands: Commands[Parser]) -> None:
    about = "train small models on the run's tokens: claims about architectures, a scaling law, weights of the sources"
    add = _group(commands, "experiment", about)
    about = (
        "train Transformer, LSTM, GRU and xLSTM on the same tokens, and report which of the Transformer's claims hold"
    )
    command = _config(add("claims", "claims", about))
    flag(command, "--quick", "a small version of [claims] that takes minutes: three seeds, short rows, nearby facts")
    flag(command, "--dry-run", "print the models, the trainings and the time that they take here; train nothing")
    about = "train a ladder of small models, fit a scaling law, and predict the loss of the run"
    command = _config(add("scaling", "scaling", about))
    nproc(command)
    flag(command, "--dry-run", "print the ladder's models and tokens; train nothing")
    about = "choose the weights of the sources by small trainings that repeat each source as the run would"
    command = _config(add("mixture", "mixture", about))
    nproc(command)
    flag(command, "--dry-run", "print the mixtures and their tokens; train nothing")


def _report(commands: Commands[Parser]) -> None:
    about = 'write, verify, compare or list reports; "assay report CONFIG" writes one'
    add = _group(commands, "report", about)
    command = _corpus(add("write", "write", "write report.html and report.json of a run"), needs=_JUDGED)
    flag(command, "--documents", "also write the model card, the datasheet, bills of materials and regulatory forms")
    flag(command, "--open", "open the report in a browser")
    run = "CONFIG|ROOT|REPORT"
    text = "a run's TOML file, a run's root (its newest report), or a report's folder"
    command = add("verify", "verify", "compute every number of a report again and print those that differ")
    path(command, "run", run, text)
    _more(command)
    command.add_argument(
        "--root", type=root_folder, help="for a CONFIG: folder of its artifacts (default: runs/<its name>)"
    )
    trusted_keys(command)
    command = add("compare", "compare", "compare two runs: verdict, data, loss, speed, energy, configuration")
    path(command, "ours", "A", text)
    path(command, "theirs", "B", "the other run, in any of these forms")
    path(command, "--html", "PATH", "also write an HTML page")
    command = add("index", "index", "list all runs below a folder, here and as an HTML page")
    path(command, "runs", "FOLDER", "folder with the roots of runs, at most three levels deep")
    path(command, "--html", "PATH", "path of the page (default: FOLDER/index.html)")


def _slurm(commands: Commands[Parser]) -> None:
    add = _group(commands, "slurm", "submit a run to a Slurm cluster and follow its jobs")
    command = _config(add("render", "render", "print the jobs' scripts without submitting them"))
    option(command, "--job", str, "JOB", "print only this job's script (default: all)", default="")
    text = "submit the whole run as a graph of jobs, after checking what the cluster would refuse"
    command = _config(add("submit", "submit", text))
    path(command, "--carbon-aware", "CSV", "start in the greenest hours of this forecast (CSV: time,grams_per_kwh)")
    option(command, "--latest", hours, "HOURS", "with --carbon-aware: start within this many hours (default: 24)")
    text = "with --carbon-aware: duration of the run (default: training's time limit)"
    option(command, "--expected", hours, "HOURS", text)
    flag(command, "--fetch", "download remote sources here first, for compute nodes without internet")
    _submits(command)
    text = "print each job's state, progress and energy, and the next command to type"
    command = _config(add("status", "status", text))
    flag(command, "--watch", "print again every 10 seconds until all jobs have ended")
    _config(add("cancel", "cancel", "cancel all pending and running jobs of the run"))
    text = "submit again what failed (only the failed tasks of an array) and what depends on it"
    command = _config(add("retry", "retry", text))
    _submits(command)
    command = _config(add("logs", "logs", "print a job's log"))
    text = '"train", or a task such as "clean[3]" (default: the first that failed, else the last that ran)'
    option(command, "--job", str, "JOB", text, default="")
    option(command, "--attempt", int, "N", "attempt, from 0 (default: the newest)")
    option(command, "--rank", int, "N", "rank of a training (default: all)")
    flag(command, "--follow", "follow the log until the job has ended")
    _config(add("preflight", "preflight", "check this node for training; the job runs it on each of its nodes"))


def _submits(command: argparse.ArgumentParser) -> None:
    flag(command, "--local", "run the jobs here one after the other, without a queue (also inside salloc)")
    text = "accept changes of the run's file, policy or program since submission (default: refuse)"
    flag(command, "--take-edits", text)


def _group(commands: Commands[Parser], name: str, about: str) -> Callable[[str, str, str], Parser]:
    """A command's group.

    It returns a function that adds a command (name, function, help) of its module.
    """
    group_parser = commands.add_parser(name, help=about, description=_sentence(about))
    group = group_parser.add_subparsers(metavar="COMMAND", required=True)

    def add(command: str, function: str, text: str) -> Parser:
        added = _add(group, command, function, text, name)
        added.set_defaults(words=f"{name} {command}")
        return added

    return add


def _add(commands: Commands[Parser], name: str, function: str, text: str, group: str = "") -> Parser:
    command = commands.add_parser(name, help=text, description=_sentence(text))
    command.set_defaults(command=function, group=group, words=name)
    if function not in _WITHOUT_JSON:
        flag(command, "--json", "print the result as one JSON object")
    return command


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _more(command: argparse.ArgumentParser) -> None:
    text = "merge this TOML file over CONFIG (repeatable); `assay run a.toml b.toml` is the short form"
    path(command, "--with", "FILE", text, dest="more", action="append", default=[])


def _config(
    command: Parser, name: str = "CONFIG", text: str = "the run's TOML file, such as configs/1b.toml"
) -> Parser:
    """Add a run's file, and the options of commands that read one."""
    path(command, "config", name, text)
    _more(command)
    command.add_argument(
        "--root", type=root_folder, help="folder that holds all artifacts (default: runs/<name of CONFIG>)"
    )
    _data_workers(command)
    text = "override a setting of CONFIG, VALUE as in TOML: --set train.steps=100 (repeatable)"
    option(command, "--set", str, "FIELD=VALUE", text, dest="overrides", action="append", default=[])
    return command


def _corpus(command: Parser, *words: str, needs: str = "data") -> Parser:
    """Add a run's file that may have no model."""
    command.set_defaults(needs=needs)
    return _config(command, *words)


def _data_workers(command: argparse.ArgumentParser) -> None:
    text = "processes for reading and checking data (default: one for each core)"
    option(command, "--data-workers", positive, "N", text, default=os.cpu_count() or 1)


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

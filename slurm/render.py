"""Job scripts from templates.

The template is valid bash before substitution. Values are quoted, so any path survives:

    @PURPOSE@               what the job does, in one line
    @ROOT@                  the folder of all artifacts
    @COMMAND@               the command, as a person would type it
    @ENVIRONMENT@           a script to source, or ''
    @RETRIES@               how often a failure is tried again
    @OPTIONS@               more options of the program that runs an attempt
    @SRUN_OPTIONS@          options of srun that put a command into a container (pyxis), as words
    @RANK_OPTIONS@          the user's own options of the srun that starts the ranks
    @INSIDE@                words before a command that put it into a container (apptainer) and set variables there
    @PROGRAM@               the folders of the program that runs an attempt, the kept copy first
    @PYTHON@                the submitter's Python; any of 3.11 or later will do

That program is `slurm/attempt`. `keep_program` copies it below the root, with the modules that it imports, under its
own digest, so a job that waits is not changed by another release.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from governance.files import remove_file, sha256_bytes, write_text
from slurm.config import SlurmConfig
from slurm.graph import Kind, SlurmJob

_FOLDER = Path(__file__).parent
_IMPORTED = (
    "governance/__init__.py",
    "governance/errors.py",
    "governance/files.py",
    "governance/regular_files.py",
    "slurm/__init__.py",
)
"""Modules that `slurm/attempt` imports."""
_RESTART_SECONDS = 300
"""Seconds before the signal to leave from which on a failed training does not start again in its allocation."""
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=./,:@%&|*+[]()!~")
_PURPOSES: dict[Kind, str] = {
    "share": "A task of an array: its share of the shards of one data step.",
    "join": "Work of a single process between two data steps: joins over the whole corpus, and commits.",
    "data": "The rest of the data: it finds all finished artifacts and makes the missing ones.",
    "audit": "The audit and its gate; the verdict is signed. 77: the gate is closed.",
    "train": "Training: each node is checked, then srun starts one rank per task.",
    "evaluate": "The evaluation of the last checkpoint.",
    "report": "The report on the whole run.",
}


def script_of(root: Path, job: str) -> Path:
    """Path of a job's script."""
    return root / "slurm" / f"{job}.sbatch"


def _program() -> dict[str, str]:
    """Text of each file that runs an attempt, by path."""
    attempt = [path for path in sorted((_FOLDER / "attempt").iterdir()) if path.suffix in (".py", ".toml")]
    files = [*(_FOLDER.parent / name for name in _IMPORTED), *attempt]
    return {path.relative_to(_FOLDER.parent).as_posix(): path.read_text(encoding="utf-8") for path in files}


def program_of(root: Path) -> Path:
    """Folder of this release's program below a root."""
    digest = sha256_bytes("\0".join(_program().values()).encode())
    return root / "slurm" / "machinery" / digest[:16] / "slurm" / "attempt"


def keep_program(root: Path) -> None:
    """Copy the program below the root, and leave no other file there."""
    above, texts = program_of(root).parents[1], _program()
    for path in sorted(above.rglob("*")):  # the first place where the program's imports are sought
        if path.relative_to(above).as_posix() not in texts and (path.is_symlink() or not path.is_dir()):
            remove_file(path)
    for name, text in texts.items():
        write_text(above / name, text)


@dataclass(frozen=True)
class ContainerMounts:
    """Mounts of a job besides its root, and variables inside them."""

    folders: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


NO_MOUNTS = ContainerMounts()


def render(job: SlurmJob, config_file: Path, root: Path, config: SlurmConfig, seen: ContainerMounts = NO_MOUNTS) -> str:
    """The script of a job of the run at `config_file`."""
    first, _, rest = (_FOLDER / "job.sbatch").read_text(encoding="utf-8").partition("\n")
    folders = [config_file.parent, root, *map(Path, config.container_mounts), *seen.folders]
    gpus = any(word.startswith(("--gpus", "--gres=gpu")) for word in job.options)
    pyxis, inside = _container(config, folders, seen.variables, gpus=gpus)
    values = {
        "@ROOT@": (str(root),),
        "@COMMAND@": job.command,
        "@ENVIRONMENT@": (config.environment,),
        "@RETRIES@": (str(config.retries),),
        "@OPTIONS@": _options(job, config),
        "@SRUN_OPTIONS@": pyxis,
        "@RANK_OPTIONS@": config.srun_options,
        "@INSIDE@": inside,
        "@PROGRAM@": (str(program_of(root)), str(_FOLDER / "attempt")),
        "@PYTHON@": (sys.executable,),
    }
    # In one pass: a value may itself look like a mark.
    marks = "|".join([*values, "@PURPOSE@"])
    rest = re.sub(
        marks, lambda mark: " ".join(map(_quoted, values[mark[0]])) if mark[0] in values else _PURPOSES[job.kind], rest
    )
    return "\n".join([first, *(f"#SBATCH {_directive(option)}" for option in job.options), rest])


def _options(job: SlurmJob, config: SlurmConfig) -> tuple[str, ...]:
    """Options of the program that runs an attempt of this job."""
    options = [f"--kind={job.kind}", f"--programs={Path(sys.executable).parent}"]
    options += [f"--shares={job.tasks}"] * bool(job.tasks)
    options += [f"--interface={config.interface}"] * bool(config.interface)
    options += [f"--excluded={config.exclude}"] * bool(config.exclude)
    if job.node_counts:
        options += [f"--node-count={count}" for count in job.node_counts]
        options.append(f"--leave-seconds={config.signal_seconds + _RESTART_SECONDS}")
    return (*options, *["--chained"] * (job.kind == "train" and config.chain > 1))


def _container(
    config: SlurmConfig, folders: Sequence[Path], variables: Mapping[str, str], *, gpus: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options of srun, and words before a command.

    Together they run the command in the image, with `folders` mounted and `variables` set.
    """
    seen = list(dict.fromkeys(map(str, folders)))
    above = [folder for folder in seen if not any(Path(other) in Path(folder).parents for other in seen)]
    setting = ("env", *(f"{name}={value}" for name, value in variables.items())) if variables else ()
    if config.container_runtime == "pyxis":
        mounts = ",".join(f"{folder}:{folder}" for folder in above)
        return (f"--container-image={config.container}", f"--container-mounts={mounts}"), setting
    if config.container_runtime == "apptainer":
        mounted = [word for folder in above for word in ("--bind", folder)]
        return (), ("apptainer", "exec", *["--nv"] * gpus, *mounted, config.container, *setting)
    return (), ()


def _quoted(word: str) -> str:
    """A word for bash.

    A word with a comma is quoted although it need not be: shellcheck reads it as a list.
    """
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


def _directive(option: str) -> str:
    """An option quoted for an #SBATCH line."""
    if set(option) <= _PLAIN:
        return option
    name, _, value = option.partition("=")
    return f'{name}="{value}"'

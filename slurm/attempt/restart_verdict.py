"""Meaning of a failed attempt's end, and whether to go on.

An exit status of our own decides first, then Slurm's state, and only then the end of the log. A line of the log decides
only if a program that reports errors speaks in it: a traceback, NCCL, torch's C++ loggers, Slurm, a launcher, the
kernel. Text of a document that quotes such a message is neither. Of several lines the root cause decides, not its
consequence (`_RULES`, by rank), and of several roots the first in time. An error after which the training went on for
three reports of progress was survived, and decides nothing.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Cause = Literal["code", "data", "node", "network", "storage", "out of memory", "hang", "preemption", "quota"]
Action = Literal["go on", "elsewhere", "later", "stop"]
TAIL_BYTES = 1 << 20
"""Bytes of a log that are read from its end."""
_CONTEXT_LINES = 80
"""Lines after a frame of a traceback in which its exception is accepted: those of other ranks come between."""
_SURVIVED = 3


@dataclass(frozen=True)
class Verdict:
    """Meaning of a failed attempt's end."""

    cause: Cause
    action: Action
    line: str = ""
    """The line that decided; "" where a status or Slurm's state did."""
    node: str = ""
    """The node at fault, as far as the log names it."""


@dataclass(frozen=True)
class _LogRule:
    speaker: str
    """Name of a pattern of `_SPEAKERS`."""
    pattern: re.Pattern[str]
    cause: Cause
    action: Action
    rank: int
    """0 for a root cause; a consequence has a higher one."""


_OF_STATUS: dict[int, tuple[Cause, Action]] = {
    2: ("code", "stop"), 65: ("data", "stop"), 66: ("data", "stop"), 69: ("node", "later"), 70: ("hang", "go on"),
    71: ("quota", "stop"), 74: ("storage", "later"), 75: ("preemption", "go on"), 76: ("data", "stop"),
    77: ("data", "stop"), 78: ("code", "stop"), 124: ("preemption", "go on"),
    126: ("node", "elsewhere"), 127: ("node", "elsewhere"),
}  # fmt: skip
_OF_STATE: dict[str, tuple[Cause, Action]] = {
    "OUT_OF_MEMORY": ("out of memory", "go on"), "NODE_FAIL": ("node", "elsewhere"), "BOOT_FAIL": ("node", "elsewhere"),
    "PREEMPTED": ("preemption", "go on"), "TIMEOUT": ("preemption", "go on"), "DEADLINE": ("quota", "stop"),
}  # fmt: skip
# https://slurm.schedmd.com/job_state_codes.html

_LABEL = re.compile(
    r"(?:(?P<rank>\d+): |\[(?:rank|default)?(?P<other>\d+)\]:? ?|\[1,(?P<third>\d+)\]<std\w+>:|\(\w+ pid=\d+[^)]*\) "
    r"|\d{4}-\d\d-\d\d[ T][\d:.,]+Z?:? )"
)
"""Prefix of a line: `srun --label`, torchrun, mpirun, Ray, a time. Several may follow one another."""
_SPEAKERS = {
    "exception": re.compile(
        r"(?=(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*(?:\(\w+\))?(?:: |:?$)|\w*(?:Error|Exception|Exit|Interrupt)(?:: |:?$))"
    ),
    "detail": re.compile(r"(?=nccl\w+Error: |socket\w+: )"),
    "native": re.compile(r"  what\(\):  |(?=Fatal Python error: )"),
    "nccl": re.compile(r"(?:\[[\d: -]+\] )?\S+:\d+:\d+ \[\d+\] \S*:?\d* ?NCCL WARN "),
    "torch": re.compile(r"\[[EFW]\S*(?: [\d:.]+)? (?:\w+\.cpp:\d+)\] |(?=\S*/aten/src/\S+: \S+: block: )"),
    "slurm": re.compile(r"(?:srun|sbatch|salloc|slurmstepd\S*): (?:error: )?"),
    "kernel": re.compile(
        r"(?:\[[\w :.]+\] |.{,40}\bkernel: )?(?=NVRM: |(?:Memory cgroup o|O)ut of memory: |oom-kill:)"
    ),
    "launcher": re.compile(
        r"(?:\[[^\]]+\] \[ERROR\] \[launch\.py:\d+:\w+\]|(?:ERROR|WARNING):torch\.distributed\.elastic\S*:"
        r"|(?:[EW]\d{4} |\[\d{4}-).*torch[./]distributed[./]elastic\S+\]) ?"
        r"|(?=mpi\w+ noticed that process|.*: line \d+: +\d+ Killed )"
    ),
    "fabric": re.compile(r"(?:\[[\w.:-]+\] +)+\S+\.c:\d+ +|libfabric:\S+<warn> "),
    "tool": re.compile(
        r"(?=Unable to determine the device handle|Failed to initialize NVML|[OP]RTE has lost|An ORTE daemon"
        r"|Memory access fault by GPU)"
    ),
}
"""Beginning of a line of each program that reports errors."""
_FRAME = re.compile(r'  File "[^"]+", line \d+|[│|] \S+:\d+ in |╭─+ Traceback ')
"""A frame of a traceback, of Python or of `rich`."""
_TRACEBACK = "Traceback (most recent call last)"
_IGNORED = re.compile(r"Exception ignored in")
_PROGRESS = re.compile(
    r"train: step [\d,]+,|\bstep[ =:]+[\d,]+\b.*\bloss|iteration +\d+/|\d+%\|.*\| *\d+/\d+|\{'loss': |Epoch:? \["
)
_REFUSED = r"Connection (?:reset by peer|refused|timed out)|No route to host|Network is unreachable|Broken pipe"
"""Messages of a socket's errors, of errno(3)."""
_STORAGE = (
    r"\[Errno (?:5|16|17|28|30|37|107|108|110|116|121)\]|LockError|Input/output error|Stale file handle"
    r"|No space left on device"
    r"|Read-only file system|transport endpoint"
)
"""Messages of a file system's errors, of errno(3)."""


def _rules() -> Iterator[_LogRule]:
    table: tuple[tuple[str, str, Cause, Action, int], ...] = (
        # A request that follows a collective which was cut off. https://github.com/NVIDIA/nccl/issues/1284
        ("exception", r"more than 1EB memory", "hang", "go on", 5),
        # Another process holds most of the GPU. https://github.com/lianqi1008/Control-GIC/issues/6
        ("exception", r"out of memory.* Process \d+ has \d\d[\d.]* GiB memory in use\. Including non-PyTorch memory, "
         r"this process has (?:[\d.]+ MiB|\d\.\d+ GiB)", "out of memory", "elsewhere", 0),
        # https://pytorch.org/docs/stable/notes/cuda.html, https://github.com/deepspeedai/DeepSpeed/issues/3860,
        # https://github.com/pytorch/pytorch/issues/108861; ENOMEM of errno(3)
        ("exception", r"out of (?:shared )?memory|OutOfMemory|MemoryError|bad_alloc|(?:[Cc]annot|can't) allocate memory"
         r"|killed by signal: (?:Killed|Bus error)|worker \(pid\(s\).*exited unexpectedly"
         r"|STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)", "out of memory", "go on", 0),
        # https://github.com/NVIDIA/nccl/issues/962, https://github.com/NVIDIA/nccl-tests/issues/166
        ("nccl", r"Cuda failure.*out of memory|Failed to CUDA \w+|shared memory segment|/dev/shm", "out of memory",
         "go on", 0),
        # https://slurm.schedmd.com/cgroup.conf.html
        ("slurm", r"oom.kill|Out Of Memory|[Ee]xceeded .*memory limit", "out of memory", "go on", 0),
        # https://docs.kernel.org/admin-guide/mm/concepts.html
        ("kernel", r"ut of memory: Kill|oom-kill:", "out of memory", "go on", 0),
        # https://github.com/MIC-DKFZ/nnUNet/issues/2799: a message of the shell
        ("launcher", r".*: line \d+: +\d+ Killed ", "out of memory", "go on", 1),
        # Xids of hardware; those of the application are 13, 31, 43, 45, 109.
        # https://docs.nvidia.com/deploy/xid-errors/index.html
        ("kernel", r"NVRM: Xid \([^)]*\): (?:48|6[1-4]|74|79|9[245]|11[09]|12[0-3]|14[03-9])\b"
         r"|NVRM:.*fallen off the bus",
         "node", "elsewhere", 0),
        # https://github.com/kohya-ss/sd-scripts/issues/1434, https://github.com/MIC-DKFZ/nnUNet/issues/1519
        ("exception", r"uncorrectable \w+ error", "node", "elsewhere", 0),
        # https://github.com/hkust-nlp/simpleRL-reason/issues/33, https://github.com/pytorch/pytorch/issues/35710,
        # https://github.com/NVIDIA/nccl/issues/925
        ("exception", r"No CUDA GPUs are available|no CUDA-capable device|busy or unavailable"
         r"|system not yet initialized|CUDA driver (?:version is insufficient|initialization failed)|NVML"
         r"|hardware stack error", "node",
         "elsewhere", 0),
        # https://github.com/JosephKJ/OWOD/issues/81, https://github.com/lyulyul/shine-cluster/issues/30
        ("tool", r"Unable to determine the device handle|Failed to initialize NVML", "node", "elsewhere", 0),
        # https://github.com/nebius/soperator/issues/854, https://github.com/geopm/geopm/issues/1020
        # https://github.com/snakemake/snakemake-executor-plugin-slurm/issues/225
        ("slurm", r"Unable to layout tasks|Invalid account|Invalid qos|nvalid partition|configuration is not available",
         "code", "stop", 0),
        ("slurm", r"Node failure on|DUE TO NODE FAILURE|launch for \S+ failed on node"
         r"|execve\(\).*slurm_script", "node", "elsewhere", 0),
        # https://github.com/open-mmlab/mmdetection/issues/12069, https://github.com/allenai/OLMo/issues/550
        ("exception", r"\[Errno 122\]|[Qq]uota exceeded|ResourceExhausted|Too Many Requests", "quota", "later", 0),
        # https://github.com/szcf-weiya/techNotes/issues/7
        ("slurm", r"violates accounting/QOS policy|time limit is invalid", "quota", "stop", 0),
        ("exception", _STORAGE, "storage", "later", 0),
        # https://github.com/verl-project/verl/issues/3346
        ("exception", r"inline_container\.cc:\d+\] ?\. ?(?:unexpected pos|PytorchStreamWriter)", "storage", "later", 0),
        # https://github.com/SystemsGenetics/GEMmaker/pull/242, https://github.com/ZettaAI/zetta_utils/issues/671
        ("slurm", r"DUE TO (?:PREEMPTION|TIME LIMIT)", "preemption", "go on", 0),
        # https://github.com/nvidia-cosmos/cosmos-transfer2.5/issues/151
        ("exception", r"cannot open shared object file|undefined symbol", "code", "stop", 1),
        # https://github.com/huggingface/datatrove/issues/278, https://github.com/webdataset/webdataset/issues/142
        ("exception", r"\S*(?:ArrowInvalid|UnicodeDecodeError|JSONDecodeError|BadGzipFile|BadZipFile|tarfile\.ReadError"
         r"|zlib\.error|LZMAError|EOFError|UnpicklingError|FileNotFoundError|SafetensorError)\b", "data", "stop", 0),
        # https://github.com/open-mmlab/mmagic/issues/876, https://github.com/NVIDIA/Megatron-LM/issues/780,
        # https://github.com/hiyouga/LlamaFactory/issues/251
        ("exception", r"PytorchStreamReader|found NaN in|Unexpected result nan|loss scale already at minimum"
         r"|returned nan values|[Nn]a[Nn] detected|is NAN|buffer length|Index file doesn't match"
         r"|errno = 2,", "data", "stop", 0),
        # https://github.com/axolotl-ai-cloud/axolotl/issues/1473: it often does not come again
        ("exception", r"illegal memory access|unspecified launch failure", "code", "go on", 1),
        ("exception", r"PTX codegen|ptxas|invalid device ordinal|same device, but found|device-side assert"
         r"|in loading state_dict|shapes cannot be|must match the"
         r"|not implemented for|does not require grad|[Ee]xpected .*(?:dtype|scalar type|size|shape)", "code", "stop",
         1),
        ("torch", r".*Assertion `", "code", "stop", 1),
        ("exception", r"(?:\w+\.)*(?:TypeError|ValueError|AttributeError|AssertionError|ImportError|ModuleNotFoundError"
         r"|NameError|UnboundLocalError|KeyError|IndexError|NotImplementedError|SyntaxError|IndentationError"
         r"|ZeroDivisionError|RecursionError)\b", "code", "stop", 1),
        # https://github.com/om-ai-lab/VLM-R1/issues/289: the next attempt meets at another port
        ("exception", r"[Aa]ddress already in use", "network", "go on", 2),
        ("exception", r"\S*DistStoreError|\S*DistNetworkError|\S*(?:ConnectionError|TimeoutError|gaierror)\b|"
         + _REFUSED, "network", "later", 2),
        ("slurm", r"slurm_receive_msgs?: .*failed", "network", "later", 2),
        ("detail", _REFUSED + r"|connection abort", "network", "later", 2),
        # https://github.com/NVIDIA/nccl/issues/230, https://github.com/NVIDIA/nccl/issues/905
        ("nccl", r"Got async event : local catastrophic error", "node", "elsewhere", 2),
        ("nccl", r"Got async event|wrong type \d", "network", "later", 2),
        # https://github.com/Lightning-AI/pytorch-lightning/issues/14986
        ("nccl", r"has already checked in", "code", "stop", 1),
        # https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html
        ("nccl", r"Got completion from peer|Call to ibv_\w+ failed|connection abort|" + _REFUSED, "network",
         "later", 2),
        # https://github.com/openucx/ucx/issues/1920
        ("fabric", r".*(?:retry count exceeded|Endpoint timeout|err: \d+)", "network", "later", 2),
        # https://github.com/radical-cybertools/radical.pilot/issues/2164
        ("tool", r"[OP]RTE has lost communication|An ORTE daemon has unexpectedly failed", "node", "elsewhere", 2),
        # https://github.com/ROCm/rccl/issues/59
        ("tool", r"Memory access fault by GPU", "code", "go on", 1),
        # https://pytorch.org/docs/stable/distributed.html
        ("torch", r"collective operation timeout|watchdog got stuck|Heartbeat monitor timed out|in blocking wait",
         "hang", "go on", 4),
        ("exception", r"collective operation timeout|monitoredBarrier|in blocking wait", "hang", "go on", 4),
        # a peer that ended, for a reason of its own
        ("nccl", r"Connection closed by remote peer|Socket recv failed", "network", "later", 5),
        ("exception", r"NCCL [Ee]rror|Socket Timeout|NCCL communicator was aborted", "network", "later", 5),
        # https://github.com/xorbitsai/inference/issues/4421
        ("torch", r"\[c10d\] (?:send|recv)\w+ failed", "network", "later", 5),
        # https://github.com/pytorch/pytorch/issues/150916
        ("launcher", r".*Received 15 death signal", "preemption", "go on", 5),
        ("exception", r".*got signal: 15", "preemption", "go on", 5),
        # A process ended by signal 9 without a word, most often by the kernel.
        # https://github.com/hpcaitech/ColossalAI/issues/3172, https://github.com/deepspeedai/DeepSpeed/issues/3232
        ("launcher", r".*(?:exitcode: -9\b|return code = -9\b|signal 9\b|return code = -7\b"
         r"|exitcode: -7\b)", "out of memory", "go on", 6),
        ("launcher", r".*(?:exitcode: -(?:11|6)\b|return code = -(?:11|6)\b|signal 11\b)", "code", "go on", 6),
        ("slurm", r".*Segmentation fault", "code", "go on", 6),
        ("native", r"Fatal Python error: Segmentation fault", "code", "go on", 6),
        # Any other exception that ended a process; those of launchers repeat what their child had.
        ("exception", r"^(?!\S*(?:ChildFailedError|ProcessRaisedException|ProcessExitedException|CalledProcessError"
         r"|KeyboardInterrupt|SystemExit|RendezvousClosedError)\b)", "code", "go on", 3),
    )  # fmt: skip
    for speaker, pattern, cause, action, rank in table:
        yield _LogRule(speaker, re.compile(pattern), cause, action, rank)


_RULES = tuple(_rules())
_NODES = (
    re.compile(r"(?:Node failure on|failed on node) ([\w.-]+)"),
    re.compile(r"^(?:\[[\d: -]+\] )?([A-Za-z][\w.-]*):\d+:\d+ \[\d+\]"),
    re.compile(r"^\w{3} +\d+ [\d:]+ ([\w.-]+) kernel:"),
    re.compile(r"^(?:srun: error: )([A-Za-z][\w.-]*): tasks? "),
)
_TASKS = re.compile(r"srun: error: ([A-Za-z][\w.-]*): tasks? ([\d,-]+): ")


def verdict_of(text: str, status: int | None = None, state: str = "") -> Verdict | None:
    """The verdict on an attempt; None where nothing tells.

    Args:
        text: The end of the attempt's log.
        status: Its exit status, where known.
        state: Slurm's state of the job, where known.
    """
    if status == 73:  # another attempt holds the run: no failure of this one
        return None
    if status in _OF_STATUS:
        return Verdict(*_OF_STATUS[status])
    lines = text.splitlines()
    if state in _OF_STATE:
        cause, action = _OF_STATE[state]
        return Verdict(cause, action, node=_failed_node(lines) if cause == "node" else "")
    best: tuple[_LogRule, str, str] | None = None
    for rule, rank, line in _errors(lines):
        if best is None or rule.rank < best[0].rank:
            best = rule, rank, line
    if best is None:
        return None
    rule, rank, line = best
    return Verdict(rule.cause, rule.action, line.strip(), _node_of(line, rank, lines))


def tail_of(path: Path, most: int = TAIL_BYTES) -> str:
    """End of a log; "" where there is none."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - most))
            read = log.read(most)
    except OSError:
        return ""
    if size > most:  # the first line may be torn
        read = read.partition(b"\n")[2]
    return read.decode("utf-8", "replace")


def _errors(lines: list[str]) -> Iterator[tuple[_LogRule, str, str]]:
    """Rule, rank and line of each error not survived."""
    found: deque[tuple[int, _LogRule, str, str]] = deque()
    frames: dict[str, int] = {}
    ignored: set[str] = set()
    reports: list[int] = []
    for number, line in enumerate(lines):
        rank, said = _unlabelled(line)
        if _PROGRESS.search(said):
            reports.append(number)
        elif said.startswith(_TRACEBACK) or _FRAME.match(said):
            frames[rank] = number
        elif _IGNORED.match(said):
            ignored.add(rank)
        elif rule := _rule_for(said, traced=number - frames.get(rank, -_CONTEXT_LINES) < _CONTEXT_LINES):
            if rule.speaker == "exception" and rank in ignored:  # raised while an object was deleted
                ignored.discard(rank)
                frames.pop(rank, None)
            else:
                found.append((number, rule, rank, line))
    for number, rule, rank, line in found:
        if sum(report > number for report in reports) < _SURVIVED:
            yield rule, rank, line


def _unlabelled(line: str) -> tuple[str, str]:
    """Rank, "" if unknown, and the line without labels."""
    rank = ""
    while found := _LABEL.match(line):
        rank = found["rank"] or found["other"] or found["third"] or rank
        line = line[found.end() :]
    return rank, line


def _rule_for(said: str, *, traced: bool) -> _LogRule | None:
    """The rule that a line meets, of those of its speaker."""
    for speaker, head in _SPEAKERS.items():
        if (found := head.match(said)) and (traced or speaker not in ("exception", "detail")):
            rest = said[found.end() :]
            return next((rule for rule in _RULES if _speaks(rule, speaker) and rule.pattern.search(rest)), None)
    return None


def _speaks(rule: _LogRule, speaker: str) -> bool:
    """Return whether a rule is for a speaker."""
    return rule.speaker == speaker or (speaker in ("torch", "native") and rule.speaker == "exception" and rule.rank < 3)


def _node_of(line: str, rank: str, lines: list[str]) -> str:
    """The node that a line names, or srun for its rank."""
    said = _unlabelled(line)[1]
    for pattern in _NODES:
        if found := pattern.search(said):
            return found[1]
    for other in lines:
        if rank and (found := _TASKS.match(other)) and _holds(found[2], int(rank)):
            return found[1]
    return ""


def _failed_node(lines: list[str]) -> str:
    return next((found[1] for line in lines if (found := _NODES[0].search(line))), "")


def _holds(tasks: str, rank: int) -> bool:
    """Return whether a list such as "0-3,7" has a number."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        if first and int(first) <= rank <= int(last or first):
            return True
    return False

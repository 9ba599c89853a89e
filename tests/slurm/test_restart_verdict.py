"""The verdict on failed attempts: labelled logs, root causes before consequences, noise, quotes, and what follows."""

import hashlib
import math
import random
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.attempt import ending
from slurm.attempt.job_attempt import JobAttempt, events, note
from slurm.attempt.restart_verdict import TAIL_BYTES, guessed, tail_of, verdict_of
from slurm.job_states import UnitState, _judged
from slurm.status import _causes

HERE = Path(__file__).parent
COLLECTIONS = ("", "_unseen", "_third", "_fourth", "_fifth", "_sixth_learning", "_seventh_learning")
READ = [
    tomllib.loads((HERE / f"failure_logs{name}.toml").read_text(encoding="utf-8"))["log"]
    for name in (*COLLECTIONS, "_sixth_held_back", "_seventh_held_back")
]
FIRST, ALL = READ[0], [log for logs in READ[: len(COLLECTIONS)] for log in logs]
OOM = (
    "Traceback (most recent call last):\n"
    '  File "/opt/run/train.py", line 9, in step\n'
    "    loss.backward()\n"
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
)
WATCHDOG = (
    "[rank0]:[E1104 10:00:00.1 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=4, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600040 milliseconds"
)
STEP = "train: step {}, loss 2.913, 40,112 tokens/s"


def judged(log, text=None):
    found = verdict_of(log["text"] if text is None else text, log.get("status"), log.get("state", ""))
    return (found.cause, found.action) if found else None


@pytest.mark.parametrize(
    ("logs", "most"),
    list(zip(READ, [0.02, 0.02, 0.1, 0.1, 0.1, 0.07, 0.06, 0.14, 0.25], strict=True)),
    ids=["first", "unseen", "third", "fourth", "fifth", "sixth", "seventh", "sixth, held back", "seventh, held back"],
)  # fmt: skip
def test_the_labelled_logs(logs, most):
    """Rules or weights have since been made from all of these but the two halves that are held back."""
    wrong = {log["id"]: judged(log) for log in logs if judged(log) != (log["cause"], log["action"])}
    assert len(wrong) <= most * len(logs), wrong


def test_the_labels_are_whole():
    assert len({log["id"] for log in ALL}) == len(ALL) >= 300
    assert all(log["thread"].startswith("https://") for log in ALL)
    halves = {int(hashlib.sha256(log["id"].encode()).hexdigest(), 16) % 2 for log in FIRST}
    assert halves == {0, 1}


NOISE = st.lists(
    st.sampled_from(
        ["", "  warnings.warn(", "n1:4:5 [0] NCCL INFO Channel 00 : 0 -> 1 via P2P/IPC", "wandb: Syncing run",
         "\ufffd\ufffd\x00", "[W socket.cpp:601] [c10d] The client socket cannot be initialized", "10:00 INFO saved"]
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(log=st.sampled_from(ALL), data=st.data())
def test_noise_between_the_lines_changes_nothing(log, data):
    lines = [line for known in log["text"].splitlines() for line in (*data.draw(NOISE), known)]
    assert judged(log, "\n".join(lines)) == judged(log)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), ranks=st.integers(2, 9))
def test_the_root_is_found_whatever_the_order_of_the_ranks(seed, ranks):
    """One rank runs out of memory; the others wait for it. Lines of ranks are mixed, those of one keep their order."""
    drawn = random.Random(seed)
    broken = drawn.randrange(ranks)
    queues = [
        [f"{rank}: {line}" for line in (OOM if rank == broken else WATCHDOG).splitlines()] for rank in range(ranks)
    ]
    mixed = []
    while queue := [queue for queue in queues if queue]:
        mixed.append(drawn.choice(queue).pop(0))
    tasks = "".join(f"srun: error: n{rank}: task {rank}: Exited with exit code 1\n" for rank in range(ranks))
    found = verdict_of("\n".join(mixed) + "\n" + tasks, 1)
    assert (found.cause, found.node) == ("out of memory", f"n{broken}")


PEERS = (
    "Traceback (most recent call last):\n"
    '  File "/opt/run/train.py", line 9, in step\n'
    "RuntimeError: [/src/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:40771",
    "n0:70:91 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer n1<40991>",
    "n0:70:91 [0] include/socket.h:398 NCCL WARN Call to recv from 10.0.0.2<33759> failed : Connection reset by peer",
)
"""Words of a rank whose peer is gone."""
ENDS = ("srun: error: n1: task 1: Killed", "srun: error: n0: task 0: Exited with exit code 1")


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("ends", "cause", "node"),
    [
        (ENDS, "out of memory", "n1"),
        (ENDS[::-1], "network", "n0"),  # srun kills those that are left
        (ENDS[1:], "network", "n0"),
        (["srun: error: n0: task 0: Aborted (core dumped)"], "network", "n0"),  # as torch ends a process by itself
        (["2026-11-04 10:00:00 ERROR rank 1 (pid 70) was killed by SIGKILL (by the kernel)"], "out of memory", ""),
        (["  exitcode  : -9 (pid: 70)"], "out of memory", ""),
    ],
)
def test_a_rank_that_was_killed_first_is_the_cause_of_what_its_peers_say(peer, ends, cause, node):
    before = "\n".join(f"0: {line}" for line in peer.splitlines())
    for text in ("\n".join([before, *ends]), "\n".join([*ends, before])):
        found = verdict_of(text, 1)
        assert (found.cause, node in found.node) == (cause, True), text


@settings(max_examples=40, deadline=None)
@given(log=st.sampled_from(ALL), cut=st.integers(0, 400))
def test_a_tail_that_begins_anywhere_raises_nothing(log, cut):
    verdict_of(log["text"][cut:], log.get("status"), log.get("state", ""))


def test_an_error_that_was_survived_decides_nothing():
    assert verdict_of(OOM, 1).cause == "out of memory"
    assert verdict_of("\n".join([OOM, *map(STEP.format, (3, 4))]), 1).cause == "out of memory"
    assert verdict_of("\n".join([OOM, *map(STEP.format, (3, 4, 5))]), 1) is None


def test_an_error_while_an_object_is_deleted_is_none():
    deleted = "Exception ignored in: <function Loader.__del__ at 0x7f>\n" + OOM
    assert verdict_of(deleted, 1) is None


@pytest.mark.parametrize(
    "quote",
    [
        "2026-11-01 12:00:00 INFO sample: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
        '{"text": "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "id": 3}',
        "the log said: NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus",
        "    OSError: [Errno 28] No space left on device",
        '> srun: error: Node failure on n7\n"DUE TO PREEMPTION" is printed by slurmstepd',
    ],
)
def test_a_message_in_a_text_does_not_decide(quote):
    assert verdict_of(quote, 1) is None
    assert verdict_of(f"{quote}\n{WATCHDOG}\n{quote}", 134).cause == "hang"


def test_words_decide_where_no_message_does():
    """An exception without a frame meets no rule, but its words are known."""
    unframed = "torch.OutOfMemoryError: CUDA out of memory."
    assert verdict_of(unframed, 1).cause == "out of memory"
    assert verdict_of(f"{unframed}\n{WATCHDOG}", 134).cause == "hang"
    assert verdict_of("\n".join([unframed, *map(STEP.format, (3, 4, 5))]), 1) is None
    assert verdict_of("zyx: error 48151: qwv", 1) is None


TRACED = 'Traceback (most recent call last):\n  File "/opt/run/train.py", line 9, in step\n    x()\n'


@given(before=st.integers(0, 9000), after=st.integers(0, 1500))
def test_an_error_is_read_at_both_ends_of_its_line(before, after):
    line = f"RuntimeError: {'x ' * (before // 2)}CUDA out of memory. Tried{' y' * (after // 2)}"
    assert verdict_of(TRACED + line, 1).cause == "out of memory"
    assert verdict_of(f"{TRACED}torch.OutOfMemoryError: {'x ' * before}", 1).cause == "out of memory"


@pytest.mark.parametrize(
    ("said", "cause", "action"),
    [
        ("OSError: [Errno 22] Invalid argument", "code", "go on"),
        ("OSError: [Errno 95] Operation not supported: '/scratch/x'", "code", "go on"),
        ("OSError: a copy is required: [Errno 5] Input/output error", "storage", "later"),
        ("RuntimeError: connection is required to be reset by peer", "network", "later"),
        ("RuntimeError: unsupported answer: Connection refused", "network", "later"),
        ("RuntimeError: the state must be whole: Connection closed by the store", "network", "later"),
        ("RuntimeError: this GPU is unsupported", "code", "stop"),
        ("RuntimeError: flash attention is required", "code", "stop"),
    ],
)
def test_a_general_phrase_decides_after_storage_and_network(said, cause, action):
    found = verdict_of(TRACED + said, 1)
    assert (found.cause, found.action) == (cause, action)


@pytest.mark.parametrize(
    ("said", "of_the_node"),
    [
        ("FATAL: kernel too old runtime", False),
        ("FATAL: while mounting: no such file", False),
        ("FATAL:    driver not loaded", False),
        ("docker: Error response from daemon: mounts denied.", False),
        ("FATAL:   container creation failed: mount /a->/a error: while mounting /a: permission denied", True),
        ("FATAL:   while mounting image /x.sif: failed to find loop device", True),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown", True),
        ("docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", True),
        ("enroot-nsenter: failed to create user namespace: Operation not permitted", True),
    ],
)
def test_the_phrases_of_a_container_runtime_leave_a_node_out(said, of_the_node):
    found = verdict_of(said, 255)
    ruled = found is not None and not found.by_words
    assert (ruled and (found.cause, found.action) == ("node", "elsewhere")) == of_the_node


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("RuntimeError: epoch 3, batch 20: loss is nan, stopping", "data, stop"),
        ("ValueError: batch 12: loss is not finite", "data, stop"),
        ("RuntimeError: step 12: loss is nan", "data, stop"),
        ("FloatingPointError: step 12, loss: nan", "data, stop"),
        ("FloatingPointError: iteration 12/900: loss nan", "data, stop"),
        ("OSError: [Errno 122] Disk quota exceeded: 'lightning_logs/epoch=3-loss=0.12.ckpt'", "quota, later"),
        ("OSError: [Errno 28] No space left on device: '/ckpt/epoch=03-loss=2.11.ckpt'", "storage, later"),
        ("OSError: [Errno 28] No space left on device: '/ckpt/epoch=03 loss=2.11.ckpt'", "storage, later"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'checkpoints/epoch=12-loss=0.31.ckpt'", "data, stop"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory at batch 12 while computing loss", "out of memory, go on"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory at batch 12, loss 2.31", "out of memory, go on"),
    ],
)
def test_an_error_that_names_a_step_and_a_loss_is_no_progress(said, label):
    """It decides, however often a log has it."""
    for times in (1, 4):
        found = verdict_of("\n".join([TRACED + said] * times), 1)
        assert f"{found.cause}, {found.action}" == label
        assert not found.by_words


@pytest.mark.parametrize("label", ["", "{}: ", "[rank{}]: ", "2026-11-29 07:00:01,000 - "])
@pytest.mark.parametrize("value", [" is nan", ": nan", "=0.31"])
def test_errors_of_four_ranks_are_no_progress(label, value):
    said = [f"{label.format(rank)}ERROR epoch 3 batch 5: loss{value}" for rank in range(4)]
    assert verdict_of("\n".join([WATCHDOG, *said]), 1).cause == "hang"


def test_the_source_within_a_traceback_is_no_progress():
    frame = '  File "/opt/run/train.py", line 9, in step\n    print("epoch 3, loss 0.5") or x()\n'
    deep = f"Traceback (most recent call last):\n{frame * 4}ValueError: x"
    assert verdict_of(f"{OOM}\n{deep}", 1).cause == "out of memory"


@pytest.mark.parametrize(
    "report",
    [
        "step 12: loss 2.31", "step=12 | lr 1e-4 | loss=.31", "epoch 3, batch 20: loss: tensor(2.31, device='cuda:0')",
        "iter 40/900 loss: -0.2", "it 40, loss nan, skipped", "{'epoch': 1, 'x': 2} update 12 'loss': 2.3",
        "trainer.loop: step 12, loss 2.31", "2026-11-29 07:00:01 INFO step 12 loss 2.31",
        "[rank0]: batch 12 loss\t2.31",
    ],
)  # fmt: skip
def test_three_reports_with_a_loss_are_progress(report):
    assert verdict_of("\n".join([OOM, *[report] * 3]), 1) is None
    assert verdict_of("\n".join([OOM, *[report] * 2]), 1).cause == "out of memory"


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: size error: {} != 256", "RuntimeError: expected code {} of the codebook",
        "struct.error: {} is out of range", "RuntimeError: CUDA driver error: {}",
        "ValueError: label code {} is not in the vocabulary", "ValueError: label {} not found in the vocabulary",
        "RuntimeError: error {}", "RuntimeError: batch of {} value errors",
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [400, 403, 404, 408, 410, 429, 500, 503, 512])
def test_a_number_in_an_exception_is_no_status_of_http(said, number):
    """Rules of code alone may decide on it, or words."""
    found = verdict_of(TRACED + said.format(number), 1)
    assert found.by_words or found.cause == "code"


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("RuntimeError: size error: 512 != 256", "code, stop"),
        ("RuntimeError: expected code 512 of the codebook", "data, stop"),
        ("struct.error: 512 is out of range", "data, stop"),
        ("RuntimeError: CUDA driver error: 500", "node, elsewhere"),
        ("ValueError: label code 404 is not in the vocabulary", "code, stop"),
        ("RuntimeError: the server said HTTP 503", "network, later"),
        ("RuntimeError: answer with status code: 503", "network, later"),
        ("RuntimeError: unexpected status_code=404", "data, stop"),
        ("RuntimeError: HTTP/1.1 401", "code, stop"),
        ("RuntimeError: HTTP response code: 429", "quota, later"),
        ("OSError: 503 Service Unavailable", "network, later"),
    ],
)
def test_a_status_of_http_is_named_as_one(said, label):
    found = verdict_of(TRACED + said, 1)
    assert f"{found.cause}, {found.action}" == label


CANCELLED = "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-05T07:16:01{} ***"
SIGTERM = f"{TRACED}torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15"


@pytest.mark.parametrize("label", ["", "0: "])
@pytest.mark.parametrize("rest", ["", "srun: error: n1: task 0: Terminated", SIGTERM])
def test_a_cancellation_without_a_reason_is_no_preemption(label, rest):
    """A user's scancel: nothing decides, and a job that Slurm shows as cancelled is not requeued."""
    begun = "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n"
    plain = f"{begun}{label}{CANCELLED.format('')}\n{rest}"
    assert verdict_of(plain, 143) is None
    assert verdict_of(f"{plain}\n{OOM}", 143).cause == "out of memory"
    assert verdict_of(f"{plain}\n{CANCELLED.format(' DUE TO TIME LIMIT')}", 143).cause == "preemption"
    assert verdict_of(f"{plain}\nsrun: error: Node failure on n7", 143).node == "n7"
    assert verdict_of(SIGTERM, 143).cause == "preemption"
    assert verdict_of(f"The node is preempted\n{SIGTERM}\n{CANCELLED.format('')}", 143).cause == "preemption"


@pytest.mark.parametrize(
    "warning",
    [
        "[rank0]:[W1129 17:00:01.000 ProcessGroupNCCL.cpp:1262] Warning: WARNING: process group was not destroyed",
        "/lib/torch/nn.py:31: UserWarning: the network cannot reach its full speed, since the driver is not supported",
        "2026-11-29 17:00:00 WARNING checkpoint not found, starting from scratch",
    ],
)
def test_the_words_of_a_warning_do_not_decide(warning):
    assert verdict_of(warning, 137) is None


@pytest.mark.parametrize(
    "ended",
    [
        "srun: error: node17: tasks 0-7: Exited with exit code 1\nsrun: error: node18: task 8: Terminated",
        "E1130 10:22:31.123000 140234 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: 1) "
        "local_rank: 3 (pid: 22134) of binary: /usr/bin/python3",
        "train.py FAILED\nRoot Cause (first observed failure):\n  exitcode  : 1 (pid: 22134)\n  error_file: <N/A>",
    ],
)
def test_a_launchers_lines_on_a_process_that_ended_name_no_cause(ended):
    """They made of any failure of unknown words one of the node, which was then left out, or of memory."""
    assert verdict_of(ended, 1) is None
    unknown = "MPICH ERROR [Rank 12] - Fatal error in PMPI_Allreduce: OFI poll failed: Network is down"
    assert replace(verdict_of(f"{unknown}\n{ended}", 1), node="") == replace(verdict_of(unknown, 1), node="")


@given(st.sets(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1), st.data())
def test_the_likeliest_label_of_planted_weights_is_found(words, data):
    """Scores are sums of weights over the root of the number of known words, plus a constant."""
    labels = ["network, later", "code, stop", "quota, stop"]
    weight = st.integers(-9, 9)
    weights = {
        of: {word: float(data.draw(weight)) for word in ("", "alpha", "beta", "gamma", "delta")} for of in labels
    }
    scores = {of: known[""] + sum(known[word] for word in words) / len(words) ** 0.5 for of, known in weights.items()}
    best = max(scores.values())
    sure = 1 / sum(math.exp(score - best) for score in scores.values())
    found = guessed([" ".join(sorted(words)) + " failed"], weights)
    assert (found is None) == (sure < 0.3)
    if found is not None:
        assert scores[f"{found.cause}, {found.action}"] == pytest.approx(best)


@pytest.mark.parametrize(("status", "cause"), [(65, "data"), (70, "hang"), (74, "storage"), (75, "preemption")])
def test_a_status_of_ours_decides_before_the_log(status, cause):
    assert verdict_of(OOM, status).cause == cause
    assert verdict_of(OOM, 73) is None
    assert verdict_of(OOM, 1, "NODE_FAIL").cause == "node"


def test_a_long_log_is_read_from_its_end(tmp_path):
    log = tmp_path / "x.log"
    with log.open("wb") as file:
        file.truncate(200 << 20)  # sparse
        file.seek(0, 2)
        file.write(b"\n\xff\xfe not UTF-8 \xc3\n" + OOM.encode())
    text = tail_of(log)
    assert len(text) <= TAIL_BYTES
    assert verdict_of(text, 1).cause == "out of memory"
    assert tail_of(tmp_path / "none.log") == ""


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    (tmp_path / "slurm" / "logs").mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_NAME", "run.train")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    for name in ("remark", "show"):
        monkeypatch.setattr(ending.controller, name, lambda *words: None)
    monkeypatch.setattr(ending, "ignore_signals", lambda: None)
    monkeypatch.setattr(ending, "_requeue", lambda *words: None)
    return JobAttempt(root=tmp_path, kind="train", command=["assay"], job="7", retries=3, progress="step 40")


def end(attempt, text, status=1):
    attempt.log.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        ending.finish(attempt, status)
    return events(attempt)[-1]


def labelled(name):
    return next(log["text"] for log in FIRST if log["id"] == name)


@pytest.mark.parametrize(("name", "cause"), [("type-error-none", "code"), ("parquet-footer", "data")])
def test_an_error_of_code_or_data_is_tried_again_once(attempt, name, cause):
    ends = [end(attempt, labelled(name)) for _ in range(2)]
    assert [(ended["means"], ended["action"], ended["outcome"]) for ended in ends] == [
        (cause, "go on", "failed"), (cause, "stop", "explained"),
    ]  # fmt: skip
    assert ends[0]["cause"].startswith("failed with status 1: ")
    assert end(attempt, labelled("ib-completion-status-12"))["outcome"] == "failed"


def test_memory_that_runs_out_twice_at_a_step_is_not_tried_a_third_time(attempt):
    assert [end(attempt, OOM)["outcome"] for _ in range(2)] == ["failed", "explained"]
    attempt.progress = "step 80"
    assert end(attempt, OOM)["outcome"] == "failed"


def test_a_node_at_fault_is_excluded_and_a_network_gets_time(attempt):
    ended = end(attempt, labelled("ecc-in-a-kernel"), 134)
    assert (ended["blamed"], ended["outcome"], attempt.needs_time) == (",n8,", "failed", False)
    attempt.left_out.clear()
    assert end(attempt, labelled("ib-completion-status-12"))["action"] == "later"
    assert (attempt.left_out, attempt.needs_time) == ([], True)


def test_the_status_names_the_cause_of_an_attempt_that_recorded_no_end(tmp_path):
    (tmp_path / "slurm" / "logs").mkdir(parents=True)
    (tmp_path / "slurm" / "logs" / "run.train-7.0.log").write_text(labelled("preemption-by-slurm"), encoding="utf-8")
    part = _judged(tmp_path, UnitState("7", None, "failed", "FAILED"))
    assert _causes([part]) == "preemption: no try is left"
    assert _causes([_judged(tmp_path, UnitState("8", None, "failed", "NODE_FAIL"))]) == "node: no try is left"
    assert _causes([_judged(tmp_path, UnitState("9", None, "failed", "FAILED", status=78))]) == "code: not tried again"
    assert _causes([UnitState("7", None, "waiting", "PENDING", means="network", action="later")]) == (
        "network: tried again later"
    )


def test_a_record_without_a_verdict_is_read(attempt):
    note(attempt, "ended", status=1, outcome="failed", progress="step 40", cause="x")
    assert end(attempt, "nothing of use")["outcome"] == "failed"
    assert not re.search("means", str(events(attempt)[-1]))

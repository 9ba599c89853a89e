"""No command but a hub reader, a fetch and an online W&B opens a network connection: strace asks the kernel."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from governance.signing.openssf import create_model_key

HERE = Path(__file__).parents[1]
CALLS = "connect,sendto,sendmsg,sendmmsg"
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}")
# Addresses of another machine; ranks of one machine meet on its loopback.
ELSEWHERE = re.compile(
    r'inet_addr\("(?!127\.|0\.0\.0\.0)[^"]+"\)|inet_pton\(AF_INET6, "(?!::1"|::"|::ffff:127\.)[^"]+"'
)


# Commands one after the other in one process. Before each, a datagram socket is connected to a port of this machine: a
# mark in the trace, which attributes what follows to that command.
COMMANDS = """
import json, os, socket, sys
from assay.cli.main import main
for number, (words, code) in enumerate(json.loads(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
        mark.connect(("127.0.0.1", {first} + number))
    status = main(words)
    if status != code:
        sys.exit(f"{{words}} ended with {{status}}, not {{code}}")
sys.stderr.flush()
os._exit(0)
"""
FIRST_MARK = 64_000


@pytest.fixture
def traced(tmp_path):
    """`traced(*words)`: the lines of strace on network calls, in any process of `python WORDS`."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; .ci/run installs it")
    if subprocess.run(["strace", "-f", "-o", os.devnull, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")

    def run(*words):
        log = tmp_path / "trace"
        done = subprocess.run(
            [*STRACE, "-o", str(log), sys.executable, *map(str, words)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(HERE)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return log.read_text(errors="replace").splitlines()

    return run


def elsewhere(lines, commands=()):
    """The lines that name another machine, each after the command that was running."""
    found, running = [], ""
    for line in lines:
        mark = re.search(r'htons\((\d+)\), sin_addr=inet_addr\("127\.0\.0\.1"\)', line)
        if mark and 0 <= (number := int(mark[1]) - FIRST_MARK) < len(commands):
            running = " ".join(commands[number][0])
        if ELSEWHERE.search(line):
            found.append(f"{running}: {line}")
    return found


def test_the_instrument_sees_a_connection_and_a_look_up(traced):
    tcp = (
        "import socket; s = socket.socket(); s.settimeout(0.2)\ntry: s.connect(('192.0.2.1', 9))\nexcept OSError: pass"
    )
    assert elsewhere(traced("-c", tcp))
    udp = tcp.replace("socket.socket()", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
    assert elsewhere(traced("-c", udp.replace("s.connect((", "s.sendto(b'x', (")))
    assert not elsewhere(traced("-c", tcp.replace("192.0.2.1", "127.0.0.1")))


@pytest.mark.slow
def test_no_command_of_a_run_speaks_to_another_machine(traced, project, monkeypatch):
    root = project / "root"
    text = (project / "run.toml").read_text()
    text = text.replace("[governance]", '[governance]\nmodel_signing = true\nmodel_key = "m.pem"')
    create_model_key(project / "m.pem")
    (project / "run.toml").write_text(text.replace('mode = "disabled"', 'mode = "offline"'))

    def check(*commands):
        """Commands (words, and the exit status where it is not 0) in one process."""
        commands = [([*map(str, words)], code) for *words, code in commands]
        lines = traced("-c", COMMANDS.format(first=FIRST_MARK), json.dumps(commands))
        marks = [line for line in lines if f"htons({FIRST_MARK + len(commands) - 1})" in line]
        assert marks, "the marks are not in the trace"
        assert elsewhere(lines, commands) == []

    config = [project / "run.toml", "--root", root]
    check(["run", *config, "--data-workers", "2", 0])
    newest = max(root.glob("checkpoint/*"), key=lambda path: path.stat().st_mtime)
    [train], [shard] = root.glob("train/*"), root.glob("encode/*/train/*.tokens")
    [clean], [dedup] = root.glob("clean/*/manifest.json"), root.glob("dedup/*/manifest.json")
    key = ("--key", project / "key.pem.pub")
    # Where Slurm is installed it asks the controller for MaxArraySize, wherever that is: a stand-in answers.
    (controller := project / "programs" / "scontrol").parent.mkdir()
    controller.write_text("#!/bin/sh\necho MaxArraySize = 1001\n")
    controller.chmod(0o755)
    monkeypatch.setenv("PATH", f"{controller.parent}:{os.environ['PATH']}")
    check(
        ["data", "show", *config, 0],
        ["data", "trace", shard, "5", 0],
        ["data", "export", *config, project / "megatron", 0],
        ["data", "import", project / "megatron_train", "--root", project / "other", "--vocabulary-size", "512",
         "--end-of-document", "0", 0],
        ["governance", "check", *config, 0],
        ["governance", "verify", root, "--deep", *key, 0],
        ["governance", "trace", train, "--svg", project / "t.svg", "--prov", project / "t.json", 0],
        ["governance", "impact", "tales/a.jsonl#3", "--root", root, 0],
        ["governance", "diff", clean, dedup, 1],
        ["governance", "keygen", "--root", project / "root.pem", 0],
        ["governance", "keygen", "--job", project / "job.pem", "--root-key", project / "root.pem", 0],
        ["governance", "keygen", "--model", project / "model.pem", 0],
        ["governance", "sign", newest, "--key", project / "model.pem", "--signing-key", project / "key.pem", 0],
        ["train", *config, 0],
        ["evaluate", *config, newest, 0],
        ["export", *config, newest, project / "exported", 0],
        ["report", *config, "--documents", 0],
        ["slurm", "render", *config, 0],
    )  # fmt: skip

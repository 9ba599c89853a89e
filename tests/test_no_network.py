"""No command but a hub reader, a fetch and an online W&B opens a network connection: strace asks the kernel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
CALLS = "connect,sendto,sendmsg,sendmmsg"
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}")
# Addresses of another machine; ranks of one machine meet on its loopback.
ELSEWHERE = re.compile(
    r'inet_addr\("(?!127\.|0\.0\.0\.0)[^"]+"\)|inet_pton\(AF_INET6, "(?!::1"|::"|::ffff:127\.)[^"]+"'
)


@pytest.fixture
def traced(tmp_path):
    """`traced(*words)`: the lines of strace that speak of another machine, in any process of the command."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; .ci/run installs it")
    if subprocess.run(["strace", "-f", "-o", os.devnull, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")

    def run(*words, code=0):
        log = tmp_path / "trace"
        done = subprocess.run(
            [*STRACE, "-o", str(log), sys.executable, *map(str, words)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(HERE)},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return [line for line in log.read_text(errors="replace").splitlines() if ELSEWHERE.search(line)]

    return run


def test_the_instrument_sees_a_connection_and_a_look_up(traced):
    tcp = (
        "import socket; s = socket.socket(); s.settimeout(0.2)\ntry: s.connect(('192.0.2.1', 9))\nexcept OSError: pass"
    )
    assert traced("-c", tcp)
    udp = tcp.replace("socket.socket()", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
    assert traced("-c", udp.replace("s.connect((", "s.sendto(b'x', ("))
    assert not traced("-c", tcp.replace("192.0.2.1", "127.0.0.1"))


@pytest.mark.slow
def test_no_command_of_a_run_speaks_to_another_machine(traced, project, monkeypatch):
    root = project / "root"
    config = [project / "run.toml", "--root", root]
    text = (
        (project / "run.toml")
        .read_text()
        .replace("[governance]", '[governance]\nmodel_signing = true\nmodel_key = "m.pem"')
    )
    (project / "run.toml").write_text(text.replace('mode = "disabled"', 'mode = "offline"'))

    def assay(*words, code=0):
        assert traced("-m", "pretrain", *words, code=code) == [], words

    assay("run", *config, "--data-workers", "2")
    newest = max(root.glob("checkpoint/*"), key=lambda path: path.stat().st_mtime)
    [train], [shard] = root.glob("train/*"), root.glob("encode/*/train/*.tokens")
    [clean], [dedup] = root.glob("clean/*/manifest.json"), root.glob("dedup/*/manifest.json")
    key = ("--key", project / "key.pem.pub")
    assay("data", "show", *config)
    assay("data", "trace", shard, "5")
    assay("data", "export", *config, project / "megatron")
    assay("data", "import", project / "megatron_train", "--root", project / "other", "--vocabulary-size", "512",
          "--end-of-document", "0")  # fmt: skip
    assay("governance", "check", *config)
    assay("governance", "verify", root, "--deep", *key)
    assay("governance", "trace", train, "--svg", project / "t.svg", "--prov", project / "t.json")
    assay("governance", "impact", "tales/a.jsonl#3", "--root", root)
    assay("governance", "diff", clean, dedup, code=1)
    assay("governance", "keygen", "--root", project / "root.pem")
    assay("governance", "keygen", "--job", project / "job.pem", "--root-key", project / "root.pem")
    assay("governance", "sign", newest, "--key", project / "m.pem", "--signing-key", project / "key.pem")
    assay("train", *config)
    assay("evaluate", *config, newest)
    assay("export", *config, newest, project / "exported")
    assay("report", *config, "--documents")
    # Where Slurm is installed it asks the controller for MaxArraySize, wherever that is: a stand-in answers.
    (controller := project / "programs" / "scontrol").parent.mkdir()
    controller.write_text("#!/bin/sh\necho MaxArraySize = 1001\n")
    controller.chmod(0o755)
    monkeypatch.setenv("PATH", f"{controller.parent}:{os.environ['PATH']}")
    assay("slurm", "render", *config)

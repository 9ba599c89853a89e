"""A corpus with a teacher's texts, as a user types it: forecast, gate, trace, takedown, report and forms."""

import json
import re
import zlib

import pytest

from assay.cli.main import main
from governance.manifest import read_manifest
from tests.conftest import tale
from tests.data_pipeline.teacher_server import answer, teacher

SOURCE = """
[[data.sources]]
type = "synthetic"
name = "retold"
licence = "CC-BY-4.0"
terms = "https://teacher.example/terms"
model = "teacher-1"
endpoint = "{url}"
seeds = "tales"
template = "retell.txt"
limit = 40
budget_requests = 100
budget_tokens = 1000000
joules_per_token = 2.0
joules_source = "its vendor's sheet of 2026"
"""
GATE = """
[[gate]]
id = "synthetic.few"
suite = "synthetic"
expectation = "between"
where = { source = "(all)" }
column = "document_share"
max = 0.05
owner = "data"
why = "Few documents that a model wrote."
"""


def reply(number, body):
    seed = zlib.crc32(body["messages"][-1]["content"].encode())
    found = answer(body)
    found["choices"][0] |= {"message": {"content": tale(seed)}, "finish_reason": "length" if seed % 4 == 0 else "stop"}
    return 200, {}, found


@pytest.mark.slow
def test_synthetic_text_is_marked_up_to_the_last_form(project, capsys):
    root = project / "root"
    (project / "retell.txt").write_text("Retell: {{text}}")

    def typed(command, *words):
        status = main([*command.split(), str(project / "run.toml"), *words, "--root", str(root)])
        return status, "".join(capsys.readouterr())

    with teacher(reply) as server:
        config = (project / "run.toml").read_text()
        section = SOURCE.replace("{url}", server.url)
        (project / "run.toml").write_text(f"{config}\n{section}")
        status, said = typed("data prepare", "--dry-run")
        assert status == 0, said
        assert "40 requests to teacher-1, 0 answered already; 40 to send" in said
        assert server.bodies == []
        status, said = typed("data prepare", "--data-workers", "1")
        assert status == 0, said
        assert len(server.bodies) == 40
    status, said = typed("data show")
    assert re.search(r"^  retold +teacher-1-2026 +40 +40 +0 +\d+ +\d+ +\d+$", said.replace(",", ""), re.M)
    (project / "policy.toml").write_text((project / "policy.toml").read_text() + GATE)
    status, said = typed("governance check", "--data-workers", "1")
    assert (status, "synthetic.few" in said) == (77, True), said
    assert "synthetic.truncated_share" in said, "it warns"
    [tokens] = (read_manifest(path) for path in root.glob("encode/*/manifest.json"))
    part = tokens.stats["tokens_by_source"]["retold"]
    share = part / sum(tokens.stats["tokens_by_source"].values())
    [results] = root.glob("audit/*/results.json")
    [row] = [row for row in json.loads(results.read_bytes()) if row["gate"] == "synthetic.token_share"]
    assert (row["status"], row["observed"]) == ("pass", pytest.approx(share))

    [shard] = [path for path in tokens.files("train", root) if "retold" in path.name]
    assert main(["data", "trace", str(shard), "0"]) == 0
    said = "".join(capsys.readouterr())
    seed = re.search(r"from (tales/[ab].jsonl#\d+), prompt [0-9a-f]{16}, ended by (stop|length)", said)[1]
    assert re.search(r"^  synthetic +[0-9a-f]{16}  synthetic/[0-9a-f]{16}/manifest.json$", said, re.M)
    assert main(["governance", "impact", seed, "--root", str(root)]) == 0
    assert f"written by teacher-1-2026 from {seed}" in "".join(capsys.readouterr())

    status, said = typed("report write", "--documents")
    assert status == 0, said
    found = json.loads((root / "report" / "latest.json").read_bytes())["synthetic"]
    assert found["token_share"] == share
    assert found["sources"][0]["energy"]["joules"] == 2.0 * found["sources"][0]["tokens_out"]
    page = (root / "report" / "latest.html").read_text()
    assert f"synthetic: {100 * share:.1f}" in page
    assert "https://teacher.example/terms" in page
    for form in ("training_content.md", "datasheet.md", "croissant.json"):
        [path] = root.glob(f"documents/*/{form}")
        text = path.read_text()
        assert re.search(r"retold by teacher-1: \d+ documents, [\d,]+ tokens", text), form
        assert "its vendor's sheet of 2026" in text.replace("\\", ""), form
    of_root = [str(root), "--key", str(project / "key.pem.pub")]
    assert main(["report", "verify", *of_root]) == 0
    assert main(["governance", "verify", *of_root]) == 0

    [path] = root.glob("synthetic/*/answers/00000.jsonl")
    path.write_text(path.read_text().replace("stop", "step"))
    capsys.readouterr()
    assert main(["governance", "verify", *of_root]) != 0
    assert "answers/00000.jsonl" in "".join(capsys.readouterr())

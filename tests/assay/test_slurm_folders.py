"""Files that the jobs of a run read: all are mounted in a container, and those that decide the run are kept."""

from pathlib import Path

import pytest

from assay.config import load_run
from assay.slurm_folders import container_mounts, files_frozen, folders_read, signing_key_id
from slurm.config import SlurmConfig
from tests.conftest import CONFIG

POLICY = (Path(__file__).parents[2] / "configs" / "policy.toml").read_text()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose sources, tasks, policies and key are in folders of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("own", "corpus", "tasks", "lab", "site", "keys"):
        (tmp_path / name).mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text("{}\n")
    (tmp_path / "tasks" / "t.jsonl").write_text("{}\n")
    (tmp_path / "site" / "policy.toml").write_text(POLICY)
    (tmp_path / "lab" / "policy.toml").write_text(f'parent = "../site/policy.toml"\n{POLICY}')
    text = CONFIG.replace('paths = ["*.jsonl"]', f'paths = ["{tmp_path}/corpus/*.jsonl"]')
    text = text.replace('policy = "policy.toml"', 'policy = "../lab/policy.toml"').replace("key.pem", "../keys/key.pem")
    text += '\n[[evaluation.tasks]]\nname = "t"\npath = "../tasks/t.jsonl"\nformat = "choices"\n'
    (tmp_path / "own" / "run.toml").write_text(text)
    return load_run(tmp_path / "own" / "run.toml", [])


def test_all_that_the_file_and_its_policies_name_is_mounted(run, tmp_path):
    found = {path.name for path in folders_read(run, [tmp_path / "corpus"])}
    assert found == {"corpus", "tasks", "lab", "site", "keys"}
    given = container_mounts(run, [], SlurmConfig(container="img", container_runtime="pyxis"))
    assert {path.name for path in given.folders} == {*found, "assay"}  # and the journal's heads
    assert given.variables == {
        "XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip
    assert container_mounts(run, [], SlurmConfig()).folders == ()


def test_what_decides_the_run_is_kept(run, tmp_path):
    kept = files_frozen(run, str(tmp_path / "modules.sh"))
    names = ["own/run.toml", "lab/policy.toml", "site/policy.toml", "modules.sh"]
    assert kept == [tmp_path / name for name in names]
    own = tmp_path / "own"
    (own / "rules.py").write_text("import limits\n")
    (own / "limits.py").write_text("")
    (own / "hooks.py").write_text("")
    (own / "tasks.py").write_text("")
    text = (own / "run.toml").read_text() + '\n[[data.filters]]\nname = "x"\nfilter = "rules:f"\n'
    text += '\n[[evaluation.tasks]]\nname = "s"\ntask = "tasks:f"\nformat = "choices"\n'
    text += '\n[[train.callbacks]]\nfunction = "hooks:f"\n'
    (own / "run.toml").write_text(text)
    kept = files_frozen(load_run(own / "run.toml", []), "")
    assert kept[3:] == [own / f"{name}.py" for name in ("limits", "rules", "tasks", "hooks")], (
        "own code and its imports"
    )
    assert signing_key_id(run) == ""  # none was made

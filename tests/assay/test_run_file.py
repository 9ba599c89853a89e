"""A run from several files: bases, presets, defaults, a short run, and the commands that print settings."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import tomllib
from itertools import pairwise

import jsonschema
import pytest

from assay.cli.command_words import join_files
from assay.cli.main import main
from assay.cli.report_commands import _keyring
from assay.cli.run_commands import command_line
from assay.cli.surface import parser
from assay.config import load_run
from assay.run_file import CONFIGS, fill_defaults, names_of, read_run_file
from data_pipeline.decontamination.decontaminate import DecontaminateConfig
from data_pipeline.decontamination.evaluation_sets import EvaluationSet
from data_pipeline.filters.clean import CleanConfig
from data_pipeline.ingest import IngestConfig, IngestIdentity
from data_pipeline.pii.redact import RedactSettings
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.tokenizer import TokenizerConfig
from governance.checks.audit import AuditConfig, AuditSection
from governance.checks.bias.bias import BiasSection
from governance.errors import ConfigError
from governance.gate.policy import load_policy
from governance.manifest import Manifest, write_manifest
from governance.stage import Runtime, not_made
from tests.test_docs import PAGES, blocks

CORPUS = '[[data.sources]]\ntype = "text"\nname = "mine"\npaths = ["*.txt"]\nlicence = "MIT"\nlanguage = "en"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.toml").write_text(CORPUS)
    return tmp_path


def run(capsys, *words):
    status = main([str(word) for word in words])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("name", names_of())
def test_init_writes_a_run_that_loads_as_it_is(folder, capsys, name):
    status, out = run(capsys, "init", "new", "--from", name)
    assert status == 0
    files = [folder / word for word in out.splitlines()[-1].removeprefix("next: assay run ").split()]
    loaded = load_run(files[0], [], files[1:])
    assert loaded.config.governance.policy == "policy.toml"
    assert loaded.config.train.steps >= 50
    assert run(capsys, "init", "new", "--from", name)[0] == 0, "the same again is not a fault"
    files[-1].write_text("# mine\n")
    assert run(capsys, "init", "new", "--from", name)[0] == 78
    assert files[-1].read_text() == "# mine\n"


@pytest.mark.parametrize("name", ["policy", "policy-strict"])
def test_init_writes_a_policy_alone(folder, capsys, name):
    status, out = run(capsys, "init", "new", "--from", name)
    assert (status, f'policy = "{name}.toml"' in out) == (0, name != "policy"), "a run takes policy.toml by itself"
    written = {path.name for path in (folder / "new").iterdir()}
    assert written == {"policy.toml", f"{name}.toml"}
    assert load_policy(folder / "new" / f"{name}.toml").digest == load_policy(CONFIGS / f"{name}.toml").digest


def test_init_names_the_files_that_are_missing_and_quotes_its_next_command(folder, capsys):
    status, out = run(capsys, "init", "my new", "--from", "web")
    assert (status, out.splitlines()[-1]) == (0, "next: assay run 'my new/web.toml'")
    assert "your part: put your files where my new/crawl/*.warc.gz finds them" in out
    (folder / "my new" / "crawl").mkdir()
    (folder / "my new" / "crawl" / "a.warc.gz").touch()
    assert "your part" not in run(capsys, "init", "my new", "--from", "web")[1]
    assert "your part" not in run(capsys, "init", "other")[1]


def test_later_files_win_over_earlier_ones_a_file_over_its_base_and_set_over_all(folder):
    (folder / "base.toml").write_text(
        "[train]\nsteps = 1\nseed = 1\nsequence_length = 64\n[optim]\nlearning_rate = 1.0\n"
    )
    (folder / "mine.toml").write_text(f'base = "base.toml"\n{CORPUS}[train]\nseed = 2\nsteps = 2\n')
    (folder / "over.toml").write_text("[train]\nsteps = 3\n")
    found = read_run_file([folder / "mine.toml", folder / "over.toml"], ["train.validation_rows=4"])
    assert found.values["train"] == {"steps": 3, "seed": 2, "sequence_length": 64, "validation_rows": 4}
    origins = {name: os.path.basename(origin) for name, origin in found.origins.items()}
    assert {name: origins[name] for name in origins if name.startswith(("train", "optim"))} == {
        "train.steps": "over.toml", "train.seed": "mine.toml", "train.sequence_length": "base.toml",
        "optim.learning_rate": "base.toml", "train.validation_rows": "--set",
    }  # fmt: skip


def test_a_preset_is_below_its_section_and_a_shipped_file_may_be_a_base(folder):
    (folder / "a.toml").write_text(f'{CORPUS}[model]\npreset = "1b"\nnum_hidden_layers = 2\n')
    shipped = load_run(CONFIGS / "1b.toml", [], needs="model").config.model
    assert load_run(folder / "a.toml", []).config.model == shipped.model_copy(update={"num_hidden_layers": 2})
    (folder / "b.toml").write_text(f'base = "1b.toml"\n{CORPUS}')
    merged = load_run(folder / "corpus.toml", [], [CONFIGS / "1b.toml"]).config
    assert load_run(folder / "b.toml", []).config == merged
    assert [source.name for source in merged.data.sources] == ["mine"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "run.toml"', "base = 'run.toml' leads back to this file"),
        ('base = "other.toml"', "base = 'run.toml' leads back to this file"),
        ('base = "1bn.toml"', "no such file next to it; the shipped ones are: 10m.toml"),
        ("base = 3", "give the path of a TOML file, or a list of paths"),
        ('[model]\npreset = "1bb"', "model.preset = '1bb': no such preset; did you mean '1b'?"),
        ("[model]\npreset = 0.5", "no such preset; the presets are: 10m"),
        ("", "has no [[data.sources]]. Add one, or name a file with your corpus first"),
        (CORPUS, 'run.toml: has no [model]. Add one, [model] preset = "10m" for example'),
        (
            f'{CORPUS.replace("paths", "path")}[model]\npreset = "1b"',
            "data.sources[entry 1].path: unknown key; did you mean 'paths'?",
        ),
    ],
)
def test_a_wrong_composition_is_refused(folder, text, words):
    (folder / "run.toml").write_text(text)
    (folder / "other.toml").write_text('base = "run.toml"')
    with pytest.raises(ConfigError) as refused:
        load_run(folder / "run.toml", [])
    assert words in str(refused.value).replace("(", "").replace("base = 3: ", "")


def test_a_preset_is_not_set_by_an_override(folder):
    (folder / "run.toml").write_text(f'{CORPUS}[model]\npreset = "10m"\n')
    with pytest.raises(ConfigError, match=r"name the shipped file after it: .*run\.toml configs/1b\.toml"):
        load_run(folder / "run.toml", ['model.preset="1b"'])


def test_a_corpus_alone_is_enough_for_the_commands_of_data(folder, capsys):
    config = load_run(folder / "corpus.toml", [], needs="data").config
    assert config.data == load_run(folder / "corpus.toml", [], [CONFIGS / "quickstart.toml"]).config.data.model_copy(
        update={name: getattr(config.data, name) for name in type(config.data).model_fields}
    )
    assert main(["data", "show", "corpus.toml"]) == 66, "nothing is made yet, but the file is enough"
    with pytest.raises(ConfigError, match="model"):
        load_run(folder / "corpus.toml", [])


def test_the_shipped_policy_judges_with_a_warning_and_an_own_one_wherever_its_file_is_named(folder, caplog):
    (folder / "run.toml").write_text(f'{CORPUS}[model]\npreset = "10m"\n')
    assert load_run(folder / "run.toml", []).policy == load_run(CONFIGS / "10m.toml", [], needs="model").policy
    [warned] = [record for record in caplog.records if "policy" in record.message]
    assert warned.levelname == "WARNING"
    assert all(word in warned.message for word in (str(CONFIGS.absolute() / "policy.toml"), "assay init", str(folder)))
    load_run(folder / "corpus.toml", [], needs="data")
    (folder / "policy.toml").write_text((CONFIGS / "policy.toml").read_text().replace("assay-default", "mine"))
    for files in (["corpus.toml", "10m.toml"], ["10m.toml", "corpus.toml"], ["10m.toml", "1b.toml", "corpus.toml"]):
        first, *more = [CONFIGS / name if (CONFIGS / name).exists() else folder / name for name in files]
        loaded = load_run(first, [], more)
        assert (loaded.policy.name, loaded.folder) == ("mine", folder)
    assert [record for record in caplog.records if "policy" in record.message] == [warned]


def test_a_report_is_verified_with_the_keys_of_all_files_of_its_run(folder):
    (folder / "keys.toml").write_text('[governance]\ntrusted_keys = ["ann.pub"]\n')
    words = ["report", "verify", "corpus.toml", "keys.toml", "--root", "a root"]
    arguments = parser().parse_args(join_files(words, parser()))
    keyring = _keyring(arguments)
    assert (keyring.config.trusted_keys, keyring.folder) == (("ann.pub",), arguments.run.parent)


def test_a_suggested_command_has_all_files_the_root_and_the_overrides(folder):
    words = ["train", "corpus.toml", "1b.toml", "--root", "a root"]
    arguments = parser().parse_args(join_files(words, parser()))
    line = "assay data prepare corpus.toml 1b.toml --root 'a root'"
    assert command_line(arguments, "data prepare") == line
    arguments = parser().parse_args(join_files([*words, "--set", "governance.policy='a b.toml'"], parser()))
    assert shlex.split(command_line(arguments, "data prepare")) == [
        *shlex.split(line), "--set", "governance.policy='a b.toml'"]  # fmt: skip


def test_what_a_file_leaves_out_suits_the_size_of_its_model(folder):
    chosen = {}
    for name in ("10m", "1b", "70b"):
        (folder / "run.toml").write_text(f'{CORPUS}[model]\npreset = "{name}"\n')
        config = load_run(folder / "run.toml", []).config
        chosen[name] = (config.train.steps, config.train.global_batch_size, config.optim.learning_rate)
        assert config.train.sequence_length == config.model.max_position_embeddings
        assert 0 < config.optim.warmup_steps + config.optim.decay_steps < config.train.steps
    _, batches, rates = zip(*chosen.values(), strict=True)
    assert list(batches) == sorted(batches)
    assert list(rates) == sorted(rates, reverse=True)
    (folder / "run.toml").write_text(f'{CORPUS}[model]\npreset = "1b"\n[optim]\nlearning_rate = 0.5\n')
    assert load_run(folder / "run.toml", []).config.optim.learning_rate == 0.5


def test_labelled_texts_and_chats_have_small_batches_by_default(folder):
    model = 'model = { preset = "10m" }\ndata.pack.sequence_length = 64\n'
    of_labels = 'data.encode.classification = { label = "label", labels = ["a", "b"] }\n'
    batches = []
    for lines in ("", of_labels, 'data.encode.loss_on = "answers"\n'):
        (folder / "run.toml").write_text(model + lines + CORPUS)
        found = read_run_file([folder / "run.toml"])
        fill_defaults(found, folder, "all")
        batches.append(found.values["train"]["global_batch_size"])
    assert batches[0] > 500
    assert batches[1:] == [32, 32]


@pytest.mark.parametrize("steps", [1, 20, 59, 60, 200])
def test_a_short_run_shortens_its_schedule_and_says_so(folder, caplog, steps):
    """The quick start has 10 steps of warm-up and 50 of decay."""
    loaded = load_run(CONFIGS / "quickstart.toml", [f"train.steps={steps}"])
    warmup, decay = loaded.config.optim.warmup_steps, loaded.config.optim.decay_steps
    assert (warmup, decay) == (10 * min(steps, 60) // 60, 50 * min(steps, 60) // 60)
    shortened = loaded.source.origins["optim.warmup_steps"] == "shortened to fit train.steps"
    assert shortened == (steps < 60)
    warned = f"train.steps = {steps} is shorter than warm-up and decay (10 + 50 steps): they take {warmup} + {decay}"
    assert (warned in caplog.text) == shortened


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml")) if path.stem[0].isdigit()])
def test_a_model_size_holds_no_corpus(name):
    assert "sources" not in tomllib.loads((CONFIGS / f"{name}.toml").read_text()).get("data", {})


def test_config_show_names_the_origin_of_each_value(folder, capsys):
    status, out = run(capsys, "config", "show", "corpus.toml", "1b.toml", "--set", "train.steps=7", "--json")
    assert status == 0
    rows = json.loads(out)
    assert rows["train.steps"] == {"value": 7, "origin": "--set"}
    assert rows["data.sources"]["origin"] == "corpus.toml"
    assert rows["model.hidden_size"] == {"value": 2048, "origin": "shipped 1b.toml"}
    assert rows["optim.warmup_steps"] == {"value": 1, "origin": "shortened to fit train.steps"}
    assert rows["optim.eps"]["origin"] == "default"
    assert run(capsys, "config", "show", "corpus.toml")[0] == 0


def test_the_schema_describes_each_setting(capsys):
    status, out = run(capsys, "config", "schema")
    assert status == 0
    schema = json.loads(out)
    assert "description" in schema["$defs"]["OptimConfig"]["properties"]["learning_rate"]
    assert "1b" in schema["$defs"]["ModelConfig"]["properties"]["preset"]["enum"]
    assert {"data", "train", "base"} <= schema["properties"].keys()


@pytest.fixture(scope="module")
def schema():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["config", "schema"]) == 0
    found = json.loads(printed.getvalue())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schema_accepts_each_shipped_configuration_and_each_example(schema):
    files = {path.name: path.read_text() for path in CONFIGS.glob("*.toml") if not path.stem.startswith("policy")}
    examples = {f"{page.name}, line {line}": text for page in PAGES for line, text in blocks(page, "toml")}
    checked = {}
    for place, text in (files | examples).items():
        values = tomllib.loads(text.replace('"..."', f'"{64 * "0"}"'))
        if values.keys() <= schema.schema["properties"].keys():  # a run's file, not a policy
            checked[place] = [error.message for error in schema.iter_errors(values)]
    assert {place: errors for place, errors in checked.items() if errors} == {}
    assert files.keys() <= checked.keys()
    assert len(checked) > 60


@pytest.mark.parametrize(
    "text",
    ["[train]\nstpes = 3", "[train]\nsteps = 'three'", "[optim]\noptimizer = 'adamm'", "[model]\npreset = '2b'",
     "[[data.sources]]\ntype = 'jsonl'\nname = 'a'\npaths = ['*']", "[[data.sources]]\ntype = 'jsnol'", "[tarin]"],
)  # fmt: skip
def test_the_schema_refuses_what_a_run_would_refuse(schema, text):
    assert not schema.is_valid(tomllib.loads(text))


def test_the_root_is_the_same_from_every_folder(folder, capsys, monkeypatch):
    (folder / "project" / "configs").mkdir(parents=True)
    (folder / "project" / ".git").mkdir()
    file = folder / "project" / "configs" / "mine.toml"
    file.write_text(CORPUS)
    found = set()
    for place in (folder, folder / "project", file.parent):
        monkeypatch.chdir(place)
        assert main(["slurm", "cancel", os.path.relpath(file)]) == 78, "it has no model"
        assert main(["data", "show", os.path.relpath(file)]) == 66
        from assay.cli.run_commands import default_root

        found.add(default_root(file).absolute())
    assert found == {folder / "project" / "runs" / "mine"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_knows_commands_and_options(capsys, shell):
    status, out = run(capsys, "completion", shell)
    assert status == 0
    assert all(word in out for word in ("governance", "prepare", "--data-workers"))
    if shell == "bash":
        completed = {
            ("data", "pre"): "prepare", ("governance", "sui"): "suites", ("init", "--from", "hand"): "handbook",
            ("run", "my.toml", "--data-w"): "--data-workers",
        }  # fmt: skip
        for words, expected in completed.items():
            typed = shlex.join(["assay", *words])
            line = (
                f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; $(complete -p assay | grep -oP "(?<=-F )\\S+") assay'
            )
            script = f'{out}\n{line} {words[-1]} {words[-2]}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
            done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True)
            assert [word.strip() for word in done.stdout.split()] == [expected], (words, done.stderr)


def test_doctor_names_a_fix_for_each_missing_ability(capsys):
    status, out = run(capsys, "doctor", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert {"python", "memory", "torch", "gpu", "energy", "slurm"} <= rows.keys()
    assert all(row["fix"] for row in rows.values() if not row["ok"])
    assert rows["torch"]["ok"]


def recipes(run, one: bool):
    """Stage -> recipe, in which each entry has one of two values."""
    data = {"min_words": 9 if one else 8, "by_language": {"th": {"min_words": 5 if one else 4}}}
    sets = (EvaluationSet(name="x" if one else "y", paths=("a",), fields=("text",)),)
    source = JsonlSource(type="jsonl", name="x" if one else "y", licence="MIT", paths=("a",))
    redact = {"actions": {"email": "mask" if one else "count"}, "canary_bytes": one, "seed": one}
    audit = AuditConfig(min_documents=7 + one)
    steps = run.config.train.model_copy(update={"steps": 7 + one})
    shards = IngestConfig(shard_bytes=7 + one)
    return {
        "clean": CleanConfig(**data),
        "decontaminate": DecontaminateConfig(sets=sets, action="drop_span" if one else "drop_document"),
        "ingest": IngestIdentity(sources=(source,), ingest=shards, names="n" if one else "m"),
        "redact": RedactSettings(**redact, key_fingerprint="f" * one, stdnum="1" if one else "2"),
        "tokenizer": TokenizerConfig(special_tokens=("<é>" if one else "<e>",), path="a" if one else "b"),
        "train": run.config.recipe.model_copy(update={"train": steps}),
        "audit": AuditSection(
            audit=audit, policy=run.policy, reference_sha256="f" * one, token_shards=one, own_sources={}
        ),
        "bias": BiasSection(
            lists={"a": "f" * one}, templates=one, reference="highest" if one else "none", parity_reference="en"
        ),
    }


def test_the_settings_of_an_artifact_that_a_failed_look_up_names_are_accepted(folder):
    assert main(["init", "new"]) == 0
    file = folder / "new" / "quickstart.toml"
    run, runtime, hints = load_run(file, []), Runtime(folder / "root", make=False), {}
    for stage, section in recipes(run, True).items():
        made = Manifest(stage=stage, version=1, key="0" * 64, config=section.model_dump(mode="json"), inputs=(),
                        outputs=(), stats={}, run={})  # fmt: skip
        write_manifest(made, runtime.root)
        error = not_made(stage, recipes(run, False)[stage].model_dump(mode="json"), runtime)
        words = shlex.split(str(error).splitlines()[1])
        hints[stage] = [word for before, word in pairwise(words) if before == "--set"]
        if stage != "decontaminate":  # its section needs sets, too
            load_run(file, hints[stage])
    assert hints == {
        "clean": ["data.clean.by_language.th.min_words=5.0", "data.clean.min_words=9.0"],
        "decontaminate": ['data.decontaminate.action="drop_span"'],
        "ingest": [],
        "redact": ['data.pii.actions.email="mask"', "data.pii.canary_bytes=1", "data.pii.seed=1"],
        "tokenizer": ['data.tokenizer.special_tokens=["<é>"]'],
        "train": ["train.steps=8"],
        "audit": ["audit.min_documents=8"],
        "bias": ['audit.bias.reference="highest"'],
    }

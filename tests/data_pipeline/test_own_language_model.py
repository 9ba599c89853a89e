"""The language of a corpus by the run's own fastText model: codes, rules, keys, and clear refusals."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from assay.cli.main import main
from data_pipeline.filters.language import identify
from data_pipeline.filters.own_language_model import code_of, own_codes
from governance.errors import ConfigError
from governance.manifest import read_manifest
from tests.conftest import write_tales
from tests.data_pipeline.test_fasttext_scores import WORDS, model_bytes

fasttext = pytest.importorskip("fasttext", reason="needs fasttext-predict, of the extra `dev`")

LABELS = (b"eng_Latn", b"deu_Latn", b"cmn_Hani", b"ceb_Latn", b"zxx", b"eng_Dsrt", b"zho_Hans")


@pytest.fixture
def model(tmp_path):
    """A model of random weights whose labels are GlotLID's."""
    data = model_bytes(labels=len(LABELS), dimensions=12, buckets=500, shortest=2, longest=4)
    for number, label in enumerate(LABELS):
        data = data.replace(b"__label__l%d\0" % number, b"__label__" + label + b"\0")
    path = tmp_path / "glot.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("label", "code"),
    [("__label__eng_Latn", "en"), ("cmn_Hani", "zh"), ("arb_Arab", "ar"), ("ceb_Latn", "ceb"), ("en-US", "en"),
     ("de", "de"), ("1", "und"), ("positive", "und"), ("nob_Latn", "no"), ("ces", "cs"), ("mri", "mi"),
     ("als_Latn", "sq"), ("__label__als", "als")],
)  # fmt: skip
def test_labels_become_the_codes_of_the_pipeline(label, code):
    assert code_of(label) == code


def test_languages_are_the_best_labels_of_the_library(model):
    assert own_codes(model) == {"en", "de", "zh", "ceb", "zxx"}
    draw = np.random.default_rng(3)
    texts = [" ".join(draw.choice(WORDS[1:6] + WORDS[7:10], 12)) for _ in range(40)]
    found = identify(pa.array([*texts, ""], pa.large_string()), own_model=model)
    library = fasttext.load_model(str(model))
    for text, code, confidence in zip(texts, found.codes, found.confidences, strict=False):
        of_code: Counter[str] = Counter()
        for label, probability in zip(*library.predict(text, k=len(LABELS)), strict=True):
            of_code[code_of(label)] += float(probability)
        [(best, total)] = of_code.most_common(1)
        assert (code, confidence) == (best, pytest.approx(min(total, 1.0), abs=1e-4))
    assert found.codes[-1] == "und"
    assert len(set(found.codes)) > 2


def test_a_corpus_has_the_languages_of_the_own_model_and_its_digest_is_in_the_key(project, model, capsys):
    write_tales(project / "a.jsonl", range(12))
    (project / "blob").write_bytes(model.read_bytes())
    (project / "glot.bin").symlink_to("blob")
    own = ["--set", 'data.clean.language_model="glot.bin"', "--set", "data.clean.min_language_confidence=0.0"]
    words = ["data", "prepare", str(project / "run.toml"), "--root", str(project / "root"), "--data-workers", "1"]
    assert main([*words, *own]) == 0
    [path] = (project / "root").glob("clean/*/manifest.json")
    made = read_manifest(path)
    assert [item.stage for item in made.inputs] == ["ingest", "language_model"]
    assert set(made.stats["languages"]) <= {"en", "de", "zh", "ceb", "zxx"}
    assert "language_model" not in made.config
    [copy] = (project / "root").glob("language_model/*/model.bin")
    assert not copy.is_symlink()
    assert not copy.samefile(project / "blob")
    assert copy.read_bytes() == model.read_bytes()
    assert main([*words, *own, "--set", "data.clean.languages=['fr']"]) == 78
    assert "'fr' is not a language that documents are identified as" in capsys.readouterr().err
    assert main([*words, "--set", 'data.clean.language_model="gone.bin"']) == 66
    assert main([*words, "--set", 'data.clean.language_model="a.jsonl"']) == 78


def test_a_model_of_something_else_is_refused(tmp_path):
    path = tmp_path / "quality.bin"
    path.write_bytes(model_bytes())
    with pytest.raises(ConfigError, match=r"its labels are l0, l1, which begin with no code of a language"):
        own_codes(path)

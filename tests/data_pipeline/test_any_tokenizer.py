"""Tokenizers of other kinds keep their library's ids and special tokens, whichever engine encodes."""

import base64
import json

import pyarrow.compute as pc
import pytest
from tokenizers import Tokenizer

from data_pipeline.tokens import tokenizer as subject
from data_pipeline.tokens.parity import awkward_strings, every_character
from data_pipeline.tokens.tiktoken_ranks import PATTERNS
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from data_pipeline.tokens.vocabulary import alphabet
from governance.errors import ConfigError
from governance.stage import Runtime
from tests.data_pipeline.test_tokenizer import CORPUS, artifact
from tests.data_pipeline.tokenizer_kinds import KINDS, WORDS, byte_level, split_then_bytes

TEXTS = [
    WORDS,
    WORDS.upper(),
    *awkward_strings(),
    "a <s> b </s> <|endoftext|> <|im_start|>[SEP] <unk>",
    "!\n\n\n a",
    "a\n  ",
    "x" * 9000,
]
SENTENCE = "Der schnelle Fuchs isn't here,  12."
FAST = {"gpt2", "llama3", "qwen", "neox", "gpt4o", "roberta", "mistral", "gemma"}
HIDING = {"t5", "unigram_bytes", "word_level"}  # there the library finds special tokens in text
LOSSLESS = {"gpt2", "llama3", "smollm", "gpt4o", "deepseek"}


@pytest.fixture(autouse=True)
def fewer_characters(monkeypatch):
    """The parity gate on every eighth stretch of the characters; `test_tokenizer.py` has it whole."""
    monkeypatch.setattr(subject, "every_character", lambda: every_character()[::8])


def taken_over(root, text, end, name="tokenizer.json", **settings):
    (root / "given").mkdir(exist_ok=True)
    (root / "given" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    config = TokenizerConfig(path=f"given/{name}", **{"special_tokens": (end,), **settings})
    return train_tokenizer(artifact(root, CORPUS), config, Runtime(root), root)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_library(tmp_path, kind, caplog):
    build, end = KINDS[kind]
    theirs = build()
    manifest = taken_over(tmp_path, theirs.to_str(), end)
    ours = load_encoder(manifest, tmp_path)
    theirs.encode_special_tokens = True
    special = {token.content for token in theirs.get_added_tokens_decoder().values() if token.special}
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        if kind not in HIDING or not any(name in text for name in special):
            assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert {theirs.token_to_id(name) for name in special - {"<unk>", "[UNK]"}}.isdisjoint(ids)
    assert ours.end_of_document == theirs.token_to_id(end) == manifest.stats["end_of_document"]
    assert ours.encode_documents([""])[0].tolist()[-1] == ours.end_of_document
    assert ours.engine == ("gigatoken" if manifest.stats["parity"] else "tokenizers")
    assert (ours.engine == "gigatoken") == (kind in FAST), ours.engine
    assert (ours.decode_text is None) == (kind in LOSSLESS)
    assert set(manifest.stats["special_tokens"]) == special
    assert manifest.stats["round_trip"] == ("bytes" if kind in LOSSLESS else "ids")
    for text in (WORDS if kind == "word_level" else SENTENCE, "", "do n't" if kind == "bert" else ""):
        assert ours.recovers(ours.encode(text).tolist(), text.encode())
    sentence = ours.encode(SENTENCE).tolist()
    for cut in range(len(sentence)):  # a continuation keeps its first space
        before, after = sentence[:cut], sentence[cut:]
        assert ours.decode(before) + ours.decode_after(before, after) == ours.decode(sentence)
    assert not ours.recovers(ours.encode("brown").tolist(), SENTENCE.encode())


@pytest.mark.parametrize("kind", ["t5", "bert", "word_level"])
def test_what_a_vocabulary_lacks_is_not_recovered(tmp_path, kind, caplog):
    """The library decodes it to nothing, or to the text of a token with the same id."""
    build, end = KINDS[kind]
    ours = load_encoder(taken_over(tmp_path, build().to_str(), end), tmp_path)
    for text in ("the \u0cb6 cat", "quick\U0001f9ea"):
        ids = ours.encode(text).tolist()
        assert ours.unknown in ids
        assert not ours.recovers(ids, text.encode())
    assert "fails the round trip" in caplog.text


def test_engines_of_other_versions_are_compared_on_every_character(tmp_path, monkeypatch, caplog):
    build, end = KINDS["gpt2"]
    manifest = taken_over(tmp_path, build().to_str(), end)
    right = subject.fast_engine

    def newer(*arguments):
        """A later version, which mistakes one rare letter for another."""
        engine = right(*arguments)
        return lambda texts: engine(pc.replace_substring(texts, "\u0cb6", "\u0cb7"))

    monkeypatch.setattr(subject, "fast_engine", newer)
    monkeypatch.setattr(subject, "_engines", subject._engines.__wrapped__)
    monkeypatch.setattr(subject, "every_character", every_character)
    subject._load.cache_clear()
    assert load_encoder(manifest, tmp_path).engine == "gigatoken"
    for name in ("gigatoken", "tokenizers"):
        packages = {**manifest.run["packages"], name: "0.0.1"}
        other = manifest.model_copy(update={"run": {**manifest.run, "packages": packages}})
        assert load_encoder(other, tmp_path).engine == "tokenizers"
    subject._load.cache_clear()


def test_chat_tokens_are_added_behind_the_last_id(tmp_path):
    build, end = KINDS["llama3"]
    given = build()
    size = given.get_vocab_size()
    manifest = taken_over(tmp_path, given.to_str(), end, special_tokens=(end, "<|im_start|>", "<|eot_id|>"))
    assert manifest.stats["vocabulary_size"] == size + 1
    assert manifest.stats["special_tokens"]["<|im_start|>"] == size
    made = Tokenizer.from_file(str(tmp_path / manifest.folder / "tokenizer.json"))
    assert made.token_to_id("<|im_start|>") == size
    assert made.encode("a<|im_start|>", add_special_tokens=False).ids[-1] == size
    assert size not in load_encoder(manifest, tmp_path).encode("a<|im_start|>")
    assert not [output for output in manifest.outputs if "chat_template" in output.path]

    def with_settings(held):
        (tmp_path / "given" / "tokenizer_config.json").write_text(held if isinstance(held, str) else json.dumps(held))
        return taken_over(tmp_path, given.to_str(), end, special_tokens=(end, "<|im_start|>", "<|eot_id|>"))

    assert with_settings({"eos_token": end}).digest == manifest.digest
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    for held in ({"chat_template": "{{ messages[0].content }}"}, {"chat_template": named}):
        made = with_settings(held)
        [kept] = [output for output in made.outputs if output.path.endswith("chat_template.jinja")]
        assert (tmp_path / kept.path).read_text() == "{{ messages[0].content }}"
    with pytest.raises(ConfigError, match=r"the chat template next to .* cannot be read"):
        with_settings("{torn")


@pytest.mark.parametrize(("name", "own"), [*((name, False) for name in PATTERNS), ("cl100k_base", True)])
def test_tiktokens_encodings_give_tiktokens_ids(tmp_path, name, own):
    """Ranks trained here; the pattern by name, and as tiktoken itself writes it."""
    tiktoken = pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    theirs = pattern_of(public, name)
    printable = byte_level(split_then_bytes(PATTERNS[name][0]), [], size=900).get_vocab()
    ranks = {bytes(alphabet()[letter] for letter in token): index for token, index in printable.items()}
    lines = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    manifest = taken_over(tmp_path, lines, "<|end|>", "x.tiktoken", pattern=theirs if own else name)
    ours = load_encoder(manifest, tmp_path)
    other = tiktoken.Encoding("x", pat_str=theirs, mergeable_ranks=ranks, special_tokens={"<|end|>": len(ranks)})
    assert (ours.engine == "gigatoken") == (not own), "tiktoken's own pattern is unknown to gigatoken"
    for text in TEXTS:
        assert ours.encode(text).tolist() == other.encode(text, disallowed_special=())
        assert ours.decode(ours.encode(text)) == text
    assert [ids.tolist()[:-1] for ids in ours.encode_documents(TEXTS)] == [ours.encode(text).tolist() for text in TEXTS]
    assert ours.end_of_document == len(ranks)


def test_the_end_of_p50k_base_is_the_id_that_its_ranks_leave_out(tmp_path, monkeypatch):
    """The same with fewer ranks: their ids go on behind the special token."""
    tiktoken = pytest.importorskip("tiktoken")
    pattern, gap = PATTERNS["p50k_base"][0], 400
    monkeypatch.setitem(PATTERNS, "p50k_base", (pattern, {"<|endoftext|>": gap}))
    printable = byte_level(split_then_bytes(pattern), [], size=900).get_vocab()
    ranks = {bytes(alphabet()[letter] for letter in name): at + (at >= gap) for name, at in printable.items()}
    lines = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    ours = load_encoder(taken_over(tmp_path, lines, "<|endoftext|>", "x.tiktoken", pattern="p50k_base"), tmp_path)
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": gap})
    assert ours.end_of_document == gap
    assert [ours.encode(text).tolist() for text in TEXTS] == [theirs.encode_ordinary(text) for text in TEXTS]


def pattern_of(public, name):
    """The expression of tiktoken's encoding, without its ranks, which would be fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        return getattr(public, name)()["pat_str"]


def broken(change):
    values = json.loads(KINDS["llama3"][0]().to_str())
    change(values)
    return json.dumps(values)


FAULTS = {
    "has no model": lambda v: v.pop("model"),
    "not among its special tokens": lambda v: v.update(added_tokens=[]),
    "dropout": lambda v: v["model"].update(dropout=0.1),
    "two of its tokens have one id": lambda v: v["model"]["vocab"].update({"zzz": 5}),
    "0 to 16,777,215 can be used": lambda v: v["model"]["vocab"].update({"zzz": 1 << 33}),
    "has the id 9000 in the file": lambda v: v["added_tokens"][2].update(id=9000),
    "AttributeError": lambda v: v.update(added_tokens=["<s>"]),
    "KeyError": lambda v: v.update(added_tokens=[{"content": "<s>", "special": True}]),
    "TypeError": lambda v: v["model"]["vocab"].update({"zzz": "5"}),
    "'int' object": lambda v: v.update(decoder=5),
    "'list' object": lambda v: v.update(normalizer=["NFC"]),
    "another type": lambda v: v["model"].update(vocab=5),
    "out of vocabulary": lambda v: v["model"]["merges"].append(["zq", "qz"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_is_reported(tmp_path, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        taken_over(tmp_path, broken(FAULTS[fault]), "<|end_of_text|>")
    assert "given/tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (b'{"model": ', {}, "given/tokenizer.json"),
        (b'{"model": {}, "decoder": ' + b"[" * 99_999, {}, "nested too deep .RecursionError"),
        (b"\xff\xfe", {}, "given/tokenizer.json"),
        (b"YQ== 0\n", {"name": "x.tiktoken"}, "set data.tokenizer.pattern to r50k_base"),
        (b"YQ== 0\n", {"name": "x.tiktoken", "pattern": "r50k_base"}, "no token for the byte 0x00"),
        (b"YQ== x\n", {"name": "x.tiktoken", "pattern": "r50k_base"}, "line 1 is not a token"),
        (b"{}", {"pattern": "r50k_base"}, "pattern is for tiktoken's ranks"),
        (b"\n\x0e\n\x05<unk>", {"name": "x.model"}, "x.model': is a model of SentencePiece"),
    ],
)
def test_damaged_files_are_reported(tmp_path, data, settings, words):
    with pytest.raises(ConfigError, match=words):
        taken_over(tmp_path, data, "<|endoftext|>", **settings)

"""Small tokenizers of the kinds in use, trained on a few sentences; nothing is fetched."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = (
    "the quick brown fox isn't here and they'll come; we've seen I'm fine, he'd re-read o'clock, The Cat SAT 2026 "
    "Der schnelle Fuchs läuft über 12 Wiesen für größere Häuser; ça va très bien où êtes-vous 3.14159 1000000 "
    "быстрая коричневая лиса прыгает через ленивую собаку 敏捷的棕色狐狸跳过懒狗 素早い茶色の狐 "
    "الثعلب البني السريع def f(x):\n    return x + 1\n\n\tif (a != b) { c[0] += 1; }\r\n"
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(cutters, special, normalizer=None, size=600, **model):
    """A byte-level BPE behind the given pre-tokenizers."""
    made = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Sequence(cutters) if len(cutters) > 1 else cutters[0]
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([WORDS] * 3, trainer)
    return made


def split_then_bytes(*patterns):
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns), whole]


def sentencepiece(normalizer, pre_tokenizer, decoder, special):
    """A BPE over characters, with bytes for unknown ones, as SentencePiece has it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer, made.decoder = normalizer, decoder
    # In training, words are cut, so that no token spans two of them.
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTES], show_progress=False)
    made.train_from_iterator([WORDS] * 3, trainer)
    values = json.loads(made.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] in special]
    values["pre_tokenizer"] = pre_tokenizer
    return Tokenizer.from_str(json.dumps(values))


def unigram(special, byte_fallback=False):
    """A Unigram model with a metaspace, as of T5 and XLM-R."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=[*special, *(BYTES if byte_fallback else ())], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([WORDS] * 3, trainer)
    if not byte_fallback:
        return made
    values = json.loads(made.to_str())
    values["model"]["byte_fallback"] = True
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] in special]
    values["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, values["decoder"]]}
    return Tokenizer.from_str(json.dumps(values))


def llama3():
    made = byte_level(split_then_bytes(CL100K), [], ignore_merges=True)
    made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", None, [("<|begin_of_text|>", begin)])
    return made


def qwen():
    made = byte_level(split_then_bytes(QWEN), [], normalizers.NFC())
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return made


def neox():
    made = byte_level(
        [pre_tokenizers.ByteLevel(add_prefix_space=False)], ["<|endoftext|>", "<|padding|>"], normalizers.NFC()
    )
    made.add_tokens([AddedToken(" " * count, normalized=False) for count in range(8, 1, -1)])
    return made


def mistral():
    return sentencepiece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        ["<unk>", "<s>", "</s>"],
    )


def gemma():
    return sentencepiece(
        normalizers.Replace(" ", "▁"),
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        ["<pad>", "<eos>", "<bos>", "<unk>"],
    )


def bert():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    made.train_from_iterator([WORDS] * 3, trainer)
    return made


def word_level():
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    return made


KINDS = {
    "gpt2": (
        lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], ["<|endoftext|>"]),
        "<|endoftext|>",
    ),
    "llama3": (llama3, "<|end_of_text|>"),
    "qwen": (qwen, "<|endoftext|>"),
    "neox": (neox, "<|endoftext|>"),
    "smollm": (
        lambda: byte_level(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
            ["<|endoftext|>", "<|im_start|>"],
        ),
        "<|endoftext|>",
    ),
    "gpt4o": (lambda: byte_level(split_then_bytes(O200K), ["<|endoftext|>"]), "<|endoftext|>"),
    "deepseek": (
        lambda: byte_level(
            split_then_bytes(r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", CL100K),
            ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        ),
        "<｜end▁of▁sentence｜>",
    ),
    "roberta": (
        lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)], ["<s>", "<pad>", "</s>"]),
        "</s>",
    ),
    "mistral": (mistral, "</s>"),
    "gemma": (gemma, "<eos>"),
    "t5": (lambda: unigram(["<pad>", "</s>", "<unk>"]), "</s>"),
    "unigram_bytes": (lambda: unigram(["<unk>", "<s>", "</s>"], byte_fallback=True), "</s>"),
    "bert": (bert, "[SEP]"),
    "word_level": (word_level, "</s>"),
}
"""Kind -> how it is built, and its token for the end of a document."""

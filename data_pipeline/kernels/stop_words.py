"""Eight common function words for each of 44 languages, in each spelling.

English has the list of the paper (Rae et al. 2021, section A.1.1). Where words are not spaced, each entry is one word
as `kernels/words.py` cuts it: a character of Chinese or Japanese, a syllable of Thai. ASCII capitals are folded, and no
others, so every entry is in small letters.
"""

from __future__ import annotations

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "ar": ("في", "من", "على", "إلى", "أن", "عن", "التي", "ما"),
    "bg": ("и", "на", "да", "за", "се", "от", "не", "с"),
    "bn": ("ও", "এবং", "করে", "এই", "থেকে", "হয়", "জন্য", "না"),
    "ca": ("de", "la", "i", "que", "el", "els", "per", "amb"),
    "cs": ("a", "se", "v", "na", "je", "že", "s", "z"),
    "da": ("og", "at", "det", "som", "en", "på", "er", "med"),
    "de": ("der", "die", "und", "das", "ist", "nicht", "mit", "von"),
    "el": ("και", "το", "του", "της", "να", "η", "με", "για", "καὶ", "τὸ", "τοῦ", "τῆς", "νὰ", "ἡ", "μὲ", "γιὰ"),
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "es": ("de", "la", "que", "el", "en", "los", "con", "una"),
    "et": ("ja", "on", "ei", "et", "see", "kui", "oli", "mis"),
    "eu": ("eta", "da", "ez", "bat", "du", "ere", "zen", "dira"),
    "fa": ("و", "در", "به", "از", "که", "این", "را", "با"),
    "fi": ("ja", "on", "ei", "että", "se", "oli", "hän", "mutta"),
    "fr": ("de", "la", "le", "et", "les", "des", "que", "une"),
    "he": ("של", "את", "על", "לא", "הוא", "עם", "זה", "גם"),
    "hi": ("के", "में", "की", "है", "और", "से", "का", "को"),
    "hr": ("i", "u", "je", "na", "se", "da", "za", "su"),
    "hu": ("a", "az", "és", "hogy", "nem", "is", "egy", "van"),
    "id": ("yang", "dan", "di", "dengan", "untuk", "ini", "dari", "tidak"),
    "it": ("di", "che", "la", "il", "non", "per", "una", "con"),
    "ja": ("の", "に", "は", "を", "た", "が", "で", "と"),
    "ko": ("수", "이", "그", "있다", "및", "것이다", "한다", "등"),
    "lt": ("ir", "kad", "į", "su", "tai", "yra", "iš", "ne"),
    "lv": ("un", "ir", "ar", "no", "ka", "par", "uz", "bet"),
    "ms": ("yang", "dan", "di", "dengan", "untuk", "ini", "dari", "tidak"),
    "nl": ("de", "het", "een", "van", "en", "dat", "niet", "met"),
    "no": ("og", "i", "det", "som", "på", "er", "til", "av"),
    "pl": ("w", "na", "z", "do", "się", "że", "nie", "jest"),
    "pt": ("de", "que", "não", "os", "um", "uma", "com", "para"),
    "ro": ("de", "și", "în", "la", "a", "cu", "nu", "care"),
    "ru": ("и", "в", "не", "на", "что", "с", "как", "по"),
    "sk": ("a", "sa", "v", "na", "je", "že", "s", "z"),
    "sl": ("in", "je", "v", "da", "na", "se", "za", "so"),
    "sr": ("и", "у", "је", "да", "се", "на", "за", "су", "i", "u", "je", "da", "se", "na", "za", "su"),
    "sv": ("och", "att", "det", "som", "en", "på", "är", "med"),
    "sw": ("ya", "na", "wa", "kwa", "ni", "za", "katika", "la"),
    "ta": ("ஒரு", "என்று", "இந்த", "மற்றும்", "என", "அது", "அந்த", "நான்"),
    "th": ("ที่", "และ", "ใน", "ไม่", "ให้", "ว่า", "มี", "จะ"),
    "tr": ("ve", "bir", "bu", "için", "de", "da", "ile", "çok"),
    "uk": ("і", "в", "не", "на", "що", "з", "до", "та"),
    "ur": ("کے", "میں", "کی", "ہے", "اور", "سے", "کا", "کو"),
    "vi": ("và", "của", "là", "có", "không", "được", "cho", "trong"),
    "zh": ("的", "一", "是", "不", "了", "在", "有", "我"),
}
"""By ISO 639-1 code."""

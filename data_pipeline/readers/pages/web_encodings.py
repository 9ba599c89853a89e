"""Python codecs for the encodings of the web.

The standard's names mean more than Python's codecs of the same name (WHATWG, Encoding): Shift_JIS is Windows-31J, with
the signs of NEC and IBM that Japanese pages write every day (circled numbers, one sign for "Ltd.", the variant of
"high" in names); EUC-KR is Windows-949, with all syllables of Hangul; GBK is GB18030; Big5 has the characters of ETEN
and Hong Kong; TIS-620 is Windows-874. EUC-JP has the signs of NEC and IBM, too, for which Python has no codec.
The library that maps names to codecs lacks x-mac-cyrillic, which Python has under another name (`named_mac`).
"""

from __future__ import annotations

import codecs
import re

_CODECS = {
    "shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs",
    "iso8859-11": "cp874", "tis-620": "cp874",
}  # fmt: skip
_NEC = "assay.nec"
_MAC = re.compile(rb"(?:^|<meta\b[^>]*\bcharset\s*=)[\s\"']*x-mac-(?:cyrillic|ukrainian)(?![\w-])", re.I)


def named_mac(words: bytes) -> str:
    """Python's codec where a header or page names x-mac-cyrillic."""
    return "mac_cyrillic" if _MAC.search(words) else ""


def decode_as(data: bytes, encoding: str, errors: str = "strict") -> str:
    """The characters of bytes in an encoding of the standard.

    Raises:
        UnicodeDecodeError: a byte has no meaning in it.
        LookupError: Python has no codec for it.
    """
    name = encoding.lower()
    if name == "euc_jp":
        errors = _NEC if errors == "strict" else f"{_NEC}.{errors}"
    return data.decode(_CODECS.get(name, encoding), errors)


def _with_signs(error: UnicodeError, otherwise: str) -> tuple[str | bytes, int]:
    """The character of two bytes of EUC-JP in Windows-31J.

    The rows of both are those of JIS X 0208.

    Raises:
        UnicodeError: there is none, and `otherwise` is "strict".
    """
    assert isinstance(error, UnicodeDecodeError), "it decodes"
    pair = error.object[error.start : error.start + 2]
    if len(pair) == 2 and min(pair) > 0xA0 and max(pair) < 0xFF:
        row, cell = pair[0] - 0xA1, pair[1] - 0xA1
        first = row // 2 + (0x81 if row < 62 else 0xC1)
        second = cell + (0x9F if row % 2 else 0x40 + (cell >= 63))
        try:
            return bytes((first, second)).decode("cp932"), error.start + 2
        except UnicodeDecodeError:
            pass
    return codecs.lookup_error(otherwise)(error)


codecs.register_error(_NEC, lambda error: _with_signs(error, "strict"))
codecs.register_error(f"{_NEC}.replace", lambda error: _with_signs(error, "replace"))

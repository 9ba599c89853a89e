"""Language identification by a fastText model of the run's own.

    [data.clean]
    language_model = "glotlid.bin"     # GlotLID, OpenLID, ...: .bin or .ftz, relative to the run's file

Its labels become the codes that the rest of a run uses: `__label__eng_Latn` is `en`. A label of ISO 639-3 becomes the
code of ISO 639-1 where there is one, a member of a macrolanguage that has one (`cmn`, `arb`) the macrolanguage's; the
script is left out. The file is an artifact, stage `language_model`, so its digest is part of the key of `clean`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from governance.config import Section
from governance.errors import ConfigError, MissingInput, hub_hint
from governance.file_digests import copy_unchanged, file_inputs
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage

if TYPE_CHECKING:
    from data_pipeline.kernels.fasttext_scores import TextClassifier
    from governance.kernels.buffers import Bytes, Offsets

VERSION = 2
FIELD = "data.clean.language_model"
_FILE = "model.bin"
_CODE = re.compile(r"[a-z]{2,3}")
_WINDOWS = 2048  # windows whose probabilities of all labels are held at a time

_TWO_LETTERS = """
aar aa abk ab afr af aka ak amh am ara ar arg an asm as ava av ave ae aym ay aze az bak ba bam bm bel be ben bn bih bh
bis bi bod bo bos bs bre br bul bg cat ca ces cs cha ch che ce chu cu chv cv cor kw cos co cre cr cym cy dan da deu de
div dv dzo dz ell el eng en epo eo est et eus eu ewe ee fao fo fas fa fij fj fin fi fra fr fry fy ful ff gla gd gle ga
glg gl glv gv grn gn guj gu hat ht hau ha heb he her hz hin hi hmo ho hrv hr hun hu hye hy ibo ig ido io iii ii iku iu
ile ie ina ia ind id ipk ik isl is ita it jav jv jpn ja kal kl kan kn kas ks kat ka kau kr kaz kk khm km kik ki kin rw
kir ky kom kv kon kg kor ko kua kj kur ku lao lo lat la lav lv lim li lin ln lit lt ltz lb lub lu lug lg mah mh mal ml
mar mr mkd mk mlg mg mlt mt mon mn mri mi msa ms mya my nau na nav nv nbl nr nde nd ndo ng nep ne nld nl nno nn nob nb
nor no nya ny oci oc oji oj ori or orm om oss os pan pa pli pi pol pl por pt pus ps que qu roh rm ron ro run rn rus ru
sag sg san sa sin si slk sk slv sl sme se smo sm sna sn snd sd som so sot st spa es sqi sq srd sc srp sr ssw ss sun su
swa sw swe sv tah ty tam ta tat tt tel te tgk tg tgl tl tha th tir ti ton to tsn tn tso ts tuk tk tur tr twi tw uig ug
ukr uk urd ur uzb uz ven ve vie vi vol vo wln wa wol wo xho xh yid yi yor yo zha za zho zh zul zu
"""
"""ISO 639-3 (and 639-2) codes, each before its code of ISO 639-1."""
_MEMBERS = """
cmn zh arb ar pes fa swh sw zsm ms ekk et lvs lv als sq azj az uzn uz khk mn npi ne ory or pbt ps plt mg nob no ydd yi
gaz om knc kr kmr ku fil tl prs fa hbs sh
"""
"""Members of macrolanguages (and other names) -> the code that lid.176 has for them."""
_words = (_TWO_LETTERS + _MEMBERS).split()
_SHORT = dict(zip(_words[::2], _words[1::2], strict=True))


class LanguageModelIdentity(Section):
    """Empty section: the file's digest alone decides."""


def code_of(label: str) -> str:
    """Code of a label, such as `en` of `eng_Latn`; else "und"."""
    name, *script = re.split(r"[_-]", label.removeprefix("__label__").lower(), maxsplit=1)
    if name == "als" and not script:  # Alemannic in lid.176; `als_Latn` of GlotLID is Tosk Albanian
        return name
    return _SHORT.get(name, name) if _CODE.fullmatch(name) else "und"


def own_language_model(path: Path, runtime: Runtime) -> Manifest:
    """Make the artifact of a model's file.

    Raises:
        MissingInput: there is no such file, or it changed while it was copied.
        ConfigError: its name or its labels are not those of a model of languages.
        ManifestError: it is not a supervised fastText model, or it is cut short.
        StorageError: the disk is full.
    """
    require_file(path)
    inputs = file_inputs([(path.name, path)], runtime)

    def make(folder: Path) -> Made:
        codes = own_codes(path)
        copy_unchanged(path, inputs[0].digest, folder / _FILE)
        counts = {"labels": len(_model(path)[0].labels), "codes": len(codes)}
        return Made([describe(folder / _FILE, runtime.root)], counts)

    return run_stage(Recipe("language_model", VERSION, LanguageModelIdentity()), inputs, runtime, make, alone=True)


def require_file(path: Path) -> None:
    """Raise unless this is the path of a fastText file.

    Raises:
        MissingInput: there is no such file.
        ConfigError: its name has another ending.
    """
    if not path.is_file():
        raise MissingInput(f"{FIELD}: no such file: {path}. Paths start at the run's file.{hub_hint(path)}")
    if path.suffix not in (".bin", ".ftz"):
        raise ConfigError(f"{FIELD} = {path.name}: is not a fastText model (.bin, .ftz)")


def file_of(model: Manifest, root: Path) -> Path:
    """Path of the file in its artifact."""
    return root / model.folder / _FILE


def own_codes(path: Path) -> frozenset[str]:
    """Codes of all labels of a model.

    Raises:
        ConfigError: no label begins with a code of a language.
        ManifestError: it is not a supervised fastText model, or it is cut short.
    """
    model, codes, _ = _model(path)
    if set(codes) <= {"und"}:
        raise ConfigError(
            f"{FIELD} = {path.name}: its labels are {', '.join(model.labels[:6])}, which begin with no code of a "
            "language (eng_Latn, en). Name a model that identifies languages; others go into [[data.classifiers]]"
        )
    return frozenset(codes)


def best_codes(
    data: Bytes, starts: Offsets, ends: Offsets, path: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], tuple[str, ...]]:
    """The best code of each window, its probability, and the codes' names.

    Labels with one code (eng_Latn, eng_Dsrt) count together. The code is -1 where a window is blank or no row of the
    model occurs in it.
    """
    from data_pipeline.kernels.fasttext_scores import score_labels

    model, codes, place_of = _model(path)
    found, probabilities = np.full(len(starts), -1, np.int64), np.zeros(len(starts))
    for first in range(0, len(starts), _WINDOWS):
        part = slice(first, min(first + _WINDOWS, len(starts)))
        texts = [data[start:end].tobytes() for start, end in zip(starts[part], ends[part], strict=True)]
        offsets = np.concatenate([[0], np.cumsum(ends[part] - starts[part])]).astype(np.int64)
        scores = score_labels(np.frombuffer(b"".join(texts), np.uint8), offsets, model, range(len(model.labels)))
        if len(codes) < len(place_of):
            scores = np.stack([scores[:, place_of == place].sum(axis=1) for place in range(len(codes))], axis=1)
        best = scores.argmax(axis=1)
        holds_text = np.array([not text.isspace() and len(text) > 0 for text in texts], bool)
        probabilities[part] = np.where(holds_text, np.minimum(scores[np.arange(len(best)), best], 1.0), 0.0)
        found[part] = np.where(probabilities[part] > 0, best, -1)
    return found, probabilities, codes


@functools.lru_cache(maxsize=2)
def _model(path: Path) -> tuple[TextClassifier, tuple[str, ...], npt.NDArray[np.int64]]:
    """A model, its codes, and the place of each label in them."""
    from data_pipeline.kernels.fasttext_scores import load_classifier

    model = load_classifier(path)
    named = [code_of(label) for label in model.labels]
    codes = tuple(dict.fromkeys(named))
    place_in = {code: place for place, code in enumerate(codes)}
    return model, codes, np.array([place_in[code] for code in named], np.int64)

"""The word lists on sentences of each language, and on the Universal Declaration, whose articles correspond."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from governance.checks.bias.counts import _packed
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.kernels.buffers import text_buffers
from governance.kernels.mentions import count_texts
from governance.kernels.word_lookup import joined
from tests.given_data import given_rows

LEXICONS = load_lexicons(WordListsConfig())
SENTENCES = [
    ("ar", "تعمل المرأة طبيبة، والرجل ممرض.", "female male"),
    ("ar", "وصلت السيدات قبل السادة.", "female male"),
    ("ar", "التقى مسلم ومسيحية ويهودي في المدينة.", "muslim christian jewish"),
    ("ar", "سافر السوريون والمصريات إلى القاهرة.", "syrian egyptian"),
    ("ar", "ذهب الأطفال مع كبار السن.", "child old"),
    ("ar", "زوجها وزوجته في البيت.", "male female"),
    ("ar", "قال له إن الأمر مهم جدا أو لا.", ""),
    ("hi", "महिलाओं और पुरुषों को समान वेतन मिलता है।", "female male"),
    ("hi", "मुसलमानों और हिन्दुओं ने सिखों की मदद की।", "muslim hindu sikh"),
    ("hi", "दलित बच्चों के लिए विद्यालय खुला।", "dalit child"),
    ("hi", "महल बहुत पुराना है और उसका रंग लाल है।", ""),
    ("ja", "女性は医者で、男性は看護師です。", "female male"),
    ("ja", "彼女は妻と話し、彼は夫を待った。", "female female male male"),
    ("ja", "彼らは工夫を重ね、丈夫な橋を造った。", ""),
    ("ja", "イスラム教徒とユダヤ人が日本人に会った。", "muslim jewish japanese"),
    ("ja", "視覚障害者と高齢者と子どもが来た。", "blind old child"),
    ("ja", "女、性別を問わず、参加できる。", ""),
    ("ja", "ラテンアメリカの国々。", ""),
    ("ko", "여성은 의사이고 남성들이 간호사이다.", "female male"),
    ("ko", "어머니와 아버지가 딸에게 말했다.", "female male female"),
    ("ko", "무슬림들과 유대인의 집.", "muslim jewish"),
    ("ko", "여성가족부 장관이 그 계획을 발표했다.", ""),
    ("ko", "미국인들은 노인과 어린이를 도왔다.", "american old child"),
    ("pl", "Kobiety i mężczyźni mają równe prawa.", "female male"),
    ("pl", "Pani minister i pan poseł rozmawiali z muzułmanami.", "female male muslim"),
    ("pl", "Ukraińcy i Niemki spotkali Amerykanina.", "ukrainian german american"),
    ("pl", "Osobom niewidomym pomagała chrześcijanka.", "blind christian"),
    ("pl", "Panie, jaka to piękna pogoda!", ""),
    ("ru", "Женщины и мужчины имеют равные права.", "female male"),
    ("ru", "Мусульманам помогали еврейки и католик.", "muslim jewish christian"),
    ("ru", "Американцами и француженками занимались украинцы.", "american french ukrainian"),
    ("ru", "Ребёнок и пожилому человеку, и инвалиду помог.", "child old disabled"),
    ("ru", "Он и она стоят на столе.", ""),
    ("tr", "Kadınların ve erkeklerin hakları eşittir.", "female male"),
    ("tr", "İngilizler ile Türkler Suriyelilere yardım etti.", "british turkish syrian"),
    ("tr", "MÜSLÜMANLAR ve Yahudiler bir arada.", "muslim jewish"),
    ("tr", "Çocuklarına ve yaşlılara baktı.", "child old"),
    ("tr", "O, eşini ve kardeşini hala bekliyor.", ""),
    ("zh", "女性是医生，男性是护士。", "female male"),
    ("zh", "婦女與兒童先走。", "female child"),
    ("zh", "其他人说，他们在工作。", ""),
    ("zh", "穆斯林和犹太人遇见了法国人。", "muslim jewish french"),
    ("zh", "中国人民和孙子兵法。", ""),
    ("zh", "母亲带着女儿和残疾人见面。", "female female disabled"),
    ("de", "Herr Müller und Frau Weber sprachen; Sie und sie hörten zu.", "male female"),
    ("de", "Eine Französin und ein Pole, Polinnen und Polen.", "french"),
    ("nl", "Mevrouw Jansen en de heer De Vries spraken.", "female male"),
    ("nl", "Zij en hun haar.", ""),
    ("es", "El señor López y la señora Ruiz; los niños y las niñas de China.", "male female child"),
    ("es", "Su casa y los derechos del hombre.", ""),
    ("fr", "Madame Durand et monsieur Petit ; son fils, sa fille.", "female male male female"),
    ("fr", "Son chien : elle est grande, il est vieux. Les droits de l'homme.", ""),
    ("pt", "A senhora e o senhor, uma mulher chinesa.", "female male female chinese"),
    ("it", "La signora e il signor Rossi; lei parla.", "female male"),
]


def found(code, texts):
    """The groups that each text mentions, each as often as it is mentioned."""
    column = pa.array([unicodedata.normalize("NFC", text) for text in texts], pa.large_string())
    rows = np.arange(len(texts))
    events = count_texts(text_buffers(column), rows, rows % 64, _packed(LEXICONS, code), None).events
    mentions = [Counter() for _ in texts]
    groups = LEXICONS.languages[code].groups
    for text, group, many, _ in events.tolist():
        if group < len(groups):  # the further ones are intersections of two
            mentions[text][groups[group][1]] += many
    return mentions


@pytest.mark.parametrize(("code", "text", "groups"), SENTENCES)
def test_a_sentence_mentions_the_groups_that_it_names(code, text, groups):
    assert found(code, [text]) == [Counter(groups.split())]


@pytest.mark.parametrize("code", LEXICONS.languages)
def test_every_term_is_found_by_itself(code):
    """No spelling of a list is lost between the file and the kernel."""
    lexicon = LEXICONS.languages[code]
    terms = sorted(lexicon.identity)
    names = [[lexicon.groups[group][1] for group in lexicon.identity[term]] for term in terms]
    assert found(code, [joined(term) for term in terms]) == [Counter(of) for of in names]
    assert all((" " in joined(term)) == (len(term) > 1) for term in terms) == (code not in ("ja", "zh"))


DECLARATION = {
    "eng": "en", "arb": "ar", "cmn": "zh", "jpn": "ja", "kor": "ko", "rus": "ru", "pol": "pl", "hin": "hi", "tur": "tr",
    "deu": "de", "nld": "nl", "spa": "es", "fra": "fr",
}  # fmt: skip
REGIONAL = ("cmn_hans_", "jpn_", "arb_")
"""Translations into dialects, which have words of their own."""
PREAMBLE, MARRIAGE, CHILDHOOD = 6, 47, 75


def declarations():
    """Language -> the paragraphs of the Declaration, a version of a standard language each."""
    for row in given_rows("corpora/udhr"):
        name = row["id"].removeprefix("udhr:")
        if row["lang"] in DECLARATION and not name.startswith(REGIONAL) and not name.isdigit():
            yield name, DECLARATION[row["lang"]], [line for line in row["text"].split("\n") if line.strip()]


def test_the_declaration_mentions_women_men_and_children_at_the_same_places():
    """Women and men in the preamble and in article 16, children in article 25; a version may have two lines more."""
    seen = set()
    for name, code, lines in declarations():
        seen.add(code)
        here = found(code, lines)
        both = [place for place, groups in enumerate(here) if groups["female"] and groups["male"]]
        child = [place for place, groups in enumerate(here) if groups["child"]]
        assert any(abs(place - PREAMBLE) <= 2 for place in both), (name, both)
        assert any(abs(place - MARRIAGE) <= 2 for place in both), (name, both)
        assert any(abs(place - CHILDHOOD) <= 2 for place in child), (name, child)
    assert seen == set(DECLARATION.values())


def test_help_pages_that_mention_nobody_are_found_to_mention_nobody():
    """Parallel pages about a desktop, in which hardly any names people, in any language."""
    texts = {}
    for row in given_rows("corpora/multilingual"):
        texts.setdefault(row["lang"].partition("_")[0], []).append(row["text"])
    for code in sorted(set(texts) & {"hi", "ja", "ko", "pl", "ru", "tr", "zh", "de"}):
        mentions = sum(found(code, texts[code]), Counter())
        assert len(texts[code]) > 130
        assert mentions.total() <= 4, (code, mentions)

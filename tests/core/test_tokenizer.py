"""The tokenizer splits every text exactly as transformers' CLIPTokenizer does."""

from __future__ import annotations

import gzip
import random
import unicodedata
from functools import cache

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from amdet_core import tokenizer as module
from amdet_core.errors import ConfigError, StorageError
from amdet_core.tokenizer import BOS, EOS, ClipTokenizer, clip_tokenizer, read_merges

OURS = clip_tokenizer()
MERGES_FILE = module._installed_merges()

SCRIPTS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZßæøœđħıłŋþ",
    "latin accents": "áàâäãåāăąçćčďéèêëēėęěğíîïñńňóôöőřśšťúûüůűýÿžÁÉÖÜİŁŞ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЁЖЙЩЇЄҐђљњћ",
    "greek": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώΐΰΑΒΓΔΩΆΈ",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىةپچژگ٠١٢٣٤٥",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתךםןףץ\u05b0\u05b4\u05bc",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह\u093e\u093f\u0940\u094d\u0902१२३",
    "bengali tamil": "অআইকখগঘ\u09be\u09bfঅஆஇகஙசஞ\u0bbe\u0bbf",
    "oriya": "ଅଆଇଈଉଊକଖଗଘଙଚଛଜଝ\u0b3e\u0b3f\u0b4d୧୨୩",
    "thai": "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพ\u0e31\u0e34\u0e35\u0e48\u0e49๑๒๓",
    "chinese": "的一是不了人我在有他这为之大来以个中上们画猫狗車龍",
    "japanese": "あいうえおかきくけこアイウエオカキクケコがぎぐパピプ漢字ー々ｱｲｳ",
    "hangul": "가나다라마바사아자차카타파하고양이강아지\u1100\u1161\u11a8",
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆԱԲև",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰᲐᲑ",
    "ethiopic khmer": "ሀለሐመሠረሰቀበተកខគឃងចឆជ\u17b6\u17b7",
    "emoji": "😀😂🥰🐱🐶🌅🔥❤⭐🎨🚀🏳🌈👩👨👧🔬💻🦰",
    "homoglyphs": "аеорсухіјѕԁɡһⅼոｖｗοαρτυνκΑΒΕΖΗΙΚМӏ",
    "mathematical": "𝐚𝐛𝑐𝒅𝓮𝔣𝕘𝖍𝗂𝘫𝙠𝚕ℌℑℜℤℕⅧⅷ½¼¾²³₂⑤㈠",
    "symbols": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~€£¥§©®™°±×÷←↑→…–—‘’“”«»¿¡",
    "digits": "0123456789",
    "case traps": "ǅǈǋẞΣςİıſKÅﬁﬂﬃŒ",
}
INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f"
INVISIBLE += "\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2066\u2067\u2068\u2069\ufeff\ufe0f"
INVISIBLE += "".join(map(chr, range(0xE0020, 0xE0030)))
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0327\u0338\u0361\u0489\u20dd"
CONTROLS = "".join(map(chr, [*range(0x00, 0x20), 0x7F, *range(0x80, 0xA0)])) + "\ufffd\ufffe\uffff\U0010ffff\ue000"
SPACES = " \t\n\r\x0b\x0c\x85\u00a0\u1680\u2000\u2003\u2007\u2009\u2028\u2029\u202f\u205f\u3000"
SKINS = "🏻🏼🏽🏾🏿"
FIXED = [
    "",
    " ",
    "   ",
    "\n",
    "a",
    "A photo of a cat",
    "a  photo\tof\n a   cat ",
    "don't can't I'll we've they're he'd I'm she's",
    "DON'T CAN'T I'LL",
    "rock'n'roll 'tis o'clock ''' 's 't 're 've 'm 'll 'd",
    "it’s ‘quoted’ “text”",
    "1234567890 3.14 1,000,000 4k 8K 2x2 v1.5 ½ Ⅷ ²",
    "a cat, (masterpiece:1.3), [blurry], <lora:x:0.8> BREAK \\(real\\)",
    f"{BOS}",
    f"{EOS}",
    f"a cat {EOS} a dog",
    f"{BOS}a{EOS}b{BOS}",
    "<|STARTOFTEXT|> <|EndOfText|>",
    "<|startoftext |>",
    "< |endoftext|>",
    "<|endoftext",
    "</w> a</w>b <w>",
    "<start_of_text> <end_of_text>",
    "👩‍👩‍👧‍👦 👨🏽‍🚀 🏳️‍🌈 🏴‍☠️ 👍🏿 🇩🇪🇫🇷 1️⃣ #️⃣",
    "ａｆｕｌｌｗｉｄｔｈ　ｔｅｘｔ",
    "é é Å Å ﬁ",
    "Ａ\u200bpicture\u200bof\u202ea\u202ccat",
    "\ufeffbom",
    "x\u0000y",
    "a\u0338\u0361b",
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 30,
    "word " * 500,
    "x" * 3000,
    "😀" * 300,
    "ก" * 400,
    "&amp; &lt;b&gt; <b>html</b>",
    "STRASSE straße İstanbul ΌΔΟΣ ὈΔΥΣΣΕΎΣ",
    "http://example.org/a?b=c&d=e#f",
    "C:\\path\\file.txt",
    "snake_case camelCase __init__",
]


@cache
def theirs() -> CLIPTokenizer:
    """transformers' tokenizer with open_clip's own table of the vocabulary."""
    vocabulary = dict(open_clip.tokenizer.SimpleTokenizer().encoder)
    for ours, other in ((BOS, "<start_of_text>"), (EOS, "<end_of_text>")):
        vocabulary[ours] = vocabulary.pop(other)
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(line.split()) for line in lines])


def generated(count: int, seed: int) -> list[str]:
    """Words of every script with marks, invisibles, controls, digits and symbols strewn in."""
    dice = random.Random(seed)
    texts = []
    for number in range(count):
        scripts = [list(SCRIPTS.values())[number % len(SCRIPTS)]]
        scripts += dice.sample(list(SCRIPTS.values()), dice.randint(0, 2))
        pieces = []
        for _ in range(dice.randint(1, 12)):
            word = "".join(dice.choices(dice.choice(scripts), k=dice.randint(1, 9)))
            for noise, chance in ((INVISIBLE, 0.2), (MARKS, 0.2), (CONTROLS, 0.05), (SKINS, 0.1), ("\u200d", 0.1)):
                if dice.random() < chance:
                    at = dice.randrange(len(word) + 1)
                    word = word[:at] + dice.choice(noise) + word[at:]
            if dice.random() < 0.1:
                word += dice.choice(["'s", "'T", "'re", "'ve", "'m", "'LL", "'d", BOS, EOS])
            pieces.append(word + dice.choice(SPACES) * dice.randint(0, 2))
        texts.append("".join(pieces))
    return texts


@pytest.mark.parametrize("text", FIXED, ids=range(len(FIXED)))
def test_chosen_texts_get_the_tokens_of_transformers(text):
    assert OURS.encode(text) == theirs()(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("form", ["as it is", "NFC", "NFD", "NFKC", "upper", "lower"])
def test_generated_texts_of_every_script_get_the_tokens_of_transformers(form):
    change = {"as it is": str, "upper": str.upper, "lower": str.lower}
    texts = [
        change.get(form, lambda t: unicodedata.normalize(form, t))(text) for text in generated(440, seed=len(form))
    ]
    assert len(set(texts)) > 430
    wanted = theirs()(texts, add_special_tokens=False)["input_ids"]
    wrong = [text for text, ids in zip(texts, wanted, strict=True) if OURS.encode(text) != ids]
    assert wrong == []


@settings(max_examples=400, deadline=None, database=None)
@given(st.text(max_size=60))
def test_any_text_gets_the_tokens_of_transformers(text):
    assert OURS.encode(text) == theirs()(text, add_special_tokens=False)["input_ids"]


def test_every_single_character_of_the_basic_plane_gets_the_tokens_of_transformers():
    texts = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    wanted = theirs()(texts, add_special_tokens=False)["input_ids"]
    assert [OURS.encode(text) for text in texts] == wanted


def test_the_vocabulary_is_clips():
    assert len(OURS) == 49408
    assert (OURS.bos_id, OURS.eos_id) == (49406, 49407)
    assert [OURS.token(index) for index in (0, 256, 320, 2368)] == ["!", "!</w>", "a</w>", "cat</w>"]
    assert OURS.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat",
        "x",
        "été à paris",
        "привет мир",
        "猫",
        "日本語の本",
        "สวัสดี",
        "😀 smile",
        "👩‍👩‍👧 family",
        "don 't",
        "1 2 3",
        "a \u200b b",
        "ა",
        "<w>",
        "",
    ],
)
def test_texts_survive_the_round_trip(text):
    back = OURS.text(OURS.encode(text))
    assert back.replace(" ", "") == text.replace(" ", "")
    assert OURS.encode(back) == OURS.encode(text)


def test_the_text_of_tokens_leaves_out_bos_and_eos_and_marks_broken_bytes():
    assert OURS.text([OURS.bos_id, 320, 2368, OURS.eos_id, OURS.eos_id]) == "a cat"
    broken = [index for index in range(256) if "\ufffd" in OURS.text([index])]
    assert len(broken) == 128
    assert OURS.text([]) == ""


@pytest.mark.parametrize("text", ["a cat", "\u043e", "\u2067", "blue moon falling", "\U0001f970 !"])
def test_tokens_of_a_text_are_writable_and_so_are_those_of_the_beginning_of_a_word(text):
    assert OURS.writable(OURS.encode(text))
    assert OURS.writable(OURS.encode(f"{text}a")[:-1])


def test_bytes_and_parts_that_merge_otherwise_are_not_writable():
    assert not OURS.writable(OURS.encode("\u2067")[:1])
    letters = {OURS.token(index): index for index in range(256)}
    assert not OURS.writable([letters["c"], letters["a"], *OURS.encode("t")])


@pytest.mark.parametrize("index", range(0, 49408, 97))
def test_every_token_has_a_text(index):
    assert isinstance(OURS.text([index]), str)


# ---------------------------------------------------------------- batches


def test_batches_equal_those_of_transformers():
    prompts = ["a photo of a cat", "", "dog", *generated(40, seed=5), "word " * 200]
    batch = OURS.batch(prompts, limit=77, length=77)
    wanted = theirs()(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(batch.ids, wanted)
    assert batch.ids.dtype == torch.int64


def test_batches_are_padded_to_the_longest_prompt():
    batch = OURS.batch(["a", "a cat", ""], limit=77)
    assert batch.ids.tolist() == [[49406, 320, 49407, 49407], [49406, 320, 2368, 49407], [49406] + [49407] * 3]
    assert batch.eos.tolist() == [2, 3, 1]


@pytest.mark.parametrize("pad", [0, 49407])
def test_the_padding_stands_behind_eos_only(pad):
    batch = OURS.batch(["a", "! ! !"], limit=77, pad=pad, length=8)
    assert batch.ids.shape == (2, 8)
    assert batch.ids[0].tolist() == [49406, 320, 49407] + [pad] * 5
    assert batch.eos.tolist() == [2, 4]


def test_long_prompts_are_cut_and_counted_and_keep_their_eos():
    batch = OURS.batch(["word " * 100, "word " * 75, "word " * 76], limit=77)
    assert batch.ids.shape == (3, 77)
    assert batch.eos.tolist() == [76, 76, 76]
    assert batch.ids[:, -1].tolist() == [49407] * 3


def test_an_eos_inside_the_text_is_where_the_encoders_pool():
    batch = OURS.batch([f"a cat {EOS} a dog", "a cat"], limit=77)
    assert batch.ids[0].tolist() == [49406, 320, 2368, 49407, 320, 1929, 49407]
    assert batch.eos.tolist() == [3, 3]


def test_a_batch_moves_as_a_whole():
    batch = OURS.batch(["a cat"], limit=77).to("meta")
    assert (batch.ids.device.type, batch.eos.device.type) == ("meta", "meta")


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("a f\u043ex  in the w\u043e\u043ed", "\u043e", [2, 7, 8]),
        ("a blue moon falling, a blue cat", "blue moon falling", [1, 2, 3]),
        ("zzzz a man, zzzz", "zzzz", [0, 4]),
        ("a cafe\u0301 x", "\u0301", [1]),  # NFC joins it with the letter before
        ("an \U0001f600 dog", "\U0001f600", [1]),
        ("a cat", "dog", []),
        ("a cat", "", []),
    ],
)
def test_places_are_the_tokens_that_hold_a_piece_of_a_text(text, part, expected):
    assert clip_tokenizer().places(text, part) == expected


def test_half_a_surrogate_pair_is_an_error():
    with pytest.raises(ConfigError, match="text of whole characters"):
        OURS.batch(["a cat \ud83d"], limit=77)


def test_no_prompts_are_an_error():
    with pytest.raises(ConfigError, match="expected at least one prompt; found none"):
        OURS.batch([], limit=77)


# ---------------------------------------------------------------- merges


def test_a_plain_merges_file_gives_the_same_tokenizer(tmp_path):
    text = gzip.decompress(MERGES_FILE.read_bytes()).decode()
    (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
    other = ClipTokenizer(read_merges(tmp_path / "merges.txt"))
    assert len(other) == len(OURS)
    assert other.encode("Ünïcode кот 猫") == OURS.encode("Ünïcode кот 猫")


@pytest.mark.parametrize(("name", "raw", "found"), [
    ("merges.txt", b"#version\na b\n", "1 in"),
    ("merges.txt", b"\xff\xfe", "merges.txt"),
    ("merges.txt.gz", b"no gzip", "merges.txt.gz"),
    ("merges.txt.gz", gzip.compress(b"x" * 999)[:-20], "merges.txt.gz"),
    ("merges.txt.gz", gzip.compress(b"x" * 999)[:10] + bytes(30), "merges.txt.gz"),
    ("merges.txt", b"#version\n" + b"a b c\n" * 48894, "48894 in"),
], ids=range(6))  # fmt: skip
def test_a_merges_file_that_is_no_merges_file_is_a_storage_error(tmp_path, name, raw, found):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(StorageError, match=found):
        read_merges(tmp_path / name)


def test_a_missing_merges_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="nothing"):
        read_merges(tmp_path / "nothing.txt")


def test_without_open_clip_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="pip install open_clip_torch"):
        module._installed_merges()


def test_where_open_clip_is_missing_comfyuis_vocabulary_is_taken(monkeypatch, tmp_path):
    merges = [" ".join(pair) for pair in read_merges(MERGES_FILE)]
    (tmp_path / "comfy/sd1_tokenizer").mkdir(parents=True)
    file = tmp_path / "comfy/sd1_tokenizer/merges.txt"
    file.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "VOCABULARIES", {"comfy": module.VOCABULARIES["comfy"]})
    assert module._installed_merges() == file
    assert clip_tokenizer(file).encode("a café 🍪") == clip_tokenizer().encode("a café 🍪")


def test_the_tokenizer_is_made_once():
    assert clip_tokenizer() is clip_tokenizer()

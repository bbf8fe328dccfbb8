"""Language codes (BCP 47), English names, families, regional variants, writing direction."""

from __future__ import annotations

# Variants of a language that is already there: shown, but counted once in means.
REGIONAL = {
    "en-AU": "en",
    "en-GB": "en",
    "en-CA": "en",
    "en-ZA": "en",
    "pt-BR": "pt",
    "ca-valencia": "ca",
    "sr-Latn": "sr",
    "zh-TW": "zh",
    "es-MX": "es",
    "fr-CA": "fr",
}

# Locale names that are not their own BCP 47 code once '_' is '-'. Plain zh stands for Mandarin in simplified script.
_SPECIAL = {
    "zh-CN": "zh",
    "zh-Hans": "zh",
    "zh-Hant": "zh-TW",
    "sr@latin": "sr-Latn",
    "ca@valencia": "ca-valencia",
    "no": "nb",
    "iw": "he",
    "in": "id",
    "tl": "fil",
    "ku-TR": "ku",
    "pt-PT": "pt",
}

RTL = frozenset({"ar", "fa", "he", "ur", "yi", "ckb", "ps", "sd", "ug"})

# code: (English name, branch). Branches follow Glottolog, at the level people name: Romance, Slavic, Bantu ...
_TABLE = {
    "ach": ("Acholi", "Nilotic"),
    "af": ("Afrikaans", "Germanic"),
    "ak": ("Akan", "Kwa"),
    "am": ("Amharic", "Semitic"),
    "an": ("Aragonese", "Romance"),
    "ar": ("Arabic", "Semitic"),
    "as": ("Assamese", "Indo-Aryan"),
    "ast": ("Asturian", "Romance"),
    "az": ("Azerbaijani", "Turkic"),
    "be": ("Belarusian", "Slavic"),
    "bg": ("Bulgarian", "Slavic"),
    "bm": ("Bambara", "Mande"),
    "bn": ("Bengali", "Indo-Aryan"),
    "bo": ("Tibetan", "Bodic"),
    "br": ("Breton", "Celtic"),
    "brx": ("Bodo", "Bodo-Garo"),
    "bs": ("Bosnian", "Slavic"),
    "ca": ("Catalan", "Romance"),
    "ca-valencia": ("Valencian", "Romance"),
    "cgg": ("Chiga", "Bantu"),
    "cs": ("Czech", "Slavic"),
    "cy": ("Welsh", "Celtic"),
    "da": ("Danish", "Germanic"),
    "de": ("German", "Germanic"),
    "doi": ("Dogri", "Indo-Aryan"),
    "el": ("Greek", "Greek"),
    "en": ("English", "Germanic"),
    "en-AU": ("English (Australia)", "Germanic"),
    "en-CA": ("English (Canada)", "Germanic"),
    "en-GB": ("English (UK)", "Germanic"),
    "en-ZA": ("English (South Africa)", "Germanic"),
    "eo": ("Esperanto", "Constructed"),
    "es": ("Spanish", "Romance"),
    "es-MX": ("Spanish (Mexico)", "Romance"),
    "et": ("Estonian", "Finnic"),
    "eu": ("Basque", "Basque"),
    "fa": ("Persian", "Iranian"),
    "ff": ("Fula", "Atlantic"),
    "fi": ("Finnish", "Finnic"),
    "fo": ("Faroese", "Germanic"),
    "fr": ("French", "Romance"),
    "fr-CA": ("French (Canada)", "Romance"),
    "ga": ("Irish", "Celtic"),
    "gd": ("Scottish Gaelic", "Celtic"),
    "gl": ("Galician", "Romance"),
    "gos": ("Gronings", "Germanic"),
    "gu": ("Gujarati", "Indo-Aryan"),
    "he": ("Hebrew", "Semitic"),
    "hi": ("Hindi", "Indo-Aryan"),
    "hr": ("Croatian", "Slavic"),
    "hu": ("Hungarian", "Ugric"),
    "hy": ("Armenian", "Armenian"),
    "id": ("Indonesian", "Malayo-Polynesian"),
    "is": ("Icelandic", "Germanic"),
    "it": ("Italian", "Romance"),
    "iu": ("Inuktitut", "Eskimo"),
    "ja": ("Japanese", "Japonic"),
    "ka": ("Georgian", "Kartvelian"),
    "kab": ("Kabyle", "Berber"),
    "kk": ("Kazakh", "Turkic"),
    "km": ("Khmer", "Khmeric"),
    "kn": ("Kannada", "Dravidian"),
    "ko": ("Korean", "Koreanic"),
    "kok": ("Konkani", "Indo-Aryan"),
    "ks": ("Kashmiri", "Indo-Aryan"),
    "ku": ("Kurdish", "Iranian"),
    "lb": ("Luxembourgish", "Germanic"),
    "lg": ("Ganda", "Bantu"),
    "lt": ("Lithuanian", "Baltic"),
    "lv": ("Latvian", "Baltic"),
    "mai": ("Maithili", "Indo-Aryan"),
    "mk": ("Macedonian", "Slavic"),
    "ml": ("Malayalam", "Dravidian"),
    "mn": ("Mongolian", "Mongolic"),
    "mni": ("Meitei", "Kuki-Chin"),
    "mr": ("Marathi", "Indo-Aryan"),
    "ms": ("Malay", "Malayo-Polynesian"),
    "nb": ("Norwegian Bokmål", "Germanic"),
    "ne": ("Nepali", "Indo-Aryan"),
    "nl": ("Dutch", "Germanic"),
    "nn": ("Norwegian Nynorsk", "Germanic"),
    "nr": ("South Ndebele", "Bantu"),
    "nso": ("Northern Sotho", "Bantu"),
    "oc": ("Occitan", "Romance"),
    "oj": ("Ojibwe", "Algonquian"),
    "or": ("Odia", "Indo-Aryan"),
    "pa": ("Punjabi", "Indo-Aryan"),
    "pl": ("Polish", "Slavic"),
    "pt": ("Portuguese", "Romance"),
    "pt-BR": ("Portuguese (Brazil)", "Romance"),
    "ro": ("Romanian", "Romance"),
    "ru": ("Russian", "Slavic"),
    "rw": ("Kinyarwanda", "Bantu"),
    "sa": ("Sanskrit", "Indo-Aryan"),
    "sat": ("Santali", "Munda"),
    "sc": ("Sardinian", "Romance"),
    "sd": ("Sindhi", "Indo-Aryan"),
    "shs": ("Shuswap", "Salishan"),
    "si": ("Sinhala", "Indo-Aryan"),
    "sk": ("Slovak", "Slavic"),
    "sl": ("Slovenian", "Slavic"),
    "son": ("Songhay", "Songhay"),
    "sq": ("Albanian", "Albanian"),
    "sr": ("Serbian", "Slavic"),
    "sr-Latn": ("Serbian (Latin)", "Slavic"),
    "su": ("Sundanese", "Malayo-Polynesian"),
    "sv": ("Swedish", "Germanic"),
    "sw": ("Swahili", "Bantu"),
    "ta": ("Tamil", "Dravidian"),
    "te": ("Telugu", "Dravidian"),
    "th": ("Thai", "Tai"),
    "fil": ("Filipino", "Malayo-Polynesian"),
    "tlh": ("Klingon", "Constructed"),
    "tr": ("Turkish", "Turkic"),
    "twi": ("Twi", "Kwa"),
    "uk": ("Ukrainian", "Slavic"),
    "ur": ("Urdu", "Indo-Aryan"),
    "ve": ("Venda", "Bantu"),
    "vec": ("Venetian", "Romance"),
    "vi": ("Vietnamese", "Vietic"),
    "wa": ("Walloon", "Romance"),
    "wo": ("Wolof", "Atlantic"),
    "xh": ("Xhosa", "Bantu"),
    "zam": ("Miahuatlán Zapotec", "Zapotecan"),
    "zh": ("Chinese", "Sinitic"),
    "zh-TW": ("Chinese (Taiwan)", "Sinitic"),
    "zu": ("Zulu", "Bantu"),
}


def bcp47(locale: str) -> str:
    """A locale name as BCP 47: zh_CN -> zh, pt_BR -> pt-BR, ca@valencia -> ca-valencia, sr@latin -> sr-Latn."""
    text = locale.strip().split(".")[0]
    if text in _SPECIAL:
        return _SPECIAL[text]
    head, *rest = text.replace("_", "-").replace("@", "-").split("-")
    tagged = [head.lower()]
    for piece in rest:  # script Xxxx, region XX, variant lower case
        tagged.append(piece.upper() if len(piece) == 2 else piece.title() if len(piece) == 4 else piece.lower())
    code = "-".join(tagged)
    return _SPECIAL.get(code, code)


def base(code: str) -> str:
    """The language a regional variant counts under: pt-BR -> pt; any other code is itself."""
    return REGIONAL.get(code, code)


def display_name(code: str) -> str:
    """The English name ("Catalan"), or the code itself where the table lacks it."""
    return _TABLE.get(code, _TABLE.get(base(code), (code, "")))[0]


def family(code: str) -> str:
    """The branch ("Romance", "Bantu") for family-level bootstraps; the code itself where the table lacks it."""
    return _TABLE.get(code, _TABLE.get(base(code), ("", code)))[1]


def is_rtl(code: str) -> bool:
    """True for a language written from right to left."""
    return base(code).split("-")[0] in RTL

"""Normal forms of text: the one that is written, and those by which texts are told to be the same.

Three of the latter, from the strictest: `same_key` (what may be dropped as a copy), `shingle_form` (what is compared to
find near-duplicates), `duplicate_key` (what may not stand on two sides of a split).
"""

import re
import unicodedata

import regex

# ASCII on purpose: a value may stand right after Chinese, and after the `\n` of text inside JSON.
START = r"(?:(?<=\\[nrt])|(?<![0-9A-Za-z_]))"
END = r"(?![0-9A-Za-z_])"

# start, end, kind, and the value in the one form that all its written forms share
Hit = tuple[int, int, str, str]


def normalise(text: str) -> str:
    """Unicode NFC with every run of whitespace as one space: what a row holds."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def same_key(text: str) -> str:
    """The text with compatibility forms, case and spaces folded, without the points and quotes of its sentences.

    Points inside a number and the signs of a formula stay: `1.5` is not `15`, and `3+2` not `3-2`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(SENTENCE_MARKS.sub(" ", folded).split())


# Where a word ends, and quotes where one begins.
SENTENCE_MARKS = re.compile(r"[.,;:!?\u2026\"'\u2018\u2019\u201c\u201d]+(?=\s|$)|(?<!\S)[\"'\u2018\u201c]+")


def duplicate_key(text: str) -> str:
    """Letters, their marks and digits only, compatibility forms and case folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A mark is part of its letter: without its vowel signs Hindi is another word.
    return re.sub(r"[\W_]+", "", folded) if folded.isascii() else regex.sub(r"[^\p{L}\p{N}\p{M}]+", "", folded)


def shingle_form(text: str) -> str:
    """Words in lower case between single spaces, compatibility forms folded: what near-duplicates are compared by."""
    if text.isascii():
        return b" ".join(text.encode().translate(ASCII_WORDS).split()).decode()
    return " ".join(regex.findall(r"[\w\p{M}]+", unicodedata.normalize("NFKC", text).casefold()))


# For texts of ASCII alone the same, four times faster.
ASCII_WORDS = bytes(ord(c.lower()) if re.match(r"\w", c) else ord(" ") for c in map(chr, range(128))) + b" " * 128


def tidy(text: str) -> str:
    """Unicode NFC, plain line ends and spaces, nothing invisible; what a reader sees stays as it was.

    Zero-width joiners stay: Indic scripts, Persian and emoji are written with them.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = INVISIBLE.sub("", ODD_SPACES.sub(" ", text))
    text = re.sub(r"[ \t]+(?=\n)|\s+\Z", "", text)
    return re.sub(r"\n{3,}", "\n\n", text.lstrip("\n"))


ODD_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Control characters but tab and newline, zero-width space, word joiner, byte order mark, bidirectional overrides.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")

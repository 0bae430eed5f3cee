"""Normal forms of text: the one that is written, and the one that tells duplicates."""

import re
import unicodedata


def normalise(text: str) -> str:
    """Unicode NFC with every run of whitespace as one space: what a row holds."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def duplicate_key(text: str) -> str:
    """Letters and digits only, compatibility forms and case folded: texts with one key are duplicates."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def shingle_form(text: str) -> str:
    """Words in lower case between single spaces, compatibility forms folded: what near-duplicates are compared by."""
    if text.isascii():
        return b" ".join(text.encode().translate(ASCII_WORDS).split()).decode()
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


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

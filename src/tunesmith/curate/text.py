"""Normal forms of text: the one that is written, and the one that tells duplicates."""

import re
import unicodedata


def normalise(text: str) -> str:
    """Unicode NFC with every run of whitespace as one space: what a row holds."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def duplicate_key(text: str) -> str:
    """Letters and digits only, compatibility forms and case folded: texts with one key are duplicates."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.text import duplicate_key, normalise

NORMALISED = {
    "runs of spaces": ("  12   Main\tSt \n", "12 Main St"),
    "no-break space": ("12\u00a0Main", "12 Main"),
    "decomposed accent": ("Cafe\u0301", "Caf\u00e9"),
    "case and points stay": ("P.O. Box 7", "P.O. Box 7"),
    "full-width digits stay": ("\uff11\uff12", "\uff11\uff12"),
    "nothing": (" \n", ""),
}


@pytest.mark.parametrize(("text", "expected"), NORMALISED.values(), ids=NORMALISED.keys())
def test_what_a_row_holds(text, expected):
    assert normalise(text) == expected


SAME = {
    "case": ("Main Street", "MAIN STREET"),
    "points and spaces": ("P.O. Box 7", "po box7"),
    "full-width digits": ("\uff11\uff12 Main", "12 main"),
    "sharp s": ("Hauptstraße", "HAUPTSTRASSE"),
    "decomposed accent": ("Cafe\u0301", "caf\u00e9"),
    "underscore": ("main_street", "main street"),
    "ligature": ("ﬁrst", "First"),
}
DIFFERENT = {
    "number": ("12 Main", "13 Main"),
    "accent": ("Café", "Cafe"),
    "one letter more": ("Main St", "Main Sts"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_texts_that_differ_in_form_only_are_duplicates(one, other):
    assert duplicate_key(one) == duplicate_key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_texts_that_differ_in_content_are_not(one, other):
    assert duplicate_key(one) != duplicate_key(other)


@settings(deadline=None)
@given(text=st.text())
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == unicodedata.normalize("NFC", once)
    assert "  " not in once
    assert once == once.strip()


@settings(deadline=None)
@given(text=st.text())
def test_normalising_makes_no_duplicate_of_another_text(text):
    assert duplicate_key(normalise(text)) == duplicate_key(text)

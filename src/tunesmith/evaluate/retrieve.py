"""What is nearest to a question, among texts: by words (BM25), by meaning (MiniLM), and by both together.

Two rankings are fused by the reciprocals of their ranks, which needs no weights: a text's score is the sum of
1 / (60 + rank) over the rankings that hold it (Cormack, Clarke and Büttcher 2009, SIGIR). How well that finds what is
known to answer is measured as recall@k and nDCG@k.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from tunesmith import embedder
from tunesmith.errors import EnvironmentFault
from tunesmith.progress import say

FUSION = 60
"""What is added to each rank: the first ranks of one ranking do not outweigh the other ranking whole."""


def words(text: str) -> list[str]:
    """The words of a text without regard to case; single letters and numbers are words too."""
    return re.findall(r"\w+", text.casefold())


def fuse(rankings: Sequence[NDArray[np.intp]], size: int, constant: int = FUSION) -> NDArray[np.float64]:
    """The fused score of each of `size` places, shape (size,); 0 for a place that no ranking holds.

    A ranking is places, each once, the best first; ranks count from 1.
    """
    scores = np.zeros(size)
    for ranking in rankings:
        scores[ranking] += 1 / (constant + np.arange(1, len(ranking) + 1))
    return scores


def ranked(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places by score, the highest first; of equals, the earlier."""
    return np.argsort(-scores, kind="stable")


def recall(found: Sequence[str], gold: Collection[str]) -> float:
    """The part of what should be found that was found. `gold` holds at least one id."""
    return len(set(found) & set(gold)) / len(set(gold))


def ndcg(found: Sequence[str], gold: Collection[str]) -> float:
    """Normalised discounted cumulative gain: what was found early counts more, 1 where all stands first.

    A gain of 1 for each id of `gold`, discounted by log2(rank + 1). Source: Järvelin and Kekäläinen 2002, TOIS 20:422.
    """
    gains = sum(1 / math.log2(rank + 1) for rank, each in enumerate(found, start=1) if each in gold)
    most = min(len(set(gold)), len(found))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, most + 1))
    return gains / ideal if ideal else 0.0


@dataclass(frozen=True)
class Search:
    """How texts are searched: as a recipe asked, or as could be done here."""

    kind: str
    """`bm25` or `hybrid`."""
    instead: str | None = None
    """Why it is not what the recipe asked for."""

    def as_dict(self) -> dict[str, Any]:
        """As an arm's file holds it."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.kind == "hybrid":
            found |= {"embedder": embedder.MINILM.sha256, "fusion": FUSION}
        return found | ({"instead": self.instead} if self.instead else {})


BY_WORDS = Search("bm25")


@lru_cache(maxsize=1)
def search_of(asked: str) -> Search:
    """The search that a recipe asks for; by words alone, and said so, where the embedder cannot be had."""
    if asked == "hybrid":
        try:
            embedder.obtain()
        except EnvironmentFault as fault:
            reason = str(fault).splitlines()[0]
            say(f"  warning: arms.retriever: hybrid: found by BM25 alone, without meaning: {reason}")
            return Search("bm25", reason)
    return Search(asked)


class Index:
    """Texts to be searched."""

    def __init__(self, texts: Sequence[str], search: Search, label: str) -> None:
        """Take the texts; `label` says what they are while they are embedded."""
        self.size = len(texts)
        self.search = search
        self.lexical = bm25s.BM25(method="lucene")
        self.lexical.index([words(text) for text in texts], show_progress=False)
        hybrid = search.kind == "hybrid"
        self.vectors = embedder.embed_once(texts, f"embedding {label}").astype(np.float64) if hybrid else None
        self.known: dict[str, NDArray[np.float32]] = {}

    def expect(self, queries: Sequence[str], label: str) -> None:
        """Embed the queries that will come, many at a time."""
        if self.vectors is not None:
            new = [query for query in dict.fromkeys(queries) if query not in self.known]
            if new:
                self.known |= dict(zip(new, embedder.embed_once(new, f"embedding {label}"), strict=True))

    def by_words(self, query: str) -> NDArray[np.float64]:
        """The BM25 score of each text (bm25s, Lucene's variant), 0 where no word is shared."""
        # bm25s takes no empty query, and cannot look up its own empty token; a space is no word of any text.
        return np.asarray(self.lexical.get_scores(words(query) or [" "]), dtype=np.float64)

    def by_meaning(self, query: str) -> NDArray[np.float64]:
        """The cosine of each text with the query; all 0 without an embedder. Rounded, so that no noise decides."""
        if self.vectors is None:
            return np.zeros(self.size)
        self.expect([query], "a question")
        return np.round(self.vectors @ self.known[query].astype(np.float64), 6)

    def order(self, query: str) -> list[int]:
        """All texts by place, the nearest first; of equals, the earlier."""
        by_words = self.by_words(query)
        order = ranked(by_words)
        if self.vectors is not None:
            # Texts that share no word stand in no order of BM25's.
            order = ranked(fuse([order[: np.count_nonzero(by_words)], ranked(self.by_meaning(query))], self.size))
        return [int(place) for place in order]

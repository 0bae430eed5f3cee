"""A knowledge base that is asked: the chunks nearest to a row's question, and how often they are the ones that answer.

The order is the index's own, or a linear model's over it, fitted on the dev rows whose `meta.gold` names the chunks
that answer: BM25 and cosine, each as a part of the question's best, the part of the question's words that stand in a
chunk's header, and the fused rank. For a dev row it is fitted without the rows of its fold, so that numbers of chunks
are compared on dev as they will be found elsewhere.
"""

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from tunesmith.evaluate.knowledge import Chunk, gold_of
from tunesmith.evaluate.retrieve import FUSION, Index, Search, ndcg, recall, words
from tunesmith.progress import say
from tunesmith.rows import Row

CANDIDATES = 50
"""How many of the nearest chunks a fitted order is made of."""
FOLDS = 5
FEWEST = 20
"""Fewest dev rows with a chunk that answers them among the candidates for an order to be fitted at all."""
RIDGE = 1.0
"""Weight of the squared coefficients beside the summed log loss."""
FEATURES = ("bm25", "cosine", "header", "fused")

Floats = NDArray[np.float64]


class Library:
    """The chunks of a knowledge base, searched."""

    def __init__(self, chunks: Sequence[Chunk], search: Search) -> None:
        self.chunks = list(chunks)
        self.index = Index([chunk.searched for chunk in chunks], search, "passages")
        self.places = {chunk.id: place for place, chunk in enumerate(chunks)}
        self.headers = [set(words(chunk.header)) for chunk in chunks]
        self.fitted: Fitted | None = None

    def nearest(self, row: Row, k: int) -> list[Chunk]:
        """The k nearest chunks, the nearest first."""
        order = self.index.order(row.source)
        if self.fitted:
            few = order[:CANDIDATES]
            scores = self._features(row.source, few) @ self.fitted.weights_for(row)
            order = [few[i] for i in sorted(range(len(few)), key=lambda i: (-float(scores[i]), i))]
        return [self.chunks[place] for place in order[:k]]

    def gold(self, row: Row) -> list[Chunk]:
        """The chunks that answer a row, as far as they are held here."""
        return [self.chunks[self.places[name]] for name in gold_of(row) if name in self.places]

    def fit(self, dev: Sequence[Row]) -> None:
        """Fit the order on the dev rows that name their gold; without enough of them it stays the index's own."""
        rows = [row for row in dev if self.gold(row)]
        self.index.expect([row.source for row in rows], "dev questions")
        features, labels, folds = [], [], []
        for row in rows:
            few = self.index.order(row.source)[:CANDIDATES]
            gold = {chunk.id for chunk in self.gold(row)}
            found = [float(self.chunks[place].id in gold) for place in few]
            if any(found):
                features.append(self._features(row.source, few))
                labels.append(np.array(found))
                folds.append(fold_of(row))
        if len(labels) < FEWEST or len(set(folds)) < 2:
            say(
                f"  warning: arms.knowledge.rerank: {len(labels)} dev rows have their gold chunk among the nearest "
                f"{CANDIDATES}, {FEWEST} are needed; the order stays as found"
            )
            return
        every = logistic(np.concatenate(features), np.concatenate(labels))
        without = []
        for fold in range(FOLDS):
            kept = [place for place, each in enumerate(folds) if each != fold]
            x, y = (np.concatenate([part[place] for place in kept]) for part in (features, labels))
            without.append(logistic(x, y))
        self.fitted = Fitted(every, without, {row.id for row in dev})

    def _features(self, query: str, places: Sequence[int]) -> Floats:
        """What is known of each chunk beside a question, shape (places, features)."""
        asked = set(words(query))
        by_words, by_meaning = self.index.by_words(query), self.index.by_meaning(query)
        best_words, best_meaning = max(by_words.max(), 1e-9), max(by_meaning.max(), 1e-9)
        return np.array(
            [
                [
                    by_words[place] / best_words,
                    by_meaning[place] / best_meaning,
                    len(asked & self.headers[place]) / max(1, len(asked)),
                    (FUSION + 1) / (FUSION + rank),
                ]
                for rank, place in enumerate(places, start=1)
            ]
        )

    def measured(self, rows: Sequence[Row], k: int) -> dict[str, Any]:
        """Mean recall@k and nDCG@k over the rows whose gold is named, and how many they are; empty where none is."""
        asked = [(row, gold_of(row)) for row in rows if gold_of(row)]
        if not asked or not k:
            return {}
        found = [([chunk.id for chunk in self.nearest(row, k)], gold) for row, gold in asked]
        return {
            "k": k,
            "rows": len(found),
            "recall": fmean(recall(ids, gold) for ids, gold in found),
            "ndcg": fmean(ndcg(ids, gold) for ids, gold in found),
        }

    def as_dict(self) -> dict[str, Any]:
        """What was searched and how, as an arm's file holds it."""
        order = dict(zip(FEATURES, map(float, self.fitted.every), strict=True)) if self.fitted else None
        return {**self.index.search.as_dict(), "chunks": len(self.chunks), "rerank": order}


class Fitted:
    """Weights of the features: of all dev rows, and without each fold of them."""

    def __init__(self, every: Floats, without: Sequence[Floats], dev: set[str]) -> None:
        self.every, self.without, self.dev = every, without, dev

    def weights_for(self, row: Row) -> Floats:
        """The weights that a row had no part in."""
        return self.without[fold_of(row)] if row.id in self.dev else self.every


def fold_of(row: Row) -> int:
    """Which fold a dev row belongs to, by its group."""
    return int(hashlib.sha256(row.group.encode()).hexdigest()[:8], 16) % FOLDS


def logistic(features: Floats, labels: Floats) -> Floats:
    """Coefficients of a logistic regression with an intercept, which is left out: it does not change an order.

    `features` is (n, d), `labels` (n,) of 0 and 1; maximum likelihood with a ridge on all but the intercept.
    """
    x = np.column_stack([features, np.ones(len(features))])
    ridge = np.array([RIDGE] * features.shape[1] + [0.0])

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = x @ weights
        value = float(np.logaddexp(0, scores).sum() - labels @ scores + 0.5 * ridge @ weights**2)
        return value, x.T @ (expit(scores) - labels) + ridge * weights

    found: Floats = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return found[:-1]

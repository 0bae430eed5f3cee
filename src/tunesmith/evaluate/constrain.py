"""Decoding that can only write JSON of a schema, by llguidance.

A small model answers in the form asked for and still chooses the content. The form is compact JSON with the keys in the
schema's order, as curation writes it.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from tunesmith.errors import UserError
from tunesmith.evaluate.generate import Constraint, MakeConstraint
from tunesmith.prompt import Renderer


def json_constraint(renderer: Renderer, schema: dict[str, Any], vocabulary: int) -> MakeConstraint:
    """Compile a JSON Schema once, for every batch of an arm. `vocabulary` is the width of the model's logits.

    Raises:
        UserError: the schema uses a keyword that llguidance cannot enforce.
    """
    tokenizer = from_tokenizer(renderer.tokenizer, n_vocab=vocabulary, eos_token=renderer.end_ids)
    options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema | {"x-guidance": options}))
    if problem := LLMatcher.validate_grammar(grammar, tokenizer):
        raise UserError(
            f"data.schema: constrained decoding cannot enforce it: {problem}; or set arms.constrained=false"
        )
    return lambda rows: _JsonConstraint(tokenizer, grammar, rows, vocabulary, renderer.end_ids)


def admitted(constraint: Constraint, ids: Sequence[int]) -> int:
    """How many first tokens of an answer a fresh constraint of one row lets pass."""
    for place, token in enumerate(ids):
        if not constraint.admits(0, token):
            return place
        constraint.accept(0, token)
    return len(ids)


class _JsonConstraint:
    """Forbids every next token that the grammar does not admit, for each row of one batch."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, rows: int, vocabulary: int, end_ids: list[int]) -> None:
        self.matchers = [LLMatcher(tokenizer, grammar) for _ in range(rows)]
        self.vocabulary = vocabulary
        self.end_ids = end_ids

    def mask(self, scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Scores with minus infinity at every token that the grammar does not admit next."""
        allowed = torch.from_numpy(self._allowed(rows)).to(device=scores.device, dtype=torch.bool)
        return scores.masked_fill(~allowed, float("-inf"))

    def admits(self, row: int, token: int) -> bool:
        """Whether a token may come next."""
        return bool(self._allowed([row])[0, token])

    def _allowed(self, rows: list[int]) -> np.ndarray:
        """1 for each token that may come next, of shape (len(rows), vocabulary)."""
        bitmask = allocate_token_bitmask(len(rows), self.vocabulary)
        for place, row in enumerate(rows):
            if not self.matchers[row].is_stopped():
                fill_next_token_bitmask(self.matchers[row], bitmask, place)
        bits = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little")[:, : self.vocabulary]
        for place, row in enumerate(rows):
            # A grammar that can only end stops before the end token is written.
            if self.matchers[row].is_stopped():
                bits[place] = 0
                bits[place, self.end_ids] = 1
        return bits

    def accept(self, row: int, token: int) -> None:
        """Move a row's grammar past a written token."""
        if not self.matchers[row].is_stopped():
            self.matchers[row].consume_token(token)

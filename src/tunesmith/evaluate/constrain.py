"""Decoding that can only write JSON of a schema, by llguidance.

A small model answers in the form asked for and still chooses the content. The form is compact JSON with the keys in the
schema's order, as curation writes it.
"""

import json
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers import LogitsProcessor

from tunesmith.errors import UserError
from tunesmith.evaluate.generate import Constraint
from tunesmith.prompt import Renderer


def json_constraint(renderer: Renderer, schema: dict[str, Any], vocabulary: int) -> Constraint:
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
    return lambda rows: _GrammarProcessor(tokenizer, grammar, rows, vocabulary, renderer.pad_id)


class _GrammarProcessor(LogitsProcessor):  # type: ignore[misc]
    """Forbids every next token that the grammar does not admit, for each row of one batch."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, rows: int, vocabulary: int, pad_id: int) -> None:
        self.matchers = [LLMatcher(tokenizer, grammar) for _ in range(rows)]
        self.bitmask = allocate_token_bitmask(rows, vocabulary)
        self.vocabulary = vocabulary
        self.pad_id = pad_id
        self.started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask the scores of shape (rows, vocabulary) for the next token."""
        for row, matcher in enumerate(self.matchers):
            if self.started and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if matcher.is_stopped():
                # The row has ended; transformers writes padding after it whatever the scores say.
                self.bitmask[row] = 0
                self.bitmask[row, self.pad_id // 32] = np.int32(np.uint32(1 << (self.pad_id % 32)).astype(np.int32))
            else:
                fill_next_token_bitmask(matcher, self.bitmask, row)
        self.started = True
        bits = np.unpackbits(self.bitmask.view(np.uint8), axis=1, bitorder="little")[:, : self.vocabulary]
        allowed = torch.from_numpy(bits).to(device=scores.device, dtype=torch.bool)
        return scores.masked_fill(~allowed, float("-inf"))

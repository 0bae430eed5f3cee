"""The one place where a chat template meets a row.

In: a row and a tokenizer. Out: prompt token ids and completion token ids; training, baselines, evaluation and export
all take them from here, so they cannot differ. Loss falls on the completion and its end-of-turn token, nothing else.
Text in a row never becomes a control token, which is a special token or an added one that the template writes: the
template's own are the only ones (`sanitize_control_tokens` of transformers 5.23, in prompt and completion).
"""

import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tunesmith import chat_template
from tunesmith.errors import UserError
from tunesmith.files import sha256_json
from tunesmith.rows import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RENDER_VERSION = 2
"""Raised whenever the same row and tokenizer would give other ids; part of the prompt's hash."""

MARK = "\U000f0000"
"""What upstream puts before text that spells a control token (transformers 5.23, `utils/chat_template_utils.py`)."""

IGNORE = -100
"""The label of a token that carries no loss (torch's `ignore_index`)."""


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    # In order, the first and the last agree least.
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


@dataclass(frozen=True)
class Rendered:
    """A row as token ids.

    The completion ends with the end-of-turn token, or the template writes none and `ends` is False.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    ends: bool

    @property
    def input_ids(self) -> list[int]:
        """Prompt and completion, as the model is trained on them."""
        return self.prompt_ids + self.completion_ids

    @property
    def loss_mask(self) -> list[int]:
        """1 where loss falls, one entry per input id."""
        return [0] * len(self.prompt_ids) + [1] * len(self.completion_ids)

    @property
    def labels(self) -> list[int]:
        """Input ids where loss falls, `IGNORE` elsewhere; not shifted."""
        return [IGNORE] * len(self.prompt_ids) + self.completion_ids

    def fit(self, max_tokens: int) -> "Rendered":
        """Cut the prompt from the left until the whole fits; the completion is never cut.

        Raises:
            UserError: the completion alone is longer than `max_tokens`.
        """
        over = len(self.input_ids) - max_tokens
        if over <= 0:
            return self
        if over > len(self.prompt_ids):
            raise UserError(f"a completion of {len(self.completion_ids)} tokens does not fit into {max_tokens}")
        return Rendered(self.prompt_ids[over:], self.completion_ids, self.ends)


class Renderer:
    """Renders rows with one tokenizer and its chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", end_ids: Iterable[int] = ()) -> None:
        """Take a tokenizer and, where the base names them, the token ids that end a turn.

        Raises:
            UserError: the tokenizer has no chat template, one that is not safe to render, or no end-of-sequence token.
        """
        if not tokenizer.chat_template:
            raise UserError("the base's tokenizer has no chat template; pick an instruction-tuned base")
        if tokenizer.eos_token_id is None:
            raise UserError("the base's tokenizer has no end-of-sequence token; a model could never learn to stop")
        chat_template.refuse_unfit(tokenizer.chat_template)
        self.tokenizer = tokenizer
        self.end_ids: list[int] = sorted({*end_ids, int(tokenizer.eos_token_id)})
        self.pad_id: int = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0])

    def prompt_ids(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Raises:
            UserError: the template refuses the messages.
        """
        ids: list[int] = self._apply(
            [m.as_dict() for m in messages],
            tools,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return ids

    def completion_ids(self, row: Row) -> tuple[list[int], bool]:
        """Token ids of the completion with its end-of-turn token, and whether the template wrote that token.

        Raises:
            UserError: the template refuses the messages, or writes the prompt otherwise once an answer follows it.
        """
        marked = self._mark(row)
        prompt = self._text(marked["messages"][:-1], marked["tools"], add_generation_prompt=True)
        whole = self._text(marked["messages"], marked["tools"], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise UserError(
                f"row {row.id!r}: the chat template writes the prompt otherwise when an answer follows it; "
                "training and serving would see different prompts; pick another base or template"
            )
        answer = whole[len(prompt) :]
        # The last end token wins; one in the completion's own text is marked as text.
        found = ((re.finditer(rf"(?<!{MARK}){re.escape(text)}", answer), token) for token, text in self._end_texts())
        ends = [(match.start(), match[0], token) for matches, token in found for match in matches]
        if not ends:
            return self._answer_ids(answer), False
        position, _, token = max(ends)
        return [*self._answer_ids(answer[:position]), token], True

    def render(self, row: Row) -> Rendered:
        """Turn a row into token ids."""
        completion_ids, ends = self.completion_ids(row)
        return Rendered(self.prompt_ids(row.messages, row.tools), completion_ids, ends)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a prediction: everything before the first end-of-turn token."""
        end = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))

    def control_tokens(self) -> list[str]:
        """The texts that this tokenizer would read as one control token."""
        special = set(self.tokenizer.all_special_tokens)
        return sorted(special | {token.content for token in self.tokenizer.added_tokens_decoder.values()})

    def own_system(self) -> str:
        """What the template writes as a system message where a conversation has none; empty as a rule.

        SmolLM2's and Qwen2.5's templates introduce the model by its name, for one.
        """
        asks = {"role": "user", "content": "U"}
        try:
            stated = self._text([{"role": "system", "content": "\0"}, asks], None, add_generation_prompt=False)
            bare = self._text([asks], None, add_generation_prompt=False)
        except UserError:
            return ""
        before, _, after = stated.partition("\0")
        inserted = bare.startswith(before) and bare.endswith(after)
        return bare[len(before) : len(bare) - len(after)].strip() if inserted else ""

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """Token ids as text for a reader: runs of text, each with whether it is control tokens."""
        control = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        runs = groupby(ids, key=lambda token: token in control)
        return [(str(self.tokenizer.decode(list(run))), is_control) for is_control, run in runs]

    def digest(self, systems: Iterable[str]) -> str:
        """Hash of everything that decides a prompt: template, tokenizer, special tokens, system messages, version."""
        return sha256_json(
            {
                "render_version": RENDER_VERSION,
                "chat_template": self.tokenizer.chat_template,
                "tokenizer": self._tokenizer_text(),
                "special_tokens": {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()},
                "end_ids": self.end_ids,
                "systems": sorted(systems),
            }
        )

    def _tokenizer_text(self) -> str:
        # On a copy: padding and truncation are a caller's passing state, not part of the tokenizer.
        backend = copy(self.tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())

    def _text(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool
    ) -> str:
        return str(self._apply(messages, tools, tokenize=False, add_generation_prompt=add_generation_prompt))

    def _apply(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **settings: Any) -> Any:
        from jinja2 import TemplateError

        try:
            with chat_template.bounded():
                return self.tokenizer.apply_chat_template(messages, tools=tools, **settings)
        except (TemplateError, TypeError, OverflowError, RecursionError) as error:
            # A template refuses what it was not written for: a system message, no content, roles out of turn.
            raise UserError(
                f"the chat template refuses the messages ({error}); reshape the rows, or pick another base"
            ) from None

    def _mark(self, row: Row) -> dict[str, Any]:
        """The conversation and its tools; what spells a control token is marked as text, as upstream marks prompts."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        template = self.tokenizer.get_chat_template(tools=row.tools)
        words = sorted(self.tokenizer._get_control_tokens(template), key=len, reverse=True)
        spelt = re.compile("|".join(map(re.escape, words)) or "(?!)")
        messages = [*row.messages, row.completion]
        marked: dict[str, Any] = mark_control_tokens(
            {"messages": [m.as_dict() for m in messages], "tools": row.tools}, spelt
        )
        return marked

    def _answer_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
        return ids

    def _end_texts(self) -> list[tuple[int, str]]:
        return [(token, str(self.tokenizer.convert_ids_to_tokens(token))) for token in self.end_ids]

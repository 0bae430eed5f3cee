"""The interventions of a diagnosis: the same rows answered with the facts, with an aid to the shape, with both, and
with placebos that bear on neither.

The facts are raw source text, never the reference or its form; shots come from training rows alone. Without the
placebos, rows that come right by themselves would look cured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.evaluate.arena import Arena
from tunesmith.evaluate.arms import few_shots, with_shots
from tunesmith.evaluate.constrain import json_constraint
from tunesmith.evaluate.generate import generate, shared_prefix
from tunesmith.evaluate.logged import stands_in, values
from tunesmith.files import sha256_json, write_json, write_jsonl
from tunesmith.prompt import Rendered
from tunesmith.recipe import Recipe
from tunesmith.rows import Message, Row

Cell = Literal["y00", "rerun", "y10", "p10", "shots", "y01", "p01", "y11"]
"""As is; again in other company; with the source; with an irrelevant one; with shots; with shots and the schema; with
instructions that say nothing; with source, shots and schema."""

NEEDS_SOURCE: frozenset[Cell] = frozenset({"y10", "p10", "y11"})
"""Cells of rows whose source does not stand in their prompt already."""
CONSTRAINED: frozenset[Cell] = frozenset({"y01", "y11"})

NEUTRAL = (
    "Take the time that you need and go through the whole of what follows.",
    "Every request is handled with the same care, whatever its length.",
    "Requests arrive at all hours, from many places, and each is read on its own.",
    "Nothing in this paragraph bears on what is asked below.",
    "Work steadily, from the beginning to the end.",
)
"""What fills a neutral instruction; none of it says anything of facts or of form."""


@dataclass(frozen=True)
class Aid:
    """The aid to the shape that needs no training: how many shots, and whether the schema binds decoding."""

    k: int
    constrained: bool

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are answered, in an order in which each is shown as it comes."""
        rung: tuple[Cell, ...] = ("shots",) if self.constrained and self.k else ()
        return ("rerun", "y10", "p10", *rung, "y01", "p01", "y11")

    def as_dict(self) -> dict[str, Any]:
        """As files hold it."""
        return {"shots": self.k, "constrained": self.constrained}


def aid_of(recipe: Recipe) -> Aid:
    """The strongest aid that a recipe's arms offer: its most shots, and the schema where it binds.

    Raises:
        UserError: it offers none.
    """
    aid = Aid(max(recipe.arms.few_shot, default=0), recipe.arms.constrained)
    if not aid.k and not aid.constrained:
        raise UserError(
            "arms: neither `few_shot` nor `constrained`; without an aid to the shape its failures cannot be told apart"
        )
    return aid


def sources_of(row: Row) -> list[str]:
    """The raw texts that a row's reference is read from, where its `meta.gold_text` names any: a text or several."""
    named = (row.meta or {}).get("gold_text") or []
    return [named] if isinstance(named, str) else [str(text) for text in named]


def is_given(row: Row) -> bool:
    """Whether all that the reference is read from stands in the prompt already, or nothing else is named."""
    return all(text.strip() in row.prompt_text for text in sources_of(row))


def with_source(row: Row, texts: Sequence[str]) -> list[Message]:
    """A row's messages with texts below its last user message."""
    messages = list(row.messages)
    place = max((index for index, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)
    asked = messages[place]
    beside = "\n\n".join(texts)
    messages[place] = asked.model_copy(update={"content": f"{asked.content or ''}\n\nSource:\n\n{beside}"})
    return messages


class Interventions:
    """What each cell puts before the model, over some rows."""

    def __init__(self, arena: Arena, rows: Sequence[Row], aid: Aid) -> None:
        self.arena = arena
        self.rows = rows
        self.aid = aid
        self.shots = few_shots(arena.train, aid.k, arena.recipe.seed) if aid.k else []

    def rows_of(self, cell: Cell) -> list[Row]:
        """The rows that a cell is answered for: of those with their facts, the source would be said twice."""
        return [row for row in self.rows if cell not in NEEDS_SOURCE or not is_given(row)]

    def messages(self, row: Row, cell: Cell) -> list[Message]:
        """What a cell puts before the model for one row."""
        if cell == "y10":
            return with_source(row, sources_of(row))
        if cell == "p10":
            return with_source(row, [self.irrelevant(row)])
        if cell in ("shots", "y01"):
            return with_shots(row, self.shots)
        if cell == "p01":
            return self._instructed(row)
        if cell == "y11":
            return with_shots(row.model_copy(update={"messages": with_source(row, sources_of(row))}), self.shots)
        return list(row.messages)

    def irrelevant(self, row: Row) -> str:
        """Text of other rows' sources, as long as this row's, that holds no value of its reference."""
        wanted = [value for value in values(row.reference).values() if value is not None]
        length = len(self._ids("\n\n".join(sources_of(row))))
        others = sorted(
            (other for other in self.rows if other.group != row.group),
            key=lambda other: sha256_json([row.id, other.id]),
        )
        words: list[str] = []
        for text in (text for other in others for text in sources_of(other)):
            if not any(stands_in(value, text) for value in wanted):
                words += text.split(" ")
            if len(self._ids(" ".join(words))) >= length:
                break
        return self._cut(" ".join(words) or " ".join(NEUTRAL), length)

    def _instructed(self, row: Row) -> list[Message]:
        """The messages with a neutral instruction as long as the shots, or as the schema where there are none."""
        plain = len(self.arena.renderer.prompt_ids(list(row.messages), row.tools))
        aided = len(self.arena.renderer.prompt_ids(with_shots(row, self.shots), row.tools))
        length = aided - plain or len(self._ids(str(self.arena.schema)))
        sentences: list[str] = []
        for sentence in cycle(NEUTRAL):
            sentences.append(sentence)
            if len(self._ids(" ".join(sentences))) >= length:
                break
        said = self._cut(" ".join(sentences), length)
        first = row.messages[0]
        if first.role != "system":
            return [Message(role="system", content=said), *row.messages]
        return [first.model_copy(update={"content": f"{first.content or ''}\n\n{said}"}), *row.messages[1:]]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.arena.renderer.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _cut(self, text: str, length: int) -> str:
        cut: str = self.arena.renderer.tokenizer.decode(self._ids(text)[:length])
        return cut

    def answer(self, model: PreTrainedModel, cell: Cell, out: Path, weights: Mapping[str, str]) -> None:
        """Answer and score a cell; writes `<cell>.jsonl` and `<cell>.json` into `out`."""
        arena, rows = self.arena, self.rows_of(cell)
        room = arena.base.context() - arena.settings.max_new_tokens
        whole = [arena.renderer.prompt_ids(self.messages(row, cell), row.tools) for row in rows]
        prompts = [Rendered(ids, [], ends=False).fit(room).prompt_ids for ids in whole]
        settings = arena.settings
        if cell == "rerun":
            settings = replace(settings, batch_rows=max(1, settings.batch_rows // 3))
        constraint = None
        if cell in CONSTRAINED and self.aid.constrained and arena.schema is not None:
            constraint = json_constraint(arena.renderer, arena.schema, model.config.get_text_config().vocab_size)
        prefix = shared_prefix(prompts)
        answers = (
            generate(
                model,
                arena.renderer,
                prompts,
                settings,
                prefix=prefix,
                label=f"diagnosis {cell}",
                constraint=constraint,
            )
            if rows
            else {}
        )
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / f"{cell}.jsonl", arena._scored(rows, answers))
        write_json(
            out / f"{cell}.json",
            {
                "cell": cell,
                "aid": self.aid.as_dict(),
                "rows": len(rows),
                "weights": dict(weights),
                "computed_on": arena.computed_on,
                "settings": settings.as_dict(),
                "prefix_tokens": prefix,
                "prompts_cut": sum(len(ids) > room for ids in whole),
            },
        )

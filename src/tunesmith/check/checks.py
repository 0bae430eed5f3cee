"""What can be wrong with a row before step 0.

Each check takes the rows as token ids and labels, exactly as training gets them, and returns the ids of the rows that
fail. They look at the ids and labels, not at how they were made, so a fault in rendering shows here too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.leaks import find_leaks, row_texts
from tunesmith.prompt import IGNORE, Rendered, Renderer
from tunesmith.rows import Row, function_of, loads
from tunesmith.schema import validator_of


@dataclass(frozen=True)
class Checked:
    """A row as training gets it."""

    row: Row
    rendered: Rendered
    input_ids: list[int]
    labels: list[int]


Check = Callable[[Sequence[Checked]], list[str]]


def no_loss(rows: Sequence[Checked]) -> list[str]:
    """Rows that teach nothing: no token carries loss."""
    return [c.row.id for c in rows if all(label == IGNORE for label in c.labels)]


def loss_on_prompt(rows: Sequence[Checked]) -> list[str]:
    """Rows whose prompt carries loss."""
    return [c.row.id for c in rows if any(label != IGNORE for label in c.labels[: len(c.rendered.prompt_ids)])]


def loss_elsewhere(renderer: Renderer) -> Check:
    """Rows whose loss tokens do not read as the completion."""

    def check(rows: Sequence[Checked]) -> list[str]:
        failed = []
        for c in rows:
            loss_ids = [label for label in c.labels if label != IGNORE and label not in renderer.end_ids]
            if loss_ids and str(renderer.tokenizer.decode(loss_ids)).strip() != c.row.reference.strip():
                failed.append(c.row.id)
        return failed

    return check


def no_end_token(renderer: Renderer) -> Check:
    """Rows whose last loss token does not end the turn: the model would never learn to stop."""

    def check(rows: Sequence[Checked]) -> list[str]:
        return [c.row.id for c in rows if not c.labels or c.labels[-1] not in renderer.end_ids]

    return check


def double_bos(renderer: Renderer) -> Check:
    """Rows that begin with two beginning-of-sequence tokens."""
    bos = renderer.tokenizer.bos_token_id

    def check(rows: Sequence[Checked]) -> list[str]:
        return [c.row.id for c in rows if bos is not None and c.input_ids[:2] == [bos, bos]]

    return check


def unknown_tokens(vocabulary: int) -> Check:
    """Rows with a token that the base has no embedding for."""

    def check(rows: Sequence[Checked]) -> list[str]:
        return [c.row.id for c in rows if max(c.input_ids, default=0) >= vocabulary]

    return check


def too_long(max_tokens: int) -> Check:
    """Rows longer than `data.max_tokens`; nothing is cut, so they fail."""

    def check(rows: Sequence[Checked]) -> list[str]:
        return [c.row.id for c in rows if len(c.input_ids) > max_tokens]

    return check


def control_tokens(renderer: Renderer) -> Check:
    """Rows whose own text spells a control token, such as an end of turn."""
    words = renderer.control_tokens()

    def check(rows: Sequence[Checked]) -> list[str]:
        texts = ((c.row.id, m.content or "") for c in rows for m in (*c.row.messages, *c.row.answers()))
        return sorted({row_id for row_id, text in texts if any(word in text for word in words)})

    return check


def off_schema(schema: dict[str, Any] | None) -> Check:
    """Rows whose completion is not valid JSON under the task's schema; where it has none, that say nothing."""
    if schema is None:
        return lambda rows: [c.row.id for c in rows if not c.row.reference.strip() and not c.row.completion.tool_calls]
    validator = validator_of(schema)

    def check(rows: Sequence[Checked]) -> list[str]:
        failed = []
        for c in rows:
            try:
                valid = validator.is_valid(loads(c.row.reference))
            except ValueError:
                valid = False
            if not valid:
                failed.append(c.row.id)
        return failed

    return check


def unseen_tools(renderer: Renderer) -> Check:
    """Rows whose tools, or whose calls, the base's template does not write: the model would never see them."""

    def check(rows: Sequence[Checked]) -> list[str]:
        decode = renderer.tokenizer.decode
        failed = []
        for c in rows:
            offered = [str(function_of(tool).get("name", "")) for tool in c.row.tools or ()]
            called = [str(function_of(call).get("name", "")) for call in c.row.completion.tool_calls or ()]
            prompt = str(decode(c.rendered.prompt_ids)) if offered else ""
            completion = str(decode(c.rendered.completion_ids)) if called else ""
            if not all(name in prompt for name in offered) or not all(name in completion for name in called):
                failed.append(c.row.id)
        return failed

    return check


def leaking(rows: Sequence[Row], held_out: Sequence[Row], near: float | None) -> list[str]:
    """Held-out rows whose prompt, group, or a prompt near theirs stands in train too.

    Shared passages do not fail: rows about one document hold the same ones.
    """
    leaks = find_leaks(row_texts(held_out), list(row_texts(rows)), near)
    return [leak.left for leak in leaks if leak.kind != "passage"]

"""Render all rows once, run all checks, write check.json, and stop a run that would train in vain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.bases import Base
from tunesmith.beginning import Beginning
from tunesmith.check import checks
from tunesmith.check.checks import Checked, Finding
from tunesmith.errors import UserError
from tunesmith.files import write_json
from tunesmith.progress import say
from tunesmith.prompt import IGNORE, Renderer
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import Dataset, Row, Split
from tunesmith.schema import read_schema
from tunesmith.tokens import key_of, rejected_file, write_tokens

SHOWN_IDS = 5
HELD_OUT: tuple[Split, ...] = ("dev", "gate", "confirm")


@dataclass
class Rendering:
    """Rows as token ids, and what the template said of those that it refused, by row id."""

    checked: list[Checked]
    refused: dict[str, str]


def render_each(rows: Sequence[Row], renderer: Renderer) -> Rendering:
    """Render rows one by one, a whole conversation once for each turn that training learns."""
    rendering = Rendering([], {})
    for row in chain.from_iterable(row.turns() for row in rows):
        try:
            ids = renderer.render(row)
        except UserError as error:
            rendering.refused[row.id] = error.text
        else:
            rendering.checked.append(Checked(row, ids, ids.input_ids, ids.labels))
    return rendering


def examine(
    rows: Sequence[Row],
    rendering: Rendering,
    held_out: Sequence[Row],
    renderer: Renderer,
    schema: Any,
    max_tokens: int,
    near: float | None,
) -> list[Finding]:
    """Run every check over the training rows; a row that cannot be rendered fails the check named `template`."""
    rendered, unrendered = rendering.checked, list(rendering.refused)
    reason = next(iter(rendering.refused.values()), "the template writes the prompt as serving will")
    table: list[tuple[str, str, list[str]]] = [
        ("template", reason, unrendered),
        ("loss tokens", "each row has tokens that carry loss", checks.no_loss(rendered)),
        ("prompt masked", "no prompt token carries loss", checks.loss_on_prompt(rendered)),
        ("loss is completion", "the loss tokens read as the completion", checks.loss_elsewhere(renderer)(rendered)),
        ("end token", "the end-of-turn token carries loss", checks.no_end_token(renderer)(rendered)),
        ("single BOS", "no row begins with two BOS tokens", checks.double_bos(renderer)(rendered)),
        ("length", f"each row fits into data.max_tokens = {max_tokens}", checks.too_long(max_tokens)(rendered)),
        ("control tokens", "no text spells a control token", checks.control_tokens(renderer)(rendered)),
        ("schema", "each completion is valid under the schema", checks.off_schema(schema)(rendered)),
        (
            "tools",
            "the template writes a row's tools and calls",
            checks.unseen_tools(renderer)(rendered),
        ),
        ("splits", "no held-out row, or one near it, stands in train", checks.leaking(rows, held_out, near)),
    ]
    return [Finding(name, "FAIL" if failed else "PASS", says, failed) for name, says, failed in table]


def examine_held_out(
    held_out: Mapping[Split, Sequence[Row]], rendering: Rendering, schema: Any, recipe: Recipe
) -> list[Finding]:
    """What a run would else find out only after training: references that cannot be scored, rows that are too few."""
    rendered, unrendered = rendering.checked, list(rendering.refused)
    too_long = [one.row.id for one in rendered if len(one.rendered.completion_ids) > recipe.arms.max_new_tokens]
    few = [row.id for row in held_out["gate"]] if len(held_out["gate"]) < recipe.gate.min_rows else []
    longest = recipe.arms.max_new_tokens
    table = [
        ("held-out template", "each held-out row can be rendered", unrendered),
        ("held-out schema", "each held-out reference is valid under the schema", checks.off_schema(schema)(rendered)),
        ("held-out length", f"each held-out reference fits into arms.max_new_tokens = {longest}", too_long),
        ("gate rows", f"the gate split has at least gate.min_rows = {recipe.gate.min_rows} rows", few),
    ]
    return [Finding(name, "FAIL" if failed else "PASS", says, failed) for name, says, failed in table]


def examine_rejected(trained: Rendering, worse: Rendering, renderer: Renderer, max_tokens: int) -> list[Finding]:
    """What preference tuning needs beside: of each row another answer to the same prompt, as sound as the first."""
    chosen = {one.row.id: one for one in trained.checked}
    rejected = {one.row.id: one for one in worse.checked}
    alone = [row for row in chosen if row not in rejected and row not in worse.refused]
    both = [(chosen[row], one) for row, one in rejected.items() if row in chosen]
    rows = worse.checked
    reason = next(iter(worse.refused.values()), "the template writes each rejected answer")
    table: list[tuple[str, str, list[str]]] = [
        ("pairs", "each row has a rejected answer; a row of several turns has none for its earlier ones", alone),
        (
            "pairs differ",
            "the rejected answer is another than the completion, in tokens too",
            [a.row.id for a, b in both if a.rendered.completion_ids == b.rendered.completion_ids],
        ),
        (
            "one prompt",
            "both answers follow the same prompt",
            [a.row.id for a, b in both if a.rendered.prompt_ids != b.rendered.prompt_ids],
        ),
        ("rejected template", reason, list(worse.refused)),
        ("rejected loss tokens", "each rejected answer has tokens that carry loss", checks.no_loss(rows)),
        (
            "rejected is the answer",
            "the loss tokens read as the rejected answer",
            checks.loss_elsewhere(renderer)(rows),
        ),
        ("rejected end token", "the end-of-turn token carries loss there too", checks.no_end_token(renderer)(rows)),
        (
            "rejected length",
            f"with it the row fits into data.max_tokens = {max_tokens}",
            checks.too_long(max_tokens)(rows),
        ),
        ("rejected tools", "the template writes the calls of rejected answers", checks.unseen_tools(renderer)(rows)),
    ]
    return [Finding(name, "FAIL" if failed else "PASS", says, failed) for name, says, failed in table]


def check(loaded: LoadedRecipe, dataset: Dataset, base: Base, out: Path, beginning: Beginning | None = None) -> None:
    """Render all rows, check them and write `check.json`, whatever it finds; `refuse_failed` then stops the run.

    The token ids of train and dev are written to `tokens/`, for training.
    """
    train = dataset.rows("train")
    held_out = {split: dataset.rows(split) for split in HELD_OUT}
    renderer = Renderer(base.tokenizer(), base.end_ids())
    schema = read_schema(loaded.schema_path)
    trained = render_each(train, renderer)
    held = {split: render_each(rows, renderer) for split, rows in held_out.items()}
    all_held = Rendering(
        [one for rendering in held.values() for one in rendering.checked],
        {row: reason for rendering in held.values() for row, reason in rendering.refused.items()},
    )
    held_rows = list(chain(*held_out.values()))
    recipe, near = loaded.recipe, loaded.recipe.curate.duplicates.near
    findings = examine(train, trained, held_rows, renderer, schema, recipe.data.max_tokens, near)
    findings += examine_held_out(held_out, all_held, schema, recipe)
    worse = {
        split: render_each([other for row in rows for turn in row.turns() if (other := turn.with_rejected())], renderer)
        for split, rows in (("train", train), ("dev", held_out["dev"]))
    }
    if beginning is not None:
        findings += examine_rejected(trained, worse["train"], renderer, recipe.data.max_tokens)
        seen = checks.leaking(beginning.rows(), held_rows, near)
        says = f"no held-out row, or one near it, stands in what {beginning.run.name} was trained on"
        findings.append(Finding("begun from", "FAIL" if seen else "PASS", says, seen))
    elif both := [row.id for row in train if row.rejected is not None]:
        says = "rejected answers are there and not learned from; `trainer.kind: dpo` would"
        findings.append(Finding("rejected", "WARN", says, both))
        say(f"  {_count(both)} hold a rejected answer, from which kind: sft does not learn")
    lengths = [len(one.input_ids) for one in trained.checked]
    splits: dict[Split, Rendering] = {"train": trained, "dev": held["dev"]}
    for split, rendering in splits.items():
        if not rendering.refused:
            rows = [one.rendered for one in rendering.checked]
            write_tokens(out / "tokens" / f"{split}.safetensors", rows, key_of(renderer, dataset, split))
            if beginning is not None and not worse[split].refused:
                answers = [one.rendered for one in worse[split].checked]
                write_tokens(out / "tokens" / rejected_file(split), answers, key_of(renderer, dataset, split))
    write_json(
        out / "check.json",
        {
            "rows": len(train),
            "tokens": {"longest": max(lengths, default=0), "mean": round(mean(lengths), 1) if lengths else 0},
            "prompt_digest": renderer.digest(dataset.manifest()["systems"]),
            "checks": [finding.as_dict() for finding in findings],
        },
    )


def refuse_failed(result: dict[str, Any], path: Path, dataset: Dataset) -> None:
    """Stop a run whose check.json holds a FAIL.

    Raises:
        UserError: names each failed check, what it wants, and its rows.
    """
    failed = [finding for finding in result["checks"] if finding["status"] == "FAIL"]
    if failed:
        raise UserError(
            [
                f"{dataset.directory}: check `{f['name']}` fails for {_count(f['rows'])}: {_some(f['rows'])}; "
                f"wanted: {f['says']}"
                for f in failed
            ],
            hint=f"mend or drop these rows where they are curated; all row ids are in {path}",
        )


def show(result: dict[str, Any], dataset: Dataset, base: Base, console: Console) -> None:
    """Print the table of checks and two rows with their loss tokens visible."""
    table = Table("check", "status", "says", box=None, pad_edge=False)
    for finding in result["checks"]:
        table.add_row(finding["name"], finding["status"], finding["says"])
    console.print(table)
    console.print(
        f"{result['rows']} rows, {result['tokens']['mean']} tokens on average, longest {result['tokens']['longest']}"
    )
    renderer = Renderer(base.tokenizer(), base.end_ids())
    for row in dataset.rows("train")[:2]:
        console.print(f"\nrow {row.id}; the tokens between ⟦ and ⟧ carry loss:")
        console.print(visible(row, renderer), soft_wrap=True)


def visible(row: Row, renderer: Renderer) -> Text:
    """A row's tokens as text, those with loss between ⟦ and ⟧ (and green where there is colour)."""
    rendered = renderer.render(row)
    text = Text()
    inside = False
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        if (label != IGNORE) != inside:
            inside = not inside
            text.append("⟦" if inside else "⟧", style="bold")
        text.append(str(renderer.tokenizer.decode([token])), style="green" if inside else "dim")
    if inside:
        text.append("⟧", style="bold")
    return text


def _count(ids: Sequence[str]) -> str:
    return f"{len(ids)} row{'' if len(ids) == 1 else 's'}"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more

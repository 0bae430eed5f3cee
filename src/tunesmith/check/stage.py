"""Render all rows once, run all checks, write check.json, and stop a run that would train in vain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from tunesmith.bases import Base
from tunesmith.beginning import Beginning
from tunesmith.check import checks
from tunesmith.check.checks import Checked
from tunesmith.check.modules import adapted_modules
from tunesmith.errors import UserError
from tunesmith.files import write_json
from tunesmith.findings import Finding, seen
from tunesmith.progress import say
from tunesmith.prompt import Renderer
from tunesmith.recipe import LoadedRecipe, Recipe
from tunesmith.rows import Dataset, Row, Split
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


FIXES = "mend or drop these rows where they are curated"
RENDERS = "pick another base, or mend its chat template"


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
    longest = max((len(one.input_ids) for one in rendered), default=0)
    table: list[tuple[str, int | None, str, list[str], str]] = [
        ("template", 8, reason, unrendered, RENDERS),
        ("loss tokens", 1, "each row has tokens that carry loss", checks.no_loss(rendered), FIXES),
        ("prompt masked", 1, "no prompt token carries loss", checks.loss_on_prompt(rendered), RENDERS),
        (
            "loss is completion",
            1,
            "the loss tokens read as the completion",
            checks.loss_elsewhere(renderer)(rendered),
            RENDERS,
        ),
        ("end token", 2, "the end-of-turn token carries loss", checks.no_end_token(renderer)(rendered), RENDERS),
        ("single BOS", 4, "no row begins with two BOS tokens", checks.double_bos(renderer)(rendered), RENDERS),
        (
            "length",
            5,
            f"each row fits into data.max_tokens = {max_tokens}",
            checks.too_long(max_tokens)(rendered),
            f"raise data.max_tokens (the longest row has {longest}), or shorten these rows",
        ),
        ("control tokens", 24, "no text spells a control token", checks.control_tokens(renderer)(rendered), FIXES),
        ("schema", None, "each completion is valid under the schema", checks.off_schema(schema)(rendered), FIXES),
        ("tools", 8, "the template writes a row's tools and calls", checks.unseen_tools(renderer)(rendered), RENDERS),
    ]
    found = [about_rows(name, number, says, failed, len(rows), fix) for name, number, says, failed, fix in table]
    apart, leaking = "no held-out row, or one near it, stands in train", checks.leaking(rows, held_out, near)
    return [*found, about_rows("splits", 22, apart, leaking, len(held_out), FIXES)]


def examine_held_out(
    held_out: Mapping[Split, Sequence[Row]], rendering: Rendering, schema: Any, recipe: Recipe
) -> list[Finding]:
    """What a run would else find out only after training: references that cannot be scored, rows that are too few."""
    rendered, unrendered = rendering.checked, list(rendering.refused)
    every = sum(map(len, held_out.values()))
    too_long = [one.row.id for one in rendered if len(one.rendered.completion_ids) > recipe.arms.max_new_tokens]
    longest = recipe.arms.max_new_tokens
    off = checks.off_schema(schema)(rendered)
    return [
        about_rows("held-out template", 8, "each held-out row can be rendered", unrendered, every, RENDERS),
        about_rows("held-out schema", None, "each held-out reference is valid under the schema", off, every, FIXES),
        about_rows(
            "held-out length",
            21,
            f"each held-out reference fits into arms.max_new_tokens = {longest}",
            too_long,
            every,
            "raise arms.max_new_tokens",
        ),
        seen(
            "gate rows",
            (23,),
            len(held_out["gate"]) >= recipe.gate.min_rows,
            f"the gate split has at least gate.min_rows = {recipe.gate.min_rows} rows",
            f"{len(held_out['gate'])} rows",
            "curate more rows, or give the gate a larger share of them",
        ),
    ]


def examine_model(
    recipe: Recipe, base: Base, renderer: Renderer, rendering: Rendering, rows: Sequence[Row]
) -> list[Finding]:
    """What base, adapter and settings are to each other, found without loading a weight."""
    try:
        modules = adapted_modules(base, recipe.lora)
    except UserError as error:
        return [seen("target modules", (12,), False, "peft can adapt this base so", error.text, "mend `lora`")]
    asked = [key for key in ("layers_to_transform", "layers_pattern", "exclude_modules") if recipe.lora.get(key)]
    share = modules.trained / (modules.trained + modules.frozen)
    kinds = f"{modules.number} modules in {len(modules.by_layer) - len(modules.bare)} of {len(modules.by_layer)} layers"
    loose = modules.tied and bool(modules.embeddings) and not recipe.lora.get("ensure_weight_tying")
    unknown = checks.unknown_tokens(modules.vocabulary)(rendering.checked)
    own = "" if all(row.messages[0].role == "system" for row in rows) else renderer.own_system()
    return [
        about_rows(
            "vocabulary",
            10,
            f"the base has an embedding for each token of the rows ({modules.vocabulary})",
            unknown,
            len(rendering.checked),
            "the tokenizer is not this base's own; pick the base with its own tokenizer",
        ),
        seen(
            "system message",
            (8,),
            not own,
            "what stands before the model stands in the row",
            f"where a row has no system message the template writes one: {own[:80]!r}" if own else "none is inserted",
            "state the system message in the rows (`curate.sources`); other runtimes may leave the template's out",
            grave=False,
        ),
        seen(
            "target modules",
            (12,),
            not modules.bare or bool(asked),
            "each layer is adapted",
            f"{kinds}, {share:.2%} of all weights"
            + (f"; layers without any: {_numbers(modules.bare)}" if modules.bare else ""),
            "widen lora.target_modules (`all-linear` takes all), or say lora.layers_to_transform if you mean it",
        ),
        seen(
            "even layers",
            (12,),
            len(modules.kinds) <= 1 and not modules.bare,
            "the same modules are adapted in each layer",
            "the same in each" if len(modules.kinds) <= 1 and not modules.bare else "they differ from layer to layer",
            "sound for a model whose layers differ, else name the modules without their layer",
            grave=False,
        ),
        seen(
            "tied embeddings",
            (11,),
            not loose,
            "no adapted embedding is tied to another",
            f"{', '.join(modules.embeddings) or 'no embedding'} adapted, embedding and head are "
            f"{'one matrix' if modules.tied else 'two'}",
            "leave them out of lora.target_modules and lora.modules_to_save, or set lora.ensure_weight_tying: true",
        ),
    ]


def about_rows(name: str, fault: int | None, says: str, failed: list[str], of: int, remedy: str) -> Finding:
    """A finding about rows: FAIL where some fail."""
    evidence = f"{_count(failed)} of {of}: {_some(failed)}" if failed else f"all {of} rows"
    faults = () if fault is None else (fault,)
    return Finding(name, "FAIL" if failed else "PASS", says, failed, faults, evidence, remedy)


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
    return [about_rows(name, None, says, failed, len(chosen), FIXES) for name, says, failed in table]


def check(loaded: LoadedRecipe, dataset: Dataset, base: Base, out: Path, beginning: Beginning | None = None) -> None:
    """Render all rows, check them and write `check.json`, whatever it finds; `refuse_failed` then stops the run.

    The token ids of train and dev are written to `tokens/`, for training.
    """
    train = dataset.rows("train")
    held_out = {split: dataset.rows(split) for split in HELD_OUT}
    renderer = Renderer(base.tokenizer(), base.end_ids())
    schema = loaded.schema()
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
    findings += examine_model(recipe, base, renderer, trained, train)
    worse = {
        split: render_each([other for row in rows for turn in row.turns() if (other := turn.with_rejected())], renderer)
        for split, rows in (("train", train), ("dev", held_out["dev"]))
    }
    if beginning is not None:
        findings += examine_rejected(trained, worse["train"], renderer, recipe.data.max_tokens)
        known = checks.leaking(beginning.rows(), held_rows, near)
        says = f"no held-out row, or one near it, stands in what {beginning.run.name} was trained on"
        findings.append(about_rows("begun from", 22, says, known, len(held_rows), FIXES))
    elif both := [row.id for row in train if row.rejected is not None]:
        says = "what rows hold is learned from"
        told = f"{_count(both)} hold a rejected answer, which kind: sft does not read"
        findings.append(Finding("rejected", "WARN", says, both, (), told, "`trainer.kind: dpo` learns from them"))
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
                f"{dataset.directory}: check `{f['name']}` fails: {f['evidence']}; wanted: {f['says']}; {f['remedy']}"
                for f in failed
            ],
            hint=f"all row ids are in {path}" if any(f["rows"] for f in failed) else None,
        )


def _count(ids: Sequence[str]) -> str:
    return f"{len(ids)} row{'' if len(ids) == 1 else 's'}"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more


def _numbers(layers: Sequence[int]) -> str:
    return _some([str(layer) for layer in layers])

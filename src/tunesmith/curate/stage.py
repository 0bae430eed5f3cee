"""Stage 1: sources become rows, rows become splits that are written once. Reads top to bottom as a row travels.

Read and clean (in chunks, by the engine) → one of each → groups → splits → what training rows may not hold → selection
→ files. Everything is written beside the dataset and moved into place at the end: a refused curation leaves nothing.
"""

import runpy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tunesmith import bases
from tunesmith.curate import dataset, facts, report
from tunesmith.curate.chunks import Chunk, chunks, chunks_of_rows
from tunesmith.curate.duplicates import Duplicates, find, same_group
from tunesmith.curate.engine import Engine, parts
from tunesmith.curate.manifest import manifest_of
from tunesmith.curate.pile import Numbers, Pile
from tunesmith.curate.select import choose, in_turns
from tunesmith.curate.sources import Sieve, read_sources
from tunesmith.curate.split import NOWHERE, Cut, Known, cut, refuse_another_cut
from tunesmith.curate.work import Job, needs_tokenizer
from tunesmith.errors import TunesmithError, UserError
from tunesmith.files import refuse_links, write_atomic
from tunesmith.leaks import Text, find_leaks, trained_texts
from tunesmith.probes import probe_texts
from tunesmith.progress import say
from tunesmith.prompt import Renderer
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import SPLITS, Dataset, Row


@dataclass(frozen=True)
class Options:
    """How to curate; nothing here decides what comes out, but for `recut`."""

    engine: Engine = "local"
    workers: int | None = None
    recut: bool = False
    """Cut anew where a dataset lies already; its rows may move between splits."""
    curve: bool = False
    """Write nested subsets of the training rows as well."""


def curate(loaded: LoadedRecipe, script: Path | None, options: Options) -> None:
    """Make the dataset of a recipe.

    Raises:
        UserError: a source, a row or the policy is wrong; every problem is named, and nothing is written.
        EnvironmentFault: a source or the base cannot be fetched.
    """
    directory = loaded.data_directory
    scratch = directory / ".curate"
    with _alone(directory):
        refuse_links(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        (out := scratch / "out").mkdir(parents=True)
        try:
            manifest = _curate(loaded, script, options, scratch, out)
            dataset.publish_dataset(out, directory, manifest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    say(f"{directory}: " + ", ".join(f"{s} {manifest['files'][f'{s}.jsonl']['rows']}" for s in SPLITS) + " rows")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep a second curation of the same dataset out while one is at work."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory}: another curation is at work here; wait until it is done") from None
    try:
        yield
    finally:
        lock.release()


def _curate(loaded: LoadedRecipe, script: Path | None, options: Options, scratch: Path, out: Path) -> dict[str, Any]:
    section, directory = loaded.recipe.curate, loaded.data_directory
    known = Known({}, {}) if options.recut else _known(Dataset(directory), loaded)
    pins = read_sources(directory)
    program = runpy.run_path(str(script)) if script and not section.sources else {}
    sieve = Sieve()
    pile = Pile(scratch / "pile")
    pieces = _chunks(loaded, script, program, pins, sieve, scratch)
    licences = {source.name: source.licence for source in section.sources} | program.get("LICENCES", {})
    licences |= {name: pin.licence for name, pin in pins.items()}
    pile.fill(parts(pieces, _job(loaded, licences), engine=options.engine, workers=options.workers))
    for reason, count in sieve.dropped.items():
        pile.dropped["script", reason] += count
        pile.dropped_shown["script", reason] = []
    _refuse(pile, directory)
    duplicates = _one_of_each(pile, loaded, known)
    same = same_group(pile, duplicates)
    split = cut(pile.columns, duplicates.kept, same, duplicates.near, known, section.split, str(directory))
    pile.drop_rows(split.tied.tolist(), "split", "would tie rows of two splits into one group")
    pile.drop_rows(split.late.tolist(), "split", "is later than the split that its group lies in")
    _take_out_probes(pile, split, loaded)
    order = _select(pile, split, loaded)
    files = dataset.write_splits(pile, split, out)
    if options.curve:
        files |= dataset.write_subsets(pile, order, split, out)
    shutil.copyfile(pile.dropped_path, out / "dropped.jsonl")
    manifest = manifest_of(loaded, script, pile, files, licences, out)
    about = str(program.get("ABOUT", f"# {loaded.recipe.name}\n\n{loaded.recipe.description}"))
    dataset.write_card(out, about, manifest, loaded.recipe.name, pins)
    found = facts.gather(loaded, pile, duplicates, split, out, manifest, _renderer(loaded))
    write_atomic(out / "report.html", report.page(found))
    return manifest


def _known(before: Dataset, loaded: LoadedRecipe) -> Known:
    """Where the rows of the dataset before lie.

    Raises:
        UserError: it was cut by another policy, or its manifest cannot be read.
    """
    manifest, intact = before.intact()
    lying = [split for split in SPLITS if (before.directory / f"{split}.jsonl").exists()]
    if not manifest:
        if lying:
            raise UserError(
                f"{before.manifest_path}: missing or cut off, and {', '.join(lying)} lie beside it; "
                "where their rows belong is not known",
                hint="bring it back, or cut anew with `--recut`: scores on the old gate then say nothing about the new",
            )
        return Known({}, {})
    refuse_another_cut(before, loaded.recipe.curate.split, manifest)
    if damaged := [split for split in SPLITS if split not in intact]:
        say(f"  {before.directory}: {', '.join(damaged)} differ from the manifest; where their rows lay is not known")
    return Known.of(before, intact)


# ---------------------------------------------------------------------- read and clean


def _job(loaded: LoadedRecipe, licences: dict[str, str]) -> Job:
    recipe = loaded.recipe
    if needs_tokenizer(recipe.curate):
        # Here and not first in a worker: a download shows its bar, a failure is one message.
        bases.resolve(recipe.base, loaded.root)
    return Job(recipe.curate, loaded.schema(), recipe.data.max_tokens, recipe.base, loaded.root.absolute(), licences)


def _chunks(
    loaded: LoadedRecipe, script: Path | None, program: dict[str, Any], pins: Any, sieve: Sieve, scratch: Path
) -> Iterator[Chunk]:
    """The chunks of all sources: the recipe's, or what the task's own script makes."""
    for index, source in enumerate(loaded.recipe.curate.sources):
        form = ""
        for chunk in chunks(index, source, loaded.root, scratch):
            if source.format == "auto" and f"{chunk.label}: {chunk.form}" != form:
                form = f"{chunk.label}: {chunk.form}"
                say(f"  {chunk.label} is read as {chunk.form or 'no known form'}")
            yield chunk
    if script and program:
        yield from chunks_of_rows(0, script.name, program["rows"](pins, sieve), scratch)


def _refuse(pile: Pile, directory: Path) -> None:
    """Stop where lines or rows are wrong.

    Raises:
        UserError: there are problems, ids that stand twice, or no rows.
    """
    problems = pile.problems + _ids_twice(pile)
    if problems:
        hint = "nothing was written; mend the lines named, or tell the source `malformed: drop`"
        raise UserError(problems, hint=hint)
    if not len(pile):
        left_out = [f"{step}: {reason}: {count} rows" for (step, reason), count in pile.dropped.items()]
        hint = f"the steps leave out: {'; '.join(left_out) or 'nothing'}"
        raise UserError(f"{directory}: no rows are left", hint=hint)


def _ids_twice(pile: Pile) -> list[str]:
    """Rows that share an id and say different things."""
    ids, exact = pile.columns["id"], pile.columns["exact"]
    order = np.lexsort([exact, ids])
    twice = order[1:][(ids[order[1:]] == ids[order[:-1]]) & (exact[order[1:]] != exact[order[:-1]])]
    return [
        f"{pile.place(index)}: id {value['id']!r} stands on another row already; ids are unique"
        for index, value in zip(twice.tolist(), pile.values(twice.tolist()), strict=True)
    ]


# ---------------------------------------------------------------------- among rows


def _one_of_each(pile: Pile, loaded: LoadedRecipe, known: Known) -> Duplicates:
    section = loaded.recipe.curate
    duplicates = find(pile, section, known.holds(pile.columns))
    if pile.crowded:
        say(f"  {pile.crowded} rows are so much alike that not every pair of them was compared; each with its likest")
    for reason in dict.fromkeys(reason for _, _, reason in duplicates.dropped):
        rows = [(row, twin) for row, twin, why in duplicates.dropped if why == reason]
        pile.drop_rows((row for row, _ in rows), "duplicates", reason, (twin for _, twin in rows))
    return duplicates


def _take_out_probes(pile: Pile, split: Cut, loaded: LoadedRecipe) -> None:
    """Leave out training rows that hold text by which the trained model will be probed."""
    probes = probe_texts(loaded.recipe.curate.probes, loaded.root)
    texts = [Text(f"{name}#{i}", text) for name, found in probes.items() for i, text in enumerate(found, start=1)]
    rows = np.flatnonzero(split.splits == SPLITS.index("train")).tolist()
    trained = ((str(row), Row.model_validate(value)) for row, value in zip(rows, pile.values(rows), strict=True))
    leaks = find_leaks(trained_texts(trained), texts, loaded.recipe.curate.duplicates.near)
    held = sorted({int(leak.left) for leak in leaks})
    split.splits[held] = NOWHERE
    pile.drop_rows(held, "probes", "holds text of a probe set")
    if len(held) == len(rows):
        raise UserError(f"{loaded.data_directory}: every training row holds text of a probe set; none is left")


def _select(pile: Pile, split: Cut, loaded: LoadedRecipe) -> Numbers:
    """Keep the training rows that the recipe selects; returns all that stay, in an order whose prefixes are subsets."""
    rows = np.flatnonzero(split.splits == SPLITS.index("train"))
    rows = rows[np.argsort(pile.columns["exact"][rows], kind="stable")]
    select = loaded.recipe.curate.select
    strata = pile.columns["stratum"][rows]
    if select is None:
        return np.asarray(rows[in_turns(strata, pile.columns["id"][rows])])
    if unknown := set(select.quotas) - set(pile.strata.values()):
        raise UserError(f"curate.select.quotas: no row has {', '.join(sorted(unknown))} at split.stratify")
    from tunesmith.embedder import embed

    losses = None
    if select.leave_easiest or select.leave_hardest:
        from tunesmith.curate.difficulty import difficulty

        values = [Row.model_validate(value) for value in pile.values(rows.tolist())]
        losses = difficulty(values, loaded.recipe.base, loaded.root)
    vectors = embed(pile.forms(rows.tolist()))
    order = rows[choose(vectors, [pile.strata[key] for key in strata.tolist()], losses, select)]
    left_out = np.setdiff1d(rows, order)
    split.splits[left_out] = NOWHERE
    pile.drop_rows(left_out.tolist(), "select", "not chosen: others cover it, or it is among the easiest or hardest")
    return np.asarray(order)


# ---------------------------------------------------------------------- told


def _renderer(loaded: LoadedRecipe) -> Renderer | None:
    """The base's tokenizer for the report, or none where the base cannot be had; the rows do not depend on it."""
    try:
        base = bases.resolve(loaded.recipe.base, loaded.root)
    except TunesmithError as error:
        say(f"  the report shows no tokens: {error.problems[0]}")
        return None
    return Renderer(base.tokenizer(), base.end_ids())

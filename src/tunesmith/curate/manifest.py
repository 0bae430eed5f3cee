"""The manifest of a dataset: what made it, from what, what was left out, and the digests of its files."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.curate.pile import Pile
from tunesmith.curate.work import TRANSFORM, needs_tokenizer
from tunesmith.curation import CurateSection
from tunesmith.files import sha256_file, sha256_json
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import SPLITS, Row, parse, system_messages

SCHEMA = 2
MADE = {f"{split}.jsonl" for split in SPLITS} | {"dropped.jsonl", "CARD.md", "report.html"}
MADE |= {"manifest.json", "manifest.next.json"}
"""What curation leaves in a task's directory."""


def made_by(loaded: LoadedRecipe, script: Path | None) -> str:
    """The digest of all that makes a dataset: the recipe's say, its schema, the script, and every source."""
    curate = loaded.recipe.curate
    files = [*filter(None, [loaded.schema_path]), *_source_files(loaded)]
    if script is not None:
        # What lies in the task's directory and was not made by curation is what the script may read.
        directory = loaded.data_directory
        beside = sorted(path for path in directory.glob("*") if path.is_file() and path.name not in MADE)
        files += [script, *beside]
    return sha256_json(
        {
            "transform": TRANSFORM,
            "curate": curate.model_dump(mode="json"),
            "tokens": [loaded.recipe.base, loaded.recipe.data.max_tokens] if _reads_the_base(curate) else None,
            # Their names too: a document's is the id of its row.
            "files": [[path.name, sha256_file(path)] for path in files],
        }
    )


def _reads_the_base(curate: CurateSection) -> bool:
    select = curate.select
    return needs_tokenizer(curate) or bool(select and (select.leave_easiest or select.leave_hardest))


def _source_files(loaded: LoadedRecipe) -> Iterator[Path]:
    """The local files that a recipe's sources and probe sets name, as far as they are there."""
    curate = loaded.recipe.curate
    for pattern in [source.path for source in curate.sources if not source.hub] + curate.probes:
        place = loaded.root / pattern
        found = place.rglob("*") if place.is_dir() else [place] if place.exists() else loaded.root.glob(pattern)
        yield from sorted(path for path in found if path.is_file())


def read_split(directory: Path, split: str) -> Iterator[Row]:
    """The rows of a split as they were just written, one at a time."""
    with (directory / f"{split}.jsonl").open("rb") as stream:
        for line in stream:
            yield Row.model_validate(parse(line))


def manifest_of(
    loaded: LoadedRecipe,
    script: Path | None,
    pile: Pile,
    files: Mapping[str, Any],
    licences: Mapping[str, str],
    out: Path,
) -> dict[str, Any]:
    """The manifest of the splits that were written to `out`."""
    section = loaded.recipe.curate
    dropped: dict[str, dict[str, int]] = {}
    for (step, reason), count in sorted(pile.dropped.items()):
        dropped.setdefault(step, {})[reason] = count
    order = ["script", "read", *(step.name for step in section.steps), "duplicates", "split", "probes", "select"]
    systems: set[str] = set()
    kept: Counter[str] = Counter()
    for split in SPLITS:
        for row in read_split(out, split):
            systems.update(system_messages([row]))
            kept[str((row.meta or {})["source"])] += 1
    places = {
        source.name: f"`{source.path}`" + (f" of `{source.hub}`" if source.hub else "") for source in section.sources
    }
    return {
        "schema": SCHEMA,
        "made_by": made_by(loaded, script),
        "transform": TRANSFORM,
        "recipe": loaded.recipe.name,
        "steps": [step.name if step.option is None else f"{step.name}: {step.option}" for step in section.steps],
        "near": section.duplicates.near,
        "split": section.split.model_dump(mode="json"),
        "files": dict(files),
        "dropped": {step: dropped[step] for step in order if step in dropped},
        "systems": sorted(systems),
        "sources": {
            name: {
                "licence": licences.get(name, "not stated"),
                "where": places.get(name, ""),
                "lines": pile.read[name],
                "rows": pile.made[name],
                "kept": kept[name],
            }
            for name in sorted(pile.read)
        },
    }

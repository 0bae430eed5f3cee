"""What is done to one chunk of lines, whatever process or machine does it: read, clean, and take the keys.

A pure function from a chunk and a job to a part, so that the same chunks give the same parts, byte for byte, in one
process, in several, or on a cluster.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import bases
from tunesmith.curate import formats, privacy
from tunesmith.curate.chunks import Chunk
from tunesmith.curate.clean import NEED_THE_TOKENIZER, Context, all_texts, clean
from tunesmith.curate.formats import Malformed
from tunesmith.curation import CurateSection, SourceSection
from tunesmith.fields import date_of, value_of
from tunesmith.near import SLOTS, Hashes, Marks, band_keys, marks_of, sign
from tunesmith.prompt import Renderer
from tunesmith.rows import Message, Row, arguments_of, function_of
from tunesmith.text import duplicate_key, same_key, shingle_form

TRANSFORM = 2
"""Raised whenever the same source and recipe would give other rows; stands in every row."""

COLUMNS = (
    "id",
    "whole",
    "exact",
    "asked",
    "answer",
    "worse",
    "prompt",
    "group",
    "point",
    "stratum",
    "day",
    "line",
    "file",
)
"""What is kept of each row beside its text, 8 bytes each: hashes, and where it stood."""

NO_DAY = np.iinfo(np.int64).min
SHOWN = 3
"""Changes that are shown for each step of a chunk."""
EXCERPT = 160


@dataclass(frozen=True)
class Job:
    """What the work on a chunk needs to know, as plain data."""

    curate: CurateSection
    schema: dict[str, Any] | None
    max_tokens: int
    base: str
    root: Path
    licences: dict[str, str]
    """Of each source, by name; a script's rows name their source in `meta.source`."""


@dataclass(frozen=True)
class Dropped:
    """A row that is left out, or a line that is none."""

    id: str
    place: str
    step: str
    reason: str
    detail: str = ""


@dataclass
class Part:
    """What became of a chunk."""

    rows: bytes = b""
    """Its rows as lines, one after the other; many small things would be slow to send."""
    forms: bytes = b""
    """The texts by which they are compared, likewise."""
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Bytes of each of the `rows` and the `forms`."""
    columns: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    bands: Hashes | None = None
    """Keys of their signatures, shape (rows, bands), and a byte of each slot; none where nothing near is looked for."""
    marks: Marks = field(default_factory=lambda: np.zeros((0, SLOTS), dtype=np.uint8))
    strata: dict[int, str] = field(default_factory=dict)
    """Strata by their hash."""
    labels: dict[int, str] = field(default_factory=dict)
    """Names of files by their hash."""
    read: Counter[str] = field(default_factory=Counter)
    """Lines read, by source."""
    made: Counter[str] = field(default_factory=Counter)
    """Rows made of them, by source."""
    changed: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(step, row id, before, after) of some changes."""
    dropped: list[Dropped] = field(default_factory=list)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def hold(self, rows: Sequence[bytes], forms: Sequence[str]) -> None:
        """Take rows and texts in."""
        texts = [form.encode() for form in forms]
        self.rows, self.forms = b"".join(rows), b"".join(texts)
        self.lengths = {
            "rows": np.array([len(row) for row in rows], dtype=np.int64),
            "forms": np.array([len(text) for text in texts], dtype=np.int64),
        }


def hash64(text: str) -> int:
    """A 64-bit hash as a signed number; two of a million texts share one with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def split_point(group: str, seed: int) -> int:
    """A group's place between 0 and 2^63, by its name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{group}".encode()).digest()[:8]) >> 1


def work(chunk: Chunk, job: Job) -> Part:
    """Read a chunk's lines, turn them into rows, clean these, and take their keys."""
    part = Part()
    source = job.curate.sources[chunk.source] if job.curate.sources else None
    context = Context(job.curate, job.schema, job.max_tokens, _renderer(job))
    kept: dict[str, list[int]] = {name: [] for name in COLUMNS}
    lines: list[bytes] = []
    forms: list[str] = []
    for place, value, problem in chunk.lines():
        name = source.name if source else _script_source(value)
        part.read[name] += 1
        try:
            if problem is not None:
                raise Malformed(problem)
            rows = _rows(value, chunk, source, job.curate)
        except Malformed as error:
            if source is not None and source.malformed == "drop":
                part.dropped.append(Dropped("", place, "read", "not a row", "; ".join(error.problems)))
            else:
                part.problems += [f"{place}: {problem}" for problem in error.problems]
            continue
        part.made[name] += len(rows)
        for row in rows:
            try:
                stays = _one(row, place, name, part, context, job, kept)
                if stays is not None:
                    lines.append(json.dumps(stays.as_dict(), ensure_ascii=False, allow_nan=False).encode() + b"\n")
                    forms.append(shingle_form(stays.prompt_text))
            except Malformed as error:
                part.problems += [f"{place}: row {row.id!r} {problem}" for problem in error.problems]
    part.findings = context.findings
    kept["file"] = [hash64(chunk.label)] * len(lines)
    part.labels = {hash64(chunk.label): chunk.label}
    part.columns = {name: np.array(values, dtype=np.int64) for name, values in kept.items()}
    part.hold(lines, forms)
    if forms and job.curate.duplicates.near is not None:
        signatures = sign(forms)
        part.bands, part.marks = band_keys(signatures, job.curate.duplicates.near), marks_of(signatures)
    return part


def _rows(value: Any, chunk: Chunk, source: SourceSection | None, curate: CurateSection) -> list[Row]:
    columns = source.columns if source else {}
    form = chunk.form or formats.detect(value, columns)
    if source is not None and source.format == "auto" and (found := formats.detect(value, columns)) != form:
        raise Malformed(f"is {found}; the file began with {form}: keep forms apart, or state the source's `format`")
    return formats.read(value, form, columns=columns, system=source.system if source else None, turns=curate.turns)


def _script_source(value: Any) -> str:
    return str((value.get("meta") or {}).get("source", "script")) if isinstance(value, dict) else "script"


def _one(
    row: Row, place: str, source: str, part: Part, context: Context, job: Job, kept: dict[str, list[int]]
) -> Row | None:
    """Clean one row and take its keys; the row as it stays, if it does."""
    cleaned = clean(row, context)
    for step, before, after in cleaned.changes:
        part.changed[step] += 1
        if sum(shown[0] == step for shown in part.shown) < SHOWN and not _private(row, context):
            part.shown.append((step, row.id, *_difference(before, after)))
    if (drop := cleaned.drop) is not None:
        detail = drop.detail if drop.detail and not _private(row, context) else ""
        part.dropped.append(Dropped(row.id, place, cleaned.step, drop.reason, detail))
        return None
    assert cleaned.row is not None
    row, split = cleaned.row, job.curate.split
    if split.by is not None:
        if (value := value_of(row, split.by)) is None:
            raise Malformed(f"has no {split.by}, by which rows are grouped")
        row = row.model_copy(update={"group": f"{split.by}={value}" if split.by != "group" else value})
    day = date_of(row, split.time.field) if split.time else None
    if split.time and day is None:
        raise Malformed(f"has no date at {split.time.field}, by which rows are cut")
    stratum = (value_of(row, split.stratify) or "") if split.stratify else ""
    provenance = {"source": source, "licence": job.licences.get(source, ""), "transform": TRANSFORM}
    meta = row.meta or {}
    # What a data set calls by these names itself is kept beside.
    own = {key: meta[key] for key in provenance if key in meta and meta[key] != provenance[key]}
    own |= {"original": meta["original"]} if own and "original" in meta else {}
    row = row.model_copy(update={"meta": {**meta, **provenance, **({"original": own} if own else {})}})
    part.strata[hash64(stratum)] = stratum
    for name, number in keys(row).items():
        kept[name].append(number)
    kept["point"].append(split_point(row.group, split.seed))
    kept["stratum"].append(hash64(stratum))
    kept["day"].append(day.toordinal() if day else NO_DAY)
    kept["line"].append(int(place.rpartition(":")[2]))
    return row


def _private(row: Row, context: Context) -> bool:
    """Whether a row holds what the step `privacy` looks for: then its texts are not shown, before or after any step."""
    looks = any(step.name == "privacy" for step in context.curate.steps)
    return looks and any(privacy.find(text) for text in all_texts(row))


def keys(row: Row) -> dict[str, int]:
    """Hashes by which rows are told to be the same: as they are, but for form, by what is asked, by id and group."""
    asked = [m.as_dict() for m in row.messages]
    # Of a row without a rejected answer the keys are what they were before there were any.
    worse = [] if row.rejected is None else [row.rejected.as_dict()]
    exact = _json([asked, row.completion.as_dict(), row.tools, row.trained, *worse])
    said = [[m.role, same_key(m.content or ""), _calls(m)] for m in row.messages]
    return {
        "id": hash64(row.id),
        "whole": hash64(_json(row.as_dict())),
        "exact": hash64(exact),
        "asked": hash64(_json([said, row.tools])),
        "answer": _answer_key(row.completion, row),
        "worse": 0 if row.rejected is None else _answer_key(row.rejected, row),
        "prompt": hash64(prompt_key(row.prompt_text)),
        "group": hash64(row.group),
    }


def _answer_key(answer: Message, row: Row) -> int:
    return hash64(_json([same_key(answer.content or ""), _calls(answer), row.trained]))


def _calls(message: Message) -> list[Any]:
    """The tool calls of a message, without their ids, and with arguments as what they say."""
    return [[call.get("name"), arguments_of(call)] for call in map(function_of, message.tool_calls or ())]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def prompt_key(text: str) -> str:
    """The normal form by which prompts are the same; a text without letters and digits stands for itself."""
    return duplicate_key(text) or text


def _difference(before: Row, after: Row) -> tuple[str, str]:
    """The first text of a row that a step changed, around the place where it did, before and after."""
    from tunesmith.curate.clean import texts

    for old, new in zip(texts(before), texts(after), strict=True):
        if old != new:
            at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            begin = max(0, at - EXCERPT // 4)
            return old[begin : begin + EXCERPT], new[begin : begin + EXCERPT]
    return "", ""


def needs_tokenizer(curate: CurateSection) -> bool:
    """Whether a step looks at tokens."""
    return bool(NEED_THE_TOKENIZER & {step.name for step in curate.steps})


def _renderer(job: Job) -> Renderer | None:
    return _loaded(job.base, job.root) if needs_tokenizer(job.curate) else None


@cache
def _loaded(base: str, root: Path) -> Renderer:
    found = bases.resolve(base, root)
    return Renderer(found.tokenizer(), found.end_ids())

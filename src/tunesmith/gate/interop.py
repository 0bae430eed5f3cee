"""Scored rows that another harness left, as arms: lm-eval's `samples_*.jsonl`, Inspect's `.eval` logs, and our own.

Only scores of single rows can be compared: each row gets an id that says which question it answers, by what the harness
itself hashed or named, so that two logs pair row by row or are told apart.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backports.zstd import zipfile

from tunesmith.errors import UserError
from tunesmith.gate.evidence import Arm

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's grades: correct, partly, incorrect, no answer."""
LARGEST = 2**28
"""Bytes of one member of a log that are read at most: a packed file can grow without end."""


def read_arm(path: Path, *, group: str | None = None, only: str | None = None) -> Arm:
    """Read a log as an arm; its name is the file's.

    `group` is a key of a row's document (lm-eval) or metadata (Inspect), with dots between levels, that names what must
    count as one; without it each question is its own. `only` picks one of lm-eval's filters.

    Raises:
        UserError: the file is no such log, holds a row without a score, or a row twice; all problems at once.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = list(_reader(path)(path, group, only))
    except (UnicodeDecodeError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    problems = [f"{path}: {row['id']}: {row['problem']}" for row in rows if "problem" in row]
    twice = len(rows) - len({row["id"] for row in rows})
    if twice:
        problems.append(f"{path}: {twice} rows answer a question that another row answers too")
    if not rows:
        problems.append(f"{path}: holds no rows")
    if problems:
        raise UserError(problems)
    return Arm(path.name, {}, rows)


def metrics_of(arm: Arm) -> list[str]:
    """The metrics that every row of an arm has."""
    first, *others = (row["scores"].keys() for row in arm.rows)
    return [name for name in first if all(name in other for other in others)]


Reader = Callable[[Path, str | None, str | None], Iterator[dict[str, Any]]]


def _reader(path: Path) -> Reader:
    if path.suffix == ".eval":
        return _inspect
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next(lines, "{}"))
        if isinstance(first, dict):
            if "doc_id" in first:
                return _lm_eval
            if {"prediction", "scores", "group"} <= first.keys():
                return _ours
    raise UserError(
        f"{path}: no log that is known: lm-eval's samples_*.jsonl (--log_samples), Inspect's .eval, or an arms/*.jsonl"
    )


def _ours(path: Path, group: str | None, only: str | None) -> Iterator[dict[str, Any]]:
    for _, line in _lines(path):
        yield {"id": line["id"], "group": line["group"], "scores": line["scores"]}


def _lm_eval(path: Path, group: str | None, only: str | None) -> Iterator[dict[str, Any]]:
    """Its lines: one for each question and filter; the metrics that a line names lie in it by name."""
    filters = {line.get("filter", "none") for _, line in _lines(path)}
    if only is None and len(filters) > 1:
        raise UserError(
            f"{path}: holds answers of several filters ({', '.join(sorted(filters))}); name one by --filter"
        )
    if only is not None and only not in filters:
        raise UserError(f"{path}: no filter {only!r}; there are: {', '.join(sorted(filters))}")
    for number, line in _lines(path):
        if only is not None and line.get("filter", "none") != only:
            continue
        about = f"{line.get('doc_id')}-{str(line.get('doc_hash', ''))[:12]}-{str(line.get('target_hash', ''))[:12]}"
        scores = {name: line[name] for name in line.get("metrics", []) if name in line}
        found = {name: float(value) for name, value in scores.items() if isinstance(value, bool | int | float)}
        row = {"id": about, "group": _group(line.get("doc", {}), group, about), "scores": found}
        if not found:
            row["problem"] = f"line {number}: holds no score of this one row under `metrics`"
        if row["group"] is None:
            row["problem"] = f"line {number}: its document has no {group!r}"
        yield row


def _inspect(path: Path, group: str | None, only: str | None) -> Iterator[dict[str, Any]]:
    """Its log: a zip file with one JSON file a question and epoch; epochs of a question count as one."""
    with zipfile.ZipFile(path) as log:
        header = json.loads(log.read("header.json")) if "header.json" in log.namelist() else {}
        if header.get("status") != "success":
            raise UserError(f"{path}: this evaluation did not end ({header.get('status', 'no header')}); run it again")
        for member in log.infolist():
            if not member.filename.startswith("samples/"):
                continue
            if member.file_size > LARGEST:
                raise UserError(f"{path}: {member.filename}: {member.file_size} bytes unpacked; more than is read")
            held = json.loads(log.read(member))
            about = str(held["id"])
            row: dict[str, Any] = {
                "id": f"{about}, epoch {held['epoch']}",
                "group": _group(held.get("metadata") or {}, group, about),
                "scores": dict(_values(held.get("scores") or {})),
            }
            if held.get("error"):
                row["problem"] = "failed in the harness, and has no score"
            elif not row["scores"]:
                row["problem"] = "has no score that is a number or a grade"
            elif row["group"] is None:
                row["problem"] = f"its metadata have no {group!r}"
            yield row


def _values(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for scorer, score in scores.items():
        value = score.get("value")
        for name, one in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(one, str) and one in LETTERS:
                one = LETTERS[one]
            if isinstance(one, bool | int | float):
                yield f"{scorer}.{name}" if name else scorer, float(one)


def _group(held: Any, dotted: str | None, own: str) -> str | None:
    """What a row belongs to; none where it does not say."""
    for key in dotted.split(".") if dotted else []:
        if not isinstance(held, dict) or key not in held:
            return None
        held = held[key]
    return str(held) if dotted else own


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            if text.strip():
                value = json.loads(text)
                if not isinstance(value, dict):
                    raise UserError(f"{path}: line {number}: no JSON object")
                yield number, value

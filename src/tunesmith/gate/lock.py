"""gate.lock: what a run will be judged by, written before its adapter is trained and never after.

The lock is bound twice, by digest: training writes it into the adapter's manifest, each look into the ledger. So a lock
that is younger than its adapter, or was changed after a look, is known by its content; no clock and no file time is
trusted. Its digest leaves out the time it was written at, so that equal runs have equal locks; the ledger holds the
whole lock, that time included.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tunesmith.files import sha256_json, write_atomic
from tunesmith.gate.ledger import Ledger
from tunesmith.gate.terms import Term, fact
from tunesmith.recipe import Recipe
from tunesmith.yaml_source import leaves

SCHEMA = 1
NAME = "gate.lock"
HEAD = "# What this run is judged by, fixed before its adapter was trained. A change makes its verdict INVALID.\n"
OUTSIDE_DIGEST = ("written_at", "digest")
PLANNED = ("schema", "plan", *OUTSIDE_DIGEST)
"""Keys that say how the lock came about: they cannot be compared with the run as it is now."""
JUDGED_BY = ("score", "gate", "guards")
"""Sections of a recipe that decide a verdict."""
DECODING = ("max_new_tokens", "end_ids", "pad_id", "decoding")


def stated(
    recipe: Recipe,
    selection: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    run: str,
    base: str,
    splits: Mapping[str, str],
    scorer: str,
    started_from: str | None,
) -> dict[str, Any]:
    """What decides a verdict, as it is now: `about` is an arm's statement; digests are sha256."""
    sections = recipe.as_dict()
    (incumbent,) = (way for way in selection["ways"] if way["arm"] == selection["incumbent"])
    return {
        "run": run,
        "primary": {"metric": recipe.score.primary, "delta": recipe.gate.min_gain, "alpha": recipe.gate.alpha},
        "incumbent": dict(incumbent),
        "started_from": started_from,
        **{name: sections[name] for name in JUDGED_BY if name in sections},
        "splits": dict(splits),
        "decoding": {key: about["settings"][key] for key in DECODING},
        "scorer": scorer,
        "base": base,
        "prompt": about["prompt_digest"],
    }


def write_lock(path: Path, now: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Write a lock from what is stated and planned; returns its content."""
    content: dict[str, Any] = {"schema": SCHEMA, **now, "plan": dict(plan)}
    content["written_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    content["digest"] = digest_of(content)
    stream = StringIO()
    yaml = YAML(pure=True)
    yaml.representer.ignore_aliases = lambda _: True
    yaml.width = 120
    yaml.dump(content, stream)
    write_atomic(path, HEAD + stream.getvalue())
    return content


def read_lock(path: Path) -> dict[str, Any] | None:
    """A lock's content as it stands; nothing where there is none, or what lies there is no lock."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        # An edited lock may hold what JSON does not know, such as a date.
        content = json.loads(json.dumps(content, default=str))
    except (OSError, YAMLError, ValueError, TypeError):
        return None
    if not isinstance(content, dict) or not {"digest", "written_at"} <= content.keys():
        return None
    return content | {"digest": str(content["digest"])}


def digest_of(content: Mapping[str, Any]) -> str:
    """The digest that a lock of this content states."""
    return sha256_json({key: value for key, value in content.items() if key not in OUTSIDE_DIGEST})


def differences(locked: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two locks differ, or a lock and what is stated now, key by key."""
    old, new = (
        {".".join(map(str, keys)): value for keys, value in leaves({k: v for k, v in one.items() if k not in PLANNED})}
        for one in (locked, now)
    )
    return [
        f"{key}: {old.get(key)!r} in the lock, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def terms(
    path: Path, now: Mapping[str, Any], manifest: Mapping[str, Any], ledger: Ledger, candidate: str, gate_digest: str
) -> list[Term]:
    """The two conditions about the lock; `manifest` is the adapter's, `now` what `stated` says of the run."""
    lock = read_lock(path)
    entered = [line for line in ledger.lines() if line.get("kind") == "lock" and line.get("run") == now["run"]]
    looks = [
        line for line in ledger.lines()
        if line.get("kind") == "look" and line.get("candidate") == candidate and line.get("gate_digest") == gate_digest
    ]  # fmt: skip
    before = list(_not_before_training(lock, manifest, entered, looks))
    changed = list(_changed(lock, now, manifest, entered, looks))
    return [
        fact(
            "locked_before_training",
            not before,
            f"{NAME} was written before the adapter was trained, and the adapter names it{_found(before)}",
        ),
        fact(
            "lock_unchanged",
            not changed,
            f"{NAME} says what it said at training and at every look, and the run is as it says{_found(changed)}",
        ),
    ]


def _not_before_training(
    lock: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    entered: list[dict[str, Any]],
    looks: list[dict[str, Any]],
) -> list[str]:
    if lock is None:
        return [f"there is no {NAME}; `tunesmith plan` writes it, then train"]
    bound = manifest.get("lock_digest")
    found = []
    if bound is None:
        found.append("the adapter was trained when there was no lock")
    elif bound != lock["digest"]:
        found.append(f"the adapter was trained under lock {bound[:12]}, this is {str(lock['digest'])[:12]}")
        old = next((line["lock"] for line in entered if line["lock"].get("digest") == bound), None)
        found += differences(old, lock) if old else []
    if any(text.startswith("lock:") for text in manifest.get("drift") or ()):
        found.append("training was begun under another lock, or none")
    this = [line["n"] for line in entered if line["lock"] == dict(lock)]
    if not this:
        found.append("the ledger holds no such lock")
    elif looks and looks[0]["n"] < this[0]:
        found.append(f"the first look, line {looks[0]['n']} of the ledger, is older than the lock, line {this[0]}")
    return found


def _changed(
    lock: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    manifest: Mapping[str, Any],
    entered: list[dict[str, Any]],
    looks: list[dict[str, Any]],
) -> list[str]:
    if lock is None:
        return [f"there is no {NAME}"]
    found = []
    if lock["digest"] != digest_of(lock):
        found.append("it was edited: its digest is not that of its content")
        bound = {manifest.get("lock_digest"), lock["digest"]}
        written = next((line["lock"] for line in entered if line["lock"].get("digest") in bound), None)
        found += differences(written, lock) if written else []
    elif not any(line["lock"] == dict(lock) for line in entered) and entered:
        found.append("it is not the one that was entered into the ledger")
    found += differences(lock, now)
    for line in looks:
        if line.get("lock") != lock["digest"]:
            under = f"lock {line['lock'][:12]}" if line.get("lock") else "no lock"
            found.append(f"this candidate was looked at under {under} (line {line['n']} of the ledger)")
            old = next((e["lock"] for e in entered if e["lock"].get("digest") == line.get("lock")), None)
            found += differences(old, lock) if old else []
    return list(dict.fromkeys(found))


def _found(problems: list[str]) -> str:
    return f" (found: {'; '.join(problems)})" if problems else ""

"""What was looked at, what was found and what to do: the one form in which every stage tells of silent faults.

There are thirty known ways in which a LoRA run goes wrong while its loss looks healthy (`FAULTS`). Each is held by a
stage: before step 0, at a load, or by looking at what a stage made. A stage writes its findings beside its outputs;
`table` lays those of all stages side by side, fault by fault.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tunesmith.errors import TunesmithError
from tunesmith.files import read_json, write_json

Status = Literal["PASS", "WARN", "FAIL"]
Stage = Literal["check", "train", "merge", "evaluate", "gate"]

FILES: dict[Stage, str] = {
    "check": "check.json",
    "train": "train-check.json",
    "merge": "merge-check.json",
    "evaluate": "evaluate-check.json",
    "gate": "verdict.json",
}
"""Where a run holds the findings of each stage."""


class Fault(NamedTuple):
    """One way to go wrong in silence, and the stage whose findings speak of it."""

    title: str
    stage: Stage


FAULTS: dict[int, Fault] = {
    1: Fault("the loss mask is wrong or empty", "check"),
    2: Fault("the end token carries no loss", "check"),
    3: Fault("the end token is masked because it pads too", "train"),
    4: Fault("two beginning-of-sequence tokens", "check"),
    5: Fault("rows are cut: the answer and its end go first", "check"),
    6: Fault("rows of one pass see each other", "train"),
    7: Fault("accumulation weighs short rows more than long ones", "train"),
    8: Fault("the prompt in training is not the one in serving", "check"),
    9: Fault("the template drifts between base and export", "merge"),
    10: Fault("a token has no trained embedding, or one that is not saved", "check"),
    11: Fault("an adapted embedding falls apart from the head it is tied to", "check"),
    12: Fault("target_modules miss a part of the model", "check"),
    13: Fault("the adapter is not loaded, random weights answer", "evaluate"),
    14: Fault("late updates are lost in the adapter's dtype", "train"),
    15: Fault("the merge goes into a quantised base", "merge"),
    16: Fault("the merge rounds the adapter away", "merge"),
    17: Fault("training has no effect", "train"),
    18: Fault("a resumed run is another run", "train"),
    19: Fault("the order of rows is not the seed's", "train"),
    20: Fault("padding changes the answers", "evaluate"),
    21: Fault("the base's own generation settings sample, penalise or cut", "evaluate"),
    22: Fault("held-out rows stand in train", "check"),
    23: Fault("noise is taken for progress", "gate"),
    24: Fault("a row's text spells control tokens", "check"),
    25: Fault("a held-out row is answered twice, or not at all", "gate"),
    26: Fault("a setting is read by nobody", "train"),
    27: Fault("arms are compared over different prompts or settings", "gate"),
    28: Fault("the adapter meets another base than it was trained on", "evaluate"),
    29: Fault("after an out-of-memory, training begins again with weights half trained", "train"),
    30: Fault("a loss scale skips steps unseen", "train"),
}
"""By number, as the table prints them."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one look."""

    name: str
    status: Status
    says: str
    """What is wanted."""
    rows: list[str] = field(default_factory=list)
    """Ids of the rows that fail."""
    faults: tuple[int, ...] = ()
    evidence: str = ""
    """What was found."""
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As a file of findings holds it."""
        return asdict(self) | {"faults": list(self.faults)}


def seen(
    name: str, faults: Sequence[int], holds: bool, says: str, evidence: str, remedy: str = "", *, grave: bool = True
) -> Finding:
    """A finding about the whole of something: PASS where it holds, else FAIL, or WARN where that is not `grave`."""
    status: Status = "PASS" if holds else "FAIL" if grave else "WARN"
    return Finding(name, status, says, faults=tuple(faults), evidence=evidence, remedy=remedy)


def write(directory: Path, stage: Stage, findings: Iterable[Finding]) -> None:
    """Write a stage's findings among its outputs."""
    write_json(directory / FILES[stage], {"checks": [finding.as_dict() for finding in findings]})


def refuse(findings: Iterable[Finding], stage: Stage, error: type[TunesmithError]) -> None:
    """Stop where a finding is a FAIL.

    Raises:
        TunesmithError: of the kind `error`, with every FAIL: what was found, what is wanted, what to do.
    """
    failed = [finding for finding in findings if finding.status == "FAIL"]
    if failed:
        raise error(
            [f"{stage}: `{one.name}` fails: {one.evidence}; wanted: {one.says}" for one in failed],
            hint="; ".join(dict.fromkeys(one.remedy for one in failed if one.remedy)) or None,
        )


def table(run: Path) -> list[dict[str, Any]]:
    """All thirty faults, each with what the run's stages have found of it so far; LATER where a stage is to come.

    `status` is the gravest of a fault's findings.
    """
    found = {stage: _findings(run, stage) for stage in FILES}
    lines = []
    for number, (title, stage) in FAULTS.items():
        ours = [one for findings in found.values() for one in findings if number in one["faults"]]
        gravest = max(ours, key=lambda one: ("PASS", "WARN", "FAIL").index(one["status"]), default=None)
        lines.append(
            {
                "number": number,
                "fault": title,
                "stage": stage,
                "status": gravest["status"] if gravest else "LATER",
                "evidence": "; ".join(one["evidence"] for one in ours) or f"`{stage}` looks at it",
                "remedy": gravest["remedy"] if gravest and gravest["status"] != "PASS" else "",
            }
        )
    return lines


# The gate's terms that speak of a fault.
TERMS: dict[str, int] = {
    "gain_adapter": 23,
    "same_rows": 25,
    "same_prompt": 27,
    "same_settings": 27,
    "baseline_replays": 27,
}


def _findings(run: Path, stage: Stage) -> list[dict[str, Any]]:
    path = run / FILES[stage]
    if not path.is_file():
        return []
    if stage != "gate":
        found: list[dict[str, Any]] = read_json(path)["checks"]
        return found
    return [
        {
            "faults": [TERMS[term["name"]]],
            "status": "PASS" if term["pass"] else "WARN" if term["undecided"] else "FAIL",
            "evidence": term["says"],
            "remedy": "",
        }
        for term in read_json(path)["terms"]
        if term["name"] in TERMS
    ]

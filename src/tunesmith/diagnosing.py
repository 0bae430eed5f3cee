"""Why rows fail, before anything is trained: of a recipe's dev rows, or of a user's own log.

Dev rows, and a log with a recipe beside it, are answered by the base under each intervention; a log alone is read. What
is tried is kept in the run and tried once, like any arm.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tunesmith.cost import Use
from tunesmith.diagnose.causes import Case, Cause, by_cells, by_labels
from tunesmith.diagnose.options import TUNED, Option, costs
from tunesmith.diagnose.stage import SCHEMA, diagnose
from tunesmith.errors import UserError
from tunesmith.evaluate.label_noise import suspicions
from tunesmith.evaluate.logged import Judged, fold, judge_log, kinds_of
from tunesmith.evaluate.ways import ZERO_SHOT
from tunesmith.files import read_json, read_jsonl, sha256_file, sha256_json, write_json
from tunesmith.line import Line, quiet_libraries
from tunesmith.logs import Log, LogRow, read_log
from tunesmith.prices import PriceList, read_prices
from tunesmith.progress import say
from tunesmith.rows import Message, Row
from tunesmith.runs import Run, versions
from tunesmith.sections import CostSection

FAILING, RIGHT = 200, 100
"""Most failing rows that interventions are tried on, and most right ones."""

Told = tuple[Path, dict[str, Any]]
"""Where diagnosis.json lies, and what it holds."""


def diagnosed(
    what: str,
    recipe: str | None,
    base: str | None,
    sets: Sequence[str],
    runs: Path,
    rows: int,
    prices: Path | None,
    model: str | None,
) -> Told:
    """Diagnose what a command names: a recipe's dev rows, a log, or a log on a recipe's base.

    `rows` is the most failing rows to try; `model` names in the prices what serves the calls.

    Raises:
        UserError: what is asked does not go together, or cannot be diagnosed.
    """
    is_log = what.endswith((".jsonl", ".json"))
    if not is_log and recipe is not None:
        raise UserError("--recipe: is for a log; give it as LOGS.jsonl")
    if is_log and recipe is None:
        if base or sets:
            raise UserError("--base, --set: a log alone is read, and asks no model; name --recipe too")
        listed, cost = read_prices(prices), CostSection()
        cost = cost.model_copy(update={"serves": model or cost.serves})
        listed.price(cost.serves)
        return diagnose_log(Path(what), runs, cost, listed)
    quiet_libraries()
    served = [f"cost.serves={model}"] if model else []
    line = Diagnosis(recipe or what, base=base, sets=[*sets, *served], runs=runs)
    if not is_log:
        line.curate()
    return line.diagnose(Path(what) if is_log else None, failing=rows, right=rows // 2, prices=prices)


# ---------------------------------------------------------------------- a log alone


def diagnose_log(path: Path, runs: Path, cost: CostSection, prices: PriceList) -> Told:
    """Diagnose a log by the labels of its answers; no model is asked.

    Raises:
        UserError: the log cannot be read, or nothing of it can be judged.
    """
    log = read_log(path)
    digest = sha256_file(path)
    # By what is read and what it costs, so that the same command finds its own work.
    run = Run.of(runs, f"diagnosis-{path.stem}", {"log": digest, "cost": cost.model_dump(), "prices": prices.about})
    inputs = {"log": digest, "schema": SCHEMA, "versions": versions()}
    with run.locked():
        if run.is_done("diagnosis", inputs):
            say(f"  unchanged: {run.path('diagnosis.json')}")
        else:
            judged = judge_log(log.rows)
            suspected = suspicions(log.rows, judged, kinds_of(log.rows))
            cases = log_cases(log.rows, judged, suspected)
            told = diagnose(
                cases,
                passages=any(row.context for row in log.rows),
                suspected=suspected,
                about=_about_log(path, log, digest, cases) | {"cost": log_costs(log.rows, cases, cost, prices)},
            )
            with run.stage("diagnosis", inputs) as out:
                write_json(out / "diagnosis.json", told)
    found: dict[str, Any] = read_json(run.path("diagnosis.json"))
    return run.path("diagnosis.json"), found


def _about_log(path: Path, log: Log, digest: str, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "log": {"file": path.name, "sha256": digest},
        "unread": log.unread,
        "without_reference": len(log.rows) - len(cases),
        "weighted": len({case.weight for case in cases}) > 1,
    }


def log_cases(rows: Sequence[LogRow], judged: Sequence[Judged | None], suspected: Mapping[str, str]) -> list[Case]:
    """The judged rows of a log with the causes that their labels tell."""
    right = {_question(row) for row, verdict in zip(rows, judged, strict=True) if verdict and verdict.right}
    cases = []
    for row, verdict in zip(rows, judged, strict=True):
        if verdict is None:
            continue
        cause = None
        if not verdict.right:
            cause = by_labels(
                verdict.labels,
                form_right=verdict.form_right,
                content_right=verdict.content_right,
                facts=verdict.facts,
                suspected=row.id in suspected,
                right_elsewhere=_question(row) in right,
            )
        closed = verdict.by_grammar if cause is Cause.SHAPE else None
        cases.append(Case(row.id, row.group, row.weight, verdict.right, cause, cause, verdict.labels, closed))
    return cases


def _question(row: LogRow) -> tuple[str, str, str]:
    """What two rows share that ask the same of the same passages and want the same."""
    return fold(row.asked), fold("\n".join(sorted(row.context))), fold(row.reference or "")


def log_costs(
    rows: Sequence[LogRow], cases: Sequence[Case], cost: CostSection, prices: PriceList
) -> dict[str, Any] | None:
    """What the log's calls cost, and what they would cost otherwise; none where it holds no tokens.

    What a text takes in tokens is told by the log itself: its tokens for its characters.
    """
    told = [row for row in rows if row.tokens_in is not None and row.tokens_out is not None]
    if not told:
        return None
    texts = [row.given for row in told]
    read, written = fmean(row.tokens_in or 0 for row in told), fmean(row.tokens_out or 0 for row in told)
    a_character = read / max(1.0, fmean(map(len, texts)))
    shared = min(read, shared_beginning(texts) * a_character)
    cached = [row.tokens_cached for row in told if row.tokens_cached is not None]
    if cached and shared:
        cost = cost.model_copy(update={"cache_hits": min(1.0, fmean(cached) / shared)})
    passages = fmean(len("\n".join(row.context)) for row in told) * a_character
    gold = fmean(len("\n".join(row.gold)) for row in told) * a_character
    wanted = fmean(len(row.reference or row.output) for row in told) * a_character
    own = max(0.0, read - shared - passages)
    as_is = Use(shared, own, passages, written)
    right = sum(case.weight for case in cases if case.right) / sum(case.weight for case in cases)
    options = {
        "as_is": Option(as_is, right, retrieves=passages > 0),
        "with_shots": Option(Use(shared + 3 * (own + wanted), own, passages, wanted), retrieves=passages > 0),
        TUNED: Option(Use(shared, own, passages, wanted), retrieves=passages > 0),
    }
    if gold:
        options["with_source"] = Option(Use(shared, own, max(passages, gold), written), retrieves=True)
    return costs(options, cost, prices, about=f"tokens of {len(told)} logged calls, three shots")


def shared_beginning(texts: Sequence[str]) -> int:
    """How many first characters all texts share."""
    first, last = min(texts), max(texts)
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


# ---------------------------------------------------------------------- with a base


class Diagnosis(Line):
    """A recipe's base under interventions."""

    def diagnose(
        self, log: Path | None = None, *, failing: int = FAILING, right: int = RIGHT, prices: Path | None = None
    ) -> Told:
        """Diagnose the dev rows, or the rows of a log in their place; the gate rows are never read.

        Raises:
            UserError: nothing of it can be judged, or the recipe offers no aid to the shape.
        """
        from tunesmith.evaluate.oracle import aid_of

        aid = aid_of(self.recipe)
        listed = read_prices(prices or self.loaded.prices_path)
        place = self.run if log is None else self._run_of(log)
        with self._timed("diagnose"), place.locked():
            if log is None:
                rows, logged = self.dataset.rows("dev"), {}
                self._arm(ZERO_SHOT, "dev")
                answers = {line["id"]: line for line in read_jsonl(self.run.path("arms/dev/zero_shot.jsonl"))}
            else:
                read = read_log(log)
                rows, logged = self._rows_of(log, read), {row.id: row for row in read.rows}
                answers = self._cell(place, rows, "y00", aid)
            tried = self._drawn(rows, answers, failing, right)
            cells = {"y00": answers} | {cell: self._cell(place, tried, cell, aid) for cell in aid.cells}
            asked = [_as_logged(row, answers[row.id], logged.get(row.id)) for row in rows]
            inputs = self._common() | {
                "schema": SCHEMA,
                "cells": {name: sha256_json(lines) for name, lines in cells.items()},
                "cost": self.recipe.cost.model_dump(),
                "prices": listed.about,
                "log": sha256_file(log) if log else None,
            }
            if place.is_done("diagnosis", inputs):
                say(f"  unchanged: {place.path('diagnosis.json')}")
            else:
                with place.stage("diagnosis", inputs) as out:
                    told = self._told(rows, asked, cells, tried, aid.as_dict(), listed)
                    if log is not None:
                        told["log"] = {"file": log.name, "sha256": inputs["log"]}
                    write_json(out / "diagnosis.json", told)
        self._release_base_model()
        found: dict[str, Any] = read_json(place.path("diagnosis.json"))
        return place.path("diagnosis.json"), found

    def _told(
        self,
        rows: Sequence[Row],
        asked: Sequence[LogRow],
        cells: Mapping[str, Mapping[str, Any]],
        tried: Sequence[Row],
        aid: Mapping[str, Any],
        prices: PriceList,
    ) -> dict[str, Any]:
        judged = judge_log(asked)
        suspected = suspicions(asked, judged, kinds_of(asked))
        passages = any(row.context for row in asked)
        drawn = {row.id for row in tried}
        cases = []
        for logged, verdict in zip(asked, judged, strict=True):
            assert verdict is not None, "every row has a reference"
            seen = _seen(logged.id, cells) if logged.id in drawn else {}
            cause = need = None
            if seen and not seen["y00"]:
                cause, need = by_cells(seen, verdict.labels, suspected=logged.id in suspected, passages=passages)
            right = cells["y00"][logged.id]["failure"] is None
            closed = seen["y01"] if need is Cause.SHAPE else None
            cases.append(Case(logged.id, logged.group, logged.weight, right, cause, need, verdict.labels, closed, seen))
        given = sum("y10" not in cells or row.id not in cells["y10"] for row in tried)
        about = {
            "name": self.recipe.name,
            "base": self.base.digest,
            "aid": dict(aid),
            "facts_given": given,
            "weighted": len({case.weight for case in cases}) > 1,
            "cost": self._costs(cells, rows, prices),
        }
        return diagnose(cases, passages=passages, suspected=suspected, about=about)

    def _costs(self, cells: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], prices: PriceList) -> dict[str, Any]:
        """Tokens of each cell, and of a tuned model that needs no aid and writes no more than the reference."""
        renderer = self.arena.renderer
        written = fmean(len(renderer.tokenizer.encode(row.reference, add_special_tokens=False)) + 1 for row in rows)
        options: dict[str, Option] = {}
        plain: Use | None = None
        for name, cell in (("as_is", "y00"), ("with_aid", "y01"), ("with_source", "y10"), ("with_both", "y11")):
            lines = list(cells[cell].values())
            if not lines:
                continue
            read, out = (fmean(line[key] for line in lines) for key in ("tokens_in", "tokens_out"))
            # Failing rows are drawn more often than right ones, so what was tried on them tells no accuracy.
            accuracy = fmean(line["failure"] is None for line in lines) if cell == "y00" else None
            if plain is None:
                shared = self._shared(rows)
                plain = Use(min(shared, read), max(0.0, read - shared), 0.0, out)
                options[name] = Option(plain, accuracy)
                continue
            more = max(0.0, read - plain.input)
            source = more if cell == "y10" else max(0.0, read - options["with_aid"].use.input) if cell == "y11" else 0.0
            options[name] = Option(
                Use(plain.shared + more - source, plain.own, source, out), accuracy, retrieves=source > 0
            )
        assert plain is not None, "y00 is always answered"
        options[TUNED] = Option(Use(plain.shared, plain.own, 0.0, written))
        return costs(options, self.recipe.cost, prices, about="tokens of this base's own tokenizer")

    def _shared(self, rows: Sequence[Row]) -> float:
        from tunesmith.evaluate.generate import shared_prefix

        return float(shared_prefix(self.arena.prompts(rows, ZERO_SHOT)))

    def _drawn(self, rows: Sequence[Row], answers: Mapping[str, Any], failing: int, right: int) -> list[Row]:
        """Rows to try interventions on: so many that fail, and so many that are right, by a seeded hash."""
        from tunesmith.evaluate.stage import drawn

        fails = [row for row in rows if answers[row.id]["failure"] is not None]
        holds = [row for row in rows if answers[row.id]["failure"] is None]
        seed = self.recipe.seed
        chosen = {row.id for part, most in ((fails, failing), (holds, right)) for row in drawn(part, most, seed)}
        say(f"  {len(fails)} of {len(rows)} rows fail as they are; interventions on {len(chosen)} rows")
        return [row for row in rows if row.id in chosen]

    def _cell(self, place: Run, rows: Sequence[Row], cell: Any, aid: Any) -> dict[str, Any]:
        """The scored answers of a cell by row id, answered unless they are there."""
        from tunesmith.evaluate.oracle import Interventions

        inputs = self._answered_by({"cell": cell, **aid.as_dict()}) | {"rows": [row.as_dict() for row in rows]}
        files = f"diagnosis/{cell}"
        if not self._is_answered_in(place, files, inputs):
            with place.stage(files, inputs) as out:
                tried = Interventions(self.arena, rows, aid)
                tried.answer(self.base_model, cell, out / "diagnosis", {"base": self.base.digest})
        return {line["id"]: line for line in read_jsonl(place.path(f"{files}.jsonl"))}

    def _is_answered_in(self, place: Run, files: str, inputs: Mapping[str, Any]) -> bool:
        if not place.is_done(files, inputs):
            return False
        return bool(read_json(place.path(f"{files}.json"))["computed_on"] == self.arena.computed_on)

    def _run_of(self, log: Path) -> Run:
        """The run of a log under this recipe's base."""
        identity = self._common() | {
            "log": sha256_file(log),
            "arms": self.recipe.arms.model_dump(),
            "seed": self.recipe.seed,
        }
        return Run.of(self.runs, f"diagnosis-{log.stem}", identity)

    def _rows_of(self, path: Path, log: Log) -> list[Row]:
        """A log's rows in the one row form; the logged passages stand in the prompt, as they did.

        Raises:
            UserError: a reference is missing, or not one that the recipe's scorer can compare.
        """
        rows, problems = [], []
        for row in log.rows:
            if row.reference is None:
                problems.append(f"{path}: {row.id}: has no reference; what a base answers could not be judged")
                continue
            if self.recipe.score.kind == "json" and not _is_object(row.reference):
                problems.append(
                    f"{path}: {row.id}: the reference is no JSON object, which the recipe's scorer compares"
                )
                continue
            rows.append(_as_row(row))
        if problems:
            raise UserError(problems, hint="leave these rows out, or name a recipe whose `score.kind` is theirs")
        return rows


def _is_object(text: str) -> bool:
    from tunesmith.evaluate.score_form import parse_strict

    try:
        return isinstance(parse_strict(text), dict)
    except ValueError:
        return False


def _as_row(row: LogRow) -> Row:
    from tunesmith.evaluate.oracle import with_source

    meta = {"gold_text": list(row.gold)} if row.gold else {}
    completion = Message(role="assistant", content=row.reference)
    made = Row(id=row.id, group=row.group, messages=row.messages, completion=completion, meta=meta)
    asked = made.prompt_text
    unseen = [text for text in row.context if text not in asked]
    return made.model_copy(update={"messages": with_source(made, unseen)}) if unseen else made


def _as_logged(row: Row, line: Mapping[str, Any], logged: LogRow | None) -> LogRow:
    """A base's answer as a row of a log, so that both are judged alike; right or wrong is what the scorer says."""
    named = (row.meta or {}).get("gold_text") or []
    return LogRow(
        id=row.id,
        group=row.group,
        messages=list(row.messages),
        output=line["prediction"],
        reference=row.reference,
        correct=line["failure"] is None,
        finish="stop" if line["ended"] else "length",
        context=logged.context if logged else (),
        gold=(named,) if isinstance(named, str) else tuple(map(str, named)),
        versions=logged.versions if logged else (),
        weight=logged.weight if logged else 1.0,
    )


def _seen(row_id: str, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Under which cells a row was right. Where its facts were given all along, the source changes nothing."""
    seen = {name: lines[row_id]["failure"] is None for name, lines in cells.items() if row_id in lines}
    return seen | {"y10": seen.get("y10", seen["y00"]), "y11": seen.get("y11", seen["y01"])}

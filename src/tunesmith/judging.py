"""What of the line is about being judged: the lock before training, the looks, the verdict, the promotion.

Nothing here loads a model: locks, looks and verdicts are files about files.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tunesmith import adapters
from tunesmith.errors import Invalid, UserError
from tunesmith.evaluate.ways import selected_ways
from tunesmith.files import read_json
from tunesmith.gate import lock, pilot
from tunesmith.gate.evidence import again_file, read_arm, read_evidence
from tunesmith.gate.terms import gain
from tunesmith.inputs import Inputs
from tunesmith.progress import say
from tunesmith.rows import SPLITS
from tunesmith.stats import spent

if TYPE_CHECKING:
    from rich.console import Console


class Judging(Inputs):
    """One recipe's lock, looks and verdict."""

    @property
    def gate_digest(self) -> str:
        """The split that a verdict would be given on."""
        return self.dataset.digest("gate")

    @property
    def _lock_path(self) -> Path:
        return self.run.path(lock.NAME)

    # ------------------------------------------------------------------ before training

    def plan(self) -> None:
        """Say what the gate's rows can show, and fix what the run will be judged by: writes gate.lock.

        Raises:
            UserError: the plan is too weak and the recipe does not accept it; or training has begun under another lock.
            Invalid: the gate split has had its looks, or the ledger does not hold.
        """
        with self._timed("plan"):
            now = self._stated()
            if self._lock_stands(now):
                return
            self._refuse_retired()
            inputs = {"now": now, "pilot": self._pilot_inputs()}
            if self._skip("plan", inputs, lock.NAME):
                return
            plan = self._planned()
            if problems := pilot.too_weak(plan, self.recipe, self.loaded.label):
                raise UserError(problems)
            with self.run.stage("plan", inputs) as out:
                content = lock.write_lock(out / lock.NAME, now, plan)
                self.ledger.enter(
                    {"kind": "lock", "name": self.recipe.name, "run": self.run.directory.name, "lock": content}
                )
        say(f"  {self._lock_path}")

    def show_plan(self, console: "Console") -> None:
        """Print what the gate's rows can show, whether or not that is enough."""
        pilot.show(self._planned(), self.recipe, console)

    def _refuse_retired(self) -> None:
        """Stop before training where no verdict could follow.

        Raises:
            Invalid: the gate split has had its looks, or the ledger does not hold.
        """
        self.ledger.refuse_broken()
        if any(
            line.get("kind") == "look" and line.get("run") == self.run.directory.name for line in self.ledger.lines()
        ):
            # Trained anew, this run's adapter is the candidate that it was.
            return
        if len(self.ledger.looks(self.gate_digest)) >= self.recipe.gate.max_looks:
            raise Invalid(
                f"{self.dataset.directory / 'gate.jsonl'}: has had its {self.recipe.gate.max_looks} looks and is "
                "retired; what wins on it now may win by chance",
                hint=f"`tunesmith promote {self.recipe.name}` makes the confirm rows the new gate split",
            )

    def _planned(self) -> dict[str, Any]:
        look = len(self.ledger.looks(self.gate_digest)) + 1
        alpha = spent(self.recipe.gate.alpha, look)
        selection = read_json(self.run.path("selection.json"))
        measured = pilot.measure(self.run.directory, selection, self.recipe.score.primary)
        groups = [row.group for row in self.dataset.rows("gate")]
        return pilot.plan_of(measured, self.recipe, groups, look, alpha)

    def _stated(self) -> dict[str, Any]:
        """What decides the verdict, from what answered dev."""
        selection = read_json(self.run.path("selection.json"))
        (way,) = (way for way in selected_ways(selection) if way.arm == selection["incumbent"])
        return lock.stated(
            self.recipe,
            selection,
            read_json(self.run.path(f"arms/{way.file('dev')}.json")),
            run=self.run.directory.name,
            base=self.base.digest,
            splits={split: self.dataset.digest(split) for split in SPLITS},
            scorer=self._scorer_digest(),
            started_from=self.beginning.digest if self.beginning else None,
        )

    def _lock_stands(self, now: Mapping[str, Any]) -> bool:
        """Whether something was trained under a lock: then it is not written again, whatever the recipe says now."""
        if self._trained_under() is not None:
            held = lock.read_lock(self._lock_path)
            for difference in lock.differences(held, now) if held else [f"{self._lock_path} is missing"]:
                say(f"  locked before the adapter was trained: {difference}; the verdict will be INVALID")
            say(f"  stands: {self._lock_path}")
            return True
        held = lock.read_lock(self._lock_path)
        changed = lock.differences(held, now) if held else []
        if changed and any(self.run.path("checkpoints").glob("step-*")):
            raise UserError(
                [f"{self._lock_path}: {difference}" for difference in changed],
                hint="training has begun under this lock: undo the change, or delete the checkpoints to begin anew",
            )
        return False

    def _trained_under(self) -> str | None:
        """The digest of the lock that the adapter names; none where it names none, or there is no adapter."""
        manifest = self.run.path("adapter/manifest.json")
        return adapters.manifest(manifest.parent).get("lock_digest") if manifest.is_file() else None

    def lock_digest(self) -> str | None:
        """The digest of the lock as it stands, for the adapter that is trained now."""
        held = lock.read_lock(self._lock_path)
        return held["digest"] if held else None

    def trained_unlocked(self) -> bool:
        """Whether there is a lock, and an adapter that was trained when there was none."""
        adapter = self.run.path("adapter/manifest.json")
        return adapter.is_file() and self._trained_under() is None and self.lock_digest() is not None

    # ------------------------------------------------------------------ looks

    def count_look(self) -> None:
        """Count a look at the gate rows, before the adapter answers one of them.

        Raises:
            Invalid: the ledger does not hold.
        """
        candidate = adapters.digest(self.run.path("adapter"))
        fresh = candidate not in self.ledger.looks(self.gate_digest)
        held = self.lock_digest()
        look = self.ledger.look(
            self.gate_digest,
            candidate,
            name=self.recipe.name,
            run=self.run.directory.name,
            lock=held,
            by="evaluate",
        )
        if fresh:
            say(f"  look {look} of {self.recipe.gate.max_looks} at this gate split")
            if held is None or self._trained_under() != held:
                say(
                    f"  the adapter was not trained under {lock.NAME}: it is measured, and cannot ship; "
                    f"`tunesmith run {self.recipe.name}` writes the lock first"
                )

    def _seems_better_than_itself(self, selection: Mapping[str, Any]) -> bool:
        """Whether the incumbent's second answers would ship against its first: then it answers once more."""
        again = read_arm(self.run.path(again_file(selection, 1)))
        incumbent = read_arm(self.run.path(f"arms/{selection['incumbent']}.jsonl"))
        return gain(again, incumbent, self.recipe, self.recipe.gate.alpha).outcome == "pass"

    # ------------------------------------------------------------------ the verdict

    def gate(self) -> dict[str, Any]:
        """Judge the run; returns the verdict."""
        from tunesmith.gate.stage import gate

        read_evidence(self.run.directory)
        self._check_evidence()
        inputs = self._gate_inputs()
        with self._timed("gate"):
            if not self._skip("gate", inputs, "verdict.json"):
                with self.run.stage("gate", inputs) as out:
                    gate(self.loaded, self.run, self.ledger, out, scorer=self._scorer_digest())
        verdict: dict[str, Any] = read_json(self.run.path("verdict.json"))
        return verdict

    def _check_evidence(self) -> None:
        """Refuse evidence that was made for other settings than this recipe's: it would be another question's answer.

        Raises:
            UserError: names each stage that must run again.
        """
        stale = []
        if not self.run.is_done("selection", self._selection_inputs()):
            stale.append(
                f"{self.run.path('selection.json')}: made with other settings; `tunesmith baseline` makes it anew"
            )
        selection = read_json(self.run.path("selection.json"))
        untrained = {f"arm/{way.arm}": self._arm_inputs(way, "gate") for way in selected_ways(selection)}
        (incumbent,) = (way for way in selected_ways(selection) if way.arm == selection["incumbent"])
        for turn in (1, 2):
            if turn == 1 or self.run.path(again_file(selection, turn)).is_file():
                untrained[f"again/gate-{turn}"] = self._arm_inputs(incumbent, "gate") | {"turn": turn}
        untrained |= {f"trivial/{split}": self._trivial_inputs() for split in ("dev", "gate")}
        if self.beginning:
            untrained["arm/started_from"] = self._started_from_inputs(self.beginning)
        trained = {"arm/adapter": self._adapter_arm_inputs(), "arm/merged": self._merged_arm_inputs()}
        trained |= {f"arm/{name}": self._server_inputs(name) for name in self.recipe.arms.servers}
        for stage, arms in (("baseline", untrained), ("evaluate", trained)):
            for name, inputs in arms.items():
                if not self.run.is_done(name, inputs):
                    file = name.replace("arm/", "arms/") + (".jsonl" if name.startswith("arm/") else "")
                    stale.append(f"{self.run.path(file)}: made with other settings; `tunesmith {stage}`")
        if stale:
            raise UserError(stale)

    # ------------------------------------------------------------------ another gate split

    def promote(self) -> dict[str, Any]:
        """Make the confirm rows the new gate split, where the old one has had its looks; returns what was recorded.

        Raises:
            UserError: the gate split has looks left, or there are no confirm rows.
            Invalid: the ledger does not hold.
        """
        from tunesmith.curate.promote import promote, unfinished

        with FileLock(self.dataset.directory.with_name(f".{self.dataset.directory.name}.lock")):
            if not unfinished(self.dataset):
                self.ledger.refuse_broken()
                old, new = self.gate_digest, self.dataset.digest("confirm")
                left = self.recipe.gate.max_looks - len(self.ledger.looks(old))
                if left > 0:
                    raise UserError(
                        f"{self.dataset.directory / 'gate.jsonl'}: has {left} of {self.recipe.gate.max_looks} looks "
                        "left; confirm stays sealed until they are spent",
                        hint="rows that nothing was chosen by are the dearest there are",
                    )
                if self.dataset.manifest()["files"]["confirm.jsonl"]["rows"]:
                    self.ledger.enter(
                        {"kind": "promotion", "name": self.recipe.name, "gate_digest": old, "becomes": new}
                    )
            at = datetime.now(UTC).isoformat(timespec="seconds")
            return promote(self.dataset, at=at, ledger=self.ledger.id)

"""The line: stages in their order, each skipped when its inputs and outputs are what they were.

The only place that knows all stages. It opens what they need (recipe, rows, base), gives each its inputs' digests, and
tells a person what runs, what is skipped, how long each stage took and which path it wrote.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import adapters, findings, launch, trackers
from tunesmith.beginning import Beginning
from tunesmith.errors import Diverged, UserError
from tunesmith.evaluate.ways import STARTED_FROM, Way, selected_ways, untrained_ways
from tunesmith.files import read_json, write_json
from tunesmith.gate.evidence import again_file
from tunesmith.judging import Judging
from tunesmith.progress import say
from tunesmith.prompt import Rendered, Renderer
from tunesmith.rows import Split
from tunesmith.team import here
from tunesmith.tokens import rendered_rows

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from tunesmith.evaluate.arena import Arena


class Line(Judging):
    """One recipe's way from data to bundle."""

    # ------------------------------------------------------------------ what stages need

    @cached_property
    def arena(self) -> "Arena":
        """Renderer, scorer and rows for the arms."""
        from tunesmith.evaluate.stage import open_arena

        return open_arena(self.loaded, self.dataset, self.base)

    @cached_property
    def base_model(self) -> "PreTrainedModel":
        """The base's weights, loaded once for all arms without training."""
        from tunesmith.evaluate.stage import load_base

        return load_base(self.arena)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run; of processes that train together, the first holds it for all.

        Raises:
            UserError: another process holds it, or the launcher was told otherwise than the recipe says.
        """
        team = here()
        with team.joined(), ExitStack() as stack:
            if problems := launch.disagreements(self.recipe.launch):
                raise UserError(
                    problems, hint="say the same to the launcher and, by `launch:` or `--set`, to the recipe"
                )
            team.lead(lambda: bool(stack.enter_context(self.run.locked())))
            yield

    # ------------------------------------------------------------------ stages

    def curate(self, *, again: bool = False, **options: Any) -> None:
        """Make the dataset, unless it is there and recipe, script and sources are the same; `options` are its stage's.

        `again` makes it whatever is there.
        """
        from tunesmith.curate.manifest import made_by
        from tunesmith.curate.stage import Options, curate

        directory = self.dataset.directory
        script = self.loaded.root / "scripts" / f"curate_{directory.name.replace('-', '_')}.py"
        sources = self.recipe.curate.sources
        with self._timed("curate"):
            if not sources and not script.is_file():
                if not self.dataset.exists():
                    raise UserError(
                        f"{directory}: holds no manifest.json; the recipe has no `curate.sources`, and there is no "
                        f"{script.name} to make rows",
                        hint="name the sources in the recipe, or write the script as CONTRIBUTING.md shows",
                    )
                say(f"  as it lies: {directory}")
                return
            used = None if sources else script
            if not again and self.dataset.is_made_by(made_by(self.loaded, used)):
                say(f"  unchanged: {directory}")
            else:
                curate(self.loaded, used, Options(**options))
        say(f"  {directory}")

    def check(self) -> None:
        """Render and check every training row."""
        here().lead(self._check)

    def _check(self) -> None:
        from tunesmith.check.stage import check, refuse_failed

        inputs = self._common() | {
            "max_tokens": self.recipe.data.max_tokens,
            "max_new_tokens": self.recipe.arms.max_new_tokens,
            "min_rows": self.recipe.gate.min_rows,
        }
        path = self.run.path("check.json")
        with self._timed("check"):
            if not self._skip("check", inputs, "check.json"):
                with self.run.stage("check", inputs) as out:
                    check(self.loaded, self.dataset, self.base, out, self.beginning)
            refuse_failed(read_json(path), path, self.dataset)

    def baseline(self) -> None:
        """Answer dev and gate rows without training, choose the incumbent on dev, and see how it repeats itself."""
        with self._timed("baseline"):
            selection = self._choose()
            ways = selected_ways(selection)
            for way in ways:
                self._arm(way, "gate")
            self._trivial("gate")
            (incumbent,) = (way for way in ways if way.arm == selection["incumbent"])
            self._answer_again(incumbent, "dev", 1, selection)
            self._answer_again(incumbent, "gate", 1, selection)
            if self._seems_better_than_itself(selection):
                self._answer_again(incumbent, "gate", 2, selection)
            self._release_base_model()
            if self.beginning:
                self._started_from(self.beginning)
        say(f"  incumbent, best on dev without training: {selection['incumbent']}")

    def _choose(self) -> dict[str, Any]:
        """Answer the dev rows without training, and choose the incumbent by the answers."""
        from tunesmith.evaluate import stage

        dev = self.run.path("arms/dev")
        self._trivial("dev")
        for way in untrained_ways(self.recipe):
            self._arm(way, "dev")
        if self.recipe.arms.constrained:
            self._arm(stage.constrained_way(self.arena, dev), "dev")
        inputs = self._selection_inputs()
        if not self._skip("selection", inputs, "selection.json"):
            with self.run.stage("selection", inputs) as out:
                stage.select(self.arena, dev, out)
        chosen: dict[str, Any] = read_json(self.run.path("selection.json"))
        return chosen

    def _answer_again(self, way: Way, split: Split, turn: int, selection: Mapping[str, Any]) -> None:
        """Have the incumbent answer a split in batches of another size: two answers of one arm, the noise floor."""
        from tunesmith.evaluate.again import answer_again

        name, file = f"again/{split}-{turn}", again_file(selection, turn, split)
        inputs = self._arm_inputs(way, split) | {"turn": turn}
        if not self._is_answered(name, inputs, {file.removesuffix(".jsonl"): way}):
            say(f"  {way.arm} on {split} again, in batches of another size")
            with self.run.stage(name, inputs) as out:
                answer_again(self.arena, self.base_model, way, split, out / "again" / f"{split}-{turn}", turn)

    def _started_from(self, beginning: Beginning) -> None:
        """Have the adapter that training begins from answer dev and gate: a worse one must not ship."""
        from tunesmith.evaluate.stage import run_started_from

        inputs = self._started_from_inputs(beginning)
        if not self._is_answered("arm/started_from", inputs, {"arms/started_from": STARTED_FROM}):
            with self.run.stage("arm/started_from", inputs) as out:
                run_started_from(self.arena, beginning.adapter, out / "arms")

    def _arm(self, way: Way, split: Split) -> None:
        name = way.file(split)
        free = self.run.path(f"arms/{way.free.file(split)}.jsonl") if way.free else None
        inputs = self._arm_inputs(way, split)
        if self._is_answered(f"arm/{name}", inputs, {f"arms/{name}": way}):
            return
        with self.run.stage(f"arm/{name}", inputs) as out:
            engine = self.arena.engine(self.base_model, {"base": self.base.digest})
            self.arena.run(engine, way, split, out / "arms", free=free)

    def _trivial(self, split: Split) -> None:
        """What can be said of a split without a model."""
        inputs = self._trivial_inputs()
        if not self.run.is_done(f"trivial/{split}", inputs):
            with self.run.stage(f"trivial/{split}", inputs) as out:
                self.arena.run_trivial(split, out / "arms")

    def _is_answered(self, stage: str, inputs: Mapping[str, Any], ways: Mapping[str, Way]) -> bool:
        """Whether arms, by their files, are finished, and were answered on this device and after the same search.

        Answers of two devices are not compared; nor are those before and after the embedder could be had.
        """
        if not self.run.is_done(stage, inputs):
            return False
        told = {file: read_json(self.run.path(f"{file}.json")) for file in ways}
        return all(
            told[file]["computed_on"] == self.arena.computed_on
            and told[file].get("retriever") == self.arena.found_by(way)
            for file, way in ways.items()
        )

    def _release_base_model(self) -> None:
        """Give the base's memory back before training and evaluation load theirs."""
        if self.__dict__.pop("base_model", None) is not None:
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()

    def forecast(self, console: "Console") -> Path | None:
        """Show what training takes here, and write it into the run once there are rows; returns where.

        Raises:
            EnvironmentFault: it cannot fit; names the first setting that would.
        """
        from tunesmith.prompt import Renderer
        from tunesmith.tokens import rendered_rows
        from tunesmith.train.plan import plan, show, too_much, what_would_fit

        rows, path = [], None
        if self.dataset.exists():
            renderer = Renderer(self.base.tokenizer(), self.base.end_ids())
            rows = rendered_rows(renderer, self.dataset, "train", self.run.path("tokens/train.safetensors"))
            path = self.run.path("plan.json")
        found = plan(self.recipe, rows, self.base)
        settings = None if found.fits else what_would_fit(self.recipe, rows, self.base, found)
        show(found, console)
        if path is not None:
            write_json(path, found.as_dict() | {"would_fit": settings})
        else:
            say("  no rows are curated: planned for rows as long as data.max_tokens, and not written down")
        if not found.fits:
            raise too_much(found, settings)
        return path

    def train(self, *, resume: Path | None = None, allow_drift: bool = False) -> None:
        """Train the adapter, from this run's newest checkpoint if it has one.

        `resume` is another run, or a checkpoint of it, to begin from; `allow_drift` takes a checkpoint made otherwise.
        """
        inputs, checkpoints = self._trained_on(), self.run.path("checkpoints")
        team = here()
        with self._timed("train"):
            if team.lead(lambda: not self._is_unlocked() and self._skip("train", inputs, "adapter")):
                pass
            elif launch.asked(self.recipe.launch):
                self._launch_training(resume, allow_drift)
                return
            else:
                from tunesmith.evaluate.stage import dev_scorer
                from tunesmith.train.resume import Resumption
                from tunesmith.train.stage import train

                if resume is None and team.leads:
                    self._say_unfinished()
                held = self.lock_digest()
                if held is None and team.leads:
                    say(
                        "  there is no gate.lock: this adapter can be measured, and cannot ship; `tunesmith plan` first"
                    )
                resumption = Resumption(checkpoints, inputs | {"lock": held}, resume, allow_drift)
                with self.run.stage("train", inputs) if team.leads else self.run.aside() as out:
                    train(
                        self.loaded,
                        self.dataset,
                        self.base,
                        out,
                        tokens=self.run.path("tokens"),
                        resumption=resumption,
                        beginning=self.beginning,
                        score_dev=dev_scorer(self.arena) if self.recipe.dev.rows else None,
                        lock=held,
                    )
            if team.leads:
                shutil.rmtree(checkpoints, ignore_errors=True)
        say(f"  {self.run.path('adapter')}")

    def _is_unlocked(self) -> bool:
        if not self.trained_unlocked():
            return False
        say("  the adapter was trained before gate.lock was written: it is trained anew, under the lock")
        return True

    def _launch_training(self, resume: Path | None, allow_drift: bool) -> None:
        """Train in processes of their own, and end as they end."""
        more = ["--resume", str(resume)] if resume else []
        more += ["--allow-drift"] if allow_drift else []
        with self.run.lent():
            code = launch.start(self.recipe.launch, ["train", *self.asked, *more])
        if code:
            raise SystemExit(code)

    def _say_unfinished(self) -> None:
        """Tell of trainings of this recipe that were stopped and were set otherwise: none of them goes on here."""
        name = re.compile(rf"{re.escape(self.recipe.name)}-[0-9a-f]{{12}}")
        for other in sorted(self.runs.iterdir()):
            if name.fullmatch(other.name) and other != self.run.directory and any(other.glob("checkpoints/step-*")):
                say(
                    f"  {other} holds a training that was stopped, with other settings, rows or versions; "
                    f"`--resume {other} --allow-drift` would begin from it"
                )

    def evaluate(self) -> None:
        """Merge, then answer the gate rows with the adapter and with the merged model, and measure the guards."""
        from tunesmith.evaluate import stage
        from tunesmith.export.merge import merge

        adapter, merged = self.run.path("adapter"), self.run.path("merged")
        if not adapter.is_dir():
            raise UserError(f"{adapter}: not there yet; `tunesmith train` makes it")
        self._refuse_changed_adapter()
        with self._timed("merge"):
            inputs = self._common() | {"adapter": adapters.digest(adapter)}
            if not self._skip("merge", inputs, "merged"):
                with self.run.stage("merge", inputs) as out:
                    systems = self.dataset.manifest()["systems"]
                    found = merge(self.base, adapter, systems, self._dev_rows(), out / "merged")
                    findings.write(out, "merge", found)
                    findings.refuse(found, "merge", Diverged)
        with self._timed("evaluate"):
            ways = self._adapter_ways()
            inputs = self._adapter_arm_inputs()
            if not self._is_answered("arm/adapter", inputs, {f"arms/{way.arm}": way for way in ways}):
                self.count_look()
                with self.run.stage("arm/adapter", inputs) as out:
                    (out / "arms").mkdir()
                    stage.run_adapter(self.arena, adapter, ways, self.run.path("arms"), out)
            inputs = self._merged_arm_inputs()
            if self._is_answered("arm/merged", inputs, {"arms/merged": Way("merged")}):
                say(f"  unchanged: {self.run.path('guards.json')}")
            else:
                self.count_look()
                with self.run.stage("arm/merged", inputs) as out:
                    (out / "arms").mkdir()
                    stage.run_merged(
                        self.arena, merged, self.run.path("guards-adapter.json"), self.run.path("arms"), out
                    )
            for name, told in self.recipe.arms.servers.items():
                inputs = self._server_inputs(name)
                if not self.run.is_done(f"arm/{name}", inputs):
                    with self.run.stage(f"arm/{name}", inputs) as out:
                        stage.run_server(self.arena, name, told, out)
        say(f"  {self.run.path('arms')}")

    def _dev_rows(self) -> list[Rendered]:
        renderer = Renderer(self.base.tokenizer(), self.base.end_ids())
        return rendered_rows(renderer, self.dataset, "dev", self.run.path("tokens/dev.safetensors"))

    def _refuse_changed_adapter(self) -> None:
        adapters.refuse_unsafe(self.run.path("adapter"))
        if not self.run.is_done("train", self._trained_on()):
            raise UserError(
                f"{self.run.path('adapter')}: it, or what was written with it, is not what training wrote; "
                "`tunesmith train` makes it anew"
            )

    def export(self) -> Path:
        """Write the bundle of a run that ships."""
        from tunesmith.evaluate.stage import scoring_dtype
        from tunesmith.export.bundle import bundle

        if not self.run.is_done("gate", self._gate_inputs()):
            raise UserError(
                f"{self.run.path('verdict.json')}: there is no verdict on this run with these settings; "
                "`tunesmith gate` gives it"
            )
        self._refuse_changed_adapter()
        with self._timed("export"):
            dtype = str(scoring_dtype(self.arena)).removeprefix("torch.")
            target = bundle(self.loaded, self.run, self.dataset, self.base, self.dist, dtype=dtype)
        say(f"  {target}")
        return target


def quiet_libraries() -> None:
    """Set, before the heavy imports, what keeps libraries off the network, off the terminal and on one GPU.

    And what keeps torch's memory together on a CPU: see below.
    """
    for name, value in trackers.QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Between what a graph keeps glibc leaves holes where other tensors were freed: on json-extract three quarters of
    # what is kept. With tensors from 2 MiB on aligned to pages, as torch aligns them with this, it is a fifth
    # (docs/LOG.md). The bits are the same, and a pass takes no longer.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if here().size > 1:
        # What torch says to each process of its own; errors are raised.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    else:
        # A process alone drives one GPU; trl refuses to train where it sees more.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    import logging
    import warnings

    # On a CPU without its optional kernels bitsandbytes says so at import; the plain path is the one we test.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")

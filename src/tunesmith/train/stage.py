"""Train an adapter on the train split and write it with everything that says what it is.

Reads the recipe, the train and dev rows and the base. Writes `adapter/` (safetensors and manifest), what was logged
(`train.jsonl`, `pace.jsonl`), what was looked at (`train-check.json`, `choice.json`, `probe.json`), `train.html`,
`loss.png` and `recipe.lock.yaml`. The same inputs give the same adapter, bit for bit, for one machine and thread count,
however often the run was killed on its way.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback

from tunesmith import adapters, findings
from tunesmith.bases import Base
from tunesmith.beginning import Beginning
from tunesmith.errors import Diverged
from tunesmith.files import sha256_json, write_json
from tunesmith.progress import say
from tunesmith.prompt import Renderer
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset
from tunesmith.team import here
from tunesmith.tokens import rendered_pairs, rendered_rows
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.choice import Choice
from tunesmith.train.dev import DevLooks, ScoreDev
from tunesmith.train.guarded import Guarded
from tunesmith.train.lock import write_lock
from tunesmith.train.opening import TOLERANCE, as_asked, fitting_trainer, lora_config, preference_trainer, say_choices
from tunesmith.train.page import PAGE, RunPage
from tunesmith.train.plan import Plan, anatomy, plan, refuse
from tunesmith.train.probe import Probe
from tunesmith.train.resume import Resumption, how_it_began, machine, where_to_begin
from tunesmith.train.saver import Saver
from tunesmith.train.skips import Skips
from tunesmith.train.stops import polite_stops
from tunesmith.train.tracking import Trackers
from tunesmith.train.watch import Watch, plot_loss
from tunesmith.train.witness import Witness


def train(
    loaded: LoadedRecipe,
    dataset: Dataset,
    base: Base,
    out: Path,
    *,
    tokens: Path,
    resumption: Resumption,
    beginning: Beginning | None = None,
    score_dev: ScoreDev | None = None,
    lock: str | None = None,
) -> None:
    """Train and write into `out`; `tokens` is where `check` left the rows' token ids.

    `beginning` is whose adapter preference tuning begins from; without one an adapter is trained from nothing.
    `score_dev` has dev rows answered, where the recipe wants that. `lock` is the digest of what the adapter will be
    judged by, written before it is trained; without one it cannot ship.

    Raises:
        UserError: peft or trl refuses a value of the recipe, or the checkpoint there is was made otherwise.
        Interrupted: it was asked to stop, and has saved a checkpoint.
        EnvironmentFault: it does not fit into memory, or a tracker cannot be opened: nothing was trained.
        Diverged: a loss or a gradient became not a number, or the adapter learned nothing at all.
    """
    recipe, team = loaded.with_paths(), here()
    renderer = Renderer(base.tokenizer(), base.end_ids())
    ids = [turn.id for row in dataset.rows("train") for turn in row.turns()]

    # Taken now: trl may give the tokenizer that it is handed a pad token.
    prompt_digest = renderer.digest(dataset.manifest()["systems"])
    dev: Sequence[Any]
    trainer: Guarded
    forecast: Plan | None = None
    probe: Probe | None = None
    with tempfile.TemporaryDirectory() as scratch, polite_stops() as stop:
        if beginning is None:
            rows = rendered_rows(renderer, dataset, "train", tokens / "train.safetensors")
            dev = rendered_rows(renderer, dataset, "dev", tokens / "dev.safetensors")
            sizes = anatomy(base, recipe)
            forecast = plan(recipe, rows, base, sizes)
            refuse(recipe, rows, base, forecast)
            fitted, profile = fitting_trainer(recipe, rows, ids, base, lora_config(recipe), scratch)
            forecast = forecast.for_profile(recipe, sizes, profile, fitted.work())
            # Of a base that is cut among processes none can run a pass alone.
            probe = None if fitted.is_cut else Probe(fitted, recipe, base, forecast, out / "probe.json")
            trainer = fitted
        else:
            beginning.verify(recipe, base, prompt_digest)
            pairs = rendered_pairs(renderer, dataset, "train", tokens)
            dev = rendered_pairs(renderer, dataset, "dev", tokens)
            trainer, profile = preference_trainer(recipe, pairs, ids, base, beginning.adapter, scratch)
        if team.leads:
            say_choices(profile, trainer)
        trackers = Trackers(trainer, recipe.trainer.get("report_to") if team.leads else None, resumption.run)
        watch = Watch(out, trainer, trackers)
        binding = {**resumption.identity, "machine": machine(profile, team.size, recipe.launch.kind)}
        if trainer.start is not None and trainer.start.taken_out is not None:
            # Of a base that was changed a checkpoint holds nothing: it must have been changed alike.
            binding["start"] = trainer.start.digest()
        trainer.choice = Choice(recipe.dev, recipe.score.primary)
        checkpoints = Checkpoints(resumption.directory, binding, recipe.checkpoints.keep)
        trainer.checkpoints = checkpoints
        checkpoint, drifted = team.lead(lambda: where_to_begin(checkpoints, resumption))
        witness = Witness(trainer, dev, TOLERANCE[profile.dtype])
        found = [how_it_began(checkpoint, drifted), *as_asked(recipe, trainer), *witness.beforehand()]
        findings.refuse(found, "train", Diverged)
        looks, saver = DevLooks(watch, dev, trainer, score_dev), Saver(trainer, recipe.checkpoints, stop)
        for callback in (probe, trackers, watch, Skips(trainer), witness, looks, saver):
            if callback is not None:
                trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        page = RunPage(loaded, base, trainer, profile, forecast, probe)
        # Under autocast peft would widen each input to float32, for the next operation to narrow it again: same bits.
        narrow = disable_input_dtype_casting(trainer.model, active=profile.dtype != "float32")
        with page.told(resumption.run / PAGE) if team.leads else nullcontext():
            try:
                with narrow:
                    trainer.train(resume_from_checkpoint=checkpoint)
            finally:
                watch.close()
            if trainer.choice.weights is not None:
                state.put(trainer.model, trainer.choice.weights, "the best look at dev")
                best, last = trainer.choice.chosen["step"], trainer.state.global_step
                say(f"  the adapter is that of step {best} of {last}, the best on dev")
            found += witness.afterwards()
            findings.write(out, "train", found)
            findings.refuse(found, "train", Diverged)
            if trainer.start is not None:
                trainer.start.refuse_unmoved(trainer.model)
    less = trainer.start.taken_out if trainer.start is not None else None
    whole = state.trained(trainer.model) if trainer.is_cut else None

    def publish() -> None:
        adapters.save(
            trainer.model,
            out / "adapter",
            base=base,
            bound={
                # The base that it belongs to: less its start, a repair of 4 bits belongs to the unquantised one.
                "quantization": recipe.quantization if less is None else "none",
                "init_lora_weights": recipe.lora.get("init_lora_weights", True),
                "lora": recipe.lora,
                "prompt_digest": prompt_digest,
                "recipe_digest": sha256_json(recipe.as_dict()),
                "train_digest": dataset.digest("train"),
                "order_digest": witness.order,
                "drift": drifted,
                "lock_digest": lock,
                "choice": trainer.choice.as_dict(),
            }
            | ({"after": beginning.digest} if beginning else {}),
            less=less,
            whole=whole,
        )
        page.write(out / PAGE)
        write_json(out / "choice.json", trainer.choice.as_dict())
        metrics = (recipe.score.primary, recipe.score.tie_break)
        plot_loss(watch.lines, out / "loss.png", trainer.choice.chosen["step"], metrics)
        lora = trainer.model.peft_config["default"]
        write_lock(out / "recipe.lock.yaml", loaded, profile, lora, trainer.args, base, beginning)

    team.lead(publish)

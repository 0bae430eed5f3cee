"""Train an adapter on the train split and write it with everything that says what it is.

Reads the recipe, the train and dev rows and the base. Writes `adapter/` (safetensors and manifest), `train.jsonl`,
`pace.jsonl`, `probe.json`, `train.html`, `loss.png` and `recipe.lock.yaml`. The same inputs give the same adapter, bit
for bit, for one machine and thread count, however often the run was killed on its way.
"""

import tempfile
from pathlib import Path

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback

from tunesmith import adapters
from tunesmith.bases import Base
from tunesmith.errors import Diverged
from tunesmith.files import sha256_json
from tunesmith.prompt import Renderer
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset
from tunesmith.tokens import rendered_rows
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.dev import DevLoss
from tunesmith.train.lock import write_lock
from tunesmith.train.opening import fitting_trainer, lora_config, say_choices
from tunesmith.train.page import PAGE, RunPage
from tunesmith.train.plan import anatomy, plan, refuse
from tunesmith.train.probe import Probe
from tunesmith.train.resume import Resumption, machine, where_to_begin
from tunesmith.train.saver import Saver
from tunesmith.train.skips import Skips
from tunesmith.train.stops import polite_stops
from tunesmith.train.tracking import Trackers
from tunesmith.train.trainer import PROBED_ROWS
from tunesmith.train.watch import Watch, plot_loss


def train(
    loaded: LoadedRecipe, dataset: Dataset, base: Base, out: Path, *, tokens: Path, resumption: Resumption
) -> None:
    """Train and write into `out`; `tokens` is where `check` left the rows' token ids.

    Raises:
        UserError: peft or trl refuses a value of the recipe, or the checkpoint there is was made otherwise.
        Interrupted: it was asked to stop, and has saved a checkpoint.
        Diverged: a loss or a gradient became not a number, or the adapter learned nothing at all.
        EnvironmentFault: it does not fit into memory, or a tracker cannot be opened: nothing was trained.
    """
    recipe = loaded.recipe
    renderer = Renderer(base.tokenizer(), base.end_ids())
    rows = rendered_rows(renderer, dataset, "train", tokens / "train.safetensors")
    dev = rendered_rows(renderer, dataset, "dev", tokens / "dev.safetensors")
    ids = [turn.id for row in dataset.rows("train") for turn in row.turns()]

    # Taken now: trl may give the tokenizer that it is handed a pad token.
    prompt_digest = renderer.digest(dataset.manifest()["systems"])
    lora = lora_config(recipe)
    sizes = anatomy(base, recipe)
    forecast = plan(recipe, rows, base, sizes)
    refuse(recipe, rows, base, forecast)
    with tempfile.TemporaryDirectory() as scratch, polite_stops() as stop:
        trainer, profile = fitting_trainer(recipe, rows, ids, base, lora, scratch)
        say_choices(profile, trainer)
        forecast = forecast.for_profile(recipe, sizes, profile, trainer.work())
        trackers = Trackers(trainer, recipe.trainer.get("report_to"), resumption.run)
        watch = Watch(out, trainer, trackers)
        probe = Probe(trainer, recipe, base, forecast, out / "probe.json")
        binding = {**resumption.identity, "machine": machine(profile)}
        trainer.checkpoints = Checkpoints(resumption.directory, binding, recipe.checkpoints.keep)
        checkpoint, drifted = where_to_begin(trainer.checkpoints, resumption)
        for callback in (probe, trackers, watch, Skips(trainer)):
            trainer.add_callback(callback)
        trainer.add_callback(DevLoss(watch, dev, trainer))
        trainer.add_callback(Saver(trainer, recipe.checkpoints, stop))
        trainer.remove_callback(PrinterCallback)
        page = RunPage(loaded, base, trainer, forecast, probe)
        # Under autocast peft would widen each input to float32, for the next operation to narrow it again: same bits.
        narrow = disable_input_dtype_casting(trainer.model, active=profile.dtype != "float32")
        with page.told(resumption.run / PAGE):
            try:
                with narrow:
                    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            finally:
                watch.close()
            if trainer.changes_nothing(dev[:PROBED_ROWS]):
                raise Diverged("training: with the adapter the model answers as without it; nothing was written")
            adapters.save(
                trainer.model,
                out / "adapter",
                base=base,
                bound={
                    "quantization": recipe.quantization,
                    "prompt_digest": prompt_digest,
                    "recipe_digest": sha256_json(recipe.as_dict()),
                    "train_digest": dataset.digest("train"),
                    "drift": drifted,
                },
            )
    page.write(out / PAGE)
    plot_loss(watch.lines, out / "loss.png")
    write_lock(out / "recipe.lock.yaml", loaded, profile, lora, trainer.args, base)

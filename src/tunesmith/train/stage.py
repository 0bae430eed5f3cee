"""Train an adapter on the train split and write it with everything that says what it is.

Reads the recipe, the train and dev rows and the base. Writes `adapter/` (safetensors and manifest), `train.jsonl`,
`choice.json`, `loss.png` and `recipe.lock.yaml`. The same inputs give the same adapter, bit for bit, for one machine
and thread count, however often the run was killed on its way.
"""

import tempfile
from pathlib import Path

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback

from tunesmith import adapters
from tunesmith.bases import Base
from tunesmith.errors import Diverged
from tunesmith.files import sha256_json, write_json
from tunesmith.progress import say
from tunesmith.prompt import Renderer
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset
from tunesmith.tokens import rendered_rows
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.choice import Choice
from tunesmith.train.dev import DevLooks, ScoreDev
from tunesmith.train.lock import write_lock
from tunesmith.train.opening import fitting_trainer, lora_config, say_choices
from tunesmith.train.resume import Resumption, machine, where_to_begin
from tunesmith.train.saver import Saver
from tunesmith.train.stops import polite_stops
from tunesmith.train.trainer import PROBED_ROWS
from tunesmith.train.watch import Watch, plot_loss


def train(
    loaded: LoadedRecipe,
    dataset: Dataset,
    base: Base,
    out: Path,
    *,
    tokens: Path,
    resumption: Resumption,
    score_dev: ScoreDev | None = None,
) -> None:
    """Train and write into `out`; `tokens` is where `check` left the rows' token ids.

    `score_dev` has dev rows answered, where the recipe wants that.

    Raises:
        UserError: peft or trl refuses a value of the recipe, or the checkpoint there is was made otherwise.
        Interrupted: it was asked to stop, and has saved a checkpoint.
        Diverged: a loss or a gradient became not a number, or the adapter learned nothing at all.
    """
    recipe = loaded.recipe
    renderer = Renderer(base.tokenizer(), base.end_ids())
    rows = rendered_rows(renderer, dataset, "train", tokens / "train.safetensors")
    dev = rendered_rows(renderer, dataset, "dev", tokens / "dev.safetensors")
    ids = [turn.id for row in dataset.rows("train") for turn in row.turns()]

    # Taken now: trl may give the tokenizer that it is handed a pad token.
    prompt_digest = renderer.digest(dataset.manifest()["systems"])
    lora = lora_config(recipe)
    with tempfile.TemporaryDirectory() as scratch, polite_stops() as stop:
        trainer, profile = fitting_trainer(recipe, rows, ids, base, lora, scratch)
        say_choices(profile, trainer)
        watch = Watch(out / "train.jsonl", trainer.lines)
        binding = {**resumption.identity, "machine": machine(profile)}
        trainer.choice = Choice(recipe.dev, recipe.score.primary)
        trainer.checkpoints = Checkpoints(resumption.directory, binding, recipe.checkpoints.keep)
        checkpoint, drifted = where_to_begin(trainer.checkpoints, resumption)
        trainer.add_callback(watch)
        trainer.add_callback(DevLooks(watch, dev, trainer, score_dev))
        trainer.add_callback(Saver(trainer, recipe.checkpoints, stop))
        trainer.remove_callback(PrinterCallback)
        # Under autocast peft would widen each input to float32, for the next operation to narrow it again: same bits.
        narrow = disable_input_dtype_casting(trainer.model, active=profile.dtype != "float32")
        try:
            with narrow:
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        finally:
            watch.close()
        if trainer.choice.weights is not None:
            state.put(trainer.model, trainer.choice.weights, "the best look at dev")
            best, last = trainer.choice.chosen["step"], trainer.state.global_step
            say(f"  the adapter is that of step {best} of {last}, the best on dev")
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
            "choice": trainer.choice.as_dict(),
        },
    )
    write_json(out / "choice.json", trainer.choice.as_dict())
    plot_loss(watch.lines, out / "loss.png", trainer.choice.chosen["step"])
    write_lock(out / "recipe.lock.yaml", loaded, profile, lora, trainer.args, base)

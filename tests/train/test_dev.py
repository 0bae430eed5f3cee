"""Looks at dev leave no trace in training, and the best one's adapter is the one that is published."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_trainer import rendered, trainer_for
from tunesmith.errors import UserError
from tunesmith.evaluate.stage import dev_scorer, drawn, open_arena
from tunesmith.files import read_json, read_jsonl, sha256_file
from tunesmith.line import Line
from tunesmith.rows import Dataset
from tunesmith.sections import DevSection
from tunesmith.train import state
from tunesmith.train.choice import Choice
from tunesmith.train.dev import DevLooks, undisturbed
from tunesmith.train.resume import Resumption
from tunesmith.train.stage import train
from tunesmith.train.tracking import Trackers
from tunesmith.train.watch import Watch

# ---------------------------------------------------------------------- the choice


def looks(choice: Choice, *scores: tuple[float, float]) -> Choice:
    """Looks at steps 1, 2, ..., each with its score and loss; the weights at a look are its step."""
    for step, (score, loss) in enumerate(scores, start=1):
        look = {"step": step, "dev_nll": loss, "dev_rows": 8, "dev_exact_match": score}
        choice.consider(look, lambda step=step: {"w": torch.tensor([float(step)])})
    return choice


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.1, 1.0), (0.3, 2.0), (0.2, 0.1)], 2),
        ([(0.0, 1.0), (0.0, 0.8), (0.0, 0.9)], 2),
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5)], 1),
        ([(0.5, float("nan")), (0.5, 9.0), (0.4, 0.1)], 2),
    ],
    ids=["score", "loss breaks ties", "earlier", "no number"],
)
def test_the_best_look_is_that_of_the_highest_score_then_the_lowest_loss_then_the_earliest(
    scores: list[tuple[float, float]], best: int
) -> None:
    choice = looks(Choice(DevSection(rows=8, keep="best")), *scores)
    assert choice.chosen["step"] == choice.as_dict()["chosen"] == best
    assert choice.weights is not None
    assert choice.weights["w"].item() == best


def test_without_keep_best_the_last_is_published_and_no_weights_are_held() -> None:
    choice = looks(Choice(DevSection(rows=8)), (0.9, 0.1), (0.1, 0.9))
    assert (choice.chosen["step"], choice.weights, choice.exhausted) == (2, None, False)


def test_patience_counts_the_looks_since_the_best() -> None:
    choice = Choice(DevSection(rows=8, keep="best", patience=2))
    ended = []
    for score in (0.1, 0.2, 0.1, 0.3, 0.3, 0.2):
        looks_before = len(choice.looks)
        choice.consider({"step": looks_before, "dev_nll": 1.0, "dev_exact_match": score}, dict)
        ended.append(choice.exhausted)
    assert ended == [False, False, False, False, False, True]


def test_the_weights_that_are_held_are_a_copy() -> None:
    weights = {"w": torch.zeros(2)}
    choice = Choice(DevSection(rows=8, keep="best"))
    choice.consider({"step": 1, "dev_nll": 1.0, "dev_exact_match": 0.5}, lambda: weights)
    weights["w"] += 1
    assert choice.weights is not None
    assert not choice.weights["w"].any()


def test_the_rows_that_are_drawn_do_not_depend_on_what_other_rows_there_are(line: Line) -> None:
    rows = line.dataset.rows("dev")
    few = drawn(rows, 8, 0)
    assert len(few) == 8
    assert few == [row for row in rows if row in few]
    assert {row.id for row in few} < {row.id for row in drawn(rows, 16, 0)}
    assert few == drawn([row for row in rows if row in few or row.id < "h"], 8, 0)
    assert few != drawn(rows, 8, 1)
    assert drawn(rows, 999, 0) == rows


# ---------------------------------------------------------------------- no trace

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a quantised base": {"quantization": "nf4"},
    "gradient checkpointing": {"activation_checkpointing": True, "limits": None},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
}


def test_modes_and_generators_are_put_back_whatever_happens() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5))
    model[1].eval()
    before = state.random_state()
    wanted = (random.random(), np.random.rand(), torch.rand(1))
    state.set_random_state(before)

    def disturb() -> None:
        with undisturbed(model):
            model.eval()
            model[1].train()
            random.random(), np.random.rand(), torch.rand(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        disturb()
    assert [module.training for module in model.modules()] == [True, True, False]
    assert (random.random(), np.random.rand(), torch.rand(1)) == wanted


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
def test_a_run_that_looks_at_dev_ends_in_the_bits_of_one_that_does_not(
    line: Line,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """With dropout, at every step, through a scorer that also draws from every generator and changes modes."""
    rows = rendered(line, 24)
    line = Line("smoke", sets=["dev.rows=4"])
    arena = open_arena(line.loaded, line.dataset, line.base)
    real, asked = dev_scorer(arena), []

    def score(model: Any) -> dict[str, float]:
        random.random(), np.random.rand(), torch.rand(1)
        asked.append(model.training)
        return real(model)

    def run(look: bool) -> tuple[Any, dict[str, torch.Tensor], list[Any]]:
        trainer = trainer_for(line, rows, tmp_path, lora_dropout=0.1, max_steps=5, logging_steps=1, **settings)
        if look:
            trainer.choice = Choice(DevSection(rows=4, every_steps=1, keep="best"))
            watch = Watch(tmp_path, trainer, Trackers(trainer, None, tmp_path))
            trainer.add_callback(DevLooks(watch, rows[:4], trainer, score))
        trainer.train()
        held = any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())
        assert held == ("activation_checkpointing" in settings)
        log = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history[:-1]]
        return trainer, state.trained(trainer.model), log

    _, wanted, wanted_log = run(look=False)
    trainer, found, log = run(look=True)
    assert [look["step"] for look in trainer.choice.looks] == [1, 2, 3, 4, 5]
    assert len(asked) == 5
    assert any(bool(weight.any()) for name, weight in wanted.items() if "lora_B" in name)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())
    assert log == wanted_log


# ---------------------------------------------------------------------- the stage


def published(line: Line, out: Path, score: Any) -> dict[str, torch.Tensor]:
    out.mkdir()
    resumption = Resumption(out / "checkpoints", {})
    train(line.loaded, line.dataset, line.base, out, tokens=out, resumption=resumption, score_dev=score)
    weights: dict[str, torch.Tensor] = load_file(out / "adapter" / "adapter_model.safetensors")
    return weights


SETS = [
    "trainer.max_steps=8",
    "trainer.warmup_steps=0",
    "trainer.per_device_train_batch_size=4",
    "lora.lora_dropout=0.1",
    "dev.rows=4",
    "dev.every_steps=2",
]


def scripted(*scores: float) -> Any:
    """A scorer that finds what it is told to find, and remembers the weights that it found it at."""
    held: list[dict[str, torch.Tensor]] = []

    def score(model: Any) -> dict[str, float]:
        held.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return {"rows": 4, "exact_match": scores[len(held) - 1], "field_f1": 0.5}

    score.held = held  # type: ignore[attr-defined]
    return score


def same(published: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.equal(weight, held[name.replace(".weight", ".default.weight")]) for name, weight in published.items()
    )


@pytest.mark.parametrize(
    ("sets", "step", "steps"),
    [
        (["dev.keep=best"], 4, [2, 4, 6, 8]),
        (["dev.keep=last"], 8, [2, 4, 6, 8]),
        (["dev.keep=best", "dev.patience=1"], 4, [2, 4, 6]),
        (["dev.keep=best", "dev.every_steps=3"], 6, [3, 6, 8]),
    ],
    ids=["best", "last", "stopped early", "the last step too"],
)
def test_the_adapter_is_that_of_the_look_that_choice_json_names(
    line: Line,
    tmp_path: Path,
    sets: list[str],
    step: int,
    steps: list[int],
) -> None:
    line = Line("smoke", sets=[*SETS, *sets])
    score = scripted(0.25, 0.75, 0.5, 0.5)
    weights = published(line, tmp_path / "out", score)
    chosen = read_json(tmp_path / "out" / "choice.json")
    assert [look["step"] for look in chosen["looks"]] == steps
    assert chosen["chosen"] == step
    assert chosen["stopped_early"] == ("dev.patience=1" in sets)
    assert [same(weights, held) for held in score.held] == [look == step for look in steps]
    assert read_json(tmp_path / "out" / "adapter" / "manifest.json")["choice"] == chosen
    lines = [entry for entry in read_jsonl(tmp_path / "out" / "train.jsonl") if "dev_nll" in entry]
    assert lines == chosen["looks"]
    assert all(entry["dev_rows"] == 4 for entry in lines)
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_never_reads_a_row_of_gate_or_confirm(line: Line, tmp_path: Path) -> None:
    """Their files hold no rows at all, under a manifest that says so; the adapter is bit for bit the same."""
    line = Line("smoke", sets=[*SETS, "dev.keep=best"])

    def trained(name: str) -> bytes:
        dataset = Dataset(line.dataset.directory)
        line.dataset = dataset
        line.__dict__.pop("arena", None)
        published(line, tmp_path / name, dev_scorer(line.arena))
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    before = trained("sound")
    manifest = read_json(line.dataset.manifest_path)
    for split in ("gate", "confirm"):
        path = line.dataset.directory / f"{split}.jsonl"
        path.write_bytes(b"\xff this is no row\n")
        manifest["files"][path.name]["sha256"] = sha256_file(path)
    line.dataset.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not UTF-8"):
        line.dataset.rows("gate")
    assert trained("poisoned") == before


# ---------------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["dev.keep=best"], "dev: keep: best chooses by answers to dev rows; set rows"),
        (["dev.patience=2"], "dev: patience stops after looks that were worse; set keep: best"),
        (["dev.rows=-1"], "dev.rows: input should be greater than or equal to 0"),
        (["dev.every_steps=0"], "dev.every_steps: input should be greater than or equal to 1"),
        (["dev.keep=first"], "dev.keep: input should be 'last' or 'best'"),
        (["dev.metric=loss"], "dev.metric: unknown key"),
        (["trainer.load_best_model_at_end=true"], "trainer.load_best_model_at_end: set by the toolkit; use `dev.keep`"),
        (["trainer.eval_steps=5"], "trainer.eval_steps: set by the toolkit; use `dev.every_steps`"),
        (["trainer.metric_for_best_model=loss"], "trainer.metric_for_best_model: set by the toolkit"),
        (["trainer.per_device_eval_batch_size=2"], "trainer.per_device_eval_batch_size: set by the toolkit; use `dev`"),
    ],
)
def test_what_would_have_no_effect_is_refused(project: Path, sets: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        Line("smoke", sets=sets)
    assert told in error.value.text


def test_no_key_of_upstreams_evaluation_is_left_that_would_be_ignored(project: Path) -> None:
    from tunesmith import upstream
    from tunesmith.reserved import RESERVED

    left = [key for key in upstream.fields("trainer") if "eval" in key or "best_model" in key]
    assert len(left) > 10
    assert [key for key in left if key not in RESERVED["trainer"]] == []


def test_another_way_to_look_is_another_run(line: Line) -> None:
    names = [Line("smoke", sets=sets).run.directory.name for sets in ([], ["dev.rows=4"], ["dev.every_steps=5"])]
    answered = ["dev.rows=4", "arms.max_new_tokens=30"]
    names += [Line("smoke", sets=sets).run.directory.name for sets in (answered, answered[1:])]
    assert len(set(names)) == 4
    assert names[-1] == names[0]

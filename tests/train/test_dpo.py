"""Preference tuning begins where the adapter left the model, reads our token ids, and learns to prefer."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers.trainer_utils import SaveStrategy

from tunesmith import adapters
from tunesmith.beginning import Beginning
from tunesmith.errors import Diverged, UserError
from tunesmith.export.merge import merge
from tunesmith.files import read_json
from tunesmith.hardware import Profile
from tunesmith.line import Line
from tunesmith.prompt import Renderer
from tunesmith.tokens import Pair, rendered_pairs
from tunesmith.train import state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.opening import dpo_config, lora_config, preference_trainer
from tunesmith.train.pairs import PreferenceTrainer
from tunesmith.train.resume import Resumption
from tunesmith.train.stage import train

FEW = ["trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.max_steps=6"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rows that were curated once lie, for all tests."""
    return tmp_path_factory.mktemp("rows")


@pytest.fixture
def project(project: Path, rows: Path) -> Path:
    """A project whose pairs are curated."""
    target = project / "data" / "smoke-dpo"
    if not (rows / "manifest.json").exists():
        Line("smoke-dpo").curate()
        shutil.copytree(target, rows, dirs_exist_ok=True)
    shutil.copytree(rows, target, dirs_exist_ok=True)
    return project


def line_of(*sets: str) -> Line:
    return Line("smoke-dpo", sets=[*FEW, *sets])


def renderer_of(line: Line) -> Renderer:
    return Renderer(line.base.tokenizer(), line.base.end_ids())


def pairs_of(line: Line, count: int) -> list[Pair]:
    return rendered_pairs(renderer_of(line), line.dataset, "train", Path("nowhere"))[:count]


def begun(line: Line, directory: Path) -> Path:
    """An adapter as a run leaves it, with random weights."""
    model = line.base.model(dtype=torch.float32, quantization=line.recipe.quantization)
    model = get_peft_model(model, lora_config(line.recipe))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    systems = line.dataset.manifest()["systems"]
    bound = {
        "quantization": line.recipe.quantization,
        "prompt_digest": renderer_of(line).digest(systems),
        "train_digest": line.dataset.digest("train"),
        "lora": line.recipe.lora,
    }
    adapters.save(model, directory / "adapter", base=line.base, bound=bound)
    (directory / "recipe.lock.yaml").write_text("recipe:\n  data:\n    directory: data/smoke-dpo\n")
    return directory / "adapter"


def opened(line: Line, tmp_path: Path, count: int = 32) -> PreferenceTrainer:
    adapter = tmp_path / "began" / "adapter"
    if not adapter.exists():
        begun(line, tmp_path / "began")
    trainer, _ = preference_trainer(line.recipe, pairs_of(line, count), [], line.base, adapter, str(tmp_path))
    return trainer


def weights(trainer: Any, name: str) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if f".{name}" in n}


KINDS = {
    "every linear layer": [],
    "an embedding": ["lora.target_modules=[q_proj, embed_tokens]"],
    "a quantised base": ["quantization=nf4"],
    "a begin from the base's own weights": ["lora.init_lora_weights=pissa"],
    "dora": ["lora.use_dora=true"],
}


@pytest.mark.parametrize("sets", KINDS.values(), ids=KINDS.keys())
def test_it_begins_as_the_adapter_left_it_with_a_loss_of_log_2_and_no_reward(
    project: Path, tmp_path: Path, sets: list[str]
) -> None:
    line = line_of(*sets)
    trainer = opened(line, tmp_path, 8)
    began = adapters.attach(
        line.base.model(dtype=torch.float32, quantization=line.recipe.quantization), tmp_path / "began" / "adapter"
    )
    held = {name: p.detach() for name, p in began.named_parameters() if ".default" in name}
    for name, weight in held.items():
        assert torch.equal(trainer.model.get_parameter(name), weight.float()), name
    chosen = [pair[0] for pair in trainer.pairs]
    with trainer.as_reference():
        reference = trainer.token_nll(chosen)
    with trainer.model.disable_adapter():
        without = trainer.token_nll(chosen)
    assert trainer.token_nll(chosen) == reference != without
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/chosen"] == metrics["rewards/rejected"] == [0.0]


def test_where_training_would_begin_elsewhere_it_does_not(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line_of()
    opened(line, tmp_path, 8)
    plain = PreferenceTrainer.__init__

    def shifted(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        next(p for n, p in self.model.named_parameters() if "lora_B.ref" in n).data += 0.1

    monkeypatch.setattr(PreferenceTrainer, "__init__", shifted)
    with pytest.raises(UserError, match=r"where training would begin it is .*, and that of the reference"):
        opened(line, tmp_path, 8)


def test_the_ids_of_a_batch_are_the_renderers_and_both_answers_learn_to_end(project: Path, tmp_path: Path) -> None:
    line = line_of()
    trainer = opened(line, tmp_path, 8)
    renderer = renderer_of(line)
    (inputs,) = trainer.get_train_dataloader()
    order = trainer.rows_of_step(0)
    rows = line.dataset.rows("train")
    assert sorted(order) == list(range(8))
    wanted = [renderer.render(rows[i]) for i in order]
    wanted += [renderer.render(rows[i].with_rejected()) for i in order]  # type: ignore[arg-type]
    assert [row.completion_ids[-1] for row in wanted] == [renderer.end_ids[0]] * 16
    for row, ids, read, mask in zip(
        wanted, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], strict=True
    ):
        length = len(row.input_ids)
        assert ids[:length].tolist() == row.input_ids
        assert mask[:length].tolist() == row.loss_mask
        assert (int(read.sum()), int(mask[length:].sum())) == (length, 0)
    assert {row.prompt_ids == other.prompt_ids for row, other in zip(wanted[:8], wanted[8:], strict=True)} == {True}


def test_it_learns_to_prefer_and_only_the_adapter_moves(project: Path, tmp_path: Path) -> None:
    line = line_of("trainer.max_steps=8", "trainer.learning_rate=2e-3")
    trainer = opened(line, tmp_path, 16)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    first = trainer.measured(trainer.pairs)
    assert (first["dev_accuracy"], first["dev_margin"]) == (0.0, 0.0)
    assert first["dev_loss"] == pytest.approx(math.log(2))
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".default" not in name), name
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "loss" in entry]
    assert margins[0] == 0.0
    assert margins[-1] > 0.5
    last = trainer.measured(trainer.pairs)
    assert last["dev_accuracy"] > 0.8
    assert last["dev_margin"] > 0.5
    assert last["dev_loss"] < first["dev_loss"]
    assert trainer.model.training


def test_held_out_scores_do_not_depend_on_the_batch_and_rows_without_a_rejected_answer_count(
    project: Path, tmp_path: Path
) -> None:
    trainer = opened(line_of(), tmp_path, 11)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in trainer.model.named_parameters():
        if ".default" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    found = []
    for size in (1, 4, 11):
        trainer.args.per_device_train_batch_size = size
        found.append(trainer.measured([*trainer.pairs, (trainer.pairs[0][0], None)]))
    assert 0 < found[0]["dev_margin"] != found[0]["dev_loss"] or found[0]["dev_margin"] < 0
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    assert set(trainer.measured([(trainer.pairs[0][0], None)])) == {"dev_nll"}


def test_a_step_is_the_mean_of_its_pairs_however_it_is_cut(project: Path, tmp_path: Path) -> None:
    """With a short step at the end of the epoch, whose last pass is shorter still."""
    found = []
    for tokens in (100_000, 600):
        plain = ["trainer.optim=sgd", "trainer.max_grad_norm=0.0", "trainer.max_steps=2", "trainer.learning_rate=0.1"]
        trainer = opened(line_of(*plain, f"hardware.batch_tokens={tokens}"), tmp_path, 13)
        trainer.train()
        found.append((weights(trainer, "default"), trainer.args.per_device_train_batch_size))
    (whole, eight), (cut, fewer) = found
    assert (eight, fewer) == (8, 2)
    assert all(torch.allclose(weight, cut[name], atol=1e-6) for name, weight in whole.items())
    assert any(not torch.equal(weight, cut[name]) for name, weight in whole.items())


def test_a_loss_that_takes_pairs_together_is_refused_where_a_step_is_cut(project: Path, tmp_path: Path) -> None:
    line = line_of("trainer.loss_type=[sigmoid, sft]")
    profile = Profile("cpu", "float32", False, 4, 2, False)
    with pytest.raises(UserError, match="'sft' takes the pairs of a step together, and 4 of its 8 fit into one pass"):
        dpo_config(line.recipe, profile, str(tmp_path))
    config = dpo_config(line.recipe, replace(profile, rows_per_pass=8, accumulation=1), str(tmp_path))
    assert (config.loss_type, config.max_length, config.disable_dropout) == (["sigmoid", "sft"], None, True)


def test_a_run_that_goes_on_is_the_run_that_did_not_stop_and_the_same_seed_gives_the_same_bits(
    project: Path, tmp_path: Path
) -> None:
    line = line_of("hardware.batch_tokens=800", "trainer.logging_steps=3")

    def run(go_on: int | None = None) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        trainer = opened(line, tmp_path, 20)
        assert trainer.args.gradient_accumulation_steps > 1
        trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", {}, keep=10)
        if go_on is None:
            trainer.args.save_strategy, trainer.args.save_steps = SaveStrategy.STEPS, 1
        path = str(tmp_path / "checkpoints" / f"step-{go_on:08d}") if go_on else None
        trainer.train(resume_from_checkpoint=path)
        log = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history[:-1]]
        return state.trained(trainer.model), log

    wanted, log = run()
    assert {name.split(".")[-2] for name in wanted} == {"default"}
    for step in (None, 4):
        found, again = run(step)
        assert all(torch.equal(weight, wanted[name]) for name, weight in found.items()), step
        assert again == log


def test_a_weight_that_is_no_number_stops_before_the_optimizer_and_names_the_rows(
    project: Path, tmp_path: Path
) -> None:
    trainer = opened(line_of(), tmp_path, 8)
    next(p for n, p in trainer.model.named_parameters() if "lora_B.default" in n).data.view(-1)[0] = float("nan")
    before = weights(trainer, "default")
    with pytest.raises(Diverged, match=r"the loss became nan at step 1, rows number \d.*alone not finite: number"):
        trainer.train()
    assert all(torch.equal(w.nan_to_num(), before[n].nan_to_num()) for n, w in weights(trainer, "default").items())


def test_a_row_alone_is_both_of_its_answers(project: Path, tmp_path: Path) -> None:
    trainer = opened(line_of(), tmp_path, 4)
    nlls = [trainer.token_nll([one]) * len(one.completion_ids) for one in trainer.pairs[2] if one]
    with torch.no_grad():
        assert trainer.alone(2) == pytest.approx(sum(nlls), rel=1e-5)
    assert len(nlls) == 2


# ---------------------------------------------------------------------- the stage


def trained(line: Line, out: Path, beginning: Path) -> Path:
    out.mkdir()
    train(
        line.loaded,
        line.dataset,
        line.base,
        out,
        tokens=out,
        resumption=Resumption(out / "checkpoints", {}),
        beginning=Beginning(beginning, line.loaded.root),
    )
    return out / "adapter"


def test_what_is_published_is_the_trained_adapter_alone_and_merges_to_what_it_answers(
    project: Path, tmp_path: Path
) -> None:
    line = line_of("trainer.learning_rate=1e-2")
    begun(line, tmp_path / "began")
    adapter = trained(line, tmp_path / "out", tmp_path / "began")
    assert sorted(path.name for path in adapter.iterdir()) == [*adapters.FILES, "manifest.json"]
    began = load_file(tmp_path / "began" / "adapter" / "adapter_model.safetensors")
    now = load_file(adapter / "adapter_model.safetensors")
    assert now.keys() == began.keys()
    assert all(not torch.equal(now[name], weight) for name, weight in began.items())
    assert {weight.dtype for weight in now.values()} == {torch.float32}
    assert read_json(adapter / "manifest.json")["after"] == adapters.digest(tmp_path / "began" / "adapter")
    systems = line.dataset.manifest()["systems"]
    adapters.verify(adapter, base=line.base, prompt_digest=renderer_of(line).digest(systems))

    probes = [renderer_of(line).render(row) for row in line.dataset.rows("dev")[:4]]
    assert {one.status for one in merge(line.base, adapter, systems, probes, tmp_path / "merged")} == {"PASS"}
    from tunesmith.bases import load_model

    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    attached = adapters.attach(line.base.model(dtype=torch.float32), adapter)
    ids = torch.tensor([pairs_of(line, 1)[0][0].input_ids])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, attached(ids).logits, atol=1e-4)
        with attached.disable_adapter():
            assert not torch.allclose(merged(ids).logits, attached(ids).logits, atol=1e-2)

    lines = [json.loads(text) for text in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"} <= set(lines[0])
    assert {"dev_nll", "dev_loss", "dev_accuracy", "dev_margin"} <= set(lines[-1])
    lock = YAML(typ="safe").load((tmp_path / "out" / "recipe.lock.yaml").read_text())
    assert lock["after"] == {"run": "began", "adapter": adapters.digest(tmp_path / "began" / "adapter")}
    assert (lock["trainer"]["beta"], lock["trainer"]["loss_type"]) == (0.1, ["sigmoid"])


def test_an_adapter_that_learned_nothing_more_is_not_published(project: Path, tmp_path: Path) -> None:
    line = line_of("trainer.learning_rate=1e-30", "trainer.max_steps=1", "trainer.weight_decay=0.0")
    begun(line, tmp_path / "began")
    with pytest.raises(Diverged, match=r"`train loss falls` fails: .* nats by which the rejected answer is likelier"):
        trained(line, tmp_path / "out", tmp_path / "began")
    assert not (tmp_path / "out" / "adapter").exists()


UNFIT = {
    "another rank": (["lora.r=4"], "was trained with lora.r = 16, the recipe says 4"),
    "a key that it had not": (["lora.use_rslora=true"], "lora.use_rslora = None, the recipe says True"),
    "another quantisation": (["quantization=nf4"], "with quantization none, the recipe says nf4"),
}


@pytest.mark.parametrize(("sets", "problem"), UNFIT.values(), ids=UNFIT.keys())
def test_an_adapter_that_was_made_otherwise_is_no_beginning(
    project: Path, tmp_path: Path, sets: list[str], problem: str
) -> None:
    begun(line_of(), tmp_path / "began")
    with pytest.raises(UserError, match=problem):
        trained(line_of(*sets), tmp_path / "out", tmp_path / "began")


def test_an_adapter_of_another_prompt_or_already_tuned_is_no_beginning(project: Path, tmp_path: Path) -> None:
    line = line_of()
    begun(line, tmp_path / "began")
    path = tmp_path / "began" / "adapter" / "manifest.json"
    held = read_json(path)
    beginning = Beginning(tmp_path / "began", line.loaded.root)
    with pytest.raises(UserError, match="was trained with another prompt"):
        beginning.verify(line.recipe, line.base, "another")
    path.write_text(json.dumps(held | {"after": "x"}))
    with pytest.raises(UserError, match="was itself tuned by preferences"):
        beginning.verify(line.recipe, line.base, held["prompt_digest"])


def test_a_recipe_that_there_is_not_is_told_at_once(project: Path) -> None:
    with pytest.raises(UserError, match="smok: no such recipe in recipes/; did you mean `smoke`"):
        line_of("after=smok")
    text = (project / "recipes" / "smoke-dpo.yaml").read_text()
    (project / "recipes" / "smoke-twin.yaml").write_text(text.replace("name: smoke-dpo", "name: smoke-twin"))
    line = line_of("after=smoke-twin")
    with pytest.raises(UserError, match="after: smoke-twin begins from an adapter itself"):
        _ = line.beginning


def test_without_a_finished_run_it_is_said_what_makes_one(project: Path) -> None:
    line = line_of()
    with pytest.raises(UserError, match=r"data/smoke: holds no manifest\.json"):
        _ = line.run
    Line("smoke").curate()
    with pytest.raises(UserError, match=r"after: runs/smoke-[0-9a-f]{12} holds no adapter; `tunesmith train` of that"):
        _ = line.run


def test_the_adapter_that_it_begins_from_names_the_run(project: Path, tmp_path: Path) -> None:
    line = line_of()
    names = set()
    for scale in ("a", "b"):
        adapter = begun(line, project / "runs" / scale)
        if scale == "b":
            file = adapter / "adapter_model.safetensors"
            file.write_bytes(file.read_bytes() + b" ")
        names.add(line_of(f"after=runs/{scale}").run.directory.name)
    assert len(names) == 2

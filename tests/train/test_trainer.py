"""Our loss is trl's, our batches hold every row once, and a loss that is no number stops the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunesmith import hardware
from tunesmith.errors import Diverged
from tunesmith.line import Line
from tunesmith.prompt import IGNORE, Rendered, Renderer
from tunesmith.train.loss import nll_sum
from tunesmith.train.opening import lora_config, sft_config
from tunesmith.train.resume import Resumption
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.stage import train
from tunesmith.train.trainer import AdapterTrainer, reads_loss_tokens_only
from tunesmith.train.tree import Limits, lay_out


def rendered(line: Line, count: int) -> list[Rendered]:
    renderer = Renderer(line.base.tokenizer(), line.base.end_ids())
    return [renderer.render(row) for row in line.dataset.rows("train")[:count]]


def trainer_for(
    line: Line,
    rows: list[Rendered],
    out: Path,
    *,
    quantization: str = "none",
    limits: Limits | None = Limits(),  # noqa: B008 - frozen
    dtype: str = "float32",
    lora_dropout: float = 0.0,
    **overrides: Any,
) -> Any:
    profile = hardware.choose(hardware.look(), line.recipe, longest_row=128, base_gib_fp32=0.01)
    profile = replace(profile, dtype=dtype)
    config = sft_config(line.recipe, profile, str(out))
    for key, value in overrides.items():
        setattr(config, key, value)
    return AdapterTrainer(
        model=line.base.model(dtype=profile.torch_dtype, quantization=quantization),
        args=config,
        rows=rows,
        limits=limits,
        processing_class=line.base.tokenizer(),
        peft_config=replace(lora_config(line.recipe), lora_dropout=lora_dropout),
    )


def randomise(trainer: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def batch_of(trainer: Any, rows: list[Rendered]) -> dict[str, Any]:
    batch: dict[str, Any] = trainer.data_collator([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    return batch


def batch_of_trl(rows: list[Rendered]) -> dict[str, torch.Tensor]:
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    batch: dict[str, torch.Tensor] = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    return batch


def gradients(trainer: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("limits", [None, Limits()], ids=["apart", "shared"])
@pytest.mark.parametrize("items", [None, 7, 1000])
def test_loss_and_gradients_are_those_of_trl(
    line: Line, tmp_path: Path, items: int | None, limits: Limits | None
) -> None:
    rows = rendered(line, 6)
    silent = Rendered(rows[5].input_ids, [], ends=False)  # a row without any loss token
    trainer = trainer_for(line, rows, tmp_path, limits=limits)
    randomise(trainer)
    batch = batch_of(trainer, [*rows[:5], silent])
    assert trainer._own_loss
    assert len(batch["levels"]) == (2 if limits else 1)
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    our_gradients = gradients(trainer, ours)
    theirs = SFTTrainer.compute_loss(
        trainer, trainer.model, batch_of_trl([*rows[:5], silent]), num_items_in_batch=items
    )
    their_gradients = gradients(trainer, theirs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, gradient in our_gradients.items():
        assert torch.allclose(gradient, their_gradients[name], atol=1e-6), name
    assert any(float(g.abs().max()) > 1e-4 for g in our_gradients.values())


def test_a_batch_without_loss_tokens_has_a_loss_of_zero(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 2)
    trainer = trainer_for(line, rows, tmp_path)
    batch = batch_of(trainer, [Rendered(row.input_ids, [], ends=False) for row in rows])
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == 0.0


def test_long_heads_are_read_in_pieces_with_the_same_result(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rendered(line, 4)
    trainer = trainer_for(line, rows, tmp_path)
    randomise(trainer)
    layout = lay_out(rows, None)
    whole = nll_sum(trainer.model, layout.levels, layout.targets)
    monkeypatch.setattr("tunesmith.train.loss.MAX_LOGITS", 259 * 5)
    pieces = nll_sum(trainer.model, layout.levels, layout.targets)
    assert len(layout.targets) == sum(len(row.completion_ids) for row in rows) > 20
    assert pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    one, other = (torch.cat([g.flatten() for g in gradients(trainer, loss).values()]) for loss in (whole, pieces))
    assert float((one - other).norm()) < 1e-5 * float(one.norm())


def test_one_pass_of_eight_rows_steps_like_eight_passes_of_one(line: Line, tmp_path: Path) -> None:
    """Loss is normalised over the step's loss tokens, however the step is cut."""
    rows = rendered(line, 8)
    adapters = []
    for rows_per_pass, accumulation in ((8, 1), (1, 8)):
        trainer = trainer_for(
            line,
            rows,
            tmp_path,
            per_device_train_batch_size=rows_per_pass,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            max_grad_norm=0.0,
            optim="sgd",
        )
        randomise(trainer)
        trainer.train()
        adapters.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    for name, weight in adapters[0].items():
        assert torch.allclose(weight, adapters[1][name], atol=1e-5), name


def test_only_the_adapter_moves(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 32)
    trainer = trainer_for(line, rows, tmp_path, max_steps=4)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_a_quantised_base_trains_float32_adapters(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 32)
    trainer = trainer_for(line, rows, tmp_path, quantization="nf4", max_steps=3)
    assert trainer.model.is_loaded_in_4bit
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in before.values()} == {torch.float32}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())


def test_a_loss_that_is_not_a_number_stops_before_the_optimizer(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 32)
    trainer = trainer_for(line, rows, tmp_path, max_steps=3)
    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    others = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_A" in n}
    with pytest.raises(Diverged, match="the loss became nan at step 1"):
        trainer.train()
    assert all(torch.equal(dict(trainer.model.named_parameters())[n], p) for n, p in others.items())


def test_dev_loss_does_not_depend_on_the_batch(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 10)
    losses = []
    for size in (1, 3, 10):
        trainer = trainer_for(line, rows, tmp_path, per_device_train_batch_size=size)
        losses.append(trainer.token_nll(rows))
        assert trainer.model.training
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("limits", [None, Limits()], ids=["apart", "shared"])
def test_each_epoch_holds_every_row_once_in_another_order_that_the_seed_fixes(limits: Limits | None) -> None:
    rows = [Rendered([index], [7] * (9 + index % 37), ends=True) for index in range(101)]
    sampler = FamilySampler(rows, batch=8, seed=3, limits=limits)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    again = FamilySampler(rows, batch=8, seed=3, limits=limits)
    again.set_epoch(1)
    assert list(again) == second
    assert list(FamilySampler(rows, batch=8, seed=4, limits=limits)) != first


def test_rows_of_like_length_share_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 200, (800,), generator=generator).tolist()
    rows = [Rendered([1], [7] * (length - 1), ends=True) for length in lengths]
    order = list(FamilySampler(rows, batch=8, seed=0, limits=None))

    def padding(indices: list[int]) -> float:
        batches = [[lengths[i] for i in indices[start : start + 8]] for start in range(0, 800, 8)]
        return sum(max(b) * len(b) - sum(b) for b in batches) / sum(lengths)

    assert padding(order) < 0.15 < 0.5 < padding(list(range(800)))


def test_labels_of_the_collated_batch_hold_each_end_token(line: Line, tmp_path: Path) -> None:
    """Pad and end token are one token in this base, as in SmolLM2 and many others."""
    rows = rendered(line, 5)
    trainer = trainer_for(line, rows, tmp_path)
    batch = batch_of(trainer, rows)
    end = line.base.end_ids()[0]
    assert end == line.base.tokenizer().pad_token_id
    assert int((batch["labels"] == end).sum()) == 5
    assert (
        int((batch["labels"][1:] != IGNORE).sum())
        == len(batch["labels"]) - 1
        == sum(len(row.completion_ids) for row in rows)
    )


def test_inputs_that_peft_need_not_widen_give_the_same_bits(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 16)
    adapters = []
    for narrow in (False, True):
        trainer = trainer_for(line, rows, tmp_path, dtype="bfloat16", max_steps=2)
        assert trainer.args.bf16
        randomise(trainer)
        with disable_input_dtype_casting(trainer.model, active=narrow):
            trainer.train()
        adapters.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert {p.dtype for p in adapters[0].values()} == {torch.float32}
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


def with_an_unused_layer(line: Line, monkeypatch: pytest.MonkeyPatch, experts: int | None = None) -> None:
    load = line.base.model

    def model(**options: Any) -> Any:
        loaded = load(**options)
        loaded.model.unused = torch.nn.Linear(8, 8)
        loaded.config.num_experts = experts
        return loaded

    monkeypatch.setattr(type(line.base), "model", lambda self, **options: model(**options))


def test_a_module_that_takes_no_part_stops_the_run_at_its_first_step(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_an_unused_layer(line, monkeypatch)
    trainer = trainer_for(line, rendered(line, 8), tmp_path, max_steps=2, warmup_steps=0)
    with pytest.raises(Diverged, match=r"1 of \d+ adapted modules learn nothing.*: model\.unused; nothing was written"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_expert_that_met_no_token_does_not(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_an_unused_layer(line, monkeypatch, experts=8)
    trainer = trainer_for(line, rendered(line, 8), tmp_path, max_steps=2, warmup_steps=0)
    trainer.train()
    assert trainer.state.global_step == 2


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def fresh(directory: Path) -> Resumption:
    return Resumption(directory / "checkpoints", {})


def test_sharing_that_is_not_exact_is_dropped(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line("smoke", sets=["trainer.max_steps=2", "trainer.warmup_steps=0"])
    train(line.loaded, line.dataset, line.base, made(tmp_path / "shared"), tokens=tmp_path, resumption=fresh(tmp_path))
    said = " ".join(capsys.readouterr().err.split())
    assert "share_prefixes = True: what rows of a batch begin with is computed once" in said
    assert "0% less to compute" not in said

    def severed(cache: Any, children: list[int]) -> None:
        for layer in cache.layers:
            layer.keys = layer.keys.detach().expand(children[0], -1, -1, -1)
            layer.values = layer.values.expand(children[0], -1, -1, -1)

    monkeypatch.setattr("tunesmith.train.loss._descend", severed)
    train(line.loaded, line.dataset, line.base, made(tmp_path / "apart"), tokens=tmp_path, resumption=fresh(tmp_path))
    said = " ".join(capsys.readouterr().err.split())
    assert "share_prefixes = False: gradients through shared beginnings would differ by" in said
    assert "0% less to compute" in said


def test_a_head_that_our_loss_does_not_know_is_left_to_trl(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line("smoke", sets=["trainer.max_steps=2", "trainer.warmup_steps=0"])
    read = AdapterTrainer.error

    def unknown(trainer: AdapterTrainer) -> float:
        return read(trainer) if not trainer._own_loss else float("nan")

    monkeypatch.setattr(AdapterTrainer, "error", unknown)
    train(line.loaded, line.dataset, line.base, tmp_path, tokens=tmp_path, resumption=fresh(tmp_path))
    assert "loss and gradients are left to trl" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("setting", "value"), [("loss_type", "dft"), ("label_smoothing_factor", 0.1), ("torch_compile", True)]
)
def test_what_our_loss_does_not_compute_is_left_to_trl(line: Line, tmp_path: Path, setting: str, value: object) -> None:
    trainer = trainer_for(line, rendered(line, 16), tmp_path)
    assert reads_loss_tokens_only(trainer.model, trainer.args)
    setattr(trainer.args, setting, value)
    assert not reads_loss_tokens_only(trainer.model, trainer.args)


def test_a_capped_head_is_left_to_trl_and_its_dev_loss_is_the_models_own(line: Line, tmp_path: Path) -> None:
    rows = rendered(line, 6)
    plain = trainer_for(line, rows, tmp_path)
    batched = plain.token_nll(rows)
    plain._own_loss = False
    assert plain.token_nll(rows) == pytest.approx(batched, rel=1e-5)
    plain.model.config.final_logit_softcapping = 30.0
    assert not reads_loss_tokens_only(plain.model, plain.args)


def test_a_recurrent_model_is_left_to_trl(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(line, rendered(line, 6), tmp_path)
    assert reads_loss_tokens_only(trainer.model, trainer.args)
    monkeypatch.setattr(type(trainer.model.get_base_model()), "_is_stateful", True)
    assert not reads_loss_tokens_only(trainer.model, trainer.args)


def test_a_loss_that_is_left_to_trl_trains_on_its_own_batches(line: Line, tmp_path: Path) -> None:
    trainer = trainer_for(line, rendered(line, 16), tmp_path, loss_type="dft", max_steps=1)
    assert trainer.limits is None
    assert set(trainer.data_collator([trainer.train_dataset[0]])) >= {"input_ids", "labels"}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0

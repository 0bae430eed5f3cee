"""A run whose loss looks healthy is seen through: each fault is planted in a real run, and must be named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import Diverged, EnvironmentFault
from tunesmith.files import read_json
from tunesmith.findings import table
from tunesmith.line import Line
from tunesmith.prompt import IGNORE
from tunesmith.train import opening, stage
from tunesmith.train.opening import sft_config
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.trainer import AdapterTrainer, Collator

SHORT = [
    "trainer.max_steps=8",
    "trainer.warmup_steps=0",
    "curate.split.shares={train: 0.12, dev: 0.05, gate: 0.73, confirm: 0.1}",
]


def trained(sets: Sequence[str] = ()) -> Line:
    line = Line("smoke", sets=[*SHORT, *sets])
    line.curate()
    line.check()
    line.train()
    return line


def test_a_sound_run_passes_and_says_what_was_looked_at(project: Path) -> None:
    line = trained()
    found = {one["name"]: one for one in read_json(line.run.path("train-check.json"))["checks"]}
    assert {one["status"] for one in found.values()} == {"PASS"}
    rows = line.dataset.rows("train")
    tokens = sum(len(line.arena.renderer.render(row).completion_ids) for row in rows)
    assert found["batches as trained"]["evidence"] == (
        f"{tokens} loss tokens in the epoch's batches, {tokens} in its rows, {len(rows)} of them end a turn"
    )
    assert found["resumed as begun"]["evidence"] == "begun anew"
    manifest = read_json(line.run.path("adapter/manifest.json"))
    assert found["order of rows"]["evidence"].split()[1] == manifest["order_digest"][:12]
    held = {fault["number"] for fault in table(line.run.directory) if fault["status"] == "PASS"}
    assert held >= {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 17, 18, 19, 22, 24, 26, 29}


def mask_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a collator does that masks the pad token by its id, where that ends turns too."""
    real = Collator.__call__

    def masking(self: Collator, rows: Any) -> dict[str, Any]:
        batch = real(self, rows)
        batch["labels"] = torch.where(batch["labels"] == 2, IGNORE, batch["labels"])
        return batch

    monkeypatch.setattr(Collator, "__call__", masking)
    # The loss of such a step would be divided by fewer tokens, which is noticed first.
    monkeypatch.setattr(AdapterTrainer, "_weigh", lambda self, counted: setattr(self, "weighed", 1))
    nll = "tunesmith.train.trainer.nll_sum"
    monkeypatch.setattr(nll, lambda model, levels, targets: _masked(model, levels, targets))


def _masked(model: Any, levels: Any, targets: torch.Tensor) -> torch.Tensor:
    from tunesmith.train.loss import nll_sum

    return nll_sum(model, levels, torch.where(targets == IGNORE, 0, targets))


def cast_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As trl does with the adapters of a quantised base."""
    real = AdapterTrainer.train

    def narrowing(self: AdapterTrainer, *args: Any, **options: Any) -> Any:
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        return real(self, *args, **options)

    monkeypatch.setattr(AdapterTrainer, "train", narrowing)


def let_rows_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As packing does without a mask between rows: here, the gradient of a pass is not that of its rows."""
    errors = iter([0.0, 0.0])
    monkeypatch.setattr(AdapterTrainer, "error", lambda self: next(errors, 0.7))


def order_by_whoever_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a sampler does that has no generator of its own."""

    def drawn(self: FamilySampler) -> list[list[int]]:
        return [part.tolist() for part in torch.randperm(len(self.lengths)).split(self.batch)]

    monkeypatch.setattr(FamilySampler, "batches", drawn)


def find_a_batch_by_running_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As upstream's key of that name does."""
    monkeypatch.setattr(opening, "sft_config", lambda *args: holding(sft_config(*args), auto_find_batch_size=True))


def holding(config: Any, **values: Any) -> Any:
    for key, value in values.items():
        setattr(config, key, value)
    return config


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are the fault."""


FAULTS = {
    "an end token masked by its id": (mask_the_end, [], "`batches as trained` fails"),
    "rows that see each other": (let_rows_see_each_other, [], "`rows apart` fails"),
    "an order that anybody changes": (order_by_whoever_draws, [], "`order of rows` fails"),
    "a batch found by running out of memory": (find_a_batch_by_running_out, [], "`batch size` fails"),
    "an adapter in bfloat16": (cast_to_bfloat16, [], "`late updates arrive` fails: in torch.bfloat16"),
    "updates that round to nothing": (nothing, ["trainer.learning_rate=1e-12"], "there moved 0.0% of lora_A"),
    "a learning rate of nothing": (nothing, ["trainer.learning_rate=1e-12"], "`train loss falls` fails"),
}


@pytest.mark.parametrize(("plant", "sets", "says"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_named_and_nothing_is_published(
    project: Path, monkeypatch: pytest.MonkeyPatch, plant: Any, sets: list[str], says: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(Diverged) as refused:
        trained(sets)
    assert says in refused.value.text
    assert not list(project.glob("runs/*/adapter"))


@pytest.mark.parametrize(
    ("where", "config", "section", "key"),
    [(opening, "sft_config", "trainer", "weight_decay"), (stage, "lora_config", "lora", "lora_dropout")],
)
def test_a_value_that_upstream_changes_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, where: Any, config: str, section: str, key: str
) -> None:
    real = getattr(where, config)
    monkeypatch.setattr(where, config, lambda *args: holding(real(*args), **{key: 0.5}))
    line = trained([f"{section}.{key}=0.25"])
    found = {one["name"]: one for one in read_json(line.run.path("train-check.json"))["checks"]}
    assert found["settings"]["status"] == "WARN"
    assert found["settings"]["evidence"] == f"{section}.{key}: 0.25, held 0.5"


@pytest.mark.parametrize("counted", [None, 3])
def test_a_step_that_upstream_counts_otherwise_stops(
    project: Path, monkeypatch: pytest.MonkeyPatch, counted: int | None
) -> None:
    real = AdapterTrainer.training_step

    def miscounting(self: AdapterTrainer, model: Any, inputs: Any, items: Any = None) -> torch.Tensor:
        return real(self, model, inputs, counted)

    monkeypatch.setattr(AdapterTrainer, "training_step", miscounting)
    with pytest.raises(EnvironmentFault, match=rf"step 1 counts {counted} loss tokens, its rows hold \d+"):
        trained()


def test_dev_rows_that_gain_nothing_are_told_but_do_not_stop(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AdapterTrainer.losses
    calls: list[int] = []

    def unmoved(self: AdapterTrainer, rows: Any) -> list[float]:
        calls.append(len(rows))
        # Before: train, dev; after: train, dev.
        return [1.0] * len(rows) if len(calls) in {2, 4} else real(self, rows)

    monkeypatch.setattr(AdapterTrainer, "losses", unmoved)
    line = trained()
    found = {one["name"]: one["status"] for one in read_json(line.run.path("train-check.json"))["checks"]}
    assert found["dev loss falls"] == "WARN"
    assert found["train loss falls"] == "PASS"

"""What training takes of a machine: by the formula, by a measured pass that leaves nothing behind, and what to do."""

import gc
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_trainer import rendered, trainer_for
from tunesmith import bases, hardware
from tunesmith.errors import EnvironmentFault, ExitCode, UserError
from tunesmith.files import read_json
from tunesmith.hardware import GIB, Hardware
from tunesmith.line import Line
from tunesmith.runs import Run
from tunesmith.train import plan as planning
from tunesmith.train import probe as probing
from tunesmith.train.plan import Anatomy, anatomy, estimate, plan, refuse, what_would_fit, with_settings
from tunesmith.train.probe import Probe, nothing_happened, one_pass
from tunesmith.train.resume import Resumption
from tunesmith.train.stage import train
from tunesmith.train.work import Pass

GPU = Hardware("cuda", "a GPU", 14.6, 4, False, True)
LLAMA_8B = Anatomy(
    linear=6_979_321_856,
    other=1_050_939_392,
    trained=41_943_040,
    layers=32,
    hidden=4096,
    intermediate=14336,
    queries=4096,
    cached=2048,
    ranks=32 * 7 * 16,
    adapted=32 * (6 * 4096 + 14336),
    vocabulary=128_256,
)


def on(line: Line, machine: Hardware, **settings: Any) -> Any:
    recipe = with_settings(line.recipe, settings)
    return recipe, hardware.choose(machine, recipe, longest_row=512, base_gib_fp32=30)


def test_the_formula_gives_the_figures_that_are_known(line: Line) -> None:
    """Of an 8B base with r 16 on all linear layers: weights in 16 and in 4 bits, adapter with its optimizer."""
    recipe, profile = on(line, GPU)
    few = Pass([0], 4096, 4096, 4096)
    parts = estimate(LLAMA_8B, recipe, profile, few)
    assert parts["base"] * GIB == pytest.approx(16.06e9, rel=0.01)
    assert sum(parts[name] for name in ("adapter", "gradients", "optimizer")) * GIB == pytest.approx(0.67e9, rel=0.01)
    assert profile.gradient_checkpointing
    nf4 = estimate(LLAMA_8B, with_settings(recipe, {"quantization": "nf4"}), profile, few)
    assert nf4["base"] * GIB == pytest.approx(3.6e9 + 2.1e9, rel=0.01)
    kept = estimate(LLAMA_8B, recipe, replace(profile, gradient_checkpointing=False), few)["activations"]
    # 34 widths a token and layer is the rule for feed-forward parts of four widths; this one has three of 3.5.
    rule = 34 * 4096 * 4096 * 32 / GIB
    assert rule < kept < 1.6 * rule
    assert parts["activations"] < kept / 10
    eight = with_settings(recipe, {"trainer.optim": "adamw_bnb_8bit"})
    assert estimate(LLAMA_8B, eight, profile, few)["optimizer"] == pytest.approx(parts["optimizer"] / 4)
    # However many loss tokens: the head reads them in parts.
    assert estimate(LLAMA_8B, recipe, profile, Pass([0], 10**6, 10**6, 10**6))["logits"] < 0.7


def test_sizes_are_those_of_the_model_that_will_be_trained(line: Line, tmp_path: Path) -> None:
    sizes = anatomy(line.base, line.recipe)
    trainer = trainer_for(line, rendered(line, 8), tmp_path)
    every = {p.data_ptr(): p for p in trainer.model.parameters()}.values()
    assert sizes.trained == sum(p.numel() for p in every if p.requires_grad)
    assert sizes.linear + sizes.other == sum(p.numel() for p in every if not p.requires_grad)
    bits = trainer_for(line, rendered(line, 8), tmp_path, quantization="nf4").model
    packed = [p for p in bits.parameters() if type(p).__name__ == "Params4bit"]
    assert sizes.linear == 2 * sum(p.numel() for p in packed) != 0


@pytest.mark.parametrize("lora", [{"target_modules": ["nowhere"]}, {"layers_pattern": "layers"}])
def test_an_adapter_that_peft_refuses_is_the_users_to_mend(line: Line, lora: dict[str, Any]) -> None:
    recipe = with_settings(line.recipe, {"lora": {**line.recipe.lora, **lora}})
    with pytest.raises(UserError, match="lora: peft refuses it for this base"):
        anatomy(line.base, recipe)


def test_activations_are_what_autograd_keeps(line: Line, tmp_path: Path) -> None:
    """Counted by torch itself, pass by pass: shared beginnings and rows apart, without dropout and with it."""
    sizes = anatomy(line.base, line.recipe)
    rows = rendered(line, 40)
    for limits, dropout in ((None, 0.0), (planning.Limits(), 0.0), (planning.Limits(), 0.1)):
        trainer = trainer_for(line, rows, tmp_path, limits=limits, lora_dropout=dropout)
        longest = trainer.work().longest
        assert bool(longest.attended) == bool(limits)
        profile = replace(
            hardware.choose(hardware.look(), line.recipe, longest_row=128, base_gib_fp32=0.01), device="cpu"
        )
        recipe = with_settings(line.recipe, {"lora": {**line.recipe.lora, "lora_dropout": dropout}})
        expected = estimate(sizes, recipe, profile, longest)["activations"] * GIB
        weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, weights: set[int] = weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with nothing_happened(trainer), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            one_pass(trainer, longest.rows)
        assert expected == pytest.approx(sum(kept.values()), rel=0.05), (limits, dropout)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not tell what is mapped")
def test_a_4_bit_base_does_not_hold_the_file_of_its_weights(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embeddings are a part of it, and with them the whole file would count as held."""

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("model.safetensors")

    def mapped_by_loading() -> int:
        gc.collect()
        before = mapped()
        model = line.base.model(dtype=torch.float32, quantization="nf4", device="cpu")
        assert model.get_input_embeddings().weight.device.type == "cpu"
        return mapped() - before

    assert mapped_by_loading() == 0
    monkeypatch.setattr(bases, "_let_go_of_files", lambda model: None)
    assert mapped_by_loading() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="torch aligns to pages on Linux only")
def test_large_tensors_lie_on_pages() -> None:
    """As the command sets it up: in a process of its own, for torch looks once."""
    told = "import torch; held = [torch.empty(2**19) for _ in range(8)]; print(*(t.data_ptr() % 4096 for t in held))"
    quiet = "from tunesmith.line import quiet_libraries; quiet_libraries(); "
    without = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}

    def places(code: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=without)
        return set(done.stdout.split())

    assert places(quiet + told) == {"0"}
    assert places(told) != {"0"}


def test_a_container_has_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "CGROUPS", (limit,))
    whole = hardware._memory_gib()
    limit.write_text("max\n")
    assert hardware._memory_gib() == whole
    limit.write_text(f"{GIB}\n")
    assert hardware._memory_gib() == 1.0


# ---------------------------------------------------------------------- where it does not fit


def test_the_first_setting_that_fits_is_named_and_does_fit(line: Line) -> None:
    rows = rendered(line, 60)
    now = plan(line.recipe, rows, line.base)
    assert what_would_fit(line.recipe, rows, line.base, now) == {"hardware.batch_tokens": now.work.longest.apart // 2}
    # What each setting leaves of what is needed; each limit lets one more through.
    rest = now.parts["libraries"]
    needed = now.total - rest
    found = []
    for share in (0.9, 0.5, 0.3, 0.12, 0.01):
        settings = what_would_fit(line.recipe, rows, line.base, now, rest + share * needed)
        if settings is not None:
            assert plan(with_settings(line.recipe, settings), rows, line.base).total <= rest + share * needed
        found.append(settings)
    assert found[-1] is None
    assert len({str(settings) for settings in found}) >= 3
    assert "smaller base" in planning.advice(None)


def test_a_cpu_is_refused_by_the_formula_and_a_gpu_only_for_its_weights(line: Line) -> None:
    rows = rendered(line, 16)
    now = plan(line.recipe, rows, line.base)
    refuse(line.recipe, rows, line.base, now)
    small = replace(now, machine=replace(now.machine, memory_gib=now.total * 0.99))
    assert not small.fits
    with pytest.raises(EnvironmentFault, match=r"memory: training would take .* nothing was trained"):
        refuse(line.recipe, rows, line.base, small)
    gpu = replace(small, profile=replace(now.profile, device="cuda"), parts={**now.parts, "activations": 5.0})
    refuse(line.recipe, rows, line.base, replace(gpu, machine=replace(gpu.machine, memory_gib=now.total + 1)))
    heavy = replace(gpu, parts={**now.parts, "base": 20.0})
    with pytest.raises(EnvironmentFault, match=r"base alone 20\.0"):
        refuse(line.recipe, rows, line.base, heavy)


def test_the_command_shows_and_writes_the_plan_and_loads_nothing(
    line: Line,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    from tunesmith.bases import Base

    monkeypatch.setattr(Base, "model", lambda *a, **k: pytest.fail("weights were loaded"))
    path = line.forecast(Console(highlight=False, width=120))
    assert path is not None
    held, told = read_json(path), capsys.readouterr().out
    assert held["fits"]
    assert held["would_fit"] is None
    assert sum(v for k, v in held["gib"].items() if k != "total") == pytest.approx(held["gib"]["total"], abs=1e-3)
    assert held["epoch"]["steps"] == -(-len(line.dataset.rows("train")) // 8)
    for words in ("activations", "at the peak", "rows_per_pass = 8", "fits: "):
        assert words in told


def test_a_plan_that_cannot_fit_exits_21(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any row is there: a batch of the longest that the recipe allows, on a machine with room for half of it."""
    from tunesmith.cli import app, guarded

    monkeypatch.setattr(sys, "argv", ["tunesmith", "plan", "smoke", "--memory"])
    monkeypatch.setattr(hardware, "_memory_gib", lambda: 16.0)
    assert guarded(app) == ExitCode.DONE
    needed = float(re.findall(r"at the peak +([\d.]+)", capsys.readouterr().out)[0])
    libraries = planning.LIBRARIES["cpu"]
    monkeypatch.setattr(hardware, "_memory_gib", lambda: (libraries + 0.6 * (needed - libraries)) / planning.USABLE)
    assert guarded(app) == ExitCode.ENVIRONMENT
    told = capsys.readouterr()
    assert "does not fit" in told.out
    assert "nothing was trained" in told.err
    assert "hint: by the formula this would fit: --set hardware.batch_tokens=640" in " ".join(told.err.split())
    assert not (project / "runs").exists()


# ---------------------------------------------------------------------- the probe


def test_the_probe_leaves_no_trace(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: the adapter and train.jsonl, byte for byte, are those of a run without it."""

    def run(name: str) -> list[bytes]:
        told = Line("smoke", sets=["trainer.max_steps=5", "trainer.warmup_steps=0", "lora.lora_dropout=0.1"])
        directory = tmp_path / name
        with Run(directory).stage("train", {}) as out:
            resumption = Resumption(directory / "checkpoints", {})
            train(told.loaded, line.dataset, line.base, out, tokens=directory, resumption=resumption)
        return [(directory / file).read_bytes() for file in ("adapter/adapter_model.safetensors", "train.jsonl")]

    probed = run("with")
    held = read_json(tmp_path / "with" / "probe.json")
    assert held["computed_tokens"] > 100
    assert held["measured_gib"] > 0.1
    assert held["estimated_to_measured"] == pytest.approx(held["estimated_gib"] / held["measured_gib"], abs=0.01)
    monkeypatch.setattr(Probe, "on_train_begin", lambda *a, **k: None)
    assert run("without") == probed


def test_whatever_a_pass_changes_is_put_back(line: Line, tmp_path: Path) -> None:
    trainer = trainer_for(line, rendered(line, 8), tmp_path, lora_dropout=0.1)
    trainer.model.eval()
    trained = next(p for p in trainer.model.parameters() if p.requires_grad)
    trained.grad = torch.ones_like(trained)
    before, tokens = torch.get_rng_state(), trainer._total_train_tokens
    with nothing_happened(trainer):
        one_pass(trainer, list(range(8)))
        assert not torch.equal(torch.get_rng_state(), before)
        assert trainer.model.training
        assert trainer._total_train_tokens > tokens
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(trained.grad, torch.ones_like(trained))
    assert sum(p.grad is not None for p in trainer.model.parameters()) == 1
    assert not trainer.model.training
    assert (trainer._total_train_tokens, dict(trainer._metrics["train"])) == (tokens, {})


def test_a_pass_for_which_memory_runs_out_is_refused_with_what_would_fit(
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the system itself: the process may have a little more address space than it has, and the pass wants more."""
    rows = [replace(row, prompt_ids=row.prompt_ids * 12) for row in rendered(line, 48)]
    trainer = trainer_for(line, rows, tmp_path, limits=None, per_device_train_batch_size=48)
    now = plan(with_settings(line.recipe, {"hardware.share_prefixes": False}), rows, line.base)
    now = now.for_profile(line.recipe, anatomy(line.base, line.recipe), now.profile, trainer.work())
    probe = Probe(trainer, line.recipe, line.base, now, tmp_path / "probe.json")
    real = probing.one_pass

    def starved(*arguments: Any) -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + 64 * 2**20, before[1]))
        try:
            real(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    monkeypatch.setattr(probing, "one_pass", starved)
    with pytest.raises(EnvironmentFault, match=r"the longest pass, 48 rows .*ran out of memory.*nothing") as e:
        probe.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert e.value.hint is not None
    assert "--set hardware.batch_tokens=" in e.value.hint
    assert not (tmp_path / "probe.json").exists()

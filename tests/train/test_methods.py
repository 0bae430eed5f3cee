"""Every LoRA method moves an adapter, and what is published is the model that was trained, on a base nobody touched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from transformers.trainer_utils import SaveStrategy

from tests.conftest import REPOSITORY
from tests.train.test_trainer import fresh, made, rendered
from tunesmith import adapters
from tunesmith.bases import load_model
from tunesmith.errors import Diverged, UserError
from tunesmith.evaluate import stage as evaluation
from tunesmith.evaluate.arena import Arena
from tunesmith.evaluate.ways import Way
from tunesmith.export.merge import merge
from tunesmith.files import read_json
from tunesmith.line import Line
from tunesmith.train import stage, state
from tunesmith.train.checkpoints import Checkpoints
from tunesmith.train.opening import choose_profile, lora_config, open_trainer
from tunesmith.train.start import Start

NAMES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "token_adapter.trainable_tokens_delta")
PLAIN = {
    "trainer.max_steps": "3",
    "trainer.warmup_steps": "0",
    "trainer.learning_rate": "5e-3",
    "lora.r": "8",
    # Unlike r, so that B A is scaled by more than one.
    "lora.lora_alpha": "24",
    # Few rows: how each is learned is looked at before and after training.
    "curate.split.shares": "{train: 0.12, dev: 0.05, gate: 0.73, confirm: 0.1}",
}
PISSA, LOFTQ = {"lora.init_lora_weights": "pissa"}, {"lora.init_lora_weights": "loftq", "quantization": "nf4"}
METHODS: dict[str, dict[str, str]] = {
    "lora": {},
    "rslora": {"lora.use_rslora": "true"},
    "dora": {"lora.use_dora": "true"},
    "gaussian": {"lora.init_lora_weights": "gaussian"},
    "orthogonal": {"lora.init_lora_weights": "orthogonal"},
    "mica": {"lora.init_lora_weights": "mica"},
    "eva": {"lora.init_lora_weights": "eva"},
    "pissa": PISSA,
    "pissa_niter": {"lora.init_lora_weights": "pissa_niter_4"},
    "olora": {"lora.init_lora_weights": "olora"},
    "lora+": {"lora_plus_ratio": "8"},
    "neftune": {"trainer.neftune_noise_alpha": "5"},
    "patterns": {"lora.rank_pattern": "{q_proj: 4, down_proj: 12}", "lora.alpha_pattern": "{q_proj: 40}"},
    "tokens": {"lora.trainable_token_indices": "[1, 2, 16]"},
    "parameters": {"lora.target_modules": "[]", "lora.target_parameters": "[mlp.gate_proj.weight]"},
    "qlora, dora and tokens": {
        "quantization": "nf4",
        "lora.use_dora": "true",
        "lora.trainable_token_indices": "[1, 2, 16]",
    },
    "qlora, eva": {"quantization": "nf4", "lora.init_lora_weights": "eva"},
    "pissa, all at once": PISSA
    | {
        "lora.use_rslora": "true",
        "lora.use_dora": "true",
        "lora.rank_pattern": "{q_proj: 4}",
        "lora.alpha_pattern": "{q_proj: 10, up_proj: 30}",
        "lora.trainable_token_indices": "[1, 2, 16]",
        "lora.lora_dropout": "0.1",
    },
}

Opener = Callable[..., Line]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project with the rows of smoke, made once for all methods."""
    directory = tmp_path_factory.mktemp("methods") / "project"
    for name in ("recipes", "scripts"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "data" / "smoke").mkdir(parents=True)
    shutil.copy(REPOSITORY / "data" / "smoke" / "schema.json", directory / "data" / "smoke")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "tiny-base").symlink_to(tiny_base)
    Line("smoke", root=directory, sets=[f"curate.split.shares={PLAIN['curate.split.shares']}"]).curate()
    return directory


@pytest.fixture
def opened(root: Path) -> Opener:
    def line(settings: dict[str, str]) -> Line:
        return Line("smoke", root=root, sets=[f"{key}={value}" for key, value in (PLAIN | settings).items()])

    return line


def probe(line: Line) -> torch.Tensor:
    return torch.tensor([line.arena.renderer.render(line.dataset.rows("gate")[0]).input_ids])


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        found: torch.Tensor = model(input_ids=ids).logits.float()
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def untouched(line: Line, quantization: str = "none", dtype: torch.dtype = torch.float32) -> Any:
    return line.base.model(dtype=dtype, quantization=quantization)


def publish(line: Line, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.Tensor]:
    """Train by the stage itself: the adapter that it wrote, and the logits of the model in its hands."""
    ids, held = probe(line), {}

    def seen(model: Any, *args: Any, **kwargs: Any) -> None:
        held["logits"] = logits(model, ids)
        save(model, *args, **kwargs)

    save = adapters.save
    with monkeypatch.context() as patched:
        patched.setattr(stage.adapters, "save", seen)
        stage.train(line.loaded, line.dataset, line.base, made(out), tokens=out, resumption=fresh(out))
    return out / "adapter", held["logits"]


def trainer_of(line: Line, out: Path) -> Any:
    rows = rendered(line, 24)
    profile = choose_profile(line.recipe, rows, line.base, sharing=True)
    ids = [str(number) for number in range(len(rows))]
    return open_trainer(line.recipe, rows, ids, line.base, profile, lora_config(line.recipe), str(out))


# ---------------------------------------------------------------------- what is published


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_what_is_published_is_the_model_that_was_trained(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    line = opened(settings)
    adapter, trained = publish(line, tmp_path / "run", monkeypatch)
    ids, quantization = probe(line), settings.get("quantization", "none")
    assert read_json(adapter / "manifest.json")["quantization"] == quantization
    assert all(name.endswith(NAMES) for name in load_file(adapter / "adapter_model.safetensors"))
    assert read_json(adapter / "adapter_config.json")["init_lora_weights"] is True

    assert apart(trained, logits(untouched(line, quantization), ids)) > 0.5
    assert apart(trained, logits(adapters.attach(untouched(line, quantization), adapter), ids)) < 5e-5
    probes = [line.arena.renderer.render(row) for row in line.dataset.rows("dev")[:4]]
    found = merge(line.base, adapter, line.dataset.manifest()["systems"], probes, tmp_path / "merged")
    assert {one.status for one in found} == {"PASS"}, found
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert apart(logits(merged, ids), logits(adapters.attach(untouched(line), adapter), ids)) < 5e-5


def test_in_half_precision_a_moved_base_costs_no_more_than_rounding(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = opened(PISSA | {"hardware.dtype": "bfloat16"})
    adapter, trained = publish(line, tmp_path / "run", monkeypatch)
    ids = probe(line)
    wide, half = (adapters.attach(untouched(line, dtype=dtype), adapter) for dtype in (torch.float32, torch.bfloat16))
    rounding = apart(logits(wide, ids), logits(half, ids))
    assert apart(trained, logits(half, ids)) < 3 * rounding < 0.5
    assert apart(trained, logits(untouched(line, dtype=torch.bfloat16), ids)) > 5


def test_a_repair_of_four_bits_is_published_for_the_unquantised_base(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What of the 4-bit error the rank cannot hold is how far the published adapter is from the model as trained."""
    errors: dict[tuple[str, int], float] = {}
    monkeypatch.setattr(evaluation, "replay", lambda *arguments: {})
    # Guards have tests of their own; here it matters on which base the adapter answers.
    monkeypatch.setattr(evaluation, "Guards", MagicMock())
    monkeypatch.setattr(evaluation, "write_json", lambda *arguments: None)
    judged_on: list[bool] = []

    def judge(self: Arena, engine: Any, way: Any, split: Any, out: Path, **kw: Any) -> None:
        judged_on.append(hasattr(engine.model, "quantization_method"))
        out.mkdir(exist_ok=True)
        (out / "adapter.jsonl").write_text('{"id": "a", "ended": true}\n')

    monkeypatch.setattr(Arena, "run", judge)
    for name, rank in (("loftq", 64), ("loftq", 128), ("qlora", 64)):
        settings = LOFTQ if name == "loftq" else {"quantization": "nf4"}
        line = opened(settings | {"lora.r": str(rank)})
        adapter, trained = publish(line, tmp_path / f"{name}-{rank}", monkeypatch)
        assert read_json(adapter / "manifest.json")["quantization"] == {"loftq": "none", "qlora": "nf4"}[name]
        errors[name, rank] = apart(trained, logits(adapters.attach(untouched(line), adapter), probe(line)))
        evaluation.run_adapter(line.arena, adapter, [Way("adapter")], tmp_path, tmp_path)
        on_four_bits = logits(adapters.attach(untouched(line, "nf4"), adapter), probe(line))
        assert (apart(trained, on_four_bits) < 1e-5) == (name == "qlora")
    assert judged_on == [False, False, True]
    # 128 is the width of the tiny base: such a rank holds all of it.
    assert errors["loftq", 128] < 5e-5
    assert errors["qlora", 64] > 0.5
    assert errors["loftq", 64] < 0.6 * errors["qlora", 64]


def test_a_repair_is_the_best_of_its_rank_and_is_not_scaled_away(opened: Opener, tmp_path: Path) -> None:
    line = opened(LOFTQ)
    trainer = trainer_of(line, tmp_path)
    stored = load_file(line.base.directory / "model.safetensors")
    for name, module in trainer.model.named_modules():
        if hasattr(module, "lora_A"):
            weight = stored[name.removeprefix("base_model.model.") + ".weight"]
            lost = weight - dequantize_module_weight(module.get_base_layer())
            product = module.lora_B["default"].weight @ module.lora_A["default"].weight
            left = (lost - module.scaling["default"] * product).detach()
            best = torch.linalg.svdvals(lost)[8:].norm()
            assert float(left.norm()) == pytest.approx(float(best), rel=1e-4)


def test_peft_alone_would_publish_less_than_was_trained(opened: Opener, tmp_path: Path) -> None:
    """Why the difference is taken here: should peft come to keep all of it, ours can go."""
    trainer = trainer_of(opened(METHODS["pissa, all at once"] | {"lora.use_rslora": "false"}), tmp_path)
    trainer.model.save_pretrained(tmp_path / "start", save_embedding_layers=False)
    trainer.model.save_pretrained(
        tmp_path / "out",
        path_initial_model_for_weight_conversion=str(tmp_path / "start"),
        save_embedding_layers=False,
    )
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("lora_A" in name for name in kept)
    assert not any("magnitude" in name or "token_adapter" in name for name in kept)


# ---------------------------------------------------------------------- where it starts


BEGINNINGS = {"orthogonal": False, "mica": False, "eva": False, "pissa": True, "pissa_niter_4": True, "olora": True}


@pytest.mark.parametrize(("init", "moves"), BEGINNINGS.items())
def test_training_begins_where_the_base_is(opened: Opener, tmp_path: Path, init: str, moves: bool) -> None:
    line = opened({"lora.init_lora_weights": init})
    model = trainer_of(line, tmp_path).model
    # Each adapted module has a weight by which to tell whether it learns.
    adapted = sum(hasattr(module, "lora_A") for module in model.modules())
    assert len(adapters.leading(model)) == adapted > 0
    base = logits(untouched(line), probe(line))
    assert apart(logits(model, probe(line)), base) < 5e-5
    with model.disable_adapter():
        assert (apart(logits(model, probe(line)), base) > 0.5) == moves


def test_trained_tokens_begin_as_a_quantised_base_has_them(opened: Opener, tmp_path: Path) -> None:
    line = opened({"quantization": "nf4", "lora.trainable_token_indices": "[1, 2, 16]"})
    found = logits(trainer_of(line, tmp_path).model, probe(line))
    assert torch.equal(found, logits(untouched(line, "nf4"), probe(line)))


def test_eva_reads_the_rows_and_moves_ranks_between_modules(opened: Opener, tmp_path: Path) -> None:
    settings = {"lora.init_lora_weights": "eva", "lora.eva_config": "{rho: 2.0}"}
    model, again = (trainer_of(opened(settings), tmp_path).model for _ in range(2))
    ranks = {module.r["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert len(ranks) > 1
    start = Start(model, None).weights  # type: ignore[arg-type]
    assert start.keys() == Start(again, None).weights.keys()  # type: ignore[arg-type]
    for name, weight in Start(again, None).weights.items():  # type: ignore[arg-type]
        assert torch.equal(weight, start[name])
        if ".lora_A." in name:
            # Directions of inputs: orthonormal, which random weights are not.
            assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-3)


def test_eva_says_when_the_rows_are_too_few_or_the_modules_too_narrow(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"EVA would need 256 features .* has 128"):
        trainer_of(opened({"lora.init_lora_weights": "eva", "lora.r": "64"}), tmp_path)
    line = opened({"lora.init_lora_weights": "eva", "lora.r": "32"})
    rows = rendered(line, 2)
    profile = choose_profile(line.recipe, rows, line.base, sharing=True)
    with pytest.raises(UserError, match=r"EVA needs 128 tokens .* the rows hold \d+"):
        open_trainer(line.recipe, rows, ["a", "b"], line.base, profile, lora_config(line.recipe), str(tmp_path))


IDLE = {
    "a rank for nothing": ({"lora.rank_pattern": "{q_prj: 4}"}, r"lora\.rank_pattern: 'q_prj' names no adapted module"),
    "an alpha that another takes": (
        {"lora.alpha_pattern": '{".*_proj": 4, q_proj: 8}'},
        r"lora\.alpha_pattern: 'q_proj' names no adapted module",
    ),
    "a target that is none": (
        {"lora.target_modules": "[q_proj, v_prj]"},
        r"lora\.target_modules: 'v_prj' names no adapted module",
    ),
    "the embeddings": ({"lora.target_modules": "[embed_tokens]"}, "use `trainable_token_indices`"),
    "a token beyond": ({"lora.trainable_token_indices": "[1, 99999]"}, r"\[99999\] are no tokens of this base"),
    "a token unseen": ({"lora.trainable_token_indices": "[1, 3]"}, r"\[3\] occur in no training row"),
    "a tied head": ({"lora.trainable_token_indices": "{lm_head: [1]}"}, "lm_head is tied to the embeddings"),
}


@pytest.mark.parametrize(("settings", "message"), IDLE.values(), ids=IDLE.keys())
def test_a_name_that_means_nothing_is_not_passed_over(
    opened: Opener, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trainer_of(opened(settings), tmp_path)


# ---------------------------------------------------------------------- how it learns


def test_lora_plus_trains_b_at_a_multiple_of_as_rate(opened: Opener, tmp_path: Path) -> None:
    trainer = trainer_of(opened({"lora_plus_ratio": "8", "trainer.weight_decay": "0.1"}), tmp_path)
    trainer.create_optimizer_and_scheduler(3)
    assert opened({"lora_plus_ratio": "8"}).run.directory != opened({}).run.directory
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    rates = {names[weight]: group["lr"] for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert rates.keys() == state.trained(trainer.model).keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(5e-3 * (8 if "lora_B" in name else 1))
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]} == {0.1}


def test_noise_on_embeddings_is_there_in_training_and_nowhere_else(opened: Opener, tmp_path: Path) -> None:
    found = {}
    for alpha in ("0.1", "20"):
        trainer = trainer_of(opened({"trainer.neftune_noise_alpha": alpha, "trainer.logging_steps": "1"}), tmp_path)
        before = trainer.token_nll(trainer.rows)
        trainer.train()
        found[alpha] = trainer.state.log_history[-2]["loss"]
        assert trainer.limits is None
        assert before == pytest.approx(trainer_of(opened({}), tmp_path).token_nll(trainer.rows), rel=1e-6)
        assert trainer.token_nll(trainer.rows) == trainer.token_nll(trainer.rows)
    assert found["20"] > found["0.1"] + 0.5


@pytest.mark.parametrize("init", ["true", "pissa"])
def test_a_model_that_answers_as_before_is_not_published(opened: Opener, tmp_path: Path, init: str) -> None:
    line = opened({"lora.init_lora_weights": init, "trainer.learning_rate": "1e-38"})
    with pytest.raises(Diverged, match=r"weights stay as they began|`train loss falls` fails"):
        stage.train(line.loaded, line.dataset, line.base, tmp_path, tokens=tmp_path, resumption=fresh(tmp_path))
    assert not (tmp_path / "adapter").exists()


# ---------------------------------------------------------------------- going on


GOING_ON = {
    "pissa": {"lora.init_lora_weights": "pissa_niter_2", "lora.lora_dropout": "0.1"},
    "eva": {"lora.init_lora_weights": "eva"},
    "loftq": LOFTQ,
    "lora+, neftune, dora, tokens": {
        "lora_plus_ratio": "8",
        "trainer.neftune_noise_alpha": "5",
        "lora.use_dora": "true",
        "lora.trainable_token_indices": "[1, 2]",
    },
}


@pytest.mark.parametrize("settings", GOING_ON.values(), ids=GOING_ON.keys())
def test_a_method_that_goes_on_is_the_one_that_did_not_stop(
    opened: Opener, tmp_path: Path, settings: dict[str, str]
) -> None:
    line = opened(settings)

    def run(go_on: int | None = None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
        trainer = trainer_of(line, tmp_path)
        trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", {}, keep=10)
        if go_on is None:
            trainer.args.save_strategy, trainer.args.save_steps = SaveStrategy.STEPS, 1
        path = str(tmp_path / "checkpoints" / f"step-{go_on:08d}") if go_on else None
        trainer.train(resume_from_checkpoint=path)
        assert trainer.state.global_step == 3
        base = {name: weight for name, weight in trainer.model.state_dict().items() if "base_layer" in name}
        adapters.save(trainer.model, tmp_path / str(go_on), base=line.base, bound={}, less=trainer.start.taken_out)
        return state.trained(trainer.model), base, adapters.digest(tmp_path / str(go_on))

    wanted, base, digest = run()
    found, base_again, digest_again = run(2)
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())
    assert all(torch.equal(weight, base[name]) for name, weight in base_again.items())
    assert digest_again == digest
    if "pissa" in settings.get("lora.init_lora_weights", ""):
        clean = load_file(line.base.directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert apart(base["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"], clean) > 0.1


def test_a_run_whose_base_was_moved_otherwise_does_not_go_on(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = opened(PISSA | {"checkpoints.every_steps": "1"})

    def train(out: str) -> None:
        stage.train(
            line.loaded, line.dataset, line.base, made(tmp_path / out), tokens=tmp_path, resumption=fresh(tmp_path)
        )

    train("one")
    digest = Start.digest
    monkeypatch.setattr(Start, "digest", lambda self: digest(self)[::-1])
    with pytest.raises(UserError, match="was made otherwise: start: "):
        train("two")

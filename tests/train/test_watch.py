"""What a person sees of a run: its numbers, its trackers, its page; and steps that were skipped."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_trainer import rendered, trainer_for
from tunesmith.errors import Diverged, EnvironmentFault, Interrupted
from tunesmith.files import read_jsonl
from tunesmith.line import Line
from tunesmith.runs import Run
from tunesmith.train.curves import MOST, Curve, round_ticks, thinned
from tunesmith.train.pace import Pace
from tunesmith.train.page import gathered
from tunesmith.train.resume import Resumption
from tunesmith.train.skips import Skips
from tunesmith.train.stage import train
from tunesmith.train.tracking import Trackers
from tunesmith.train.watch import Watch

SECRET = "tok-0a1b2c3d4e5f"

WRITER = """
import json, pathlib

class SummaryWriter:
    def __init__(self, log_dir):
        self.path = pathlib.Path(log_dir) / "events"
        self.path.parent.mkdir(parents=True, exist_ok=True)
    def add_text(self, name, text, step=None): self._add([name, text, step])
    def add_scalar(self, name, value, step): self._add([name, value, step])
    def _add(self, event): self.path.open("a").write(json.dumps(event) + "\\n")
    def flush(self): pass
    def close(self): self._add(["closed", None, None])
"""
"""In the place of tensorboardX: it writes down what transformers' callback tells it."""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stubs" / "tensorboardX"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path / "stubs")


def trained(line: Line, run: Path, *sets: str, **options: Any) -> Path:
    """Train as the stage does, into `run`."""
    told = Line("smoke", sets=["trainer.max_steps=6", "trainer.warmup_steps=0", "trainer.logging_steps=2", *sets])
    with Run(run).stage("train", {}) as out:
        train(told.loaded, line.dataset, line.base, out, tokens=run, resumption=Resumption(run / "checkpoints", {}))
    return run


def test_a_run_can_be_drawn_from_its_files(line: Line, tmp_path: Path, board: None, monkeypatch: Any) -> None:
    """One run with all that is told of it, trackers too; and no secret of the environment in any of its files."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://nobody.invalid")
    begun: list[float] = []
    real = Pace.step_begins
    monkeypatch.setattr(Pace, "step_begins", lambda self: begun.append(1) or real(self))
    run = trained(line, tmp_path / "smoke-0123", "trainer.report_to=tensorboard", "trainer.num_train_epochs=1")
    assert len(begun) == 6, "the clock starts anew with each step: what lies between steps is no training"
    lines, pace = read_jsonl(run / "train.jsonl"), read_jsonl(run / "pace.jsonl")
    logged = [entry for entry in lines if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert all({"loss", "learning_rate", "grad_norm", "epoch", "num_tokens"} <= entry.keys() for entry in logged)
    assert any("dev_nll" in entry for entry in lines)
    assert pace[0] == {"step": 0, "started": pace[0]["started"]}
    measured = pace[1:]
    assert [entry["step"] for entry in measured] == [2, 4, 6]
    for entry in measured:
        # Rows share beginnings here: fewer tokens are computed than the rows hold.
        assert 0 < entry["loss_tokens_per_second"] < entry["computed_tokens_per_second"] < entry["tokens_per_second"]
        assert 0.05 < entry["peak_memory_gib"] < 20
    assert [entry["seconds"] for entry in measured] == sorted(entry["seconds"] for entry in measured)

    events = [json.loads(text) for text in (run / "tensorboard" / "events").read_text().splitlines()]
    scalars = {(name, step): value for name, value, step in events if isinstance(value, float)}
    assert [scalars["train/loss", step] for step in (2, 4, 6)] == [entry["loss"] for entry in logged]
    assert scalars["train/tokens_per_second", 4] == measured[1]["tokens_per_second"]
    assert scalars["eval/dev_nll", 6] == lines[-1]["dev_nll"]
    assert events[-1][0] == "closed"
    assert json.loads(next(text for name, text, _ in events if name == "args"))["run_name"] == "smoke-0123"

    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"train.html", "probe.json", "loss.png", "recipe.lock.yaml"} <= {path.name for path in files}
    assert [
        path for path in files if SECRET.encode() in path.read_bytes() or b"nobody.invalid" in path.read_bytes()
    ] == []

    page = (run / "train.html").read_text()
    assert "6 of 6 steps" in page
    for words in ("Loss", "Learning rate", "Gradient norm", "Speed", "Loss tokens", "Memory", "rows_per_pass"):
        assert words in page
    assert whole_in_itself(page)


def test_a_tracker_that_cannot_be_opened_stops_the_run_before_it_trains(
    line: Line,
    tmp_path: Path,
    board: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"tensorboard cannot be opened: .*; nothing was trained"):
        trained(line, tmp_path / "run", "trainer.report_to=tensorboard")
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_tracker_that_fails_later_is_let_go_and_said(
    line: Line,
    tmp_path: Path,
    board: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = trainer_for(line, rendered(line, 16), tmp_path, max_steps=3, logging_steps=1)
    trackers = Trackers(trainer, "tensorboard", tmp_path)
    trainer.add_callback(trackers)
    trainer.add_callback(Watch(tmp_path, trainer, trackers))

    def lost(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(trackers._callbacks["tensorboard"], "on_log", lost)
    trainer.train()
    assert len(read_jsonl(tmp_path / "train.jsonl")) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("tensorboard is told nothing more: ConnectionError: the network is gone") == 1


# ---------------------------------------------------------------------- pace


def test_tokens_are_counted_as_the_rows_hold_them(line: Line, tmp_path: Path) -> None:
    """By our own passes and by trl's, whose padding counts as computed and as nothing else."""
    rows = rendered(line, 16)
    held, with_loss = sum(len(row.input_ids) for row in rows), sum(len(row.completion_ids) for row in rows)
    for own_loss in (True, False):
        trainer = trainer_for(line, rows, tmp_path)
        if not own_loss:
            trainer._own_loss = False
            trainer.data_collator = trl_collator()
        for members in trainer.passes():
            batch = trainer.data_collator([trainer.train_dataset[row] for row in members])
            trainer.model.train()
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        pace = trainer.pace
        assert (pace._tokens, pace._loss_tokens) == (held, with_loss)
        assert (pace._computed < held) == own_loss
        trainer.token_nll(rows)
        assert pace._tokens == held, "what dev scores is no training"


def trl_collator() -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0)


# ---------------------------------------------------------------------- skipped steps


def with_scale(trainer: Any, scale: float) -> Any:
    """Give a trainer torch's own loss scaler, which a CPU has too; accelerate refuses float16 there, not the scaler."""
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)

    def clip(parameters: Any, most: float, norm_type: float = 2) -> Any:
        # As accelerate does where it computes in float16: the scale comes off before gradients are clipped.
        for optimizer in trainer.accelerator._optimizers:
            scaler.unscale_(optimizer.optimizer)
        return torch.nn.utils.clip_grad_norm_(parameters, most, norm_type=norm_type)

    trainer.accelerator.clip_grad_norm_ = clip
    # The loss eight times over: gradients that the first scale, the largest power of two, carries out of float32.
    loss = trainer.compute_loss
    trainer.compute_loss = lambda *arguments, **options: 8 * loss(*arguments, **options)
    return trainer


def test_skipped_steps_are_counted_and_a_few_are_borne(line: Line, tmp_path: Path) -> None:
    trainer = with_scale(trainer_for(line, rendered(line, 8), tmp_path, max_steps=60, logging_steps=1), 2.0**127)
    trainer.add_callback(Watch(tmp_path, trainer, Trackers(trainer, None, tmp_path)))
    trainer.add_callback(Skips(trainer))
    trainer.train()
    lines = read_jsonl(tmp_path / "train.jsonl")
    assert 1 <= trainer.skipped <= 3, trainer.skipped
    assert [entry["skipped"] for entry in lines] == [min(step, trainer.skipped) for step in range(1, 61)]
    # The first step's gradient was infinite, which is no JSON.
    assert lines[0]["grad_norm"] is None
    assert any(bool(p.any()) for name, p in trainer.model.named_parameters() if "lora_B" in name)


def test_too_many_skipped_steps_stop_the_run(line: Line, tmp_path: Path) -> None:
    trainer = with_scale(trainer_for(line, rendered(line, 8), tmp_path, max_steps=19), 2.0**127)
    trainer.add_callback(Skips(trainer))
    with pytest.raises(Diverged, match=r"1 of 1 steps were skipped.*at most 5% of the run's 19 may be"):
        trainer.train()


# ---------------------------------------------------------------------- the page


class Outline(HTMLParser):
    """What a page refers to, and whether its elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "line", "polyline"}:
            self.open.append(tag)
        self.refers += [value or "" for name, value in attributes if name in {"src", "href", "xlink:href"}]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def whole_in_itself(page: str) -> bool:
    """Nothing is fetched, nothing runs, and every element is closed."""
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert all(target.startswith("#") for target in outline.refers)
    return "<script" not in page and "url(" not in page and "default-src 'none'" in page


@pytest.mark.parametrize("ends", [Interrupted, Diverged])
def test_a_run_that_stops_leaves_its_page(
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: Any,
) -> None:
    from tunesmith.train.saver import Saver

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise ends("training: stopped <here> & now")

    monkeypatch.setattr(Saver, "on_step_end", stop)
    with pytest.raises(ends):
        trained(line, tmp_path / "run")
    page = (tmp_path / "run" / "train.html").read_text()
    assert "4 of 6 steps" in page
    assert "training: stopped &lt;here&gt; &amp; now" in page
    assert ('class="loud">training' in page) == (ends is Diverged)
    assert whole_in_itself(page)
    assert not (tmp_path / "run" / "adapter").exists()


def test_the_page_shows_what_was_resumed_when_and_leaves_a_gap_where_nothing_is() -> None:
    lines = [
        {"step": 2, "loss": 3.0, "grad_norm": None, "learning_rate": 1e-3},
        {"step": 4, "loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-3},
        {"step": 4, "dev_nll": 2.5, "dev_exact_match": 0.25},
    ]
    pace = [{"step": 0, "started": "2026-01-01T00:00:00+00:00"}, {"step": 2, "started": "2026-01-02T00:00:00+00:00"}]
    facts = gathered(lines, pace)
    curves = {curve["name"]: curve for curve in facts["curves"]}
    assert list(curves) == ["Loss", "Learning rate", "Gradient norm", "Dev exact match"]
    assert [each["name"] for each in curves["Loss"]["lines"]] == ["train", "dev"]
    assert curves["Loss"]["marks"] == [50.0]
    assert [len(path.split()) for path in curves["Gradient norm"]["lines"][0]["paths"]] == [2]
    assert [start["step"] for start in facts["starts"]] == [0, 2]


def test_ticks_are_round_and_reach_the_highest_value() -> None:
    for highest in (0.0, 3e-7, 0.0031, 0.97, 1.0, 3.033, 8_000.0, 123_456.0):
        ticks = round_ticks(highest)
        assert ticks[0] == 0
        assert ticks[-1] >= highest * (1 - 1e-9)
        assert 2 <= len(ticks) <= 7
        steps = {round(b - a, 12) for a, b in pairwise(ticks)}
        assert len(steps) == 1
        assert re.fullmatch(r"(1|2|2\.5|5)e.*", re.sub(r"\.?0*e", "e", f"{ticks[1]:.3e}"))


def test_a_long_curve_keeps_its_peaks() -> None:
    points: list[Any] = [(float(step), 1.0) for step in range(20_000)]
    points[7_777] = (7_777.0, 50.0)
    points[12_000] = (12_000.0, None)
    found = thinned(points)
    assert len(found) <= MOST + 2
    assert (7_777.0, 50.0) in found
    assert (12_000.0, None) in found
    drawn = Curve("Loss", "", {"train": points}).drawn()
    assert drawn is not None
    assert len(drawn["lines"][0]["paths"]) == 2

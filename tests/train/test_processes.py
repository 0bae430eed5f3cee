"""Several processes train what one would have trained, each row once, and end together, whatever happens to one.

Processes are real, and meet over gloo. Most are forked from one that has imported torch already
(tests/forks.py); one test starts them as a person does.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from tests.faults.conftest import SETTINGS, Workshop
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.launch import asked, disagreements, start
from tunesmith.prompt import Rendered
from tunesmith.sections import LaunchSection
from tunesmith.team import Team, here
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.stops import ONE_SIGNAL, Stop

# 32 rows in batches of 18: the second batch of each epoch is short, and one of its passes holds no row at all.
UNEVEN = [
    "trainer.per_device_train_batch_size=18",
    "hardware.batch_tokens=300",
    "trainer.max_steps=6",
    "trainer.num_train_epochs=3",
    "trainer.logging_steps=1",
]
TWO = "launch.processes=2"


class Finished:
    """What a run has left behind."""

    def __init__(self, shop: Workshop, said: str) -> None:
        self.said = said
        self.root = shop.root
        self.lines = [json.loads(line) for line in (shop.run / "train.jsonl").read_text().splitlines()]
        self.weights = load_file(shop.run / "adapter" / "adapter_model.safetensors")


Train = Callable[..., Finished]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Any) -> Train:
    """Train in a project of its own, to the end."""

    def run(*sets: str, **order: Any) -> Finished:
        root = tmp_path_factory.mktemp("finished") / "project"
        shutil.copytree(made, root, symlinks=True, ignore=shutil.ignore_patterns("runs"))
        shop = Workshop(root, server)
        done = shop.train(*UNEVEN, *sets, **order)
        assert done.code == 0, done.said
        return Finished(shop, done.said)

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> Finished:
    """One process, without dropout."""
    return train("lora.lora_dropout=0")


@pytest.fixture(scope="module")
def together(train: Train) -> Finished:
    """Two processes with dropout, each with random numbers of its own."""
    return train(TWO)


def largest_difference(one: Finished, other: Finished) -> float:
    differences = []
    for line, same in zip(one.lines, other.lines, strict=True):
        assert (line["step"], line.get("num_tokens")) == (same["step"], same.get("num_tokens"))
        differences += [abs(line[key] - same[key]) for key in ("loss", "dev_nll") if key in line]
    assert len(differences) == 9
    return max(differences)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns(train: Train, alone: Finished, kind: str) -> None:
    """Unequal loss tokens, passes that are added up, a short last batch: the same loss within 1e-5 at every step."""
    pair = train("lora.lora_dropout=0", TWO, f"launch.kind={kind}", fault={"at": "collate", "note": True})
    assert largest_difference(alone, pair) <= 1e-5
    assert alone.weights.keys() == pair.weights.keys()
    assert any(bool(weight.any()) for name, weight in pair.weights.items() if "lora_B" in name)
    for name, weight in alone.weights.items():
        assert torch.allclose(weight, pair.weights[name], atol=2e-4), name
    if kind == "ddp":
        rows = [row for rank in range(2) for row in read_by(pair.root, rank)]
        assert sorted(Counter(map(tuple, rows)).values()) == [3] * 32
        assert all(len(read_by(pair.root, rank)) for rank in range(2))


def read_by(root: Path, rank: int) -> list[list[int]]:
    """The rows that a process has collated, but for those without loss that fill up a batch."""
    rows = [json.loads(line) for line in (root / f"read-{rank}.jsonl").read_text().splitlines()]
    return [row["input_ids"] for row in rows if any(label >= 0 for label in row["labels"])]


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_row_is_trained_once_an_epoch_in_the_order_of_one_process(processes: int) -> None:
    for count in (1, 2, 5, 31, 32, 33, 47):
        for own in (1, 2, 3):
            for accumulation in (1, 3):
                batch = processes * own * accumulation
                rows = [Rendered([1] * (2 + number % 7), [2], ends=True) for number in range(count)]
                sampler = FamilySampler(rows, batch, seed=1, limits=None, multiple=processes * own)
                shards = [
                    list(BatchSamplerShard(BatchSampler(sampler, own, False), processes, rank))
                    for rank in range(processes)
                ]
                assert len({len(shard) for shard in shards}) == 1
                read = [row for step in zip(*shards, strict=True) for one in step for row in one]
                assert [row for row in read if row < count] == [row for b in sampler.batches() for row in b]
                assert len(read) == len(sampler)
                # What fills up stands at the end, and is less than all processes read at once.
                assert read[count:] == [count] * (len(read) - count)
                assert len(read) - count < processes * own


def test_only_one_process_talks(together: Finished) -> None:
    said = together.said
    assert said.count("starts 2 processes (ddp)") == 1
    assert said.count("rows_per_pass = 3") == 1
    assert said.count("training  ") == 1
    assert said.count("there is no gate.lock") == 1
    assert len(said.splitlines()) < 17, said


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_polite_stop_reaches_all_and_the_run_goes_on_bit_for_bit(
    workshop: Workshop,
    together: Finished,
    train: Train,
    kind: str,
) -> None:
    """The signal goes to the command, in the middle of the second epoch; dropout is on."""
    wanted = together if kind == "ddp" else train(TWO, "launch.kind=fsdp2")
    sets = [*UNEVEN, TWO, f"launch.kind={kind}"]
    workshop.forget()
    # Six passes are two steps of three: the seventh is the first of step 3.
    done = workshop.train(*sets, fault={"at": "step", "call": 7, "rank": 1, "signals": ["TERM"], "to": "launcher"})
    assert done.code == 75, done.said
    assert done.said.count("stopped after step 3 of 6") == 1, done.said
    assert workshop.steps()[-1] == 3
    assert workshop.adapter() is None
    done = workshop.train(*sets)
    assert done.code == 0, done.said
    assert "goes on after step 3" in done.said
    again = Finished(workshop, done.said)
    assert again.weights.keys() == wanted.weights.keys()
    assert all(torch.equal(weight, wanted.weights[name]) for name, weight in again.weights.items())
    assert again.lines == wanted.lines
    assert not (workshop.run / "checkpoints").exists()


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no number in one of them": ({"at": "step", "call": 5, "rank": 1, "poison": "lora_B"}, 20, "became"),
    "the first cannot write": ({"at": "sync", "errno": 28}, 21, "No space left"),
    "one runs out of memory": ({"at": "step", "call": 5, "rank": 1, "out_of_memory": True}, 21, "out of memory"),
    "one is killed": (
        {"at": "step", "call": 5, "rank": 1, "signals": ["KILL"]},
        21,
        "process 1 of 2 was ended by SIGKILL",
    ),
}


@pytest.mark.parametrize(("fault", "code", "says"), FAULTS.values(), ids=FAULTS.keys())
def test_what_happens_to_one_ends_all_and_is_told_once(
    workshop: Workshop,
    fault: dict[str, Any],
    code: int,
    says: str,
) -> None:
    workshop.forget()
    done = workshop.train(*UNEVEN, TWO, fault=fault)
    assert done.code == code, done.said
    assert done.said.count(says) == 1, done.said
    assert "Traceback" not in done.said
    # One that only lost sight of another stays silent where that one has told why.
    assert fault.get("signals") or "lost sight" not in done.said
    assert workshop.adapter() is None


def test_a_checkpoint_of_one_process_is_drift_for_two(stopped: Workshop) -> None:
    done = stopped.train(TWO)
    assert done.code == 2, done.said
    assert done.said.count("machine.processes: 1 → '2, ddp'") == 1
    assert stopped.adapter() is None


def test_rows_that_cannot_be_divided_are_refused(workshop: Workshop) -> None:
    done = workshop.train("launch.processes=3")
    assert done.code == 2
    assert done.said.count("the 8 rows of a step") == 1, done.said


def test_processes_are_started_without_a_shell_and_end_with_their_code(capfd: pytest.CaptureFixture[str]) -> None:
    two = LaunchSection(processes=2)
    assert start(two, ["--version"]) == 0
    assert start(two, ["recipe", "validate", "nobody; touch told"]) == 2
    said = capfd.readouterr()
    assert said.err.count("no such recipe") == 1
    assert said.out == ""
    assert not Path("told").exists()


def test_what_the_first_process_fails_with_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(Team, "_from_first", lambda self, content: sent.append(content) or content)

    def full() -> None:
        raise EnvironmentFault("no space left")

    with pytest.raises(EnvironmentFault):
        Team(rank=0, size=2).lead(full)
    monkeypatch.setattr(Team, "_from_first", lambda self, content: sent[0])
    with pytest.raises(SystemExit) as ended:
        Team(rank=1, size=2).lead(lambda: pytest.fail("only the first process does it"))
    assert ended.value.code == EnvironmentFault.exit_code


def test_a_launcher_that_was_told_otherwise_than_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreements(LaunchSection(processes=8)) == []
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    assert disagreements(LaunchSection(processes=8)) == [
        "launch.processes: the recipe says 8, the launcher has started 4",
        "launch.kind: the recipe says ddp, accelerate's own configuration fsdp2",
    ]
    assert disagreements(LaunchSection(processes=4, kind="fsdp2")) == []
    assert not asked(LaunchSection(processes=4))
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="RANK: '' is no number"):
        here()


def test_a_signal_that_several_pass_on_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    stop = Stop()
    stop.request(signal.SIGTERM, None)
    stop.request(signal.SIGTERM, None)
    assert stop.requested
    stop._at -= ONE_SIGNAL
    with pytest.raises(KeyboardInterrupt):
        stop.request(signal.SIGTERM, None)


def test_only_training_works_in_several_processes(workshop: Workshop) -> None:
    done = workshop("baseline", "smoke", environment={"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"})
    assert done.code == 2
    assert "only `tunesmith train` works in several" in done.said


def test_processes_that_torchrun_has_started_join(
    workshop: Workshop,
    together: Finished,
) -> None:
    """Nothing is forked or stood in for here."""
    workshop.forget()
    sets = [part for text in (*SETTINGS, *UNEVEN) for part in ("--set", text)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tunesmith.cli", "train", "smoke", *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=workshop.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training  ") == 1
    assert "arning" not in done.stderr
    joined = Finished(workshop, done.stderr)
    assert all(torch.equal(weight, together.weights[name]) for name, weight in joined.weights.items())

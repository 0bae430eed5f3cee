"""The processes that train together, as each of them sees the others.

Who is who stands in the environment, in the words of torchrun: RANK, WORLD_SIZE, LOCAL_RANK. torchrun, `accelerate
launch`, SkyPilot and our own `launch` all speak them, so a process that any of them started joins by itself. The first
process checks, writes and talks; the others only train with it. Alone, a process is a team of one, and every method
here does nothing but the work it is given.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from tunesmith.errors import ExitCode, TunesmithError, UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long the others wait for one process: they do while the first checks all rows. Whoever has started them ends them
when one dies."""

COUNT_OF_FAILURES = "tunesmith/failures"


@dataclass(frozen=True)
class Team:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine, and that of its GPU."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that checks, writes and talks."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, each on a device of its own, for as long as the block runs.

        Raises:
            UserError: there are more processes than GPUs on this machine.
        """
        if self.size == 1:
            yield
            return
        import torch
        from torch import distributed

        self._keep_quiet()
        cuda = torch.cuda.is_available()
        # Started before anything can fail, so that who fails first can be known, and told once.
        distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=PATIENCE)
        if cuda and self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"launch: process {self.local_rank + 1} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; start no more than one process a GPU"
            )
        if cuda:
            torch.cuda.set_device(self.local_rank)
        yield
        # Left open where the block fails: those that go on must see the connection break, not end in good order.
        distributed.destroy_process_group()

    def _keep_quiet(self) -> None:
        from tunesmith.progress import stderr

        if not self.leads:
            stderr.quiet = True
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)

    def tells(self) -> bool:
        """Whether this process is the one to say why it ends: of several that fail, the first."""
        if self.size == 1:
            return True
        from torch import distributed

        if not distributed.is_initialized():
            return self.leads
        try:
            return bool(distributed.distributed_c10d._get_default_store().add(COUNT_OF_FAILURES, 1) == 1)
        except RuntimeError:
            # Whoever held the count is gone: it has failed before us.
            return False

    def lead(self, work: Callable[[], T]) -> T:
        """Let the first process do something, and all have what it gives, which JSON must be able to carry.

        Where it fails, it fails there as it would alone, and the others end with its exit code without a word.
        """
        if self.size == 1:
            return work()
        if not self.leads:
            told = json.loads(self._from_first(b""))
            if told["code"]:
                raise SystemExit(told["code"])
            given: T = told["gives"]
            return given
        try:
            gives = work()
        except BaseException as error:
            code = error.exit_code if isinstance(error, TunesmithError) else ExitCode.BUG
            self._from_first(json.dumps({"code": code}).encode())
            raise
        self._from_first(json.dumps({"code": 0, "gives": gives}).encode())
        return gives

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether a process has raised it."""
        return [bool(count) for count in self._summed([float(flag) for flag in flags])]

    def sum(self, value: float) -> float:
        """The sum of all processes' numbers."""
        return self._summed([value])[0]

    def gather(self, content: bytes) -> list[bytes]:
        """What each process holds, in the order of their ranks."""
        if self.size == 1:
            return [content]
        import torch
        from torch import distributed

        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor([len(content)]))
        longest = max(int(length) for length in lengths)
        padded = torch.tensor(list(content.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return [bytes(part[: int(length)].tolist()) for part, length in zip(parts, lengths, strict=True)]

    def _summed(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def _from_first(self, content: bytes) -> bytes:
        import torch
        from torch import distributed

        length = torch.tensor([len(content)])
        distributed.broadcast(length, 0)
        tensor = torch.tensor(list(content.ljust(int(length), b"\0")), dtype=torch.uint8)
        distributed.broadcast(tensor, 0)
        return bytes(tensor.tolist())


def here() -> Team:
    """This process's place, as whoever started it says."""
    values = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not values["WORLD_SIZE"].isdigit() or int(values["WORLD_SIZE"]) <= 1:
        return Team()
    problems = [f"{name}: {value!r} is no number" for name, value in values.items() if not value.isdigit()]
    if problems:
        raise UserError(
            problems, hint="WORLD_SIZE says that several processes train together; start them by torchrun or `launch:`"
        )
    return Team(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))

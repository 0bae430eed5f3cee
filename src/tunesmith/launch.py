"""Starting the processes that a recipe's `launch:` asks for, on one machine, and ending as they end.

Each is the same command with torchrun's words in its environment, so that those which torchrun, `accelerate launch` or
a cluster has started on several machines are no different (`team`). On one machine we start them ourselves: torchrun
turns every failure into exit code 1, while a run's exit code says what to do next, and adds a traceback of its own.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import DEVNULL, Popen
from types import FrameType
from typing import Any

from tunesmith.errors import EnvironmentFault, ExitCode
from tunesmith.progress import say
from tunesmith.sections import LaunchSection
from tunesmith.team import here

VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
"""As this process found it: a process alone goes on to hide all but one from itself."""

GRACE = 30.0
"""Seconds that the others have to end by themselves once one has failed."""

TOLD = (ExitCode.USER, ExitCode.DIVERGED, ExitCode.ENVIRONMENT, ExitCode.INTERRUPTED)
"""Exit codes that say why. Those of processes that only lost sight of another do not."""


def asked(section: LaunchSection) -> bool:
    """Whether several processes must be started: the recipe asks for them, and nobody has started them yet."""
    return (section.processes or 1) > 1 and here().size == 1


def disagreements(section: LaunchSection) -> list[str]:
    """What whoever started this process was told otherwise than the recipe says."""
    size = here().size
    if size == 1:
        return []
    problems = []
    if section.processes not in (None, size):
        problems.append(f"launch.processes: the recipe says {section.processes}, the launcher has started {size}")
    for word, kind in (("FSDP", "fsdp2"), ("DEEPSPEED", "deepspeed")):
        if os.environ.get(f"ACCELERATE_USE_{word}", "").lower() == "true" and section.kind != kind:
            problems.append(f"launch.kind: the recipe says {section.kind}, accelerate's own configuration {kind}")
    return problems


def start(section: LaunchSection, arguments: Sequence[str]) -> int:
    """Run `tunesmith` with these arguments in as many processes as the recipe asks for; returns its exit code.

    SIGTERM and SIGINT are passed on to all of them; a second one ends them at once.

    Raises:
        EnvironmentFault: a process was killed from outside.
    """
    assert section.processes is not None
    command = [sys.executable, "-m", "tunesmith.cli", *arguments]
    say(f"  starts {section.processes} processes ({section.kind})")
    running: list[Popen[bytes]] = []
    with _passed_on(running):
        for environment in _environments(section.processes):
            # In sessions of their own: a terminal would signal them too, and they would take it for the second time.
            running.append(Popen(command, env=environment, stdout=DEVNULL, start_new_session=True))
        codes = _ended(running)
    killed = [(rank, signal.Signals(-code).name) for rank, code in enumerate(codes) if code < 0]
    if killed and not {ExitCode.USER, ExitCode.DIVERGED, ExitCode.INTERRUPTED} & set(codes):
        rank, name = killed[0]
        raise EnvironmentFault(
            f"training: process {rank} of {section.processes} was ended by {name}; nothing was published",
            hint="the same command goes on from the newest checkpoint; the machine's log may say that memory was short",
        )
    return next((code for code in codes if code in TOLD), next((code for code in codes if code), 0))


def _environments(processes: int) -> Iterator[dict[str, str]]:
    """What each process finds in its environment."""
    shared = dict(os.environ)
    shared.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE_GPUS is not None:
        shared["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    if sys.platform == "linux":
        # They are on this machine: nothing of what they say to each other needs another interface.
        shared.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for rank in range(processes):
        number = str(rank)
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        yield {**shared, **size, "RANK": number, "LOCAL_RANK": number}


@contextmanager
def _passed_on(running: Sequence["Popen[bytes]"]) -> Iterator[None]:
    """Pass signals on while the block runs: the first as it is, the second as the end. None outlives the block."""
    received = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        for process in running:
            if process.poll() is None:
                process.send_signal(number if received == 1 else signal.SIGKILL)
        if received > 1:
            raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    for name in (signal.SIGTERM, signal.SIGINT):
        before[name] = signal.signal(name, pass_on)
    try:
        yield
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
        for name, handler in before.items():
            signal.signal(name, handler)


def _ended(running: Sequence["Popen[bytes]"]) -> list[int]:
    """The exit codes of all, minus the signal for those that one ended; a failed one takes the others with it."""
    failed_at: float | None = None
    while any(process.poll() is None for process in running):
        if failed_at is None and any(process.poll() for process in running):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            break
        time.sleep(0.05)
    # Those that had to be ended say nothing of why.
    return [process.poll() or 0 for process in running]

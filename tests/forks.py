"""Runs tunesmith commands in forked processes, with or without a fault planted, importing torch once for all.

Run as a script it reads one JSON object a line from stdin: the command's arguments, its directory, the fault. It
answers with one: the exit code or the signal that ended it, and what it said. Nothing is computed here before a fork:
torch's threads would not survive it. `Forks` is the tests' end of it.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a command ended (an exit code, or minus the signal) and what it said."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of it."""
        return self.err + self.out


class Forks:
    """The process that all others are forked from."""

    def __init__(self) -> None:
        # One thread: the steps are small, and other tests may share the cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        command = [sys.executable, "-P", __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def __call__(self, *arguments: str, directory: Path, **order: Any) -> Outcome:
        """Run a command; see `run` for what can go wrong in it."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        told = {"arguments": list(arguments), "directory": str(directory), **order}
        self._server.stdin.write(json.dumps(told) + "\n")
        self._server.stdin.flush()
        return Outcome(**json.loads(self._server.stdout.readline()))

    def end(self) -> None:
        """End it."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


SEAMS = {
    "weights": "tunesmith.train.state.trained",
    "values": "tunesmith.train.state.remembered",
    "sync": "tunesmith.train.checkpoints.sync_tree",
    "manifest": "tunesmith.train.checkpoints.write_json",
    "rename": "tunesmith.train.checkpoints.replace",
    "let go": "tunesmith.train.checkpoints.rmtree",
    "step": "tunesmith.train.guarded.Guarded.training_step",
    "collate": "tunesmith.train.trainer.Collator.__call__",
    "dev": "tunesmith.train.guarded.Guarded.token_nll",
    "adapter": "tunesmith.adapters.write_json",
    "publish": "tunesmith.runs.publish",
    "record": "tunesmith.runs.write_json",
    "merged": "tunesmith.export.merge.sha256_tree",
    "bundle": "tunesmith.export.bundle.write_json",
    "bundled": "tunesmith.export.bundle.publish",
    "render": "tunesmith.check.stage.render_each",
}
"""Where a fault may be planted, by the function that is about to be called."""


def plant(fault: dict[str, Any]) -> None:
    """Make the nth call of a seam do what the fault says, instead or before."""
    from unittest.mock import patch

    module, _, name = SEAMS[fault["at"]].rpartition(".")
    from pkgutil import resolve_name

    owner = resolve_name(module)
    real, calls = getattr(owner, name), 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault.get("note"):
            note(arguments)
        elif calls == fault.get("call", 1):
            happen(fault, arguments)
        return real(*arguments, **options)

    patch.object(owner, name, faulty).start()


def happen(fault: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    """Do what the fault says; of several processes, in the one that it names."""
    import torch

    if "rank" in fault and fault["rank"] != int(os.environ["RANK"]):
        return
    for name in fault.get("signals", []):
        os.kill(os.getppid() if fault.get("to") == "launcher" else os.getpid(), getattr(signal, f"SIG{name}"))
    if "errno" in fault:
        raise OSError(fault["errno"], os.strerror(fault["errno"]), "somewhere")
    if fault.get("out_of_memory"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    if poison := fault.get("poison"):
        (trainer, *_) = arguments
        parameter = next(p for n, p in trainer.model.named_parameters() if poison in n)
        with torch.no_grad():
            parameter.view(-1)[0] = float(fault.get("value", "nan"))


def note(arguments: tuple[Any, ...]) -> None:
    """Note the rows that this process collates into a batch to train on; looks of our own are none."""
    if sys._getframe(2).f_globals["__name__"].startswith("tunesmith."):
        return
    with open(f"read-{os.environ['RANK']}.jsonl", "a", encoding="utf-8") as stream:
        for row in arguments[1]:
            stream.write(json.dumps(row) + "\n")


class Forked:
    """Stands in for `Popen` where tunesmith starts itself in several processes: the same, but for importing torch."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: int, start_new_session: bool) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ.clear()
            os.environ |= env
            serve(command[3:])

    def poll(self) -> int | None:
        """The exit code, or minus the signal, once it has ended."""
        if self.returncode is None:
            child, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if child else None
        return self.returncode

    def wait(self) -> None:
        """Wait until it has ended."""
        while self.poll() is None:
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """Signal it."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def serve(arguments: list[str]) -> None:
    """Be the `tunesmith` command, to the end of this process."""
    from tunesmith.cli import main

    sys.argv = ["tunesmith", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        code = 99
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def refuse_network() -> None:
    """Let no connection out of this process."""

    connect = socket.socket.connect

    def refuse(*arguments: Any) -> Any:
        if "RANK" in os.environ and arguments[1][0] == "127.0.0.1":
            return connect(*arguments)
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]


def kill(child: int, order: dict[str, Any], err: Path) -> None:
    """Kill it and all that it has started, after a time, or so long after it has named a stage on a line of its own."""
    while "named" in order and order["named"] not in map(str.strip, err.read_text(errors="replace").splitlines()):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    time.sleep(order["kill_after"])
    os.killpg(child, signal.SIGKILL)


def run(order: dict[str, Any], out: Path, err: Path) -> int:
    """One command, in a process of its own."""
    for path in (out, err):
        path.write_bytes(b"")
    child = os.fork()
    if child:
        os.setpgid(child, child)
        if "kill_after" in order:
            kill(child, order, err)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(out, os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(os.open(err, os.O_WRONLY | os.O_APPEND), 2)
        os.chdir(order["directory"])
        os.environ |= order.get("environment", {})
        time.tzset()
        refuse_network()
        if "largest_file" in order:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
        if "fault" in order:
            plant(order["fault"])
        if "threads" in order:
            import torch

            torch.set_num_threads(order["threads"])
        from tunesmith import launch

        launch.Popen = Forked  # type: ignore[misc, assignment]
        serve(order["arguments"])
        raise AssertionError("unreachable")
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def main() -> None:
    """Serve until stdin ends."""
    from tunesmith.line import quiet_libraries

    quiet_libraries()
    # Imported once, here, for all.
    import matplotlib.pyplot  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tunesmith.check.shown
    import tunesmith.check.stage
    import tunesmith.curate.stage
    import tunesmith.evaluate.stage
    import tunesmith.export.bundle
    import tunesmith.export.merge
    import tunesmith.gate.report
    import tunesmith.gate.stage
    import tunesmith.train.stage  # noqa: F401

    # What is here now is never garbage: a fork that looked through it would copy it.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)

    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        for line in sys.stdin:
            code = run(json.loads(line), out, err)
            told = {"out": out.read_text(errors="replace"), "err": err.read_text(errors="replace")}
            print(json.dumps({"code": code, **told}), flush=True)


if __name__ == "__main__":
    main()

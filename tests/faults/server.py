"""Runs tunesmith commands in forked processes, each with one fault planted, without importing torch anew for each.

Reads one JSON object a line from stdin: the command's arguments, its directory, the fault. Answers with one: the exit
code or the signal that ended it, and what it said. Nothing is computed here before a fork: torch's threads would not
survive it.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEAMS = {
    "weights": "tunesmith.train.state.trained",
    "values": "tunesmith.train.state.remembered",
    "sync": "tunesmith.train.checkpoints.sync_tree",
    "manifest": "tunesmith.train.checkpoints.write_json",
    "rename": "tunesmith.train.checkpoints.replace",
    "let go": "tunesmith.train.checkpoints.rmtree",
    "step": "tunesmith.train.guarded.Guarded.training_step",
    "dev": "tunesmith.train.guarded.Guarded.token_nll",
    "adapter": "tunesmith.adapters.write_json",
    "publish": "tunesmith.runs.publish",
    "record": "tunesmith.runs.write_json",
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
        if calls == fault.get("call", 1):
            happen(fault, arguments)
        return real(*arguments, **options)

    patch.object(owner, name, faulty).start()


def happen(fault: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    """Do what the fault says."""
    import torch

    for name in fault.get("signals", []):
        os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
    if "errno" in fault:
        raise OSError(fault["errno"], os.strerror(fault["errno"]), "somewhere")
    if fault.get("out_of_memory"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    if poison := fault.get("poison"):
        (trainer, *_) = arguments
        parameter = next(p for n, p in trainer.model.named_parameters() if poison in n)
        with torch.no_grad():
            parameter.view(-1)[0] = float(fault.get("value", "nan"))


def refuse_network() -> None:
    """Let no connection out of this process."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]


def run(order: dict[str, Any], said: Path) -> int:
    """One command, in a process of its own."""
    child = os.fork()
    if child:
        if "kill_after" in order:
            time.sleep(order["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        os.setsid()
        stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
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
        from tunesmith.cli import app, guarded

        sys.argv = ["tunesmith", *order["arguments"]]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = guarded(app)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
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
    import tunesmith.check.stage
    import tunesmith.evaluate.stage
    import tunesmith.train.stage  # noqa: F401

    said = Path(tempfile.mkdtemp()) / "said"
    for line in sys.stdin:
        code = run(json.loads(line), said)
        print(json.dumps({"code": code, "said": said.read_text(errors="replace")}), flush=True)


if __name__ == "__main__":
    main()

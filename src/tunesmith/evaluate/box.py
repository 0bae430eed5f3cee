"""Run Python that a model wrote, with the tests of its row after it, in a child process with limits.

What the limits hold off: endless loops (processor time, and the clock), memory, large files, many open files, core
dumps, further processes and threads (not where we are root). The child has an empty directory of its own, no variables
of ours, nothing to read from, no site packages; where Linux lets a user make namespaces it has no network, and no
process of it outlives it. Leaving early is no pass: the tests have passed only when a word that this run alone knows is
told after them.

What they do not: the code runs as this user and can read, and outside its directory write, what this user can; where
there are no namespaces it can reach the network and leave processes behind; code that searches its own process for the
word, or that bends `assert` or `==`, can claim to have passed. It is no sandbox against malice. Run it where there is
nothing to lose: in a container without secrets.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from tunesmith.errors import EnvironmentFault

if os.name == "posix":
    import resource

FILE_BYTES = 1 << 20
CLOCK_FACTOR = 3
OUT_OF_TIME = 0.9
"""Part of its processor time that a child which failed has used if the limit ended it: the kernel counts in ticks."""
START_SECONDS = 5
"""What starting an interpreter may take beside the run itself, on a busy machine."""

# Reads the two programs and the word from its input, so that none of them lies in a file or in its arguments.
CHILD = """
import json, os, resource, sys
told = json.loads(sys.stdin.buffer.read())
for name, soft, hard in told["limits"]:
    resource.setrlimit(getattr(resource, name), (soft, hard))
say = os.fdopen(os.dup(1), "w")
quiet = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(quiet, stream)
word, space = told.pop("word"), {"__name__": "answer"}
exec(compile(told["code"], "answer.py", "exec"), space)
space["__name__"] = "tests"
exec(compile(told["tests"], "tests.py", "exec"), space)
say.write(word)
say.flush()
os._exit(0)
"""


@cache
def isolation() -> list[str]:
    """The command that runs another one without network and in a process space of its own; empty where none can."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return []
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if done.returncode == 0 else []


def run_tests(code: str, tests: str, cpu_seconds: int, memory_mib: int) -> str:
    """Run code and then its tests; `passed`, `tests_failed` or `tests_timeout`.

    Raises:
        EnvironmentFault: this system has no limits for processes.
    """
    if os.name != "posix":
        raise EnvironmentFault("score.run_tests: this system has no limits for processes; run it on Linux or macOS")
    word, before = secrets.token_hex(16), _seconds_of_children()
    limits = [
        ("RLIMIT_CPU", cpu_seconds, cpu_seconds),
        ("RLIMIT_FSIZE", FILE_BYTES, FILE_BYTES),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_NPROC", 0, 0),
    ]
    if sys.platform == "linux":  # macOS knows the limit and refuses to set it
        limits.append(("RLIMIT_AS", memory_mib << 20, memory_mib << 20))
    told = json.dumps({"code": code, "tests": tests, "word": word, "limits": limits}).encode()
    # Into a file: of a pipe no limit holds off a flood.
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as out:
        environment = {"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
        child = subprocess.Popen(
            [*isolation(), sys.executable, "-I", "-S", "-B", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=Path(scratch),
            env=environment,
            start_new_session=True,
        )
        try:
            child.communicate(told, timeout=START_SECONDS + CLOCK_FACTOR * cpu_seconds)
        except subprocess.TimeoutExpired:
            return "tests_timeout"
        finally:
            _end(child)
        out.seek(0)
        if word.encode() in out.read():
            return "passed"
    # Of the time and not of the exit code: `unshare` does not always tell by which signal its child ended.
    used = _seconds_of_children() - before
    return "tests_timeout" if used >= OUT_OF_TIME * cpu_seconds else "tests_failed"


def _seconds_of_children() -> float:
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child and all of its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()

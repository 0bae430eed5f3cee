"""How a command ends: an exit code, and a message where something was wrong, instead of a traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable

from tunesmith.errors import EnvironmentFault, ExitCode, TunesmithError, is_out_of_memory
from tunesmith.team import here

INTERRUPTED = "interrupted; run the same command again, finished stages are kept"
INTERRUPTED_BY_TYPER = 130
"""What typer turns a KeyboardInterrupt into."""


def guarded(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; a person's or the machine's fault is told without a traceback.

    Of several processes that fail, one tells.
    """

    try:
        command()
    except SystemExit as stop:
        if stop.code == INTERRUPTED_BY_TYPER:
            _tell(INTERRUPTED)
            return ExitCode.INTERRUPTED
        return int(stop.code or 0) if not isinstance(stop.code, str) else ExitCode.BUG
    except TunesmithError as error:
        _tell(error.text)
        return error.exit_code
    except KeyboardInterrupt:
        _tell(INTERRUPTED)
        return ExitCode.INTERRUPTED
    except Exception as error:
        fault = _environment_fault(error)
        if fault is not None:
            _tell(fault.text)
            return fault.exit_code
        if here().tells():
            raise
        return ExitCode.BUG
    return ExitCode.DONE


def _tell(text: str) -> None:

    if here().tells():
        print(text, file=sys.stderr)


def _environment_fault(error: Exception) -> EnvironmentFault | None:
    """The machine's fault behind an exception, or None where it is a bug of ours."""
    if is_out_of_memory(error):
        return EnvironmentFault(
            "out of memory; nothing was published",
            hint="in training lower hardware.batch_tokens, else pick a smaller base or fewer shots (arms.*)",
        )
    if isinstance(error, RuntimeError) and (told := re.search(r"^.*(gloo|NCCL).*$", str(error), re.MULTILINE)):
        return EnvironmentFault(f"training: lost sight of another process; nothing was published ({told[0][:200]})")
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (told := re.search(r"\(os error (\d+)\)", str(error))):
        # safetensors writes by itself, and says in words what the system said.
        number = int(told[1])
    if number in THE_MACHINES:
        place = getattr(error, "filename", None) or "disk"
        return EnvironmentFault(f"{place}: {os.strerror(number)}; nothing half-written was kept")
    return None


THE_MACHINES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EXDEV,
    errno.EACCES,
    errno.EPERM,
}
"""What the system says that is no fault of the input."""

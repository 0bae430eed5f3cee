"""What can go wrong, in whose hands it lies, and the exit code that says so.

TunesmithError
 ├── UserError         2   the recipe, the rows or the command is wrong
 ├── Interrupted      75   a person or a scheduler stopped the run; it can go on
 ├── Invalid          12   what would be judged cannot be: the lock or the ledger does not hold, a split is used up
 ├── Diverged         20   training produced a loss that is not a number
 └── EnvironmentFault 21   disk, memory, network, or a file that is not the pinned one

Every message reads `where: what is wrong; what to do`. A UserError carries all problems found, never only the first;
of very many, the first are told and the rest counted. Anything else that is raised is a bug of ours and shows its
traceback.
"""

from collections.abc import Sequence
from enum import IntEnum

SHOWN = 20
"""Problems that are told in full."""


class ExitCode(IntEnum):
    """What the process tells its caller. The first group is for every command, the second for `gate` and `run`."""

    DONE = 0
    BUG = 1
    USER = 2
    DIVERGED = 20
    ENVIRONMENT = 21
    INTERRUPTED = 75

    SHIP = 0
    BLOCK = 10
    INCONCLUSIVE = 11
    INVALID = 12


class TunesmithError(Exception):
    """An error with a message meant for a person."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, problems: str | Sequence[str], *, hint: str | None = None) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        self.hint = hint
        super().__init__(self.text)

    @property
    def text(self) -> str:
        """The problems, one a line, and the hint on a line of its own."""
        lines = self.problems[:SHOWN]
        if (more := len(self.problems) - SHOWN) > 0:
            lines.append(f"and {more} more")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class UserError(TunesmithError):
    """The user's input is wrong and the message says where, what, and what to do."""

    exit_code = ExitCode.USER


class Invalid(TunesmithError):
    """No verdict could follow, so nothing was done: the ledger does not hold, or a gate split is used up."""

    exit_code = ExitCode.INVALID


class Interrupted(TunesmithError):
    """Somebody stopped the run; it can go on."""

    exit_code = ExitCode.INTERRUPTED


class Diverged(TunesmithError):
    """Training left the numbers; nothing of it is published."""

    exit_code = ExitCode.DIVERGED


class EnvironmentFault(TunesmithError):
    """The machine or the network failed us; the input may be fine."""

    exit_code = ExitCode.ENVIRONMENT


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, torch's on a GPU, or torch's on a CPU, a bare string."""
    torch_s = type(error).__name__ == "OutOfMemoryError"
    return torch_s or isinstance(error, MemoryError) or "can't allocate memory" in str(error)

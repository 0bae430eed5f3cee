"""How much memory training holds at its peak: what torch has allocated on a GPU, else what is resident."""

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

from tunesmith.hardware import GIB

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "5"
"""What Linux takes for `forget the high-water mark of resident memory` (proc(5))."""


def forget_peak(device: str) -> None:
    """Begin to measure anew; where the system cannot, the mark stays that of the whole process."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        CLEAR.write_text(PEAK)


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can: else it would count as held."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_gib(device: str) -> float | None:
    """The most that was held since `forget_peak`, in GiB; none where the system does not tell."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated() / GIB)
    if STATUS.is_file() and (told := re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), flags=re.MULTILINE)):
        return int(told[1]) * 1024 / GIB
    if sys.platform == "win32":
        return None
    import resource

    # Kibibytes, but on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB

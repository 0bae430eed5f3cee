"""The project to break: that of tests/faults."""

from tests.faults.conftest import killed_at_9, made, stopped, workshop

__all__ = ["killed_at_9", "made", "stopped", "workshop"]

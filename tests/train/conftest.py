"""The project to break, and the process that others are forked from: those of tests/faults."""

from tests.faults.conftest import killed_at_9, made, server, stopped, workshop

__all__ = ["killed_at_9", "made", "server", "stopped", "workshop"]

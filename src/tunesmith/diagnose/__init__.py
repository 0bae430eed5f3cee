"""Beside the line: why rows fail, and what would repair it. Never imports torch."""

"""What was computed once, kept by content in the cache directory: an entry is whole, or it is not there.

A key is a digest of all that decides a value, so entries never grow stale and any number of runs and processes share
one store. An entry begins with the digest of its own bytes: one that was cut or changed is not read, and made again.
The directory may be deleted at any time.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from tunesmith.progress import say


class Store:
    """Entries in a directory, each under the hex digest that is its key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writable = True

    def get(self, key: str) -> bytes | None:
        """The value of a key; None where there is none, or one whose bytes are not those that were put."""
        try:
            raw = self._path(key).read_bytes()
        except OSError:
            return None
        digest, value = raw[:32], raw[32:]
        return value if hashlib.sha256(key.encode() + value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value. Of two processes that put one key at once, either's entry stands, whole.

        Where nothing can be written, it is said once and nothing is kept: no run ends for that.
        """
        if not self.writable:
            return
        try:
            self._write(self._path(key), hashlib.sha256(key.encode() + value).digest() + value)
        except OSError as error:
            self.writable = False
            say(f"  warning: {self.directory}: cannot be written ({error.strerror}); what is computed is not kept")

    def _write(self, path: Path, raw: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed to the disk: after a loss of power the digest tells a torn entry.
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".")
        with open(descriptor, "wb") as stream:
            stream.write(raw)
        os.replace(part, path)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key

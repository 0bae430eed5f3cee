"""What was computed once, kept by content in the cache directory: an entry is whole, or it is not there.

A key is a digest of all that decides a value, so entries never grow stale and any number of runs and processes share
one store. An entry begins with the digest of its own bytes: one that was cut or changed is not read, and made again.
The directory may be deleted at any time.
"""

import hashlib
import os
import tempfile
from pathlib import Path


class Store:
    """Entries in a directory, each under the hex digest that is its key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: str) -> bytes | None:
        """The value of a key; None where there is none, or one whose bytes are not those that were put."""
        try:
            raw = self._path(key).read_bytes()
        except OSError:
            return None
        digest, value = raw[:32], raw[32:]
        return value if hashlib.sha256(key.encode() + value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value. Of two processes that put one key at once, either's entry stands, whole."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed to the disk: after a loss of power the digest tells a torn entry.
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".")
        with open(descriptor, "wb") as stream:
            stream.write(hashlib.sha256(key.encode() + value).digest() + value)
        os.replace(part, path)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key

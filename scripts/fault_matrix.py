"""Plant each of the thirty silent faults into a run of plain trl and into one of ours, and say what each made of it.

    python scripts/fault_matrix.py                             # all of them, in four minutes
    python scripts/fault_matrix.py --only 3 7
    python scripts/fault_matrix.py --write docs/FOOTGUNS.md    # and the table into the document

What is planted, and how, stands in `faults_plain.py` and `faults_ours.py`. Each case is a process of its own, in a copy
of a project with a finished run of `smoke` on the tiny base. Plain trl ends in one of these ways: `silent` (exit 0, and
nothing said that a sound run does not say), `warned`, `raised` (a library refused by a `raise` of its own), `crashed`.
Ours holds a fault where a command ends with another exit code than 0 and a line that names it, or where the fault has
no effect, which is measured. Exit code 1 if one is not held.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.line import quiet_libraries

quiet_libraries()

import faults_ours  # noqa: E402 - imported once, here, for all processes
import faults_plain  # noqa: E402

import tunesmith.check.stage  # noqa: E402
import tunesmith.evaluate.stage  # noqa: E402
import tunesmith.train.stage  # noqa: E402, F401
from tunesmith.files import read_json, write_atomic, write_json  # noqa: E402
from tunesmith.findings import FAULTS  # noqa: E402
from tunesmith.runs import versions  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
KEPT = REPOSITORY / "docs" / "fault-matrix.json"
"""What the table in docs/FOOTGUNS.md is laid out from."""
BEGIN, END = "<!-- fault matrix: begin -->", "<!-- fault matrix: end -->"
FROM_A_RUN = {9, 13, 15, 20, 21, 23, 25, 28}
"""Faults whose cases begin with a finished run."""
PATIENCE = 400
"""Seconds that a case may take."""

BESIDE = ("The new embeddings will be initialized", "The attention mask is not set", "The attention mask and the pad")
"""How warnings begin that a case draws and that speak of something else than its fault."""

Told = dict[str, Any]


def in_child(directory: Path, work: Callable[[], Told]) -> Told:
    """What `work` returns, done in a process of its own; torch has computed nothing before the fork."""
    # Beside the directory: what it was copied from has none of its own.
    answer, said = directory.with_suffix(".json"), directory.with_suffix(".said")
    child = os.fork()
    if not child:
        try:
            stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            os.chdir(directory)
            # What is answered by code that was planted is no one else's.
            os.environ["TUNESMITH_CACHE"] = str(directory.with_suffix(".cache"))
            socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
            signal.alarm(PATIENCE)
            write_json(answer, work())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
    if answer.is_file():
        return dict(read_json(answer))
    return {"outcome": "broken", "told": said.read_text(errors="replace")[-2000:]}


def refuse(*arguments: Any) -> Any:
    """Let no connection out."""
    raise OSError(f"a connection was tried: {arguments[1:]}")


def plain(case: Callable[[], str]) -> Told:
    """One case in plain trl."""
    with listening() as heard:
        try:
            return {"outcome": "silent", "told": case(), "heard": heard}
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            theirs = "site-packages" in frame.filename and (frame.line or "").startswith("raise")
            first = (str(error).strip() or "no message").splitlines()[0]
            told = {"outcome": "raised" if theirs else "crashed", "told": f"{type(error).__name__}: {first}"}
            return told | {"heard": heard, "traceback": traceback.format_exc()[-1500:]}


@contextlib.contextmanager
def listening() -> Any:
    """Collect what libraries warn of, as a user with their defaults would see it."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_warning()
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear(logging.WARNING)
    for name in ("", "transformers"):
        logging.getLogger(name).addHandler(ear)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *rest, **more: heard.append(str(message))
        yield heard


def ours(case: Callable[[faults_ours.Shop], faults_ours.Outcome]) -> Told:
    """One case in tunesmith."""
    shop = faults_ours.Shop()
    held, how = case(shop)
    return {"outcome": "held" if held else "not held", "told": how, "planted": shop.planted}


def make_project(root: Path, tiny: Path, command: str) -> None:
    """A project in which one command was run: `run`, or `curate` where no case needs a finished run."""
    for name in ("recipes", "scripts"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data" / "smoke").mkdir(parents=True)
    shutil.copy(REPOSITORY / "data" / "smoke" / "schema.json", root / "data" / "smoke")
    shutil.copytree(tiny, root / ".cache" / "tiny-base")

    def work() -> Told:
        ended = faults_ours.Shop()(command, "smoke")
        return {"outcome": str(ended.code), "told": ended.said}

    done = in_child(root, work)
    if done["outcome"] != "0":
        raise SystemExit(f"`tunesmith {command} smoke` fails here: {done['told']}")


def of_interest(heard: list[str], usual: list[str]) -> str:
    """The first warning that a sound run does not give."""
    others = (text for text in heard if text not in usual and not text.startswith(BESIDE))
    return next((" ".join(text.split()) for text in others), "")


def run(numbers: list[int], tiny: Path) -> dict[str, Any]:
    """All cases of some faults."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        make_project(made, tiny, "run" if FROM_A_RUN.intersection(numbers) else "curate")
        counter = iter(range(1000))

        def case(work: Callable[[], Told]) -> Told:
            directory = Path(scratch) / str(next(counter))
            shutil.copytree(made, directory)
            try:
                return in_child(directory, work)
            finally:
                shutil.rmtree(directory)

        usual = case(lambda: plain(faults_plain.sound))
        if usual["outcome"] != "silent":
            raise SystemExit(f"a sound run of plain trl fails here: {usual}")
        for number in numbers:
            began = time.monotonic()
            left = case(lambda number=number: plain(faults_plain.CASES[number]))
            warning = of_interest(left.pop("heard", []), usual["heard"])
            if left["outcome"] == "silent" and warning:
                left |= {"outcome": "warned", "warning": warning}
            right = case(lambda number=number: ours(faults_ours.CASES[number]))
            results[str(number)] = {
                "fault": FAULTS[number].title,
                "plain": {"planted": first_line(faults_plain.CASES[number]), **left},
                "ours": {"how": first_line(faults_ours.CASES[number]), **right},
            }
            took = time.monotonic() - began
            print(f"{number:2} {FAULTS[number].title} ({took:.0f} s)", flush=True)
            for name, told in results[str(number)].items():
                if name != "fault":
                    print(f"   {name}: {told['outcome']}: {told['told']}", flush=True)
                    if "warning" in told:
                        print(f"      warning: {told['warning']}", flush=True)
                    if "traceback" in told:
                        print(told.pop("traceback"), flush=True)
    return results


def first_line(case: Callable[..., Any]) -> str:
    """What a case plants, by its own words."""
    return (case.__doc__ or "").strip().splitlines()[0]


def cell(text: str, most: int = 260) -> str:
    """Text for one cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


def layout(kept: dict[str, Any]) -> str:
    """The table, as docs/FOOTGUNS.md holds it."""
    faults = kept["faults"]
    counts = {
        word: sum(one["plain"]["outcome"] == word for one in faults.values())
        for word in ("silent", "warned", "raised", "crashed")
    }
    held = sum(one["ours"]["outcome"] == "held" for one in faults.values())
    told = ", ".join(f"{word} {number}" for word, number in counts.items() if number)
    lines = [
        f"Of {len(faults)} faults plain trl {kept['versions']['trl']}: {told}. tunesmith: held {held}.",
        "",
        "| | fault | planted | plain trl | tunesmith |",
        "|---|---|---|---|---|",
    ]
    for number, one in faults.items():
        left, right = one["plain"], one["ours"]
        warning = f" Warning: “{cell(left['warning'], 120)}”" if "warning" in left else ""
        planted = ", planted in our code" if right.get("planted") else ""
        word = "" if right["outcome"] == "held" else "**not held** "
        theirs = f"**{left['outcome']}** {cell(left['told'])}.{warning}"
        mine = f"{word}{cell(right['told'], 180)} ({cell(right['how'])}{planted})"
        lines.append(f"| {number} | {one['fault']} | {cell(left['planted'])} | {theirs} | {mine} |")
    return "\n".join(lines)


def written(document: str, table: str) -> str:
    """The document with the table between its two marks."""
    before, _, rest = document.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"the document has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    """Run cases, and publish what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", choices=FAULTS, metavar="NUMBER")
    parser.add_argument("--base", type=Path, default=REPOSITORY / ".cache" / "tiny-base", help="where the tiny base is")
    parser.add_argument("--write", type=Path, help="put the table into this document, and its facts beside it")
    parser.add_argument("--out", type=Path, help="write the facts as JSON")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write publishes all thirty: leave --only out")
    results = run(options.only or list(FAULTS), options.base)
    kept = {"versions": versions(), "faults": results}
    if options.out:
        write_json(options.out, kept)
    if options.write:
        write_json(KEPT, kept)
        write_atomic(options.write, written(options.write.read_text(encoding="utf-8"), layout(kept)))
    lost = [number for number, one in results.items() if one["ours"]["outcome"] != "held"]
    if lost:
        raise SystemExit(f"not held: {', '.join(lost)}")


if __name__ == "__main__":
    main()

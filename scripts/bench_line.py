"""Time the whole line by stage, at one or more revisions, each in a fresh worktree; print a table and write JSON.

    python scripts/bench_line.py --recipe json-extract --revisions v1 HEAD --out build/bench_line.json

Each revision runs `tunesmith run RECIPE` with this environment's packages, its own source, recipes and scripts, from
curation to bundle. Packages and converted bases come from the cache. Seconds are those that the run records by stage,
and the whole command's; one line at a time, so give the machine to it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.files import read_json, write_json
from tunesmith.runs import versions

REPOSITORY = Path(__file__).resolve().parent.parent


def run_line(revision: str, recipe: str, sets: list[str]) -> dict[str, Any]:
    """Walk the line at a revision; returns its verdict, its seconds by stage and the whole command's."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            command = [sys.executable, "-m", "tunesmith.cli", "run", recipe]
            for text in sets:
                command += ["--set", text]
            environment = os.environ | {"PYTHONPATH": str(tree / "src")}
            began = time.monotonic()
            # A verdict that does not ship has an exit code of its own, and its stages took their time all the same.
            done = subprocess.run(command, cwd=tree, env=environment, check=False)
            seconds = time.monotonic() - began
            found = list((tree / "runs").glob("*/verdict.json"))
            if not found:
                raise SystemExit(f"{revision}: no verdict, exit code {done.returncode}")
            stages = {
                record["stage"]: record["seconds"]
                for record in map(read_json, sorted((found[0].parent / "stages").glob("*.json")))
            }
            commit = subprocess.check_output(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], text=True)
            verdict = read_json(found[0])
            return {"commit": commit.strip(), "verdict": verdict["verdict"], "stages": stages, "whole": seconds}
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="json-extract")
    parser.add_argument("--revisions", nargs="+", default=["HEAD"])
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    result: dict[str, Any] = {"recipe": options.recipe, "versions": versions(), "revisions": {}}
    for revision in options.revisions:
        result["revisions"][revision] = run_line(revision, options.recipe, options.sets)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, result)
    names = sorted({stage for line in result["revisions"].values() for stage in line["stages"]})
    table = Table("stage", *options.revisions, box=None)
    for name in names:
        table.add_row(name, *(f"{line['stages'].get(name, 0):.1f}" for line in result["revisions"].values()))
    table.add_row("whole command", *(f"{line['whole']:.1f}" for line in result["revisions"].values()))
    Console().print(table)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

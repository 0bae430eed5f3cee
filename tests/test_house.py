"""The rules that no single module can see: who imports whom, what never runs, what never stands in a file."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "tunesmith"

NOUNS = {
    "adapters",
    "bases",
    "beginning",
    "chat_template",
    "cost",
    "curation",
    "design",
    "embedder",
    "errors",
    "failures",
    "fields",
    "files",
    "findings",
    "hardware",
    "scoring_judge",
    "launch",
    "leaks",
    "logs",
    "methods",
    "near",
    "packages",
    "preferences",
    "prices",
    "probes",
    "progress",
    "prompt",
    "recipe",
    "rows",
    "reserved",
    "runs",
    "schema",
    "scoring",
    "secrets",
    "sections",
    "stats",
    "store",
    "team",
    "templates",
    "text",
    "tokens",
    "trackers",
    "upstream",
    "weights",
    "yaml_source",
}
STAGES = {"check", "curate", "curve", "diagnose", "evaluate", "export", "gate", "train"}
TOP = {"__main__", "asked", "beside", "cli", "diagnosing", "ending", "inputs", "judging", "line", "sizes"}
FLOORS = dict.fromkeys(NOUNS, 1) | dict.fromkeys(STAGES, 2) | dict.fromkeys(TOP, 3)

LONGEST_FILE = 420

FILES = sorted(SOURCE.rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part(path: Path) -> str:
    """The noun, the stage or the top module that a file belongs to; empty for the package itself."""
    return path.relative_to(SOURCE).with_suffix("").parts[0].removesuffix("__init__")


def imported_parts(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The parts of tunesmith that a file imports, anywhere in it, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the package in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            if package == "tunesmith":
                yield inside.split(".")[0], node.lineno


def imports_of_the_house() -> list[tuple[str, str, str]]:
    found = []
    for path in FILES:
        for imported, line in imported_parts(parsed(path)):
            found.append((part(path), imported, f"{path.relative_to(REPOSITORY)}:{line}"))
    assert len(found) > 100
    return [(importer, imported, where) for importer, imported, where in found if imported != "__version__"]


def test_every_module_stands_on_a_floor() -> None:
    assert {part(path) for path in FILES} - {""} == set(FLOORS)


def test_imports_run_downwards_and_no_stage_knows_another() -> None:
    wrong = []
    for importer, imported, where in imports_of_the_house():
        down = FLOORS[imported] < FLOORS[importer]
        beside = importer == imported or (FLOORS[imported] == FLOORS[importer] and FLOORS[importer] != 2)
        if not (down or beside):
            wrong.append(f"{where}: {importer} imports {imported}")
    assert wrong == []


def test_the_package_itself_imports_nothing_of_the_house() -> None:
    assert list(imported_parts(parsed(SOURCE / "__init__.py"))) == []


def test_no_imports_go_in_a_circle() -> None:
    below: dict[str, set[str]] = {name: set() for name in FLOORS}
    for importer, imported, _ in imports_of_the_house():
        below[importer] |= {imported} - {importer}
    while free := {name for name, others in below.items() if not others}:
        below = {name: others - free for name, others in below.items() if name not in free}
    assert below == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_file_is_short_and_named_for_what_it_holds(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{lines} lines: a file this long holds a second noun"


# ---------------------------------------------------------------------- what is never imported

LIGHT = [
    *(f"tunesmith.{name}" for name in sorted(NOUNS | TOP)),
    *(
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for stage in ("gate", "curate", "check", "diagnose")
        for path in sorted((SOURCE / stage).glob("*.py"))
    ),
    "tunesmith.evaluate.logged",
    "tunesmith.evaluate.label_noise",
]
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate", "matplotlib")


def test_what_reads_and_judges_never_imports_torch() -> None:
    program = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if loaded:
        sys.exit(f"{{name}} imports {{loaded}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- what never stands in a file


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file that is tracked or about to be, by its path."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file():
            raw = path.read_bytes()
            if b"\0" not in raw:
                found[name] = raw.decode("utf-8")
    assert len(found) > 50
    return found


# Somebody's own directories: they mean nothing on another machine.
OWN_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|tmp|home|Users)/")


def test_no_file_names_a_path_of_one_machine(texts: dict[str, str]) -> None:
    wrong = []
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if OWN_PATH.search(line):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert wrong == []


def configured_indexes() -> set[str]:
    """Hosts, or directories, of the package indexes that this machine is set up to use."""
    told = [value for name, value in os.environ.items() if re.fullmatch(r"(PIP|UV)_\w*(INDEX|LINKS)\w*", name)]
    command = [sys.executable, "-m", "pip", "config", "list"]
    told.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    urls = [urlsplit(url) for url in re.findall(r"(?:https?|file)://[^\s'\"]+", " ".join(told))]
    return {url.hostname or url.path for url in urls} - {"pypi.org", "files.pythonhosted.org"}


def test_no_file_names_this_machines_package_index(texts: dict[str, str]) -> None:
    indexes = configured_indexes()
    wrong = [(name, index) for name, text in texts.items() for index in indexes if index in text]
    assert wrong == []


PRIVATE_HOST = re.compile(
    r"//(?:[^/\s@]*@)?(?:10\.\d+\.\d+\.\d+|192\.168\.\d+\.\d+|172\.(?:1[6-9]|2\d|3[01])\.\d+\.\d+|"
    r"[\w.-]*(?:artifactory|nexus|devpi|\.internal|\.local|\.corp)\b)"
)


def test_no_file_names_a_host_that_only_some_can_reach(texts: dict[str, str]) -> None:
    wrong = [(name, match[0]) for name, text in texts.items() if (match := PRIVATE_HOST.search(text))]
    assert wrong == []


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_notebooks_are_found_where_the_directory_holds_files() -> None:
    directory = REPOSITORY / "notebooks"
    held = [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else []
    assert bool(NOTEBOOKS) == bool(held)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs_and_defines_nothing(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        code = re.sub(r"(?m)^( *)[!%].*", r"\1pass", "".join(cell["source"]))
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert [ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, defined)] == []

"""Documents name only what exists."""

import re
import subprocess
from pathlib import Path

import pytest


def documents(repository: Path) -> list[Path]:
    found = [*repository.glob("*.md"), *repository.glob("docs/**/*.md")]
    assert len(found) > 8
    return found


def targets(repository: Path) -> set[str]:
    text = (repository / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))


def test_every_make_target_in_the_documents_exists(repository: Path) -> None:
    named = {
        word
        for path in documents(repository)
        for line in re.findall(r"`make ([^`]+)`|^ {4}make ([^#\n]+)", path.read_text(), flags=re.MULTILINE)
        for word in "".join(line).split()
        if "=" not in word and not word.startswith("-")
    }
    assert {"train", "test", "smoke"} <= named
    assert named <= targets(repository)


def test_every_makefile_target_is_in_help(repository: Path) -> None:
    done = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.split()}
    assert targets(repository) - {"help"} <= listed
    assert "json-extract" in done.stdout


def test_train_without_a_recipe_says_what_to_do(repository: Path) -> None:
    command = ["make", "-o", ".venv/.ready", "train"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set RECIPE=<name>" in done.stderr


def test_every_command_in_the_documents_exists(repository: Path) -> None:
    from typer.main import get_command

    from tunesmith.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    text = "\n".join(path.read_text() for path in documents(repository))
    named = set(re.findall(r"(?:`|^ {4})tunesmith ([a-z]+)", text, flags=re.MULTILINE))
    assert named
    assert named <= known


def test_every_file_that_the_architecture_names_exists(repository: Path) -> None:
    text = (repository / "docs" / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:src|scripts|tests)/[\w./-]+\.py)`", text))
    assert {"src/tunesmith/prompt.py", "src/tunesmith/errors.py", "src/tunesmith/evaluate/stage.py"} <= named
    missing = [name for name in named if not (repository / name).is_file()]
    assert missing == []


def test_the_architecture_lists_every_module(repository: Path) -> None:
    text = (repository / "docs" / "ARCHITECTURE.md").read_text()
    modules = [path for path in (repository / "src" / "tunesmith").rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) > 30
    unnamed = [path.stem for path in modules if not re.search(rf"`{path.stem}(\.py)?`", text)]
    assert unnamed == []


def test_every_recipe_is_in_the_table(repository: Path) -> None:
    text = (repository / "docs" / "RECIPES.md").read_text()
    recipes = [path.stem for path in (repository / "recipes").rglob("*.yaml") if path.stem != "bases"]
    assert recipes
    assert [name for name in recipes if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "constraints.txt"])
def test_what_a_stranger_looks_for_is_there(repository: Path, name: str) -> None:
    assert (repository / name).stat().st_size > 0


def test_each_pin_satisfies_the_bounds_of_the_project(repository: Path) -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    assert pins["torch"] == "2.13.0"
    for requirement in wanted:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement.name

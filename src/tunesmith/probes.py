"""The texts that show whether a model has forgotten: what no training row may hold.

The general text is our own (general.txt, one document a paragraph), frozen with the package; a recipe names others.
"""

from importlib.resources import files
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.leaks import WORDS
from tunesmith.rows import read_rows


def general_documents() -> list[str]:
    """The package's general documents, in file order."""
    return _paragraphs(files("tunesmith").joinpath("general.txt").read_text(encoding="utf-8"))


def probe_texts(paths: list[str], root: Path) -> dict[str, list[str]]:
    """The texts of the general documents and of a recipe's probe sets, by their names.

    A `.jsonl` file holds rows, of which prompts count, and completions that are long enough to be known again; any
    other is text, one document a paragraph.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    found = {"general.txt": general_documents()}
    for name in paths:
        path = root / name
        if path.suffix == ".jsonl":
            rows = read_rows(path)
            found[name] = [row.prompt_text for row in rows]
            found[name] += [row.reference for row in rows if len(row.reference.split()) >= WORDS]
        elif path.is_file():
            try:
                found[name] = _paragraphs(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
        else:
            raise UserError(f"curate.probes: no such file {name!r}")
    return found


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]

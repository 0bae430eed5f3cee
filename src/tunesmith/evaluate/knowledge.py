"""A knowledge base: documents cut into chunks, each under the titles that it stands below, and found by question.

Documents are Markdown files, or JSON Lines of `id`, `title` and `text` (Markdown too). A chunk is one section, cut at
blank lines where it is long. What is searched, and shown, is its header and its text: a section by itself often does
not say what it is about (the plain form of contextual retrieval, where a model writes that header).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import sha256_file, sha256_json
from tunesmith.rows import Row

LONGEST = 1000
"""Characters of a chunk, about 250 tokens: what the embedder reads of it."""
HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document."""

    id: str
    """The document's, with the section's number where it has several: `returns#3`, `returns#3.1`."""
    header: str
    """Titles from the document's down to the section's."""
    text: str

    @property
    def searched(self) -> str:
        """What a question is compared with."""
        return f"{self.header}\n{self.text}"


def shown(chunks: Sequence[Chunk]) -> str:
    """Chunks as a prompt holds them."""
    return "\n\n".join(f"[{chunk.id}] {chunk.header}\n{chunk.text}" for chunk in chunks)


def knowledge_files(path: Path) -> list[Path]:
    """The files of a knowledge base: the one named, or all Markdown and JSON Lines below a directory."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in {".md", ".jsonl"} and file.is_file())


def knowledge_digest(path: Path) -> str | None:
    """Digest of a knowledge base's files and names; None where there is none."""
    root = path.parent if path.is_file() else path
    files = {file.relative_to(root).as_posix(): sha256_file(file) for file in knowledge_files(path)}
    return sha256_json(files) if files else None


def read_knowledge(path: Path) -> list[Chunk]:
    """Read a knowledge base and cut it into chunks.

    Raises:
        UserError: it is missing or empty, or a line is none of `id`, `title`, `text`, or two chunks share an id; all at
            once.
    """
    chunks: list[Chunk] = []
    problems: list[str] = []
    for file in knowledge_files(path):
        if file.suffix == ".jsonl":
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                document = _document(line)
                if document is None:
                    problems.append(f"{file}:{number}: not an object with `id`, `title` and `text`, each a text")
                else:
                    chunks += cut(document["id"], document["title"], document["text"])
        else:
            name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
            chunks += cut(name, Path(name).name.replace("-", " ").replace("_", " "), file.read_text(encoding="utf-8"))
    seen: set[str] = set()
    for chunk in chunks:
        if chunk.id in seen:
            problems.append(f"{path}: chunk {chunk.id!r} stands twice; ids of documents are unique")
        seen.add(chunk.id)
    if problems:
        raise UserError(problems)
    if not chunks:
        raise UserError(f"{path}: holds no documents; name a directory of .md files, or a .jsonl of id, title, text")
    return chunks


def _document(line: str) -> dict[str, str] | None:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return None
    keys = ("id", "title", "text")
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in keys) or not value["id"]:
        return None
    return {key: value[key] for key in keys}


def cut(document: str, title: str, text: str) -> list[Chunk]:
    """The chunks of one document: its sections in order, numbered as they stand; those without text have none."""
    sections = re.split(r"^(?=#{1,6}[ \t])", text, flags=re.MULTILINE)
    path: dict[int, str] = {}
    chunks = []
    for number, section in enumerate(sections):
        first, _, rest = section.partition("\n")
        if heading := HEADING.fullmatch(first):
            depth = len(heading[1])
            path = {level: name for level, name in path.items() if level < depth} | {depth: heading[2]}
            section = rest
        header = " > ".join(dict.fromkeys([title, *path.values()]))
        for place, piece in enumerate(_pieces(section.strip())):
            name = document if len(sections) == 1 else f"{document}#{number}"
            chunks.append(Chunk(f"{name}.{place}" if place else name, header, piece))
    return chunks


def _pieces(text: str) -> list[str]:
    """A text cut at blank lines, else at line ends, into pieces of about `LONGEST` characters at most."""
    if not text:
        return []
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        parts = [paragraph] if len(paragraph) <= LONGEST else paragraph.splitlines()
        for part in parts:
            joint = "\n\n" if part is paragraph else "\n"
            if pieces and len(pieces[-1]) + len(joint) + len(part) <= LONGEST:
                pieces[-1] += joint + part
            else:
                pieces.append(part)
    return pieces


def gold_of(row: Row) -> list[str]:
    """The ids of the chunks that answer a row, as its `meta.gold` names them: one, a list, or none."""
    gold = (row.meta or {}).get("gold")
    named = [gold] if isinstance(gold, str) else gold if isinstance(gold, list) else []
    return [each for each in named if isinstance(each, str)]

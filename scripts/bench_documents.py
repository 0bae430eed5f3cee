"""Ask bank-answers' questions without their passages, of the whole knowledge base: how often the right one is found.

    python scripts/bench_documents.py --out DIR             # recall@k and nDCG@k by search, on dev and gate rows
    python scripts/bench_documents.py --out DIR --answer    # and the arms without training

Makes a project of its own in DIR: the recipe `bank-open`, which extends bank-answers, its rows (the answerable
questions of bank-answers' train, dev and gate, cut anew by document) and `knowledge.jsonl` (every passage of the bank).
The fitted order is of dev alone.
"""

import argparse
import gzip
import json
import runpy
import shutil
from pathlib import Path

from tunesmith.curate.sources import read_sources
from tunesmith.evaluate.knowledge import read_knowledge
from tunesmith.evaluate.library import Library
from tunesmith.evaluate.retrieve import Search
from tunesmith.files import write_jsonl
from tunesmith.line import Line
from tunesmith.rows import read_rows

ROOT = Path(__file__).parent.parent
RECIPE = """extends: bank-answers
name: bank-open
data: {directory: data/bank-open, schema: data/bank-open/schema.json}
curate:
  duplicates: {near: null} # questions about two products differ by the product's name
  sources:
    - {name: bank, licence: MIT, path: data/bank-open/pool/rows.jsonl}
  split: {stratify: null}
arms:
  few_shot: []
  retrieval: []
  knowledge: {path: data/bank-open/pool/knowledge.jsonl, k: [3], rerank: true}
"""


def make(out: Path) -> None:
    """Write the project."""
    pool = out / "data" / "bank-open" / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    (out / "recipes").mkdir(exist_ok=True)
    for name in ("bank-answers.yaml", "bases.yaml"):
        shutil.copy(ROOT / "recipes" / name, out / "recipes")
    (out / "recipes" / "bank-open.yaml").write_text(RECIPE)
    bank = ROOT / "data" / "bank-answers"
    for place in (out / "data" / "bank-answers", out / "data" / "bank-open"):
        place.mkdir(exist_ok=True)
        shutil.copy(bank / "schema.json", place)

    passages = runpy.run_path(str(ROOT / "scripts" / "curate_bank_answers.py"))["passages"]
    documents = json.loads(gzip.decompress(read_sources(bank)["tau2"].read()))
    chunks = [passage for document in documents for passage in passages(document)]
    write_jsonl(pool / "knowledge.jsonl", ({"id": at.id, "title": at.head, "text": at.text} for at in chunks))

    rows = []
    for row in (row for split in ("train", "dev", "gate") for row in read_rows(bank / f"{split}.jsonl")):
        if row.meta and row.meta["answerable"]:
            *before, question = row.messages
            asked = (question.content or "").partition("\n\nPassages:\n\n")[0]
            rows.append(row.model_copy(update={"messages": [*before, question.model_copy(update={"content": asked})]}))
    write_jsonl(pool / "rows.jsonl", (row.as_dict() for row in rows))


def measure(line: Line) -> None:
    """Print how often the passage that answers is among the nearest."""
    section = line.recipe.arms.knowledge
    assert section is not None
    chunks = read_knowledge(line.loaded.root / section.path)
    dev, gate = line.dataset.rows("dev"), line.dataset.rows("gate")
    print(f"{len(chunks)} passages; {len(dev)} dev rows, {len(gate)} gate rows\n")
    print("| search | split | recall@1 | recall@3 | recall@10 | nDCG@10 |\n|---|---|---|---|---|---|")
    for name, kind, fitted in (("BM25", "bm25", 0), ("fused", "hybrid", 0), ("fused, then fitted on dev", "hybrid", 1)):
        library = Library(chunks, Search(kind))
        if fitted:
            library.fit(dev)
        for split, rows in (("dev", dev), ("gate", gate)):
            library.index.expect([row.source for row in rows], "questions")
            at = {k: library.measured(rows, k) for k in (1, 3, 10)}
            recalls = " | ".join(f"{at[k]['recall']:.3f}" for k in (1, 3, 10))
            print(f"| {name} | {split} | {recalls} | {at[10]['ndcg']:.3f} |")
        if fitted:
            print(f"\n{library.as_dict()['rerank']}")


def main() -> None:
    """Make, measure, and answer if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answer", action="store_true", help="answer the rows too, which takes minutes")
    options = parser.parse_args()
    make(options.out)
    line = Line(str(options.out / "recipes" / "bank-open.yaml"), runs=options.out / "runs", dist=options.out / "dist")
    line.curate()
    measure(line)
    if options.answer:
        with line.held():
            line.baseline()
        for path in sorted(line.run.path("arms").glob("*.json")):
            about = json.loads(path.read_text())
            print(f"{path.stem:<14} {about['means']['exact_match']:.3f}  {about.get('retrieval') or ''}")


if __name__ == "__main__":
    main()

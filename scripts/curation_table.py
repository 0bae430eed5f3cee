"""Print the tables of docs/CURATION.md: splits, tokens and drops of every curated task. After `make data`."""

from pathlib import Path

from tunesmith import bases
from tunesmith.curate.facts import lengths
from tunesmith.line import quiet_libraries
from tunesmith.prompt import Renderer
from tunesmith.recipe import load_recipe
from tunesmith.rows import SPLITS, Dataset

TASKS = ("json-extract", "triage", "tool-call", "bank-answers", "house-style")


def main() -> None:
    """One table of splits, one of tokens, one of what was left out."""
    quiet_libraries()
    manifests = {task: Dataset(load_recipe(task).data_directory).manifest() for task in TASKS}
    print("| task | lines read | rows kept | groups | " + " | ".join(SPLITS) + " |")
    print("|---" * (4 + len(SPLITS)) + "|")
    for task, manifest in manifests.items():
        files = [manifest["files"][f"{split}.jsonl"] for split in SPLITS]
        read = sum(source["lines"] for source in manifest["sources"].values())
        kept, groups = sum(f["rows"] for f in files), sum(f["groups"] for f in files)
        print(f"| `{task}` | {read} | {kept} | {groups} | " + " | ".join(str(f["rows"]) for f in files) + " |")
    print("\n| task | prompt p50 | p95 | max | completion p50 | p95 | max |")
    print("|---" * 7 + "|")
    for task in TASKS:
        loaded = load_recipe(task)
        base = bases.resolve(loaded.recipe.base, loaded.root)
        table = lengths(Path(loaded.data_directory), Renderer(base.tokenizer(), base.end_ids()))["quantiles"]["train"]
        cells = [str(table[part][name]) for part in ("prompt", "completion") for name in ("p50", "p95", "max")]
        print(f"| `{task}` | " + " | ".join(cells) + " |")
    print("\n| task | left out by | because | rows |")
    print("|---" * 4 + "|")
    for task, manifest in manifests.items():
        for step, reasons in manifest["dropped"].items():
            for reason, count in reasons.items():
                print(f"| `{task}` | {step} | {reason} | {count} |")


if __name__ == "__main__":
    main()

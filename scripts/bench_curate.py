"""How fast, in how much memory and how well near-duplicates are found in a million rows, beside peers.

Makes a pile of rows of prompt and completion: 80 % texts of their own, 10 % exact copies, 10 % copies with a few words
changed (their true similarity, by character 5-grams, is at least 0.8). Every way reads the same file in a process of
its own and says which rows repeat an earlier one; recall is over the planted near copies, precision over all it says.

    python scripts/bench_curate.py --rows 1000000                    # ours and rensa
    python scripts/bench_curate.py --rows 200000 --ways ours datatrove datasketch

`ours` is the near-duplicate step of `tunesmith curate`, text to clusters; `curate` is the whole command with all it
writes. The peers run as their own documents show for such texts: rensa's streaming deduplicator with LSH on words,
datasketch's MinHashLSH on words, datatrove's four stages on pairs of words in as many processes as there are cores.
A peer that is not installed is left out and named. They come with `pip install -e '.[bench]'`.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SHARE = 0.1
"""Of exact copies, and of near ones."""
VOCABULARY = 30_000
THRESHOLD = 0.8
CHUNK = 5_000
SPAWN = get_context("spawn")

RECIPE = """name: bench
base: ./no-base
data: {{directory: data/bench, schema: schema.json, max_tokens: 1024}}
curate:
  sources: [{{name: bench, licence: CC0-1.0, path: rows.jsonl}}]
  steps: [normalise, empty, truncated, refusals]
  duplicates: {{near: {threshold}}}
lora: {{r: 8, lora_alpha: 16, target_modules: all-linear}}
trainer: {{learning_rate: 1e-3, num_train_epochs: 1, per_device_train_batch_size: 8}}
arms: {{max_new_tokens: 16}}
gate: {{min_gain: 0.05}}
"""


def make_rows(rows: int, directory: Path) -> None:
    """Write rows.jsonl, and truth.json: which row repeats which family, and how."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(rng.choice(letters, size=rng.integers(2, 10))) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(5, VOCABULARY + 5)
    weights /= weights.sum()
    own = round(rows * (1 - 2 * SHARE))
    texts = [words_of(words, chosen) for chosen in draws(rng, own, weights)]
    python_rng = random.Random(0)
    plan = [(i, "own") for i in range(own)]
    plan += [(python_rng.randrange(own), kind) for kind in ("exact", "near") for _ in range((rows - own) // 2)]
    python_rng.shuffle(plan)
    with (directory / "rows.jsonl").open("w") as stream:
        for family, kind in plan:
            text = changed(texts[family], words, python_rng) if kind == "near" else texts[family]
            stream.write(json.dumps({"prompt": text, "completion": f"answer {family}"}) + "\n")
    (directory / "truth.json").write_text(json.dumps(plan))


def draws(rng: np.random.Generator, texts: int, weights: np.ndarray) -> Iterator[np.ndarray]:
    """Word numbers of each text, 30 to 80 of them, often ones more often."""
    for start in range(0, texts, CHUNK):
        lengths = rng.integers(30, 80, size=min(CHUNK, texts - start))
        chosen = rng.choice(len(weights), size=int(lengths.sum()), p=weights)
        yield from np.split(chosen, np.cumsum(lengths)[:-1])


def words_of(words: list[str], chosen: np.ndarray) -> str:
    """A text of numbered words."""
    return " ".join([words[i] for i in chosen.tolist()])


def changed(text: str, words: list[str], rng: random.Random) -> str:
    """A copy with one to three words changed that is still at least 0.8 alike."""
    original = text.split()
    copy = list(original)
    for _ in range(rng.randint(1, 3)):
        tried = list(copy)
        tried[rng.randrange(len(tried))] = rng.choice(words)
        if alike(text, " ".join(tried)) >= THRESHOLD + 0.02:
            copy = tried
    return " ".join(copy)


def alike(a: str, b: str) -> float:
    """Jaccard similarity of character 5-grams, by plain sets."""
    left, right = ({text[i : i + 5] for i in range(len(text))} for text in (a, b))
    return len(left & right) / len(left | right)


# ---------------------------------------------------------------------- the ways: each gives a label for every row


def read_texts(directory: Path) -> Iterator[str]:
    """The prompts, in file order."""
    with (directory / "rows.jsonl").open("rb") as stream:
        for line in stream:
            yield json.loads(line)["prompt"]


def ours(directory: Path) -> list[int]:
    """The near-duplicate step: keys by chunk in as many processes as cores, a pile on disk, exact similarities."""
    from tunesmith.curate.chunks import cut
    from tunesmith.curate.pile import Pile
    from tunesmith.near import components

    chunks = cut(0, "rows.jsonl", directory / "rows.jsonl", None, spooled=False)
    with tempfile.TemporaryDirectory(dir=directory) as scratch, ProcessPoolExecutor(mp_context=SPAWN) as pool:
        pile = Pile(Path(scratch))
        pile.fill(pool.map(keyed, chunks))
        pairs, _ = pile.near_pairs(np.arange(len(pile)), THRESHOLD)
        return [int(label) for label in components(len(pile), pairs)]


def keyed(chunk: Any) -> Any:
    """What `work` does of the near-duplicate step, and nothing else."""
    from tunesmith.curate.work import Part
    from tunesmith.near import band_keys, marks_of, sign
    from tunesmith.text import shingle_form

    with chunk.path.open("rb") as stream:
        stream.seek(chunk.start)
        lines = stream.read(chunk.end - chunk.start).splitlines()
    forms = [shingle_form(json.loads(line)["prompt"]) for line in lines]
    signatures = sign(forms)
    columns = {"exact": np.zeros(len(forms), dtype=np.int64)}
    part = Part(columns=columns, bands=band_keys(signatures, THRESHOLD), marks=marks_of(signatures))
    part.hold([], forms)
    return part


def curate(directory: Path) -> list[int]:
    """The whole command; the groups that it wrote, and for dropped copies that of the row that stays."""
    (directory / "recipes").mkdir(exist_ok=True)
    (directory / "no-base").mkdir(exist_ok=True)
    (directory / "schema.json").write_text('{"type": "object"}')
    (directory / "recipes" / "bench.yaml").write_text(RECIPE.format(threshold=THRESHOLD))
    command = [sys.executable, "-m", "tunesmith.cli", "curate", "bench", "--recut"]
    subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return []


def rensa(directory: Path) -> list[bool]:
    """Its streaming deduplicator with LSH, on words; bands for the threshold as its documents advise."""
    from rensa import RMinHashDeduplicator

    dedup = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True, num_bands=16)
    new: list[bool] = []
    texts = enumerate(read_texts(directory))
    while batch := [(str(number), text.split()) for number, text in take(texts, CHUNK)]:
        new += dedup.add_pairs(batch)
    return [not fresh for fresh in new]


def datasketch(directory: Path) -> list[bool]:
    """Its LSH index on words, one text after the other."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    repeats = []
    for number, text in enumerate(read_texts(directory)):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([word.encode() for word in text.split()])
        repeats.append(bool(index.query(sketch)))
        index.insert(str(number), sketch)
    return repeats


def datatrove(directory: Path) -> list[bool]:
    """Its four stages with two-word shingles; what its filter removes."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    cores = os.cpu_count() or 1
    config = MinhashConfig(n_grams=2, num_buckets=16, hashes_per_bucket=8)
    work = directory / "datatrove"
    split = work / "input"
    split.mkdir(parents=True, exist_ok=True)
    files = [(split / f"{core}.jsonl").open("w") for core in range(cores)]
    for number, text in enumerate(read_texts(directory)):
        files[number % cores].write(json.dumps({"text": text, "id": str(number)}) + "\n")
    for file in files:
        file.close()
    reader = JsonlReader(str(split))
    stages: list[tuple[list[Any], int]] = [
        ([reader, MinhashDedupSignature(str(work / "signatures"), config=config)], cores),
        ([MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)], config.num_buckets),
        ([MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)], 1),
        ([reader, MinhashDedupFilter(str(work / "remove")), JsonlWriter(str(work / "kept"), compression=None)], cores),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=cores, logging_dir=str(work / f"log{number}")).run()
    kept = {json.loads(line)["id"] for path in (work / "kept").glob("*.jsonl") for line in path.open()}
    return [str(number) not in kept for number in range(sum(1 for _ in read_texts(directory)))]


def take(pairs: Any, count: int) -> list[Any]:
    """The next few of an iterator."""
    return [pair for _, pair in zip(range(count), pairs, strict=False)]


WAYS = {"ours": ours, "curate": curate, "rensa": rensa, "datatrove": datatrove, "datasketch": datasketch}


# ---------------------------------------------------------------------- measuring


def timed(name: str, directory: Path, queue: Any) -> None:
    """Run a way in this process, and send how long it took and what it found."""
    began = time.perf_counter()
    try:
        found = WAYS[name](directory)
    except ImportError as error:
        queue.put((None, str(error)))
        return
    queue.put((time.perf_counter() - began, found))


def measure(name: str, directory: Path) -> dict[str, Any] | None:
    """Seconds and peak resident memory of a way and all its processes, and what it found."""
    queue = SPAWN.Queue()
    process = SPAWN.Process(target=timed, args=(name, directory, queue))
    process.start()
    root, peak = psutil.Process(process.pid), 0
    result = None
    while result is None:
        peak = max(peak, resident(root))
        try:
            result = queue.get(timeout=0.2)
        except Exception:
            if not process.is_alive():
                raise SystemExit(f"{name}: ended without a result") from None
    process.join()
    seconds, found = result
    if seconds is None:
        print(f"{name}: left out, {found}")
        return None
    return {"seconds": seconds, "peak": peak, "found": found}


def resident(root: psutil.Process) -> int:
    """Bytes of memory that a process and its children hold of their own; pages of files do not count."""
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.NoSuchProcess:
        pass
    return total


def judge(found: list[Any], plan: list[list[Any]]) -> tuple[float, float]:
    """Recall over planted near copies, and precision, of rows said to repeat an earlier one."""
    repeats = found if found and isinstance(found[0], bool) else later_of_label(found)
    seen: set[int] = set()
    kinds: dict[int, list[str]] = {}
    right = hits = planted = said = 0
    for (family, kind), repeat in zip(plan, repeats, strict=True):
        truly = family in seen
        # A near copy, or the row that a near copy came before.
        near = truly and (kind == "near" or "near" in kinds[family])
        seen.add(family)
        kinds.setdefault(family, []).append(kind)
        said += repeat
        right += repeat and truly
        planted += near
        hits += near and repeat
    return hits / max(1, planted), right / max(1, said)


def later_of_label(labels: list[int]) -> list[bool]:
    """Which rows have a label that an earlier row has."""
    seen: set[int] = set()
    return [label in seen or bool(seen.add(label)) for label in labels]


def main() -> None:
    """Make the pile, run the ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ours", "rensa", "curate"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        make_rows(options.rows, directory)
        size = (directory / "rows.jsonl").stat().st_size / 2**20
        digest = hashlib.file_digest((directory / "rows.jsonl").open("rb"), "sha256").hexdigest()[:12]
        print(f"{options.rows} rows, {size:.0f} MiB, sha256 {digest}, {os.cpu_count()} cores")
        print(f"{'way':<12}{'seconds':>9}{'rows/s':>10}{'peak MiB':>10}{'recall':>8}{'precision':>11}", flush=True)
        plan = json.loads((directory / "truth.json").read_text())
        for name in options.ways:
            if (result := measure(name, directory)) is None:
                continue
            quality = "{:>8.4f}{:>11.4f}".format(*judge(result["found"], plan)) if result["found"] else ""
            rate = options.rows / result["seconds"]
            peak = result["peak"] / 2**20
            print(f"{name:<12}{result['seconds']:>9.1f}{rate:>10.0f}{peak:>10.0f}{quality}", flush=True)


if __name__ == "__main__":
    main()

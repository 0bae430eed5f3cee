"""Where the work on chunks is done: in this process, in several of this machine, or on a Ray cluster.

All three give the same parts in the same order: the work is a pure function, and only its place differs. At most a few
chunks a worker are under way at once, so memory does not grow with the pile.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

from tunesmith.curate.chunks import Chunk
from tunesmith.curate.work import Job, Part, work
from tunesmith.errors import UserError

Engine = Literal["local", "ray"]
UNDER_WAY = 2
"""Chunks a worker that are handed out before the first is taken back."""


def parts(chunks: Iterable[Chunk], job: Job, *, engine: Engine = "local", workers: int | None = None) -> Iterator[Part]:
    """What becomes of each chunk, in the order of the chunks.

    `workers` is the number of processes; none means one a core.
    """
    if engine == "ray":
        return _ray(chunks, job, workers)
    rest = iter(chunks)
    first = list(islice(rest, 2))
    wanted = workers or os.cpu_count() or 1
    if wanted == 1 or len(first) < 2:
        return (work(chunk, job) for chunk in chain(first, rest))
    return _processes(chain(first, rest), job, wanted)


def _processes(chunks: Iterable[Chunk], job: Job, workers: int) -> Iterator[Part]:
    # Not forked: a process with threads (torch's, tokenizers') cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        under_way: deque[Future[Part]] = deque()
        try:
            for chunk in chunks:
                under_way.append(pool.submit(work, chunk, job))
                if len(under_way) > workers * UNDER_WAY:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _ray(chunks: Iterable[Chunk], job: Job, workers: int | None) -> Iterator[Part]:
    """On the Ray cluster that `RAY_ADDRESS` names, else on this machine; every node must see the files."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray: Ray is not installed; `pip install 'tunesmith[ray]'` brings it") from None
    if not ray.is_initialized():
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers, log_to_driver=False)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"chunk": chunk} for chunk in chunks])
    for done in rows.map(partial(_done, job=job)).iter_rows():
        yield done["part"]


def _done(row: dict[str, Any], job: Job) -> dict[str, Any]:
    return {"part": work(row["chunk"], job)}

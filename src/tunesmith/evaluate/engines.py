"""What answers rendered prompts: an arm is an engine behind the one prompt function.

Whatever can take token ids and give text can be judged beside the others: weights under transformers here, an exported
form behind an OpenAI-compatible server. An engine says what it is; what cannot be proven of it is not kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import httpx2
import torch
from transformers import PreTrainedModel

from tunesmith import __version__
from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate.generate import Answer, Keep, MakeConstraint, Settings, generate
from tunesmith.files import sha256_file, sha256_json
from tunesmith.progress import bar
from tunesmith.prompt import Renderer

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "llguidance", "numpy")
CODE = ("generate.py", "attention.py", "constrain.py", "engines.py")
"""The files here that decide what is answered."""

PLACES = ("_name_or_path", "base_model_name_or_path")
"""What a config says of the directory that it was read from."""


class Engine(Protocol):
    """Answers prompts."""

    @property
    def weights(self) -> dict[str, str]:
        """Names, by digest, what answers; an arm's file holds it."""

    @property
    def computed_on(self) -> dict[str, str]:
        """Device and dtype, or where it is asked."""

    def identity(self) -> dict[str, Any] | None:
        """All that decides an answer beside prompt and settings; None where that cannot be known."""

    def answer(
        self,
        prompts: Sequence[list[int]],
        settings: Settings,
        *,
        prefix: int,
        label: str,
        constraint: MakeConstraint | None = None,
        begun: Sequence[list[int]] | None = None,
        only: list[list[int]] | None = None,
        keep: Keep | None = None,
    ) -> dict[int, Answer]:
        """Answer every prompt, or the batches `only`, by index; the arguments are those of `generate`."""


@dataclass
class TransformersEngine:
    """A model in this process."""

    model: PreTrainedModel
    renderer: Renderer
    weights: dict[str, str]
    computed_on: dict[str, str]

    def identity(self) -> dict[str, Any]:
        """The weights as they lie in memory, the code, the libraries, the device and the dtype."""
        return {
            "engine": "transformers",
            "model": self.fingerprint,
            "computed_on": self.computed_on,
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "threads": torch.get_num_threads(),
            **code(),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Digest of every tensor and of what scales or shapes them: two files of one name never share it."""
        return fingerprint(self.model)

    def answer(self, prompts: Sequence[list[int]], settings: Settings, **options: Any) -> dict[int, Answer]:
        """Answer by our own greedy decoding."""
        return generate(self.model, self.renderer, prompts, settings, **options)


def fingerprint(model: PreTrainedModel) -> str:
    """Digest of a model as it would answer: all its tensors, buffers and 4-bit states, its configs, its mode.

    Taken from memory, not from files: whoever trains in place, changes lora_alpha or switches an adapter off has
    another model, under whatever name. About a second for 500 MB.
    """
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = torch.as_tensor(value).detach().contiguous().cpu()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Without numpy's word for bfloat16, a tensor is its bytes; one without a dimension has no last one to view.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    scales = {
        name: [getattr(module, "scaling", None), module.active_adapters, module.disable_adapters, module.merged]
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and hasattr(module, "lora_A")
    }
    config = model.config.to_dict()
    total.update(sha256_json([_plain(config), _plain(adapters), _plain(scales)]).encode())
    return total.hexdigest()


def _plain(value: Any) -> Any:
    """A value as JSON: sets in order, other things by how they are written; without where a model was read from."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items() if key not in PLACES}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@cache
def code() -> dict[str, Any]:
    """The code that answers: our files by digest, libraries by version."""
    here = Path(__file__).parent
    return {
        "code": {name: sha256_file(here / name) for name in CODE},
        "versions": {"tunesmith": __version__} | {name: version(name) for name in LIBRARIES},
    }


@dataclass
class ServerEngine:
    """A model behind an OpenAI-compatible server that takes token ids: vLLM, llama.cpp's server.

    Prompts go to `/completions` as the ids that the one prompt function rendered, so no other template comes between.
    The server knows its own end-of-turn tokens. What it holds cannot be proven from here: nothing of it is kept.
    """

    url: str
    """Up to `/v1`."""
    model: str
    renderer: Renderer
    timeout_s: float = 600.0

    @property
    def weights(self) -> dict[str, str]:
        """What the server calls what it holds."""
        return {"server": f"{self.model} at {self.url}"}

    @property
    def computed_on(self) -> dict[str, str]:
        """Where it answers; the rest is not known."""
        return {"server": self.url}

    def identity(self) -> None:
        """Not known."""

    def answer(
        self,
        prompts: Sequence[list[int]],
        settings: Settings,
        *,
        prefix: int,
        label: str,
        constraint: MakeConstraint | None = None,
        begun: Sequence[list[int]] | None = None,
        only: list[list[int]] | None = None,
        keep: Keep | None = None,
    ) -> dict[int, Answer]:
        """Answer one prompt after the other, so that each latency is a row's own; ids are those of the text.

        Raises:
            EnvironmentFault: the server cannot be reached, refuses, or answers otherwise than such a server does.
        """
        if constraint or begun:
            raise ValueError("a server decodes freely, and from the beginning")
        answers: dict[int, Answer] = {}
        chosen = [index for batch in only for index in batch] if only is not None else list(range(len(prompts)))
        # The user named this address: no proxy of the environment stands between.
        with httpx2.Client(timeout=self.timeout_s, trust_env=False) as client, bar(label, len(chosen)) as progress:
            for index in chosen:
                began = perf_counter()
                choice = self._ask(client, prompts[index], settings)
                seconds = round(perf_counter() - began, 3)
                text, ended = choice["text"], choice["finish_reason"] == "stop"
                ids = self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += settings.end_ids[:1] if ended else []
                answers[index] = Answer(ids, text, ended, len(prompts[index]), seconds)
                progress.advance()
        return answers

    def _ask(self, client: httpx2.Client, prompt: list[int], settings: Settings) -> dict[str, Any]:
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": settings.max_new_tokens,
            "temperature": 0,
            "stream": False,
        }
        try:
            response = client.post(f"{self.url.rstrip('/')}/completions", json=asked)
            response.raise_for_status()
            choice: dict[str, Any] = response.json()["choices"][0]
            if not isinstance(choice["text"], str) or "finish_reason" not in choice:
                raise ValueError("an answer has no text, or does not say why it ended")
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            told = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no details'}"
            raise EnvironmentFault(
                f"{self.url}: no answer to a prompt of token ids ({told})",
                hint="start an OpenAI-compatible server whose /v1/completions takes token ids, such as vLLM's or "
                "llama.cpp's, under that model's name",
            ) from None
        return choice

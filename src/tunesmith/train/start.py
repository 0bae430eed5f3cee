"""Where an adapter starts: first weights that need more than peft's constructor, and which of them are not published.

`tunesmith.methods.INITS` is the table. Some methods begin with weights that are not zero and take them out of the base:
training begins where the base is, on another base. What is published must fit the base as it is, so the first weights
are remembered here and taken away again at saving (`adapters.save`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import Embedding, LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch.utils.data import DataLoader

from tunesmith.adapters import leading, refuse_asleep
from tunesmith.bases import Base
from tunesmith.errors import UserError
from tunesmith.methods import Init, init_name, init_of
from tunesmith.prompt import IGNORE, Rendered
from tunesmith.recipe import Recipe
from tunesmith.train.shards import whole

PREFIX = "base_model.model."
EVA_ROWS = 1024
"""Most rows that EVA reads: its directions settle long before."""


class Start:
    """The weights of A and B that an adapter begins with, kept on the CPU."""

    def __init__(self, model: PeftModel, init: Init) -> None:
        self.init = init
        self.weights = {
            name: parameter.detach().cpu().clone()
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    @property
    def taken_out(self) -> Mapping[str, torch.Tensor] | None:
        """What has to be taken away again for the adapter to fit the base as it is, if anything."""
        return self.weights if self.init.differs else None

    def digest(self) -> str:
        """The sha256 of the first weights: a run that goes on must have begun with the same."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def refuse_unmoved(self, model: PeftModel) -> None:
        """Stop where modules are what they were at the start.

        Raises:
            Diverged: names some of the modules.
        """
        now = leading(model)
        refuse_asleep(model, {name for name in now if torch.equal(whole(now[name].detach()).cpu(), self.weights[name])})


def look_before(model: Any, lora: Mapping[str, Any], rows: Sequence[Rendered]) -> None:
    """Check what a recipe says of tokens against the base and the rows, before peft takes it.

    Raises:
        UserError: a token that the base or no training row has, or the head that is tied to the embeddings.
    """
    tokens = lora.get("trainable_token_indices")
    if tokens is None:
        return
    where = "lora.trainable_token_indices"
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    named = tokens.values() if isinstance(tokens, dict) else [tokens]
    wanted = {token for indices in named for token in indices}
    problems = []
    if isinstance(tokens, dict) and head is not None and embeddings.weight is head.weight:
        heads = [name for name in tokens if _named(model, name) and head in _named(model, name)]
        problems += [f"{where}: {name} is tied to the embeddings; name the embeddings alone" for name in heads]
    if beyond := sorted(token for token in wanted if token >= len(embeddings.weight)):
        problems.append(f"{where}: {beyond} are no tokens of this base, which has {len(embeddings.weight)}")
    seen = set().union(*(row.input_ids for row in rows))
    if unseen := sorted(wanted - seen - set(beyond)):
        problems.append(f"{where}: {unseen} occur in no training row; they would learn nothing but to be unlikely")
    if problems:
        raise UserError(problems)


def begin(model: PeftModel, recipe: Recipe, rows: Sequence[Rendered], base: Base) -> Start:
    """Give a fresh adapter the first weights that its method asks for, and remember them.

    Raises:
        UserError: a name in the recipe means no module, or the rows are too few for the method.
    """
    refuse_idle_names(model, recipe.lora)
    name = init_name(recipe.lora)
    if name == "eva":
        _start_eva(model, rows, recipe.seed)
    widen(model)
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer) and not module.tied_adapter:
            # trl has rounded them to bfloat16 on a quantised base: a token must begin as the base has it.
            delta = module.trainable_tokens_delta["default"]
            delta.data = module.trainable_tokens_original["default"].to(delta)
    if name == "loftq":
        _start_loftq(model, base)
    return Start(model, init_of(recipe.lora))


def widen(model: PeftModel) -> None:
    """Make everything that is trained float32.

    trl casts the adapters of a quantised base to bfloat16. In it AdamW's late, small updates round to nothing.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def refuse_idle_names(model: PeftModel, lora: Mapping[str, Any]) -> None:
    """Refuse names of modules that name none: peft passes over them in silence.

    Raises:
        UserError: names each; or an adapter lies on the embeddings.
    """
    adapted = dict(_adapted(model))
    problems = []
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = lora.get(key) or {}
        met = {get_pattern_key(patterns, name) for name in adapted}
        problems += [f"lora.{key}: {pattern!r} names no adapted module" for pattern in patterns if pattern not in met]
    targets = lora.get("target_modules")
    if isinstance(targets, list):
        problems += [
            f"lora.target_modules: {target!r} names no adapted module"
            for target in targets
            if not any(name == target or name.endswith(f".{target}") for name in adapted)
        ]
    if any(isinstance(module, Embedding) for module in adapted.values()):
        problems.append("lora.target_modules: an adapter on the embeddings; use `trainable_token_indices`")
    if problems:
        raise UserError(problems, hint="a module is named by the end of its path, such as `q_proj`")


def _adapted(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(PREFIX), module


def _named(model: Any, end: str) -> list[Any]:
    return [module for name, module in model.named_modules() if name == end or name.endswith(f".{end}")]


# ---------------------------------------------------------------------- what needs more than peft's constructor


def _start_eva(model: PeftModel, rows: Sequence[Rendered], seed: int) -> None:
    """A begins with the directions in which the rows move each module's input, ranks where they explain most.

    Raises:
        UserError: the rows hold too few tokens, or the modules too few features.
    """
    config = model.peft_config["default"]
    assert config.eva_config is not None
    for name, module in _adapted(model):
        # peft's own SVD looks for twice as many directions as it keeps.
        wanted = 2 * round(module.r["default"] * config.eva_config.rho)
        if wanted > module.in_features:
            raise UserError(
                f"lora: EVA would need {wanted} features (2 · r · rho) and {name} has {module.in_features}; "
                "lower `r` or `eva_config.rho`"
            )
    rank = max(module.r["default"] for _, module in _adapted(model))
    needed = 2 * round(rank * config.eva_config.rho)
    masked = config.eva_config.use_label_mask
    batches: list[list[Rendered]] = [[]]
    held = 0
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    for place in order[:EVA_ROWS]:
        if held >= needed:
            batches.append([])
            held = 0
        batches[-1].append(rows[place])
        held += len(rows[place].completion_ids if masked else rows[place].input_ids)
    # A batch of fewer tokens would be passed over, and peft would wait for it for ever.
    if held < needed:
        rest = batches.pop()
        if not batches:
            raise UserError(
                f"lora: EVA needs {needed} tokens (2 · r · rho) and the rows hold {held}",
                hint="lower `r` or `eva_config.rho`, or set `eva_config: {use_label_mask: false}` to count prompts too",
            )
        batches[-1] += rest
    initialize_lora_eva_weights(
        model,
        DataLoader(batches, batch_size=None, collate_fn=_padded, generator=torch.Generator()),  # type: ignore[arg-type]
        forward_fn=lambda model, batch: model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]),
        show_progress_bar=False,
    )


def _padded(rows: Sequence[Rendered]) -> dict[str, torch.Tensor]:
    longest = max(len(row.input_ids) for row in rows)

    def right(lists: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([one + [fill] * (longest - len(one)) for one in lists])

    return {
        "input_ids": right([row.input_ids for row in rows], 0),
        "attention_mask": right([[1] * len(row.input_ids) for row in rows], 0),
        "labels": right([row.labels for row in rows], IGNORE),
    }


@torch.no_grad()
def _start_loftq(model: PeftModel, base: Base) -> None:
    """B A begins as the best approximation of what 4 bits lose of each weight (LoftQ, arXiv:2310.08659, one step).

    peft's own computes on CUDA only and leaves out the scaling of B A, so that it repairs too little or too much.
    """
    for module, weight in _with_stored(model, base):
        rank, scaling = module.r["default"], module.scaling["default"]
        lost = weight - dequantize_module_weight(module.get_base_layer()).to(weight)
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        root = (values[:rank] / scaling).sqrt()
        for matrix, first in ((module.lora_A, root[:, None] * right[:rank]), (module.lora_B, left[:, :rank] * root)):
            held = matrix["default"].weight
            # A rank above the width has nothing to approximate: the rest is zero.
            held.zero_()
            held[: first.shape[0], : first.shape[1]] = first.to(held)


def _with_stored(model: PeftModel, base: Base) -> Iterator[tuple[LoraLayer, torch.Tensor]]:
    """Each adapted module with the base's own weight of it, in float32 on the module's device.

    Raises:
        UserError: the base's files name their weights otherwise than the model does.
    """
    files: dict[str, Path] = {}
    for path in sorted(base.directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), path)
    for name, module in _adapted(model):
        key = f"{name}.weight"
        if key not in files:
            raise UserError(
                f"{base.directory}: holds no {key}; this method needs files that name weights as the model does"
            )
        with safe_open(files[key], framework="pt") as opened:
            weight = opened.get_tensor(key)
        yield module, weight.to(device=module.lora_A["default"].weight.device, dtype=torch.float32)

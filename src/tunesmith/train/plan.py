"""How much memory a training takes, by formula, before any weight is loaded; and what to set where it does not fit.

The sizes come from the base's config alone: its layers are laid out without storage and peft puts the adapter on them,
so what is counted is what will be trained. The formula is checked against a measured step by `probe`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from tunesmith import hardware
from tunesmith.bases import Base
from tunesmith.errors import EnvironmentFault
from tunesmith.hardware import GIB, Hardware, Profile
from tunesmith.methods import put_on
from tunesmith.prompt import Rendered
from tunesmith.recipe import Recipe
from tunesmith.team import here
from tunesmith.train.loss import MAX_LOGITS
from tunesmith.train.opening import choose_profile
from tunesmith.train.sampler import FamilySampler
from tunesmith.train.tree import Limits, limits_for
from tunesmith.train.work import Pass, Work, work_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4 = 0.516
"""Bytes of a weight in 4 bits with doubly quantised scales: half a byte, 1/64 for its block, 4/16384 for theirs."""
LIBRARIES = {"cpu": 0.6, "cuda": 0.6}
"""GiB before anything is loaded: on a CPU the process with its libraries, on a GPU the CUDA context, which the
driver holds beside what torch allocates."""
USABLE = 0.95
"""The part of a machine's memory that a plan may fill."""


@dataclass(frozen=True)
class Anatomy:
    """The sizes of a model with its adapter."""

    linear: int
    """Weights that quantisation would put into 4 bits."""
    other: int
    """Weights of the base that stay as they are: embeddings, head, norms."""
    trained: int
    layers: int
    hidden: int
    intermediate: int
    """Width inside the feed-forward part, over all experts that a token meets."""
    queries: int
    """Numbers of one token's queries in one layer: the width of all heads."""
    cached: int
    """Numbers of one token's keys and values in one layer."""
    ranks: int
    """Numbers of one token between A and B, over all adapted modules."""
    adapted: int
    """Numbers that all adapted modules read of one token."""
    vocabulary: int


def anatomy(base: Base, recipe: Recipe) -> Anatomy:
    """The sizes of a base with the recipe's adapter, without loading a weight.

    Raises:
        UserError: peft refuses the recipe's `lora:` for this base.
    """
    model = base.hollow()
    head = model.get_output_embeddings()
    every = sum(p.numel() for p in model.parameters())
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    text = model.config.get_text_config()
    adapted = put_on(model, recipe.lora)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # peft's own word for the matrix that reads.
    readers = [m for name, m in adapted.named_modules() if name.endswith(".lora_A.default")]
    experts = getattr(text, "num_experts_per_tok", None) or 1
    within = getattr(text, "moe_intermediate_size", None) if experts > 1 else None
    return Anatomy(
        linear=linear,
        other=every - linear,
        trained=trained,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=experts * (within or getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        queries=text.num_attention_heads
        * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
        cached=base.cached_numbers_per_token() // text.num_hidden_layers,
        ranks=sum(reader.out_features for reader in readers),
        adapted=sum(reader.in_features for reader in readers),
        vocabulary=text.vocab_size,
    )


def estimate(sizes: Anatomy, recipe: Recipe, profile: Profile, longest: Pass) -> dict[str, float]:
    """GiB of each part at the peak of the longest pass, the end of its forward part.

    In a layer each token keeps what its gradient needs. In the dtype of computation: what the projections of attention
    and of the feed-forward part read, queries, attention's output, and four widths of the feed-forward part; what both
    norms read, in float32; and what stands between A and B. At the first level attention reads keys and values as they
    are. Below it works with a mask, and then keeps both once for each head, for each node with the path above it, and
    the mask as numbers. With dropout each adapted module keeps, instead of what it read, what was let through and which
    that was, a byte each on a GPU. Under gradient checkpointing a layer keeps only what it read, and one layer at a
    time is computed again.

    It is what tensors take: between them a CPU's allocator leaves holes (`quiet_libraries`), which no formula tells.
    """
    wide = BYTES[profile.dtype]
    nf4 = recipe.quantization == "nf4"
    in_layer: float = wide * (2 * sizes.queries + 3 * sizes.intermediate) + 8 * sizes.hidden
    in_layer += wide * sizes.ranks / sizes.layers
    if recipe.lora.get("lora_dropout"):
        in_layer += (wide + (1 if profile.device == "cuda" else wide)) * sizes.adapted / sizes.layers
    else:
        in_layer += wide * (2 * sizes.hidden + sizes.intermediate)
    keys_and_values = (longest.computed - longest.below) * sizes.cached + longest.attended * 2 * sizes.queries
    of_layer = longest.computed * in_layer + wide * (keys_and_values + longest.masked)
    activations = sizes.layers * of_layer
    if profile.gradient_checkpointing:
        activations = sizes.layers * longest.computed * wide * sizes.hidden + of_layer
    # Logits in float32, and the exponentials of their sum.
    at_once = min(longest.loss_tokens * sizes.vocabulary, MAX_LOGITS)
    parts = {
        "base": sizes.linear * (NF4 if nf4 else wide) + sizes.other * wide,
        "adapter": sizes.trained * 4,
        "gradients": sizes.trained * 4,
        "optimizer": sizes.trained * optimizer_bytes(recipe),
        "activations": activations,
        "logits": at_once * 8,
    }
    return {name: size / GIB for name, size in parts.items()} | {"libraries": LIBRARIES[profile.device]}


def optimizer_bytes(recipe: Recipe) -> int:
    """What the optimizer keeps for each trained weight: AdamW two float32 moments, some others less."""
    name = str(recipe.trainer.get("optim", "adamw_torch"))
    if "8bit" in name:
        return 2
    return 4 if "lion" in name or "rmsprop" in name else 0 if name in {"sgd", "adafactor"} else 8


@dataclass(frozen=True)
class Plan:
    """What a training takes on a machine."""

    machine: Hardware
    profile: Profile
    work: Work
    steps: int
    """Optimizer steps of an epoch."""
    parts: dict[str, float]
    """GiB."""

    @property
    def total(self) -> float:
        """GiB in all."""
        return sum(self.parts.values())

    @property
    def before_the_optimizer(self) -> float:
        """GiB at the peak of a step before the optimizer has taken its first: what a probe can measure.

        On a GPU without its context, which torch does not count.
        """
        uncounted = self.parts["libraries"] if self.profile.device == "cuda" else 0.0
        return self.total - self.parts["optimizer"] - uncounted

    @property
    def fits(self) -> bool:
        """Whether the machine has that much."""
        return self.total <= USABLE * self.machine.memory_gib

    def for_profile(self, recipe: Recipe, sizes: Anatomy, profile: Profile, work: Work) -> "Plan":
        """The plan of a trainer that was opened: on the very model some of the profile may not hold."""
        return replace(self, profile=profile, work=work, parts=estimate(sizes, recipe, profile, work.longest))

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        return {
            "schema": 1,
            "machine": asdict(self.machine),
            "profile": asdict(self.profile),
            "epoch": {"tokens": self.work.rows, "computed": self.work.computed, "steps": self.steps},
            "longest_pass": {**asdict(self.work.longest), "rows": len(self.work.longest.rows)},
            "gib": {name: round(size, 4) for name, size in self.parts.items()} | {"total": round(self.total, 4)},
            "fits": self.fits,
        }


def plan(recipe: Recipe, rows: Sequence[Rendered], base: Base, sizes: Anatomy | None = None) -> Plan:
    """What training some rows takes on this machine; without rows, at worst: as long as the recipe allows."""
    if not rows:
        rows = longest_allowed(recipe)
        recipe = with_settings(recipe, {"hardware.share_prefixes": False})
    profile = choose_profile(recipe, rows, base, sharing=recipe.hardware.share_prefixes)
    batch = profile.rows_per_pass * profile.accumulation * here().size
    # The order in which the trainer takes the rows.
    batches = FamilySampler(rows, batch, recipe.seed, Limits() if recipe.hardware.share_prefixes else None).batches()
    size = profile.rows_per_pass
    passes = [members[at : at + size] for members in batches for at in range(0, len(members), size)]
    work = work_of(rows, passes, _limits(base, profile))
    parts = estimate(sizes or anatomy(base, recipe), recipe, profile, work.longest)
    return Plan(hardware.look(), profile, work, len(batches), parts)


def _limits(base: Base, profile: Profile) -> Limits | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base.directory, local_files_only=True)
    return limits_for(config.get_text_config(), profile.device) if profile.share_prefixes else None


def longest_allowed(recipe: Recipe) -> list[Rendered]:
    """A batch of rows as long as `data.max_tokens`, a quarter of each its completion."""
    batch = recipe.trainer["per_device_train_batch_size"] * recipe.trainer.get("gradient_accumulation_steps", 1)
    answer = recipe.data.max_tokens // 4
    return [Rendered([0] * (recipe.data.max_tokens - answer), [0] * answer, ends=True)] * batch


def show(found: Plan, console: Console) -> None:
    """Print the parts as a table, and what was chosen with its reason."""
    machine, longest = found.machine, found.work.longest
    console.print(f"{machine.device} ({machine.name}), {machine.memory_gib:.1f} GiB, {machine.cores} cores")
    for choice, reason in found.profile.reasons.items():
        console.print(f"  {choice} = {getattr(found.profile, choice)}: {reason}", soft_wrap=True)
    console.print(
        f"  an epoch: {found.steps} steps, {found.work.rows} tokens, {found.work.computed} to compute; the longest "
        f"pass: {len(longest.rows)} rows, {longest.computed} tokens, {longest.loss_tokens} with loss",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("memory")
    table.add_column("GiB", justify="right")
    for name, size in found.parts.items():
        table.add_row(name, f"{size:.3f}")
    table.add_section()
    table.add_row("at the peak", f"{found.total:.3f}")
    console.print(table)
    share = found.total / machine.memory_gib
    console.print(f"{'fits' if found.fits else 'does not fit'}: {share:.0%} of this machine's memory, by the formula")


# ---------------------------------------------------------------------- where it does not fit


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A recipe with other values, by dotted path."""
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        if not key:
            recipe = recipe.model_copy(update={section: value})
        elif section == "trainer":
            recipe = recipe.model_copy(update={"trainer": {**recipe.trainer, key: value}})
        else:
            changed = getattr(recipe, section).model_copy(update={key: value})
            recipe = recipe.model_copy(update={section: changed})
    return recipe


def less(recipe: Recipe, now: Plan) -> Iterator[dict[str, Any]]:
    """Settings that take less memory, from those that cost least to those that cost most; then all together."""
    fewer = [{"hardware.batch_tokens": tokens} for tokens in _halves(now)]
    checkpointing = {} if now.profile.gradient_checkpointing else {"trainer.gradient_checkpointing": True}
    nf4 = {} if recipe.quantization == "nf4" else {"quantization": "nf4"}
    yield from fewer
    fewest = fewer[-1] if fewer else {}
    for added in (checkpointing, nf4):
        if added:
            yield added
    for together in (fewest | checkpointing, fewest | nf4, checkpointing | nf4, fewest | checkpointing | nf4):
        if len(together) > 1:
            yield together


def _halves(now: Plan) -> Iterator[int]:
    tokens, rows = now.work.longest.apart, len(now.work.longest.rows)
    while rows > 1:
        rows //= 2
        tokens = -(-tokens // 2)
        yield tokens


def what_would_fit(
    recipe: Recipe, rows: Sequence[Rendered], base: Base, now: Plan, limit: float | None = None
) -> dict[str, Any] | None:
    """The first settings whose plan needs at most `limit` GiB (else what the machine has); none if no settings do."""
    wanted = USABLE * now.machine.memory_gib if limit is None else limit
    sizes = anatomy(base, recipe)
    for settings in less(recipe, now):
        if plan(with_settings(recipe, settings), rows, base, sizes).total <= wanted:
            return settings
    return None


def advice(settings: dict[str, Any] | None) -> str:
    """What to do about memory, in the words of the command line."""
    if settings is None:
        return "no setting of this recipe would fit here: take a smaller base, or a machine with more memory"
    told = " ".join(f"--set {key}={str(value).lower()}" for key, value in settings.items())
    return f"by the formula this would fit: {told}"


def refuse(recipe: Recipe, rows: Sequence[Rendered], base: Base, now: Plan) -> None:
    """Refuse what cannot fit, before any weight is loaded.

    A GPU says by itself when it is full, and the probe asks it: there only weights that are too many are refused by
    formula. Of a CPU's process the system would kill us without a word, so there the formula decides.

    Raises:
        EnvironmentFault: names the first setting that would fit.
    """
    at_least = now.total if now.profile.device == "cpu" else now.total - now.parts["activations"] - now.parts["logits"]
    if at_least > USABLE * now.machine.memory_gib:
        raise too_much(now, what_would_fit(recipe, rows, base, now))


def too_much(now: Plan, settings: dict[str, Any] | None) -> EnvironmentFault:
    """The error that says so."""
    largest = max(now.parts, key=lambda name: now.parts[name])
    return EnvironmentFault(
        f"memory: training would take {now.total:.1f} GiB, {largest} alone {now.parts[largest]:.1f}; "
        f"{now.machine.name} has {now.machine.memory_gib:.1f}; nothing was trained",
        hint=advice(settings),
    )

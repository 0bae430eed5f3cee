"""A shipped run becomes a bundle: adapter, merged model, card and the hash of every file.

Nothing is exported without a SHIP, and nothing is published before the merged model, reloaded from the bundle's own
files in a fresh process, has repeated the answers that were judged.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from tunesmith import adapters
from tunesmith.bases import Base
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.files import publish, read_json, refuse_links, sha256_json, sha256_tree, write_atomic, write_json
from tunesmith.recipe import LoadedRecipe
from tunesmith.rows import Dataset
from tunesmith.runs import Run
from tunesmith.templates import fill


def bundle(loaded: LoadedRecipe, run: Run, dataset: Dataset, base: Base, dist: Path, *, dtype: str) -> Path:
    """Write `dist/<name>-<version>/` and return it.

    Raises:
        UserError: the run has no SHIP, adapter or merged model lack the bytes that were judged, the version is another
            candidate's, or a link lies where the bundle goes.
        EnvironmentFault: the reloaded model does not repeat its answers.
    """
    verdict = read_json(run.path("verdict.json"))
    if verdict["verdict"] != "SHIP":
        raise UserError(f"{run.path('verdict.json')}: the verdict is {verdict['verdict']}; only a SHIP is exported")
    recipe = loaded.recipe
    target = dist / f"{recipe.name}-{recipe.export.version}"
    # One place for the unfinished bundle: what a killed export left there is cleared away by the next.
    out = dist / f".{target.name}.unfinished"
    refuse_links(target)
    refuse_links(out)
    if (target / "verdict.json").is_file():
        there = read_json(target / "verdict.json")["digests"]
        if any(there[part] != verdict["digests"][part] for part in ("adapter", "merged")):
            raise UserError(
                f"{target}: holds the bundle of another candidate (adapter {there['adapter'][:12]})",
                hint="a version names one candidate: raise export.version, or delete the bundle",
            )
    dist.mkdir(parents=True, exist_ok=True)
    with FileLock(dist / f".{target.name}.lock"):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(run.path("adapter"), out / "adapter")
        shutil.copytree(run.path("merged"), out / "merged", copy_function=_link_or_copy)
        for name in ("verdict.json", "recipe.lock.yaml"):
            shutil.copyfile(run.path(name), out / name)
        adapters.verify(out / "adapter", base=base, prompt_digest=verdict["digests"]["prompt"])
        if adapters.digest(out / "adapter") != verdict["digests"]["adapter"]:
            raise UserError(f"{run.path('adapter')}: not the adapter that was judged; run `tunesmith evaluate` again")
        _same_bytes(out / "merged", verdict["digests"]["merged"])
        systems = dataset.manifest()["systems"]
        told = {"recipe": recipe, "verdict": verdict, "base": base, "systems": systems, "licence": licence_of(base)}
        write_atomic(out / "README.md", fill("tunesmith.export", "card.md.jinja", told))
        parity = _replay_in_fresh_process(out / "merged", dataset, run.path("arms/merged"), dtype)
        write_json(out / "parity.json", parity)
        write_json(
            out / "manifest.json", {"name": recipe.name, "version": recipe.export.version, "files": sha256_tree(out)}
        )
        publish(out, target)
    return target


def verify_bundle(directory: Path) -> dict[str, str]:
    """Hold a bundle against its manifest: every file, no other, no link; returns name, version and digests.

    Raises:
        UserError: names each file that was changed, added or taken away, or it is no bundle.
    """
    refuse_links(directory)
    try:
        manifest = read_json(directory / "manifest.json")
        digests = read_json(directory / "verdict.json")["digests"]
        told, files = {"name": manifest["name"], "version": manifest["version"], **digests}, manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{directory}: no bundle, or its manifest.json or verdict.json is cut off") from None
    now = {name: digest for name, digest in sha256_tree(directory).items() if name != "manifest.json"}
    changed = [
        f"{directory / name}: changed since it was exported"
        for name in sorted(now.keys() & files.keys())
        if now[name] != files[name]
    ]
    changed += [f"{directory / name}: not in the manifest" for name in sorted(now.keys() - files.keys())]
    changed += [f"{directory / name}: missing" for name in sorted(files.keys() - now.keys())]
    merged = {name.removeprefix("merged/"): digest for name, digest in now.items() if name.startswith("merged/")}
    merged.pop("manifest.json", None)
    judged = {"adapter": now.get("adapter/adapter_model.safetensors"), "merged": sha256_json(merged)}
    changed += [
        f"{directory / part}: not the one that verdict.json judged"
        for part, digest in judged.items()
        if digest != digests.get(part)
    ]
    if changed:
        raise UserError(changed, hint="do not serve it; take it again from whoever exported it")
    return told


def licence_of(base: Base) -> str:
    """The base's licence as an SPDX-like id in lower case; `other` where the base does not state one."""
    return str(base.lineage.get("licence", "other")).lower()


def _same_bytes(merged: Path, judged: str) -> None:
    manifest = read_json(merged / "manifest.json")
    now = {name: digest for name, digest in sha256_tree(merged).items() if name != "manifest.json"}
    if now != manifest["files"] or manifest["digest"] != judged:
        raise UserError(
            f"{merged}: not the bytes that were judged; run `tunesmith evaluate` and `tunesmith gate` again"
        )


def _replay_in_fresh_process(model: Path, dataset: Dataset, arm: Path, dtype: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "replay.json"
        command = [sys.executable, "-m", "tunesmith.evaluate.replay", "--model", str(model), "--arm", str(arm)]
        command += ["--dataset", str(dataset.directory), "--dtype", dtype, "--out", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EnvironmentFault(f"{model}: could not be reloaded in a fresh process:\n{done.stderr[-2000:]}")
        parity: dict[str, object] = read_json(result)
    if not parity["same"] or not parity["same_prompt"]:
        raise EnvironmentFault(
            f"{model}: the reloaded model answers otherwise than the one that was judged: {parity}",
            hint="nothing was exported; evaluate again on this machine",
        )
    return parity


def _link_or_copy(source: str, target: str) -> str:
    # A merged model may be many GiB and lies on the same disk as a rule.
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target

"""S11, S12: what was judged is what ships; a part that was swapped or edited on the way is refused."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.conftest import Spoiled
from tests.attacks.test_code import answer_again, sign_again
from tunesmith.bases import resolve
from tunesmith.errors import UserError
from tunesmith.export.merge import merge
from tunesmith.files import read_json, sha256_json, sha256_tree, write_json


def flip(path: Path) -> None:
    """Change one bit of a file, without writing through a hard link."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.unlink()
    path.write_bytes(content)


def sign_merged(run: Path) -> None:
    """Make the merged model's manifest agree with what lies there now."""
    path = run / "merged" / "manifest.json"
    files = {name: digest for name, digest in sha256_tree(path.parent).items() if name != "manifest.json"}
    write_json(path, read_json(path) | {"files": files, "digest": sha256_json(files)})


# ---------------------------------------------------------------------- S11


def test_a_base_that_was_swapped_after_training_is_another_run(spoiled: Spoiled, repository: Path) -> None:
    base, before = spoiled.root / ".cache" / "tiny-base", sha256_tree(spoiled.root / "dist")
    shutil.rmtree(base)
    runpy.run_path(str(repository / "scripts" / "make_tiny_base.py"))["make"](base, seed=7)
    for command in ("gate", "export"):
        done = spoiled.do(command)
        assert done.code == 2, done.said
        assert "not there yet" in done.said or "there is no verdict on this run" in done.said
    # The adapter of the first base, put where the run of the second looks for its own.
    other = max((spoiled.root / "runs").glob("smoke-*"), key=lambda path: path.stat().st_mtime)
    first = next(path for path in (spoiled.root / "runs").glob("smoke-*/adapter")).parent
    assert other != first
    with pytest.raises(UserError, match="was trained on another base"):
        merge(resolve(str(base), spoiled.root), first / "adapter", [], [], spoiled.root / "merged")
    assert not (spoiled.root / "merged").exists()
    assert sha256_tree(spoiled.root / "dist") == before


def test_an_adapter_of_another_base_of_the_same_shape_is_not_evaluated(spoiled: Spoiled) -> None:
    """Its manifest names the other base; everything else of it was made to agree."""
    path = spoiled.run / "adapter" / "manifest.json"
    manifest = read_json(path)
    manifest["base"]["digest"] = "0" * 64
    write_json(path, manifest)
    sign_again(spoiled.run)
    answer_again(spoiled)
    spoiled.refuses("evaluate", "was trained on another base")


# ---------------------------------------------------------------------- S12

EDITED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the adapter": (lambda run: flip(run / "adapter" / "adapter_model.safetensors"), "is not what training wrote"),
    "the adapter, signed": (
        lambda run: (flip(run / "adapter" / "adapter_model.safetensors"), sign_again(run)),
        "not the adapter that was judged",
    ),
    "how the adapter is scaled": (
        lambda run: write_json(
            run / "adapter" / "adapter_config.json",
            read_json(run / "adapter" / "adapter_config.json") | {"lora_alpha": 640},
        ),
        "is not what training wrote",
    ),
    "the merged model": (lambda run: flip(run / "merged" / "model.safetensors"), "not the bytes that were judged"),
    "the merged model, signed": (
        lambda run: (flip(run / "merged" / "model.safetensors"), sign_merged(run)),
        "not the bytes that were judged",
    ),
    "the template of the merged model": (
        lambda run: (run / "merged" / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "not the bytes that were judged",
    ),
    "a file more in the merged model": (
        lambda run: (run / "merged" / "generation.json").write_text("{}"),
        "not the bytes that were judged",
    ),
    "the verdict": (
        lambda run: write_json(run / "verdict.json", read_json(run / "verdict.json") | {"name": "x"}),
        "there is no verdict on this run",
    ),
    "the answers": (lambda run: flip(run / "arms" / "adapter.jsonl"), "there is no verdict on this run"),
}


@pytest.mark.parametrize(("edit", "says"), EDITED.values(), ids=EDITED.keys())
def test_what_was_edited_after_it_was_judged_is_not_exported(
    spoiled: Spoiled, edit: Callable[[Path], object], says: str
) -> None:
    shutil.rmtree(spoiled.root / "dist")
    edit(spoiled.run)
    spoiled.refuses("export", says)
    assert not list((spoiled.root / "dist").glob("smoke*"))


def sign_bundle(bundle: Path) -> None:
    """Make a bundle's manifests agree with what lies there now."""
    merged = bundle / "merged" / "manifest.json"
    if merged.is_file():
        sign_merged(bundle)
    path = bundle / "manifest.json"
    files = {name: digest for name, digest in sha256_tree(bundle).items() if name != "manifest.json"}
    write_json(path, read_json(path) | {"files": files})


BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the adapter": (lambda b: flip(b / "adapter" / "adapter_model.safetensors"), "changed since it was exported"),
    "the merged model": (lambda b: flip(b / "merged" / "model.safetensors"), "changed since it was exported"),
    "the card": (lambda b: flip(b / "README.md"), "changed since it was exported"),
    "a module more": (lambda b: (b / "merged" / "modeling_x.py").write_text(""), "not in the manifest"),
    "a file less": (lambda b: (b / "merged" / "chat_template.jinja").unlink(), "missing"),
    "a link": (lambda b: (b / "merged" / "more").symlink_to("/etc/hostname"), "a link;"),
    "the manifest": (lambda b: (b / "manifest.json").write_text("[]"), "no bundle"),
    "the adapter, signed": (
        lambda b: (flip(b / "adapter" / "adapter_model.safetensors"), sign_bundle(b)),
        "adapter: not the one that verdict.json judged",
    ),
    "the template, signed": (
        lambda b: ((b / "merged" / "chat_template.jinja").write_text("{{ messages[0].content }}"), sign_bundle(b)),
        "merged: not the one that verdict.json judged",
    ),
}


def test_a_bundle_is_what_was_exported(spoiled: Spoiled) -> None:
    done = spoiled("verify", "dist/smoke-0.1.0")
    assert done.code == 0, done.said
    assert read_json(spoiled.run / "verdict.json")["digests"]["merged"] in done.said


@pytest.mark.parametrize(("edit", "says"), BUNDLES.values(), ids=BUNDLES.keys())
def test_a_bundle_that_was_edited_is_told(spoiled: Spoiled, edit: Callable[[Path], object], says: str) -> None:
    edit(spoiled.root / "dist" / "smoke-0.1.0")
    done = spoiled("verify", "dist/smoke-0.1.0")
    assert (done.code, "Traceback" in done.said) == (2, False), done.said
    assert says in done.said

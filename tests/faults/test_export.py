"""A merge or an export that is killed leaves nothing that looks like a model; the same command makes it whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Workshop
from tunesmith.errors import ExitCode
from tunesmith.files import read_json, sha256_file, sha256_tree

KILL = {"signals": ["KILL"]}
OPTIONS = [
    part
    for text in (
        "curate.split.shares={train: 0.45, dev: 0.05, gate: 0.1, confirm: 0.4}",
        "gate.accept_power=0.05",
        "trainer.num_train_epochs=6",
        "arms.few_shot=[]",
        "arms.retrieval=[]",
        "arms.constrained=false",
    )
    for part in ("--set", text)
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, made: Path, server: Any) -> Path:
    """A project whose run has shipped."""
    root = tmp_path_factory.mktemp("shipped") / "project"
    shutil.copytree(made, root, symlinks=True)
    shutil.rmtree(root / "runs")
    shop = Workshop(root, server)
    done = shop("curate", "smoke", *OPTIONS, "--recut")
    assert done.code == 0, done.said
    done = shop("run", "smoke", *OPTIONS)
    assert done.code == 0, done.said
    return root


@pytest.fixture
def shop(tmp_path: Path, shipped: Path, server: Any) -> Workshop:
    """A copy of it for each test."""
    root = tmp_path / "project"
    shutil.copytree(shipped, root, symlinks=True)
    return Workshop(root, server)


def whole(directory: Path) -> bool:
    """Whether every file of a merged model or a bundle is the one that its manifest names."""
    files = read_json(directory / "manifest.json")["files"]
    return {name: sha256_file(directory / name) for name in files} == files


@pytest.mark.parametrize("seam", ["merged", "publish", "record"])
def test_a_merge_that_is_killed_is_absent_or_whole(shop: Workshop, seam: str) -> None:
    before = sha256_tree(shop.run / "merged")
    shutil.rmtree(shop.run / "merged")
    (shop.run / "stages" / "merge.json").unlink()
    # Nothing else is left to do, so the seams are met by the merge first.
    assert shop("evaluate", "smoke", *OPTIONS, fault={"at": seam} | KILL).code == -9
    assert not (shop.run / "merged").exists() or whole(shop.run / "merged")
    done = shop("evaluate", "smoke", *OPTIONS)
    assert done.code == ExitCode.DONE, done.said
    assert sha256_tree(shop.run / "merged") == before


@pytest.mark.parametrize("seam", ["bundle", "bundled"])
def test_an_export_that_is_killed_is_absent_or_whole(shop: Workshop, seam: str) -> None:
    (bundle,) = (shop.root / "dist").glob("smoke-*")
    before = sha256_tree(bundle)
    shutil.rmtree(bundle)
    assert shop("export", "smoke", *OPTIONS, fault={"at": seam} | KILL).code == -9
    assert not bundle.exists() or whole(bundle)
    done = shop("export", "smoke", *OPTIONS)
    assert done.code == ExitCode.DONE, done.said
    assert sha256_tree(bundle) == before
    assert [path.name for path in (shop.root / "dist").iterdir() if path.is_dir()] == [bundle.name]


def test_a_merge_whose_disk_is_full_leaves_nothing(shop: Workshop) -> None:
    shutil.rmtree(shop.run / "merged")
    (shop.run / "stages" / "merge.json").unlink()
    done = shop("evaluate", "smoke", *OPTIONS, largest_file=200_000)
    assert done.code == ExitCode.ENVIRONMENT, done.said
    assert "File too large" in done.said
    assert not (shop.run / "merged").exists()


def test_a_merged_model_that_is_cut_short_is_not_exported(shop: Workshop) -> None:
    weights = shop.run / "merged" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1])
    (bundle,) = (shop.root / "dist").glob("smoke-*")
    shutil.rmtree(bundle)
    done = shop("export", "smoke", *OPTIONS)
    assert done.code == ExitCode.USER, done.said
    assert not bundle.exists()

"""S5, S6, S10: YAML, names and paths, links and archives that lead where nothing of ours should go."""

import gzip
import hashlib
import io
import shutil
import stat
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.attacks.conftest import Canary, Spoiled
from tunesmith.curate.chunks import chunks
from tunesmith.curation import SourceSection
from tunesmith.errors import EnvironmentFault, ExitCode, UserError
from tunesmith.files import sha256_tree
from tunesmith.packages import fetch, read_member

# ---------------------------------------------------------------------- S5

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
YAML = {
    "an object": ("name: !!python/object/apply:pathlib.Path.touch [{canary}]\n", "a tag (!) is not allowed"),
    "a name": ("name: !!python/name:os.system\n", "a tag (!) is not allowed"),
    "a module": ("name: !!python/module:canary_module\n", "a tag (!) is not allowed"),
    "a tag by its whole name": ("name: !<tag:yaml.org,2002:python/object/new:os.system> [x]\n", "a tag (!)"),
    "a handle": ("%TAG ! tag:yaml.org,2002:python/\n---\nname: !object/apply:os.system [x]\n", "a directive (%)"),
    "an alias bomb": (BOMB, "an anchor (&) is not allowed"),
    "a merge bomb": ("a: 1\n<<: {{b: 1}}\n", "a merge key (<<) is not allowed"),
    "a key twice": ("extends: smoke\nname: a\nname: b\n", "found duplicate key"),
    "a page too many": ("name: " + "x" * (256 * 1024), "larger than 256 KiB"),
    "nested lists": ("name: " + "[" * 20_000, "nested deeper than 32"),
    "nested mappings": ("".join(" " * i + "a:\n" for i in range(600)), "nested deeper than 32"),
    "nested flow": ("name: " + "{{a: " * 5_000, "nested deeper than 32"),
    "an include": ("name: !include /etc/passwd\n", "a tag (!) is not allowed"),
}


@pytest.mark.parametrize(("text", "says"), YAML.values(), ids=YAML.keys())
@pytest.mark.parametrize("file", ["recipes/attack.yaml", "recipes/bases.yaml", "data/smoke/sources.lock"])
def test_yaml_is_data(spoiled: Spoiled, canary: Canary, file: str, text: str, says: str) -> None:
    (spoiled.root / "canary_module.py").write_text(canary.module)
    (spoiled.root / file).write_text(text.format(canary=canary.path))
    began = time.monotonic()
    if file.endswith("lock"):
        done = spoiled.do("curate", "--recut")
    else:
        done = spoiled("recipe", "validate", "attack" if "attack" in file else "smoke")
    assert (done.code, "Traceback" in done.said) == (ExitCode.USER, False), done.said
    assert says in done.said
    assert time.monotonic() - began < 20


# ---------------------------------------------------------------------- S6

OUTSIDE = ["../../x", "/var/x", "a/../../x", "~/x", "x\0y", ""]


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..", "a/b", "x\0y", "-x", "bases", "../recipes/smoke", "A"]
)
def test_a_recipes_name_is_a_name(spoiled: Spoiled, name: str) -> None:
    done = spoiled("recipe", "validate", "--", name)
    assert done.code == ExitCode.USER, done.said
    assert "no such recipe in recipes/" in done.said
    path = spoiled.root / "recipes" / "attack.yaml"
    path.write_text(f"extends: smoke\nname: {name!r}\n".replace("\\x00", "?"))
    if name != "bases":
        done = spoiled("recipe", "validate", "attack")
        assert (done.code, "Traceback" in done.said) == (ExitCode.USER, False), done.said
        assert "name:" in done.said


INNER = {
    "data.directory": "data: {{directory: {}}}",
    "data.schema": "data: {{schema: {}}}",
    "curate.probes.0": "curate: {{probes: [{}]}}",
    "curate.sources.0.path": "curate: {{sources: [{{name: a, licence: b, path: {}}}]}}",
}


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(("key", "text"), INNER.items(), ids=INNER.keys())
def test_a_path_in_a_recipe_stays_in_its_project(spoiled: Spoiled, key: str, text: str, path: str) -> None:
    told = text.format('"' + path.replace("\0", "\\0") + '"')
    (spoiled.root / "recipes" / "attack.yaml").write_text(f"extends: smoke\nname: attack\n{told}\n")
    done = spoiled("recipe", "validate", "attack")
    assert (done.code, "Traceback" in done.said) == (ExitCode.USER, False), done.said
    assert f"recipes/attack.yaml:3: {key}: " in done.said
    assert "leads out of the project" in done.said or "is no path" in done.said


def test_what_lies_elsewhere_is_the_users_own_word(spoiled: Spoiled, tmp_path: Path) -> None:
    """A base and, by `--set`, any path: who types a command may read and write their own files."""
    elsewhere = shutil.copytree(spoiled.root / ".cache" / "tiny-base", tmp_path / "elsewhere")
    schema = shutil.copy(spoiled.root / "data/smoke/schema.json", tmp_path)
    done = spoiled("recipe", "validate", "smoke", "--base", str(elsewhere), "--set", f"data.schema={schema}")
    assert done.code == ExitCode.DONE, done.said


WORDS = {
    "a parent": ("extends: ../smoke\nname: attack\n", "extends: must name one recipe"),
    "a version": ("extends: smoke\nname: attack\nexport: {version: ../1.0.0}\n", "export.version"),
    "a source": (
        "extends: smoke\nname: attack\ncurate: {sources: [{name: ../x, licence: b, path: a.jsonl}]}\n",
        "curate.sources.0.name",
    ),
    "a data set of the Hub": (
        "extends: smoke\nname: attack\ncurate: {sources: [{name: a, licence: b, hub: ../../x, path: a}]}\n",
        "must read `org/name@<40 hex",
    ),
}


@pytest.mark.parametrize(("text", "says"), WORDS.values(), ids=WORDS.keys())
def test_other_words_that_become_paths_are_words(spoiled: Spoiled, text: str, says: str) -> None:
    (spoiled.root / "recipes" / "attack.yaml").write_text(text)
    done = spoiled("recipe", "validate", "attack")
    assert done.code == ExitCode.USER, done.said
    assert says in done.said


PINS = (
    "licence: MIT\n  package: {{project: toy, version: '1', filename: {}, sha256: {}}}\n"
    "  gguf: {{member: m, sha256: {}}}\n"
)


@pytest.mark.parametrize(
    ("name", "filename", "says"),
    [("../../x", "toy.whl", "'../../x': no name"), ("toy", "../../../toy.whl", "toy.package.filename")],
)
def test_a_named_base_stays_in_the_cache(spoiled: Spoiled, name: str, filename: str, says: str) -> None:
    path = spoiled.root / "recipes" / "bases.yaml"
    path.write_text(f"{name}:\n  " + PINS.format(filename, "a" * 64, "b" * 64))
    spoiled.refuses("check", says)


LINKS = [
    "",
    "merged",
    "arms",
    "adapter/adapter_model.safetensors",
    ".scratch",
    ".scratch/merge",
    "stages",
    "verdict.json",
]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_is_refused_and_nothing_is_written_through_it(
    spoiled: Spoiled, tmp_path: Path, name: str
) -> None:
    place, elsewhere = spoiled.run / name, tmp_path / "elsewhere"
    if place.exists():
        shutil.move(place, elsewhere)
    else:
        elsewhere.mkdir()
        place.parent.mkdir(exist_ok=True)
    place.symlink_to(elsewhere)
    before = sha256_tree(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()
    for command in ("evaluate", "gate", "export"):
        spoiled.refuses(command, "a link; files are written where they are said to be")
    assert (sha256_tree(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()) == before


@pytest.mark.parametrize("name", ["smoke-0.1.0", ".smoke-0.1.0.unfinished", "smoke-0.1.0/merged"])
def test_a_link_where_the_bundle_goes_is_refused(spoiled: Spoiled, tmp_path: Path, name: str) -> None:
    place, elsewhere = spoiled.root / "dist" / name, tmp_path / "elsewhere"
    shutil.rmtree(place, ignore_errors=True)
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    place.symlink_to(elsewhere)
    spoiled.refuses("export", "a link; files are written where they are said to be")
    assert sha256_tree(elsewhere).keys() == {"mine"}


def test_a_link_where_curation_works_is_refused(spoiled: Spoiled, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (spoiled.root / "data" / "smoke" / ".curate").symlink_to(tmp_path / "elsewhere")
    spoiled.refuses("curate", "a link; files are written where they are said to be", more=("--recut",))
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---------------------------------------------------------------------- S10

SLIPS = ["../../../slipped", "/var/slipped-by-tunesmith", "a/../../../slipped", "..\\..\\slipped"]


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in SLIPS:
            archive.writestr(name, "slipped")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
    return buffer.getvalue()


def sdist() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in SLIPS:
            info = tarfile.TarInfo(name)
            info.size = 7
            archive.addfile(info, io.BytesIO(b"slipped"))
        kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(("filename", "content"), [("toy-1.whl", wheel()), ("toy-1.tar.gz", sdist())])
def test_an_archive_is_read_by_member_and_never_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filename: str, content: bytes
) -> None:
    from tunesmith.packages import PackageFile

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "a" / "b" / "cache"))
    digest = hashlib.sha256(content).hexdigest()
    package = PackageFile(project="toy", version="1", filename=filename, sha256=digest)
    place = tmp_path / "a" / "b" / "cache" / "packages" / digest[:16] / filename
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    before = sha256_tree(tmp_path).keys()
    for name in SLIPS:
        assert read_member(fetch(package), name) == b"slipped"
    if filename.endswith("whl"):
        # A zip's link is a file that holds where it would lead.
        assert read_member(fetch(package), "link") == b"/etc/hostname"
    else:
        for name in ("link", "hard", "pipe", "device"):
            with pytest.raises(EnvironmentFault, match="holds no member"):
                read_member(fetch(package), name)
    assert {name for name in sha256_tree(tmp_path) if not name.endswith(".lock")} == before
    assert not Path("/var/slipped-by-tunesmith").exists()


def test_a_gzip_file_that_names_another_is_unpacked_where_we_say(tmp_path: Path) -> None:
    project, scratch = tmp_path / "a" / "project", tmp_path / "a" / "scratch"
    project.mkdir(parents=True)
    scratch.mkdir()
    with (
        (project / "rows.jsonl.gz").open("wb") as stream,
        gzip.GzipFile("../../../slipped", "wb", fileobj=stream) as packed,
    ):
        packed.write(b'{"prompt": "a", "completion": "b"}\n')
    source = SourceSection(name="pile", licence="CC0-1.0", path="rows.jsonl.gz")
    (chunk,) = chunks(0, source, project, scratch)
    assert [value for _, value, _ in chunk.lines()] == [{"prompt": "a", "completion": "b"}]
    assert sha256_tree(tmp_path).keys() == {"a/project/rows.jsonl.gz", "a/scratch/source-0-0.jsonl"}


def test_a_cut_gzip_file_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    source = SourceSection(name="pile", licence="CC0-1.0", path="rows.jsonl.gz")
    with pytest.raises(UserError, match="not gzip, or cut off"):
        list(chunks(0, source, tmp_path, tmp_path))

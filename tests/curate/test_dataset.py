import json

import pytest
from jinja2 import UndefinedError

from tunesmith.curate import dataset as curate_dataset
from tunesmith.curate.dataset import Sieve, Source, made_by, read_sources, write_dataset
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.files import sha256_file
from tunesmith.rows import SPLITS, Dataset, Message, Row

SHARES = {"train": 0.4, "dev": 0.2, "gate": 0.2, "confirm": 0.2}
CARD = (
    "# toy\n{% for name, source in sources.items() %}{{ name }}: {{ source.licence }}\n{% endfor %}"
    "{% for reason, count in manifest.dropped.items() %}{{ reason }}: {{ count }}\n{% endfor %}"
    "train: {{ manifest.files['train.jsonl'].rows }}\n"
)
LOCK = f"""\
toy:
  package: {{project: toy, version: "1.0", filename: toy-1.0.tar.gz, sha256: "{"0" * 64}"}}
  member: toy-1.0/data.txt
  licence: MIT
  made: By hand.
"""


def row(number, group=None, text=None, row_id=None):
    return Row(
        id=row_id or f"r{number}",
        group=group or f"g{number // 2}",
        messages=[Message(role="system", content="Extract."), Message(role="user", content=text or f"text {number}")],
        completion=Message(role="assistant", content='{"n":"é"}'),
    )


ROWS = [row(number) for number in range(40)]


@pytest.fixture
def write(tmp_path):
    script = tmp_path / "curate_toy.py"
    script.write_text("# makes it\n")

    def call(rows=ROWS, *, card=CARD, sources=None, sieve=None, shares=SHARES, seed=0):
        directory = tmp_path / "data"
        directory.mkdir(exist_ok=True)
        (directory / "sources.lock").write_text(LOCK)
        write_dataset(
            directory,
            rows,
            shares=shares,
            seed=seed,
            sources=sources or {},
            sieve=sieve or Sieve(),
            card=card,
            script=script,
        )
        return Dataset(directory)

    return call


def test_the_manifest_states_what_was_written(write, tmp_path):
    dataset = write()
    manifest = dataset.manifest()
    parts = {split: dataset.rows(split) for split in SPLITS}
    assert sorted((one for rows in parts.values() for one in rows), key=lambda one: int(one.id[1:])) == ROWS
    assert manifest == {
        "schema": 1,
        "made_by": made_by(tmp_path / "curate_toy.py", dataset.directory),
        "seed": 0,
        "shares": SHARES,
        "files": {
            f"{split}.jsonl": {
                "rows": len(parts[split]),
                "groups": len({one.group for one in parts[split]}),
                "sha256": sha256_file(dataset.directory / f"{split}.jsonl"),
            }
            for split in SPLITS
        },
        "dropped": {},
        "systems": ["Extract."],
        "sources": {},
    }


def test_curating_again_writes_the_same_bytes(write):
    first = {path.name: path.read_bytes() for path in write().directory.iterdir()}
    again = {path.name: path.read_bytes() for path in write().directory.iterdir()}
    assert again == first


def test_lines_hold_their_characters_as_they_are(write):
    dataset = write()
    line = (dataset.directory / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert '{\\"n\\":\\"é\\"}' in line
    assert json.loads(line) == dataset.rows("train")[0].as_dict()


@pytest.mark.parametrize("call", ["write_jsonl", "write_atomic", "write_json"])
def test_the_manifest_is_written_last(write, monkeypatch, call):
    dataset = write()

    def stop(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(curate_dataset, call, stop)
    with pytest.raises(OSError, match="disk full"):
        write(seed=1)
    assert not dataset.exists()


def test_the_card_is_rendered_from_manifest_and_sources(write):
    sieve = Sieve()
    sieve.drop("too short")
    sieve.drop("too short")
    sieve.drop("no address")
    dataset = write(sieve=sieve, sources={"toy": Source.model_validate(parsed_lock())})
    rows = len(dataset.rows("train"))
    card = f"# toy\ntoy: MIT\nno address: 1\ntoo short: 2\ntrain: {rows}\n"
    assert (dataset.directory / "CARD.md").read_text() == card
    assert dataset.manifest()["dropped"] == {"no address": 1, "too short": 2}
    assert dataset.manifest()["sources"] == {"toy": parsed_lock()}


def test_a_card_that_names_what_is_not_there_leaves_no_dataset(write, tmp_path):
    with pytest.raises(UndefinedError):
        write(card="{{ manifest.licence }}")
    assert not Dataset(tmp_path / "data").exists()


def test_ids_that_stand_twice_are_refused_before_anything_is_written(write, tmp_path):
    with pytest.raises(UserError) as refused:
        write([*ROWS, row(3), row(5), row(3)])
    assert refused.value.text == f"{tmp_path}/data: ids stand twice: r3, r5; ids are unique"
    assert not (tmp_path / "data" / "train.jsonl").exists()


def test_a_split_that_stays_empty_leaves_the_old_dataset(write):
    dataset = write()
    before = {path.name: path.read_bytes() for path in dataset.directory.iterdir()}
    with pytest.raises(UserError, match="no rows fell into"):
        write([row(0)])
    assert {path.name: path.read_bytes() for path in dataset.directory.iterdir()} == before


def test_duplicates_are_dropped_and_counted():
    sieve = Sieve()
    rows = [row(1, text="12 Main St."), row(2, text="13 Main St."), row(3, text="12 MAIN ST"), row(4, text="12Main st")]
    assert sieve.unique(rows) == rows[:2]
    assert sieve.dropped == {"duplicate text": 2}


def parsed_lock():
    return {
        "package": {"project": "toy", "version": "1.0", "filename": "toy-1.0.tar.gz", "sha256": "0" * 64},
        "member": "toy-1.0/data.txt",
        "licence": "MIT",
        "made": "By hand.",
    }


def test_sources_are_read_from_their_lock(tmp_path):
    (tmp_path / "sources.lock").write_text(LOCK)
    assert read_sources(tmp_path) == {"toy": Source.model_validate(parsed_lock())}


def test_a_malformed_lock_is_refused(tmp_path):
    (tmp_path / "sources.lock").write_text(LOCK.replace("  licence: MIT\n", "").replace("0" * 64, "0" * 63))
    with pytest.raises(UserError) as refused:
        read_sources(tmp_path)
    assert refused.value.text == (
        f"{tmp_path}/sources.lock: package.sha256: String should match pattern '^[0-9a-f]{{64}}$'\n"
        f"{tmp_path}/sources.lock: licence: Field required"
    )


def test_a_missing_lock_is_named(tmp_path):
    with pytest.raises(UserError) as refused:
        read_sources(tmp_path)
    assert refused.value.text == f"{tmp_path}/sources.lock: no such file"


def test_a_source_is_only_read_when_its_bytes_are_the_pinned(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    monkeypatch.setenv("PIP_CERT", "/etc/ssl/cert.pem")
    cached = tmp_path / "packages" / ("0" * 16) / "toy-1.0.tar.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"another")
    with pytest.raises(EnvironmentFault, match="could not download"):
        Source.model_validate(parsed_lock()).read()


def test_what_makes_a_dataset_is_its_script_and_its_lock(tmp_path):
    script = tmp_path / "curate_toy.py"
    script.write_text("1")
    digests = [made_by(script, tmp_path)]
    (tmp_path / "sources.lock").write_text(LOCK)
    digests.append(made_by(script, tmp_path))
    script.write_text("2")
    digests.append(made_by(script, tmp_path))
    (tmp_path / "sources.lock").write_text(LOCK + "\n")
    digests.append(made_by(script, tmp_path))
    assert len(set(digests)) == 4
    assert made_by(script, tmp_path) == digests[-1]

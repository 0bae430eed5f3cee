"""An entry of the store is whole, or it is not there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.files import sha256_json
from tunesmith.store import Store

KEY = sha256_json("a key")


def entry(store: Store) -> Path:
    (path,) = (path for path in store.directory.rglob("*") if path.is_file())
    return path


def test_what_was_put_is_there_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(KEY) is None
    store.put(KEY, b"")
    assert store.get(KEY) == b""
    store.put(KEY, b"newer")
    assert Store(tmp_path).get(KEY) == b"newer"
    assert store.get(sha256_json("another")) is None


@pytest.mark.parametrize("length", [0, 10, 31, 32, 40])
def test_an_entry_that_was_cut_is_not_there_and_can_be_put_again(tmp_path: Path, length: int) -> None:
    store = Store(tmp_path)
    store.put(KEY, b"a value of some length")
    path = entry(store)
    path.write_bytes(path.read_bytes()[:length])
    assert store.get(KEY) is None
    store.put(KEY, b"a value of some length")
    assert store.get(KEY) == b"a value of some length"


@given(place=st.integers(0, 53), bit=st.integers(0, 7))
def test_an_entry_of_which_one_bit_changed_is_not_there(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.put(KEY, b"a value of some length")
    path = entry(store)
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    assert store.get(KEY) is None


def test_an_entry_laid_under_another_key_is_not_there(tmp_path: Path) -> None:
    store, other = Store(tmp_path), sha256_json("another")
    store.put(KEY, b"a value")
    (tmp_path / other[:2]).mkdir(exist_ok=True)
    entry(store).rename(tmp_path / other[:2] / other)
    assert store.get(other) is None


def test_a_store_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no directory")
    store = Store(tmp_path / "file" / "store")
    store.put(KEY, b"a value")
    store.put(KEY, b"a value")
    assert store.get(KEY) is None
    assert capsys.readouterr().err.count("warning") == 1


def test_many_may_put_one_key_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    values = [bytes([i]) * 5000 for i in range(32)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda value: store.put(KEY, value), values))
    assert store.get(KEY) in values
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1

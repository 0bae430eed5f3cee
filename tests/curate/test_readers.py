"""Files of every kind become the same lines, wherever they lie and however they are cut."""

import csv
import gzip
import io
import json
import socket
import sys

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.curate.conftest import pair
from tunesmith.cli import guarded
from tunesmith.curate import chunks as chunks_of
from tunesmith.curate import readers
from tunesmith.curate.chunks import chunks, cut
from tunesmith.curation import SourceSection
from tunesmith.errors import EnvironmentFault, ExitCode, UserError

REVISION = "0123456789abcdef" * 2 + "01234567"
TABLE = [
    {"prompt": f"what is {i}, ä", "completion": f"it is\n{i}" if i == 1 else f"it is {i}", "colour": "red"}
    for i in range(3)
]


def source(path, **more):
    return SourceSection(**({"name": "pile", "licence": "CC0-1.0", "path": path} | more))


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def lines(section, root, scratch):
    """Every line of a source: its place, its value, what is wrong with it."""
    return [line for chunk in chunks(0, section, root, scratch) for line in chunk.lines()]


def jsonl(values, end="\n"):
    return "".join(json.dumps(value, ensure_ascii=False) + end for value in values).encode()


def table(values, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, values[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue().encode()


def columnar(values):
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(values), sink)
    return sink.getvalue()


CONTENT = {
    "jsonl": jsonl(TABLE),
    "ndjson": jsonl(TABLE),
    "json": json.dumps(TABLE, indent=1).encode(),
    "csv": table(TABLE),
    "tsv": table(TABLE, "\t"),
    "parquet": columnar(TABLE),
}
PLACES = {"jsonl": [1, 2, 3], "ndjson": [1, 2, 3], "json": [2, 7, 12], "csv": [2, 3, 5], "tsv": [2, 3, 5]}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", CONTENT)
def test_every_kind_of_file_gives_the_same_lines(tmp_path, scratch, suffix, packed):
    data = CONTENT[suffix]
    (tmp_path / f"pile.{suffix}{packed}").write_bytes(gzip.compress(data) if packed else data)
    got = lines(source(f"pile.{suffix}{packed}"), tmp_path, scratch)
    assert [(value, problem) for _, value, problem in got] == [(value, None) for value in TABLE]
    assert [place for place, _, _ in got] == [f"pile.{suffix}{packed}:{line}" for line in PLACES.get(suffix, [1, 2, 3])]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_order_mark_at_the_beginning_is_taken_off(tmp_path, scratch, suffix):
    (tmp_path / f"pile.{suffix}").write_bytes(b"\xef\xbb\xbf" + CONTENT[suffix])
    got = lines(source(f"pile.{suffix}"), tmp_path, scratch)
    assert [(value, problem) for _, value, problem in got] == [(value, None) for value in TABLE]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_line_ends_of_windows_are_line_ends(tmp_path, scratch, suffix):
    flat = [value | {"completion": "yes"} for value in TABLE]
    data = {"jsonl": jsonl(flat, "\r\n"), "csv": table(flat), "tsv": table(flat, "\t")}[suffix]
    assert data.count(b"\r\n") == data.count(b"\n")
    (tmp_path / f"pile.{suffix}").write_bytes(data)
    assert [value for _, value, _ in lines(source(f"pile.{suffix}"), tmp_path, scratch)] == flat


def test_blank_lines_are_no_lines_and_count(tmp_path, scratch):
    (tmp_path / "pile.jsonl").write_bytes(b'\n  \n{"a": 1}\n\r\n{"a": 2}')
    assert lines(source("pile.jsonl"), tmp_path, scratch) == [
        ("pile.jsonl:3", {"a": 1}, None),
        ("pile.jsonl:5", {"a": 2}, None),
    ]


@pytest.mark.parametrize("suffix", CONTENT)
def test_an_empty_file_has_no_lines_or_says_what_it_is_not(tmp_path, scratch, suffix):
    (tmp_path / f"pile.{suffix}").write_bytes(b"")
    got = lines(source(f"pile.{suffix}"), tmp_path, scratch)
    assert [value for _, value, _ in got] in ([], [None])
    assert bool(got) == (suffix in ("json", "parquet"))


# ---------------------------------------------------------------------- chunks


TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
LINES = st.lists(
    st.builds(lambda text: json.dumps(pair(text), ensure_ascii=False).encode(), TEXTS)
    | st.sampled_from([b"", b"  ", b"\r", b"{", b"\xff", b"3", b'{"prompt": "\xef\xbb\xbf"}']),
    max_size=20,
)


@settings(deadline=None)
@given(content=LINES, size=st.integers(1, 80), ended=st.booleans(), marked=st.booleans())
def test_any_cut_into_chunks_gives_the_same_lines(tmp_path_factory, content, size, ended, marked):
    path = tmp_path_factory.getbasetemp() / "chunks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * marked + b"\n".join(content) + b"\n" * ended)

    def read(size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks_of, "CHUNK_BYTES", size)
            found = list(cut(0, "pile", path, source("pile.jsonl"), spooled=False))
        return found, [line for chunk in found for line in chunk.lines()]

    small, got = read(size)
    _, whole = read(1 << 20)
    assert got == whole
    numbers = [int(place.partition(":")[2]) for place, _, _ in got]
    assert numbers == [number for number, line in enumerate(content, start=1) if line.strip()]
    ends = [(chunk.start, chunk.end) for chunk in small]
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]
    assert sum(end - start for start, end in ends) == path.stat().st_size


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_chunks_of_what_is_no_json_lines_keep_the_places_of_the_file(tmp_path, scratch, monkeypatch, suffix):
    (tmp_path / f"pile.{suffix}").write_bytes(CONTENT[suffix])
    whole = lines(source(f"pile.{suffix}"), tmp_path, scratch)
    monkeypatch.setattr(chunks_of, "CHUNK_BYTES", 1)
    section = source(f"pile.{suffix}")
    assert len(list(chunks(0, section, tmp_path, scratch))) == 3
    assert lines(section, tmp_path, scratch) == whole


# ---------------------------------------------------------------------- forms


def test_each_file_has_a_form_of_its_own(tmp_path, scratch):
    (tmp_path / "a.jsonl").write_bytes(jsonl([pair("a")]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"instruction": "a", "output": "b"}]))
    assert [chunk.form for chunk in chunks(0, source("*.jsonl"), tmp_path, scratch)] == ["prompt_completion", "alpaca"]


def test_a_form_is_read_off_the_first_line_that_shows_one(tmp_path, scratch):
    (tmp_path / "a.jsonl").write_bytes(b"\n{\n\xff\n[]\n" + jsonl([{"x": 1}, pair("a")]))
    assert [chunk.form for chunk in chunks(0, source("a.jsonl"), tmp_path, scratch)] == ["prompt_completion"]


def test_a_stated_form_is_not_looked_for(tmp_path, scratch):
    (tmp_path / "a.jsonl").write_bytes(jsonl([pair("a")]))
    assert [chunk.form for chunk in chunks(0, source("a.jsonl", format="alpaca"), tmp_path, scratch)] == ["alpaca"]


def test_a_line_of_another_form_is_refused_with_its_line(project):
    project.write([pair("a"), {"instruction": "a", "output": "b"}, pair("c")])
    with pytest.raises(UserError) as refused:
        project.curate()
    assert refused.value.problems == [
        "pile.jsonl:2: is alpaca; the file began with prompt_completion: keep forms apart, or state the source's "
        "`format`"
    ]


# ---------------------------------------------------------------------- which files


def test_a_glob_takes_files_in_their_order_and_no_directories(tmp_path, scratch):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(jsonl([pair(name)]))
    (tmp_path / "c.jsonl").mkdir()
    assert [place for place, _, _ in lines(source("*.jsonl"), tmp_path, scratch)] == ["a.jsonl:1", "b.jsonl:1"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path, scratch):
    (tmp_path / "pile[1].jsonl").write_bytes(jsonl([pair("a")]))
    assert [place for place, _, _ in lines(source("pile[1].jsonl"), tmp_path, scratch)] == ["pile[1].jsonl:1"]


@pytest.mark.parametrize("path", ["none.jsonl", "*.jsonl", "none/*.csv", "pile.jsonl/x"])
def test_a_file_that_is_not_there_is_the_users_fault(tmp_path, scratch, path):
    with pytest.raises(UserError) as refused:
        lines(source(path), tmp_path, scratch)
    assert refused.value.text == f"curate.sources: pile: no such file or directory {path!r}"


@pytest.mark.parametrize("path", ["/*.jsonl", "a**/*.jsonl"])
def test_a_pattern_that_is_none_is_the_users_fault(tmp_path, scratch, path):
    with pytest.raises(UserError) as refused:
        lines(source(path), tmp_path, scratch)
    assert refused.value.text.startswith("curate.sources: pile: ")


@pytest.mark.parametrize("name", ["pile.xlsx", "pile.gz", "pile", "pile.jsonl.bz2", "pile.txt"])
def test_an_unknown_kind_of_file_is_refused_with_those_there_are(tmp_path, scratch, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as refused:
        lines(source(name), tmp_path, scratch)
    assert refused.value.text == (
        f"{name}: files of this kind are not read; there are: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, "
        "each also with .gz, a directory of .txt and .md"
    )


# ---------------------------------------------------------------------- tables


def test_a_cell_may_be_longer_than_python_expects(tmp_path, scratch):
    long = "x" * 200_000
    (tmp_path / "pile.csv").write_bytes(table([pair(long)]))
    assert [value for _, value, _ in lines(source("pile.csv"), tmp_path, scratch)] == [pair(long)]


def test_a_quote_that_stays_open_is_told_where_its_row_begins(tmp_path, scratch):
    (tmp_path / "pile.csv").write_bytes(b'prompt,completion\na,b\nc,"d\ne,f\ng,h\n')
    _, (place, _, problem) = lines(source("pile.csv"), tmp_path, scratch)
    assert place == "pile.csv:3"
    assert problem == "not CSV (unexpected end of data); nothing after it was read"


def test_every_line_that_is_not_utf_8_is_told_and_the_others_are_read(tmp_path, scratch):
    (tmp_path / "pile.csv").write_bytes(b'prompt,completion\na,\xe4\nb,"x\n\xe4"\nc,d\n\xe4,e\n')
    got = lines(source("pile.csv"), tmp_path, scratch)
    assert [value for _, value, problem in got if not problem] == [pair("c", "d")]
    assert [place for place, _, problem in got if problem] == ["pile.csv:2", "pile.csv:4", "pile.csv:6"]


def test_a_header_that_is_not_utf_8_names_no_columns(tmp_path, scratch):
    (tmp_path / "pile.csv").write_bytes(b"prompt,completion,gr\xf6\xdfe\na,b,c\n")
    ((place, value, problem),) = lines(source("pile.csv"), tmp_path, scratch)
    assert (place, value, problem) == ("pile.csv:1", None, "not UTF-8 (byte 20); save the file as UTF-8")


def test_a_table_in_another_encoding_is_read_in_a_time_that_grows_with_its_lines(tmp_path, scratch):
    (tmp_path / "pile.csv").write_bytes(b"prompt,completion\n" + b"a,\xe4\n" * 3000)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename == readers.__file__

    sys.setprofile(count)
    try:
        got = lines(source("pile.csv"), tmp_path, scratch)
    finally:
        sys.setprofile(None)
    assert len(got) == 3000
    assert calls < 60_000


@pytest.mark.parametrize("content", [b'[{"a": 1}] [{"a": 2}]', b'[{"a": 1}]\n{"a": 2}', b'[{"a": 1}],'])
def test_what_stands_after_a_json_list_is_not_passed_over(tmp_path, scratch, content):
    (tmp_path / "pile.json").write_bytes(content)
    (_, first, _), (_, _, problem) = lines(source("pile.json"), tmp_path, scratch)
    assert first == {"a": 1}
    assert problem == "not JSON (something stands after the list's last bracket); nothing after it was read"


def test_a_json_list_that_goes_on_with_nothing_is_not_json(tmp_path, scratch):
    (tmp_path / "pile.json").write_bytes(b'[{"a": 1},\n]')
    assert [problem is None for _, _, problem in lines(source("pile.json"), tmp_path, scratch)] == [True, False]


@pytest.mark.parametrize("value", ['"\\ud800"', "1e999", "NaN", "[" * 5000 + "]" * 5000, "9" * 5000])
def test_a_json_list_may_hold_nothing_that_json_lines_may_not(tmp_path, scratch, value):
    (tmp_path / "pile.json").write_text(f'[{{"prompt": "a", "completion": "b"}},\n{{"prompt": {value}}}]')
    got = lines(source("pile.json"), tmp_path, scratch)
    assert [place for place, _, _ in got] == ["pile.json:1", "pile.json:2"]
    assert got[1][2]


def test_parquet_with_one_column_name_twice_is_refused(tmp_path, scratch):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(twice, tmp_path / "pile.parquet")
    assert lines(source("pile.parquet"), tmp_path, scratch) == [
        ("pile.parquet:1", None, "column names must differ: prompt, prompt")
    ]


def test_dates_and_decimals_of_parquet_are_text_and_bytes_are_refused(tmp_path, scratch):
    from datetime import date
    from decimal import Decimal

    values = [{"day": date(2026, 1, 2), "price": Decimal("1.50")}]
    parquet.write_table(pa.Table.from_pylist(values), tmp_path / "good.parquet")
    parquet.write_table(pa.Table.from_pylist([{"raw": b"\xff"}]), tmp_path / "raw.parquet")
    ((_, good, _),) = lines(source("good.parquet"), tmp_path, scratch)
    assert good == {"day": "2026-01-02", "price": "1.50"}
    ((_, _, problem),) = lines(source("raw.parquet"), tmp_path, scratch)
    assert problem == "holds what JSON does not know: bytes"


# ---------------------------------------------------------------------- packed


@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("harm", ["cut", "no gzip", "one bit"])
def test_a_broken_gzip_is_refused_with_its_file(project, suffix, harm):
    packed = bytearray(gzip.compress(CONTENT[suffix]))
    if harm == "cut":
        del packed[-12:]
    elif harm == "no gzip":
        packed = CONTENT[suffix]
    else:
        packed[-6] ^= 1
    (project.root / f"pile.{suffix}.gz").write_bytes(packed)
    project.section["sources"][0]["path"] = f"pile.{suffix}.gz"
    with pytest.raises(UserError) as refused:
        project.curate()
    assert all(problem.startswith(f"pile.{suffix}.gz:1: ") for problem in refused.value.problems)


# ---------------------------------------------------------------------- documents


def test_a_directory_is_read_by_its_documents_whatever_their_names(tmp_path, scratch):
    names = ["a.txt", "b.MD", "two\nlines.txt", "ä.txt"]
    (tmp_path / "letters").mkdir()
    for name in names:
        (tmp_path / "letters" / name).write_text("dear sir")
        stem = name.rpartition(".")[0]
        (tmp_path / "letters" / f"{stem}.json").write_text("{}")
    got = lines(source("letters"), tmp_path, scratch)
    assert sorted(value["id"] for _, value, _ in got) == sorted(names)
    assert {place for place, _, _ in got} == {"letters:1"}


def test_a_document_name_that_is_not_utf_8_is_told(tmp_path, scratch):
    (tmp_path / "letters").mkdir()
    for name in (b"\xff.txt", b"\xff.json"):
        with open(bytes(tmp_path / "letters") + b"/" + name, "wb") as stream:
            stream.write(b"x")
    ((_, _, problem),) = lines(source("letters"), tmp_path, scratch)
    assert problem == "holds half a surrogate pair, which is no character"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "holds no document (.txt, .md)"),
        (["a.json"], "holds no document (.txt, .md)"),
        (
            ["a.txt"],
            "a.txt: has 0 completions beside it; one is wanted, a.json or a.completion.txt or a.completion.md",
        ),
        (
            ["a.txt", "a.json", "a.completion.txt"],
            "a.txt: has 2 completions beside it; one is wanted, a.json or a.completion.txt or a.completion.md",
        ),
    ],
)
def test_documents_without_one_completion_are_told(tmp_path, scratch, files, problem):
    (tmp_path / "letters").mkdir()
    for name in files:
        (tmp_path / "letters" / name).write_text("x")
    assert lines(source("letters"), tmp_path, scratch) == [("letters:1", None, problem)]


def test_a_document_that_is_not_utf_8_is_told(tmp_path, scratch):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "letters" / "a.json").write_text("{}")
    ((place, _, problem),) = lines(source("letters"), tmp_path, scratch)
    assert place == "letters:1"
    assert problem == "a.txt: it or its completion is not UTF-8 (byte 3); save it as UTF-8"


# ---------------------------------------------------------------------- the Hub


@pytest.fixture
def remote(monkeypatch):
    """A Hub in memory; returns what puts a file into the data set."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    files.store = {}
    files.pseudo_dirs = [""]
    monkeypatch.setattr(chunks_of, "hub", lambda: files)
    return lambda name, data: files.pipe_file(f"/datasets/org/set@{REVISION}/{name}", data)


def on_the_hub(path, **more):
    return source(path, hub=f"org/set@{REVISION}", **more)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", CONTENT)
def test_every_kind_of_file_streams_from_the_hub(tmp_path, scratch, remote, suffix, packed):
    remote(f"data/pile.{suffix}{packed}", gzip.compress(CONTENT[suffix]) if packed else CONTENT[suffix])
    got = lines(on_the_hub(f"data/*.{suffix}{packed}"), tmp_path, scratch)
    assert [(value, problem) for _, value, problem in got] == [(value, None) for value in TABLE]
    assert got[0][0] == f"org/set/data/pile.{suffix}{packed}:{PLACES.get(suffix, [1])[0]}"


def test_files_of_the_hub_come_in_their_order(tmp_path, scratch, remote):
    for name in ("b", "a", "c"):
        remote(f"{name}.jsonl", jsonl([pair(name)]))
    assert [value["prompt"] for _, value, _ in lines(on_the_hub("*.jsonl"), tmp_path, scratch)] == ["a", "b", "c"]


def test_a_whole_curation_reads_the_hub(project, remote):
    remote("pile.jsonl", jsonl(TABLE))
    project.section["sources"][0] |= {"path": "pile.jsonl", "hub": f"org/set@{REVISION}"}
    project.section |= {
        "duplicates": {"near": None},
        "split": {"shares": {"train": 1, "dev": 0, "gate": 0, "confirm": 0}},
    }
    assert sorted(row.source for row in project.curate()["train"]) == [value["prompt"] for value in TABLE]


@pytest.mark.parametrize("path", ["none.jsonl", "*.csv"])
def test_a_file_that_the_hub_does_not_hold_is_the_users_fault(tmp_path, scratch, remote, path):
    remote("pile.jsonl", jsonl(TABLE))
    with pytest.raises(UserError) as refused:
        lines(on_the_hub(path), tmp_path, scratch)
    assert refused.value.text == f"curate.sources: pile: org/set@{REVISION} holds no file {path!r}"


def test_an_unknown_kind_of_file_on_the_hub_is_refused(tmp_path, scratch, remote):
    remote("pile.xlsx", b"x")
    with pytest.raises(UserError, match=r"^org/set/pile\.xlsx: files of this kind are not read"):
        lines(on_the_hub("pile.xlsx"), tmp_path, scratch)


@pytest.mark.parametrize("suffix", CONTENT)
def test_a_stream_that_breaks_off_is_the_networks_fault(tmp_path, scratch, remote, monkeypatch, suffix):
    class Broken(io.BytesIO):
        def read(self, *size):
            raise ConnectionResetError(104, "reset by peer")

        readinto = readline = read1 = __next__ = read

    remote(f"pile.{suffix}", CONTENT[suffix])
    monkeypatch.setattr(type(chunks_of.hub()), "open", lambda *arguments, **options: Broken(CONTENT[suffix]))
    with pytest.raises(EnvironmentFault) as fault:
        lines(on_the_hub(f"pile.{suffix}"), tmp_path, scratch)
    assert fault.value.text == f"org/set/pile.{suffix}: cannot be read from the Hub (ConnectionResetError)"


@pytest.mark.parametrize("path", ["pile.jsonl", "*.jsonl"])
def test_without_a_network_the_machine_is_at_fault(project, monkeypatch, capsys, path):
    def refuse(*arguments, **options):
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    project.section["sources"][0] |= {"path": path, "hub": f"org/set@{REVISION}"}
    assert guarded(project.curate) == ExitCode.ENVIRONMENT
    said = capsys.readouterr().err
    assert said.startswith(f"org/set@{REVISION}: cannot be read from the Hub (")
    assert "Traceback" not in said
    assert not any((project.root / "data" / "task").iterdir())

"""Downloads from a real index: one that this file serves on this machine."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from tunesmith.errors import EnvironmentFault, ExitCode
from tunesmith.packages import PackageFile, cache_dir, fetch, read_member

WHEEL = "toy-1.0-py3-none-any.whl"
SDIST = "toy-1.0.tar.gz"
JSON_PAGE = "application/vnd.pypi.simple.v1+json"
RETRY = (
    "\nhint: check the network and pip's index settings, then run the same command again; nothing half-written was kept"
)


def make_wheel():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/data.txt", "from the wheel")
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
    return buffer.getvalue()


def make_sdist():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in [("toy-1.0/data.txt", b"from the sdist"), ("toy-1.0/setup.py", b"raise SystemExit('ran')")]:
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
        folder = tarfile.TarInfo("toy-1.0/folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return buffer.getvalue()


# Made once: the archives hold the time at which they were written.
CONTENT = {WHEEL: make_wheel(), SDIST: make_sdist()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(cache, monkeypatch):
    """A package index on 127.0.0.1: `pages` maps a path to (status, content type, body, stated length)."""
    pages, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, kind, body, length = pages.get(self.path, (404, "text/plain", b"not here", 8))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    # Spares asking pip for the setting; nothing here speaks TLS.
    monkeypatch.setenv("PIP_CERT", "/etc/ssl/cert.pem")
    server.pages, server.asked = pages, asked
    serve_page(server, b"".join(b'<a href="/files/%s">%s</a>' % (n, n) for n in (WHEEL.encode(), SDIST.encode())))
    serve(server, WHEEL, CONTENT[WHEEL])
    serve(server, SDIST, CONTENT[SDIST])
    yield server
    stop(server)


def serve_page(server, body, kind="text/html", status=200):
    server.pages["/simple/toy/"] = (status, kind, body, len(body))


def serve(server, filename, body, length=None):
    server.pages[f"/files/{filename}"] = (200, "application/octet-stream", body, length or len(body))


def stop(server):
    server.shutdown()
    server.server_close()


def package(filename=WHEEL, **changes):
    content = CONTENT.get(filename, b"")
    pinned = {"project": "toy", "version": "1.0", "filename": filename, "sha256": hashlib.sha256(content).hexdigest()}
    return PackageFile(**pinned | changes)


def refusal(pinned):
    with pytest.raises(EnvironmentFault) as refused:
        fetch(pinned)
    assert refused.value.exit_code == ExitCode.ENVIRONMENT
    return refused.value.text


def kept(cache):
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("filename", "member", "content"),
    [(WHEEL, "toy/data.txt", b"from the wheel"), (SDIST, "toy-1.0/data.txt", b"from the sdist")],
)
def test_a_package_is_downloaded_once_and_then_taken_from_the_cache(index, cache, filename, member, content):
    pinned = package(filename)
    path = fetch(pinned)
    assert path == cache / "packages" / pinned.sha256[:16] / filename
    assert read_member(path, member) == content
    assert index.asked == ["/simple/toy/", f"/files/{filename}"]
    stop(index)
    assert fetch(pinned) == path
    assert kept(cache) == [filename]


def test_an_index_that_answers_in_json_is_read(index):
    file = {"filename": WHEEL, "url": f"/files/{WHEEL}", "hashes": {}}
    page = {"meta": {"api-version": "1.0"}, "name": "toy", "files": [file]}
    serve_page(index, json.dumps(page).encode(), JSON_PAGE)
    assert read_member(fetch(package()), "toy/data.txt") == b"from the wheel"


def test_the_index_is_the_one_in_pips_own_configuration(index, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = http://127.0.0.1:{index.server_port}/simple/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.delenv("PIP_CERT")
    assert fetch(package()).read_bytes() == CONTENT[WHEEL]


def test_other_bytes_than_the_pinned_are_refused_and_deleted(index, cache):
    serve(index, WHEEL, b"something else")
    pinned = package()
    assert refusal(pinned) == (
        f"toy==1.0: {WHEEL} has sha256 {hashlib.sha256(b'something else').hexdigest()}, the pin says {pinned.sha256}; "
        "refused and deleted\n"
        "hint: a cut download or a changed file: run the same command again, and do not trust it if this repeats"
    )
    assert kept(cache) == []


def test_a_cut_download_leaves_nothing(index, cache):
    whole = CONTENT[WHEEL]
    serve(index, WHEEL, whole[:50], length=len(whole))
    assert refusal(package()) == (
        f"toy==1.0: could not download {WHEEL} "
        f"(IncompleteRead: IncompleteRead(50 bytes read, {len(whole) - 50} more expected)){RETRY}"
    )
    assert kept(cache) == []
    serve(index, WHEEL, whole)
    assert fetch(package()).read_bytes() == whole


def test_without_a_network_the_cause_is_told(index, cache):
    stop(index)
    assert refusal(package()) == (
        f"toy==1.0: could not download {WHEEL} (ConnectionRefusedError: [Errno 111] Connection refused){RETRY}"
    )
    assert kept(cache) == []


def test_a_project_that_the_index_does_not_know_is_named(index):
    assert refusal(package(project="tyo")) == "tyo==1.0: the package index does not know 'tyo'"


def test_a_file_that_the_project_does_not_have_is_named(index):
    assert refusal(package(filename="toy-2.0.tar.gz")) == (
        "toy==1.0: the package index does not carry toy-2.0.tar.gz; check the pinned file name"
    )


def test_a_file_that_is_listed_and_not_there_is_told(index, cache):
    del index.pages[f"/files/{WHEEL}"]
    assert refusal(package()).startswith(f"toy==1.0: could not download {WHEEL} (HTTPError: 404 Client Error: ")
    assert kept(cache) == []


NO_INDEX = {
    "broken": (b"sorry", "text/html", 500, "HTTPError: 500 Server Error: "),
    "picture": (b"sorry", "image/png", 200, "UnsupportedContentTypeError: "),
    "not JSON": (b"sorry", JSON_PAGE, 200, "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    "other JSON": (b"{}", JSON_PAGE, 200, "ValidationError: 3 validation errors for Project"),
    "newer than we read": (
        b'{"meta": {"api-version": "9.0"}, "name": "toy", "files": []}',
        JSON_PAGE,
        200,
        "UnsupportedRepoVersionError: ",
    ),
}


@pytest.mark.parametrize(("body", "kind", "status", "cause"), NO_INDEX.values(), ids=NO_INDEX.keys())
def test_an_answer_that_is_no_index_page_is_told(index, body, kind, status, cause):
    serve_page(index, body, kind, status)
    assert refusal(package()).startswith(f"toy==1.0: could not download {WHEEL} ({cause}")


def test_a_damaged_file_in_the_cache_is_downloaded_again(index):
    path = fetch(package())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert fetch(package()).read_bytes() == CONTENT[WHEEL]
    assert index.asked == ["/simple/toy/", f"/files/{WHEEL}"] * 2


def test_a_damaged_file_in_the_cache_is_not_given_out_when_the_index_is_gone(index, cache):
    fetch(package()).write_bytes(b"damaged")
    stop(index)
    assert refusal(package()).startswith(f"toy==1.0: could not download {WHEEL} (")
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("filename", "member"), [(WHEEL, "toy/absent.txt"), (SDIST, "toy-1.0/absent.txt"), (SDIST, "toy-1.0/folder")]
)
def test_a_missing_member_is_named(tmp_path, filename, member):
    (tmp_path / filename).write_bytes(CONTENT[filename])
    with pytest.raises(EnvironmentFault) as refused:
        read_member(tmp_path / filename, member)
    assert refused.value.text == f"{filename}: holds no member {member!r}; the pin names another release"


@pytest.mark.parametrize("sha256", ["", "0" * 63, "A" * 64, "0" * 65])
def test_a_pin_is_a_whole_sha256(sha256):
    with pytest.raises(ValidationError):
        package(sha256=sha256)


def test_the_cache_is_the_users_unless_the_environment_names_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNESMITH_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_dir().name == "tunesmith"

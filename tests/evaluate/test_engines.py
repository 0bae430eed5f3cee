"""An exported form behind a server is judged by the same prompts and the same score as the model in this process."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import EnvironmentFault
from tunesmith.evaluate.engines import ServerEngine
from tunesmith.evaluate.generate import settings_for
from tunesmith.evaluate.stage import run_server
from tunesmith.evaluate.ways import Way
from tunesmith.files import read_json, read_jsonl
from tunesmith.line import Line

BROKEN = [1, 1, 1]
"""A prompt that the server answers with nothing."""


@pytest.fixture
def line(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Line:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    line = Line("smoke")
    line.curate()
    return line


@pytest.fixture
def server(line: Line) -> Iterator[tuple[str, list[Any]]]:
    """The tiny base behind OpenAI's completions; tells what it was asked."""
    asked: list[Any] = []
    engine = line.arena.engine(line.base_model, {"base": line.base.digest})

    class Completions(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            if body["model"] != "tiny":
                self.send_error(404, "no such model")
                return
            choices = []
            if body["prompt"] != BROKEN:
                settings = settings_for(line.arena.renderer, body["max_tokens"])
                answer = engine.answer([body["prompt"]], settings, prefix=0, label="")[0]
                choices = [{"text": answer.text, "finish_reason": "stop" if answer.ended else "length"}]
            content = json.dumps({"choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", asked
    http.shutdown()
    http.server_close()


def test_a_served_model_is_an_arm_like_any_other(line: Line, server: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, asked = server
    arena, few = line.arena, line.dataset.rows("gate")[:5]
    arena.dataset.rows = lambda split: few  # type: ignore[method-assign]
    run_server(arena, "served_tiny", f"tiny@{url}", tmp_path / "served")
    arena.run(arena.engine(line.base_model, {"base": "b"}), Way("zero_shot"), "gate", tmp_path / "ours" / "arms")
    served = read_jsonl(tmp_path / "served" / "arms" / "served_tiny.jsonl")
    ours = read_jsonl(tmp_path / "ours" / "arms" / "zero_shot.jsonl")
    for key in ("id", "prediction", "ended", "tokens_in", "scores", "replayed"):
        assert [row[key] for row in served] == [row[key] for row in ours], key
    # The one prompt function's ids, greedily, and no template of the server's.
    assert [each["prompt"] for each in asked] == arena.prompts(few, Way("zero_shot"))
    assert {(each["path"], each["temperature"], each["max_tokens"]) for each in asked} == {("/v1/completions", 0, 24)}
    about = read_json(tmp_path / "served" / "arms" / "served_tiny.json")
    assert about["weights"] == {"server": f"tiny at {url}"}
    assert about["computed_on"] == {"server": url}


def test_what_a_server_holds_is_not_proven_so_nothing_is_kept(
    line: Line, server: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, asked = server
    arena = line.arena
    few = arena.dataset.rows("gate")[:2]
    arena.dataset.rows = lambda split: few  # type: ignore[method-assign]
    for name in ("once", "twice"):
        run_server(arena, "served_tiny", f"tiny@{url}", tmp_path / name)
    assert len(asked) == 4


def test_a_server_that_does_not_answer_is_the_environments_fault(line: Line, server: tuple[str, list[Any]]) -> None:
    url, _ = server
    renderer, settings = line.arena.renderer, line.arena.settings
    for engine, prompt, said in (
        (ServerEngine(url, "other", renderer), [1, 2], "404"),
        (ServerEngine(url, "tiny", renderer), BROKEN, "IndexError"),
        (ServerEngine("http://127.0.0.1:9/v1", "tiny", renderer), [1], "ConnectError"),
    ):
        with pytest.raises(EnvironmentFault, match=said):
            engine.answer([prompt], settings, prefix=0, label="")


def test_a_server_takes_no_constraint(line: Line) -> None:
    engine = ServerEngine("http://127.0.0.1:9/v1", "tiny", line.arena.renderer)
    with pytest.raises(ValueError, match="decodes freely"):
        engine.answer([[1]], line.arena.settings, prefix=0, label="", begun=[[1]])

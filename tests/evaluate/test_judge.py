"""A judge is asked twice, its flips are counted, and it decides nothing: against a server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.evaluate.answers import row
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.evaluate import judge as judge_module
from tunesmith.evaluate.judge import Judge, judge_lines
from tunesmith.scoring_judge import JudgeSection

KEY = "sk-not-a-real-key"
Said = Callable[[str, str], Any]


class Server:
    """An OpenAI-compatible endpoint that says what `said` makes of the two answers shown."""

    def __init__(self) -> None:
        self.said: Said = lambda first, second: "tie"
        self.asked: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
                status = server.statuses.pop(0) if server.statuses else 200
                shown = body["messages"][1]["content"]
                first, second = (
                    shown.partition(f"<answer_{name}>\n")[2].partition(f"\n</answer_{name}>")[0] for name in "AB"
                )
                said = server.said(first, second)
                content = said if said.startswith("{") or " " in said else json.dumps({"better": said})
                reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                raw = json.dumps(reply).encode() if status == 200 else f"no: {self.headers['Authorization']}".encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def section(self) -> JudgeSection:
        """A recipe's judge behind this endpoint."""
        endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return JudgeSection(endpoint=endpoint, model="m", key_env="JUDGE_KEY", rows=3, timeout_s=5.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(judge_module, "WAITS_S", (0.0, 0.0))
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_both_orders_are_asked_with_the_key_of_the_environment(server: Server) -> None:
    Judge(server.section).compare("why {so}?", "mine", "gold")
    assert [one["path"] for one in server.asked] == ["/v1/chat/completions"] * 2
    assert {one["key"] for one in server.asked} == {f"Bearer {KEY}"}
    assert {(one["model"], one["temperature"]) for one in server.asked} == {("m", 0)}
    shown = [one["messages"][1]["content"] for one in server.asked]
    assert shown[0].index("mine") < shown[0].index("gold")
    assert shown[1].index("gold") < shown[1].index("mine")
    assert "why {so}?" in shown[0]


@pytest.mark.parametrize(
    ("said", "preferred", "flipped", "unread"),
    [
        (lambda first, second: "A" if first == "mine" else "B", 1.0, False, 0),
        (lambda first, second: "A" if first == "gold" else "B", 0.0, False, 0),
        (lambda first, second: "tie", 0.5, False, 0),
        (lambda first, second: "A", 0.5, True, 0),  # it likes whoever stands first
        (lambda first, second: "B", 0.5, True, 0),
        (lambda first, second: "A" if first == "mine" else "tie", 0.5, False, 0),
        (lambda first, second: "I cannot say", 0.5, False, 2),
        (lambda first, second: '{"better": "C"}', 0.5, False, 2),
        (lambda first, second: 'Well: {"better": "A"} I think' if first == "mine" else "B", 1.0, False, 0),
    ],
)
def test_a_preference_counts_only_where_both_orders_agree(
    said: Said, preferred: float, flipped: bool, unread: int, server: Server
) -> None:
    server.said = said
    opinion = Judge(server.section).compare("?", "mine", "gold")
    assert (opinion.preferred, opinion.flipped, opinion.unread) == (preferred, flipped, unread)


def lines(answers: list[str]) -> tuple[list[Any], list[dict[str, Any]]]:
    rows = [row("gold", row_id=f"row-{i}") for i in range(len(answers))]
    return rows, [{"id": one.id, "prediction": answer} for one, answer in zip(rows, answers, strict=True)]


def test_flips_and_the_love_of_the_first_place_are_told(server: Server) -> None:
    server.said = lambda first, second: "A"
    rows, scored = lines(["a", "b", "gold"])
    told = judge_lines(server.section, rows, scored)
    assert (told["rows"], told["asked"], told["flip_rate"], told["first_picked"]) == (3, 2, 1.0, 1.0)
    assert told["preferred"] == 0.5
    assert len(server.asked) == 4  # of an answer that is the reference nobody is asked
    assert scored[2]["judge"] == {"preferred": 0.5, "flipped": False, "unread": 0}


def test_no_more_rows_are_judged_than_the_recipe_says_and_the_same_in_every_arm(server: Server) -> None:
    rows, scored = lines([f"answer {i}" for i in range(9)])
    judge_lines(server.section, rows, scored)
    judged = [line["id"] for line in scored if "judge" in line]
    assert len(judged) == 3
    _, other = lines(["x"] * 9)
    judge_lines(server.section, rows, other)
    assert [line["id"] for line in other if "judge" in line] == judged


def test_a_busy_endpoint_is_asked_again_and_a_dead_one_is_told(server: Server) -> None:
    server.statuses = [429, 503]
    assert Judge(server.section).compare("?", "a", "b").unread == 0
    server.statuses = [500] * 3
    with pytest.raises(EnvironmentFault, match="status 500"):
        Judge(server.section).compare("?", "a", "b")


@pytest.mark.parametrize("status", [401, 302])
def test_a_refusal_is_told_at_once_without_the_key_and_no_redirect_is_followed(status: int, server: Server) -> None:
    server.statuses = [status]
    with pytest.raises(EnvironmentFault, match=f"status {status}") as told:
        Judge(server.section).compare("?", "a", "b")
    assert KEY not in told.value.text
    assert len(server.asked) == 1


def test_a_key_that_is_not_set_is_the_users_fault(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="the environment variable JUDGE_KEY is not set"):
        Judge(server.section)
    assert "key_env" in JudgeSection.model_fields
    assert "key" not in JudgeSection.model_fields

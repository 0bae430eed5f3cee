"""S9 and S13: a whole run, from sources to bundle, says no secret and knocks at no door."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.conftest import IN_ENVIRONMENT, IN_ROWS, OPTIONS, SECRETS, Spoiled, Walked
from tunesmith.files import read_json


def parts(secret: str) -> list[bytes]:
    """What of a secret must not be found: its lines, as text and as JSON holds them."""
    return [line.encode() for line in secret.splitlines() if "PRIVATE" not in line and len(line) > 15]


def written(root: Path) -> dict[str, bytes]:
    """Every file that a run wrote."""
    files = [path for name in ("runs", "dist", "data") for path in (root / name).rglob("*") if path.is_file()]
    assert len(files) > 60
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_no_socket_is_opened_on_the_whole_line(walked: Walked) -> None:
    assert walked.tried == ""
    assert (walked.root / "dist" / "smoke-0.1.0" / "parity.json").is_file()


@pytest.mark.parametrize("name", [*IN_ROWS, *IN_ENVIRONMENT])
def test_a_secret_of_a_row_or_of_the_environment_is_in_no_file_and_in_no_word(walked: Walked, name: str) -> None:
    secret = (IN_ROWS | IN_ENVIRONMENT)[name]
    script = (walked.root / "scripts" / "curate_smoke.py").read_text()
    assert (name in IN_ROWS) == (repr(secret) in script)
    for part in parts(secret):
        assert part.decode() not in walked.said
        assert [path for path, content in written(walked.root).items() if part in content] == []


def test_what_was_redacted_is_known_to_have_been_there(walked: Walked) -> None:
    text = "".join(
        (walked.root / "data" / "smoke" / f"{split}.jsonl").read_text() for split in ("train", "dev", "gate")
    )
    assert text.count("[SECRET_1]") > 5
    assert read_json(walked.root / "data" / "smoke" / "manifest.json")


def test_a_row_with_a_secret_that_may_not_be_redacted_stops_curation_unnamed(spoiled: Spoiled) -> None:
    for path in (spoiled.root / "data" / "smoke").glob("*"):
        if path.name != "schema.json":
            path.unlink()
    done = spoiled("curate", "smoke", *OPTIONS[:2], "--workers", "1")
    assert done.code == 2, done.said
    assert "secret" in done.said
    for secret in SECRETS.values():
        assert not any(part.decode() in done.said for part in parts(secret))
    assert [path.name for path in (spoiled.root / "data" / "smoke").iterdir()] == ["schema.json"]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "option", ["description={}", "trainer.hub_token={}", "lora.r={}", "{}", "{}=1", "curate.labels=[a, {}]"]
)
def test_a_secret_in_an_option_is_refused_and_not_repeated(spoiled: Spoiled, option: str, name: str) -> None:
    secret = SECRETS[name]
    done = spoiled("recipe", "validate", "smoke", "--set", option.format(secret))
    assert done.code == 2, done.said
    assert "holds a secret (" in done.said
    assert not any(part.decode() in done.said for part in parts(secret))


def test_a_secret_in_a_recipe_is_refused_with_its_line_and_not_repeated(spoiled: Spoiled) -> None:
    path = spoiled.root / "recipes" / "leaky.yaml"
    path.write_text(f"extends: smoke\nname: leaky\ntrainer:\n  hub_token: {SECRETS['Hub token']}\n")
    done = spoiled("recipe", "validate", "leaky")
    assert done.code == 2
    assert "recipes/leaky.yaml:4: holds a secret (Hugging Face token)" in done.said
    assert SECRETS["Hub token"] not in done.said


@pytest.mark.parametrize("call", ["create_connection(('127.0.0.1', 1))", "getaddrinfo('localhost', 1)"])
def test_the_spy_sees_what_a_process_of_a_process_tries(walked: Walked, tmp_path: Path, call: str) -> None:
    """What proves that nothing was tried sees it when it is."""
    inner = f"import socket; socket.{call}"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    environment = os.environ | {"PYTHONPATH": str(walked.root.parent / "spy"), "NETWORK_LOG": str(tmp_path / "log")}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert (tmp_path / "log").read_text().startswith("socket.getaddrinfo")

"""What a recipe says of a judge: a model whose opinion is reported beside the scores and decides nothing."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tunesmith.sections import Key, Section


class JudgeSection(Section):
    """A model that is asked which of two answers is better: a second opinion, which no term of the gate reads."""

    endpoint: str
    """Base URL of an OpenAI-compatible API, such as `https://api.example.com/v1`; plain http only to this machine."""
    model: Key
    """The model's name there. Of another family than the one that wrote the rows, or it prefers its own."""
    key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key; none sends none."""
    rubric: Annotated[str, Field(min_length=1)] = "Which answer fulfils the request better: correct, complete, concise?"
    """What makes an answer better."""
    rows: Annotated[int, Field(ge=1)] = 100
    """At most so many gate rows of each arm are judged, two calls a row."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one call."""

    @field_validator("endpoint")
    @classmethod
    def _an_endpoint(cls, value: str) -> str:
        url = urlsplit(value)
        here = url.hostname in ("127.0.0.1", "localhost", "::1")
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError("must read `https://host/v1`")
        if url.username is not None or url.password is not None:
            raise ValueError("must hold no user and no password; name the variable of the key in `key_env`")
        if url.scheme == "http" and not here:
            raise ValueError("a key and rows go over https only; plain http reaches this machine alone")
        return value.rstrip("/")

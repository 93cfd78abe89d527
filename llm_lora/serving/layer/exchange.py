"""The record of one request: created when it arrives, filled in as it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llm_lora.schema import AnswerSchema, KindName, Verdict

if TYPE_CHECKING:
    from llm_lora.store import Version

OnInvalid = Literal["flag", "retry", "error"]
"""What to do with an invalid answer: report it, retry once, or answer 422."""

Outcome = KindName | Literal["truncated", "unjudged", "painted", "error", "aborted"]
"""How an exchange ended: with a kind of verdict, or otherwise. `unjudged`: no schema was enforced,
or there was nothing to judge; `truncated`: the token limit cut the answer off; `painted`: pictures
were sent; `error`: the server refused or failed; `aborted`: the client went away."""


@dataclass(slots=True)
class Exchange:
    """A request to a model and its answer.

    The layer sets the first group before the request goes to the server; the code that passes the
    answer on sets the second. An exchange belongs to one `version` from arrival to end; None
    stands for the base.
    """

    id: str
    route: str
    started: float
    """`time.monotonic()` at arrival, in seconds."""
    asked: str
    """The model as the client named it."""
    version: Version | None = None
    schema: AnswerSchema | None = None
    """The schema that judges the answer; None where none is enforced."""
    stream: bool = False
    on_invalid: OnInvalid = "flag"
    include_usage_added: bool = False
    """The layer asked for the usage chunk of a stream, which the client did not."""

    status: int = 0
    """HTTP status that the client got; 0 until it is sent."""
    outcome: Outcome = "unjudged"
    verdict: Verdict | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    retried: bool = False
    first_token: float | None = None
    """`time.monotonic()` when the first piece of a streamed answer came."""
    answers: tuple[str, ...] = ()
    """The answers, one text per choice; only where the access log includes contents."""

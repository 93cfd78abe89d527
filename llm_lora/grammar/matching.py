"""The grammar that a decoder compiles from a schema, byte by byte, without a model or tokenizer.

Two decoders are supported: `vllm`, which is llguidance as the server and the engine use it, and
`outlines`, which is outlines-core, the default backend of Outlines. Both work on bytes, so a result
for the bytes of an answer holds for every tokenizer.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import Any, Literal, Protocol

import llguidance
import outlines_core
from outlines_core.json_schema import build_regex_from_schema

from llm_lora.schema import AnswerSchema, dumps

Backend = Literal["vllm", "outlines"]
BACKENDS: tuple[Backend, ...] = ("vllm", "outlines")
LIBRARY: dict[Backend, str] = {"vllm": "llguidance", "outlines": "outlines-core"}

END = 256
"""The symbol after the 256 bytes: the answer is complete."""

COMPILE_SECONDS = 5.0
"""Time limit for outlines-core: a server could not block that long on one request."""

# Probabilities while an answer is drawn: of preferring a byte that closes something, and a plain
# ASCII character. They keep drawn answers short and mostly readable.
_CLOSING, _PLAIN = 0.15, 0.9
_CLOSERS = frozenset(b'"}],')


class Refused(ValueError):
    """The decoder cannot compile a schema; the message is the decoder's."""


class Grammar(Protocol):
    """A compiled schema, and the state of one answer written under it."""

    def restart(self) -> None:
        """Begin a new answer.

        Raises:
            Refused: the schema cannot be compiled (outlines-core compiles it only here).
        """

    def allowed(self) -> list[int]:
        """The bytes that may come next, and END if the answer may be complete."""

    def push(self, byte: int) -> None:
        """Write an allowed byte."""

    def taken(self, text: bytes) -> int:
        """Restart, write as much of `text` as is allowed, and return how many bytes that was."""


class _Guidance:
    def __init__(self, text: str) -> None:
        tokenizer = _byte_tokenizer()
        grammar = llguidance.grammar_from("json_schema", text)
        self._end: int = tokenizer.eos_token
        self._matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if error := self._matcher.get_error():
            raise Refused(error.splitlines()[0])

    def restart(self) -> None:
        self._matcher.reset()

    def allowed(self) -> list[int]:
        if self._matcher.is_stopped():
            return [END]
        bias = self._matcher.compute_logit_bias()
        end = [END] if bias[self._end] else []
        return [*compress(range(256), bias), *end]

    def push(self, byte: int) -> None:
        self._matcher.consume_token(byte)

    def taken(self, text: bytes) -> int:
        self._matcher.reset()
        count: int = self._matcher.try_consume_tokens(list(text))
        return count


class _Outlines:
    """The index, by far the slower part, is built when the first answer begins."""

    def __init__(self, text: str) -> None:
        # The empty pattern: no white space between the parts of an answer.
        self._pattern: str = _in_time(lambda: build_regex_from_schema(text, ""))
        self._index: Any = None

    def restart(self) -> None:
        if self._index is None:
            self._index = _in_time(lambda: outlines_core.Index(self._pattern, _byte_vocabulary()))
        self._guide = outlines_core.Guide(self._index)

    def allowed(self) -> list[int]:
        found: list[int] = self._guide.get_tokens()
        return found

    def push(self, byte: int) -> None:
        self._guide.advance(byte, return_tokens=False)

    def taken(self, text: bytes) -> int:
        self.restart()
        for count, byte in enumerate(text):
            if not self._guide.accepts_tokens([byte]):
                return count
            self.push(byte)
        return len(text)


def _in_time(compile_: Callable[[], Any]) -> Any:
    """The result of an outlines-core compiler, under a time limit.

    The compiler can run for hours on a harmless schema and cannot be stopped, so after the limit
    its daemon thread is abandoned.

    Raises:
        Refused: it fails, panics, or takes too long.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((compile_(), None))
        except BaseException as error:  # Rust panics are not Exceptions but carry the reason.
            outcome.append((None, str(error).strip().splitlines()[0]))

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(COMPILE_SECONDS)
    if not outcome:
        raise Refused(f"the grammar was not compiled within {COMPILE_SECONDS:g} seconds")
    result, failure = outcome[0]
    if failure is not None:
        raise Refused(failure)
    return result


@cache
def _byte_tokenizer() -> Any:
    return llguidance.LLTokenizer("byte")


@cache
def _byte_vocabulary() -> Any:
    return outlines_core.Vocabulary(END, {bytes([byte]): [byte] for byte in range(256)})


_COMPILERS: dict[Backend, Callable[[str], Grammar]] = {"vllm": _Guidance, "outlines": _Outlines}


def text_for(schema: AnswerSchema, backend: Backend) -> str:
    """The schema as it is passed to a decoder."""
    return schema.constraint if backend == "vllm" else dumps(schema.document)


def compile_schema(schema: AnswerSchema, backend: Backend = "vllm") -> Grammar:
    """The grammar of a schema.

    Raises:
        Refused: the decoder does not accept the schema.
    """
    return _COMPILERS[backend](text_for(schema, backend))


@dataclass(frozen=True)
class Stop:
    """Where a grammar refuses a text: the number of accepted bytes, and what could follow them."""

    at: int
    allowed: tuple[int, ...]


def stop(grammar: Grammar, text: str) -> Stop | None:
    """Where a grammar refuses the text of an answer; None if it accepts all of it."""
    data = text.encode()
    count = grammar.taken(data)
    allowed = grammar.allowed()
    if count == len(data) and END in allowed:
        return None
    return Stop(count, tuple(allowed))


def draw(grammar: Grammar, source: random.Random, most: int = 400) -> str | None:
    """The text of an answer drawn from a grammar; None if it did not end within `most` bytes.

    The draw is a random walk over the allowed bytes. A uniform walk would rarely leave a string
    or an array, so closing bytes are favoured, and after half of `most` they are always taken
    when allowed.
    """
    grammar.restart()
    written = bytearray()
    while len(written) < most:
        late = len(written) > most // 2
        allowed = grammar.allowed()
        if not allowed:
            return None
        if END in allowed and (len(allowed) == 1 or late or source.random() < 0.5):
            return written.decode(errors="replace")
        byte = _pick([one for one in allowed if one != END], source, late=late)
        written.append(byte)
        grammar.push(byte)
    return None


def _pick(allowed: Sequence[int], source: random.Random, *, late: bool) -> int:
    chance = source.random()
    closing = [byte for byte in allowed if byte in _CLOSERS]
    if closing and (late or chance < _CLOSING):
        return source.choice(closing)
    plain = [byte for byte in allowed if 32 <= byte < 127]
    return source.choice(plain if plain and chance < _PLAIN else allowed)

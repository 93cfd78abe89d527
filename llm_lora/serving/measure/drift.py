"""Comparison of a running server with the engine that wrote a run's report.

The server gets every held-out prompt as a user would send it: without the system prompt, the
sampling and the schema that it adds by itself. Its answers are judged and scored by the report's
own code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from llm_lora import files
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.example import Answer, Example, Message
from llm_lora.progress import Listener, Progress, Watcher
from llm_lora.report.text import FORMS, Judged
from llm_lora.report.text import answers as report
from llm_lora.run import Run
from llm_lora.scores import scoring as scores
from llm_lora.serving.client import Client, Reply
from llm_lora.store import ServedRow
from llm_lora.tasks.text import Prepared

SERVED = "served.json"

TOLERANCE = 0.02
"""How far field F1 may differ. Two programs round bf16 sums differently, which now and
then decides a near tie the other way; a wrong prompt, adapter or base costs far more."""

_ASKED = {"unconstrained": {"schema": "off"}, "constrained": {"on_invalid": "flag"}}
"""The `llm_lora` field of a request that yields each form of the report."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check(
    here: Run,
    prepared: Prepared,
    client: Client,
    watch: Watcher,
    *,
    concurrency: int = 8,
) -> dict[str, Any]:
    """Ask the server the run's held-out prompts, compare, and write `served.json`.

    Args:
        here: a finished run; `prepared` what it was made from.
        client: of the server, which must serve this very adapter under any name.
        watch: receives progress.
        concurrency: requests at a time.

    Returns:
        the document written. `passed` is false where token ids differ, a constrained
        answer that was not cut off is invalid, or `field_f1` differs by more than `TOLERANCE`;
        `reasons` lists which.

    Raises:
        UserError: the server does not answer, or does not serve this adapter.
    """
    started = time.monotonic()
    adapter = adapters.read(here.adapter)
    held_out = prepared.dataset.held_out
    engine = _engine_answers(here, held_out)
    model = _model(client, adapter)
    watch.say(
        f"{client.url} serves it as {model}; {len(held_out)} prompts, {concurrency} at a time"
    )
    prompts = [_without(example.prompt, adapter.manifest.system) for example in held_out]

    watch.stage("token ids")
    served_ids = _each(partial(client.tokenize, model), prompts, concurrency, watch.progress)
    tokens = _compare_ids(prepared, held_out, served_ids)

    forms: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for form, answers in engine.items():
        watch.stage(f"server, {form}")
        ask = partial(client.chat, model, llm_lora=_ASKED[form])
        replies = _each(ask, prompts, concurrency, watch.progress)
        off = prepared.recipe.check.tolerance
        ours = report.judge(prepared.schema, held_out, answers, off)
        served = [_answer(reply) for reply in replies]
        theirs = report.judge(prepared.schema, held_out, served, off)
        forms[form] = {
            "engine": report.part_figures(ours).to_json(),
            "server": report.part_figures(theirs).to_json(),
            "identical": _share(a.answer == b.answer for a, b in zip(ours, theirs, strict=True)),
            "same_value": _share(_same(a, b) for a, b in zip(ours, theirs, strict=True)),
        }
        rows += [_row(form, *three) for three in zip(ours, theirs, replies, strict=True)]

    reasons = _reasons(tokens, forms, rows)
    document = {
        "format": 1,
        "server": client.url,
        "model": model,
        "adapter_digest": adapter.digest,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sampled": prepared.recipe.generate.temperature > 0,
        "seconds": round(time.monotonic() - started, 1),
        "tokens": tokens,
        "forms": forms,
        "passed": not reasons,
        "reasons": reasons,
        "answers": rows,
    }
    files.write_json(here.folder / SERVED, document)
    return document


def _model(client: Client, adapter: Adapter) -> str:
    """The name under which the server serves exactly these weights.

    Raises:
        UserError: it does not serve them, or does not answer.
    """
    known = []
    for one in client.adapters():
        for version in one.versions:
            if isinstance(version, ServedRow) and version.adapter_digest == adapter.digest:
                return version.id
            known.append(version.id)
    raise UserError(
        f"the server does not serve this adapter ({adapter.digest[:12]}); "
        f"it serves {', '.join(known) or 'none'}",
        where=client.url,
        fix="publish it there: llm-lora publish RUN --as NAME",
    )


def _engine_answers(here: Run, held_out: Sequence[Example]) -> dict[str, list[Answer]]:
    """The adapter's answers of the report, by form, in the order of the held-out examples."""
    if not here.answers.is_file():
        raise UserError(
            "this run has no report to compare with",
            where=str(here.folder),
            fix="write one: llm-lora evaluate RUN",
        )
    found: dict[str, dict[str, Answer]] = {}
    with here.answers.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["model"] == "adapter":
                answer = Answer(row["answer"], row["tokens"], row["finish"])
                found.setdefault(row["form"], {})[row["id"]] = answer
    try:
        return {
            form: [found[form][example.id] for example in held_out]
            for form in FORMS
            if form in found
        }
    except KeyError as missing:
        raise UserError(
            f"no answer to the held-out prompt {missing.args[0]}",
            where=str(here.answers),
            fix="rewrite the report: llm-lora evaluate RUN",
        ) from None


def _without(prompt: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The prompt as a user sends it: without the adapter's system prompt, which the server adds."""
    return prompt[1:] if prompt[0] == Message("system", system or "") else prompt


def _each(
    call: Callable[[_Item], _Result],
    items: Sequence[_Item],
    concurrency: int,
    listener: Listener,
) -> list[_Result]:
    """The results of a call for each item, in their order; the first error ends it."""
    started = time.monotonic()
    with ThreadPoolExecutor(concurrency) as pool:
        pending = [pool.submit(call, item) for item in items]
        try:
            for done, future in enumerate(as_completed(pending), 1):
                future.result()
                each = (time.monotonic() - started) / done
                left = (len(items) - done) * each
                listener(Progress("asking", done, len(items), seconds_left=left))
        finally:
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in pending]


def _compare_ids(
    prepared: Prepared, held_out: Sequence[Example], served: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Whether the server gives the model the same token ids as training did."""
    first, equal = None, 0
    for example, ids in zip(held_out, served, strict=True):
        trained = prepared.chat.prompt_ids(example.prompt)
        if list(ids) == trained:
            equal += 1
        elif first is None:
            at = _parting(trained, ids)
            first = {
                "id": example.id,
                "position": at,
                "training": prepared.chat.decode(trained[at : at + 12], skip_special=False),
                "server": prepared.chat.decode(ids[at : at + 12], skip_special=False),
            }
    return {"prompts": len(held_out), "equal": equal, "first_difference": first}


def _answer(reply: Reply) -> Answer:
    return Answer(reply.text, reply.answer_tokens, "length" if reply.finish == "length" else "stop")


def _same(ours: Judged, theirs: Judged) -> bool:
    """Whether two answers have the same content, however it is formatted."""
    if not ours.verdict.parsed or not theirs.verdict.parsed:
        return ours.answer == theirs.answer
    return scores.same(ours.verdict.value, theirs.verdict.value)


def _share(hits: Iterable[bool]) -> float | None:
    found = list(hits)
    return round(sum(found) / len(found), 6) if found else None


def _parting(one: Sequence[object], other: Sequence[object]) -> int:
    """The first index at which two sequences differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _row(form: str, ours: Judged, theirs: Judged, reply: Reply) -> dict[str, Any]:
    """One prompt's two answers; `differs_at` is the first character that differs."""
    row: dict[str, Any] = {
        "id": ours.id,
        "part": ours.part,
        "form": form,
        "server": theirs.answer,
        "finish": theirs.finish,
        "verdict": theirs.verdict.to_dict(),
        "servers_verdict": reply.judged.get("verdict"),
        "score": round(theirs.score, 6),
    }
    if ours.answer != theirs.answer:
        row |= {
            "prompt": ours.prompt,
            "engine": ours.answer,
            "engine_score": round(ours.score, 6),
            "differs_at": _parting(ours.answer, theirs.answer),
        }
    return row


def _reasons(
    tokens: Mapping[str, Any], forms: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Why server and engine count as different; empty where they agree."""
    reasons = []
    if tokens["equal"] < tokens["prompts"]:
        differing = tokens["prompts"] - tokens["equal"]
        reasons.append(
            f"the server's token ids differ from those of training for {differing} of "
            f"{tokens['prompts']} prompts"
        )
    broken = [
        row
        for row in rows
        if row["form"] == "constrained"
        and row["verdict"]["kind"] != "valid"
        and row["finish"] != "length"
    ]
    if broken:
        reasons.append(f"{len(broken)} constrained answers do not fit the schema")
    for form, figures in forms.items():
        ours, theirs = (figures[side]["all"]["field_f1"] for side in ("engine", "server"))
        if ours is not None and theirs is not None and abs(ours - theirs) > TOLERANCE:
            reasons.append(
                f"field F1, {form}: {theirs:.3f} from the server, {ours:.3f} from the engine; "
                f"the tolerance is {TOLERANCE:g}"
            )
    return reasons

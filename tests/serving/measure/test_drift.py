"""The drift check against a server whose answers are known; the real server is in test_serving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.local_server import Application, serving

from llm_lora import files
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.example import Message
from llm_lora.progress import Progress
from llm_lora.recipe import loading as recipe
from llm_lora.run import Run
from llm_lora.serving.client import Client
from llm_lora.serving.measure import drift
from llm_lora.store.listing import Listed, ServedRow, Standing
from llm_lora.tasks.text import task as text_task
from llm_lora.tasks.text.task import Prepared

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


class Quiet:
    """Records progress."""

    def __init__(self) -> None:
        self.moments: list[Progress] = []

    def stage(self, title: str) -> None: ...
    def say(self, text: str) -> None: ...
    def checked(self, task: str, dataset: object) -> None: ...
    def began(self, here: object) -> None: ...
    def progress(self, progress: Progress) -> None:
        self.moments.append(progress)


@pytest.fixture
def made(small_recipe: Path, tmp_path: Path) -> tuple[Run, Prepared]:
    """A run as after training, with weights of ones and the references as its answers."""
    loaded = recipe.load(small_recipe)
    prepared = text_task.prepare(loaded)
    here = runs.create(tmp_path, "small", loaded.to_yaml)
    prepared.dataset.write(here.dataset)
    here.adapter.mkdir()
    shapes = {f"{MODULE}.lora_A.weight": (4, 8), f"{MODULE}.lora_B.weight": (8, 4)}
    save_file(
        {key: np.ones(shape, np.float32) for key, shape in shapes.items()},
        here.adapter / adapters.WEIGHTS,
    )
    files.write_json(here.adapter / adapters.CONFIG, {"r": 4, "lora_alpha": 8})
    text_task.seal(prepared, here)
    write_answers(here, prepared)
    return here, prepared


def write_answers(here: Run, prepared: Prepared) -> None:
    rows = [
        {
            "id": example.id,
            "model": model,
            "form": form,
            "answer": example.answer if model == "adapter" else "base",
            "finish": "stop",
            "tokens": 20,
        }
        for model in ("base", "adapter")
        for form in ("unconstrained", "constrained")
        for example in prepared.dataset.held_out
    ]
    files.write_jsonl(here.answers, rows)


class Server:
    """Answers as an llm-lora server would: adds the system prompt, knows the right answers."""

    def __init__(self, here: Run, prepared: Prepared) -> None:
        self.prepared = prepared
        self.system = adapters.read(here.adapter).manifest.system
        self.digest = adapters.read(here.adapter).digest
        self.right = {
            example.prompt[-1].content: example.answer for example in prepared.dataset.held_out
        }
        self.asked: list[dict[str, Any]] = []
        self.application = Application(
            {
                ("GET", "/v1/adapters"): lambda body: {"data": [self.listed()]},
                ("POST", "/tokenize"): self.tokenize,
                ("POST", "/v1/chat/completions"): self.chat,
            }
        )

    def listed(self) -> dict[str, Any]:
        rows = [
            ServedRow(
                number=number, id=f"visit@{number}", served="", adapter_digest=digest, base="tiny",
                rank=4, published="", age_seconds=0, passed=None, refused=None, requests=0,
                valid_rate=None, loaded=True, schema=None,
            )
            for number, digest in ((1, "f" * 64), (2, self.digest))
        ]  # fmt: skip
        return Listed(Standing("visit", 1, None, None, None), None, rows).to_json()

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = [Message("system", self.system)] if self.system else []
        messages += [Message(**message) for message in body["messages"]]
        return {"tokens": self.prepared.chat.prompt_ids(messages)}

    def text(self, body: dict[str, Any]) -> str:
        return self.right[body["messages"][-1]["content"]]

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        return {
            "choices": [{"message": {"content": self.text(body)}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 20},
        }


def check(server: Server, here: Run, prepared: Prepared, watch: Quiet | None = None) -> Any:
    with serving(server.application) as url, Client(url) as client:
        return drift.check(here, prepared, client, watch or Quiet(), concurrency=3)


def test_a_server_that_answers_as_the_engine_passes(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    count = len(prepared.dataset.held_out)
    server, watch = Server(here, prepared), Quiet()
    document = check(server, here, prepared, watch)
    assert document["passed"] and document["reasons"] == []
    assert document["model"] == "visit@2"
    assert document["tokens"] == {"prompts": count, "equal": count, "first_difference": None}
    for figures in document["forms"].values():
        assert figures["identical"] == figures["same_value"] == 1
        assert figures["engine"] == figures["server"]
        assert figures["server"]["all"]["field_f1"] == 1
        assert set(figures["server"]) == {"seen", "unseen", "all"}
    # As a user asks: system prompt, sampling and schema are left to the server.
    assert server.system
    assert {body["model"] for body in server.asked} == {"visit@2"}
    assert {message["role"] for body in server.asked for message in body["messages"]} == {"user"}
    asked = [json.dumps(body["llm_lora"]) for body in server.asked]
    assert asked == ['{"schema": "off"}'] * count + ['{"on_invalid": "flag"}'] * count
    assert server.asked[0].keys() == {"model", "messages", "llm_lora"}
    assert 1 < server.application.most <= 3
    assert [moment.done for moment in watch.moments] == [*range(1, count + 1)] * 3
    assert json.loads((here.folder / drift.SERVED).read_text()) == document


def test_answers_that_differ_are_counted_shown_and_judged(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    victims = {example.prompt[-1].content for example in prepared.dataset.held_out[:3]}

    class Drifting(Server):
        def text(self, body: dict[str, Any]) -> str:
            right = super().text(body)
            if body["messages"][-1]["content"] not in victims:
                return right
            if "schema" in body["llm_lora"]:  # the same content, formatted differently
                return json.dumps(json.loads(right))
            return right[:9] + "?"

    document = check(Drifting(here, prepared), here, prepared)
    free, constrained = document["forms"]["unconstrained"], document["forms"]["constrained"]
    assert (free["identical"], free["same_value"]) == (0.75, 1)
    assert free["server"]["all"]["field_f1"] == 1
    assert (constrained["identical"], constrained["same_value"]) == (0.75, 0.75)
    assert constrained["server"]["all"]["schema_valid"] == 0.75
    assert not document["passed"]
    assert document["reasons"][0] == "3 constrained answers do not fit the schema"
    assert document["reasons"][1].startswith("field F1, constrained: 0.85")
    assert len(document["reasons"]) == 2
    [first, *others] = [row for row in document["answers"] if row["form"] == "constrained"]
    assert first["differs_at"] == 9
    assert first["engine"] == prepared.dataset.held_out[0].answer
    assert first["verdict"]["kind"] == "not_json"
    assert ["engine" in row for row in others] == [True] * 2 + [False] * 9


def test_other_token_ids_are_named_where_they_part(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    server = Server(here, prepared)
    server.system = "Answer in verse."
    document = check(server, here, prepared)
    assert not document["passed"]
    assert document["tokens"]["equal"] == 0
    first = document["tokens"]["first_difference"]
    assert first["id"] == prepared.dataset.held_out[0].id
    assert first["server"].startswith("Answer") != first["training"].startswith("Answer")
    count = len(prepared.dataset.held_out)
    assert document["reasons"] == [
        f"the server's token ids differ from those of training for {count} of {count} prompts"
    ]


def test_an_answer_that_was_cut_off_is_no_breach_of_the_schema(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    victim = prepared.dataset.held_out[0].prompt[-1].content

    class Cutting(Server):
        def chat(self, body: dict[str, Any]) -> dict[str, Any]:
            answer = super().chat(body)
            if body["messages"][-1]["content"] == victim:
                answer["choices"][0] |= {"message": {"content": "{"}, "finish_reason": "length"}
            return answer

    document = check(Cutting(here, prepared), here, prepared)
    assert not any("fit the schema" in reason for reason in document["reasons"])
    assert document["forms"]["constrained"]["server"]["all"]["cut_off"] == 1


def test_a_server_without_this_adapter_is_not_asked(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    server = Server(here, prepared)
    server.digest = "e" * 64
    with pytest.raises(UserError, match="does not serve this adapter") as caught:
        check(server, here, prepared)
    assert "llm-lora publish" in str(caught.value)
    assert server.asked == [] and not (here.folder / drift.SERVED).exists()


def test_a_run_without_all_answers_is_sent_to_be_evaluated(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    lines = here.answers.read_text().splitlines(keepends=True)
    here.answers.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="llm-lora evaluate RUN"):
        check(Server(here, prepared), here, prepared)
    here.answers.unlink()
    with pytest.raises(UserError, match="llm-lora evaluate RUN"):
        check(Server(here, prepared), here, prepared)


def test_without_a_schema_only_free_answers_are_compared(made: tuple[Run, Prepared]) -> None:
    here, prepared = made
    rows = [json.loads(line) for line in here.answers.open()]
    files.write_jsonl(here.answers, [row for row in rows if row["form"] == "unconstrained"])
    document = check(Server(here, prepared), here, replace(prepared, schema=None))
    assert list(document["forms"]) == ["unconstrained"]
    assert document["passed"]

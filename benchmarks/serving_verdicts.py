"""Check of a running server: each of a thousand answers is valid, or flagged with a reason.

They are sampled at temperature 1, so that they differ; every tenth has too few tokens to
finish. A second validator (`jsonschema`) judges every answer again and must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from llm_lora import machine as plan
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.machine import free_port
from llm_lora.serving.client import as_json
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch import text as preflight
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.text import Wanted
from llm_lora.serving.measure import trial
from llm_lora.store.store import Store
from llm_lora.tasks.text import task as text_task

NAME = "bench"
FEW_TOKENS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/medical_qa/latest"))
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=32)
    given = parser.parse_args()
    here = runs.find(given.run)
    held_out = text_task.reopen(here).dataset.held_out
    hardware = plan.detect()
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    store = Store(folder / "store")
    store.publish(here.adapter, NAME, report=here.read(here.report), by="benchmark")
    store.promote(NAME, 1, by="benchmark", force=True)
    made = preflight.examine(Wanted(store=store.root, port=free_port()), hardware)
    schema = json.loads((here.adapter / adapters.SCHEMA).read_text())
    judge = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def ask(number: int) -> tuple[str, str, bool]:
        """Verdict, its first reason, and whether the second validator agrees."""
        body: dict[str, Any] = {
            "model": NAME,
            "messages": as_json(held_out[number % len(held_out)].prompt),
            "temperature": 1.0,
            "seed": number,
        }
        if number % 10 == 9:
            body["max_tokens"] = FEW_TOKENS
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        said = answer["llm_lora"]
        fits = is_valid(judge, answer["choices"][0]["message"]["content"])
        reasons = said.get("reasons") or [{}]
        return said["verdict"], reasons[0].get("keyword", ""), fits == (said["verdict"] == "valid")

    environment = flags.environment(os.environ, launch.prepare(made))
    with (
        stack,
        trial.running(flags.command(made), environment, made.url, folder / "log", path="/ready"),
        httpx.Client(base_url=made.url, timeout=300) as client,
        ThreadPoolExecutor(given.connections) as pool,
    ):
        found = list(pool.map(ask, range(given.answers)))
    counts = Counter((verdict, reason) for verdict, reason, _ in found)
    for (verdict, reason), count in counts.most_common():
        print(f"{count:6} {verdict} {reason}")
    unnamed = sum(verdict != "valid" and not reason for verdict, reason, _ in found)
    disagreed = sum(not agrees for _, _, agrees in found)
    print(f"{len(found)} answers on {hardware}: {unnamed} invalid without a reason, "
          f"{disagreed} judged otherwise by jsonschema")  # fmt: skip
    sys.exit(bool(unnamed or disagreed))


def is_valid(judge: Draft202012Validator, text: str) -> bool:
    try:
        return bool(judge.is_valid(json.loads(text)))
    except ValueError:
        return False


if __name__ == "__main__":
    main()

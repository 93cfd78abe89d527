"""Benchmark of the layer: vLLM with it against vLLM alone, and time until a new version answers.

Both servers run at once and get requests in turns, A B B A …, one idle while the other works. The
one without the layer gets the same requests that the layer sends on: the adapter under its served
name, its schema, system prompt and sampling; so vLLM does the same work in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from llm_lora import machine as plan
from llm_lora import run as runs
from llm_lora.adapter import folder as adapters
from llm_lora.machine import free_port
from llm_lora.serving.client import Client, as_json
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch import text as preflight
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.text import Wanted
from llm_lora.serving.layer.terms import Terms
from llm_lora.serving.layer.text import requests
from llm_lora.serving.measure import load, trial
from llm_lora.serving.measure.load import Load
from llm_lora.store.store import Store, Version
from llm_lora.tasks.text import task as text_task
from llm_lora.tasks.text.task import Prepared

NAME = "bench"
BY = "benchmark"
CHAT = "/v1/chat/completions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/medical_qa/latest"))
    parser.add_argument("--turns", type=int, default=12, help="pairs of bursts")
    parser.add_argument("--requests", type=int, default=32, help="requests in a burst")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=8)
    parser.add_argument("--at-least", type=float, default=0.97, help="share of the throughput")
    given = parser.parse_args()
    here = runs.find(given.run)
    prepared = text_task.reopen(here)
    hardware = plan.detect()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Store(Path(folder) / "store")
        version = publish(store, here.adapter, 1)
        store.promote(NAME, version.number, by=BY)
        wanted = Wanted(
            store=store.root, base=prepared.recipe.base, port=free_port(), max_adapters=4
        )
        made = preflight.examine(wanted, hardware)
        with_layer = stack.enter_context(
            trial.running(
                flags.command(made),
                flags.environment(os.environ, launch.prepare(made)),
                made.url,
                Path(folder) / "layer.log",
                path="/ready",
            )
        )
        port = free_port()
        alone_url = f"http://127.0.0.1:{port}"
        command = [
            *flags.engine(made.base, made.base_name, "127.0.0.1", port, made.context, hardware),
            *flags.lora(wanted.max_adapters + 1, made.ranks, hardware),
            *("--lora-modules", f"{version.served_name}={version.folder}"),
        ]
        log = Path(folder) / "alone.log"
        alone = stack.enter_context(
            trial.running(command, flags.environment(os.environ), alone_url, log)
        )
        print(f"{hardware}; {made.base_name}; {given.connections} connections, half of the answers "
              f"streamed", flush=True)  # fmt: skip
        found = overhead(prepared, version, made.url, alone_url, given)
        found["memory_gib"] = {
            name: round(trial.memory_bytes(server) / 2**30, 3)
            for name, server in (("layer", with_layer), ("alone", alone))
        }
        found["swaps"] = swaps(store, here.adapter, made.url, prepared, given.swaps)
    print(json.dumps(found, indent=2))
    sys.exit(found["throughput_ratio"] < given.at_least)


def publish(store: Store, adapter: Path, number: int) -> Version:
    """Publish the adapter as a new version: its weights with a unique report."""
    report = {
        "adapter": {"digest": adapters.digest(adapter)},
        "gates": [],
        "passed": True,
        "number": number,
    }
    return store.publish(adapter, NAME, report=report, by=BY)


def overhead(
    prepared: Prepared, version: Version, with_layer: str, alone: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Run bursts against both servers, and return the figures."""
    ours: list[dict[str, Any]] = [
        {"model": NAME, "messages": as_json(example.prompt)}
        for example in prepared.dataset.held_out
    ]
    for body in ours[::2]:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    terms = Terms.read(version)
    theirs = []
    for body in ours:
        asked = requests.read(json.dumps(body).encode(), CHAT)
        theirs.append(json.loads(requests.complete(asked, version.served_name, terms).body))
    sides = {"layer": (with_layer, ours), "alone": (alone, theirs)}

    def burst(side: str, turn: int) -> Load:
        url, bodies = sides[side]
        start = turn * given.requests
        chosen = [bodies[(start + number) % len(bodies)] for number in range(given.requests)]
        done = load.run(url, chosen, concurrency=given.connections)
        if done.failures:
            sys.exit(f"{side}: {len(done.failures)} requests failed: {done.failures[0]}")
        return done

    for side in sides:
        burst(side, 0)
    found: dict[str, list[Load]] = {side: [] for side in sides}
    for turn in range(given.turns):
        for side in sides if turn % 2 == 0 else reversed(sides):
            found[side].append(burst(side, turn))
    ratios = [
        mine.tokens_per_second / other.tokens_per_second
        for mine, other in zip(found["layer"], found["alone"], strict=True)
    ]
    whole = {side: load.joined(loads) for side, loads in found.items()}
    return {
        "throughput_ratio": round(
            whole["layer"].tokens_per_second / whole["alone"].tokens_per_second, 4
        ),
        "ratio_of_pairs": {
            "median": round(statistics.median(ratios), 4),
            "least": round(min(ratios), 4),
            "most": round(max(ratios), 4),
            "standard_error": round(statistics.stdev(ratios) / len(ratios) ** 0.5, 4)
            if len(ratios) > 1
            else None,
        },
        **{side: one.summary() for side, one in whole.items()},
    }


def swaps(
    store: Store, adapter: Path, url: str, prepared: Prepared, count: int
) -> dict[str, list[float]]:
    """Milliseconds from publishing a new version to the first token of its first answer.

    Through the store, as `llm-lora promote` on the server's machine: the version is loaded at its
    first request. Over HTTP: it is loaded and probed before the alias moves.
    """
    messages = as_json(prepared.dataset.held_out[0].prompt)
    found: dict[str, list[float]] = {"store": [], "http": []}
    with Client(url) as client:
        for number in range(count):
            way = "store" if number % 2 == 0 else "http"
            started = time.perf_counter()
            version = publish(store, adapter, number + 2)
            if way == "store":
                store.promote(NAME, version.number, by=BY)
            else:
                client.promote(NAME, version.number)
            first, answered = first_token(url, messages)
            if answered != version.number:
                sys.exit(f"version {answered} answered after {version.number} was promoted")
            found[way].append(round((first - started) * 1000, 1))
    return found


def first_token(url: str, messages: list[dict[str, str]]) -> tuple[float, int]:
    """Arrival time of an answer's first text (perf_counter), and the version that answered."""
    first, version = None, 0
    body = {"model": NAME, "messages": messages, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=300) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            delta = (event.get("choices") or [{}])[0].get("delta") or {}
            if first is None and delta.get("content"):
                first = time.perf_counter()
            version = event.get("llm_lora", {}).get("version", version)
    if first is None:
        sys.exit("an answer without text")
    return first, version


if __name__ == "__main__":
    if "LLM_LORA_ADMIN_KEYS" not in os.environ:
        # Administration over HTTP is closed without a key.
        os.environ["LLM_LORA_ADMIN_KEYS"] = os.environ["LLM_LORA_ADMIN_KEY"] = "benchmark" * 4
    main()

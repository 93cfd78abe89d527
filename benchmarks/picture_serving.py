"""Benchmark of image serving: overhead, start-up time, and time until a new version generates.

The same pictures are generated in turns, A B B A …, by the painter in this process and through a
server with one connection, each idle while the other works; their bytes are compared.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from llm_lora import engines
from llm_lora import machine as plan
from llm_lora.adapter import folder as adapters
from llm_lora.adapter import sources as picture_sources
from llm_lora.lora_prompt import Pick
from llm_lora.machine import free_port
from llm_lora.serving.launch import examining
from llm_lora.serving.launch import launching as launch
from llm_lora.serving.launch import vllm as flags
from llm_lora.serving.launch.plans import Wanted
from llm_lora.serving.measure import trial
from llm_lora.store.store import Store

NAME, BY = "bench", "benchmark"
ROUTE = "/v1/images/generations"
PROMPT = "a red circle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/style_lora/latest"))
    parser.add_argument("--turns", type=int, default=8, help="pairs of bursts")
    parser.add_argument("--pictures", type=int, default=4, help="pictures in a burst, one by one")
    parser.add_argument("--swaps", type=int, default=6)
    parser.add_argument("--at-least", type=float, default=0.95, help="share of the throughput")
    given = parser.parse_args()
    source = picture_sources.find(given.run)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        publish(store, source.path, 0)
        wanted = Wanted(store=store.root, port=free_port())
        made = examining.examine(wanted, plan.detect())
        environment = flags.environment(os.environ, launch.prepare(made))
        began = time.monotonic()
        log = Path(folder) / "painter.log"
        with (
            trial.running(made.command(), environment, made.url, log, path="/ready") as server,
            httpx.Client(base_url=made.url, timeout=600) as client,
        ):
            found: dict[str, Any] = {"seconds_to_ready": round(time.monotonic() - began, 2)}
            print(f"{made.hardware}; {made.base_name}, {source.settings}", flush=True)
            found |= overhead(source, client, given)
            found["memory_gib"] = round(trial.memory_bytes(server) / 2**30, 3)
            found["publish_to_picture_s"] = swaps(store, source.path, client, given.swaps)
    print(json.dumps(found, indent=2))
    sys.exit(found["throughput_ratio"] < given.at_least)


def publish(store: Store, adapter: Path, number: int) -> None:
    """Publish the adapter as a new live version: its weights with a unique report."""
    digest = adapters.digest(adapter)
    report = {"adapter": {"digest": digest}, "gates": [], "passed": True, "number": number}
    version = store.publish(adapter, NAME, report=report, by=BY)
    store.promote(NAME, version.number, by=BY)


def overhead(
    source: picture_sources.Source, client: httpx.Client, given: argparse.Namespace
) -> dict[str, Any]:
    """Run bursts with both, and return the figures."""
    engine = engines.load("image")
    painter = engine.Painter(picture_sources.base_of([source]))
    painter.put(source.path, name=NAME)
    settings = engine.Settings(**source.settings)

    def alone(seed: int) -> bytes:
        (picture,) = painter.paint_with([Pick(NAME)], [PROMPT], settings, [seed])
        return bytes(picture.tobytes())

    def served(seed: int) -> bytes:
        response = client.post(ROUTE, json={"model": NAME, "prompt": PROMPT, "seed": seed})
        response.raise_for_status()
        return base64.b64decode(response.json()["data"][0]["b64_json"])

    sides = {"alone": alone, "served": served}
    if as_pixels(served(0)) != alone(0):
        sys.exit("the server paints another picture than the painter alone")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(given.turns):
        for side in sides if turn % 2 == 0 else reversed(sides):
            began = time.monotonic()
            for number in range(given.pictures):
                sides[side](turn * given.pictures + number)
            seconds[side].append((time.monotonic() - began) / given.pictures)
    ratios = [mine / other for mine, other in zip(seconds["alone"], seconds["served"], strict=True)]
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    return {
        "throughput_ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "pictures_per_second": {side: round(1 / one, 3) for side, one in middle.items()},
        "added_ms_a_picture": round(1000 * (middle["served"] - middle["alone"]), 1),
    }


def as_pixels(picture: bytes) -> bytes:
    """The pixels of a PNG, without its metadata."""
    return Image.open(io.BytesIO(picture)).tobytes()


def swaps(store: Store, adapter: Path, client: httpx.Client, count: int) -> list[float]:
    """Seconds from publishing a version to its first one-step picture, for several versions."""
    found = []
    for number in range(1, count + 1):
        began = time.monotonic()
        publish(store, adapter, number)
        body = {"model": NAME, "prompt": PROMPT, "steps": 1}
        response = client.post(ROUTE, json=body)
        response.raise_for_status()
        found.append(round(time.monotonic() - began, 3))
        if response.headers["x-llm-lora-version"] != str(number + 1):
            sys.exit("the version before was painted with")
    return found


if __name__ == "__main__":
    main()

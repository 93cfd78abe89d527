"""The layer in vLLM's real application: its routes first, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

pytest.importorskip("vllm", reason="vLLM is not installed: make env installs it")
pytestmark = pytest.mark.slow


# In a separate process: vLLM configures logging and torch on import.
SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from support.in_process import ask
from support.layer_parts import config
from llm_lora.serving.layer import Layer, routes

folder = Path(sys.argv[1])
config(folder).write(folder / "serving.json")
parser = make_arg_parser(FlexibleArgumentParser())
app = build_app(
    parser.parse_args(["--middleware", "llm_lora.serving.layer.layer.Layer"]), ("generate",)
)
layer = app.user_middleware[0].cls
assert layer is Layer, f"not outermost: {app.user_middleware}"
seen = {}

def leaves(routes, prefix=""):
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from leaves(inner, prefix + getattr(route, "prefix", ""))
        else:
            yield route

async def everything():
    for route in leaves(app.routes):
        path = route.path.replace("{", "").replace("}", "").replace(":path", "")
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            got = await ask(app, method, path, {"model": "x"})
            seen[method, route.path] = got.status
    for method, path in (("POST", "/v1/load_lora_adapter"), ("POST", "/adapters")):
        got = await ask(app, method, path, {"lora_name": "a", "lora_path": "/"})
        assert got.status == 404 and got.error["code"] == "unknown_route", (path, got.body)

asyncio.run(everything())
for (method, path), status in sorted(seen.items()):
    wanted = routes.ROUTES["text"].get(path)
    print(method, path, status)
    if wanted is None:
        assert status == 404, (method, path, status)
    elif wanted[0] != method:
        assert status == 405, (method, path, status)
for path in ("/adapters", "/invocations", "/v1/load_lora_adapter"):
    assert ("POST", path) in seen, "this test does not see all routes"
"""


def test_of_all_routes_that_vllm_mounts_only_listed_ones_are_open(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LLM_LORA_SERVING": str(tmp_path / "serving.json"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(done.stdout.splitlines()) > 20

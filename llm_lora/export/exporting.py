"""Export of a run's adapter for PEFT, vLLM, llama.cpp and Ollama, with template and schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.mapping import text as mapping
from llm_lora.example import Message
from llm_lora.export import merge as merging
from llm_lora.export.llamacpp import modelfile, writing
from llm_lora.files import Json
from llm_lora.progress import Watcher
from llm_lora.run import Run
from llm_lora.tasks.text import Prepared
from llm_lora.tasks.text import task as text_task

_ADAPTER_FILES = (
    adapters.WEIGHTS,
    adapters.CONFIG,
    adapters.MANIFEST,
    adapters.SCHEMA,
    adapters.TEMPLATE,
)
REQUEST = "request.json"
README = "README.md"


def peft(here: Run, out: Path) -> None:
    """Write the adapter's folder, verified, with a README on loading it.

    Raises:
        UserError: the adapter is damaged, or `out` is taken.
    """
    prepared, adapter = _open(here)
    files.require_new(out)
    with files.workspace(out) as space:
        built = space / "peft"
        _copy(adapter, built)
        files.write_text(built / README, _peft_readme(prepared))
        files.put(built, out)


def vllm(here: Run, out: Path) -> str:
    """Write the adapter with a request and the command that serves it with plain vLLM.

    Returns:
        the command.

    Raises:
        UserError: vLLM would refuse the adapter or apply only part of it, or `out` is taken.
    """
    prepared, adapter = _open(here)
    mapping.effect(adapter, prepared.base)
    files.require_new(out)
    name = _name(adapter)
    command = _vllm_command(prepared, adapter, name, out.absolute() / "adapter")
    with files.workspace(out) as space:
        built = space / "vllm"
        _copy(adapter, built / "adapter")
        files.write_json(built / REQUEST, _openai_request(prepared, adapter, name))
        files.write_text(built / README, _vllm_readme(name, command))
        files.put(built, out)
    return command


def gguf(
    here: Run, out: Path, watch: Watcher, *, merged: bool, into: str, measure: bool
) -> dict[str, Any]:
    """Write a GGUF file: the adapter for a GGUF base, or the merged model.

    Returns:
        the measurements of a merge (`merge.merge`), or an empty object.

    Raises:
        UserError: an architecture or tokenizer that is not supported, the package gguf is not
            installed, `out` is taken, or merging is refused.
    """
    prepared, adapter = _open(here)
    files.require_new(out)
    if merged:
        _require(prepared)
    with files.workspace(out) as space:
        path = space / out.name
        if merged:
            manifest = _merged(here, prepared, adapter, path, watch, into=into, measure=measure)
        else:
            manifest = {}
            watch.stage("Writing the adapter as GGUF")
            _write_adapter(prepared, adapter, path)
        files.put(path, out)
    return manifest


def ollama(
    here: Run, out: Path, watch: Watcher, *, merged: bool, into: str, measure: bool
) -> dict[str, Any]:
    """Write a folder from which `ollama create` builds a model.

    Returns:
        as `gguf`.

    Raises:
        UserError: as `gguf`, or the chat template cannot be written for Ollama.
    """
    prepared, adapter = _open(here)
    files.require_new(out)
    _require(prepared)
    turns = modelfile.Turns.of(
        prepared.chat, _added_begin(prepared), str(adapter.path / adapters.TEMPLATE)
    )
    manifest: dict[str, Any] = {}
    with files.workspace(out) as space:
        built = space / "ollama"
        built.mkdir()
        model = "merged.gguf" if merged else "base.gguf"
        if merged:
            manifest = _merged(
                here, prepared, adapter, built / model, watch, into=into, measure=measure
            )
        else:
            watch.stage("Writing base and adapter as GGUF")
            _write_model(prepared, adapter, prepared.base.path, built / model)
            _write_adapter(prepared, adapter, built / "adapter.gguf")
        text = modelfile.write(
            model=model,
            adapter=None if merged else "adapter.gguf",
            turns=turns,
            ends=[prepared.chat.decode([i], skip_special=False) for i in prepared.chat.eos_ids],
            manifest=adapter.manifest,
            context=prepared.base.context_length,
            where=adapter.path,
        )
        files.write_text(built / "Modelfile", text)
        if adapter.schema_path is not None:
            files.write_bytes(built / adapters.SCHEMA, files.read_bytes(adapter.schema_path))
        name = _name(adapter)
        files.write_json(built / REQUEST, _ollama_request(prepared, adapter, name))
        files.write_text(built / README, _ollama_readme(name))
        files.put(built, out)
    return manifest


def _open(here: Run) -> tuple[Prepared, Adapter]:
    prepared = text_task.reopen(here, otherwise="of pictures write --webui DIR")
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, prepared.base)
    return prepared, adapter


def _require(prepared: Prepared) -> None:
    """Refuse before a long merge whose result could not be written as GGUF."""
    writing.require(prepared.base.path, prepared.chat, _texts(prepared))


def _name(adapter: Adapter) -> str:
    return adapter.manifest.name.replace("_", "-").lower()


def _copy(adapter: Adapter, folder: Path) -> None:
    for name in _ADAPTER_FILES:
        if (adapter.path / name).is_file():
            files.write_bytes(folder / name, files.read_bytes(adapter.path / name))
    adapters.read(folder)


def _merged(
    here: Run,
    prepared: Prepared,
    adapter: Adapter,
    path: Path,
    watch: Watcher,
    *,
    into: str,
    measure: bool,
) -> dict[str, Any]:
    """Merge in a workspace of its own, and write the result as GGUF."""
    with files.workspace(path) as space:
        folder = merging.build(
            here, space, watch, into=into, measure=measure, shard_bytes=merging.SHARD_BYTES
        )
        watch.stage("Writing the merged model as GGUF")
        _write_model(prepared, adapter, folder, path)
        return files.read_object(folder / adapters.MANIFEST)


def _write_model(prepared: Prepared, adapter: Adapter, folder: Path, path: Path) -> None:
    writing.write_model(
        folder,
        path,
        name=_name(adapter),
        chat=prepared.chat,
        texts=_texts(prepared),
        notes=_notes(adapter),
    )


def _write_adapter(prepared: Prepared, adapter: Adapter, path: Path) -> None:
    writing.write_adapter(
        adapter, prepared.base.path, path, name=_name(adapter), notes=_notes(adapter)
    )


def _notes(adapter: Adapter) -> dict[str, str]:
    notes = {writing.ADAPTER_KEY: adapter.digest}
    if adapter.schema_path is not None:
        notes[writing.SCHEMA_KEY] = files.read_text(adapter.schema_path)
    return notes


def _texts(prepared: Prepared) -> list[str]:
    """Every conversation of the dataset, rendered for the model."""
    dataset = prepared.dataset
    return [
        prepared.chat.render(
            (*example.prompt, Message("assistant", example.answer)), add_generation_prompt=False
        )
        for example in (*dataset.train, *dataset.validation, *dataset.held_out)
    ]


def _added_begin(prepared: Prepared) -> str:
    """The text of the token that llama.cpp, like the tokenizer, puts before every prompt."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.base.path / "tokenizer.json"))
    ids = tokenizer.encode("", add_special_tokens=True).ids
    return prepared.chat.decode(ids[:1], skip_special=False) if ids else ""


def _question(prepared: Prepared, adapter: Adapter, *, system: bool) -> list[dict[str, str]]:
    """A held-out prompt as request messages."""
    prompt = prepared.dataset.held_out[0].prompt
    return [
        {"role": message.role, "content": message.content}
        for message in prompt
        if system or message.role != "system"
    ]


def _openai_request(prepared: Prepared, adapter: Adapter, name: str) -> Json:
    sampling = adapter.manifest.sampling
    request: Json = {
        "model": name,
        "messages": _question(prepared, adapter, system=True),
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "max_tokens": sampling["max_new_tokens"],
    }
    if prepared.schema is not None:
        schema = {"name": "answer", "schema": prepared.schema.document}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    if prepared.chat.template_kwargs:
        request["chat_template_kwargs"] = prepared.chat.template_kwargs
    return request


def _ollama_request(prepared: Prepared, adapter: Adapter, name: str) -> Json:
    """A request without system prompt and sampling, which the Modelfile holds."""
    request: Json = {
        "model": name,
        "messages": _question(prepared, adapter, system=False),
        "stream": False,
    }
    if prepared.schema is not None:
        request["format"] = prepared.schema.document
    return request


def _where_base(prepared: Prepared) -> str:
    """How other programs load the base: by its name on the hub, or its folder."""
    return prepared.base.name if prepared.base.revision else str(prepared.base.path)


def _vllm_command(prepared: Prepared, adapter: Adapter, name: str, folder: Path) -> str:
    base = prepared.base
    revision = f" --revision {base.revision}" if base.revision else ""
    structured = json.dumps(
        {"backend": "guidance", "disable_any_whitespace": True}, separators=(",", ":")
    )
    return (
        f"vllm serve {_where_base(prepared)}{revision} \\\n"
        f"  --enable-lora --max-lora-rank {mapping.server_rank(adapter.rank)} \\\n"
        f"  --lora-modules {name}={folder} \\\n"
        f"  --structured-outputs-config '{structured}'"
    )


def _peft_readme(prepared: Prepared) -> str:
    base = prepared.base
    revision = f", revision={base.revision!r}" if base.revision else ""
    bits = prepared.recipe.lora.bits
    return f"""# {prepared.recipe.name}

A LoRA adapter for {base.name} (base digest {base.digest[:12]}), trained over the base in
{"NF4 with double quantisation" if bits == 4 else "16 bits"}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({_where_base(prepared)!r}{revision})
model = PeftModel.from_pretrained(base, ".")
```

- `chat_template.jinja`: the template of its training
- `answer.schema.json`: the schema of its answers
- `llm_lora.json`: system prompt, sampling, held-out scores, digests and versions
"""


def _vllm_readme(name: str, command: str) -> str:
    return f"""# {name} on vLLM

```sh
{command}
```

`{REQUEST}` is a complete request with system prompt, sampling and answer schema, because plain vLLM
knows none of them.

```sh
curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d @{REQUEST}
```

vLLM applies the adapter to the base in 16 bits. `llm-lora merge` measures how closely that matches
what was trained.
"""


def _ollama_readme(name: str) -> str:
    return f"""# {name} on Ollama

```sh
ollama create {name} -f Modelfile
curl -s localhost:11434/api/chat -d @{REQUEST}
```

The Modelfile holds chat template, system prompt, sampling and end tokens. Ollama cannot
store an answer schema: every request carries it as `format`, as `{REQUEST}` does. Check answers:

```sh
llm-lora validate answers.jsonl --schema {adapters.SCHEMA}
```
"""

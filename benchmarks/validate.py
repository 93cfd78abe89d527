"""Benchmark of judging 100,000 answers: `llm-lora validate` against jsonschema and fastjsonschema.

Each variant reads the same JSON Lines file, parses and judges every answer, in its own processes.
Time is wall time inside the process, without start-up; memory is the highest sum over all of its
processes, sampled every 20 ms (memory shared by forked processes counts for each).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
ANSWERS = 100_000
_SLOW = 5_000
"""The number that jsonschema judges; its time per answer does not depend on it."""


def _closed(**properties: Any) -> dict[str, Any]:
    """An object with only these properties, as pydantic writes it for a closed model."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(properties),
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_NAME = {"type": "string", "minLength": 1, "maxLength": 60}
_AMOUNT = {"type": "number", "minimum": 0}


def invoice() -> tuple[dict[str, Any], Callable[[random.Random], Any]]:
    """Nested records under `$ref`, nullable by anyOf, patterns and dates: what pydantic writes."""
    date = {"type": "string", "format": "date"}
    schema = _closed(
        number={"type": "string", "pattern": "^INV-[0-9]{4,8}$"},
        date=date,
        due=_or_null(date),
        seller={"$ref": "#/$defs/Party"},
        buyer={"$ref": "#/$defs/Party"},
        lines={"type": "array", "minItems": 1, "maxItems": 8, "items": {"$ref": "#/$defs/Line"}},
        currency={"$ref": "#/$defs/Currency"},
        paid={"type": "boolean"},
        total=_AMOUNT,
    )
    schema["$defs"] = {
        "Currency": {"enum": ["EUR", "USD", "GBP"]},
        "Kind": {"enum": ["goods", "service", "shipping"]},
        "Party": _closed(
            name=_NAME,
            country={"type": "string", "pattern": "^[A-Z]{2}$"},
            vat_id=_or_null({"type": "string", "pattern": "^[A-Z0-9]{6,14}$"}),
        ),
        "Line": _closed(
            item=_NAME,
            kind={"$ref": "#/$defs/Kind"},
            quantity={"type": "integer", "minimum": 1, "maximum": 1000},
            unit_price=_AMOUNT,
            discount=_or_null({"type": "number", "minimum": 0, "maximum": 1}),
        ),
    }

    def party(dice: random.Random) -> Any:
        return {
            "name": dice.choice(["Muster & Söhne", "Acme Tools", "Blue Harbour Ltd"]),
            "country": dice.choice(["DE", "GB", "FR"]),
            "vat_id": dice.choice([None, f"DE{dice.randint(10**8, 10**9)}"]),
        }

    def line(dice: random.Random) -> Any:
        return {
            "item": dice.choice(["steel bolt M8", "hourly consulting", "oak board 20 mm"]),
            "kind": dice.choice(["goods", "service", "shipping"]),
            "quantity": dice.randint(1, 90),
            "unit_price": round(dice.uniform(1, 99), 2),
            "discount": dice.choice([None, 0.1]),
        }

    def draw(dice: random.Random) -> Any:
        return {
            "number": f"INV-{dice.randint(1000, 99999)}",
            "date": f"2026-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}",
            "due": dice.choice([None, "2026-12-24"]),
            "seller": party(dice),
            "buyer": party(dice),
            "lines": [line(dice) for _ in range(dice.randint(3, 4))],
            "currency": dice.choice(["EUR", "USD"]),
            "paid": dice.random() < 0.5,
            "total": round(dice.uniform(1, 999), 2),
        }

    return schema, draw


def events() -> tuple[dict[str, Any], Callable[[random.Random], Any]]:
    """A list of tagged alternatives (oneOf), as an answer that calls tools or names events."""
    kinds = {
        "visit": _closed(kind={"const": "visit"}, at=_NAME, minutes={"type": "integer"}),
        "call": _closed(kind={"const": "call"}, to=_NAME, answered={"type": "boolean"}),
        "order": _closed(kind={"const": "order"}, item=_NAME, amount=_AMOUNT, note=_or_null(_NAME)),
    }
    schema = _closed(
        subject=_NAME,
        events={
            "type": "array",
            "items": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds]},
        },
    )
    schema["$defs"] = kinds

    def event(dice: random.Random) -> Any:
        kind = dice.choice(list(kinds))
        if kind == "visit":
            return {"kind": kind, "at": "Main Street 12", "minutes": dice.randint(5, 90)}
        if kind == "call":
            return {"kind": kind, "to": "front desk", "answered": dice.random() < 0.5}
        return {"kind": kind, "item": "paper A4", "amount": dice.randint(1, 50), "note": None}

    def draw(dice: random.Random) -> Any:
        return {"subject": "Day report", "events": [event(dice) for _ in range(9)]}

    return schema, draw


def triage() -> tuple[dict[str, Any], Callable[[random.Random], Any]]:
    """The longer answers of the medical template: flat, with one list of records."""
    template = ROOT / "data_templates" / "medical_qa"
    rows = (template / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row)["response"] for row in rows]
    answers = [json.loads(one) if isinstance(one, str) else one for one in found]
    full = [answer for answer in answers if len(json.dumps(answer)) > 480]
    return json.loads((template / "answer.schema.json").read_text()), lambda dice: dice.choice(full)


SHAPES = {"invoice": invoice, "events": events, "triage": triage}


def write(folder: Path, shape: str, answers: int) -> tuple[Path, Path]:
    """A file of answers, one in a hundred wrong, and its schema."""
    schema, draw = SHAPES[shape]()
    dice = random.Random(0)
    texts = [json.dumps(draw(dice), ensure_ascii=False, separators=(",", ":")) for _ in range(2000)]
    for place in range(0, len(texts), 100):
        texts[place] = texts[place].replace('":"', '":7,"x":"', 1)
    path, schema_path = folder / f"{shape}.jsonl", folder / f"{shape}.schema.json"
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, answers, len(texts)):
            file.write("\n".join(texts[: answers - start]) + "\n")
    schema_path.write_text(json.dumps(schema))
    return path, schema_path


# --- the ways -------------------------------------------------------------------------------------


def with_llm_lora(path: Path, schema: Path, jobs: int) -> tuple[int, int]:
    from llm_lora.schema.answer import AnswerSchema
    from llm_lora.validate.judging import Judge, Summary, judge_blocks

    summary = Summary()
    for block in judge_blocks(path, Judge(AnswerSchema.load(schema)), jobs=jobs):
        summary.merge(block.summary)
    return summary.answers, summary.valid


def with_jsonschema(path: Path, schema: Path) -> tuple[int, int]:
    from jsonschema import Draft202012Validator as Draft

    judge = Draft(json.loads(schema.read_text()), format_checker=Draft.FORMAT_CHECKER).is_valid
    with path.open("rb") as file:
        found = [judge(json.loads(line)) for line in islice(file, _SLOW)]
    return len(found), sum(found)


def with_fastjsonschema(path: Path, schema: Path) -> tuple[int, int]:
    import fastjsonschema

    judge = fastjsonschema.compile(json.loads(schema.read_text()))
    answers = valid = 0
    with path.open("rb") as file:
        for line in file:
            answers += 1
            try:
                judge(json.loads(line))
            except fastjsonschema.JsonSchemaException:
                continue
            valid += 1
    return answers, valid


WAYS: dict[str, Callable[[Path, Path], tuple[int, int]]] = {
    "jsonschema": with_jsonschema,
    "fastjsonschema": with_fastjsonschema,
    "llm-lora, 1 process": lambda path, schema: with_llm_lora(path, schema, 1),
    "llm-lora, 2 processes": lambda path, schema: with_llm_lora(path, schema, 2),
}


def measure(way: str, path: Path, schema: Path) -> None:
    """Run one variant in this process."""
    # Starting up is not what is measured here.
    import_module("llm_lora.validate.judging" if way.startswith("llm-lora") else way)
    started = time.perf_counter()
    answers, valid = WAYS[way](path, schema)
    seconds = time.perf_counter() - started
    print(json.dumps({"answers": answers, "valid": valid, "seconds": seconds}))


def run(way: str, path: Path, schema: Path, tries: int = 3) -> dict[str, Any]:
    """The fastest of several runs in separate processes, with the highest memory of all."""
    best: dict[str, Any] = {}
    peak = 0
    for _ in range(tries):
        command = [sys.executable, __file__, "--measure", way, str(path), str(schema)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        family = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for member in [family, *family.children(recursive=True)]:
                    total += member.memory_info().rss
            except psutil.Error:
                continue
            peak = max(peak, total)
            time.sleep(0.02)
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
        if not best or found["seconds"] < best["seconds"]:
            best = found
    return {**best, "peak": peak, "rate": best["answers"] / best["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=ANSWERS)
    parser.add_argument("--large", type=float, default=1.0, help="GB of the large file; 0: none")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        way, path, schema = given.measure
        measure(way, Path(path), Path(schema))
        return
    versions = f"Python {platform.python_version()}"
    print(f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            path, schema = write(Path(folder), shape, given.answers)
            each = path.stat().st_size / given.answers
            print(f"\n{shape}: {given.answers} answers of {each:.0f} bytes")
            slow = 0.0
            for way in WAYS:
                found = run(way, path, schema)
                slow = slow or found["rate"]
                print(
                    f"  {way:22} {found['rate']:10,.0f} answers/s  {found['rate'] / slow:6.1f}x  "
                    f"{found['peak'] / 2**20:5.0f} MiB  "
                    f"{found['valid'] / found['answers']:.1%} valid"
                )
        if given.large:
            count = int(given.large * 1e9 / each)
            path, schema = write(Path(folder), shape, count)
            print(f"\n{path.stat().st_size / 1e9:.2f} GB of {shape} answers")
            for way in ("llm-lora, 1 process", "llm-lora, 2 processes"):
                found = run(way, path, schema, tries=1)
                print(
                    f"  {way:22} {found['rate']:10,.0f} answers/s  "
                    f"{path.stat().st_size / found['seconds'] / 1e6:4.0f} MB/s  "
                    f"{found['peak'] / 2**20:5.0f} MiB"
                )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()

"""The table of verdict kinds: what a new one in it changes without another edit."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from support.places import ROOT

from llm_lora.schema import KINDS, KindName

# A new process, because several lists are made from the table once, on import.
_ODD = """
from llm_lora.schema import verdict
verdict.KINDS["odd"] = verdict.Kind("is odd & \\"new\\"", "that are odd", parsed=False)

found = verdict.Verdict("odd", (verdict.Reason("a", "strange", "so odd"),))
assert found.title == 'is odd & "new"' and not found.parsed and not found.valid

from llm_lora.cli import verdicts
from llm_lora.validate import Judged, LineVerdict, Summary
whole, part = Summary(), Summary()
part.add(LineVerdict(1, found))
whole.merge(part)
assert list(whole.to_dict()).index("odd") == list(whole.to_dict()).index("not_json") + 1
assert whole.to_dict()["odd"] == 1
verdicts.show([Judged(1, summary=whole)], as_json=False, out=None, fix=None)

from llm_lora.report.text import samples
assert list(samples.KINDS.items())[-2:] == [
    ("odd", found.title), ("cut_off", "cut off by the token limit")
]

from llm_lora.serving.layer.exchange import Exchange
from llm_lora.serving.layer.metrics import Metrics
from llm_lora.serving.layer.text import judging
assert judging.WRONG == ("odd", "not_json", "invalid", "truncated")
answers = [judging.Judged(0, "x", None, kind, None) for kind in ("invalid", "odd", "valid")]
exchange = Exchange("1", "chat", 0.0, "qa")
judging.settle(exchange, answers)
assert exchange.outcome == "odd"
metrics = Metrics()
metrics.count(exchange)
assert (metrics.totals(None).judged, metrics.totals(None).valid) == (1, 0)

import json, re
from llm_lora.serving.layer import playground
(shown,) = re.findall(r"const VERDICTS = (.*);", playground.page("text"))
assert json.loads(shown)["odd"] == ["bad", '✗ is odd & "new"']
"""


def test_every_kind_is_in_the_table() -> None:
    assert tuple(KINDS) == get_args(KindName)


def test_a_new_kind_needs_only_its_row_in_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ODD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 not fitting the schema, 0 not JSON, 1 that are odd" in done.stdout


def test_the_documentation_names_every_kind() -> None:
    text = (ROOT / "docs" / "validate.md").read_text(encoding="utf-8")
    assert all(f"\n- `{name}`" in text for name in KINDS)


def test_the_playground_shows_the_words_of_the_table() -> None:
    from llm_lora.serving.layer.text import judging

    assert judging.TITLES == {
        "valid": ("good", "✓ fits the schema"),
        "invalid": ("bad", "✗ does not fit the schema"),
        "not_json": ("bad", "✗ not JSON"),
        "truncated": ("bad", "✗ cut off"),
        "unjudged": ("", "not judged"),
    }

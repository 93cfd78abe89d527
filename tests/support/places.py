"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
PACKAGE = ROOT / "llm_lora"
GOLDEN = TESTS / "golden"
TEMPLATES = ROOT / "data_templates"
TEMPLATE = TEMPLATES / "medical_qa"

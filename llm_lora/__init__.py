"""llm-lora: from prompt/response pairs and an answer schema to an adapter that always fits it."""

__version__ = "0.1.0"

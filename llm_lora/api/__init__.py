"""The Python interface, which `llm_lora` offers its users by name; see docs/python.md."""

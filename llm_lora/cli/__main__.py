"""Entry point of `python -m llm_lora.cli`, which is the same as `llm-lora`."""

from llm_lora.cli import main

if __name__ == "__main__":
    main()

"""`python -m llm_lora.cli` is `llm-lora`."""

from llm_lora.cli import main

if __name__ == "__main__":
    main()

"""lora_scripts."""

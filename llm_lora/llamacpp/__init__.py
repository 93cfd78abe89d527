"""Output for llama.cpp and Ollama: GGUF files with weights and vocabulary, and Modelfiles."""

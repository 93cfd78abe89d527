"""GGUF files and Modelfiles for llama.cpp and Ollama."""

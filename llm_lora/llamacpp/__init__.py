"""What llama.cpp and Ollama read: GGUF files with weights and vocabulary, and Modelfiles."""

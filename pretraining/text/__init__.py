"""Pretrains the embedded tiny base from generated text; see README.md."""

"""Answer schemas: JSON text, verdicts, canonical form."""

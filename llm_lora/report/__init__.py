"""Held-out reports: documents and self-contained HTML pages."""

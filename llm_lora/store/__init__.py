"""The store: published versions of adapters, their aliases and history."""

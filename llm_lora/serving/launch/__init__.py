"""Before a server runs: sources, checks, flags and the process."""

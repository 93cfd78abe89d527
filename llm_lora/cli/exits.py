"""Exit codes besides 0 (success), 1 (a check failed) and `errors.EXIT_USER_ERROR`."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""

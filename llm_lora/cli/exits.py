"""Exit codes beside 0 (done), 1 (judged, and not good) and `errors.EXIT_USER_ERROR`."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""

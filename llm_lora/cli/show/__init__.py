"""Terminal output: live progress, data checks, reports and lists of runs."""

"""Tasks: the steps of the pipeline that depend on text or images."""

"""Files of prompts and answers as a dataset."""

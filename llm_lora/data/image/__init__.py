"""Folders of pictures with captions as a dataset."""

"""Machine captions for folders of pictures."""

"""Parts that both engines use: loading a base, records of training, trouble."""

"""An adapter's tensors against the modules of the base it is served on."""

"""Makes the embedded tiny picture pipeline, the embedded judge and the style template."""

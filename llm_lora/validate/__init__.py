"""Files of answers judged against a schema."""

"""Local models that judge or caption pictures, found and checked."""

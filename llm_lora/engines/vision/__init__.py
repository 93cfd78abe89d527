"""Models that look at pictures: CLIP, DINO, faces, captioning."""

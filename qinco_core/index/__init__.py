"""From codes to answers: centroids, the coarse search, look-up decoders, lists on disk, the search cascade."""

"""From a checkpoint to a vision encoder engine that is proven on its machine."""

"""csrc/cuda compiled by nvcc and launched on a described device."""

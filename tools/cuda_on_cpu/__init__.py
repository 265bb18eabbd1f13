"""Runs CUDA C++ on the CPU, each CUDA thread as a fiber. See README.md."""

"""The sides of `bench_grpo`: a step of GRPO by our trainer, and by TRL's on the same work."""

"""TRL's own tests of its GRPO trainer, with TRL's class and with ours."""

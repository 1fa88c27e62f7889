"""The loop, optimisers, schedules, checkpoints and logging; pretraining as a thin entry point over one loop."""

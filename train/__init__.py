"""Training: the loop, optimizers, checkpoints, several processes; pretraining and fine-tuning."""

"""Rewards that a program computes: scores of a model's answers, by name, weighted and summed."""

"""A tuned run beside the model that it was tuned from: `evaluate.report --before`."""

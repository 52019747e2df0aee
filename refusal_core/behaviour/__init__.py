"""What the model does with a run's prompts: refusal probabilities and the openings of its replies."""

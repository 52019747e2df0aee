"""What people say about single prompts: marks and ratings."""

"""Recovery by reinforcement learning with verifiable rewards (GRPO): prompts, rewards, training."""

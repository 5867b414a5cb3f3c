"""Recovery by reinforcement learning (GRPO): what it asks, what it rewards, how it trains."""

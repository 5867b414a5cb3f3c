"""Where the shipped presets lead."""

# (width, layers) that each preset reaches
TARGETS = {
    "demo": (384, 4),
    "llama3-8b-paper": (9336, 30),
    "llama3-8b-code-paper": (9336, 30),
    "gemma2-9b-paper": (6336, 36),
    "qwen2.5-7b-paper": (8944, 26),
    "qwen2.5-7b-rl-paper": (8944, 26),
    "llama3-8b": (9216, 30),
    "gemma2-9b": (6144, 36),
    "qwen2.5-7b": (9216, 26),
}

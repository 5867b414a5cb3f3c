"""The bundled model's parameters by hand."""

# embedding, a layer's attention and norms, FFN parameters a neuron, the last norm
EMBEDDING, ATTENTION, NEURON, NORM = 306 * 128, 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128, 3 * 128, 128


def demo_parameters(num_layers: int, width: int) -> int:
    """With so many layers of this FFN width."""
    return EMBEDDING + num_layers * (ATTENTION + width * NEURON) + NORM

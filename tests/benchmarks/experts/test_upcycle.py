"""The mixture has the bundled model's weights, and learns."""

import torch
from transformers import AutoModelForCausalLM

from benchmarks.experts.upcycle import NUM_EXPERTS, PARTS, train, upcycled
from ptl_fast.model.checkpoint import DEMO_FOLDER


def test_the_experts_have_every_neuron_equally_often() -> None:
    dense = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
    mixture = upcycled()
    own, experts = dense.model.layers[1].mlp, mixture.model.layers[1].mlp.experts
    width = own.gate_proj.out_features // PARTS
    gate_EI = experts.gate_up_proj[:, :width].flatten(0, 1)
    down_EI = experts.down_proj.transpose(1, 2).flatten(0, 1)
    # the sum over all experts is that over all neurons, as often as each is there
    times = NUM_EXPERTS // PARTS
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(gate_EI.sum(0), times * own.gate_proj.weight.sum(0), **close)
    whole = times * PARTS * own.down_proj.weight.T.sum(0)
    torch.testing.assert_close(down_EI.sum(0), whole, **close)
    attention = mixture.model.layers[2].self_attn.q_proj.weight
    assert torch.equal(attention, dense.model.layers[2].self_attn.q_proj.weight)
    assert not mixture.model.layers[0].mlp.gate.weight.equal(
        mixture.model.layers[1].mlp.gate.weight
    )


def test_a_few_steps_lower_the_loss() -> None:
    trained = train(upcycled(), num_steps=4, batch_size=4, peak=1e-3)
    assert trained["last_loss"] < trained["first_loss"]
    assert trained["steps"] == 4
    assert trained["tokens"] > 4 * 4 * 20

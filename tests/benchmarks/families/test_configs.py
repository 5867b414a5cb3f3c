"""The configurations that are tried."""

from benchmarks.families import configs


def test_every_type_is_tried_or_left_out_with_a_reason() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    every = configs.every()
    labels = [each.label for each in every]
    assert len(set(labels)) == len(labels)
    tried = {each.model_type for each in every}
    assert tried | configs.LEFT_OUT.keys() >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not tried & configs.LEFT_OUT.keys()
    assert configs.OWN.keys() <= tried


def test_settings_of_a_type_come_on_top_of_the_common_ones_or_leave_some_out() -> None:
    (plain,) = [each for each in configs.every() if each.label == "falcon"]
    config = plain.config()
    assert config.ffn_hidden_size == configs.WIDTH
    assert config.hidden_size == configs.HIDDEN
    assert "head_dim" in plain.without

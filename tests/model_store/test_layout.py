"""Files of a model folder are what their readers expect."""

from __future__ import annotations

from dyntok_jax.model_store.layout import tokenizer_config


def test_tokenizer_config_has_a_template_only_where_there_is_one():
    assert "chat_template" not in tokenizer_config({"bos_token": "<s>"}, 8)
    config = tokenizer_config({"bos_token": "<s>"}, 8, "{{ messages }}")
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["model_max_length"]) == ("<s>", 8)

"""Models of transformers, as their users call them: outputs, gradient and Hessian product as torch has them.

Optional: skipped without the package (pip install "lla-jax[transformers]"). The configurations are tiny and the weights
random; nothing is fetched.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lla_torch
from lla_torch.certification.computed import jax_numbers
from lla_torch.certification.differences import largest_difference
from lla_torch.certification.reference import Case, torch_numbers
from torch import nn

import lla_jax as lla

TOLERANCES = {"outputs": 1e-12, "gradient": 1e-10, "Hessian product": 1e-9}
IDS = torch.randint(5, 50, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 1}
TWO_SIDED = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("LMHeadModel", {**SIZES, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "Llama": ("ForCausalLM", GROUPED),
    "Mixtral": ("ForCausalLM", GROUPED | {"num_local_experts": 4}),
    "GPTNeoX": ("ForCausalLM", SIZES),
    "OPT": ("ForCausalLM", SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "Mistral": ("ForCausalLM", GROUPED),
    "Qwen2": ("ForCausalLM", GROUPED),
    "Gemma": ("ForCausalLM", GROUPED | {"head_dim": 8}),
    "Phi": ("ForCausalLM", GROUPED),
    "Falcon": ("ForCausalLM", SIZES),
    "Bloom": ("ForCausalLM", SIZES | {"n_layer": 2, "n_head": 2}),
}
QUICK = ("GPT2", "Llama", "Mixtral")
SHALLOW = ("GPTNeoX", "Mistral", "Qwen2", "Phi", "Falcon", "Bloom")
"""Models whose layers are all alike, of which one is enough."""


def build(name: str, head: str, sizes: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**sizes)
        return getattr(transformers, name + head)(config).eval()


def check(module: Any, net: Any, batch: Any) -> None:
    """Outputs, gradient and one product in float64, on fewer rows than at conversion."""
    rng = np.random.default_rng(0)
    vector = {name: rng.standard_normal(p.shape) for name, p in module.named_parameters()}
    case = Case(module, (batch,), None, None, None, None, vector, ("float32",), False, False)
    theirs = torch_numbers(case, "float64")
    ours = jax_numbers(case, net, "float64", theirs)
    for quantity, tolerance in TOLERANCES.items():
        assert largest_difference([ours[quantity]], [theirs[quantity]]) <= tolerance, quantity


def mark_slow(names: Any) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", mark_slow(DECODERS))
def test_decoder_called_with_ids(name):
    head, sizes = DECODERS[name]
    module = build(name, head, sizes | ({"num_hidden_layers": 1, "n_layer": 1} if name in SHALLOW else {}))
    net = lla_torch.convert(module, IDS)
    assert set(net.dropped.values()) == {"DynamicCache"}
    check(module, net, IDS[:2])


SEQUENCES = {
    "T5": {
        "vocab_size": 50,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "Bart": TWO_SIDED | {"max_position_embeddings": 32},
    "Whisper": TWO_SIDED | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_encoder_and_decoder_called_with_both_inputs(name):
    module = build(name, "ForConditionalGeneration", SEQUENCES[name])
    source = {"input_ids": IDS}
    if name == "Whisper":
        source = {"input_features": torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))}
    batch = {**source, "decoder_input_ids": IDS[:, :4]}
    net = lla_torch.convert(module, (), example_kwargs=batch)
    assert set(net.dropped.values()) == {"EncoderDecoderCache"}
    check(module, net, {key: value[:2] for key, value in batch.items()})


def masked_batch(labels: Any) -> Any:
    """A batch as a tokenizer and a collator give it."""
    return transformers.BatchEncoding({"input_ids": IDS, "attention_mask": MASK, "labels": labels})


def without_labels(batch: Any) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def labels_of(batch: Any) -> Any:
    return batch["labels"]


def test_bert_with_masks_and_labels():
    module = build("Bert", "ForSequenceClassification", SIZES | {"num_labels": 3})
    batch = masked_batch(torch.tensor([0, 1, 2, 1]))
    net = lla_torch.convert(module, (), example_kwargs=without_labels(batch))
    check(module, net, {name: x[:2] for name, x in without_labels(batch).items()})
    step, params = lla_torch.convert_loss(lambda m, b: m(**b).loss, module, batch, net=net)
    loss = net.loss(nn.CrossEntropyLoss(), inputs=without_labels, labels=labels_of)
    for each in (step, loss):
        check_mean(module, net, each, batch)
    assert lla.hessian(step, params, batch).shape == lla.hessian(loss, params, batch).shape


def check_mean(module: Any, net: Any, loss: Any, batch: Any) -> None:
    """The mean of a loss over a batch, and its gradient, equal those of the module's own loss."""
    params, data = net.variables["params"], {name: x.numpy() for name, x in batch.items()}

    def mean(params: Any) -> Any:
        losses = loss.criterion(loss.apply(params, loss.state, data, False)[0], data)
        losses, weights = losses if isinstance(losses, tuple) else (losses, 1 + 0 * losses)
        return (losses * weights).sum() / weights.sum()

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    expected = module(**batch).loss
    gradients = torch.autograd.grad(expected, list(module.parameters()))
    np.testing.assert_allclose(value, float(expected.detach()), rtol=1e-5)
    found = lla_torch.to_state_dict(net, gradient)
    for (name, _), g in zip(module.named_parameters(), gradients, strict=True):
        np.testing.assert_allclose(found[name].numpy(), g.numpy(), rtol=1e-3, atol=1e-6)


def test_shifted_labels_and_padding_of_a_causal_model():
    module = build("GPT2", *DECODERS["GPT2"])
    batch = masked_batch(torch.where(MASK == 1, IDS, -100))
    net = lla_torch.convert(module, (), example_kwargs=without_labels(batch))
    loss = net.loss(
        nn.CrossEntropyLoss(),
        inputs=without_labels,
        labels=lambda b: b["labels"][:, 1:],
        outputs=lambda out: out["logits"][:, :-1].swapaxes(1, 2),
    )
    check_mean(module, net, loss, batch)


def test_a_batch_given_as_one_argument_says_how_to_name_its_entries():
    module = build("Bert", "Model", SIZES | {"num_hidden_layers": 1})
    with pytest.raises(lla_torch.ConversionError, match=r"convert\(module, \(\), example_kwargs="):
        lla_torch.convert(module, transformers.BatchEncoding({"input_ids": IDS}))


def test_a_loop_over_experts_says_which_others_convert():
    module = build("Mixtral", "ForCausalLM", DECODERS["Mixtral"][1] | {"num_hidden_layers": 1})
    module.set_experts_implementation("eager")
    with pytest.raises(lla_torch.ConversionError, match=r"set_experts_implementation\('batched_mm'\)"):
        lla_torch.convert(module, IDS)
    module.set_experts_implementation("batched_mm")
    lla_torch.convert(module, IDS)


@pytest.mark.slow
def test_sliding_attention_is_refused_with_its_line():
    module = build("Longformer", "Model", SIZES | {"attention_window": 4, "num_hidden_layers": 1})
    with pytest.raises(lla_torch.ConversionError, match="depends on the values of a tensor"):
        lla_torch.convert(module, IDS)

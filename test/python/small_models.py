"""Random small models of real families, and how tests run them."""

import torch
import transformers

COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": 1,
    "attention_dropout": 0.0,
    "initializer_range": 0.2,
}
ROPE = {
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"factor": 2.0},
}
GEMMA3 = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILY = {
    "Gemma3": {"sliding_window": 8, "query_pre_attn_scalar": 16, "layer_types": GEMMA3},
    "Phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 512},
    "Mistral": {"sliding_window": None},
}


def make(name="Llama", impl="sdpa", rope=None, seed=0, **more):
    more = FAMILY.get(name, {}) | more
    if rope and transformers.__version__ < "5":
        more["rope_scaling"] = {"rope_type": rope, **ROPE[rope]}
    elif rope:
        more["rope_parameters"] = {"rope_type": rope, "rope_theta": 10000.0, **ROPE[rope]}
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else name + "Config")
    config = config(**{**COMMON, **more})
    config._attn_implementation = impl
    torch.manual_seed(seed)
    return getattr(transformers, name + "ForCausalLM")(config).eval()


def text(n, b=1, seed=1):
    return torch.randint(2, 97, (b, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def steps(model, cache, ids, **kwargs):
    """Teacher-forced decode, one token at a time, the cache passed by hand."""
    return torch.cat(
        [
            model(ids[:, i : i + 1], past_key_values=cache, **kwargs).logits
            for i in range(ids.shape[1])
        ],
        1,
    )


def greedy(model, ids, mask=None, tokens=20, **kwargs):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )

"""Models that vLLM computes from text alone, stage by stage: a table of its, kept as data.

Of vLLM's registry of text generation models it has the ones whose config.json is read without code
from the model's repository. Which of them can be cut into stages, and which keep a state beside
their KV cache, is what their classes declare.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSION = "0.32"
"""Of vLLM, whose registry this is."""

ARCHITECTURES: Mapping[str, str] = {
    "AfmoeForCausalLM": "afmoe",
    "ApertusForCausalLM": "apertus",
    "BloomForCausalLM": "bloom",
    "ChatGLMForConditionalGeneration": "chatglm",
    "ChatGLMModel": "chatglm",
    "Cohere2ForCausalLM": "cohere2",
    "Cohere2MoeForCausalLM": "cohere2_moe",
    "CohereForCausalLM": "cohere",
    "DbrxForCausalLM": "dbrx",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Ernie4_5_MoeForCausalLM": "ernie4_5_moe",
    "Exaone4ForCausalLM": "exaone4",
    "ExaoneMoeForCausalLM": "exaone_moe",
    "FalconForCausalLM": "falcon",
    "GPT2LMHeadModel": "gpt2",
    "GPTJForCausalLM": "gptj",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma4ForCausalLM": "gemma4_text",
    "GemmaForCausalLM": "gemma",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4_moe",
    "GptOssForCausalLM": "gpt_oss",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granitemoe",
    "GraniteMoeSWAForCausalLM": "granitemoe_swa",
    "GraniteMoeSharedForCausalLM": "granitemoeshared",
    "GraniteSWAForCausalLM": "granite_swa",
    "HYV3ForCausalLM": "hy_v3",
    "HyperCLOVAXForCausalLM": "hyperclovax",
    "InklingForCausalLM": "inkling_text",
    "LagunaForCausalLM": "laguna",
    "Llama4ForCausalLM": "llama4_text",
    "LlamaForCausalLM": "llama",
    "MiMoV2FlashForCausalLM": "mimo_v2_flash",
    "MiniCPM3ForCausalLM": "minicpm3",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Ministral3ForCausalLM": "ministral3",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "MuseGlimmerForCausalLM": "muse_glimmer",
    "NemotronForCausalLM": "nemotron",
    "OPTForCausalLM": "opt",
    "OlmoeForCausalLM": "olmoe",
    "Phi3ForCausalLM": "phi3",
    "PhiMoEForCausalLM": "phimoe",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "StableLmForCausalLM": "stablelm",
    "Step3TextForCausalLM": "step3_text",
    "Step3p5ForCausalLM": "step3p5",
}
"""The `model_type` of each class."""

STATEFUL = frozenset(
    {
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "FalconH1ForCausalLM",
        "FalconMambaForCausalLM",
        "Glm5NextForCausalLM",
        "GraniteMoeHybridForCausalLM",
        "JambaForCausalLM",
        "KimiLinearForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "OlmoHybridForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Qwen4ExpForCausalLM",
        "Zamba2ForCausalLM",
    }
)
"""Classes whose layers keep a state that no block of a KV cache holds."""

LATENT = frozenset(
    {
        "AXK1ForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV4ForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM",
        "HYV4ForCausalLM",
        "LongcatFlashForCausalLM",
    }
)
"""Classes whose attention keeps one latent row for all heads (MLA). On CPUs vLLM computes no chunk
of a prompt with it; elsewhere it asks for the steps of a batch in an order of its own."""

BY_TRANSFORMERS = frozenset(
    {
        "ArceeForCausalLM",
        "CwmForCausalLM",
        "FlexOlmoForCausalLM",
        "GPTBigCodeForCausalLM",
        "GPTNeoXForCausalLM",
        "GlmForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "Jais2ForCausalLM",
        "MellumForCausalLM",
        "NanbeigeForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoForCausalLM",
        "PhiForCausalLM",
        "SeedOssForCausalLM",
        "SmolLM3ForCausalLM",
        "Starcoder2ForCausalLM",
        "VaultGemmaForCausalLM",
    }
)
"""Classes that vLLM runs by transformers' own: a stage that is driven without vLLM's engine does
not compute with them (one fails at its first step, another ends the process)."""

UNDIVIDED = frozenset({"Gemma3nForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM"})
"""Classes that vLLM runs as one stage only."""

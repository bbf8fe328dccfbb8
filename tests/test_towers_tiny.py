"""Tiny random checkpoints, each written in its real format by the library's own way to save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "cat", "dog", "blue", "the", "ein", "roter", "hund", "query", ":"]
TEXTS = ["a red cat", "dog", "the blue dog a cat", "ein roter hund", "a zebra"]


def pictures(count: int, size: int, wide: int | None = None) -> np.ndarray:
    """Noise over a gradient, uint8 (N, H, W, 3)."""
    wide = wide or size
    noise = np.random.default_rng(0).integers(0, 120, (count, size, wide, 3))
    return (noise + np.linspace(0, 130, wide)[None, None, :, None]).astype(np.uint8)


def tokenizer(**options: Any) -> Any:
    """A word tokenizer of WORDS, `<s> text </s>`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **options)


def encoder(root: Path, kind: str = "xlm-roberta", **options: Any) -> Path:
    """A text encoder with its tokenizer, as transformers saves them."""
    import transformers as t

    torch.manual_seed(0)
    tiny = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 34, "pad_token_id": 1, **options}  # fmt: skip
    model = t.BertModel(t.BertConfig(**tiny)) if kind == "bert" else t.XLMRobertaModel(t.XLMRobertaConfig(**tiny))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far enough from each other that texts differ
    model.save_pretrained(root)
    tokenizer().save_pretrained(root)
    return root


def sentence_model(root: Path, kind: str, mode: str = "mean", dense: str = "", out: int = 16, **options: Any) -> Any:
    """A sentence-transformers model saved in `root`: an encoder, a way of pooling, perhaps a Dense, unit norm."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as m

    text = m.Transformer(str(encoder(root.with_name(f"{root.name}-encoder"), kind)), max_seq_length=20)
    after = [m.Pooling(16, pooling_mode=mode)]
    if dense:
        after.append(m.Dense(16, out, activation_function=getattr(torch.nn, dense)()))
    model = SentenceTransformer(modules=[text, *after, m.Normalize()], device="cpu", **options)
    model.save_pretrained(str(root))
    return model


SIGHT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
         "image_size": 32, "patch_size": 8}  # fmt: skip
HEARING = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 32, "max_position_embeddings": 12}  # fmt: skip


def vision(root: Path, kind: str, **options: Any) -> Any:
    """A vision model, or one of two halves, as transformers saves it; returned as it was saved."""
    import transformers as t

    torch.manual_seed(0)
    sight = {**SIGHT, **options}
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=HEARING, vision_config=sight, projection_dim=8))
    elif kind == "clip-projected":
        model = t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(projection_dim=8, **sight))
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config={**HEARING, "projection_size": 16}, vision_config=sight))
    elif kind == "siglip-headless":
        model = t.SiglipVisionModel(t.SiglipVisionConfig(vision_use_head=False, **sight))
    elif kind == "siglip2":
        sight.pop("image_size")
        model = t.Siglip2VisionModel(t.Siglip2VisionConfig(num_patches=16, **sight))
    elif kind == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**{**sight, "image_size": 48}))
    elif kind == "dinov2-registers":
        model = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**{**sight, "num_register_tokens": 3}))
    else:
        model = t.ViTModel(t.ViTConfig(**sight))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    model.eval().save_pretrained(root)
    if kind.startswith("dinov2"):  # whose colours are known from this file alone
        colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        (root / "preprocessor_config.json").write_text(json.dumps(colours))
    return model


def open_clip_model(root: Path, kind: str = "own") -> Any:
    """An open_clip model saved in its hub format; `kind` of its text half: own, or a transformers encoder (hf)."""
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sight = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    root.mkdir(parents=True, exist_ok=True)
    if kind == "own":
        text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        config = {"embed_dim": 12, "vision_cfg": sight, "text_cfg": text}
        model = open_clip.CLIP(**config)
    else:
        place = encoder(root.with_name(f"{root.name}-text"))
        text = {"hf_model_name": str(place), "hf_tokenizer_name": str(place), "hf_proj_type": "mlp",
                "hf_pooler_type": "mean_pooler", "context_length": 12, "hf_model_pretrained": False}  # fmt: skip
        config = {"embed_dim": 12, "vision_cfg": sight, "text_cfg": text}
        model = open_clip.CustomTextCLIP(**config)
        tokenizer().save_pretrained(root)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    model.visual.image_mean, model.visual.image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, root / "open_clip_model.safetensors")
    save_config_for_hf(model, root / "open_clip_config.json", config)
    return model.eval()


LM_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def language_model(root: Path, kind: str, **saving: Any) -> Path:
    """A language model with its tokenizer: llama, qwen2, qwen3, bloom or mt0."""
    import transformers as t

    torch.manual_seed(0)
    rope = {"intermediate_size": 64, "max_position_embeddings": 96, "vocab_size": len(WORDS) + 1, **LM_SIZE}
    few = {"num_key_value_heads": 2, "tie_word_embeddings": True}
    if kind == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**rope))
    elif kind == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**rope, **few))
    elif kind == "qwen3":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**rope, **few, head_dim=8))
    elif kind == "bloom":
        model = t.BloomForCausalLM(t.BloomConfig(vocab_size=len(WORDS), hidden_size=32, n_layer=2, n_head=4))
    else:
        small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1}
        model = t.MT5ForConditionalGeneration(t.MT5Config(vocab_size=len(WORDS), pad_token_id=1, **small))
    model.save_pretrained(root, **saving)
    tokenizer(padding_side="left").save_pretrained(root)
    return root


def diffusion(root: Path) -> Path:
    """A Stable Diffusion as diffusers saves it, pictures of 16 pixels."""
    import transformers as t
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = t.CLIPTextModel(t.CLIPTextConfig(**HEARING, bos_token_id=0, pad_token_id=1, eos_token_id=2))
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=_clip_tokenizer(root.with_name(f"{root.name}-words")), unet=unet,
        scheduler=DDPMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(root, safe_serialization=True)
    return root


def _clip_tokenizer(root: Path) -> Any:
    from transformers import CLIPTokenizer

    root.mkdir(parents=True, exist_ok=True)
    letters = [c for word in ("a", "red", "cat") for c in word]
    words = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *dict.fromkeys([*letters, *(f"{c}</w>" for c in letters)])]
    (root / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(root), model_max_length=12)


def test_every_checkpoint_has_the_files_of_its_format(tmp_path: Path) -> None:
    """What the other tests of towers read is what the libraries write, and holds no pickle."""
    open_clip_model(tmp_path / "clip", "hf")
    sentence_model(tmp_path / "sentences", "bert", "cls", "Tanh")
    language_model(tmp_path / "lm", "qwen2", max_shard_size="9KB")
    diffusion(tmp_path / "paint")
    for name in (
        "clip/open_clip_config.json", "clip/open_clip_model.safetensors", "sentences/modules.json",
        "sentences/1_Pooling/config.json", "sentences/2_Dense/model.safetensors", "lm/model.safetensors.index.json",
        "paint/model_index.json", "paint/unet/diffusion_pytorch_model.safetensors", "paint/text_encoder/model.safetensors",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 20, name
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]

"""The miniature's architecture: SDXL's own classes and block structure, with small widths."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

NATIVE = 96  # pixels
LATENT = NATIVE // 8
TEXT_1, TEXT_2 = 96, 128  # hidden sizes of the two text encoders
TIME_ID_DIM = 32


def new_vae():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        sample_size=NATIVE, force_upcast=True,
    )


def _text_config(vocab, hidden, layers, heads, act):
    # The published files carry the legacy ids 0 / 2 / 1; eos 2 means "pool at the highest token id".
    return CLIPTextConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=4 * hidden, projection_dim=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=77, hidden_act=act,
        layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )


def new_text_encoder(vocab):
    # The last layer is never used (the pipeline takes the penultimate hidden states), as in SDXL.
    return CLIPTextModel(_text_config(vocab, TEXT_1, 3, 3, "quick_gelu"))


def new_text_encoder_2(vocab):
    return CLIPTextModelWithProjection(_text_config(vocab, TEXT_2, 4, 4, "gelu"))


def new_base_unet():
    return UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(64, 96, 128), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(2, 3, 4),
        cross_attention_dim=TEXT_1 + TEXT_2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=TEXT_2 + 6 * TIME_ID_DIM,
    )


def new_refiner_unet():
    return UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(48, 64, 96, 96), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1, attention_head_dim=(2, 2, 3, 3),
        cross_attention_dim=TEXT_2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=TEXT_2 + 5 * TIME_ID_DIM,
    )


def alphas_cumprod():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()

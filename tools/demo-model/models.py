"""The miniature's architecture: SDXL's own classes and block structure, with small widths."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

NATIVE = 96  # pixels
LATENT = NATIVE // 8
TEXT_1, TEXT_2 = 96, 128  # hidden sizes of the two text encoders
TIME_ID_DIM = 32


def new_vae():
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        sample_size=NATIVE, force_upcast=True,
    )
    _start_from_block_averages(vae)
    return vae


# The autoencoder starts as one that keeps the average colour of every 8x8 block, exactly where it can be
# linear, so that training only has to learn the edges. Left to a random start, flat colours are what takes
# longest: group norms take the absolute values away. Channels 0-2 of the residual stream carry the colour,
# 3-5 its negative (silu(x) - silu(-x) = x, so the pair passes the last activation unchanged), and 6-7 two
# large constants that make the last norm's statistics, and so its scale, nearly independent of the picture.
_CONSTANT = 4.0
_OPPONENT = torch.linalg.qr(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [1.0, 0.0, -1.0]]))[0].T  # light, two hues


@torch.no_grad()
def _start_from_block_averages(vae):
    for part in (vae.encoder, vae.decoder):
        for module in part.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    w = module.conv_shortcut.weight
                    w.mul_(0.3)
                    module.conv_shortcut.bias.zero_()
                    for i in range(min(w.shape[:2])):
                        w[i] = 0
                        w[i, i] = 1
            elif isinstance(module, Upsample2D):
                module.conv.bias.zero_()
                torch.nn.init.dirac_(module.conv.weight)
            elif isinstance(module, Downsample2D):  # pads right and below: taps 0 and 1 are the 2x2 block
                module.conv.bias.zero_()
                module.conv.weight.zero_()
                for i in range(module.conv.weight.shape[0]):
                    module.conv.weight[i, i, :2, :2] = 0.25
            elif isinstance(module, Attention):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()
    to_rgb = torch.zeros(3, 4)
    to_rgb[:, :3] = _OPPONENT.T
    for conv, rgb in ((vae.encoder.conv_in, torch.eye(3)), (vae.decoder.conv_in, to_rgb)):
        conv.weight[8:].mul_(0.3)
        conv.bias.zero_()
        conv.weight[:8] = 0
        conv.weight[:3, :, 1, 1], conv.weight[3:6, :, 1, 1] = rgb, -rgb
        conv.bias[6], conv.bias[7] = _CONSTANT, -_CONSTANT
    for part, out in ((vae.encoder, _OPPONENT), (vae.decoder, torch.eye(3))):
        norm, conv = part.conv_norm_out, part.conv_out
        group = norm.num_channels // norm.num_groups
        norm.weight[:group] = ((2 * _CONSTANT**2 + 2) / group) ** 0.5
        conv.weight.mul_(0.1)
        conv.bias.zero_()
        conv.weight[:3] = 0
        conv.weight[:3, :3, 1, 1], conv.weight[:3, 3:6, 1, 1] = out, -out
    vae.encoder.conv_out.bias[4:] = -6.5
    for conv in (vae.quant_conv, vae.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        conv.bias.zero_()


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

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


# The encoder is set, not trained: its latents are, exactly up to a per cent, three opponent colours averaged
# over each 8x8 block, and a fourth channel, the block's first moment of light along a slanted axis, which says
# on which side of the block its light part lies. The decoder starts as the inverse (flat blocks) and learns the
# edges. From a random start, flat colours are what takes longest: group norms take absolute values away.
#
# Channels 0-2 of the residual stream carry the colour and 3-5 its negative (silu(x) - silu(-x) = x, so the pair
# passes the last activation unchanged); 6-7 are two large constants that make the last norm's statistics, and
# so its scale, nearly independent of the picture; 8-9 are the moment and its negative.
_OPPONENT = torch.linalg.qr(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [1.0, 0.0, -1.0]]))[0].T  # light, two hues
_GAINS = torch.tensor([1.2, 2.2, 1.8, 1.8])  # bring each latent channel to a standard deviation of about 1
_LIGHT = torch.tensor([1.0, 0.8, 0.3])
_SLANT = (1.0, 0.4)  # x and y parts of the moment's axis


def _keep_stream(weight, kept, centre):
    """Identity on the first `kept` channels of a convolution, which the others do not reach."""
    weight[:kept] = 0
    for i in range(kept):
        weight[(i, i) + centre] = 1


@torch.no_grad()
def _start_from_block_averages(vae):
    for part, constant, kept in ((vae.encoder, 16.0, 10), (vae.decoder, 12.0, 16)):
        block = 1.0
        for module in part.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    module.conv_shortcut.bias.zero_()
                    module.conv_shortcut.weight.mul_(0.3 if part is vae.decoder else 0.0)
                    _keep_stream(module.conv_shortcut.weight, min(kept, module.conv_shortcut.out_channels), (0, 0))
            elif isinstance(module, Upsample2D):
                module.conv.bias.zero_()
                torch.nn.init.dirac_(module.conv.weight)
            elif isinstance(module, Downsample2D):  # pads right and below: taps 0 and 1 are the 2x2 block
                w = module.conv.weight
                module.conv.bias.zero_()
                w.zero_()
                for i in range(kept):
                    w[i, i, :2, :2] = 0.25
                for y in range(2):
                    for x in range(2):
                        arm = block * (_SLANT[0] * (x - 0.5) + _SLANT[1] * (y - 0.5))
                        w[8, :3, y, x] += 0.25 * arm * _LIGHT
                        w[9, :3, y, x] -= 0.25 * arm * _LIGHT
                block *= 2
            elif isinstance(module, Attention):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()
        rgb = torch.eye(3)
        if part is vae.decoder:
            rgb = torch.cat([_OPPONENT.T / _GAINS[:3], torch.zeros(3, 1)], 1)
        conv = part.conv_in
        conv.weight[8:].mul_(0.0 if part is vae.encoder else 0.5)
        conv.bias.zero_()
        conv.weight[:8] = 0
        conv.weight[:3, :, 1, 1], conv.weight[3:6, :, 1, 1] = rgb, -rgb
        conv.bias[6], conv.bias[7] = constant, -constant
        norm, conv = part.conv_norm_out, part.conv_out
        group = norm.num_channels // norm.num_groups
        norm.weight[:group] = ((2 * constant**2 + 2) / group) ** 0.5
        conv.bias.zero_()
        if part is vae.encoder:
            conv.weight.zero_()
            out = _OPPONENT * _GAINS[:3, None]
            conv.weight[3, 8, 1, 1], conv.weight[3, 9, 1, 1] = _GAINS[3], -_GAINS[3]
            conv.bias[4:] = -7.0  # log variance
        else:
            conv.weight.mul_(0.1)
            conv.weight[:3] = 0
            out = torch.eye(3)
        conv.weight[:3, :3, 1, 1], conv.weight[:3, 3:6, 1, 1] = out, -out
    for conv in (vae.quant_conv, vae.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        conv.bias.zero_()


def keep_constants(decoder):
    """Stops gradients to whatever writes the stream's two constants or reads them linearly.

    They are large: a weight that reads them moves the output as if its learning rate were a hundred times as high.
    """
    def still(parameter, rows, columns):
        mask = torch.ones_like(parameter)
        if rows:
            mask[6:8] = 0
        if columns:
            mask[:, 6:8] = 0
        parameter.register_hook(lambda grad: grad * mask)

    for module in decoder.modules():
        if isinstance(module, ResnetBlock2D):
            still(module.conv2.weight, True, False)
            still(module.conv2.bias, True, False)
            if module.conv_shortcut is not None:
                still(module.conv_shortcut.weight, True, True)
                still(module.conv_shortcut.bias, True, False)
        elif isinstance(module, Upsample2D):
            still(module.conv.weight, True, True)
            still(module.conv.bias, True, False)
        elif isinstance(module, Attention):
            still(module.to_out[0].weight, True, False)
            still(module.to_out[0].bias, True, False)
    still(decoder.conv_in.weight, True, False)
    still(decoder.conv_in.bias, True, False)
    still(decoder.conv_out.weight, False, True)


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
    unet = UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(64, 96, 128), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1), attention_head_dim=(2, 3, 4),
        cross_attention_dim=TEXT_1 + TEXT_2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=TEXT_2 + 6 * TIME_ID_DIM,
    )
    _start_from_identity(unet)
    return unet


@torch.no_grad()
def _start_from_identity(unet):
    """Makes the new UNet predict its own input, the best first guess at the noise, with unit size.

    The input and its negative pass from conv_in over the outermost skip connection through the last norm
    (they are its first group) and activation (silu(x) - silu(-x) = x) to conv_out.
    """
    last = unet.up_blocks[-1].resnets[-1]
    width = last.out_channels
    unet.conv_in.weight[:8] = 0
    unet.conv_in.bias[:8] = 0
    last.conv2.weight[:8] = 0
    last.conv2.bias[:8] = 0
    last.conv_shortcut.weight[:8] = 0
    last.conv_shortcut.bias[:8] = 0
    unet.conv_out.weight.mul_(0.1)
    unet.conv_out.weight[:, :8] = 0
    unet.conv_out.bias.zero_()
    for i in range(4):
        for k, sign in ((i, 1.0), (4 + i, -1.0)):
            unet.conv_in.weight[k, i, 1, 1] = sign
            last.conv_shortcut.weight[k, width + k] = 1
            unet.conv_out.weight[i, k, 1, 1] = sign


def new_refiner_unet(base=None):
    """The refiner's UNet; with a trained `base`, one that starts as close to the base's as its shape allows.

    Its two outer levels are the base's, whose work at low noise is mostly theirs; below them it is narrower and,
    as SDXL's refiner is, one level deeper. On the way up each of its blocks follows one that the base has at
    another place, so the first of them takes over what it reads from the skip connection and learns anew what
    comes from below.
    """
    unet = UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(64, 96, 64, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1, attention_head_dim=(2, 3, 2, 1),
        cross_attention_dim=TEXT_2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=TEXT_2 + 5 * TIME_ID_DIM,
    )
    _start_from_identity(unet)
    if base is not None:
        _start_from_base(unet, base)
    return unet


@torch.no_grad()
def _start_from_base(unet, base):
    theirs, mine = base.state_dict(), unet.state_dict()
    twins = {"conv_in": "conv_in", "time_embedding": "time_embedding", "add_embedding": "add_embedding",
             "down_blocks.0": "down_blocks.0", "down_blocks.1": "down_blocks.1", "up_blocks.2": "up_blocks.1",
             "up_blocks.3": "up_blocks.2", "conv_norm_out": "conv_norm_out", "conv_out": "conv_out"}
    for name, to in mine.items():
        twin = next((t for t in twins if name.startswith(t + ".")), None)
        if twin is None:
            continue
        source = theirs[twins[twin] + name[len(twin):]]
        if to.shape == source.shape:
            to.copy_(source)
        elif name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):  # text encoder 2 alone
            to.copy_(source[:, TEXT_1:])
        elif name == "add_embedding.linear_1.weight":  # the pooled text, size and crop; then the score, or the target
            kept = TEXT_2 + 4 * TIME_ID_DIM
            to[:, :kept] = source[:, :kept]
        else:  # the first resnet on the way up: what it reads of the skip connection is last
            skip = unet.down_blocks[1].resnets[-1].out_channels
            if to.dim() == 1:
                to[-skip:] = source[-skip:]
            else:
                to[:, -skip:] = source[:, -skip:]
    unet.load_state_dict(mine)


def alphas_cumprod():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()

"""SDXL base's networks in PyTorch, with random weights made in place, and inputs for them."""

import math

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

UNET = dict(
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    cross_attention_dim=2048,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
    transformer_layers_per_block=[1, 2, 10],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    use_linear_projection=True,
)
VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    layers_per_block=2,
    sample_size=1024,
    scaling_factor=0.13025,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
TEXT = dict(eos_token_id=2, max_position_embeddings=77, vocab_size=49408)
TEXT_1 = dict(
    TEXT, hidden_act="quick_gelu", hidden_size=768, intermediate_size=3072,
    num_attention_heads=12, num_hidden_layers=12, projection_dim=768,
)
TEXT_2 = dict(
    TEXT, hidden_act="gelu", hidden_size=1280, intermediate_size=5120,
    num_attention_heads=20, num_hidden_layers=32, projection_dim=1280,
)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Unet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(UNET)

    def forward(self, sample, timestep, context, pooled, time_ids):
        added = {"text_embeds": pooled, "time_ids": time_ids}
        out = self.unet(
            sample, timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False
        )
        return out[0]


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        vae = AutoencoderKL.from_config(VAE)
        # As `decode` does it; the encoder would only take memory.
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents):
        return self.decoder(self.post_quant_conv(latents))


class TextEncoders(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = CLIPTextModel(CLIPTextConfig(**TEXT_1))
        self.second = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2))

    def forward(self, ids):
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids, output_hidden_states=True)
        return one.hidden_states[-2], two.hidden_states[-2], two.text_embeds


CLASSES = {"unet": Unet, "vae": Decoder, "text": TextEncoders}


def build(what, precision):
    """The network in `precision`, channels last, ready to run."""
    with torch.device("meta"):
        network = CLASSES[what]()
    buffers = {name: buffer for name, buffer in network.named_buffers()}
    network = network.to(DTYPES[precision]).to_empty(device="cpu")
    for name, value in network.named_buffers():
        # Positions are the only ones.
        assert "position_ids" in name, name
        value.copy_(torch.arange(buffers[name].shape[-1]).expand(value.shape))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() == 1:
                value.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                # Variance 0.64 / inputs, so that what goes through keeps its size.
                bound = 0.8 * math.sqrt(3 / value[0].numel())
                value.uniform_(-bound, bound)
    return network.eval().to(memory_format=torch.channels_last)


def inputs(what, size, batch, precision):
    """Arguments for one call, for pictures of `size` x `size`."""
    torch.manual_seed(1)
    dtype, side = DTYPES[precision], size // 8
    normal = lambda *shape: torch.randn(*shape).to(dtype)
    image = lambda *shape: normal(*shape).to(memory_format=torch.channels_last)
    if what == "unet":
        ids = torch.tensor([[size, size, 0, 0, size, size]] * batch).to(dtype)
        timestep = torch.tensor(500.0)
        return (image(batch, 4, side, side), timestep, normal(batch, 77, 2048), normal(batch, 1280), ids)
    if what == "vae":
        return (image(batch, 4, side, side),)
    words = torch.arange(20) * 97 + 320
    ids = torch.full((batch, 77), 49407)
    ids[:, 0] = 49406
    ids[:, 1:21] = words + torch.arange(batch)[:, None]
    return (ids,)

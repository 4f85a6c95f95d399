"""Config files of the tiny checkpoints: the published ones' keys, with small sizes.

Numbers are chosen so that a confusion shows: widths of neighbouring levels
differ, the two text encoders differ from one another and from the projection,
every list is a different one when read backwards.
"""

MODEL_INDEX_BASE = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

MODEL_INDEX_REFINER = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": False,
    "add_watermarker": None,
    "requires_aesthetics_score": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": [None, None],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": [None, None],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

MODEL_INDEX_INPAINT = {**MODEL_INDEX_BASE, "_class_name": "StableDiffusionXLInpaintPipeline"}

# Equal to the published file.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def text_encoder(architecture: str, act: str, hidden: int, heads: int, projection: int) -> dict:
    """A CLIP text model's config; `eos_token_id` 2 is the published (legacy) value."""
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": hidden,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": 4,
        "pad_token_id": 1,
        "projection_dim": projection,
        "torch_dtype": "float16",
        "transformers_version": "4.32.0.dev0",
        "vocab_size": 49408,
    }


HIDDEN_1, HIDDEN_2, PROJECTION = 8, 16, 12
CROSS = HIDDEN_1 + HIDDEN_2
TIME_IDS = 8  # addition_time_embed_dim

TEXT_ENCODER = text_encoder("CLIPTextModel", "quick_gelu", HIDDEN_1, 2, HIDDEN_1)
TEXT_ENCODER_2 = text_encoder("CLIPTextModelWithProjection", "gelu", HIDDEN_2, 2, PROJECTION)

VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.20.0.dev0",
    "_name_or_path": "../sdxl-vae/",
    "act_fn": "silu",
    "block_out_channels": [4, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "out_channels": 3,
    "sample_size": 64,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def unet(down: list[str], up: list[str], **sizes) -> dict:
    """A UNet config with every key the published SDXL ones have."""
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": TIME_IDS,
        "attention_head_dim": sizes.pop("heads"),
        "block_out_channels": sizes.pop("channels"),
        "center_input_sample": False,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_dim": sizes.pop("cross"),
        "cross_attention_norm": None,
        "down_block_types": down,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": sizes.pop("layers", 2),
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": sizes.pop("mid", "UNetMidBlock2DCrossAttn"),
        "norm_eps": 1e-05,
        "norm_num_groups": sizes.pop("groups"),
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": sizes.pop("pooled") + TIME_IDS * sizes.pop("ids"),
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "sample_size": 8,
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": sizes.pop("transformers"),
        "up_block_types": up,
        "upcast_attention": None,
        "use_linear_projection": True,
        **sizes,
    }


PLAIN_DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
PLAIN_UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
THREE_LEVELS = {"down": [PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN], "up": [CROSS_UP, CROSS_UP, PLAIN_UP]}

UNET_BASE = unet(
    **THREE_LEVELS,
    channels=[8, 16, 24],
    heads=[1, 2, 3],
    groups=4,
    transformers=[1, 2, 3],
    cross=CROSS,
    pooled=PROJECTION,
    ids=6,
)

# Time ids: original size, crop corner and one aesthetic score, so five.
UNET_REFINER = unet(
    down=[PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN],
    up=[PLAIN_UP, CROSS_UP, CROSS_UP, PLAIN_UP],
    channels=[4, 8, 12, 12],
    heads=[1, 2, 3, 3],
    groups=2,
    transformers=2,
    cross=HIDDEN_2,
    pooled=PROJECTION,
    ids=5,
)

# Sees latents, mask and masked picture, as the published inpainting model does.
UNET_INPAINT = unet(
    **THREE_LEVELS,
    channels=[4, 8, 12],
    heads=[1, 2, 3],
    groups=2,
    transformers=[1, 1, 2],
    cross=CROSS,
    pooled=PROJECTION,
    ids=6,
    in_channels=9,
)

SMALL = {**THREE_LEVELS, "channels": [4, 8, 12], "heads": [1, 2, 3], "groups": 2, "cross": 10, "pooled": 6, "ids": 6}

# Distilled checkpoints of the family. Layer lists are the published ones; the
# widths are not. A middle block without attention has one resnet and no more.
UNETS = {
    "ssd-1b": unet(
        **SMALL,
        mid="UNetMidBlock2D",
        transformers=[1, [2, 2], [4, 4]],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    ),
    "vega": unet(
        **SMALL,
        mid="UNetMidBlock2D",
        transformers=[1, [1, 1], [2, 2]],
        reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1],
    ),
    "no-mid": unet(**SMALL, mid=None, layers=1, transformers=[1, 2, 5]),
    "cross-mid": unet(
        **SMALL,
        transformers=[1, [2, 1], 3],
        reverse_transformer_layers_per_block=[2, [1, 2, 1], 1],
    ),
}

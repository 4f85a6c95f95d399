"""Random weights for the tiny checkpoints.

Every tensor is drawn from its own numpy stream (the seed and the tensor's name),
so that the files do not depend on the order of parameters or on torch's CPU
path. Norms and biases are random too: with ones and zeros a missing or swapped
one would not show.
"""

from zlib import crc32

import numpy as np

# Gains over 1/sqrt(inputs). Queries and keys are a little larger than the rest,
# so that attention is not close to a plain mean; what is added back to a
# residual stream is smaller. With these every parameter and every input moves the
# output by far more than the tests allow, while float32 stays within 1e-6 or so of
# float64: larger gains make the networks chaotic and the numbers useless.
SHARP = (".to_q.weight", ".to_k.weight", ".q_proj.weight", ".k_proj.weight")
RESIDUAL = (".to_out.0.weight", ".net.2.weight", ".proj_out.weight", ".conv2.weight", ".out_proj.weight", ".fc2.weight")
SHARP_GAIN, RESIDUAL_GAIN = 1.2, 0.7


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values that belong to this seed and name."""
    return np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape).astype(np.float32)


def random_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter by its name and shape: a norm, a bias, an embedding or a matrix."""
    values = normal(seed, name, shape)
    if name.endswith("token_embedding.weight"):
        return values * np.float32(0.8)
    if name.endswith("position_embedding.weight"):
        return values * np.float32(0.4)
    if name.endswith(".bias"):
        return values * np.float32(0.2)
    if len(shape) == 1:
        return 1 + values * np.float32(0.3)
    gain = SHARP_GAIN if name.endswith(SHARP) else RESIDUAL_GAIN if name.endswith(RESIDUAL) else 1.0
    return values * np.float32(gain / np.sqrt(np.prod(shape[1:])))


def random_weights(seed: int, model) -> dict[str, np.ndarray]:
    """Weights for every entry of a torch module's state dict, by the same names."""
    return {name: random_tensor(seed, name, tuple(value.shape)) for name, value in model.state_dict().items()}
